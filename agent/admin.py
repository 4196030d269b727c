"""The node's admin socket: what the agent does for each pod, for root on this node. No key, token or bundle leaves."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.pb import node_admin_pb2 as pb
from agent.peers import peers_of
from agent.workloads import Problem, Served, WorkloadRegistry
from csi.registration import serve_private

_log = logging.getLogger("podsvid.admin")
SERVICE = "podsvid.agent.v1.NodeAdmin"
SOCKET = "admin.sock"
# Seconds that a renewal which was asked for may take: a mint's deadline and a little.
ROTATE_SECONDS = 35.0
_Context = grpc.aio.ServicerContext[Any, Any]


class NodeAdmin:
    """Answers `podsvid node`. `authority` says in words where SVIDs come from and whether it answers."""

    def __init__(self, workloads: WorkloadRegistry, authority: Callable[[], str]) -> None:
        self._workloads = workloads
        self._authority = authority

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
        found = sorted(self._workloads.served.values(), key=lambda served: str(served.workload.volume.pod))
        return pb.ListResponse(volumes=[self._volume(each) for each in found])

    async def explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:
        volumes = self._of(request.namespace, request.pod)
        problems = [
            each
            for each in self._workloads.publish_problems
            if (each.pod.namespace, each.pod.name) == (request.namespace, request.pod)
        ]
        if not volumes and not problems:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"kubelet asked for no volume of a pod {request.namespace}/{request.pod} on this node (since the agent "
                "started); look at the pod's node, its volumes' driver name, and its events",
            )
        return pb.ExplainResponse(
            volumes=[self._detailed(each) for each in volumes],
            publish_problems=[_problem(each) for each in problems],
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
        return pb.RotateResponse(volumes=[self._volume(each) for each in volumes])

    async def _renew(self, served: Served) -> str:
        """Renew through the scheduler, as always; why that failed, or nothing."""
        workload = served.workload
        before, problems = workload.feed.version, len(workload.problems)
        last = workload.problems[-1] if workload.problems else None
        self._workloads.renew_now(workload.volume.id)
        try:
            async with asyncio.timeout(ROTATE_SECONDS):
                while workload.feed.version == before:
                    if len(workload.problems) != problems or (workload.problems and workload.problems[-1] != last):
                        problem = workload.problems[-1]
                        return f"{problem.reason}: {problem.message}"
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return f"no new SVID within {ROTATE_SECONDS:g} s"
        return ""

    def _of(self, namespace: str, name: str) -> list[Served]:
        return [
            served
            for served in self._workloads.served.values()
            if (served.workload.volume.pod.namespace, served.workload.volume.pod.name) == (namespace, name)
        ]

    def _volume(self, served: Served) -> pb.Volume:
        workload = served.workload
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
            state=self._workloads.state(served),
            failures=failures,
            open_streams=len(served.endpoint.open_calls),
            notice=workload.notice,
        )
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
        return answer

    def _detailed(self, served: Served) -> pb.Volume:
        workload = served.workload
        answer = self._volume(served)
        answer.renew_because = self._because(served)
        answer.directory = workload.volume.target
        answer.files.extend(workload.directory.file_names())
        if workload.written_at is not None:
            answer.files_written_at.FromDatetime(workload.written_at)
        answer.streams.extend(
            pb.Stream(method=method, open_seconds=int(seconds)) for method, seconds in served.endpoint.open_calls
        )
        answer.peers.extend(
            pb.Peer(uid=each.uid, gid=each.gid, pid=max(each.pid, 0), command=each.command)
            for each in peers_of(workload.directory.socket_path)
        )
        answer.problems.extend(_problem(each) for each in workload.problems)
        answer.next_publish = _next_publish(served)
        return answer

    def _because(self, served: Served) -> str:
        workload = served.workload
        failures = self._workloads.scheduler.failures(workload.volume.id)
        if failures:
            due = self._workloads.scheduler.due(workload.volume.id)
            when = f"at {due:%H:%M:%SZ}" if due else "now"
            return f"it was due, {failures} attempts in a row failed; the next one is {when}"
        window = workload.window
        if window is None:
            return "an instant drawn before the agent was restarted"
        span = f"{window.start:%H:%M:%SZ} to {window.end:%H:%M:%SZ}"
        if workload.early is not None and workload.early.window == window:
            return f"the signer has this authority's SVIDs renewed early, spread over {span}"
        return f"drawn at random in the window that the authority gave, {span}"


def _next_publish(served: Served) -> str:
    if served.workload.feed.current is None:
        return "answers OK and takes the pod's token; the SVID that is missing is being minted"
    if not served.workload.directory.has_socket():
        return "answers OK and takes the pod's token; the socket, which disappeared, is made again"
    return "answers OK and takes the pod's newest token for the next renewal; SVID and files stay as they are"


def _problem(each: Problem) -> pb.Problem:
    answer = pb.Problem(reason=each.reason, message=each.message)
    answer.at.FromDatetime(each.at)
    return answer


async def serve_admin(handlers: grpc.GenericRpcHandler, path: Path) -> grpc.aio.Server:
    """Serve on a socket that only root reaches. Raises OSError."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers,))
    await serve_private(server, path)
    return server
