"""The node's admin socket: what the agent does for each pod, for root on this node. No key, token or bundle leaves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import grpc.aio

from agent.admin_api import SERVICE
from agent.admin_socket import ROTATE_SECONDS
from agent.pb import node_admin_pb2 as pb
from agent.servers.protocol import Use
from agent.workload.problems import Problem
from agent.workload.registry import WorkloadRegistry
from agent.workload.workload import Workload
from csi.errors import CsiError, OperationPending
from csi.model import PodRef
from csi.registration import serve_private
from csi.request import POD_NAME, POD_NAMESPACE, POD_UID, SERVICE_ACCOUNT
from runtime.blocking import Blocking

_log = logging.getLogger("podsvid.admin")
_Context = grpc.aio.ServicerContext[Any, Any]
_PUBLISH = "/csi.v1.Node/NodePublishVolume"
# kubelet publishes again about once a minute, with a token that is good for longer.
_NO_TOKEN = (
    "an SVID that is there is kept; kubelet brings a token with its next publish, about once a minute; if it does not, "
    "look at the kubelet's log and at the CSIDriver object"
)
_AGENT_TOKEN = (
    "it is tried again by itself, and until then no pod of this node gets or renews an SVID; the token is the "
    "projected volume of the DaemonSet podsvid-agent: its audience is to be the signer's setting audience, its service "
    "account the signer's agent_namespace and agent_service_account, and the cluster the signer's own"
)
_TURNED_AWAY = (
    "it is tried again by itself; look at which pods of this node start all the time, and then at the signer's "
    "settings node_rate, node_burst and node_concurrency"
)
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "AGENT_TOKEN_MISSING": _AGENT_TOKEN,
        "AGENT_TOKEN_INVALID": _AGENT_TOKEN,
        "AGENT_TOKEN_EXPIRED": _AGENT_TOKEN,
        "AGENT_TOKEN_AUDIENCE": _AGENT_TOKEN,
        "AGENT_TOKEN_UNBOUND": _AGENT_TOKEN,
        "AGENT_DENIED": _AGENT_TOKEN,
        "API_SERVER_UNAVAILABLE": "it is tried again by itself; SVIDs that are there are renewed up to the signer's "
        "outage_limit; look at the API server, and at the ClusterRole of podsvid-signer",
        "AUTHORITY_UNAVAILABLE": "it is tried again by itself; look at the signers' logs and at the Secret "
        "podsvid-authority",
        "NAMESPACE_FULL": "kubelet tries again by itself; delete pods of the namespace, finished ones first, or raise "
        "the signer's pods_per_namespace",
        "RATE_LIMITED": _TURNED_AWAY,
        "BUSY": "it is tried again by itself; the message says whether this node has too many mints in flight (the "
        "signer's node_concurrency), the replica is full (more replicas), or many callers bring bad "
        "tokens (its audit log)",
        "POD_TOKEN_MISSING": _NO_TOKEN,
        "POD_TOKEN_EXPIRED": f"{_NO_TOKEN}; for a pod that is being deleted it brings none any more, and SVIDs go on "
        "to the end of its grace period",
        "SIGNER_UNREACHABLE": "it is tried again by itself, and SVIDs are kept until they end; look at the signer's "
        "pods, its Service and network policies",
        "CLOCKS_DIFFER": "it is tried again by itself, and the SVID is kept until it ends; the message has both times: "
        "set the node's clock right, or the signer's",
        "TRUST_BEHIND": "it is tried again by itself; if it goes on, the signer's replicas disagree: see their logs",
        "POLICY_DENIED": "a policy denies the pod, or none gives it an identity (the signer's part of podsvid explain "
        "says which); its socket hands out no SVID any more, bundles go on, files keep theirs until it ends; it is "
        "tried again by itself",
        "WRITE_FAILED": "it is tried again by itself, and the files hold the SVID before; look at the space and inodes "
        "of the volume's directory (df, df -i)",
        "IDENTITY_UNAVAILABLE": "kubelet tries again by itself; look at the signer",
        "POD_FULL": "one volume can be mounted by all containers of a pod; the agent's setting pod_volumes says how "
        "many a pod may have",
        "NODE_FULL": "kubelet tries again by itself; the agent's settings volumes and volumes_memory, and its memory "
        "limit, say how much fits (docs: operations, Bounds of a node)",
        "NODE_BUSY": "kubelet tries again by itself; podsvid_queue_length says for what, and pods' events who asks "
        "for so much",
        "KEYS_BUSY": "it is tried again by itself; take ec-p256, or an RSA key in fewer volumes, or raise key_threads "
        "where the node has cores for it",
        "UNDO_FAILED": "kubelet tries again by itself; look at the mounts below the pod's directory",
        "SOCKET_QUARANTINED": "its clients reconnected once, and SVIDs are served and renewed; look at what the pod "
        "does on its socket (podsvid node explain has its streams); it goes back after ten quiet minutes",
        "SOCKET_CLOSED": "SVIDs in files are renewed; it is opened again by itself, later each time; look at what the "
        "pod does on its socket: a client library that calls in a loop, or a program that was taken over",
        "HOST_UNANSWERED": "kubelet tries again by itself; look at the node's mounts (a network file system that "
        "hangs) and at its disk",
        "MOUNT_NOT_SHARED": "set mountPropagation: Bidirectional on the agent's mount of kubelet's pods directory",
        "VOLUME_FAILED": "look at the agent's log and at kubelet's directory on the node",
    }
)
# Where the volume was never published: there is no socket, no SVID and no file of which something could be said.
ADVICE_BEFORE: Mapping[str, str] = MappingProxyType(
    {
        "POLICY_DENIED": "the pod starts when a policy gives it an identity and none denies it: change the policy (the "
        "signer's part of podsvid explain names it), or the pod's labels; kubelet tries again by itself",
        "CLOCKS_DIFFER": "kubelet tries again by itself; the message has both times: set the node's clock right, or "
        "the signer's",
        "SIGNER_UNREACHABLE": "kubelet tries again by itself; look at the signer's pods, its Service and network "
        "policies",
        "WRITE_FAILED": "kubelet tries again by itself; look at the space and inodes of the volume's directory (df, "
        "df -i)",
    }
)


class NodeAdmin:
    """Answers `podsvid node`. `authority` says in words where SVIDs come from and whether it answers."""

    def __init__(self, workloads: WorkloadRegistry, authority: Callable[[], str], blocking: Blocking) -> None:
        self._workloads = workloads
        self._authority = authority
        self._blocking = blocking

    def handlers(self) -> grpc.GenericRpcHandler:
        """To be added to a server that only root reaches."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "List": grpc.unary_unary_rpc_method_handler(
                self.volumes, pb.ListRequest.FromString, pb.ListResponse.SerializeToString
            ),
            "Explain": grpc.unary_unary_rpc_method_handler(
                self.explain, pb.ExplainRequest.FromString, pb.ExplainResponse.SerializeToString
            ),
            "Rotate": grpc.unary_unary_rpc_method_handler(
                self.rotate, pb.RotateRequest.FromString, pb.RotateResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def volumes(self, request: pb.ListRequest, context: _Context) -> pb.ListResponse:
        found = sorted(self._workloads.by_volume.values(), key=lambda workload: str(workload.volume.pod))
        uses = await asyncio.gather(*(each.use(peers=False) for each in found))
        return pb.ListResponse(volumes=[self._volume(each, use) for each, use in zip(found, uses, strict=True)])

    async def explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:
        volumes = self._of(request.namespace, request.pod)
        problems = [
            each
            for each in self._workloads.publish_problems
            if (each.pod.namespace, each.pod.name) == (request.namespace, request.pod)
        ]
        # Of a pod that had the name before it is no news, and kubelet does not go on trying.
        newest = {each.volume.pod.uid for each in volumes} or {each.pod.uid for each in problems[-1:]}
        problems = [each for each in problems if each.pod.uid in newest]
        if not volumes and not problems:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"kubelet asked for no volume of a pod {request.namespace}/{request.pod} on this node (since the agent "
                "started); look at the pod's node, its volumes' driver name, and its events",
            )
        return pb.ExplainResponse(
            volumes=[await self._detailed(each) for each in volumes],
            publish_problems=[_never_published(each) for each in problems],
            authority=self._authority(),
        )

    async def rotate(self, request: pb.RotateRequest, context: _Context) -> pb.RotateResponse:
        volumes = self._of(request.namespace, request.pod)
        if not volumes:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"pod {request.namespace}/{request.pod} has no volume on this node"
            )
        _log.info("renewal asked for", extra={"pod": f"{request.namespace}/{request.pod}", "volumes": len(volumes)})
        results = await asyncio.gather(*(self._renew(each) for each in volumes))
        failed = [each for each in results if each]
        if failed:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "; ".join(failed))
        uses = await asyncio.gather(*(each.use(peers=False) for each in volumes))
        return pb.RotateResponse(volumes=[self._volume(each, use) for each, use in zip(volumes, uses, strict=True)])

    async def _renew(self, workload: Workload) -> str:
        """Renew through the scheduler, as always; why that failed, or nothing."""
        volume_id, problems = workload.volume.id, workload.problems
        try:
            async with asyncio.timeout(ROTATE_SECONDS):
                await self._workloads.renew_now(volume_id)
        except TimeoutError:
            return f"no new SVID within {ROTATE_SECONDS:g} s; it is still being tried"
        if volume_id not in self._workloads.by_volume:
            return "kubelet unpublished the volume meanwhile"
        if self._workloads.scheduler.failures(volume_id) and problems.newest is not None:
            return f"{problems.newest.reason}: {problems.newest.message}; it is tried again by itself"
        return ""

    def _of(self, namespace: str, name: str) -> list[Workload]:
        return [
            workload
            for workload in self._workloads.by_volume.values()
            if (workload.volume.pod.namespace, workload.volume.pod.name) == (namespace, name)
        ]

    def _volume(self, workload: Workload, use: Use) -> pb.Volume:
        volume, identity = workload.volume, workload.feed.current
        failures = self._workloads.scheduler.failures(volume.id)
        answer = pb.Volume(
            volume_id=volume.id,
            namespace=volume.pod.namespace,
            pod=volume.pod.name,
            pod_uid=volume.pod.uid,
            service_account=volume.pod.service_account,
            driver=volume.driver,
            layout=volume.options.layout,
            key_algorithm=volume.options.key_algorithm,
            failures=failures,
            open_streams=len(use.calls),
            policy=workload.policy,
        )
        answer.state = self._workloads.state(workload)
        newest, kept = workload.problems.newest, workload.kept_apart
        apart = f"{kept.reason}: {kept.message}" if kept is not None else ""
        answer.notice = "; ".join(each for each in (workload.notice, apart) if each)
        if answer.state == "closed" and kept is not None:
            answer.state_reason = kept.reason
        elif answer.state != "ok" and newest is not None:
            answer.state_reason = newest.code
        due = self._workloads.scheduler.due(volume.id)
        if failures and due is not None:
            answer.retry_at.FromDatetime(due)
        if identity is not None:
            svid = identity.default
            answer.spiffe_id, answer.serial, answer.authority_id = str(svid.spiffe_id), svid.serial, svid.authority_id
            answer.not_before.FromDatetime(svid.not_before)
            answer.not_after.FromDatetime(svid.not_after)
        if workload.renew_at is not None:
            answer.renew_at.FromDatetime(workload.renew_at)
        if workload.window is not None:
            answer.renew_from.FromDatetime(workload.window.start)
            answer.renew_until.FromDatetime(workload.window.end)
        if workload.written_at is not None:
            answer.files_written_at.FromDatetime(workload.written_at)
        if workload.written is not None:
            written = workload.written.identity.default
            answer.files_serial = written.serial
            answer.files_not_after.FromDatetime(written.not_after)
        return answer

    async def _detailed(self, workload: Workload) -> pb.Volume:
        use = await workload.use(peers=True)
        answer = self._volume(workload, use)
        answer.renew_because = self._because(workload)
        answer.directory = workload.volume.target
        answer.files.extend(workload.directory.file_names())
        answer.streams.extend(pb.Stream(method=method, open_seconds=int(seconds)) for method, seconds in use.calls)
        answer.peers.extend(
            pb.Peer(uid=each.uid, gid=each.gid, pid=each.pid, command=each.command) for each in use.peers
        )
        for name, kept in sorted(workload.jwt_files.items()):
            file = answer.jwt_files.add(name=name, audiences=kept.svid.audiences)
            file.not_after.FromDatetime(kept.svid.expires_at)
            file.renew_at.FromDatetime(kept.renew_at)
        answer.problems.extend(_problem(each) for each in workload.problems)
        answer.next_publish = _next_publish(workload)
        return answer

    def _because(self, workload: Workload) -> str:
        scheduler, volume_id, newest = self._workloads.scheduler, workload.volume.id, workload.problems.newest
        failures, due = scheduler.failures(volume_id), scheduler.due(volume_id)
        if failures:
            tried = "1 attempt failed" if failures == 1 else f"{failures} attempts in a row failed"
            token = newest is not None and newest.code in ("POD_TOKEN_MISSING", "POD_TOKEN_EXPIRED")
            waits = ", waits for kubelet's next token" if token else ""
            was = "somebody asked for it" if workload.asked_for else "it was due"
            if workload.renew_at is not None and workload.renew_at > self._workloads.now():
                was = "not all that is renewed is in the files yet"
            return f"{was}, {tried}{waits}; the next one is {f'at {due:%Y-%m-%dT%H:%M:%SZ}' if due else 'under way'}"
        if scheduler.is_running(volume_id):
            return "it is under way"
        window = workload.window
        if workload.feed.current is None:
            return "as soon as the authority answers"
        if window is None:
            return "an instant drawn before the agent was restarted"
        span = f"{window.start:%Y-%m-%dT%H:%M:%SZ} to {window.end:%Y-%m-%dT%H:%M:%SZ}"
        if workload.early is not None and workload.early.window == window:
            return f"the signer has this authority's SVIDs renewed early, spread over {span}"
        return f"drawn at random in the window that the authority gave, {span}"


