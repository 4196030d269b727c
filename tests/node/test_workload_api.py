"""The Workload API's answers on a real socket: what each request gets, when a stream speaks, and never what breaks a
client (the CL rows). The identity behind it is made here, so that each state can be brought about."""

import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.authority.protocol import MintedJwt
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.pb import workload_pb2
from agent.socket.endpoint import Endpoint
from agent.socket.guard import HEADER
from agent.socket.workload_api import WorkloadApi
from agent.workload.jwt_svids import JwtSvids
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.identity import Trust, Withheld, WorkloadIdentity
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.here_sockets import alone

OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
WEB_TOO = SpiffeId.parse("spiffe://example.org/ns/default/sa/web-too")
STATUS = grpc.StatusCode
ES256 = JwtAlgorithm("ES256")


class StepClock:
    def __init__(self) -> None:
        self.at = datetime.now(UTC).replace(microsecond=0)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


class World:
    """Two trust domains, a workload of the first with its socket, and a client for it."""

    def __init__(self, *, jwt_profile: bool = True) -> None:
        self.clock = StepClock()
        self.issuer = self.authority(OWN)
        self.partner = self.authority(PARTNER)
        self.signing = JwtSigningKey.create(ES256)
        self.partner_signing = JwtSigningKey.create(ES256)
        self.trust = Trust(
            replace(self.issuer.bundle, jwt_authorities=(self.signing.public,)),
            (replace(self.partner.bundle, jwt_authorities=(self.partner_signing.public,)),),
        )
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.mint_error: Exception | None = None
        self.svids = JwtSvids(self.mint, self.clock, random.Random(1))
        self.api = WorkloadApi(self.feed, self.svids if jwt_profile else None, self.clock)
        self.endpoint = Endpoint([self.api.handlers()], alone(), Metrics())
        self.channel: Any = None

    def authority(self, domain: TrustDomain) -> X509Authority:
        return X509Authority.create(
            domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=self.clock.at
        )

    async def mint(self, spiffe_id: SpiffeId, audiences: tuple[str, ...], for_file: bool = False) -> MintedJwt:
        if self.mint_error is not None:
            raise self.mint_error
        now = self.clock.now()
        svid = self.signing.issue(spiffe_id, audiences, ttl=timedelta(minutes=5), now=now)
        return MintedJwt(svid, RenewalWindow.of(now, svid.expires_at))

    def svid(self, spiffe_id: SpiffeId = WEB, hint: str = "") -> X509Svid:
        key = KeyAlgorithm.EC_P256.generate()
        chain = self.issuer.issue(key.public_key(), spiffe_id, ttl=timedelta(hours=1), now=self.clock.at)
        return X509Svid(spiffe_id, chain, key, hint)

    def publish(self, *svids: X509Svid, trust: Trust | None = None) -> WorkloadIdentity:
        trust = trust or self.trust
        identity = WorkloadIdentity(svids or (self.svid(),), trust.bundle, trust.federated)
        self.feed.publish(identity)
        return identity

    def stream(self, method: str, request: bytes = b"") -> Any:
        return self.channel.unary_stream(f"/SpiffeWorkloadAPI/{method}")(request, metadata=(HEADER,))

    async def ask(self, method: str, request: Any, answer: Any = None) -> Any:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        found = await self.channel.unary_unary(f"/SpiffeWorkloadAPI/{method}")(data, metadata=(HEADER,))
        return answer.FromString(found) if answer else found

    async def jwt_svids(self, *audiences: str, spiffe_id: str = "") -> list[Any]:
        request = workload_pb2.JWTSVIDRequest(audience=audiences, spiffe_id=spiffe_id)
        return list((await self.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)).svids)

    async def validate(self, token: str, audience: str = "db") -> Any:
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return await self.ask("ValidateJWTSVID", request, workload_pb2.ValidateJWTSVIDResponse)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            path = Path(base, "socket")
            await self.endpoint.open(str(path))
            try:
                options = (("grpc.use_local_subchannel_pool", 1),)
                async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as self.channel:
                    async with asyncio.timeout(60):
                        yield self
            finally:
                await self.endpoint.close()
                await self.svids.close()


def world(main: Callable[[World], Awaitable[Any]], **options: Any) -> None:
    async def run() -> None:
        async with World(**options).running() as found:
            await main(found)

    asyncio.run(run())


@asynccontextmanager
async def refused(code: grpc.StatusCode, words: str = "") -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    assert words in (caught.value.details() or "")


