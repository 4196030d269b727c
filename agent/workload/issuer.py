"""What is minted for a pod, checked: whatever an authority answers is believed only when it verifies."""

import asyncio
import random
from collections.abc import Awaitable
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from agent.authority.protocol import Authority, EarlyRenewal, JwtRequest, MintedJwt, MintRequest
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload import clocks
from agent.workload.slow import SlowWork
from csi.model import Contents, Issued, JwtFile, PodToken, Volume
from runtime.clock import Clock
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.identity import Trust, WorkloadIdentity
from svid.jwtsvid import JwtSvid, check_jwt_svid
from svid.keys import PrivateKey
from svid.spiffeid import SpiffeId
from svid.x509svid import X509Svid

# Seconds.
MINT_DEADLINE = 30.0
_Answer = TypeVar("_Answer")


class Issuer:
    """Has the key made, asks the authority, checks its answer, and draws the instant of renewal: once for each SVID."""

    def __init__(
        self, authority: Authority, slow: SlowWork, clock: Clock, rng: random.Random, metrics: Metrics
    ) -> None:
        self._authority = authority
        self._slow = slow
        self._clock = clock
        self._rng = rng
        self._metrics = metrics

    @property
    def trust(self) -> Trust:
        """The newest bundles."""
        trust = self._authority.trust.current
        assert trust is not None
        return trust

    @property
    def issues_jwt(self) -> bool:
        """Whether there are JWT-SVIDs at all."""
        return self._authority.issues_jwt

    def early_renewal(self, identity: WorkloadIdentity) -> EarlyRenewal | None:
        """The one in force that concerns `identity`."""
        wanted = identity.default.authority_id
        return next(
            (each for each in self._authority.early_renewals.current or () if each.authority_id == wanted), None
        )

    async def key(self, volume: Volume, *, renewal: bool) -> PrivateKey:
        """A new key for an SVID of the volume, in its pod's turn where that takes long. Raises KeysBusy."""
        return await self._slow.key(volume, renewal=renewal)

    async def mint_all(
        self, volume: Volume, token: PodToken | None, key: PrivateKey, patience: float | None = None
    ) -> Issued:
        """An X.509-SVID, and the JWT-SVIDs that `volume` has as files. `patience`: see MintRequest.

        Raises AuthorityRefused, AuthorityUnavailable.
        """
        issued = await self.mint_x509(volume, token, key, patience)
        jwt_svids = {}
        for file in volume.options.jwt_files:
            spiffe_id = issued.identity.default.spiffe_id
            minted = await self.mint_jwt(volume, token, spiffe_id, file.audiences, for_file=True)
            jwt_svids[file.name] = minted.svid
        return replace(issued, contents=Contents(issued.identity, jwt_svids))

    async def mint_x509(
        self,
        volume: Volume,
        token: PodToken | None,
        key: PrivateKey,
        patience: float | None = None,
        *,
        renewal: bool = False,
    ) -> Issued:
        """An X.509-SVID for a key that `key` made. `patience` and `renewal`: see MintRequest.

        Raises AuthorityRefused, AuthorityUnavailable.
        """
        options = volume.options
        request = MintRequest(
            volume.pod, token, key, options.ttl, options.dns_names, options.ttl_text, patience, renewal
        )
        minted = await _in_time(self._authority.mint_x509(request), max(MINT_DEADLINE, patience or 0.0))
        try:
            svid = X509Svid(minted.spiffe_id, minted.chain, key, minted.hint)
            identity = WorkloadIdentity((svid,), minted.trust.bundle, (), minted.federates_with)
            identity = identity.with_trust(minted.trust)
            await self._in_force(identity, minted.signed_at)
        except SvidError as error:
            raise AuthorityRefused(f"the authority answered with an unusable SVID: {error}") from None
        renew_at = minted.renewal.draw(self._rng)
        return Issued(Contents(identity.lean()), renew_at, minted.notice, minted.renewal, minted.policy)

    async def mint_jwt(
        self,
        volume: Volume,
        token: PodToken | None,
        spiffe_id: SpiffeId,
        audiences: tuple[str, ...],
        *,
        for_file: bool,
    ) -> MintedJwt:
        """A JWT-SVID for just these audiences. Raises AuthorityRefused, AuthorityUnavailable.

        One that is not for a file is minted in the pod's turn: pods ask for as many as they like.
        """
        request = JwtRequest(volume.pod, token, spiffe_id, audiences, for_file)
        async with nullcontext() if for_file else self._slow.jwt(volume.pod):
            minted = await _in_time(self._authority.mint_jwt(request))
        try:
            found = self._checked(minted.svid, audiences[0], self.trust.bundle)
        except SvidError as error:
            self._blame_clocks(minted.svid, audiences[0])
            raise AuthorityRefused(f"the authority answered with an unusable JWT-SVID: {error}") from None
        if found.spiffe_id != spiffe_id or set(found.audiences) != set(audiences):
            raise AuthorityRefused(f"the authority answered with a JWT-SVID for {found.spiffe_id}, or other audiences")
        self._metrics.jwt_minted()
        return minted

    def still_good(self, svid: JwtSvid, file: JwtFile, beside: TrustBundle) -> JwtSvid | None:
        """`svid`, read from `file`, as it verifies now; None when it does not.

        By the newest bundle, or `beside`, which it was read with, before the authority has sent any.
        """
        try:
            found = self._checked(svid, file.audiences[0], self.trust.bundle if self.trust.proven else beside)
        except SvidError:
            return None
        return found if set(found.audiences) == set(file.audiences) else None

    async def _in_force(self, identity: WorkloadIdentity, signed_at: datetime | None) -> None:
        """Wait until it verifies by this node's clock. Raises InvalidSvid; AuthorityUnavailable where clocks differ."""
        now = self._clock.now()
        try:
            identity.check(now)
        except SvidError:
            begins = clocks.begins_at(identity, now)
            if begins is not None:
                await clocks.wait_for(begins, self._clock, signed_at)
            elif signed_at is not None and identity.expires_at <= now and identity.is_valid(signed_at):
                ended = f"the SVID ended at {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}"
                raise clocks.differ(ended, now, signed_at) from None
            identity.check(self._clock.now())

    def _blame_clocks(self, svid: JwtSvid, audience: str) -> None:
        """Raises AuthorityUnavailable where a token is refused for nothing but this node's clock."""
        now, signed_at, bundle = self._clock.now(), svid.issued_at, self.trust.bundle
        if signed_at is None or svid.expires_at > now:
            return
        with suppress(SvidError):
            check_jwt_svid(svid.token, {bundle.trust_domain: bundle}, audience, signed_at)
            raise clocks.differ(f"the JWT-SVID ended at {svid.expires_at:%Y-%m-%dT%H:%M:%SZ}", now, signed_at)

    def _checked(self, svid: JwtSvid, audience: str, bundle: TrustBundle) -> JwtSvid:
        return check_jwt_svid(svid.token, {bundle.trust_domain: bundle}, audience, self._clock.now())


async def _in_time(minting: Awaitable[_Answer], seconds: float = MINT_DEADLINE) -> _Answer:
    try:
        async with asyncio.timeout(seconds):
            return await minting
    except TimeoutError:
        raise AuthorityUnavailable(f"no SVID within {seconds:g} s") from None
