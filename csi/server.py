"""The server on a driver's socket, where kubelet calls the Identity and Node services."""

from collections.abc import Callable
from pathlib import Path

import grpc.aio

from csi.boundary import ErrorBoundary
from csi.identity import IdentityService
from csi.node import DriverNode, NodeService
from csi.pb import csi_pb2_grpc
from csi.profile import Profile
from csi.registration import serve_private

# Bytes of a call's message. kubelet sends the pod's attributes, its tokens, and a Secret that the pod's author may name
# and podsvid does not read. gRPC's own bound are 4 MiB, of which three times as much is kept while a publish waits.
MAX_MESSAGE = 48 * 1024


async def serve_driver(
    driver: str,
    version: str,
    node: NodeService,
    profile: Profile,
    endpoint: Path,
    ready: Callable[[], bool],
    watcher: grpc.aio.ServerInterceptor,
    docs_url: str = "",
) -> grpc.aio.Server:
    """Serve one driver name at `endpoint`; `watcher` sees each call behind the error boundary, whose answers lead to
    `docs_url`. Raises OSError.
    """
    server = grpc.aio.server(
        interceptors=[ErrorBoundary(docs_url), watcher], options=(("grpc.max_receive_message_length", MAX_MESSAGE),)
    )
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityService(driver, version, ready), server)
    csi_pb2_grpc.add_NodeServicer_to_server(DriverNode(node, driver, profile), server)
    endpoint.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    await serve_private(server, endpoint)
    return server
