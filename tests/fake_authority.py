"""An authority for workloads to talk to: its answers are good until a test bends them."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.authority.protocol import EarlyRenewal, JwtRequest, Minted, MintedJwt, MintRequest
from agent.errors import AgentError
from runtime.clock import Clock
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.identity import Trust
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain

TRUST_DOMAIN = TrustDomain("example.org")
SPIFFE_ID = SpiffeId.from_segments(TRUST_DOMAIN, "ns", "default", "sa", "web")
HOUR = timedelta(hours=1)


class StepClock:
    """Stands still until a test moves `at`, the time that it is; the wall clock may be `wrong` by something."""

    def __init__(self) -> None:
        self.at = datetime(2026, 6, 1, 12, tzinfo=UTC)
        self.wrong = timedelta(0)

    def now(self) -> datetime:
        return self.at + self.wrong

    def monotonic(self) -> float:
        return self.at.timestamp()


def root(now: datetime, trust_domain: TrustDomain = TRUST_DOMAIN) -> X509Authority:
    """A root that began long ago and lasts."""
    return X509Authority.create(
        trust_domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=30), now=now - timedelta(days=10)
    )


def bundle_of(authority: X509Authority, *jwt_keys: JwtSigningKey, sequence: int | None = 1) -> TrustBundle:
    """What verifies `authority` and `jwt_keys`."""
    return replace(authority.bundle, jwt_authorities=tuple(each.public for each in jwt_keys), sequence=sequence)


class FakeAuthority:
    """Implements agent.authority.protocol.Authority. What it was asked is kept: `asked`, `asked_jwt`, `held`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.x509 = root(clock.now())
        self.jwt_key = JwtSigningKey.create(JwtAlgorithm.ES256)
        self.trust: Feed[Trust] = Feed()
        self.trust.publish(Trust(bundle_of(self.x509, self.jwt_key)))
        self.early_renewals: Feed[tuple[EarlyRenewal, ...]] = Feed()
        self.returns: Feed[None] = Feed()
        self.issues_jwt = True
        self.asked: list[MintRequest] = []
        self.asked_jwt: list[JwtRequest] = []
        self.held: list[tuple[Trust, Mapping[str, int]]] = []
        # What the good answers become, and what is raised instead of any.
        self.bend: Callable[[MintRequest, Minted], Minted] = lambda _, minted: minted
        self.bend_jwt: Callable[[JwtRequest, MintedJwt], MintedJwt] = lambda _, minted: minted
        self.error: AgentError | None = None
        self.jwt_error: AgentError | None = None
        # Answers leave only while this is set.
        self.go_on = asyncio.Event()
        self.go_on.set()

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        self.held.append((trust, dict(svids)))

    async def mint_x509(self, request: MintRequest) -> Minted:
        self.asked.append(request)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        now = self._clock.now()
        chain = self.x509.issue(request.public_key, SPIFFE_ID, ttl=HOUR, now=now, dns_names=request.dns_names)
        trust = self.trust.current
        assert trust is not None
        renewal = RenewalWindow.of(now, chain[0].not_valid_after_utc)
        return self.bend(request, Minted(SPIFFE_ID, chain, trust, renewal, "noticed", policy="shop/web"))

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        self.asked_jwt.append(request)
        await self.go_on.wait()
        if self.jwt_error is not None:
            raise self.jwt_error
        now = self._clock.now()
        svid = self.jwt_key.issue(request.spiffe_id, request.audiences, ttl=HOUR, now=now)
        return self.bend_jwt(request, MintedJwt(svid, RenewalWindow.of(now, svid.expires_at)))
