"""The bundles of federated trust domains, kept once for all volumes of a node.

A volume's own state does not have them: each would hold a copy of what may be two megabytes. An agent that starts while
its signer is away serves what the one before served, so they are in a file beside the journal, and nothing secret is.
"""

import json
import logging
import os
import threading
from pathlib import Path

from svid.bundle import TrustBundle
from svid.errors import InvalidSvid, SvidError
from svid.identity import Trust, WorkloadIdentity
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.workloads")
FILE = "federated.json"
_VERSION = 1


class KeptBundles:
    """The newest ones that the authority gave, in a file. Its calls block on the file system, in any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bundles: tuple[TrustBundle, ...] | None = None
        self._lock = threading.Lock()

    def read(self) -> tuple[TrustBundle, ...]:
        """Those that are kept. Without a file that can be used there are none, until the authority says which."""
        with self._lock:
            if self._bundles is None:
                self._bundles = self._found()
            return self._bundles

    def has(self, bundles: tuple[TrustBundle, ...]) -> bool:
        """Whether it is these that are kept, as far as it is known; it looks at no file."""
        return self._bundles == bundles

    def keep(self, bundles: tuple[TrustBundle, ...]) -> None:
        """Keep these and no others. Raises OSError; what was kept stays then."""
        with self._lock:
            if bundles == self._bundles:
                return
            if bundles:
                document = {each.trust_domain.name: each.to_jwks().decode() for each in bundles}
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                temporary = self._path.with_suffix(".new")
                temporary.write_text(json.dumps({"version": _VERSION, "bundles": document}), encoding="utf-8")
                os.replace(temporary, self._path)
            else:
                self._path.unlink(missing_ok=True)
            self._bundles = bundles

    def complete(self, identity: WorkloadIdentity) -> WorkloadIdentity:
        """`identity`, read from a volume, with what it had of them."""
        if identity.federated:
            return identity  # an older agent's: it has a copy
        try:
            return identity.with_trust(Trust(identity.bundle, self.read()))
        except InvalidSvid:
            return identity  # kept for another trust domain than this one

    def _found(self) -> tuple[TrustBundle, ...]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']!r} is not {_VERSION}")
            return tuple(
                TrustBundle.from_jwks(TrustDomain(name), text.encode()) for name, text in document["bundles"].items()
            )
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SvidError) as error:
            _log.error(
                "kept federated bundles cannot be read; the authority's next answer brings them",
                extra={"file": str(self._path), "error": type(error).__name__},
            )
            return ()
