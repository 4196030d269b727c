"""Each setting of the signer reaches the part that it is for: a whole replica, asked over TLS without an agent."""

import asyncio
import os
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2, status_pb2

from signer.attestation.tokens import JWKS, REVIEWS
from signer.authority.state import AuthorityState
from signer.cluster.kube import Object
from signer.front.agents import SERVICE
from signer.front.budget import MAX_MINT
from signer.model import PodClaim
from signer.pb import signer_pb2
from signer.policy.policy import CLUSTER, GROUP
from svid.certificates import certificates_from_der
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm
from tests.signer_rig import Serving, Site, StepClock, serving
from tests.unit.signer.test_minting import csr

REQUEST = csr(KeyAlgorithm.EC_P256.generate())
WEB = "spiffe://example.org/ns/default/sa/web"


def state_of(signer: Serving) -> AuthorityState:
    found = signer.replica._rotation.state
    assert found is not None
    return found


class Caller:
    """What an agent would be, without its caution."""

    def __init__(self, signer: Serving, agent: str) -> None:
        self.signer = signer
        self.site = signer.site
        self.agent = agent

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(state_of(self.signer).bundle.to_pem())
        options = (("grpc.ssl_target_name_override", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.secure_channel(self.signer.address, credentials, options) as found:
            yield found

    async def _call(self, name: str, request: Any, answer: Any) -> Any:
        async with self.channel() as channel:
            method = channel.unary_unary(f"/{SERVICE}/{name}", type(request).SerializeToString, answer.FromString)
            return await method(request, metadata=(("authorization", f"Bearer {self.agent}"),), timeout=60)

    async def x509(self, claim: PodClaim, token: str, **fields: Any) -> signer_pb2.MintX509SVIDResponse:
        pod = signer_pb2.Pod(namespace=claim.namespace, name=claim.name, uid=claim.uid)
        request = signer_pb2.MintX509SVIDRequest(pod=pod, pod_token=token, **{"csr": REQUEST, **fields})
        found: signer_pb2.MintX509SVIDResponse = await self._call(
            "MintX509SVID", request, signer_pb2.MintX509SVIDResponse
        )
        return found

    async def jwt(self, claim: PodClaim, token: str, spiffe_id: str = WEB) -> dict[str, Any]:
        pod = signer_pb2.Pod(namespace=claim.namespace, name=claim.name, uid=claim.uid)
        request = signer_pb2.MintJWTSVIDRequest(pod=pod, pod_token=token, spiffe_id=spiffe_id, audiences=["a"])
        found = await self._call("MintJWTSVID", request, signer_pb2.MintJWTSVIDResponse)
        claims: dict[str, Any] = jwt.decode(found.token, options={"verify_signature": False})
        return claims

    async def refused(self, work: Awaitable[Any]) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await work
        for key, value in caught.value.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                info = error_details_pb2.ErrorInfo()
                for detail in status_pb2.Status.FromString(value).details:
                    if detail.Unpack(info):
                        return str(info.reason)
        return caught.value.code().name


def asked(
    test: Callable[[Caller, StepClock], Awaitable[None]],
    *flags: str,
    agent: Callable[[Site], str] = Site.agent,
    since: timedelta = timedelta(0),
) -> None:
    async def run(folder: Path) -> None:
        clock = StepClock(datetime.now(UTC).replace(microsecond=0) - since)
        site = Site(clock.at)
        site.clock = clock
        async with serving(site, folder, clock, *flags) as signer:
            await test(Caller(signer, agent(site)), clock)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))


def lifetime(answer: signer_pb2.MintX509SVIDResponse, clock: StepClock) -> timedelta:
    return certificates_from_der(answer.chain)[0].not_valid_after_utc - clock.at


