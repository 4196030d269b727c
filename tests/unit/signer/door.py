"""A signer's service of real parts over the API server in memory; only the gRPC context is a small stand-in."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, cast

import jwt
import looptime
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from runtime.feed import Feed
from runtime.headers import Headers
from runtime.tracing import NO_FACTS, Span
from signer.attestation.accounts import Accounts
from signer.attestation.attestor import AttestationSettings, Attestor
from signer.attestation.pods import Pods
from signer.attestation.tokens import JWKS, OfflineTokens, TokenReviews
from signer.authority.acknowledgements import Agents
from signer.authority.state import AuthorityState
from signer.authority.trust import Broadcast
from signer.cluster.events import Events
from signer.cluster.witness import Witness
from signer.errors import Reason
from signer.front.agents import SERVICE, SignerService
from signer.front.audit import Audit
from signer.front.calls import Context
from signer.front.limits import NodeLimits
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.model import PodClaim, Sender, Standing
from signer.pb import signer_pb2
from signer.policy.policies import Policies
from signer.policy.policy import CLUSTER, GROUP, PolicySettings
from signer.workers.child import Child
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.signer_rig import AUDIENCE, DRIVER, Site
from tests.unit.signer.test_lifecycle import first
from tests.unit.signer.test_minting import SETTINGS, csr, roomy
from tests.unit.signer.workers import joined, only

OUTAGE = timedelta(minutes=10)
REQUEST = csr(KeyAlgorithm.EC_P256.generate())
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


class Aborted(Exception):
    """How a call ended."""

    def __init__(self, status: Any) -> None:
        super().__init__(status.details)
        self.code, self.message = status.code, status.details
        self.reason, self.domain, self.retry = "", "", None
        for key, value in status.trailing_metadata:
            if key == "grpc-status-details-bin":
                for detail in status_pb2.Status.FromString(value).details:
                    info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                    if detail.Unpack(info):
                        self.reason, self.domain = info.reason, info.domain
                    elif detail.Unpack(delay):
                        self.retry = delay.retry_delay.ToTimedelta()


class Call:
    """The one half of a ServicerContext that the service uses."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata
        # Seconds until its caller's deadline; None: it has none.
        self.left: float | None = None

    def time_remaining(self) -> float | None:
        return self.left

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "unix-abstract:00001"

    async def abort_with_status(self, status: Any) -> None:
        raise Aborted(status)

    async def abort(self, code: Any, details: str, trailing: Any = ()) -> None:
        """As a worker ends a call."""
        raise Aborted(SimpleNamespace(code=code, details=details, trailing_metadata=trailing))


def call(token: str | None, scheme: str = "Bearer") -> Context:
    metadata = [] if token is None else [("authorization", f"{scheme} {token}")]
    return cast(Context, Call(("user-agent", "test"), *metadata))


class FakeGate:
    """Implements Gate, and writes down what it is told."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.strikes = 0
        self.room = True
        self.rests: list[float] = []
        self.senders: dict[str, Sender] = {}

    def proven(self, peer: str, node: str) -> bool:
        self.nodes.append(node)
        return self.room

    def strike(self, peer: str) -> None:
        self.strikes += 1

    def used(self, peer: str, size: int) -> None:
        pass

    def rest(self, peer: str, seconds: float) -> None:
        self.rests.append(seconds)

    def sender(self, peer: str) -> Sender:
        return self.senders.get(peer, Sender(Standing.STRANGER, "192.0.2.1"))


class Spans:
    """Implements Tracing: what was said of each span."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, str]]] = []

    @contextmanager
    def span(self, name: str, facts: Mapping[str, str] = NO_FACTS, caller: Headers = ()) -> Iterator[Span]:
        said = dict(facts)
        self.said.append((name, said))
        yield Noted(said)

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ()


class Noted:
    """Implements Span."""

    def __init__(self, said: dict[str, str]) -> None:
        self._said = said

    def note(self, facts: Mapping[str, str]) -> None:
        self._said.update(facts)


