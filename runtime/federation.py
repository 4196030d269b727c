"""Trust bundles of federated trust domains, from files that an operator or another program keeps up to date."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from runtime.bounded import Bounded, Unanswered
from svid.bundle import TrustBundle
from svid.errors import InvalidBundle, SvidError
from svid.federation import Order, order
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.federation")
# Clients take answers of 4 MiB; an answer holds all bundles.
MAX_TOTAL_BYTES = 2 * 1024 * 1024
# So long is waited for a look at the files: trust that changed otherwise waits as long.
LOOK_SECONDS = 2.0
# So many of those that cannot be used are named.
_SAID = 4
_Seen: TypeAlias = tuple[int, int, int] | None


class FederatedBundles:
    """The newest good bundle of each configured trust domain. A file that went bad changes nothing but the log."""

    def __init__(
        self, files: Mapping[TrustDomain, Path], *, max_total: int = MAX_TOTAL_BYTES, within: float = LOOK_SECONDS
    ) -> None:
        self._max_total = max_total
        self._reader = Bounded(within)
        self._reading: Path | None = None
        self._hangs = False
        self._files = dict(sorted(files.items(), key=lambda item: item[0].name))
        self._seen: dict[TrustDomain, _Seen] = {}
        self._bundles: dict[TrustDomain, TrustBundle] = {}

    @property
    def bundles(self) -> tuple[TrustBundle, ...]:
        """In the order of the trust domains' names."""
        return tuple(self._bundles[domain] for domain in self._files if domain in self._bundles)

    async def look(self) -> None:
        """`refresh`, off the event loop and waited for a while: what a file that hangs says later counts then."""
        if not self._files:
            return
        try:
            await self._reader.do(self.refresh)
        except Unanswered:
            if not self._hangs:
                _log.error(
                    "federated trust bundles are not read in time; the last good ones stay",
                    extra={
                        "file": str(self._reading or ""),
                        "error": f"no answer within {self._reader.seconds:g} s; is it on a file system that hangs, or "
                        "no regular file?",
                    },
                )
            self._hangs = True
        else:
            self._hangs = False

    def refresh(self) -> bool:
        """Read what changed since the last call; whether `bundles` did. Blocks on the file system."""
        before = self.bundles
        for domain, path in self._files.items():
            self._reading = path
            try:
                found = path.stat()
                seen = (found.st_ino, found.st_size, found.st_mtime_ns)
                if seen == self._seen.get(domain, ()):
                    continue
                found_bundle = _newer(self._bundles.get(domain), read_bundle(domain, path))
                self._check_room(domain, found_bundle)
                self._bundles[domain] = found_bundle
            except OSError as error:
                # None is a state as well: a missing file is reported once, not at each look.
                seen = None
                if self._seen.get(domain, ()) is not None:
                    self._report(domain, path, error.strerror or str(error))
            except SvidError as error:
                self._report(domain, path, str(error))
            self._seen[domain] = seen
        return self.bundles != before

    def _check_room(self, domain: TrustDomain, found: TrustBundle) -> None:
        others = sum(len(each.to_jwks()) for other, each in self._bundles.items() if other != domain)
        if others + len(found.to_jwks()) > self._max_total:
            raise InvalidBundle(f"all federated bundles together would exceed {self._max_total} bytes")

    def _report(self, domain: TrustDomain, path: Path, why: str) -> None:
        _log.error(
            "federated trust bundle cannot be used; "
            + ("the last good one stays" if domain in self._bundles else "its SVIDs are not trusted"),
            extra={"trust_domain": domain.name, "file": str(path), "error": why},
        )


def read_bundle(trust_domain: TrustDomain, path: Path) -> TrustBundle:
    """A bundle file: a SPIFFE JWKS, or PEM certificates. Raises OSError, InvalidBundle.

    In either form what cannot be an authority is left out and said once, and the others count: a partner's one root
    that nobody can use is no reason to stay with those that he had before.
    """
    data, left_out = path.read_bytes(), list[str]()
    read = TrustBundle.from_jwks if data.lstrip().startswith(b"{") else TrustBundle.from_pem
    bundle = read(trust_domain, data, left_out.append)
    if left_out:
        _log.warning(
            "authorities of a trust bundle cannot be used and are left out",
            extra={
                "trust_domain": trust_domain.name,
                "file": str(path),
                "left_out": len(left_out),
                "error": "; ".join(left_out[:_SAID]),
            },
        )
    return bundle


def _newer(kept: TrustBundle | None, found: TrustBundle) -> TrustBundle:
    """The one that counts (Federation 4.2); what ought not to be is said."""
    how = order(kept, found)
    if kept is not None and how is Order.OLDER:
        _log.warning(
            "federated trust bundle is older than the one held; ignored",
            extra={"trust_domain": found.trust_domain.name, "sequence": found.sequence, "held": kept.sequence},
        )
        return kept
    if how is Order.UNNUMBERED:
        _log.warning(
            "federated trust bundle changed and its sequence did not; taken all the same, though it should rise",
            extra={"trust_domain": found.trust_domain.name, "sequence": found.sequence},
        )
    return found