X509, X509_BUNDLES, JWT_BUNDLES = (
    ("FetchX509SVID", workload_pb2.X509SVIDResponse),
    ("FetchX509Bundles", workload_pb2.X509BundlesResponse),
    ("FetchJWTBundles", workload_pb2.JWTBundlesResponse),
)
STREAMS = [pytest.param(*each, id=each[0]) for each in (X509, X509_BUNDLES, JWT_BUNDLES)]


@pytest.mark.spec(
    "WL-20", "WL-21", "WL-22", "WL-23", "WL-24", "WL-25", "WL-27", "WL-28", "WL-60", "C-34", "C-44", "C-45", "C-46",
    "C-47", "C-48", "C-51", "CL-5", "CL-6", "CL-7", "CL-8", "CL-9", "CL-10", "CL-11", "CL-15",
)  # fmt: skip
def test_an_x509_answer_holds_every_identity_whole_and_in_order() -> None:
    async def main(at: World) -> None:
        svids = (at.svid(WEB, "main"), at.svid(WEB_TOO, "other"))
        at.publish(*svids)
        call = at.stream("FetchX509SVID")
        response = workload_pb2.X509SVIDResponse.FromString(await call.read())
        assert [each.spiffe_id for each in response.svids] == [str(WEB), str(WEB_TOO)]
        assert [each.hint for each in response.svids] == ["main", "other"]
        for made, sent in zip(svids, response.svids, strict=True):
            leaf = x509.load_der_x509_certificate(sent.x509_svid)
            assert leaf == made.leaf
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.UniformResourceIdentifier) == [sent.spiffe_id]
            key = load_der_private_key(sent.x509_svid_key, None)
            assert key.public_key() == leaf.public_key()
            assert b"\x06\x07*\x86H\xce=\x02\x01" in sent.x509_svid_key[:30]  # PKCS#8 names its algorithm first
            assert x509.load_der_x509_certificate(sent.bundle) == at.issuer.chain[0]
        assert dict(response.federated_bundles) == {"spiffe://partner.test": at.partner.bundle.to_der()}
        assert not response.crl
        at.publish(svids[1])
        response = workload_pb2.X509SVIDResponse.FromString(await call.read())
        assert [each.spiffe_id for each in response.svids] == [str(WEB_TOO)]

    world(main)


@pytest.mark.spec("WL-26", "C-49")
def test_bundle_answers_hold_the_own_trust_domain_and_the_federated_ones() -> None:
    async def main(at: World) -> None:
        at.publish()
        found = workload_pb2.X509BundlesResponse.FromString(await at.stream("FetchX509Bundles").read())
        assert dict(found.bundles) == {
            "spiffe://example.org": at.issuer.bundle.to_der(),
            "spiffe://partner.test": at.partner.bundle.to_der(),
        }
        assert not found.crl

    world(main)


@pytest.mark.spec("WL-35", "WL-36", "C-64", "CL-17", "JWT-26")
def test_jwt_bundles_hold_jwt_keys_only_each_with_its_kid_and_nothing_foreign() -> None:
    async def main(at: World) -> None:
        odd = JwtAuthority("odd", JwtSigningKey.create(JwtAlgorithm("RS256")).public.public_key)
        bundle = replace(at.trust.bundle, jwt_authorities=(at.signing.public, odd, odd))
        empty = replace(at.trust.federated[0], jwt_authorities=())
        at.publish(trust=Trust(bundle, (empty,)))
        call = at.stream("FetchJWTBundles")
        found = workload_pb2.JWTBundlesResponse.FromString(await call.read())
        # A domain without JWT keys is left out: to some clients one odd entry makes the whole answer void.
        assert list(found.bundles) == ["spiffe://example.org"]
        keys = json.loads(found.bundles["spiffe://example.org"])["keys"]
        assert [key["kid"] for key in keys] == [at.signing.key_id, "odd"]
        assert [key["kty"] for key in keys] == ["EC", "RSA"]
        assert not any({"x5c", "use", "d"} & set(key) for key in keys)
        jwt.PyJWKSet.from_json(found.bundles["spiffe://example.org"].decode())
        at.publish(trust=at.trust)
        found = workload_pb2.JWTBundlesResponse.FromString(await call.read())
        assert sorted(found.bundles) == ["spiffe://example.org", "spiffe://partner.test"]

    world(main)


