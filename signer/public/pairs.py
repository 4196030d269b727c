"""The listeners' certificates: files, read anew when they change, or the signer's own SVID. The last good one stays."""

import logging
import ssl
from datetime import datetime
from pathlib import Path
from typing import Protocol

from runtime.bounded import Bounded, Unanswered
from runtime.clock import Clock
from signer.authority.state import AuthorityState
from signer.keystore.keys import Keys
from signer.keystore.store import KeyStoreUnavailable
from signer.minting.own import OwnSvid
from signer.public import tls
from signer.public.shown import Pair
from svid.certificates import certificates_from_pem
from svid.errors import SvidError

_log = logging.getLogger("podsvid.public")
# Seconds that files, or a key store, get.
LOOK_SECONDS, SIGN_SECONDS = 2.0, 5.0
# Bytes of a file.
MAX_FILE = 256 * 1024


class Source(Protocol):
    """Where a certificate comes from. `trouble`: why the newest is not in use; `ends`: when the one in use does, where
    nobody here renews it."""

    pair: Pair | None
    trouble: str
    ends: datetime | None

    async def look(self, state: AuthorityState | None) -> None:
        """Take a newer one, where there is one that is good."""
        ...


class PairUnusable(Exception):
    """These files are no certificate and its key; the text says why."""


def read_pair(chain: Path, key: Path, now: datetime) -> tuple[Pair, datetime]:
    """A pair that a server can use now, and when it ends. Raises PairUnusable, OSError. Blocks."""
    found = Pair(_content(chain), _content(key))
    try:
        leaf = certificates_from_pem(found.chain)[0]
    except ValueError as error:
        raise PairUnusable(f"{chain} has no certificate: {error}") from None
    if leaf.not_valid_after_utc <= now:
        raise PairUnusable(f"the certificate in {chain} ended at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    try:
        tls.context(found)
    except (OSError, ValueError):
        # What OpenSSL says of it may quote it, and it is a key.
        raise PairUnusable(f"{key} is not the unencrypted PEM key of the certificate in {chain}") from None
    return found, leaf.not_valid_after_utc


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        found = file.read(MAX_FILE + 1)
    if len(found) > MAX_FILE:
        raise PairUnusable(f"{path} has more than {MAX_FILE} bytes")
    return found


class FilePair:
    """Implements Source."""

    def __init__(self, name: str, chain: Path, key: Path, clock: Clock) -> None:
        self._name = name
        self._files = (chain, key)
        self._clock = clock
        self._reader = Bounded(LOOK_SECONDS)
        self.pair: Pair | None = None
        self.trouble = ""
        self.ends: datetime | None = None

    async def look(self, state: AuthorityState | None) -> None:
        why = ""
        try:
            # Read each time: what a file's times say is not worth the second in which they lie.
            found, ends = await self._reader.do(lambda: read_pair(*self._files, self._clock.now()))
        except Unanswered:
            why = f"{self._files[0]} and {self._files[1]} are not read within {LOOK_SECONDS:g} s"
        except PairUnusable as error:
            why = str(error)
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        else:
            if found != self.pair:
                self.pair, self.ends = found, ends
                _log.info("certificate taken", extra={"listener": self._name, "not_after": ends.isoformat()})
        if why and why != self.trouble:
            _log.error(
                "certificate files cannot be used; " + ("the ones before stay" if self.pair else "nobody is served"),
                extra={"listener": self._name, "error": why},
            )
        self.trouble = why


class OwnPair:
    """Implements Source: by the authority that signs, until that one leaves the bundle or half of its life has passed.

    One that this process' OpenSSL cannot show (before 3.5 it knows no ML-DSA) is not signed again until it is due, and
    the one before stays.
    """

    def __init__(self, name: str, clock: Clock, keys: Keys) -> None:
        self._name = name
        self._clock = clock
        self._keys = keys
        self._own: OwnSvid | None = None
        self.pair: Pair | None = None
        self.trouble = ""
        self.ends: datetime | None = None

    async def look(self, state: AuthorityState | None) -> None:
        if state is None or state.unborn:
            return
        now = self._clock.now()
        own = self._own
        if own is None or own.due(state, now):
            try:
                own = self._own = await self._keys.do(
                    state.active_x509.private_key, lambda: OwnSvid.issued(state, now), seconds=SIGN_SECONDS
                )
            except (SvidError, KeyStoreUnavailable) as error:
                if str(error) != self.trouble:
                    _log.error("own SVID cannot be renewed", extra={"listener": self._name, "error": str(error)})
                self.trouble = str(error)
                return
        found = Pair(own.chain, own.key)
        if found == self.pair:
            return
        try:
            tls.context(found)
        except ssl.SSLError:
            why = (
                f"{ssl.OPENSSL_VERSION} does not take the chain of authority {own.issuer}: before 3.5 it knows no "
                "ML-DSA; let an EC or RSA authority sign, or set bundle_profile https_web"
            )
            self._not_shown(why)
        except OSError as error:
            self._not_shown(error.strerror or type(error).__name__)
        else:
            self.pair, self.trouble = found, ""
            _log.info("certificate taken", extra={"listener": self._name, "not_after": own.not_after.isoformat()})

    def _not_shown(self, why: str) -> None:
        if why != self.trouble:
            _log.error(
                "own SVID cannot be shown; " + ("the one before stays" if self.pair else "nobody is served"),
                extra={"listener": self._name, "error": why},
            )
        self.trouble = why