class Door:
    """A service of real parts."""

    # Whether `x509` asks by a batch, of that one; and whether calls come by a worker.
    batched = remote = False

    def __init__(
        self,
        state: AuthorityState,
        rate: int = 1000,
        burst: int = 1000,
        concurrent: int = 1000,
        jwt_id: bool = False,
    ) -> None:
        self.site = Site()
        kube, clock = self.site.kube, self.site.clock
        self.state = state
        self.pods = Pods(kube, clock, drivers=frozenset({DRIVER}))
        self.policies = Policies(kube, PolicySettings(TrustDomain("example.org")), OUTAGE, clock)
        self.metrics = Metrics()
        self.witness = Witness(clock)
        self.offline = OfflineTokens(kube, AUDIENCE, self.witness, self.metrics.keys_read)
        self.attestor = Attestor(
            AttestationSettings("podsvid", "podsvid-agent", frozenset({DRIVER}), OUTAGE),
            TokenReviews(kube, AUDIENCE, self.offline, self.witness, told=self.metrics.token_checked),
            self.offline,
            self.pods,
            Accounts(kube),
            self.witness,
        )
        self.agents = Agents(kube, "podsvid", "one", clock)
        self.trust: Feed[Broadcast] = Feed()
        self.trust.publish(Broadcast.of(self.state, ()))
        self.events = Events(kube, "one", clock)
        self.spans = Spans()
        self.limits = NodeLimits(rate, burst, concurrent, clock)
        self.gate = FakeGate()
        self.service = SignerService(
            self.attestor,
            self.policies,
            Minting(lambda: self.state, replace(SETTINGS, jwt_id=jwt_id), clock),
            self.limits,
            self.gate,
            self.agents,
            self.trust,
            self.events,
            Audit(clock),
            self.metrics,
            self.witness,
            random.Random(1),
            self.spans,
        )
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._worker: Child | None = None

    async def x509(
        self, claim: PodClaim, pod_token: str, agent: str | None = None, **fields: Any
    ) -> signer_pb2.MintX509SVIDResponse:
        fields.setdefault("csr", REQUEST)
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=pod_token, **fields)
        agent = agent or self.site.agent()
        if not self.batched:
            return await self._mint_x509(said(request), call(agent))
        (answer,) = await self.batch(agent, request)
        if isinstance(answer, Aborted):
            raise answer
        return answer

    async def batch(
        self, agent: str, *requests: signer_pb2.MintX509SVIDRequest
    ) -> "list[signer_pb2.MintX509SVIDResponse | Aborted]":
        """What became of each, in the order of the requests; raises Aborted where the call was refused."""
        found: dict[int, signer_pb2.MintX509SVIDResponse | Aborted] = {}
        async for response in self._mint_x509s(said(batch_of(*requests)), call(agent)):
            assert response.outcomes
            for each in response.outcomes:
                assert each.item not in found
                found[each.item] = outcome(each)
        assert sorted(found) == list(range(len(requests)))
        return [found[item] for item in range(len(requests))]

    async def jwt(
        self, claim: PodClaim, pod_token: str, spiffe_id: str, *audiences: str, agent: str | None = None
    ) -> signer_pb2.MintJWTSVIDResponse:
        request = signer_pb2.MintJWTSVIDRequest(
            pod=pod(claim), pod_token=pod_token, spiffe_id=spiffe_id, audiences=audiences
        )
        messages, context = said(request), call(agent or self.site.agent())
        if not self.remote:
            return await self.service.mint_jwt(messages, context)
        return signer_pb2.MintJWTSVIDResponse.FromString(await only(self._remotely("MintJWTSVID", messages, context)))

    async def _mint_x509(self, messages: AsyncIterator[bytes], context: Context) -> signer_pb2.MintX509SVIDResponse:
        if not self.remote:
            return await self.service.mint_x509(messages, context)
        answer = await only(self._remotely("MintX509SVID", messages, context))
        return signer_pb2.MintX509SVIDResponse.FromString(answer)

    async def _mint_x509s(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[signer_pb2.MintX509SVIDsResponse]:
        if not self.remote:
            async for response in self.service.mint_x509s(messages, context):
                yield response
            return
        async for answer in self._remotely("MintX509SVIDs", messages, context):
            yield signer_pb2.MintX509SVIDsResponse.FromString(answer)

    def _remotely(self, method: str, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """As it comes about where a worker has the connection."""
        if self._worker is None:
            methods = {f"/{SERVICE}/{name}": each for name, each in self.service.methods().items()}
            self._worker, _ = joined(methods)
        return self._worker.call(f"/{SERVICE}/{method}", messages, context)

    def signed(self, token: str) -> str:
        """The same claims by the cluster's key, which is published."""
        jwk = {**jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True), "kid": "k1", "alg": "ES256"}
        self.site.kube.put(JWKS, {"keys": [jwk]})
        claims = jwt.decode(token, options={"verify_signature": False})
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": "k1"})

    def mints(self, kind: str, result: str) -> float:
        labels = {"kind": kind, "result": result}
        return self.metrics.registry.get_sample_value("podsvid_signer_mint_duration_seconds_count", labels) or 0.0

    def policy(self, name: str, **spec: Any) -> None:
        self.site.kube.put(f"{GROUP}/{CLUSTER}/{name}", {"metadata": {"name": name}, "spec": spec})

    async def told(self) -> None:
        """Wait until the mirrors have what was put last."""
        for _ in range(20):
            await asyncio.sleep(0)


def pod(claim: PodClaim) -> signer_pb2.Pod:
    return signer_pb2.Pod(namespace=claim.namespace, name=claim.name, uid=claim.uid)


def batch_of(*requests: signer_pb2.MintX509SVIDRequest) -> signer_pb2.MintX509SVIDsRequest:
    return signer_pb2.MintX509SVIDsRequest(items=[signer_pb2.MintX509SVIDItem(request=each) for each in requests])


def outcome(found: signer_pb2.MintX509SVIDOutcome) -> "signer_pb2.MintX509SVIDResponse | Aborted":
    if found.WhichOneof("outcome") == "answer":
        return found.answer
    return Aborted(rpc_status.to_status(status_pb2.Status.FromString(found.refusal)))


@pytest.fixture(params=["single", "batch", "single by a worker", "batch by a worker"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `Door.x509` ask by a call of its own, and by a batch; here, and through a worker."""
    monkeypatch.setattr(Door, "batched", request.param.startswith("batch"))
    monkeypatch.setattr(Door, "remote", request.param.endswith("worker"))


def at_the_door(test: Callable[[Door], Awaitable[None]], door: Callable[[AuthorityState], Door] = Door) -> None:
    state = roomy(first())
    followed(lambda: door(state), test)


class Following(Protocol):
    """What a door of either kind has running."""

    pods: Pods
    policies: Policies
    events: Events


_Found = TypeVar("_Found", bound=Following)


def followed(door: Callable[[], _Found], test: Callable[[_Found], Awaitable[None]]) -> None:
    """The test at a door that knows the cluster and hears of its changes, on a clock that jumps."""

    async def run() -> None:
        found = door()
        loops = [asyncio.ensure_future(each()) for each in (found.pods.run, found.policies.run, found.events.run)]
        await found.pods.wait_synced()
        await found.policies.wait_synced()
        try:
            await test(found)
        finally:
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


@contextmanager
def refused(reason: Reason) -> Iterator[list[Aborted]]:
    caught: list[Aborted] = []
    with pytest.raises(Aborted) as found:
        yield caught
    caught.append(found.value)
    assert found.value.reason == reason.value, found.value


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(each) for each in caplog.records if each.name == "podsvid.audit"]


async def nothing() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def said(*messages: Message) -> AsyncIterator[bytes]:
    """What comes on a call, and its end."""
    for each in messages:
        yield each.SerializeToString()