@pytest.mark.spec("CL-17")
def test_an_own_bundle_without_jwt_keys_is_an_empty_set_not_empty_bytes() -> None:
    async def main(at: World) -> None:
        at.publish(trust=Trust(replace(at.trust.bundle, jwt_authorities=())))
        found = workload_pb2.JWTBundlesResponse.FromString(await at.stream("FetchJWTBundles").read())
        assert json.loads(found.bundles["spiffe://example.org"]) == {"keys": []}

    world(main)


@pytest.mark.spec("CL-4", "C-38", "C-40")
@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
def test_a_trust_domain_without_x509_authorities_is_left_out(method: str) -> None:
    async def main(at: World) -> None:
        at.publish(trust=Trust(at.trust.bundle, (TrustBundle(PARTNER),)))
        data = await at.stream(method).read()
        if method == "FetchX509SVID":
            response = workload_pb2.X509SVIDResponse.FromString(data)
            assert not response.federated_bundles
        else:
            assert list(workload_pb2.X509BundlesResponse.FromString(data).bundles) == ["spiffe://example.org"]

    world(main)


@pytest.mark.spec("FED-15", "WL-7", "WL-8", "WL-9", "C-24", "C-35", "C-36", "C-37", "C-38", "C-39")
@pytest.mark.parametrize(("method", "answer"), STREAMS)
def test_a_stream_speaks_at_once_then_at_every_change_whole_and_never_twice_the_same(method: str, answer: Any) -> None:
    async def main(at: World) -> None:
        first = at.publish()
        call = at.stream(method)
        states = [await call.read()]
        # The same again is no change; what follows it is. Each is seen by the stream before the next comes.
        for _ in range(2):
            at.feed.publish(first)
            for _ in range(10):
                await asyncio.sleep(0.005)
        changed = replace(at.partner.bundle, x509_authorities=at.authority(PARTNER).bundle.x509_authorities)
        at.publish(*first.svids, trust=Trust(at.trust.bundle, (changed,)))
        states.append(await call.read())
        at.publish(*first.svids, trust=Trust(at.trust.bundle))
        if method != "FetchJWTBundles":
            states.append(await call.read())
        rotated = at.publish(at.svid(), trust=Trust(at.trust.bundle))
        if method == "FetchX509SVID":
            states.append(await call.read())
            assert answer.FromString(states[-1]).svids[0].x509_svid == rotated.default.chain_der()
        assert len(set(states)) == len(states)
        another = at.stream(method)
        assert await another.read() == states[-1]

    world(main)


@pytest.mark.spec("C-26", "WL-10")
def test_a_slow_reader_gets_the_newest_state_not_a_queue() -> None:
    async def main(at: World) -> None:
        at.publish()
        call = at.stream("FetchX509SVID")
        await call.read()
        # HTTP/2 windows hold some messages; what does not fit must be dropped for the newest one.
        chains = []
        for _ in range(300):
            chains.append(at.publish().default.chain_der())
            await asyncio.sleep(0)
        seen: list[int] = []
        while not seen or seen[-1] != len(chains) - 1:
            response = workload_pb2.X509SVIDResponse.FromString(await call.read())
            seen.append(chains.index(response.svids[0].x509_svid))
        assert seen == sorted(set(seen))

    world(main)


@pytest.mark.spec("C-11", "C-13", "CL-14", "CL-19", "WL-16")
@pytest.mark.parametrize(("method", "answer"), STREAMS)
def test_without_a_valid_svid_a_new_stream_is_told_to_come_back(method: str, answer: Any) -> None:
    async def main(at: World) -> None:
        async with refused(STATUS.UNAVAILABLE):
            await at.stream(method).read()
        at.publish()
        at.clock.at += timedelta(hours=2)
        if method == "FetchX509SVID":
            async with refused(STATUS.UNAVAILABLE):
                await at.stream(method).read()
        else:
            # Whom it verifies has nothing to do with its own SVID.
            assert await at.stream(method).read()

    world(main)


REFUSED = Withheld("POLICY_DENIED: policy no-web denies it", refused=True, at_once=True)
STATES = [
    pytest.param(REFUSED, 0, id="denied"),
    pytest.param(replace(REFUSED, at_once=False), 2, id="refused and over"),
    pytest.param(replace(REFUSED, refused=False), 0, id="not renewed under a new trust"),
    pytest.param(None, 2, id="over"),
]


