"""The admin socket: what the authorities' state is, and the steps a person asks for (`podsvid authority`)."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from runtime.clock import Clock
from signer.admin_api import KINDS, SERVICE
from signer.attestation import fitness
from signer.attestation.pods import Pods
from signer.authority.advice import to_do
from signer.authority.followers import warnings
from signer.authority.knowledge import Acks
from signer.authority.revocation import is_trusted
from signer.authority.revoked import key_id_of
from signer.authority.rotation import Rotation
from signer.authority.slots import BOTH, JwtSlot, Stage, X509Slot
from signer.authority.state import Abandoned, AuthorityState
from signer.authority.timing import FORCED_GRACE
from signer.errors import Reason, Refused, SignerError
from signer.front.istio_request import account_of
from signer.pb import admin_pb2
from signer.policy.policies import ALLOWED, Policies
from signer.publishing.documents import Documents, Publication
from svid.acceptance import leads_to
from svid.spiffeid import SpiffeId

_log = logging.getLogger("podsvid.admin")
# Seconds between looks at what has no feed: who has acknowledged, and the time.
REFRESH_SECONDS = 1.0
MAX_NODES = 20
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_KIND_NUMBERS = {name: kind for kind, name in KINDS.items()}


class AdminService:
    """Implements podsvid.signer.v1.Admin."""

    def __init__(
        self,
        rotation: Rotation,
        policies: Policies,
        pods: Pods,
        drivers: frozenset[str],
        clock: Clock,
        publication: Publication,
        *,
        namespace: str,
        proxies: bool = False,
    ) -> None:
        """`namespace`: of the signers' pods."""
        self._rotation = rotation
        self._policies = policies
        self._pods = pods
        self._drivers = drivers
        self._clock = clock
        self._publication = publication
        self._namespace = namespace
        self._proxies = proxies

    def handlers(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.watch, admin_pb2.WatchRequest.FromString, admin_pb2.AuthorityStatus.SerializeToString
            ),
            "Step": grpc.unary_unary_rpc_method_handler(
                self.step, admin_pb2.StepRequest.FromString, admin_pb2.StepResponse.SerializeToString
            ),
            "Explain": grpc.unary_unary_rpc_method_handler(
                self.explain, admin_pb2.ExplainRequest.FromString, admin_pb2.ExplainResponse.SerializeToString
            ),
            "Publish": grpc.unary_unary_rpc_method_handler(
                self.publish, admin_pb2.PublishRequest.FromString, admin_pb2.PublishResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def watch(
        self, request: admin_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[admin_pb2.AuthorityStatus]:
        last: admin_pb2.AuthorityStatus | None = None
        while True:
            found = self.status()
            if found is not None and found != last:
                last = found
                yield found
            await asyncio.sleep(REFRESH_SECONDS)

    async def step(self, request: admin_pb2.StepRequest, context: Context) -> admin_pb2.StepResponse:
        kind = KINDS.get(request.kind)
        action = admin_pb2.Action.Name(request.action).removeprefix("ACTION_").lower()
        if request.kind == admin_pb2.KIND_BOTH and action == "rotate" and request.forced:
            kind = BOTH
        _log.info(
            "step asked for",
            extra={"action": action, "kind": kind, "authority": request.authority_id, "forced": request.forced},
        )
        if kind is None or action == "unspecified":
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "say which kind (x509 or jwt; a forced rotation can be of both) and which action",
            )
        assert kind is not None
        try:
            message = await self._rotation.step(action, kind, request.authority_id, forced=request.forced)
        except SignerError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{error.reason}: {error}")
        state = self._rotation.state
        return admin_pb2.StepResponse(message=message, warnings=warnings(state) if state is not None else ())

    async def explain(self, request: admin_pb2.ExplainRequest, context: Context) -> admin_pb2.ExplainResponse:
        pod = self._pods.named(request.namespace, request.pod)
        if pod is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no pod {request.namespace}/{request.pod}")
        assert pod is not None
        volume = bool(pod.drivers & self._drivers)
        by_kubelet = pod.pod_certificate and not volume
        by_proxies = self._proxies and not volume and not pod.pod_certificate
        try:
            if by_proxies:
                fitness.check_any(pod)
            elif by_kubelet:
                fitness.check_certified(pod)
            else:
                fitness.check(pod, self._drivers)
        except Refused as error:
            # No policy is asked: of some such pods not even the labels are known.
            return admin_pb2.ExplainResponse(outcome=f"refused: {error.reason}: {error}")
        found = self._policies.explain(pod)
        of_istio = self._proxies and _is_of_istio(found.spiffe_id)
        if by_proxies and found.outcome == ALLOWED and not of_istio:
            found = replace(
                found,
                outcome=f"refused: {Reason.POLICY_UNUSABLE}: the pod has no csi volume, and Istio's proxies take only "
                f"spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, which {found.spiffe_id} is not",
                spiffe_id="",
            )
        return admin_pb2.ExplainResponse(
            outcome=found.outcome,
            policy=found.policy,
            spiffe_id=found.spiffe_id if found.outcome == ALLOWED else "",
            entitled="" if found.outcome == ALLOWED else found.spiffe_id,
            matched=found.matched,
            not_matched=[
                admin_pb2.NotMatched(
                    policy=each.policy, because=each.because, differences=each.differences, elsewhere=each.elsewhere
                )
                for each in found.not_matched
            ],
            lost=[admin_pb2.Lost(policy=name, because=why) for name, why in found.lost],
            # Of a volume's ttl there is nothing to say where it has none of a driver's.
            x509_ttl=found.x509_ttl if volume else "",
            x509_ttl_most=found.x509_ttl_most if volume else "",
            ttl_clipped=found.clipped,
            certificate_ttl=found.certificate_ttl,
            proxy_ttl=found.x509_ttl_most if of_istio else "",
            subject=found.subject,
        )

    async def publish(self, request: admin_pb2.PublishRequest, context: Context) -> admin_pb2.PublishResponse:
        state, by = self._rotation.state, self._publication
        found = None if state is None else Documents.of(state.bundle, by)
        if state is None or found is None:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "there is no authority yet; `podsvid authority show` says what is awaited"
            )
        assert state is not None
        assert found is not None
        return admin_pb2.PublishResponse(
            trust_domain=state.trust_domain.name,
            sequence=found.sequence,
            spiffe=found.bundle.decode(),
            pem=state.bundle.to_pem().decode(),
            issuer=by.issuer.url if by.issuer else "",
            jwks_uri=by.issuer.jwks_uri if by.issuer else "",
            openid_configuration=(found.configuration or b"").decode(),
            jwks=(found.keys or b"").decode(),
            token_issuer=by.token_issuer,
        )

    def _elsewhere(self) -> list[str]:
        """For people: who is to be asked for what this replica does not know."""
        leader = self._rotation.leader_name
        if not leader or self._rotation.seat.leading():
            return []
        command = f"kubectl -n {self._namespace} exec {leader} -- podsvid authority show"
        return [f"{leader} leads and takes the steps; errors of these are shown in its pod alone: {command}"]

    def status(self) -> admin_pb2.AuthorityStatus | None:
        """The present state; None before this replica has read it."""
        state = self._rotation.state
        if state is None:
            return None
        acks = self._rotation.acks(state)
        waiting = sorted(acks.waiting)
        answer = admin_pb2.AuthorityStatus(
            trust_domain=state.trust_domain.name,
            sequence=state.sequence,
            leader=self._rotation.leader_name,
            agents=len(self._rotation.live_nodes()),
            agents_waiting=len(waiting),
            waiting_nodes=waiting[:MAX_NODES],
            next=[*self._rotation.next_steps(state), *self._elsewhere()],
            rotating_x509=_rotating(state, "x509"),
            rotating_jwt=_rotating(state, "jwt"),
            reissuing_x509=_reissuing(state, "x509", acks, self._clock.now()),
            reissuing_jwt=_reissuing(state, "jwt", acks, self._clock.now()),
            abandoned=[_abandoned(each) for each in state.abandoned],
            to_do=to_do(state, self._clock.now()),
            unknown=acks.untimely or acks.unknown,
            warnings=warnings(state),
        )
        for wait in self._rotation.awaited(state):
            if self._clock.now() < wait.until:
                one = answer.awaited.add(kind=_KIND_NUMBERS[wait.kind], id=wait.authority_id, audience=wait.audience)
                one.until.FromDatetime(wait.until)
        if state.request is not None:
            said = self._rotation.requests.notes(state)
            asked = admin_pb2.Requested(
                id=state.request.id, at=state.request.at, submitted=state.request.handle is not None, said=said
            )
            asked.since.FromDatetime(state.request.asked_at)
            answer.requested_x509.CopyFrom(asked)
        for root, since, leaves_at in _roots(state):
            _root(answer, state, root, since, leaves_at)
        for each in state.revoked:
            if each.in_force:
                told = answer.revoked_roots.add(id=each.id, key_id=each.key_id, subject=each.subject)
                told.asked_at.FromDatetime(each.asked_at)
                told.trusted = is_trusted(state, each)
        for slot in state.x509:
            added = self._slot(answer, admin_pb2.KIND_X509, slot)
            added.not_after.FromDatetime(slot.authority.not_after)
            if acks.in_use is not None and not acks.unknown:
                added.svids, added.svids_known = acks.in_use.get(slot.id, 0), True
        for jwt_slot in state.jwt:
            self._slot(answer, admin_pb2.KIND_JWT, jwt_slot)
        return answer

    def _slot(
        self, answer: admin_pb2.AuthorityStatus, kind: "admin_pb2.Kind", slot: X509Slot | JwtSlot
    ) -> admin_pb2.Authority:
        added: admin_pb2.Authority = answer.authorities.add(kind=kind, id=slot.id, stage=slot.stage.value)
        added.prepared_at.FromDatetime(slot.prepared_at)
        if slot.activated_at is not None:
            added.activated_at.FromDatetime(slot.activated_at)
        if slot.ends_at is not None:
            added.leaves_at.FromDatetime(slot.ends_at)
        return added


