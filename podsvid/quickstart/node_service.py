"""A driver's Node service as the kubelet asks it: which calls, by when, and what their failure is called."""

import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio

from csi.pb import csi_pb2
from podsvid.quickstart.calls import CSI_TIMEOUT, Calls
from podsvid.quickstart.errors import PublishFailed, StandInError, StatsFailed, UnpublishFailed
from podsvid.quickstart.registry import Registration


class NodeService:
    """The Node service of one registered driver."""

    def __init__(self, calls: Calls, registration: Registration) -> None:
        self._calls = calls
        self._registration = registration

    async def publish(self, volume_name: str, request: Callable[[bool], csi_pb2.NodePublishVolumeRequest]) -> None:
        """Mount a volume; ``request`` makes the request for a driver with, or without, VOLUME_MOUNT_GROUP.

        Raises PublishFailed.
        """
        # One deadline for all three calls, each over a connection of its own.
        deadline = time.monotonic() + CSI_TIMEOUT
        try:
            capabilities = await self._capabilities(CSI_TIMEOUT)
            # Asked for again: the kubelet wants SINGLE_NODE_MULTI_WRITER now, and remembers nothing.
            await self._capabilities(deadline - time.monotonic())
            await self._calls.fresh(
                self._registration.endpoint,
                "/csi.v1.Node/NodePublishVolume",
                request(csi_pb2.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP in capabilities),
                csi_pb2.NodePublishVolumeResponse,
                deadline - time.monotonic(),
            )
        except grpc.aio.AioRpcError as error:
            raise PublishFailed(
                f'MountVolume.SetUp failed for volume "{volume_name}"', error.code(), error.details() or ""
            ) from error

    async def unpublish(self, volume_id: str, target: Path) -> None:
        """Unmount a volume. Raises UnpublishFailed."""
        try:
            await self._calls.fresh(
                self._registration.endpoint,
                "/csi.v1.Node/NodeUnpublishVolume",
                csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target)),
                csi_pb2.NodeUnpublishVolumeResponse,
                CSI_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            raise UnpublishFailed("NodeUnpublishVolume", error.code(), error.details() or "") from error

    async def stats(self, volume_name: str, volume_id: str, target: Path) -> csi_pb2.NodeGetVolumeStatsResponse:
        """A volume's usage. Raises StatsFailed, and StandInError for a driver or an answer without any."""
        driver = self._registration.driver
        try:
            if csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS not in await self._capabilities(CSI_TIMEOUT):
                raise StandInError(f"driver {driver} has no capability GET_VOLUME_STATS")
            response = await self._calls.fresh(
                self._registration.endpoint,
                "/csi.v1.Node/NodeGetVolumeStats",
                csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(target)),
                csi_pb2.NodeGetVolumeStatsResponse,
                CSI_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            raise StatsFailed("NodeGetVolumeStats", error.code(), error.details() or "") from error
        if not response.usage:
            raise StandInError(f"driver {driver} returned no usage for volume {volume_name}")
        return response

    async def _capabilities(self, timeout: float) -> frozenset[int]:
        response = await self._calls.fresh(
            self._registration.endpoint,
            "/csi.v1.Node/NodeGetCapabilities",
            csi_pb2.NodeGetCapabilitiesRequest(),
            csi_pb2.NodeGetCapabilitiesResponse,
            timeout,
        )
        return frozenset(int(capability.rpc.type) for capability in response.capabilities)