@pytest.mark.spec("FED-15", "WL-9", "C-38")
@pytest.mark.parametrize(("withheld", "hours"), STATES)
@pytest.mark.parametrize("method", ["FetchX509Bundles", "FetchJWTBundles"])
def test_bundles_follow_whatever_became_of_the_own_svid(method: str, withheld: Withheld | None, hours: int) -> None:
    """Who is not told that a partner's bundle was withdrawn goes on trusting its keys."""

    async def main(at: World) -> None:
        first = at.publish()
        (token,) = await at.jwt_svids("db")
        partner = SpiffeId.parse("spiffe://partner.test/x")
        ttl = timedelta(hours=hours + 1)
        foreign = at.partner_signing.issue(partner, ["db"], ttl=ttl, now=at.clock.at).token
        call = at.stream(method)
        before = await call.read()
        at.clock.at += timedelta(hours=hours)
        at.feed.publish(replace(first, withheld=withheld))
        assert (await at.validate(foreign)).spiffe_id == str(partner)
        at.feed.publish(replace(first, withheld=withheld, federated=()))
        after = await call.read()
        assert b"partner.test" in before
        assert b"partner.test" not in after
        assert await at.stream(method).read() == after
        async with refused(STATUS.INVALID_ARGUMENT):
            await at.validate(foreign)
        assert token

    world(main)


@pytest.mark.spec("WL-17", "WL-29", "C-33")
@pytest.mark.parametrize("at_once", [True, False], ids=["denied", "refused"])
def test_who_is_refused_is_told_so_with_the_reason_on_open_streams_and_new_calls(at_once: bool) -> None:
    async def main(at: World) -> None:
        good = at.publish()
        call = at.stream("FetchX509SVID")
        await call.read()
        held = replace(good, withheld=replace(REFUSED, at_once=at_once))
        at.feed.publish(held)
        if not at_once:
            # What it has is good until its end.
            assert await at.stream("FetchX509SVID").read()
            assert await at.jwt_svids("db")
            at.clock.at += timedelta(hours=2)
            at.feed.publish(held)
        for denied in (call.read(), at.stream("FetchX509SVID").read(), at.jwt_svids("db")):
            async with refused(STATUS.PERMISSION_DENIED, f"no identity issued: {REFUSED.why}"):
                await denied
        # And not for ever.
        at.publish()
        assert await at.stream("FetchX509SVID").read()
        assert await at.jwt_svids("db")

    world(main)


def test_a_refused_svids_end_ends_its_streams_though_nothing_is_published_then() -> None:
    async def main(at: World) -> None:
        good = at.publish()
        call = at.stream("FetchX509SVID")
        await call.read()
        left = good.expires_at - timedelta(milliseconds=20)
        at.clock.at = left
        at.feed.publish(replace(good, withheld=replace(REFUSED, at_once=False)))
        for _ in range(20):  # its nap has begun by then
            await asyncio.sleep(0)
        at.clock.at = good.expires_at
        async with refused(STATUS.PERMISSION_DENIED, REFUSED.why):
            await call.read()

    world(main)


def test_what_is_withheld_without_a_refusal_is_waited_for() -> None:
    async def main(at: World) -> None:
        good = at.publish()
        call = at.stream("FetchX509SVID")
        await call.read()
        at.feed.publish(replace(good, withheld=replace(REFUSED, refused=False)))
        async with refused(STATUS.UNAVAILABLE):
            await at.stream("FetchX509SVID").read()
        fresh = at.publish().default.chain_der()
        answer = workload_pb2.X509SVIDResponse.FromString(await call.read())
        assert answer.svids[0].x509_svid == fresh

    world(main)


@pytest.mark.spec("WL-16", "CL-14")
def test_what_has_ended_is_not_sent_to_an_open_stream_either() -> None:
    async def main(at: World) -> None:
        at.publish()
        call = at.stream("FetchX509SVID")
        await call.read()
        ended = at.svid()
        at.clock.at += timedelta(hours=2)
        at.publish(ended)
        for _ in range(20):  # or the next state would replace it before the stream ever saw it
            await asyncio.sleep(0.005)
        fresh = at.publish().default.chain_der()
        answer = workload_pb2.X509SVIDResponse.FromString(await call.read())
        assert answer.svids[0].x509_svid == fresh

    world(main)


@pytest.mark.spec("C-9", "WL-1", "WL-3", "C-8")
def test_profiles_that_are_not_served_are_unimplemented_and_the_others_unaffected() -> None:
    async def main(at: World) -> None:
        at.publish()
        for method in ("FetchJWTSVID", "ValidateJWTSVID"):
            async with refused(STATUS.UNIMPLEMENTED):
                await at.ask(method, b"")
        for method in ("FetchJWTBundles", "FetchWITSVID", "FetchWITBundles"):
            async with refused(STATUS.UNIMPLEMENTED):
                await at.stream(method).read()
        assert await at.stream("FetchX509SVID").read()

    world(main, jwt_profile=False)


