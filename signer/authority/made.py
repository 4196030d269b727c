"""Where new authorities come from: a key is made here, and a CA above certifies it, at once or some day."""

import asyncio
from datetime import datetime

from signer.authority.request import X509Request, new_request
from signer.authority.slots import JwtSlot, Stage, X509Slot
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.authority.trial import Cause, admit
from signer.upstream.certify import Upstream
from signer.upstream.remote import Elsewhere
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import TrustDomain


class Maker:
    """Makes them by one policy, below one CA."""

    def __init__(self, policy: LifecyclePolicy, above: Upstream | Elsewhere, trust_domain: TrustDomain) -> None:
        self._policy = policy
        self.above = above
        self._trust_domain = trust_domain

    def is_asked(self, request: X509Request) -> bool:
        """Whether the request is to the CA that is above now."""
        return isinstance(self.above, Elsewhere) and self.above.name == request.at

    async def x509(self, state: AuthorityState | None, cause: Cause, now: datetime) -> X509Slot | X509Request:
        """A new authority that is tried and not yet published, or what is to be asked for it. Raises SignerError."""
        by = self._policy
        if isinstance(self.above, Elsewhere):
            wished = cause is Cause.WISH
            return new_request(
                self.above.name, self._trust_domain, by.key_algorithm, by.authority_ttl, now, wished=wished
            )
        key = by.key_algorithm.generate()
        authority = await self.above.certify(self._trust_domain, key, by.authority_ttl, now)
        return X509Slot(Stage.PREPARED, admit(authority, state, cause, by, now), now)

    async def jwt(self, now: datetime) -> JwtSlot:
        """A new JWT authority."""
        algorithm = self._policy.jwt_algorithm
        assert algorithm is not None
        # An RSA key takes up to a few hundred milliseconds.
        create = JwtSigningKey.create
        key = await asyncio.to_thread(create, algorithm) if algorithm.slow else create(algorithm)
        return JwtSlot(Stage.PREPARED, key, now)
