"""Which authorities' keys are in a key store, where new ones are made, and how what they sign is waited for."""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from signer.errors import StateDamaged
from signer.held_key import KeyRef, Unsupported, ref_of
from signer.key_settings import JWT_KEYS
from signer.keystore.signing import DEADLINE_SECONDS, PATIENCE_SECONDS, Signing
from signer.keystore.store import KeyStore, KeyStoreUnavailable
from svid.jws import JwtAlgorithm, JwtPrivateKey
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey
from svid.spiffeid import TrustDomain

_T = TypeVar("_T")
_log = logging.getLogger("podsvid.audit")
# Bytes, written in hex: of what tells this state's keys from another cluster's in the same token, and of each key.
_OWNER, _NUMBER = 4, 8


class Keys:
    """Keys in this process's memory, and so in the stored state; with a `store` those in it, of which that has a ref.

    `returning`: new ones are made in memory again all the same.
    """

    def __init__(
        self,
        trust_domain: TrustDomain | None = None,
        store: KeyStore | None = None,
        signing: Signing | None = None,
        *,
        returning: bool = False,
    ) -> None:
        self.store = store
        self._signing = signing
        self._begins = f"podsvid-{trust_domain.name if trust_domain is not None else ''}-"
        # Whole: `podsvid-prod-` is also how those of a trust domain begin that is called prod-eu.
        self._own = re.compile(f"{re.escape(self._begins)}[0-9a-f]{{{2 * _OWNER}}}-[0-9a-f]{{{2 * _NUMBER}}}", re.ASCII)
        self._makes = store if not returning else None

    async def x509(self, algorithm: KeyAlgorithm, named: Iterable[KeyRef]) -> PrivateKey:
        """A new key for an X.509 authority; `named`: those that the state knows. Raises KeyStoreUnavailable."""
        return algorithm.generate() if self._makes is None else await self._made(self._makes, algorithm, named)

    async def jwt(self, algorithm: JwtAlgorithm, named: Iterable[KeyRef]) -> JwtPrivateKey:
        """The same for a JWT authority."""
        if self._makes is not None:
            made = await self._made(self._makes, JWT_KEYS[algorithm], named)
            assert isinstance(made, JwtPrivateKey)
            return made
        # An RSA key takes up to a few hundred milliseconds.
        return await asyncio.to_thread(algorithm.generate) if algorithm.slow else algorithm.generate()

    async def discard(self, key: object) -> None:
        """Destroy a key that was made for nothing; what is not stored anywhere no state will name."""
        ref, store = ref_of(key), self.store
        if ref is None or store is None or not self.is_own(ref):
            return
        try:
            await self.destroy(ref, "it was made for nothing")
        except KeyStoreUnavailable as error:
            _log.warning("authority key left in its store", extra={"key": ref.name, "error": str(error)})

    async def destroy(self, ref: KeyRef, why: str) -> None:
        """Destroy a key for good, if it is there. Raises KeyStoreUnavailable."""
        store = self.store
        assert store is not None
        if await self.ask(lambda: store.delete(ref.name)):
            _log.info("authority key destroyed", extra={"key": ref.name, "why": why})
        else:
            _log.warning(
                "authority key not destroyed: its store has none of that name",
                extra={"key": ref.name, "store": store.kind, "why": why},
            )

    async def do(self, key: object, work: Callable[[], _T], holder: str = "", seconds: float = DEADLINE_SECONDS) -> _T:
        """What `work`, which signs with that key, returns or raises. Raises KeyStoreUnavailable."""
        if self._signing is None or ref_of(key) is None:
            return work()
        return await self._signing.do(work, holder, seconds)

    async def ask(self, work: Callable[[], _T]) -> _T:
        """What is asked of the store for the authorities themselves. Raises KeyStoreUnavailable."""
        assert self._signing is not None
        return await self._signing.do(work, seconds=PATIENCE_SECONDS)

    def open(self, ref: KeyRef, public: PublicKey) -> PrivateKey:
        """The key that a state names. Raises StateDamaged where it is of no store that is here."""
        if self.store is None or ref.store != self.store.kind:
            raise StateDamaged(
                f"the authorities' keys are in a {ref.store[:20]!r} key store, and none such is set here: set "
                "authority_key_uri as the other signers have it"
            )
        try:
            return self.store.open(ref, public)
        except Unsupported as error:
            raise StateDamaged(f"the authorities' key {ref.name[:80]!r} cannot be used: {error}") from None

    def misplaced(self, key: object) -> bool:
        """Whether a new one would be made elsewhere: in the store, or no more in it."""
        ref = ref_of(key)
        return (ref.store if ref is not None else None) != (self._makes.kind if self._makes is not None else None)

    def is_own(self, ref: KeyRef) -> bool:
        """Whether a key is one that was made here, by its name: what else a state names is not ours to destroy."""
        return self.store is not None and ref.store == self.store.kind and self._own.fullmatch(ref.name) is not None

    def own(self, named: Iterable[KeyRef]) -> Sequence[str]:
        """How the names of those keys begin that are this state's and of no other one. Sorted."""
        return sorted({each.name.rpartition("-")[0] + "-" for each in named if self.is_own(each)})

    async def _made(self, store: KeyStore, algorithm: KeyAlgorithm, named: Iterable[KeyRef]) -> PrivateKey:
        begun = next(iter(self.own(named)), None)
        if begun is None:
            begun = f"{self._begins}{secrets.token_hex(_OWNER)}-"
        name = f"{begun}{secrets.token_hex(_NUMBER)}"
        made = await self.ask(lambda: store.create(name, algorithm))
        _log.info("authority key made", extra={"key": name, "store": store.kind, "algorithm": algorithm.value})
        return made