def test_who_is_an_agent_whose_volume_counts_and_what_a_pod_is_called() -> None:
    def runner(site: Site, namespace: str = "agents", account: str = "runner") -> str:
        return site.token(PodClaim(namespace, "a", "uid-a"), account=account, namespace=namespace)

    async def test(caller: Caller, clock: StepClock) -> None:
        site = caller.site
        one, other = site.pod("one", driver="a.test"), site.pod("other", driver="b.test")
        for claim in (one, other):
            assert (await caller.x509(claim, site.token(claim))).spiffe_id == "spiffe://example.org/w/web"
        usual = site.pod("usual")
        assert await caller.refused(caller.x509(usual, site.token(usual))) == "POD_WITHOUT_DRIVER"
        for agent in (site.agent(), runner(site, "podsvid"), runner(site, account="podsvid-agent")):
            stranger = Caller(caller.signer, agent)
            assert await caller.refused(stranger.x509(one, site.token(one))) == "AGENT_DENIED"
        site.kube.put(
            "/api/v1/namespaces/default/services/front",
            {"metadata": {"name": "front"}, "spec": {"selector": {"app": "web"}}},
        )
        site.kube.put(f"{GROUP}/{CLUSTER}/p", {"spec": {"dnsNamesFromServices": True}})
        path = "/api/v1/namespaces/default/pods/one"
        body = site.kube.objects[path]
        site.kube.put(path, {**body, "metadata": {**body["metadata"], "labels": {"app": "web"}}})
        async with asyncio.timeout(30):
            while (answer := await caller.x509(one, site.token(one))).policy != "p":
                await asyncio.sleep(0)
        names = certificates_from_der(answer.chain)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.DNSName)[-1] == "front.default.svc.corp.test"

    flags = ("--agent-namespace", "agents", "--agent-service-account", "runner", "--driver-names", "a.test,b.test")
    asked(test, *flags, "--default-path", "/w/{service_account}", "--cluster-domain", "corp.test", agent=runner)


def test_a_policy_may_be_wanted() -> None:
    async def test(caller: Caller, clock: StepClock) -> None:
        claim = caller.site.pod("web")
        assert await caller.refused(caller.x509(claim, caller.site.token(claim))) == "POLICY_DENIED"

    asked(test, "--require-policy", "true")


def test_the_audience_is_the_one_that_was_set() -> None:
    """By the API server's word as well as by the cluster's keys."""
    key = ec.generate_private_key(ec.SECP256R1())

    def signed(token: str) -> str:
        claims = jwt.decode(token, options={"verify_signature": False})
        return jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k1"})

    def agent(site: Site, audience: str = "other") -> str:
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        site.kube.put(JWKS, {"keys": [{**jwk, "kid": "k1", "alg": "ES256"}]})
        claim = PodClaim("podsvid", "agent", "uid-agent")
        return site.token(claim, account="podsvid-agent", namespace="podsvid", audience=audience)

    async def test(caller: Caller, clock: StepClock) -> None:
        site = caller.site
        await caller.signer.replica._offline.refresh()
        claim = site.pod("web")
        token, usual = site.token(claim, audience="other"), site.token(claim)
        assert (await caller.x509(claim, token)).chain
        assert await caller.refused(caller.x509(claim, usual)) == "POD_TOKEN_AUDIENCE"
        stranger = Caller(caller.signer, site.agent())
        assert await caller.refused(stranger.x509(claim, token)) == "AGENT_TOKEN_AUDIENCE"
        site.kube.denied.add(("create", REVIEWS))
        offline = Caller(caller.signer, signed(caller.agent))
        assert (await offline.x509(claim, signed(token))).chain
        assert await caller.refused(offline.x509(claim, signed(usual))) == "POD_TOKEN_AUDIENCE"

    asked(test, "--audience", "other", agent=agent)


def test_longer_lifetimes_are_recorded_before_they_are_signed() -> None:
    """And nothing is written for any other SVID."""

    async def test(caller: Caller, clock: StepClock) -> None:
        claim = caller.site.pod("web")
        token = caller.site.token(claim)

        def written() -> int:
            return sum("secrets" in path for _, path in caller.site.kube.writes)

        before = written()
        for _ in range(5):
            assert lifetime(await caller.x509(claim, token), clock) == timedelta(minutes=20)
            assert (await caller.jwt(claim, token))["exp"] - clock.at.timestamp() == 180
        assert written() == before
        assert state_of(caller.signer).longest("x509") == timedelta(minutes=30)
        assert lifetime(await caller.x509(claim, token, ttl_seconds=7200), clock) == timedelta(hours=2)
        assert (state_of(caller.signer).longest("x509"), written()) == (timedelta(hours=2), before + 1)
        caller.site.kube.put(f"{GROUP}/{CLUSTER}/p", {"spec": {"jwtTTL": "30m"}})
        async with asyncio.timeout(30):
            while (await caller.x509(claim, token)).policy != "p":
                await asyncio.sleep(0)
        assert (await caller.jwt(claim, token))["exp"] - clock.at.timestamp() == 1800
        assert (state_of(caller.signer).longest("jwt"), written()) == (timedelta(minutes=30), before + 2)

    flags = (
        "--x509-ttl",
        "20m",
        "--x509-pod-max-ttl",
        "3h",
        "--x509-max-ttl",
        "4h",
        "--jwt-ttl",
        "180s",
        "--jwt-max-ttl",
        "1h",
    )
    asked(test, *flags)