@pytest.mark.spec("JWT-6", "JWT-7", "WL-31", "WL-32", "WL-33", "C-55", "C-57", "C-61", "CL-18")
def test_a_jwt_svid_for_every_identity_or_the_one_asked_for_with_every_audience() -> None:
    async def main(at: World) -> None:
        at.publish(at.svid(WEB, "main"), at.svid(WEB_TOO, "other"))
        found = await at.jwt_svids("db", "cache", "db")
        assert [(each.spiffe_id, each.hint) for each in found] == [(str(WEB), "main"), (str(WEB_TOO), "other")]
        for each in found:
            key: Any = at.signing.public.public_key
            claims = jwt.decode(each.svid, key, algorithms=["ES256"], audience="cache")
            assert sorted(claims["aud"]) == ["cache", "db"]
            assert claims["sub"] == each.spiffe_id
            assert isinstance(claims["exp"], int)
        (one,) = await at.jwt_svids("db", spiffe_id=str(WEB_TOO))
        assert (one.spiffe_id, one.hint) == (str(WEB_TOO), "other")

    world(main)


def test_a_jwt_svid_is_kept_for_the_same_audiences_and_not_for_others() -> None:
    async def main(at: World) -> None:
        at.publish()
        (first,) = await at.jwt_svids("db")
        (again,) = await at.jwt_svids("db")
        (other,) = await at.jwt_svids("cache")
        assert first.svid == again.svid
        assert first.svid != other.svid

    world(main)


@pytest.mark.spec("EP-17", "WL-13", "WL-34", "WL-40", "C-53", "C-54", "C-56", "C-58", "C-59", "C-60", "C-62", "CL-20")
def test_requests_for_jwt_svids_that_cannot_be_granted() -> None:
    async def main(at: World) -> None:
        at.publish()
        for audiences in ((), ("",), ("db", ""), tuple(f"a{n}" for n in range(100)), ("x" * 60_000,)):
            async with refused(STATUS.INVALID_ARGUMENT, "audience"):
                await at.jwt_svids(*audiences)
        for spiffe_id in ("example.org/a", "spiffe://EXAMPLE.org/ns/default/sa/web", f"{WEB}/", f"{WEB}%61", "\n"):
            async with refused(STATUS.INVALID_ARGUMENT, "SPIFFE ID"):
                await at.jwt_svids("db", spiffe_id=spiffe_id)
        for spiffe_id in (str(WEB_TOO), "spiffe://partner.test/ns/default/sa/web", "spiffe://example.org"):
            async with refused(STATUS.PERMISSION_DENIED, "no identity issued"):
                await at.jwt_svids("db", spiffe_id=spiffe_id)

    world(main)


@pytest.mark.spec("CL-19", "C-12")
def test_an_authority_that_is_away_is_no_denial_and_one_that_refuses_is() -> None:
    async def main(at: World) -> None:
        at.publish()
        at.mint_error = AuthorityUnavailable("the signer does not answer")
        async with refused(STATUS.UNAVAILABLE, "does not answer"):
            await at.jwt_svids("db")
        at.mint_error = AuthorityRefused("POLICY_DENIED")
        async with refused(STATUS.PERMISSION_DENIED, "no identity issued"):
            await at.jwt_svids("db")

    world(main)


@pytest.mark.spec("WL-38", "WL-39", "WL-42", "C-71")
def test_validation_answers_with_the_identity_and_the_claims() -> None:
    async def main(at: World) -> None:
        at.publish()
        (own,) = await at.jwt_svids("db", "cache")
        found = await at.validate(own.svid)
        assert found.spiffe_id == str(WEB)
        assert sorted(found.claims["aud"]) == ["cache", "db"]
        assert found.claims["sub"] == str(WEB)
        assert found.claims["exp"] > at.clock.at.timestamp()
        partner = SpiffeId.parse("spiffe://partner.test/x")
        foreign = at.partner_signing.issue(partner, ["db"], ttl=timedelta(minutes=1), now=at.clock.at)
        assert (await at.validate(foreign.token)).spiffe_id == str(partner)

    world(main)


