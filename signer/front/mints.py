"""One SVID's way through the front: limits, proof, policy, signature, and the line that it leaves, however it ends."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, NoReturn, Protocol, TypeVar

from runtime import durations
from runtime.deadlines import Deadlines
from runtime.headers import Headers
from runtime.tracing import Tracing
from signer.attestation.attestor import Attestor
from signer.cluster.events import Events
from signer.errors import Reason
from signer.front.audit import Audit, facts_of
from signer.front.callers import Callers
from signer.front.calls import MINT_DEADLINE, Context, bounded, refused_by, still_wanted
from signer.front.limits import NodeLimits, Place
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.model import Agent, AttestedPod, Entitlement, PodClaim
from signer.pb import signer_pb2
from signer.policy.policies import Policies
from signer.wishes import stale_mounts

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
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Seconds; a century.
MAX_WISH = int(durations.MAX.total_seconds())
_Request = TypeVar("_Request", signer_pb2.MintX509SVIDRequest, signer_pb2.MintJWTSVIDRequest)
_Answer = TypeVar("_Answer")


class _Instant(Protocol):
    """A Timestamp of protobuf's."""

    seconds: int
    nanos: int


@dataclass(frozen=True, slots=True)
class Asked(Generic[_Request]):
    """What is asked for, a call of its own or an item of one: who asks is proven before there is a `place` for the
    request, which is not read without one.

    `started` is of `time.perf_counter`; `headers` say which span it belongs to.
    """

    context: Context
    started: float
    agent: Callable[[], Awaitable[Agent]]
    place: Callable[[Agent], AbstractContextManager[Place]]
    request: Callable[[Place], Awaitable[_Request]]
    headers: Headers


class Mints:
    """Mints for whoever asks, in whichever way: there is no other, so nothing of it can be missing in one of them."""

    def __init__(
        self,
        callers: Callers,
        attestor: Attestor,
        policies: Policies,
        minting: Minting,
        limits: NodeLimits,
        events: Events,
        audit: Audit,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._callers = callers
        self._attestor = attestor
        self._policies = policies
        self._minting = minting
        self._limits = limits
        self._events = events
        self._audit = audit
        self._metrics = metrics
        self._tracing = tracing
        self._patience = Deadlines(MINT_DEADLINE)

    async def x509(self, asked: Asked[signer_pb2.MintX509SVIDRequest]) -> signer_pb2.MintX509SVIDResponse:
        """An X.509-SVID. Raises Refused, of which everybody has been told but who asked."""

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
                    # The agent verifies it (agent/workload/issuer.py) before its workload has it.
                    verified_later=True,
                ),
            )
            stale = [each for each in map(stale_mounts, attested.pod.wishes) if each]
            federated = entitlement.federates_with
            answer = signer_pb2.MintX509SVIDResponse(
                spiffe_id=str(entitlement.spiffe_id),
                chain=issued.der,
                trust_sequence=issued.sequence,
                hint=entitlement.hint,
                federates_with=[domain.name for domain in federated or ()],
                federates_with_all=federated is None,
                notice="; ".join(filter(None, [issued.notice, *stale])),
                policy=entitlement.decided_by,
            )
            _write(answer.renew_from, issued.renewal.start)
            _write(answer.renew_until, issued.renewal.end)
            _write(answer.signed_at, issued.at)
            facts = facts_of(issued)
            claim = PodClaim(attested.pod.namespace, attested.pod.name, attested.pod.uid)
            if issued.clipped:
                facts["ttl_clipped"] = issued.clipped
                self._events.clipped(claim, issued.clipped)
            for each in stale:
                self._events.surprise(claim, "SubPathMount", each)
            self._audit.allowed("x509", attested, entitlement, facts, time.perf_counter() - asked.started)
            return answer

        return await self._mint("x509", asked, sign)

    async def jwt(self, asked: Asked[signer_pb2.MintJWTSVIDRequest]) -> signer_pb2.MintJWTSVIDResponse:
        """A JWT-SVID. Raises Refused, as `x509`."""

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
            _write(answer.renew_from, issued.renewal.start)
            _write(answer.renew_until, issued.renewal.end)
            facts = {"audiences": list(issued.svid.audiences), "not_after": issued.svid.expires_at.isoformat()}
            self._audit.allowed("jwt", attested, entitlement, facts, time.perf_counter() - asked.started)
            return answer

        return await self._mint("jwt", asked, sign)

    def refuse(
        self, kind: str, agent: Agent | None, claim: PodClaim | None, error: Exception, started: float
    ) -> NoReturn:
        """Tell everybody but who asked that nothing is minted, and why. Raises it: Refused."""
        refusal = refused_by(error)
        seconds = time.perf_counter() - started
        self._audit.refused(kind, agent, claim, refusal.reason, str(refusal), seconds)
        self._metrics.minted(kind, refusal.reason.value, seconds)
        if agent is not None and claim is None and refusal.reason is Reason.INVALID_REQUEST:
            self._metrics.turned_away("message")
        if refusal.reason in _TELL_POD and claim is not None:
            self._events.refused(claim, refusal.reason.value, str(refusal))
        raise refusal from None

    async def _mint(
        self,
        kind: str,
        asked: Asked[_Request],
        sign: Callable[[_Request, AttestedPod, Entitlement], Awaitable[_Answer]],
    ) -> _Answer:
        claim: PodClaim | None = None
        agent: Agent | None = None
        try:
            still_wanted(asked.context)
            with self._patience.one():
                agent = await asked.agent()
                facts = {"k8s.node.name": agent.node_name, "podsvid.svid": kind}
                # Only who has proved to be an agent gets into traces.
                with (
                    self._tracing.span("attest, decide, sign", facts, asked.headers) as span,
                    self._limits.slot(agent.node_uid),
                    asked.place(agent) as place,
                ):
                    request = await asked.request(place)
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
                    still_wanted(asked.context)
                    with self._tracing.span("sign"):
                        answer = await sign(request, attested, entitlement)
                    self._attestor.issued(attested, entitlement.spiffe_id)
                    self._callers.used(asked.context, request.ByteSize())
        except Exception as error:
            self.refuse(kind, agent, claim, error, asked.started)
        for surprise in entitlement.surprises:
            self._events.surprise(claim, "PolicySurprise", surprise)
        seconds = time.perf_counter() - asked.started
        self._metrics.minted(kind, "degraded" if attested.degraded else "ok", seconds)
        return answer


def _write(into: _Instant, at: datetime) -> None:
    # The library's own way looks at each part of the time by itself, which takes five times as long.
    since = at - EPOCH
    into.seconds, into.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1000


def _written(text: str, wished: timedelta | None) -> str:
    """A wish as its author wrote it, if that is what an agent says of it: it is shown to people. Else empty."""
    try:
        return text if wished is not None and durations.parse(text) == wished else ""
    except durations.InvalidDuration:
        return ""
