"""Envoy's secret discovery service over a real socket, with a client by hand that speaks xDS as Envoy does."""

import asyncio
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
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.metrics import Metrics
from agent.pb import sds_pb2
from agent.socket.endpoint import Endpoint
from agent.socket.sds import SERVICE, SecretDiscovery
from agent.socket.sds_secrets import TYPE_URL, SdsNames
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.identity import Trust, Withheld, WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.here_sockets import alone

OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
API = SpiffeId.parse("spiffe://example.org/ns/default/sa/api")
NOW = datetime.now(UTC).replace(microsecond=0)


class StepClock:
    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def authority(domain: TrustDomain) -> X509Authority:
    return X509Authority.create(domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)


ISSUER, OTHER = authority(OWN), authority(PARTNER)
TRUST = Trust(ISSUER.bundle, (OTHER.bundle,))


def svid(spiffe_id: SpiffeId = WEB) -> X509Svid:
    key = KeyAlgorithm.EC_P256.generate()
    return X509Svid(spiffe_id, ISSUER.issue(key.public_key(), spiffe_id, ttl=timedelta(hours=1), now=NOW), key)


class Stream:
    """One xDS stream: what was sent last is remembered, as a client must."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.version = ""
        self.nonce = ""
        self.nonces: set[str] = set()

    async def ask(self, *names: str, **fields: Any) -> None:
        fields = {"type_url": TYPE_URL, "version_info": self.version, "response_nonce": self.nonce, **fields}
        await self.call.write(sds_pb2.DiscoveryRequest(resource_names=names, **fields).SerializeToString())

    async def next(self) -> dict[str, sds_pb2.Secret]:
        data = await self.call.read()
        response = sds_pb2.DiscoveryResponse.FromString(data)
        assert response.type_url == TYPE_URL
        assert response.nonce not in self.nonces
        self.nonces.add(response.nonce)
        self.nonce, self.version = response.nonce, response.version_info
        return unpacked(response.resources)


class Delta:
    def __init__(self, call: Any) -> None:
        self.call = call
        self.nonce = ""
        self.versions: dict[str, str] = {}

    async def ask(self, *names: str, leave: tuple[str, ...] = (), **fields: Any) -> None:
        request = sds_pb2.DeltaDiscoveryRequest(
            type_url=TYPE_URL, resource_names_subscribe=names, resource_names_unsubscribe=leave, **fields
        )
        await self.call.write(request.SerializeToString())

    async def next(self) -> tuple[dict[str, sds_pb2.Secret], list[str]]:
        response = sds_pb2.DeltaDiscoveryResponse.FromString(await self.call.read())
        self.nonce = response.nonce
        found = unpacked([each.resource for each in response.resources])
        assert [each.name for each in response.resources] == list(found)
        self.versions |= {each.name: each.version for each in response.resources}
        return found, list(response.removed_resources)


def unpacked(resources: Any) -> dict[str, sds_pb2.Secret]:
    assert all(each.type_url == TYPE_URL for each in resources)
    secrets = [sds_pb2.Secret.FromString(each.value) for each in resources]
    return {secret.name: secret for secret in secrets}


class World:
    def __init__(self, names: SdsNames) -> None:
        self.clock = StepClock()
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.metrics = Metrics()
        sds = SecretDiscovery(self.feed, names, self.clock, self.metrics, "default/web")
        self.endpoint = Endpoint([sds.handlers()], alone(), self.metrics)
        self.channel: Any = None

    def publish(self, *svids: X509Svid, trust: Trust = TRUST) -> WorkloadIdentity:
        identity = WorkloadIdentity(svids or (svid(),), trust.bundle, trust.federated)
        self.feed.publish(identity)
        return identity

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    def stream(self) -> Stream:
        return Stream(self.channel.stream_stream(f"/{SERVICE}/StreamSecrets")())

    def delta(self) -> Delta:
        return Delta(self.channel.stream_stream(f"/{SERVICE}/DeltaSecrets")())

    async def fetch(self, *names: str) -> dict[str, sds_pb2.Secret]:
        request = sds_pb2.DiscoveryRequest(resource_names=names, type_url=TYPE_URL).SerializeToString()
        data = await self.channel.unary_unary(f"/{SERVICE}/FetchSecrets")(request)
        return unpacked(sds_pb2.DiscoveryResponse.FromString(data).resources)

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


def world(main: Callable[[World], Awaitable[Any]], names: SdsNames | None = None) -> None:
    async def run() -> None:
        async with World(names or SdsNames()).running() as found:
            await main(found)

    asyncio.run(run())


@asynccontextmanager
async def refused(code: grpc.StatusCode, words: str = "") -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


def chain(secret: sds_pb2.Secret) -> bytes:
    return secret.tls_certificate.certificate_chain.inline_bytes


def trust_domains(secret: sds_pb2.Secret) -> dict[str, bytes]:
    config = secret.validation_context.custom_validator_config
    assert config.name == "envoy.tls.cert_validator.spiffe"
    assert config.typed_config.type_url.endswith(".SPIFFECertValidatorConfig")
    found = sds_pb2.SPIFFECertValidatorConfig.FromString(config.typed_config.value)
    assert not secret.validation_context.HasField("trusted_ca")
    return {each.name: each.trust_bundle.inline_bytes for each in found.trust_domains}


ROOTS = {"example.org": ISSUER.bundle.to_pem(), "partner.test": OTHER.bundle.to_pem()}


def test_each_kind_of_name_and_several_in_one_request() -> None:
    async def main(at: World) -> None:
        first, second = svid(WEB), svid(API)
        at.publish(first, second)
        stream = at.stream()
        names = ["default", str(WEB), str(API), "ROOTCA", "ALL", "spiffe://example.org", "spiffe://partner.test"]
        await stream.ask(*names)
        found = await stream.next()
        assert list(found) == names
        assert chain(found["default"]) == chain(found[str(WEB)]) == first.chain_pem()
        assert found["default"].tls_certificate.private_key.inline_bytes == first.key_pem()
        assert chain(found[str(API)]) == second.chain_pem()
        own = {"example.org": ROOTS["example.org"]}
        assert trust_domains(found["ROOTCA"]) == trust_domains(found["spiffe://example.org"]) == own
        assert trust_domains(found["ALL"]) == ROOTS
        assert list(trust_domains(found["spiffe://partner.test"])) == ["partner.test"]

    world(main)


def test_no_names_at_first_mean_everything() -> None:
    async def main(at: World) -> None:
        at.publish(svid(WEB), svid(API))
        stream = at.stream()
        await stream.ask()
        everything = {str(WEB), str(API), "spiffe://example.org", "spiffe://partner.test"}
        assert set(await stream.next()) == everything
        assert set(await at.fetch()) == everything

    world(main)


def test_an_ack_is_not_answered_and_the_next_change_is_pushed_once() -> None:
    async def main(at: World) -> None:
        at.publish()
        stream = at.stream()
        await stream.ask("default")
        await stream.next()
        await stream.ask("default")
        fresh = svid()
        at.publish(fresh)
        assert chain((await stream.next())["default"]) == fresh.chain_pem()
        await stream.ask("default")
        # The bundles change: that is nothing to a stream that has the SVID only.
        at.publish(fresh, trust=Trust(ISSUER.bundle))
        newest = svid()
        at.publish(newest)
        assert chain((await stream.next())["default"]) == newest.chain_pem()
        assert at.count("podsvid_sds_pushes_total") == 3

    world(main)


def test_a_rejection_is_counted_logged_and_not_answered_until_something_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(at: World) -> None:
        at.publish()
        stream = at.stream()
        await stream.ask("default", node=sds_pb2.Node(id="envoy-1"))
        await stream.next()
        await stream.ask("default", version_info="", error_detail=sds_pb2.Status(code=13, message="no\nthanks"))
        fresh = svid()
        while not at.count("podsvid_sds_rejections_total"):
            await asyncio.sleep(0.005)
        at.publish(fresh)
        assert chain((await stream.next())["default"]) == fresh.chain_pem()
        (record,) = [each for each in caplog.records if "rejected" in each.message]
        assert record.__dict__["error"] == r"'no\nthanks'"
        assert at.count("podsvid_sds_pushes_total") == 2

    world(main)


def test_an_answer_to_a_response_that_another_has_replaced_is_ignored() -> None:
    async def main(at: World) -> None:
        at.publish()
        stream = at.stream()
        await stream.ask("default")
        await stream.next()
        old = stream.nonce
        at.publish()
        await stream.next()
        await stream.ask("ROOTCA", response_nonce=old)
        await stream.ask("default", "ROOTCA")
        assert list(await stream.next()) == ["default", "ROOTCA"]

    world(main)


def test_changed_names_are_answered_whole_and_no_names_give_up() -> None:
    async def main(at: World) -> None:
        at.publish()
        stream = at.stream()
        await stream.ask("default")
        assert list(await stream.next()) == ["default"]
        await stream.ask("default", "ROOTCA")
        assert list(await stream.next()) == ["default", "ROOTCA"]
        await stream.ask("ROOTCA")
        assert list(await stream.next()) == ["ROOTCA"]
        await stream.ask()
        at.publish()
        await stream.ask("default")
        assert list(await stream.next()) == ["default"]

    world(main)


def test_a_reconnect_with_a_known_version_and_no_nonce_is_answered() -> None:
    async def main(at: World) -> None:
        at.publish()
        stream = at.stream()
        await stream.ask("default", version_info="6", response_nonce="")
        assert list(await stream.next()) == ["default"]
        delta = at.delta()
        await delta.ask("default", initial_resource_versions={"default": "6"})
        assert list((await delta.next())[0]) == ["default"]
        again = at.delta()
        await again.ask("default", initial_resource_versions=delta.versions)
        assert list((await again.next())[0]) == ["default"]

    world(main)


@pytest.mark.parametrize("kind", ["stream", "delta"])
def test_an_unknown_name_is_waited_for_logged_once_and_ends_nothing(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(at: World) -> None:
        at.publish()
        if kind == "stream":
            stream = at.stream()
            await stream.ask("default", str(API), "x\ny")
            assert list(await stream.next()) == ["default"]
            await stream.ask("default", str(API), "x\ny")
        else:
            delta = at.delta()
            await delta.ask("default", str(API), "x\ny")
            found, removed = await delta.next()
            assert (list(found), removed) == (["default"], [str(API), "x\ny"])
        late, fresh = svid(API), svid()
        at.publish(fresh, late)
        found = await stream.next() if kind == "stream" else (await delta.next())[0]
        assert chain(found[str(API)]) == late.chain_pem()
        waits = [each.__dict__["secret"] for each in caplog.records if "waits" in each.message]
        assert waits == [repr(str(API)), r"'x\ny'"]

    world(main)


def test_before_there_is_an_identity_everything_is_waited_for() -> None:
    async def main(at: World) -> None:
        stream, delta = at.stream(), at.delta()
        await stream.ask("default")
        await delta.ask("ROOTCA")
        found, removed = await delta.next()
        assert (found, removed) == ({}, ["ROOTCA"])
        at.publish()
        assert list(await stream.next()) == ["default"]
        assert list((await delta.next())[0]) == ["ROOTCA"]

    world(main)


def test_delta_sends_what_changed_only_and_forgets_what_was_left() -> None:
    async def main(at: World) -> None:
        at.publish()
        delta = at.delta()
        await delta.ask("default", "ROOTCA")
        assert list((await delta.next())[0]) == ["default", "ROOTCA"]
        await delta.ask(response_nonce=delta.nonce)
        fresh = svid()
        at.publish(fresh)
        found, removed = await delta.next()
        assert (list(found), removed) == (["default"], [])
        await delta.ask(leave=("default",), response_nonce=delta.nonce)
        await delta.ask("ALL")
        assert list((await delta.next())[0]) == ["ALL"]
        at.publish(trust=Trust(ISSUER.bundle))
        assert list((await delta.next())[0]) == ["ALL"]

    world(main)


def test_delta_says_what_is_gone() -> None:
    async def main(at: World) -> None:
        at.publish(svid(WEB), svid(API))
        delta = at.delta()
        await delta.ask(str(WEB), str(API), "spiffe://partner.test")
        assert len((await delta.next())[0]) == 3
        at.publish(svid(WEB), trust=Trust(ISSUER.bundle))
        found, removed = await delta.next()
        assert (list(found), sorted(removed)) == ([str(WEB)], sorted([str(API), "spiffe://partner.test"]))

    world(main)


GONE = ("spiffe://partner.test", str(API))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        # It asks for what it has; for everything; and for less than it says it has.
        (("default", "spiffe://partner.test", str(API)), ["default"]),
        ((), [str(WEB), "spiffe://example.org"]),
        (("*",), [str(WEB), "spiffe://example.org"]),
        (("default",), ["default"]),
    ],
)
def test_delta_says_what_went_while_the_client_was_away(asked: tuple[str, ...], told: list[str]) -> None:
    async def main(at: World) -> None:
        at.publish(svid(WEB), svid(API))
        before = at.delta()
        await before.ask("default", "ROOTCA", *GONE)
        await before.next()
        before.call.cancel()
        at.publish(svid(WEB), trust=Trust(ISSUER.bundle))
        again = at.delta()
        await again.ask(*asked, initial_resource_versions=before.versions)
        found, removed = await again.next()
        # "ROOTCA" is there, asked for or not.
        assert (sorted(found), sorted(removed)) == (sorted(told), sorted(GONE))
        # Once is enough.
        await again.ask(response_nonce=again.nonce)
        at.publish(svid(WEB), trust=Trust(ISSUER.bundle))
        found, removed = await again.next()
        assert (list(found), removed) == (told[:1], [])

    world(main)


def test_a_client_that_says_it_has_more_names_than_there_may_be_is_refused() -> None:
    async def main(at: World) -> None:
        at.publish()
        for names in ([f"n{number}" for number in range(257)], ["x" * 2049]):
            delta = at.delta()
            await delta.ask(initial_resource_versions=dict.fromkeys(names, "1"))
            async with refused(grpc.StatusCode.INVALID_ARGUMENT):
                await delta.next()

    world(main)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_svid_that_is_refused_is_handed_out_no_more_and_bundles_go_on(at_once: bool) -> None:
    async def main(at: World) -> None:
        good = at.publish()
        delta, stream = at.delta(), at.stream()
        await delta.ask("default", "ALL")
        await stream.ask("default", "ALL")
        await delta.next()
        await stream.next()
        held = replace(good, withheld=Withheld("POLICY_DENIED: no", refused=True, at_once=at_once))
        if not at_once:
            at.feed.publish(held)
            assert list(await at.fetch("default")) == ["default"]
            at.clock.at += timedelta(hours=2)
        at.feed.publish(replace(held, federated=()))
        found, removed = await delta.next()
        assert (list(found), removed) == (["ALL"], ["default"])
        assert list(await stream.next()) == ["ALL"]
        async with refused(grpc.StatusCode.PERMISSION_DENIED, "no identity issued: POLICY_DENIED: no"):
            await at.fetch("default")
        assert list(await at.fetch("ALL")) == ["ALL"]
        at.clock.at = NOW
        at.publish()
        assert "default" in await stream.next()

    world(main)


@pytest.mark.parametrize(
    ("names", "node"),
    [
        (SdsNames(spiffe_validator=False), {}),
        (None, {"metadata": {"disable_spiffe_cert_validation": True}}),
        (None, {"metadata": {"disable_spiffe_cert_validation": "true"}}),
        (None, {"old": True}),
    ],
)
def test_plain_trusted_ca_on_demand_and_never_for_several_domains_at_once(
    names: SdsNames | None, node: dict[str, Any]
) -> None:
    async def main(at: World) -> None:
        at.publish()
        sender = sds_pb2.Node(id="n")
        for key, value in node.get("metadata", {}).items():
            sender.metadata[key] = value
        if node.get("old"):
            sender.user_agent_name = "envoy"
            sender.user_agent_build_version.version.major_number = 1
            sender.user_agent_build_version.version.minor_number = 17
        stream = at.stream()
        await stream.ask("ROOTCA", "spiffe://partner.test", "ALL", node=sender)
        found = await stream.next()
        assert {name: secret.validation_context.trusted_ca.inline_bytes for name, secret in found.items()} == {
            "ROOTCA": ROOTS["example.org"],
            "spiffe://partner.test": ROOTS["partner.test"],
        }
        # Later requests have no node; what it said still holds.
        await stream.ask("ROOTCA")
        assert (await stream.next())["ROOTCA"].validation_context.HasField("trusted_ca")

    world(main, names)


def test_names_are_settings_and_an_empty_one_is_off() -> None:
    async def main(at: World) -> None:
        at.publish()
        found = await at.fetch("mine", "ROOTCA")
        assert chain(found["mine"])
        assert trust_domains(found["ROOTCA"]) == ROOTS  # as Istio's federation wants it
        for name in ("default", "ALL", ""):
            async with refused(grpc.StatusCode.NOT_FOUND):
                await at.fetch(name)

    world(main, SdsNames(svid="mine", bundle="", all_bundles="ROOTCA"))


def test_a_domain_without_certificates_is_left_out() -> None:
    async def main(at: World) -> None:
        at.publish(trust=Trust(ISSUER.bundle, (TrustBundle(PARTNER),)))
        assert list(trust_domains((await at.fetch("ALL"))["ALL"])) == ["example.org"]
        async with refused(grpc.StatusCode.NOT_FOUND):
            await at.fetch("spiffe://partner.test")

    world(main)


def test_what_does_not_chain_to_the_bundle_or_has_ended_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def main(at: World) -> None:
        good = at.publish()
        stranger = authority(OWN)
        at.feed.publish(replace(good, bundle=stranger.bundle))
        stream = at.stream()
        await stream.ask("default", "ROOTCA")
        assert list(await stream.next()) == ["ROOTCA"]
        assert any("not valid and was not sent" in each.message for each in caplog.records)
        at.publish()
        assert "default" in await stream.next()
        at.clock.at += timedelta(hours=2)
        async with refused(grpc.StatusCode.NOT_FOUND):
            await at.fetch("default")

    world(main)


@pytest.mark.parametrize("method", ["StreamSecrets", "DeltaSecrets", "FetchSecrets"])
def test_what_is_no_request_for_secrets(method: str) -> None:
    async def main(at: World) -> None:
        at.publish()
        message = sds_pb2.DeltaDiscoveryRequest if method == "DeltaSecrets" else sds_pb2.DiscoveryRequest
        field = "resource_names_subscribe" if method == "DeltaSecrets" else "resource_names"
        wrong = message(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster").SerializeToString()
        many: Any = {field: [f"n{number}" for number in range(257)]}
        long: Any = {field: ["x" * 2049]}
        for data in (wrong, b"\xff\xff", message(**many).SerializeToString(), message(**long).SerializeToString()):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT):
                if method == "FetchSecrets":
                    await at.channel.unary_unary(f"/{SERVICE}/{method}")(data)
                else:
                    call = at.channel.stream_stream(f"/{SERVICE}/{method}")()
                    await call.write(data)
                    await call.read()

    world(main)


@pytest.mark.spec("CL-1", "CL-2")
@pytest.mark.parametrize("method", ["StreamSecrets", "DeltaSecrets"])
def test_a_client_that_sends_no_more_still_gets_every_change(method: str) -> None:
    async def main(at: World) -> None:
        at.publish()
        stream: Any = at.stream() if method == "StreamSecrets" else at.delta()
        await stream.ask("default")
        await stream.next()
        await stream.call.done_writing()
        at.publish()
        await stream.next()
        await at.endpoint.close()
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await stream.call.read()

    world(main)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(["rotate", "trust", "names", "ack", "nack", "stale"]), max_size=25), st.integers())
def test_whatever_happens_the_newest_state_arrives_and_nothing_arrives_twice(steps: list[str], seed: int) -> None:
    rng = random.Random(seed)
    trusts = (TRUST, Trust(ISSUER.bundle))

    async def main(at: World) -> None:
        identity = at.publish()
        stream = at.stream()
        names = ["default", "ALL"]
        held: dict[str, sds_pb2.Secret] = {}
        await stream.ask(*names)
        nonces = [""]
        last: dict[str, sds_pb2.Secret] | None = None
        asked = True

        async def settle() -> None:
            nonlocal held, last, asked
            want = {name: text(identity, name) for name in names}
            while asked or {name: text_of(held[name]) for name in names if name in held} != want:
                got = await stream.next()
                assert asked or got != last, "the same was sent twice"
                held, last, asked = got, got, False
                nonces.append(stream.nonce)

        await settle()
        for step in steps:
            if step == "rotate":
                identity = at.publish(svid(), trust=identity.trust)
            elif step == "trust":
                identity = at.publish(*identity.svids, trust=rng.choice(trusts))
            elif step == "names":
                chosen = rng.sample(["default", "ALL", str(WEB), "ROOTCA"], rng.randint(1, 3))
                asked = set(chosen) != set(names)
                names = chosen
                await stream.ask(*names)
            elif step == "ack":
                await stream.ask(*names)
            elif step == "nack":
                await stream.ask(*names, error_detail=sds_pb2.Status(message="no"))
            elif len(nonces) > 2:
                await stream.ask("ROOTCA", response_nonce=rng.choice(nonces[1:-1]))
            await settle()

    def text(identity: WorkloadIdentity, name: str) -> bytes:
        if name in ("default", str(WEB)):
            return identity.default.chain_pem()
        bundles = [identity.bundle, *(identity.federated if name == "ALL" else ())]
        return b"".join(each.to_pem() for each in bundles)

    def text_of(secret: sds_pb2.Secret) -> bytes:
        return chain(secret) or b"".join(trust_domains(secret).values())

    world(main)