@pytest.mark.spec("WL-40", "WL-41", "C-65", "C-66", "C-70", "C-73", "C-76", "C-77")
def test_validation_refuses_as_invalid_argument() -> None:
    async def main(at: World) -> None:
        at.publish()
        (own,) = await at.jwt_svids("db")
        stranger = JwtSigningKey.create(ES256)
        unknown = SpiffeId.parse("spiffe://unknown.test/x")
        cross = at.partner_signing.issue(WEB, ["db"], ttl=timedelta(minutes=1), now=at.clock.at)
        foreign = stranger.issue(unknown, ["db"], ttl=timedelta(minutes=1), now=at.clock.at)
        for token, audience in (
            ("", "db"),
            (own.svid, ""),
            (own.svid, "d"),
            (own.svid, "DB"),
            (own.svid + "\n", "db"),
            (own.svid + ".x", "db"),
            ("a.b", "db"),
            (cross.token, "db"),
            (foreign.token, "db"),
        ):
            async with refused(STATUS.INVALID_ARGUMENT):
                await at.validate(token, audience)
        at.clock.at += timedelta(minutes=10)
        async with refused(STATUS.INVALID_ARGUMENT):
            await at.validate(own.svid)

    world(main)


@pytest.mark.spec("C-87")
def test_claims_that_no_struct_can_hold_are_left_out_and_the_rest_is_answered() -> None:
    async def main(at: World) -> None:
        at.publish()
        exp = int(at.clock.at.timestamp()) + 60
        deep: Any = 1
        for _ in range(50):
            deep = [deep]
        claims = {
            "sub": str(WEB),
            "aud": "db",
            "exp": exp,
            "huge": 10**400,
            "deep": deep,
            "sur": "\ud800",
            "ok": {"a": 1},
        }
        key: Any = at.signing.private_key
        token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": at.signing.key_id})
        try:
            found = await at.validate(token)
        except grpc.aio.AioRpcError as error:
            assert error.code() is STATUS.INVALID_ARGUMENT  # refusing such a token whole is as good
            return
        assert found.claims["ok"]["a"] == 1
        assert list(found.claims["aud"]) == ["db"]
        assert not {"huge", "deep", "sur"} & set(found.claims)

    world(main)


@pytest.mark.spec("C-18", "EP-8")
def test_credentials_of_a_caller_are_neither_needed_nor_looked_at() -> None:
    async def main(at: World) -> None:
        at.publish()
        bearer = ("authorization", "Bearer somebody-else")
        call = at.channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", metadata=(HEADER, bearer))
        assert workload_pb2.X509SVIDResponse.FromString(await call.read()).svids[0].spiffe_id == str(WEB)

    world(main)


@pytest.mark.spec("C-30")
def test_unknown_fields_are_ignored() -> None:
    async def main(at: World) -> None:
        at.publish()
        assert await at.stream("FetchX509SVID", b"\xfa\x3e\x03abc").read()

    world(main)


@pytest.mark.spec("C-29")
def test_what_is_no_message_is_an_invalid_argument_for_every_method() -> None:
    async def main(at: World) -> None:
        at.publish()
        for method in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"):
            async with refused(STATUS.INVALID_ARGUMENT):
                await at.stream(method, b"\xff\xff").read()
        for method in ("FetchJWTSVID", "ValidateJWTSVID"):
            async with refused(STATUS.INVALID_ARGUMENT):
                await at.ask(method, b"\xff\xff")
            async with refused(STATUS.INVALID_ARGUMENT):
                await at.ask(method, b"\x0a\x02\xff\xfe")  # no UTF-8

    world(main)


def test_hostile_bytes_to_any_method_get_an_expected_status_and_the_socket_lives_on() -> None:
    async def attack(at: World) -> None:
        at.publish()
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", "FetchJWTSVID",
                                "ValidateJWTSVID"]), st.binary(max_size=200))  # fmt: skip
        def send(method: str, data: bytes) -> None:
            async def once() -> None:
                expected = {STATUS.OK, STATUS.INVALID_ARGUMENT, STATUS.PERMISSION_DENIED}
                try:
                    if method in ("FetchJWTSVID", "ValidateJWTSVID"):
                        await at.ask(method, data)
                    else:
                        call = at.stream(method, data)
                        await call.read()
                        call.cancel()
                except grpc.aio.AioRpcError as error:
                    assert error.code() in expected, (method, data, error)

            asyncio.run_coroutine_threadsafe(once(), loop).result(30)

        await asyncio.to_thread(send)
        assert await at.stream("FetchX509SVID").read()

    world(attack)
