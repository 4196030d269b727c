"""SPIFFE's CSI driver on the test's node: the real one where there is one, else what does the same for a pod."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from csi.pb import csi_pb2, csi_pb2_grpc
from csi.registration import Registration, serve_private
from tests.cluster.processes import Processes

from .api import Object
from .cluster import Cluster
from .host import run, which
from .layout import NODE

DRIVER = "csi.spiffe.io"
# A `spiffe-csi-driver`, which is asked for as it is in its own DaemonSet.
VARIABLE = "SPIFFE_CSI_DRIVER"
OBJECT: Object = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "CSIDriver",
    "metadata": {"name": DRIVER},
    "spec": {
        "attachRequired": False,
        "podInfoOnMount": True,
        "fsGroupPolicy": "None",
        "volumeLifecycleModes": ["Ephemeral"],
    },
}
_Context = grpc.aio.ServicerContext[Any, Any]


def real() -> str:
    """The program, where there is one."""
    return os.environ.get(VARIABLE, "")


class _StandIn(csi_pb2_grpc.IdentityServicer, csi_pb2_grpc.NodeServicer):
    """Binds one folder of the node into each pod that asks, for reading."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets

    async def GetPluginInfo(
        self, request: csi_pb2.GetPluginInfoRequest, context: _Context
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version="0")

    async def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: _Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        return csi_pb2.GetPluginCapabilitiesResponse()

    async def Probe(self, request: csi_pb2.ProbeRequest, context: _Context) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse()

    async def NodeGetInfo(self, request: csi_pb2.NodeGetInfoRequest, context: _Context) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id=NODE)

    async def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: _Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse()

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: _Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        target = Path(request.target_path)
        target.mkdir(exist_ok=True)
        if not target.is_mount():
            await asyncio.to_thread(run, [which("mount"), "--bind", str(self._sockets), str(target)])
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: _Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        target = Path(request.target_path)
        if target.is_mount():
            await asyncio.to_thread(run, [which("umount"), str(target)])
        if target.exists():
            target.rmdir()
        return csi_pb2.NodeUnpublishVolumeResponse()


@contextmanager
def driver(cluster: Cluster, sockets: Path) -> Iterator[str]:
    """kubelet knows it, with that folder of SPIRE's agent, until left; which one it is. Its OBJECT is not its own."""
    endpoint = cluster.kubelet_root / "plugins" / DRIVER / "csi.sock"
    endpoint.parent.mkdir(parents=True)
    program = real()
    processes = Processes(cluster.layout)
    try:
        if program:
            command = [program, "-node-id", NODE, "-workload-api-socket-dir", str(sockets)]
            processes.start("spiffe-csi", [*command, "-csi-socket-path", str(endpoint)])
        with _registered(endpoint, cluster.kubelet_root / "plugins_registry", None if program else _StandIn(sockets)):
            yield f"spiffe-csi ({program})" if program else f"a stand-in for spiffe-csi, as {VARIABLE} names none"
    finally:
        processes.end(["spiffe-csi"])
        shutil.rmtree(endpoint.parent)


@contextmanager
def _registered(endpoint: Path, registry: Path, served: _StandIn | None) -> Iterator[None]:
    """What Kubernetes' node-driver-registrar does beside the real one, from a thread."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    there = threading.Event()

    async def serve() -> None:
        async with _answering(endpoint, served), Registration(DRIVER, endpoint, registry).serving():
            there.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert there.wait(20), "the driver's sockets were not made"
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@asynccontextmanager
async def _answering(endpoint: Path, served: _StandIn | None) -> AsyncIterator[None]:
    if served is None:
        yield
        return
    server = grpc.aio.server()
    csi_pb2_grpc.add_IdentityServicer_to_server(served, server)
    csi_pb2_grpc.add_NodeServicer_to_server(served, server)
    await serve_private(server, endpoint)
    try:
        yield
    finally:
        await server.stop(None)
        endpoint.unlink()
