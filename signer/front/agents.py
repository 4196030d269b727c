"""The signer's API for agents: each call attested, entitled, signed and written to the audit log."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from runtime import durations
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.stopping import end
from runtime.tracing import NO_TRACING, Tracing
from signer.attestation.attestor import Attestor
from signer.authority.acknowledgements import Agents
from signer.authority.trust import Broadcast
from signer.cluster.events import Events
from signer.errors import Reason, Refused
from signer.front.audit import Audit
from signer.front.budget import MAX_REPORT, MINTS, TRUST_STREAMS
from signer.front.calls import (
    MINT_DEADLINE,
    Context,
    Messages,
    abort,
    bearer,
    bounded,
    ended,
    only,
    parsed,
    refused_by,
    still_wanted,
)
from signer.front.limits import NodeLimits, Place, Slots
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.model import SOON, Agent, AttestedPod, Entitlement, PodClaim, Sender
from signer.pb import signer_pb2
from signer.policy.policies import Policies
from signer.wishes import stale_mounts
from svid.certificates import serial_of, to_der

_log = logging.getLogger("podsvid.api")
SERVICE = "podsvid.signer.v1.Signer"
# A stream ends while its agent's token is good still, and not later than this: agents spread over replicas again.
STREAM_LIFE = timedelta(minutes=30)
TOKEN_MARGIN = timedelta(seconds=60)
# Refusals that the pod's author or the cluster's operator can do something about: the pod's events say so. Only such as
# come after the pod was proven to be on the agent's node, or an agent would choose whose events it writes.
_TELL_POD = frozenset(
    {
        Reason.POLICY_DENIED,
        Reason.POLICY_UNUSABLE,
        Reason.KEY_ALGORITHM_DENIED,
        Reason.KEY_WEAK,
        Reason.DNS_NAME_DENIED,
        Reason.POD_WITHOUT_DRIVER,
        Reason.POD_OVERSIZED,
        Reason.POD_IS_MIRROR,
        Reason.NAMESPACE_FULL,
        Reason.ISSUANCE_REFUSED,
        Reason.JWT_DISABLED,
    }
)
# What was said about the caller's own token: a stranger who goes on like this is sent away.
_NO_AGENT = frozenset(
    {
        Reason.AGENT_TOKEN_MISSING,
        Reason.AGENT_TOKEN_INVALID,
        Reason.AGENT_TOKEN_EXPIRED,
        Reason.AGENT_TOKEN_AUDIENCE,
        Reason.AGENT_TOKEN_UNBOUND,
        Reason.AGENT_DENIED,
        Reason.INVALID_REQUEST,
    }
)
# Seconds; a century.
MAX_WISH = int(durations.MAX.total_seconds())
_Request = TypeVar("_Request", signer_pb2.MintX509SVIDRequest, signer_pb2.MintJWTSVIDRequest)
_Answer = TypeVar("_Answer")


def _stops() -> Refused:
    return Refused(Reason.RECONNECT, "this replica stops; ask another one")


def _written(text: str, wished: timedelta | None) -> str:
    """A wish as its author wrote it, if that is what an agent says of it: it is shown to people. Else empty."""
    try:
        return text if wished is not None and durations.parse(text) == wished else ""
    except durations.InvalidDuration:
        return ""


class Gate(Protocol):
    """The connections that calls come on, by the name that grpc gives them."""

    def proven(self, peer: str, node: str) -> bool:
        """An agent of the node with that uid is at the other end. False: there is no room for one more."""

    def strike(self, peer: str) -> None:
        """A call on it proved no agent."""

    def used(self, peer: str, size: int) -> None:
        """So many bytes of it were a message that is answered."""

    def rest(self, peer: str, seconds: float) -> None:
        """Nothing more of it is wanted for so long."""

    def sender(self, peer: str) -> Sender:
        """Who is at the other end, as far as that is proven."""
        ...


class SignerService:
    """Implements podsvid.signer.v1.Signer.

    Handlers begin when a call's headers are there. Its message is read once they have proven an agent: one; what
    comes after that is never read.
    """

    def __init__(
        self,
        attestor: Attestor,
        policies: Policies,
        minting: Minting,
        limits: NodeLimits,
        gate: Gate,
        agents: Agents,
        trust: Feed[Broadcast],
        events: Events,
        audit: Audit,
        metrics: Metrics,
        clock: Clock,
        rng: random.Random,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._tracing = tracing
        self._attestor = attestor
        self._policies = policies
        self._minting = minting
        self._limits = limits
        self._gate = gate
        self._mints = Slots(MINTS, lambda: asyncio.get_running_loop().time())
        self._streams = Slots(TRUST_STREAMS)
        self._agents = agents
        self._trust = trust
        self._events = events
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        # Of the trust streams that are open: who reads what their agents say.
        self._reading: set[asyncio.Future[None]] = set()
        self._stopping = False

    def end_streams(self) -> None:
        """Send agents on to another replica: for ever, this one stops."""
        self._stopping = True
        for each in self._reading:
            each.cancel()

    def handlers(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        # Messages stay bytes: they are looked at after the call's headers.
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "MintX509SVID": grpc.stream_unary_rpc_method_handler(
                self.mint_x509, None, signer_pb2.MintX509SVIDResponse.SerializeToString
            ),
            "MintJWTSVID": grpc.stream_unary_rpc_method_handler(
                self.mint_jwt, None, signer_pb2.MintJWTSVIDResponse.SerializeToString
            ),
            "WatchTrust": grpc.stream_stream_rpc_method_handler(
                self.watch_trust, None, signer_pb2.WatchTrustResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def mint_x509(self, messages: Messages, context: Context) -> signer_pb2.MintX509SVIDResponse:
        started = time.perf_counter()

        async def sign(
            request: signer_pb2.MintX509SVIDRequest, attested: AttestedPod, entitlement: Entitlement
        ) -> signer_pb2.MintX509SVIDResponse:
            wished = timedelta(seconds=min(max(request.ttl_seconds, 0), MAX_WISH)) or None
            await self._minting.promise_x509(entitlement, wished)
            issued = await self._minting.signed(
                "x509",
                attested.agent.node_uid,
                lambda: self._minting.x509(
                    attested.pod,
                    entitlement,
                    request.csr,
                    wished,
                    request.dns_names,
                    _written(request.ttl, wished),
                    attested.until,
                ),
            )
            leaf = issued.chain[0]
            stale = [each for each in map(stale_mounts, attested.pod.wishes) if each]
            federated = entitlement.federates_with
            answer = signer_pb2.MintX509SVIDResponse(
                spiffe_id=str(entitlement.spiffe_id),
                chain=to_der(issued.chain),
                trust_sequence=issued.sequence,
                hint=entitlement.hint,
                federates_with=[domain.name for domain in federated or ()],
                federates_with_all=federated is None,
                notice="; ".join(filter(None, [issued.notice, *stale])),
                policy=entitlement.decided_by,
            )
            answer.renew_from.FromDatetime(issued.renewal.start)
            answer.renew_until.FromDatetime(issued.renewal.end)
            answer.signed_at.FromDatetime(issued.at)
            facts = {
                "serial": serial_of(leaf),
                "key_algorithm": issued.key_algorithm.value,
                "not_before": leaf.not_valid_before_utc.isoformat(),
                "not_after": leaf.not_valid_after_utc.isoformat(),
            }
            claim = PodClaim(attested.pod.namespace, attested.pod.name, attested.pod.uid)
            if issued.clipped:
                facts["ttl_clipped"] = issued.clipped
                self._events.clipped(claim, issued.clipped)
            for each in stale:
                self._events.surprise(claim, "SubPathMount", each)
            self._audit.allowed("x509", attested, entitlement, facts, time.perf_counter() - started)
            return answer

        return await self._mint("x509", signer_pb2.MintX509SVIDRequest, messages, context, started, sign)

    async def mint_jwt(self, messages: Messages, context: Context) -> signer_pb2.MintJWTSVIDResponse:
        started = time.perf_counter()

        async def sign(
            request: signer_pb2.MintJWTSVIDRequest, attested: AttestedPod, entitlement: Entitlement
        ) -> signer_pb2.MintJWTSVIDResponse:
            await self._minting.promise_jwt(entitlement)
            issued = await self._minting.signed(
                "jwt",
                attested.agent.node_uid,
                lambda: self._minting.jwt(entitlement, request.spiffe_id, request.audiences, attested.until),
            )
            answer = signer_pb2.MintJWTSVIDResponse(token=issued.svid.token, reusable=issued.reusable)
            answer.renew_from.FromDatetime(issued.renewal.start)
            answer.renew_until.FromDatetime(issued.renewal.end)
            facts = {"audiences": list(issued.svid.audiences), "not_after": issued.svid.expires_at.isoformat()}
            self._audit.allowed("jwt", attested, entitlement, facts, time.perf_counter() - started)
            return answer

        return await self._mint("jwt", signer_pb2.MintJWTSVIDRequest, messages, context, started, sign)

    async def _mint(
        self,
        kind: str,
        form: type[_Request],
        messages: Messages,
        context: Context,
        started: float,
        sign: Callable[[_Request, AttestedPod, Entitlement], Awaitable[_Answer]],
    ) -> _Answer:
        claim: PodClaim | None = None
        agent: Agent | None = None
        try:
            still_wanted(context)
            async with asyncio.timeout(MINT_DEADLINE):
                agent = await self._proven(context)
                facts = {"k8s.node.name": agent.node_name, "podsvid.svid": kind}
                # Only who has proved to be an agent gets into traces.
                with self._tracing.span("attest, decide, sign", facts, context.invocation_metadata() or ()) as span:
                    async with self._limits.slot(agent.node_uid):
                        with self._slot(self._mints, "mints", agent.node_uid) as place:
                            request = await only(form, messages, place)
                            claim = PodClaim(request.pod.namespace, request.pod.name, request.pod.uid)
                            with self._tracing.span("attest the pod"):
                                attested = await self._attestor.pod(agent, bounded(request.pod_token), claim)
                            with self._tracing.span("decide"):
                                entitlement = self._policies.entitlement(attested.pod)
                                attested.check(entitlement.spiffe_id)
                            span.note(
                                {
                                    "podsvid.spiffe_id": str(entitlement.spiffe_id),
                                    "podsvid.policy": entitlement.decided_by,
                                }
                            )
                            still_wanted(context)
                            with self._tracing.span("sign"):
                                answer = await sign(request, attested, entitlement)
                            self._attestor.issued(attested, entitlement.spiffe_id)
                            self._gate.used(context.peer(), request.ByteSize())
        except Exception as error:
            refusal = refused_by(error)
            seconds = time.perf_counter() - started
            self._audit.refused(kind, agent, claim, refusal.reason, str(refusal), seconds)
            self._metrics.minted(kind, refusal.reason.value, seconds)
            if agent is not None and claim is None and refusal.reason is Reason.INVALID_REQUEST:
                self._metrics.turned_away("message")
            if refusal.reason in _TELL_POD and claim is not None:
                self._events.refused(claim, refusal.reason.value, str(refusal))
            await abort(context, refusal)
            raise  # never reached: abort raises
        for surprise in entitlement.surprises:
            self._events.surprise(claim, "PolicySurprise", surprise)
        self._metrics.minted(kind, "degraded" if attested.degraded else "ok", time.perf_counter() - started)
        return answer

    async def _proven(self, context: Context) -> Agent:
        """The agent that a call's headers prove. Raises Refused."""
        peer = context.peer()
        try:
            agent = await self._attestor.agent(bearer(context), self._gate.sender(peer))
        except Refused as refusal:
            if refusal.reason in _NO_AGENT:
                self._gate.strike(peer)
            raise
        if not self._gate.proven(peer, agent.node_uid):
            raise Refused(Reason.BUSY, "this replica has as many agents as it has memory for", retry_after=SOON)
        wait = self._limits.called(agent.node_uid)
        if wait > 0.0:
            self._metrics.turned_away("calls")
            self._gate.rest(peer, wait)
        return agent

    @contextmanager
    def _slot(self, slots: Slots, what: str, holder: str = "") -> Iterator[Place]:
        """One of the replica's. Raises Refused (BUSY)."""
        with slots.one(holder) as place:
            if place is None:
                self._metrics.turned_away(what)
                raise Refused(Reason.BUSY, f"this replica has its fill of {what}", retry_after=SOON)
            yield place

    async def watch_trust(self, messages: Messages, context: Context) -> AsyncIterator[signer_pb2.WatchTrustResponse]:
        agent: Agent | None = None
        place = ExitStack()
        try:
            agent = await self._proven(context)
            if self._stopping:
                raise _stops()
            place.enter_context(self._slot(self._streams, "streams"))
            handle = self._agents.connect(agent)
        except Exception as error:
            refusal = refused_by(error)
            self._audit.refused("trust", agent, None, refusal.reason, str(refusal), 0.0)
            place.close()
            await abort(context, refusal)
            raise
        now = self._clock.now()
        # Spread: after a restart all streams began at the same time, and must not end so.
        life = min(STREAM_LIFE * self._rng.uniform(0.5, 1.0), agent.token_expires_at - TOKEN_MARGIN - now)
        reading = asyncio.ensure_future(self._read(agent, messages))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        waiting = asyncio.ensure_future(self._trust.wait_beyond(0))
        try:
            async with asyncio.timeout(max(life.total_seconds(), 1.0)):
                while not reading.done():
                    await asyncio.wait([waiting, reading], return_when=asyncio.FIRST_COMPLETED)
                    if not waiting.done():
                        break
                    version = waiting.result()
                    found = self._trust.current
                    assert found is not None
                    yield found.message
                    waiting = asyncio.ensure_future(self._trust.wait_beyond(version))
            if self._stopping:
                await abort(context, _stops())
            await ended(reading, context)
        except TimeoutError:
            refusal = Refused(Reason.RECONNECT, "the stream's time is over; open it again")
            await abort(context, refusal)
        finally:
            # Trust changes once in weeks: what waits for it would stay for each stream that ended until then.
            try:
                await end((reading, waiting))
            finally:
                self._agents.disconnect(handle)
                place.close()

    async def _read(self, agent: Agent, messages: Messages) -> None:
        """Take what an agent says, as fast as a node may speak; what comes faster stays where it is. Raises Refused."""
        async for message in messages:
            if len(message) > MAX_REPORT:
                self._metrics.turned_away("report")
                raise Refused(Reason.INVALID_REQUEST, f"a message of WatchTrust is longer than {MAX_REPORT} bytes")
            await self._limits.heard(agent.node_uid)
            request = parsed(signer_pb2.WatchTrustRequest, message)
            in_use = {each.authority_id: each.svids for each in request.in_use}
            self._agents.acknowledged(agent.node_name, request.acknowledged_sequence, in_use, request.digest)
