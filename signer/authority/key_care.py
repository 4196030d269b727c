"""The authorities' keys in a key store: whether they are there and sign, and an end to those that nothing names."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from runtime.clock import Clock
from runtime.feed import Feed
from signer.authority.left_keys import KEPT, LeftKey, noted
from signer.authority.lifecycle import Step
from signer.authority.seat import Load, Seat, Swap
from signer.authority.slots import KINDS, Slot, Stage
from signer.authority.state import AuthorityState
from signer.errors import SignerError
from signer.held_key import KeyRef, ref_of
from signer.keystore.keys import Keys
from signer.keystore.signing import PATIENCE_SECONDS
from signer.keystore.store import KeyStore, KeyStoreUnavailable
from svid.keys import PrivateKey, signature_hash

_log = logging.getLogger("podsvid.authority")
# Seconds: between looks at keys that sign, between those at keys that do not, and between looks for what is left.
LOOK_SECONDS, TROUBLED_SECONDS, TIDY_SECONDS = 30.0, 1.0, 600.0
_SAID = b"podsvid tries its key"


class KeyWatch:
    """Has each key that signs, or will, sign something now and then: at a new state, and before it is needed."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._tried: frozenset[KeyRef] = frozenset()
        self._failing: Mapping[KeyRef, str] = {}

    @property
    def trouble(self) -> str:
        """Why a key does not sign, for people; empty while all do."""
        return next(iter(self._failing.values()), "")

    def lacking(self, state: AuthorityState) -> str:
        """What keeps SVIDs from being signed by this state; empty where nothing does."""
        for slot in _signing(state):
            ref = ref_of(slot.private_key)
            if ref is None or slot.stage is not Stage.ACTIVE:
                continue
            if ref in self._failing:
                return self._failing[ref]
            if ref not in self._tried:
                return "the authorities' keys are not tried yet"
        return ""

    async def run(self, states: Feed[AuthorityState]) -> None:
        """Look at the newest state's again and again, for ever."""
        version = 0
        while True:
            pause = TROUBLED_SECONDS if self.trouble else LOOK_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    version = await states.wait_beyond(version)
            if states.current is not None:
                await self.look(states.current)

    async def look(self, state: AuthorityState) -> None:
        """Try them once."""
        before, failing = self.trouble, dict[KeyRef, str]()
        for slot in _signing(state):
            key, ref = slot.private_key, ref_of(slot.private_key)
            if ref is not None:
                try:
                    await self._keys.do(key, partial(_try, key), seconds=PATIENCE_SECONDS)
                except KeyStoreUnavailable as error:
                    failing[ref] = f"{error.reason}: {error}"
        self._failing, self._tried = failing, state.key_refs
        if self.trouble and not before:
            _log.error("the authorities' keys do not sign", extra={"error": self.trouble})
        elif before and not self.trouble:
            _log.info("the authorities' keys sign again")


class KeyEnd:
    """Destroys keys of this state that no authority was signed with for a week; only while leading.

    `doubt`: why the time is not to be believed; empty where it is.
    """

    def __init__(self, keys: Keys, doubt: Callable[[], str], clock: Clock) -> None:
        self._keys = keys
        self._doubt = doubt
        self._clock = clock
        self._next = 0.0

    async def run(self, seat: Seat) -> None:
        """Look again and again while this replica leads, for ever."""
        await seat.hold(self.look, self.rest, _not_yet)

    def rest(self) -> None:
        """Another replica leads."""
        self._next = 0.0

    async def look(self, state: AuthorityState, load: Load, swap: Swap, leading: Callable[[], bool]) -> None:
        """Look once, where it is time to. Raises SignerError."""
        store = self._keys.store
        if store is None or self._clock.monotonic() < self._next or self._doubt():
            return
        self._next = self._clock.monotonic() + TIDY_SECONDS
        strays = await self._present(store, state)
        stored = await load()
        named, now = stored.state.key_refs, self._clock.now()
        left = noted(stored.state.left, strays, named, now)
        # Whoever writes the Secret can name any key of the token, the CA's above, too.
        over = [each for each in left if self._keys.is_own(each.ref) and each.left_at + KEPT <= now]
        ended: set[LeftKey] = set()
        for each in over:
            if not leading():
                return
            try:
                await self._keys.destroy(each.ref, f"no authority signs with it since {each.left_at.isoformat()}")
                ended.add(each)
            except KeyStoreUnavailable as error:
                # One that cannot be destroyed keeps no other.
                _not_yet(error)
        kept = tuple(each for each in left if each not in ended)
        if kept != stored.state.left:
            after = replace(stored.state, sequence=stored.state.sequence + 1, left=kept)
            await swap(stored, after, Step("tidy keys", "all", "no authority signs with them any more"))

    async def _present(self, store: KeyStore, state: AuthorityState) -> frozenset[KeyRef]:
        """Keys of this state's that are there. What the state does not name was made for a step that was not stored:
        another replica was faster, or the one that made it died."""
        found: set[KeyRef] = set()
        for begun in self._keys.own([*state.key_refs, *(each.ref for each in state.left)]):
            try:
                names = await self._keys.ask(partial(store.names, begun))
            except KeyStoreUnavailable as error:
                # Those that are known can be destroyed all the same.
                _not_yet(error)
            else:
                found |= {KeyRef(store.kind, name) for name in names}
        return frozenset(each for each in found if self._keys.is_own(each))


def _signing(state: AuthorityState) -> list[Slot]:
    return [slot for kind in KINDS for slot in state.slots(kind) if slot.signs]


def _try(key: PrivateKey | None) -> None:
    """Raises KeyStoreUnavailable, InvalidSignature: what it signs is verified by itself."""
    if isinstance(key, rsa.RSAPrivateKey):
        key.sign(_SAID, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        key.sign(_SAID, ec.ECDSA(signature_hash(key) or hashes.SHA256()))


def _not_yet(error: SignerError) -> None:
    _log.warning("keys that nothing names are left for now", extra={"reason": error.reason, "error": str(error)})