def test_lifetimes_names_and_what_is_in_a_jwt() -> None:
    async def test(caller: Caller, clock: StepClock) -> None:
        claim = caller.site.pod("web")
        token = caller.site.token(claim)
        for seconds, minutes in ((0, 20), (10, 5), (720, 12), (86400, 25)):
            answer = await caller.x509(claim, token, ttl_seconds=seconds)
            assert lifetime(answer, clock) == timedelta(minutes=minutes)
            leaf = certificates_from_der(answer.chain)[0]
            assert clock.at - leaf.not_valid_before_utc == timedelta(seconds=45)
        assert (await caller.x509(claim, token, dns_names=["web.example.test"])).chain
        assert await caller.refused(caller.x509(claim, token, dns_names=["x.example.test"])) == "DNS_NAME_DENIED"
        one, other = [await caller.jwt(claim, token) for _ in range(2)]
        assert one["exp"] - clock.at.timestamp() == 180
        assert one["iss"] == "https://issuer.test"
        assert one["jti"] != other["jti"]
        caller.site.kube.put(f"{GROUP}/{CLUSTER}/p", {"spec": {"jwtTTL": "1h", "x509TTL": "2s"}})
        async with asyncio.timeout(30):
            while (await caller.x509(claim, token)).policy != "p":
                await asyncio.sleep(0)
        assert (await caller.jwt(claim, token))["exp"] - clock.at.timestamp() == 420
        assert lifetime(await caller.x509(claim, token), clock) == timedelta(minutes=5)

    lives = ("--x509-ttl", "20m", "--x509-min-ttl", "5m", "--x509-max-ttl", "30m", "--jwt-ttl", "3m")
    tokens = ("--jwt-max-ttl", "7m", "--jwt-issuer", "https://issuer.test", "--jwt-jti", "true")
    more = ("--x509-pod-max-ttl", "25m", "--x509-backdate", "45s", "--dns-names", "{pod}.example.test")
    asked(test, *lives, *more, *tokens)


def test_a_nodes_rate_burst_and_mints_in_flight_are_not_mixed_up() -> None:
    async def test(caller: Caller, clock: StepClock) -> None:
        site = caller.site
        claim = site.pod("web")
        token = site.token(claim)
        for _ in range(3):
            await caller.x509(claim, token)
        assert await caller.refused(caller.x509(claim, token)) == "RATE_LIMITED"
        clock.pass_by(seconds=1)
        for _ in range(2):
            await caller.x509(claim, token)
        assert await caller.refused(caller.x509(claim, token)) == "RATE_LIMITED"
        clock.pass_by(seconds=5)
        create, asking, answer = site.kube.create, asyncio.Event(), asyncio.Event()
        slow = site.token(claim)

        async def hanging(path: str, body: Object) -> Object:
            if path == REVIEWS and body["spec"]["token"] == slow:
                asking.set()
                await answer.wait()
            return await create(path, body)

        site.kube.create = hanging  # type: ignore[method-assign]
        first = asyncio.ensure_future(caller.x509(claim, slow))
        await asking.wait()
        assert await caller.refused(caller.x509(claim, token)) == "BUSY"
        answer.set()
        assert (await first).chain

    asked(test, "--node-rate", "2", "--node-burst", "3", "--node-concurrency", "1")


def test_nothing_is_signed_by_what_was_known_before_the_outage_limit() -> None:
    async def test(caller: Caller, clock: StepClock) -> None:
        site = caller.site
        claim = site.pod("web")
        token = site.token(claim, life=7200)
        await caller.x509(claim, token)
        site.kube.denied.add(("get", "/api/v1/namespaces/podsvid/secrets"))
        clock.pass_by(minutes=10)
        assert (await caller.x509(claim, token)).chain
        clock.pass_by(seconds=1)
        assert await caller.refused(caller.x509(claim, token)) == "AUTHORITY_UNAVAILABLE"
        assert await caller.refused(caller.jwt(claim, token)) == "AUTHORITY_UNAVAILABLE"
        assert await caller.signer.replica.not_ready() == "not read yet: authorities"

    asked(test, "--outage-limit", "10m", agent=lambda site: site.agent(life=7200))


