"""What an authority on the node grants a pod: its own identity and names, within the bounds; and trust that changes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from agent.authority.jwt_keys import GivenJwtKeys
from agent.authority.local import IssuePolicy, Kept, LocalAuthority
from agent.authority.protocol import JwtRequest, MintRequest
from agent.errors import AuthorityRefused, AuthorityUnavailable
from csi.model import PodRef
from runtime.bounded import Bounded
from svid.bundle import JwtAuthority
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import check_jwt_svid
from svid.keys import KeyAlgorithm
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId
from svid.x509svid import check_x509_svid
from tests.fake_authority import HOUR, SPIFFE_ID, TRUST_DOMAIN, StepClock, root

POD = PodRef("default", "web-1", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111", "web")
POLICY = IssuePolicy(HOUR, HOUR / 6, HOUR * 2, dns_names=("{pod}.{namespace}.test", "*.{service_account}.test"))


class FlakyKeys:
    """JWT keys whose life cannot be kept while `error` is there."""

    def __init__(self) -> None:
        self.key = JwtSigningKey.create(JwtAlgorithm.ES256)
        self.more: tuple[JwtAuthority, ...] = ()
        self.sequence = 1
        self.error: OSError | None = None

    @property
    def authorities(self) -> tuple[JwtAuthority, ...]:
        return (self.key.public, *self.more)

    def signing_key(self, now: datetime) -> JwtSigningKey:
        return self.key

    def advance(self, now: datetime) -> bool:
        if self.error is not None:
            raise self.error
        self.more, self.sequence = (*self.more, JwtSigningKey.create(JwtAlgorithm.ES256).public), self.sequence + 1
        return True


class Scene:
    """A local authority with JWT keys."""

    def __init__(self, policy: IssuePolicy) -> None:
        self.clock = StepClock()
        self.keys = FlakyKeys()
        self.x509 = root(self.clock.at)
        self.reader = Bounded()
        self.authority = LocalAuthority(Kept(self.x509), policy, self.clock, self.reader, self.keys)

    async def mint(self, ttl: timedelta | None = None, *names: str, pod: PodRef = POD) -> Any:
        return await self.authority.mint_x509(MintRequest(pod, None, KeyAlgorithm.EC_P256.generate(), ttl, names))

    async def mint_jwt(self, spiffe_id: SpiffeId = SPIFFE_ID, *audiences: str) -> Any:
        return await self.authority.mint_jwt(JwtRequest(POD, None, spiffe_id, audiences or ("api",)))


def on_stage(play: Callable[[Scene], Awaitable[Any]], policy: IssuePolicy = POLICY) -> None:
    async def main() -> None:
        await play(Scene(policy))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wish", "granted"),
    [
        (None, HOUR),
        (HOUR * 2, HOUR * 2),
        (HOUR * 2 + timedelta(seconds=1), HOUR * 2),
        (HOUR * 1000, HOUR * 2),
        (HOUR / 6, HOUR / 6),
        (timedelta(seconds=1), HOUR / 6),
    ],
)
def test_a_wished_lifetime_is_brought_between_the_bounds_and_that_is_said(
    wish: timedelta | None, granted: timedelta
) -> None:
    async def play(at: Scene) -> None:
        minted = await at.mint(wish)
        assert minted.chain[0].not_valid_after_utc == at.clock.at + granted
        assert minted.renewal == RenewalWindow.of(at.clock.at, at.clock.at + granted)
        assert bool(minted.notice) == (wish not in (None, granted))
        assert ("(x509_max_ttl)" in minted.notice) == (wish is not None and wish > granted)
        assert ("(x509_min_ttl)" in minted.notice) == (wish is not None and wish < granted)
        assert check_x509_svid(minted.chain, minted.trust.bundle, at.clock.at) == SPIFFE_ID == minted.spiffe_id

    on_stage(play)


def test_a_wish_that_is_clipped_is_said_as_it_was_written() -> None:
    async def play(at: Scene) -> None:
        request = MintRequest(POD, None, KeyAlgorithm.EC_P256.generate(), HOUR * 999, (), "999h")
        notice = (await at.authority.mint_x509(request)).notice
        assert notice == "ttl 999h was asked for, 2h is granted: no SVID lives longer (x509_max_ttl)"

    on_stage(play)


@pytest.mark.parametrize("name", ["web-1.default.test", "a.web.test"])
def test_dns_names_of_the_pods_own_are_granted(name: str) -> None:
    async def play(at: Scene) -> None:
        names = (await at.mint(None, name)).chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.DNSName) == [name]

    on_stage(play)


@pytest.mark.parametrize(
    "names",
    [
        ("web-2.default.test",),
        ("web-1.other.test",),
        ("a.admin.test",),
        ("a.b.web.test",),
        ("web-1.default.test", "bank.test"),
        ("bank.test", "web-1.default.test"),
    ],
)
def test_one_dns_name_of_others_refuses_them_all(names: tuple[str, ...]) -> None:
    async def play(at: Scene) -> None:
        with pytest.raises(AuthorityRefused, match=r"^DNS_NAME_DENIED: "):
            await at.mint(None, *names)

    on_stage(play)


def test_without_patterns_there_are_no_dns_names() -> None:
    async def play(at: Scene) -> None:
        with pytest.raises(AuthorityRefused, match=r"^DNS_NAME_DENIED: "):
            await at.mint(None, "web-1.default.test")

    on_stage(play, IssuePolicy(HOUR, HOUR, HOUR))


def test_a_jwt_svid_is_for_the_pods_own_identity_only() -> None:
    async def play(at: Scene) -> None:
        minted = await at.mint_jwt(SPIFFE_ID, "api", "db")
        bundle = at.authority.trust.current.bundle  # type: ignore[union-attr]
        found = check_jwt_svid(minted.svid.token, {TRUST_DOMAIN: bundle}, "db", at.clock.at)
        assert (found.spiffe_id, found.audiences) == (SPIFFE_ID, ("api", "db"))
        assert found.expires_at == at.clock.at + POLICY.jwt_ttl
        for name in ("admin", "Web"):
            other = SpiffeId.from_segments(TRUST_DOMAIN, "ns", "default", "sa", name)
            with pytest.raises(AuthorityRefused, match=r"^NOT_ENTITLED: "):
                await at.mint_jwt(other)
        with pytest.raises(AuthorityRefused, match="audience"):
            await at.mint_jwt(SPIFFE_ID, "")

    on_stage(play)


@pytest.mark.parametrize("jti", [True, False])
def test_tokens_with_an_id_of_their_own_are_for_one_caller(jti: bool) -> None:
    async def play(at: Scene) -> None:
        first, second = await at.mint_jwt(), await at.mint_jwt()
        assert first.reusable is second.reusable is not jti
        ids = {each.svid.claims.get("jti") for each in (first, second)}
        assert len(ids) == 2 if jti else ids == {None}
        assert first.svid.claims["iss"] == "https://issuer.test"

    on_stage(play, IssuePolicy(HOUR, HOUR, HOUR, jwt_issuer="https://issuer.test", jwt_id=jti))


def test_without_jwt_keys_there_are_no_jwt_svids() -> None:
    async def play(at: Scene) -> None:
        bare = LocalAuthority(Kept(at.x509), POLICY, at.clock, at.reader)
        assert not bare.issues_jwt
        assert bare.trust.current is not None
        assert bare.trust.current.bundle.jwt_authorities == ()
        with pytest.raises(AuthorityRefused, match=r"^JWT_DISABLED: "):
            await bare.mint_jwt(JwtRequest(POD, None, SPIFFE_ID, ("api",)))

    on_stage(play)


def test_keys_that_cannot_be_kept_are_not_published_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def play(at: Scene) -> None:
        before, version = at.authority.trust.current, at.authority.trust.version
        at.keys.error = OSError(28, "No space left on device")
        await at.authority.refresh()
        assert at.authority.trust.current == before
        assert at.authority.trust.version == version
        assert [each.levelno for each in caplog.records] == [logging.ERROR]
        at.keys.error = None
        await at.authority.refresh()
        assert at.authority.trust.current is not None
        assert len(at.authority.trust.current.bundle.jwt_authorities) == 2
        assert at.authority.trust.current.bundle.sequence == 2
        assert (await at.mint()).trust == at.authority.trust.current

    on_stage(play)


def test_a_given_key_is_published_once_beside_the_others() -> None:
    key, other = (JwtSigningKey.create(JwtAlgorithm.ES256) for _ in range(2))
    given = GivenJwtKeys(key, (other.public, key.public))
    assert [each.key_id for each in given.authorities] == [key.key_id, other.key_id]


def test_an_account_that_makes_no_spiffe_id_is_refused() -> None:
    async def play(at: Scene) -> None:
        for account in ("", "..", "a/b", "a b"):
            with pytest.raises(AuthorityRefused):
                await at.mint(pod=PodRef("default", "web-1", POD.uid, account))

    on_stage(play)


def test_an_authority_that_has_ended_denies_nobody_anything() -> None:
    """Whoever looks after its files brings another: a pod that waits is told to come again."""

    async def play(at: Scene) -> None:
        at.clock.at = at.x509.not_after
        with pytest.raises(AuthorityUnavailable, match="authority expired"):
            await at.mint()

    on_stage(play)


def test_when_it_signed_is_said() -> None:
    """What ended before it was looked at is no answer that cannot be used."""

    async def play(at: Scene) -> None:
        assert (await at.mint()).signed_at == at.clock.at

    on_stage(play)