def _is_of_istio(spiffe_id: str) -> bool:
    """Whether Istio's proxies take it."""
    return bool(spiffe_id) and account_of(SpiffeId.parse(spiffe_id)) is not None


def _rotating(state: AuthorityState, kind: str) -> bool:
    slots: tuple[X509Slot | JwtSlot, ...] = state.x509 if kind == "x509" else state.jwt
    asked = kind == "x509" and state.request is not None
    return asked or len(slots) > 1 or state.wanted(kind)


def _reissuing(state: AuthorityState, kind: str, acks: Acks, now: datetime) -> bool:
    if state.find(kind, Stage.PREPARED) is not None or state.wanted(kind):
        return True
    if kind != "x509":
        return False
    known = acks.in_use if acks.all_have_it else None
    return any(
        now < each.end + FORCED_GRACE and (known is None or known.get(each.authority_id, 0) > 0)
        for each in state.directives
        if each.authority_id != state.active_x509_id
    )


def _roots(state: AuthorityState) -> Iterator[tuple[x509.Certificate, datetime | None, datetime | None]]:
    """Those of the CA above, since when it names each, and when that leaves."""
    named = {each.certificate: each for each in state.roots}
    own = {slot.authority.chain[0] for slot in state.x509}
    for root in state.bundle.x509_authorities:
        if root in named:
            yield root, named[root].since, named[root].ends_at
        elif root not in own:
            yield root, None, None


