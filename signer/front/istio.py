"""Istio's CA API: each call of a proxy attested, entitled, signed and written to the audit log.

A proxy is told one text, and whether to come again. Why it was refused is in the audit log, and in an event of its pod.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import grpc

from runtime.deadlines import Deadlines
from runtime.giving_way import give_way, slices
from signer.attestation.proxies import Proxies
from signer.cluster.events import Events
from signer.errors import Reason, Refused
from signer.front.aborting import aborted
from signer.front.audit import Audit, facts_of
from signer.front.budget import PROXY_MINTS, PROXY_MINTS_OF_NODE
from signer.front.callers import Gate
from signer.front.calls import (
    MESSAGE_SECONDS,
    MINT_DEADLINE,
    Context,
    Messages,
    bearer,
    header,
    headers_of,
    refused_by,
    still_wanted,
    unread,
)
from signer.front.istio_request import IstioRequest, account_of, heard, read
from signer.front.limits import NodeLimits, Place, Slots
from signer.front.pace import Pace
from signer.front.statuses import ISTIO_CODES
from signer.metrics import Metrics
from signer.minting.minting import IssuedX509, Minting
from signer.model import SOON, BoundToken, Entitlement, LivePod, PodClaim, Sender, Standing
from signer.pb import istio_ca_pb2
from signer.policy.policies import Policies
from svid.certificates import to_pem
from svid.spiffeid import TrustDomain

SERVICE, METHOD = "istio.v1.auth.IstioCertificateService", "CreateCertificate"
KIND = "istio"
# All that a proxy is told of a refusal.
REFUSED = "no certificate: podsvid's audit log and the pod's events say why"
# Signed in a second, and at once, of all nodes: agents' mints have the rest of a replica's time.
RATE, BURST = 100.0, 200.0
# Of a pod that asks for itself only: a second, at once, in flight.
POD_RATE, POD_BURST, POD_AT_ONCE = 2, 20, 4
# Pods of a ztunnel's account that are decided at one go: a node may have hundreds.
OF_A_SLICE = 16
# Any pod may have itself refused: events that agents make for theirs always find more of the queue free.
EVENTS_BEHIND = 100
# Of many key stores' turns: all proxies together are one holder, as a node is.
_HOLDER = "istio"
# What was said about the caller's token: a stranger who goes on like this is sent away.
_NO_PROXY = frozenset(
    {
        Reason.POD_TOKEN_MISSING,
        Reason.POD_TOKEN_INVALID,
        Reason.POD_TOKEN_EXPIRED,
        Reason.POD_TOKEN_AUDIENCE,
        Reason.POD_TOKEN_UNBOUND,
        Reason.INVALID_REQUEST,
    }
)
# What a pod's event does not say: it is over soon, and nobody has to do anything.
_NOT_TOLD = frozenset(
    {
        Reason.RATE_LIMITED,
        Reason.BUSY,
        Reason.API_SERVER_UNAVAILABLE,
        Reason.AUTHORITY_UNAVAILABLE,
        Reason.AUTHORITY_KEY_STORE_UNAVAILABLE,
        Reason.INTERNAL,
        # The event would stand at another pod, of the same name.
        Reason.POD_UID_MISMATCH,
    }
)


@dataclass(slots=True)
class _Call:
    """What is known of a call so far, for its audit line."""

    started: float = field(default_factory=time.perf_counter)
    proven: BoundToken | None = None
    asked: str = ""
    # Bytes of it.
    token: int = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True, slots=True)
class _Decided:
    """`pod`: one for which it is issued; `pods`: how many these are."""

    pod: LivePod
    entitlement: Entitlement
    pods: int = 1


class IstioService:
    """Implements istio.v1.auth.IstioCertificateService.

    As the agents' service does it begins when a call's headers are there, and reads one message once these have proven
    a proxy. `of_node`, `of_pod`: what each of them may ask for.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        proxies: Proxies,
        policies: Policies,
        minting: Minting,
        of_node: NodeLimits,
        of_pod: NodeLimits,
        gate: Gate,
        pace: Pace,
        events: Events,
        audit: Audit,
        metrics: Metrics,
    ) -> None:
        self._trust_domain = trust_domain
        self._proxies = proxies
        self._policies = policies
        self._minting = minting
        self._of_node = of_node
        self._of_pod = of_pod
        self._gate = gate
        self._pace = pace
        self._events = events
        self._audit = audit
        self._metrics = metrics
        self._patience = Deadlines(MESSAGE_SECONDS)
        self._mints = Slots(PROXY_MINTS, lambda: asyncio.get_running_loop().time(), PROXY_MINTS_OF_NODE)

    def handlers(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            METHOD: grpc.stream_unary_rpc_method_handler(
                self.create_certificate, None, istio_ca_pb2.IstioCertificateResponse.SerializeToString
            )
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def create_certificate(self, messages: Messages, context: Context) -> istio_ca_pb2.IstioCertificateResponse:
        call = _Call()
        try:
            still_wanted(context)
            async with asyncio.timeout(MINT_DEADLINE):
                proven = call.proven = await self._proven(context, call)
                with self._own_room(proven) as place:
                    message = heard(await unread(messages, self._patience, place))
                    call.asked = message.asked
                    pod = await self._proxies.caller(proven, header(context, "clusterid"))
                    request = read(message, self._trust_domain)
                    if request.impersonated is None:
                        # Who is refused takes no turn of his neighbours'; a ztunnel has none of theirs.
                        await self._decided(proven, pod, request)
                    with self._nodes_room(proven):
                        # Before it is decided, again: what is decided is signed at once.
                        await self._pace.turn(self._share(proven))
                        await give_way()
                        still_wanted(context)
                        decided = await self._decided(proven, pod, request)
                        issued = await self._signed(decided, request)
                    self._gate.used(context.peer(), message.size + call.token)
        except Exception as error:
            await self._refuse(context, call, refused_by(error))
            raise  # never reached: it raises
        self._allow(call, pod, decided, issued)
        # Roots of all authorities, the next one's too: proxies read them here only, and take the last element for them.
        return istio_ca_pb2.IstioCertificateResponse(
            cert_chain=[
                *(to_pem([each]).decode() for each in issued.chain),
                issued.bundle.to_pem().decode(),
            ]
        )

    async def _proven(self, context: Context, call: _Call) -> BoundToken:
        """Raises Refused."""
        peer = context.peer()
        try:
            token = bearer(headers_of(context), _no_token())
            call.token = len(token)
            proven = await self._proxies.proven(token, self._sender(peer))
        except Refused as refusal:
            if refusal.reason in _NO_PROXY:
                self._gate.strike(peer)
            raise
        # By the pod: its neighbours on the node have connections of their own.
        if not self._gate.proven(peer, proven.pod_uid):
            raise Refused(Reason.BUSY, "this replica has as many proxies as it has memory for", retry_after=SOON)
        by_node = self._proxies.is_ztunnel(proven)
        wait = self._of_node.called(self._share(proven)) if by_node else self._of_pod.called(proven.pod_uid)
        if wait > 0.0:
            self._metrics.turned_away("istio_calls")
            self._gate.rest(peer, wait)
        return proven

    def _sender(self, peer: str) -> Sender:
        """Who brings a token: on this port nobody is an agent."""
        found = self._gate.sender(peer)
        return Sender(Standing.PROXY, found.name) if found.standing is Standing.AGENT else found

    def _share(self, proven: BoundToken) -> str:
        """Of whose turns it has one: its node's, of which a ztunnel has others than the pods there."""
        return f"ztunnel {proven.node_uid}" if self._proxies.is_ztunnel(proven) else proven.node_uid

    @contextmanager
    def _own_room(self, proven: BoundToken) -> Iterator[Place]:
        """A place for one call, of what is its caller's own. Raises Refused (RATE_LIMITED, BUSY)."""
        share = self._share(proven)
        with ExitStack() as held:
            if self._proxies.is_ztunnel(proven):
                held.enter_context(self._of_node.slot(share))
            else:
                held.enter_context(self._of_pod.slot(proven.pod_uid))
            yield held.enter_context(self._given(self._mints.take(proven.pod_uid, share)))

    @contextmanager
    def _nodes_room(self, proven: BoundToken) -> Iterator[None]:
        """What a pod has in common with its node's others: taken once it is attested, read and entitled, as by
        calls that say nothing or are refused a pod would take it from the others.

        Raises Refused (RATE_LIMITED, BUSY)."""
        if self._proxies.is_ztunnel(proven):
            yield
            return
        with self._of_node.slot(self._share(proven)):
            yield

    def _given(self, place: Place | None) -> Place:
        if place is None:
            self._metrics.turned_away("istio_mints")
            raise Refused(Reason.BUSY, "this replica has its fill of proxies' calls", retry_after=SOON)
        return place

    async def _decided(self, proven: BoundToken, pod: LivePod, request: IstioRequest) -> _Decided:
        """What is issued, for whom. Raises Refused."""
        wanted = request.impersonated
        if wanted is None:
            found = _Decided(pod, self._policies.entitlement(pod))
        else:
            account = account_of(wanted)
            assert account is not None
            pods = await self._proxies.placed(proven, account.namespace, account.name)
            entitlements: list[Entitlement] = []
            entitled = self._policies.entitlements()
            async for some in slices(pods, OF_A_SLICE):
                entitlements += map(entitled, some)
            found = _Decided(pods[0], _same(pods, entitlements), len(pods))
        given = found.entitlement.spiffe_id
        if account_of(given) is None:
            raise Refused(
                Reason.POLICY_UNUSABLE,
                f"policy {found.entitlement.decided_by} gives {given}, and Istio takes only "
                "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT: change its spiffeIDTemplate, or leave it out",
            )
        differing = [each for each in (*request.uris, *([str(wanted)] if wanted else ())) if each != str(given)]
        if differing:
            raise Refused(
                Reason.NOT_ENTITLED,
                f"the proxy wants {differing[0][:253]!r}, policy {found.entitlement.decided_by} gives {given}: it "
                "would refuse that; make both the same (meshConfig.trustDomain, the policy's spiffeIDTemplate)",
            )
        return found

    async def _signed(self, decided: _Decided, request: IstioRequest) -> IssuedX509:
        """Raises Refused."""
        pod, entitlement = decided.pod, decided.entitlement
        await self._minting.promise_x509(entitlement, request.ttl)
        return await self._minting.signed(
            "x509", _HOLDER, lambda: self._minting.x509(pod, entitlement, request.csr, request.ttl, ())
        )

    def _allow(self, call: _Call, caller: LivePod, decided: _Decided, issued: IssuedX509) -> None:
        facts = {"impersonated": call.asked, "pods": decided.pods, **facts_of(issued)}
        self._audit.proxied(caller, decided.entitlement, facts, call.seconds)
        if not call.asked:
            for surprise in decided.entitlement.surprises:
                self._events.surprise(_claim(caller), "PolicySurprise", surprise, EVENTS_BEHIND)
        self._metrics.minted(KIND, "ok", call.seconds)

    async def _refuse(self, context: Context, call: _Call, refusal: Refused) -> None:
        """Raises grpc.aio.AbortError."""
        reason, proven = refusal.reason, call.proven
        self._audit.unproxied(proven, call.asked, reason, str(refusal), call.seconds)
        self._metrics.minted(KIND, reason.value, call.seconds)
        if proven is not None and reason not in _NOT_TOLD:
            of = PodClaim(proven.namespace, proven.pod_name, proven.pod_uid)
            said = f"{call.asked}: {refusal}" if call.asked else str(refusal)
            self._events.refused(of, reason.value, said, EVENTS_BEHIND)
        await aborted(context.abort(ISTIO_CODES[reason], REFUSED), refusal)


def _same(pods: Sequence[LivePod], found: Sequence[Entitlement]) -> Entitlement:
    """What all of them get: a certificate of one is one of all. Raises Refused."""
    first = found[0]
    for pod, each in zip(pods, found, strict=True):
        if _kept(each) != _kept(first):
            raise Refused(
                Reason.POLICY_UNUSABLE,
                f"pods {pods[0]} and {pod} run as one service account on one node, where a ztunnel has one "
                f"certificate for both, and policies {first.decided_by} and {each.decided_by} give them different "
                f"ones ({first.spiffe_id}, {each.spiffe_id}): give them the same identity, x509TTL and keyAlgorithms, "
                "or run them as different accounts",
            )
    # Each name is one pod's own.
    return replace(first, dns_names=(), common_name="")


def _kept(entitlement: Entitlement) -> tuple[object, timedelta | None, object]:
    return entitlement.spiffe_id, entitlement.x509_ttl, entitlement.key_algorithms


def _claim(pod: LivePod) -> PodClaim:
    return PodClaim(pod.namespace, pod.name, pod.uid)


def _no_token() -> Refused:
    return Refused(Reason.POD_TOKEN_MISSING, "the call has no token: a proxy sends its service account's as bearer")