def test_agents_and_pods_go_on_for_the_outage_limit() -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    def signed(token: str) -> str:
        claims = jwt.decode(token, options={"verify_signature": False})
        return jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k1"})

    async def test(caller: Caller, clock: StepClock) -> None:
        site = caller.site
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        site.kube.put(JWKS, {"keys": [{**jwk, "kid": "k1", "alg": "ES256"}]})
        await caller.signer.replica._offline.refresh()
        claim = site.pod("web")
        token = site.token(claim, life=7200)
        await caller.x509(claim, token)
        offline = Caller(caller.signer, signed(caller.agent))
        site.kube.denied.add(("create", REVIEWS))
        assert (await offline.x509(claim, signed(token))).chain
        clock.pass_by(minutes=10)
        assert (await offline.x509(claim, signed(token))).chain
        clock.pass_by(seconds=1)
        assert await caller.refused(offline.x509(claim, signed(token))) == "API_SERVER_UNAVAILABLE"

    asked(test, "--outage-limit", "10m", agent=lambda site: site.agent(life=7200))


def test_a_message_has_a_bound() -> None:
    async def test(caller: Caller, clock: StepClock) -> None:
        claim = caller.site.pod("web")
        reviews = caller.site.reviews
        call = caller.x509(claim, caller.site.token(claim), csr=b"x" * MAX_MINT)
        assert await caller.refused(call) == "RESOURCE_EXHAUSTED"
        # The agent's own token was reviewed, and nothing in the message was looked at.
        assert caller.site.reviews <= reviews + 1

    asked(test)


async def served_certificate(address: str, before: int = 0) -> x509.Certificate:
    """What a new connection is shown, once it is another one than `before`."""
    while True:
        # The server of before may still take a connection or two, and drop them.
        with suppress(ConnectionError):
            found = await _shown(address)
            if found.serial_number != before:
                return found
        await asyncio.sleep(0)


async def _shown(address: str) -> x509.Certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(found)


def test_a_new_certificate_is_shown_in_time_and_open_streams_go_on() -> None:
    async def nothing() -> AsyncIterator[signer_pb2.WatchTrustRequest]:
        await asyncio.Event().wait()
        yield signer_pb2.WatchTrustRequest()

    async def test(caller: Caller, clock: StepClock) -> None:
        replica = caller.signer.replica
        before = await served_certificate(caller.signer.address)
        async with caller.channel() as channel, asyncio.timeout(60):
            watch = channel.stream_stream(
                f"/{SERVICE}/WatchTrust",
                signer_pb2.WatchTrustRequest.SerializeToString,
                signer_pb2.WatchTrustResponse.FromString,
            )
            stream = watch(nothing(), metadata=(("authorization", f"Bearer {caller.agent}"),))
            answers = aiter(stream)
            sequence = (await anext(answers)).sequence
            clock.pass_by(hours=12, minutes=1)
            await replica._telling.refresh()
            after = await served_certificate(caller.signer.address, before.serial_number)
            assert after.not_valid_after_utc > before.not_valid_after_utc
            found = replica._trust.current
            assert found is not None
            replica._trust.publish(found)
            assert (await anext(answers)).sequence == sequence
            stream.cancel()

    asked(test, agent=lambda site: site.agent(life=200_000), since=timedelta(hours=12, minutes=1))


def test_a_partners_bundle_that_hangs_keeps_no_signer_from_its_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def test(caller: Caller, clock: StepClock) -> None:
        claim = caller.site.pod("one")
        assert (
            await caller.x509(claim, caller.site.token(claim))
        ).spiffe_id == "spiffe://example.org/ns/default/sa/web"
        async with asyncio.timeout(60):
            await caller.signer.replica._telling.refresh()

    # What waits for the file would not come back.
    watch = threading.Timer(120, (tmp_path / "pipe").open, ["r+b"])
    watch.start()
    asked(test, "--federated-bundles", f"partner.test={tmp_path / 'pipe'}")
    assert watch.is_alive()
    watch.cancel()
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))
