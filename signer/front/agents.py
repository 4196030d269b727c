"""The signer's API for agents: each call attested, entitled, signed and written to the audit log."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from runtime.clock import Clock
from runtime.feed import Feed
from runtime.tracing import NO_TRACING, Tracing
from signer.attestation.attestor import Attestor
from signer.authority.acknowledgements import Agents
from signer.authority.trust import Broadcast
from signer.cluster.events import Events
from signer.errors import ERROR_DOMAIN, ApiUnavailable, Reason, Refused
from signer.front.audit import Audit
from signer.front.limits import NodeLimits
from signer.front.statuses import STATUS_CODES
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.model import Agent, AttestedPod, Entitlement, PodClaim
from signer.pb import signer_pb2
from signer.policy.policies import Policies
from svid.certificates import to_der

_log = logging.getLogger("podsvid.api")
SERVICE = "podsvid.signer.v1.Signer"
MAX_MESSAGE = 1024 * 1024
MAX_TOKEN = 16 * 1024
# Seconds.
MINT_DEADLINE = 30.0
# A stream ends while its agent's token is good still, and not later than this: agents spread over replicas again.
STREAM_LIFE = timedelta(minutes=30)
TOKEN_MARGIN = timedelta(seconds=60)
# Refusals that the pod's author or the cluster's operator can do something about: the pod's events say so.
_TELL_POD = frozenset(
    {
        Reason.POLICY_DENIED,
        Reason.POLICY_UNUSABLE,
        Reason.KEY_ALGORITHM_DENIED,
        Reason.KEY_WEAK,
        Reason.DNS_NAME_DENIED,
        Reason.POD_WITHOUT_DRIVER,
    }
)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Answer = TypeVar("_Answer")


class SignerService:
    """Implements podsvid.signer.v1.Signer."""

    def __init__(
        self,
        attestor: Attestor,
        policies: Policies,
        minting: Minting,
        limits: NodeLimits,
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
        self._agents = agents
        self._trust = trust
        self._events = events
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._rng = rng

    def handlers(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "MintX509SVID": grpc.unary_unary_rpc_method_handler(
                self.mint_x509,
                signer_pb2.MintX509SVIDRequest.FromString,
                signer_pb2.MintX509SVIDResponse.SerializeToString,
            ),
            "MintJWTSVID": grpc.unary_unary_rpc_method_handler(
                self.mint_jwt,
                signer_pb2.MintJWTSVIDRequest.FromString,
                signer_pb2.MintJWTSVIDResponse.SerializeToString,
            ),
            "WatchTrust": grpc.stream_stream_rpc_method_handler(
                self.watch_trust,
                signer_pb2.WatchTrustRequest.FromString,
                signer_pb2.WatchTrustResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def mint_x509(
        self, request: signer_pb2.MintX509SVIDRequest, context: Context
    ) -> signer_pb2.MintX509SVIDResponse:
        started = time.perf_counter()

        async def sign(attested: AttestedPod, entitlement: Entitlement) -> signer_pb2.MintX509SVIDResponse:
            wished = timedelta(seconds=min(max(request.ttl_seconds, 0), 10**9)) or None
            await self._minting.promise_x509(entitlement, wished)
            issued = self._minting.x509(attested.pod, entitlement, request.csr, wished, request.dns_names)
            leaf = issued.chain[0]
            federated = entitlement.federates_with
            answer = signer_pb2.MintX509SVIDResponse(
                spiffe_id=str(entitlement.spiffe_id),
                chain=to_der(issued.chain),
                trust_sequence=issued.sequence,
                hint=entitlement.hint,
                federates_with=[domain.name for domain in federated or ()],
                federates_with_all=federated is None,
                notice=issued.notice,
                policy=entitlement.decided_by,
            )
            answer.renew_from.FromDatetime(issued.renewal.start)
            answer.renew_until.FromDatetime(issued.renewal.end)
            facts = {
                "serial": f"{leaf.serial_number:x}",
                "key_algorithm": issued.key_algorithm.value,
                "not_before": leaf.not_valid_before_utc.isoformat(),
                "not_after": leaf.not_valid_after_utc.isoformat(),
            }
            self._audit.allowed("x509", attested, entitlement, facts, time.perf_counter() - started)
            return answer

        return await self._mint("x509", request.pod, request.pod_token, context, started, sign)

    async def mint_jwt(
        self, request: signer_pb2.MintJWTSVIDRequest, context: Context
    ) -> signer_pb2.MintJWTSVIDResponse:
        started = time.perf_counter()

        async def sign(attested: AttestedPod, entitlement: Entitlement) -> signer_pb2.MintJWTSVIDResponse:
            await self._minting.promise_jwt(entitlement)
            issued = self._minting.jwt(entitlement, request.spiffe_id, request.audiences)
            answer = signer_pb2.MintJWTSVIDResponse(token=issued.svid.token, reusable=issued.reusable)
            answer.renew_from.FromDatetime(issued.renewal.start)
            answer.renew_until.FromDatetime(issued.renewal.end)
            facts = {"audiences": list(issued.svid.audiences), "not_after": issued.svid.expires_at.isoformat()}
            self._audit.allowed("jwt", attested, entitlement, facts, time.perf_counter() - started)
            return answer

        return await self._mint("jwt", request.pod, request.pod_token, context, started, sign)

    async def _mint(
        self,
        kind: str,
        pod: signer_pb2.Pod,
        pod_token: str,
        context: Context,
        started: float,
        sign: Callable[[AttestedPod, Entitlement], Awaitable[_Answer]],
    ) -> _Answer:
        claim = PodClaim(pod.namespace, pod.name, pod.uid)
        agent: Agent | None = None
        try:
            async with asyncio.timeout(MINT_DEADLINE):
                agent = await self._attestor.agent(_bearer(context))
                facts = {"k8s.node.name": agent.node_name, "podsvid.svid": kind}
                # Only who has proved to be an agent gets into traces.
                with self._tracing.span("attest, decide, sign", facts, context.invocation_metadata() or ()) as span:
                    async with self._limits.slot(agent.node_uid):
                        with self._tracing.span("attest the pod"):
                            attested = await self._attestor.pod(agent, _bounded(pod_token), claim)
                        with self._tracing.span("decide"):
                            entitlement = self._policies.entitlement(attested.pod)
                            attested.check(entitlement.spiffe_id)
                        span.note(
                            {"podsvid.spiffe_id": str(entitlement.spiffe_id), "podsvid.policy": entitlement.decided_by}
                        )
                        with self._tracing.span("sign"):
                            answer = await sign(attested, entitlement)
                        self._attestor.issued(attested, entitlement.spiffe_id)
        except Exception as error:
            refusal = _refusal(error)
            seconds = time.perf_counter() - started
            self._audit.refused(kind, agent, claim, refusal.reason, str(refusal), seconds)
            self._metrics.minted(kind, refusal.reason.value, seconds)
            if refusal.reason in _TELL_POD:
                self._events.refused(claim, refusal.reason.value, str(refusal))
            await _abort(context, refusal)
            raise  # never reached: abort raises
        for surprise in entitlement.surprises:
            self._events.surprise(claim, "PolicySurprise", surprise)
        self._metrics.minted(kind, "degraded" if attested.degraded else "ok", time.perf_counter() - started)
        return answer

    async def watch_trust(
        self, requests: AsyncIterator[signer_pb2.WatchTrustRequest], context: Context
    ) -> AsyncIterator[signer_pb2.WatchTrustResponse]:
        agent: Agent | None = None
        try:
            agent = await self._attestor.agent(_bearer(context))
            handle = self._agents.connect(agent)
        except Exception as error:
            refusal = _refusal(error)
            self._audit.refused("trust", agent, None, refusal.reason, str(refusal), 0.0)
            await _abort(context, refusal)
            raise
        now = self._clock.now()
        # Spread: after a restart all streams began at the same time, and must not end so.
        life = min(STREAM_LIFE * self._rng.uniform(0.5, 1.0), agent.token_expires_at - TOKEN_MARGIN - now)
        reading = asyncio.ensure_future(self._read(agent, requests))
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
                    yield found.message()
                    waiting = asyncio.ensure_future(self._trust.wait_beyond(version))
        except TimeoutError:
            refusal = Refused(Reason.RECONNECT, "the stream's time is over; open it again")
            await _abort(context, refusal)
        finally:
            # Trust changes once in weeks: what waits for it would stay for each stream that ended until then.
            for each in (reading, waiting):
                each.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(reading, waiting, return_exceptions=True)
            self._agents.disconnect(handle)

    async def _read(self, agent: Agent, requests: AsyncIterator[signer_pb2.WatchTrustRequest]) -> None:
        async for request in requests:
            in_use = {each.authority_id: each.svids for each in request.in_use}
            self._agents.acknowledged(agent.node_name, request.acknowledged_sequence, in_use, request.digest)


def _bearer(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.strip().partition(" ")
            if scheme.lower() == "bearer" and token:
                return _bounded(token.strip())
    raise Refused(
        Reason.AGENT_TOKEN_MISSING,
        "the call has no agent token; set agent_token_file to a projected service account token of this audience",
    )


def _bounded(token: str) -> str:
    if len(token) > MAX_TOKEN:
        raise Refused(Reason.INVALID_REQUEST, f"a token is longer than {MAX_TOKEN} characters")
    return token


def _refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, ApiUnavailable):
        return Refused(Reason.API_SERVER_UNAVAILABLE, str(error), retry_after=timedelta(seconds=2))
    if isinstance(error, TimeoutError):
        return Refused(
            Reason.API_SERVER_UNAVAILABLE, f"not attested within {MINT_DEADLINE:g} s", retry_after=timedelta(seconds=2)
        )
    # The traceback's frames hold tokens only as values, which are not printed.
    _log.error("bug: a call failed unexpectedly", exc_info=error)
    return Refused(Reason.INTERNAL, "the signer failed; its log says more")


def _abort(context: Context, refusal: Refused) -> Awaitable[None]:
    details = any_pb2.Any()
    details.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason.value, domain=ERROR_DOMAIN))
    code: Any = STATUS_CODES[refusal.reason]
    status = status_pb2.Status(code=code.value[0], message=str(refusal), details=[details])
    if refusal.retry_after is not None:
        seconds = refusal.retry_after.total_seconds()
        delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return context.abort_with_status(rpc_status.to_status(status))
