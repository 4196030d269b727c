"""Where new authorities come from: a key is made here or in a key store, and a CA above certifies it, some day."""

from collections.abc import Iterable
from datetime import datetime
from functools import partial

from signer.authority.fit_roots import parted
from signer.authority.left_keys import refs
from signer.authority.request import X509Request, new_request
from signer.authority.settling import life
from signer.authority.slots import JwtSlot, Stage, X509Slot
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.authority.trial import Cause, admit
from signer.held_key import KeyRef, ref_of
from signer.keystore.keys import Keys
from signer.keystore.signing import PATIENCE_SECONDS
from signer.upstream.certify import SelfSigned, Upstream
from signer.upstream.remote import Elsewhere
from svid.jwtauthority import JwtSigningKey
from svid.keys import PrivateKey
from svid.spiffeid import TrustDomain


class Maker:
    """Makes them by one policy, below one CA."""

    def __init__(
        self, policy: LifecyclePolicy, above: Upstream | Elsewhere, trust_domain: TrustDomain, keys: Keys
    ) -> None:
        self._policy = policy
        self.above = above
        self._trust_domain = trust_domain
        self.keys = keys

    def is_asked(self, request: X509Request) -> bool:
        """Whether the request is to the CA that is above now."""
        return isinstance(self.above, Elsewhere) and self.above.name == request.at

    async def first(self, now: datetime) -> tuple[X509Slot | X509Request, JwtSlot | None]:
        """What a cluster without any begins with. Raises SignerError, and then nothing of it is left."""
        x509 = await self.x509(None, Cause.FIRST, now)
        if self._policy.jwt_algorithm is None:
            return x509, None
        key = x509.key if isinstance(x509, X509Request) else x509.private_key
        try:
            return x509, await self.jwt(None, now, refs([key]))
        except BaseException:
            await self.keys.discard(key)
            raise

    async def x509(
        self, state: AuthorityState | None, cause: Cause, now: datetime, *, by_person: bool = False
    ) -> X509Slot | X509Request:
        """A new authority that is tried and not yet published, or what is to be asked for it. Raises SignerError."""
        key = await self.keys.x509(self._policy.key_algorithm, _named(state))
        try:
            return await self._certified(key, state, cause, now, by_person)
        except BaseException:
            await self.keys.discard(key)
            raise

    async def jwt(self, state: AuthorityState | None, now: datetime, beside: Iterable[KeyRef] = ()) -> JwtSlot:
        """A new JWT authority; `beside`: keys that will be in that state. Raises SignerError."""
        algorithm = self._policy.jwt_algorithm
        assert algorithm is not None
        key = await self.keys.jwt(algorithm, [*_named(state), *beside])
        return JwtSlot(Stage.PREPARED, JwtSigningKey.of(key, algorithm), now)

    async def fit(self, after: AuthorityState, before: AuthorityState | None, now: datetime) -> AuthorityState:
        """The same, with roots as they may be trusted. Raises CertificateRefused; what was made for it is destroyed."""
        try:
            return parted(after, before, now)
        except BaseException:
            await undone(self.keys, after, before.key_refs if before is not None else frozenset())
            raise

    async def _certified(
        self, key: PrivateKey, state: AuthorityState | None, cause: Cause, now: datetime, by_person: bool
    ) -> X509Slot | X509Request:
        by, above, trust_domain = self._policy, self.above, self._trust_domain
        lives = life(state, by)
        if isinstance(above, Elsewhere):
            wished = by_person or cause is Cause.WISH
            ask = partial(new_request, above.name, trust_domain, key, lives, now, wished=wished)
            return await self.keys.do(key, ask, seconds=PATIENCE_SECONDS)
        if isinstance(above, SelfSigned):
            make = partial(above.signed, trust_domain, key, lives, now)
            authority = await self.keys.do(key, make, seconds=PATIENCE_SECONDS)
        else:
            authority = await above.certify(trust_domain, key, lives, now)
        tried = await self.keys.do(key, lambda: admit(authority, state, cause, by, now), seconds=PATIENCE_SECONDS)
        return X509Slot(Stage.PREPARED, tried, now)


async def undone(keys: Keys, made: AuthorityState, named: frozenset[KeyRef]) -> None:
    """Destroy what a key store made for a state that was not stored, but for keys that are `named` in one that was."""
    for key in made.private_keys:
        if ref_of(key) not in named:
            await keys.discard(key)


def _named(state: AuthorityState | None) -> Iterable[KeyRef]:
    return [] if state is None else [*state.key_refs, *(each.ref for each in state.left)]
