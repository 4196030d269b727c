"""Trust bundles of federated trust domains, from files that an operator or another program keeps up to date."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.federation")
_Seen: TypeAlias = tuple[int, int, int] | None


class FederatedBundles:
    """The newest good bundle of each configured trust domain. A file that went bad changes nothing but the log."""

    def __init__(self, files: Mapping[TrustDomain, Path]) -> None:
        self._files = dict(sorted(files.items(), key=lambda item: item[0].name))
        self._seen: dict[TrustDomain, _Seen] = {}
        self._bundles: dict[TrustDomain, TrustBundle] = {}

    @property
    def bundles(self) -> tuple[TrustBundle, ...]:
        """In the order of the trust domains' names."""
        return tuple(self._bundles[domain] for domain in self._files if domain in self._bundles)

    def refresh(self) -> bool:
        """Read what changed since the last call; whether `bundles` did. Blocks on the file system."""
        before = self.bundles
        for domain, path in self._files.items():
            try:
                found = path.stat()
                seen = (found.st_ino, found.st_size, found.st_mtime_ns)
                if seen == self._seen.get(domain, ()):
                    continue
                self._bundles[domain] = _newer(self._bundles.get(domain), read_bundle(domain, path))
            except OSError as error:
                # None is a state as well: a missing file is reported once, not at each look.
                seen = None
                if self._seen.get(domain, ()) is not None:
                    self._report(domain, path, error.strerror or str(error))
            except SvidError as error:
                self._report(domain, path, str(error))
            self._seen[domain] = seen
        return self.bundles != before

    def _report(self, domain: TrustDomain, path: Path, why: str) -> None:
        _log.error(
            "federated trust bundle cannot be used; "
            + ("the last good one stays" if domain in self._bundles else "its SVIDs are not trusted"),
            extra={"trust_domain": domain.name, "file": str(path), "error": why},
        )


def read_bundle(trust_domain: TrustDomain, path: Path) -> TrustBundle:
    """A bundle file: a SPIFFE JWKS, or PEM certificates. Raises OSError, InvalidBundle."""
    data = path.read_bytes()
    if data.lstrip().startswith(b"{"):
        return TrustBundle.from_jwks(trust_domain, data)
    return TrustBundle.from_pem(trust_domain, data)


def _newer(kept: TrustBundle | None, found: TrustBundle) -> TrustBundle:
    """Federation 4.2: by sequence where both have one, else the one that came last."""
    if kept is None or kept.sequence is None or found.sequence is None or found.sequence >= kept.sequence:
        return found
    _log.warning(
        "federated trust bundle is older than the one held; ignored",
        extra={"trust_domain": found.trust_domain.name, "sequence": found.sequence, "held": kept.sequence},
    )
    return kept