class RefusedPublishes(grpc.aio.ServerInterceptor):
    """Remembers why kubelet's publishes are refused; stands behind the error boundary."""

    def __init__(self, workloads: WorkloadRegistry) -> None:
        self._workloads = workloads

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method != _PUBLISH:
            return handler
        inner = handler.unary_unary

        async def watched(request: Any, context: _Context) -> Any:
            try:
                answer = await inner(request, context)
            except OperationPending:
                raise  # the call that still runs says what becomes of it
            except CsiError as error:
                given = request.volume_context
                # Not checked yet: of a request that is refused nothing is known to be well formed.
                pod = PodRef(*(given.get(key, "")[:253] for key in (POD_NAMESPACE, POD_NAME, POD_UID, SERVICE_ACCOUNT)))
                self._workloads.publish_refused(request.volume_id[:128], pod, error.reason, str(error))
                raise
            self._workloads.publish_accepted(request.volume_id)
            return answer

        return grpc.unary_unary_rpc_method_handler(watched, handler.request_deserializer, handler.response_serializer)


def _next_publish(workload: Workload) -> str:
    if not workload.directory.in_place():
        return "mounts the volume again and mints a new SVID, because it was unmounted behind podsvid"
    if workload.feed.current is None:
        return "answers OK and takes the pod's token; the SVID that is missing is being minted"
    if workload.lacks_socket:
        return "answers OK and takes the pod's token; the socket, which disappeared, is made again"
    return "answers OK and takes the pod's newest token for the next renewal; SVID and files stay as they are"


def _never_published(each: Problem) -> pb.Problem:
    """Of a volume that is not there."""
    answer = _problem(each)
    answer.advice = ADVICE_BEFORE.get(each.code, ADVICE_BEFORE.get(each.reason, answer.advice))
    return answer


def _problem(each: Problem) -> pb.Problem:
    answer = pb.Problem(
        reason=each.reason,
        message=each.message,
        times=each.times,
        advice=ADVICE.get(each.code, ADVICE.get(each.reason, "")),
    )
    answer.at.FromDatetime(each.at)
    answer.first_at.FromDatetime(each.first_at)
    return answer


async def serve_admin(handlers: grpc.GenericRpcHandler, path: Path) -> grpc.aio.Server:
    """Serve on a socket that only root reaches. Raises OSError."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers,))
    await serve_private(server, path)
    return server