def _root(
    answer: admin_pb2.AuthorityStatus,
    state: AuthorityState,
    root: x509.Certificate,
    since: datetime | None,
    leaves_at: datetime | None,
) -> None:
    told = answer.upstream_roots.add(
        id=root.fingerprint(hashes.SHA256()).hex(),
        subject=root.subject.rfc4514_string(),
        key_id=key_id_of(root),
        authorities=[slot.id for slot in state.x509 if leads_to(slot.authority, [root])],
    )
    told.not_after.FromDatetime(root.not_valid_after_utc)
    if since is not None:
        told.since.FromDatetime(since)
    if leaves_at is not None:
        told.leaves_at.FromDatetime(leaves_at)


def _abandoned(each: Abandoned) -> admin_pb2.Abandoned:
    told = admin_pb2.Abandoned(kind=_KIND_NUMBERS[each.kind], id=each.authority_id, replaced=each.replaced)
    told.asked_at.FromDatetime(each.asked_at)
    for name in ("left_at", "svids_end", "certified_until"):
        instant: datetime | None = getattr(each, name)
        if instant is not None:
            getattr(told, name).FromDatetime(instant)
    return told


async def serve_admin(service: AdminService, path: Path) -> grpc.aio.Server:
    """Serve at `path` so that only its owner can open it. Raises OSError."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handlers(),))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    # From the first moment: who connected before a change of mode would stay connected after it.
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    await server.start()
    return server
