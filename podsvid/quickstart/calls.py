"""Calls to a driver as the kubelet makes them: each over a connection of its own."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from csi.pb import csi_pb2

CSI_TIMEOUT: Final = 120.0
"""Seconds for one call; for the capability calls and the publish together."""

_Response = TypeVar("_Response", bound=Message)

# Empty: calls that the project has no messages for, because no driver here is to answer them.
METHODS: Final[Mapping[str, tuple[str, type[Message]]]] = {
    "GetPluginInfo": ("Identity", csi_pb2.GetPluginInfoResponse),
    "GetPluginCapabilities": ("Identity", csi_pb2.GetPluginCapabilitiesResponse),
    "Probe": ("Identity", csi_pb2.ProbeResponse),
    "NodeStageVolume": ("Node", empty_pb2.Empty),
    "NodeUnstageVolume": ("Node", empty_pb2.Empty),
    "NodePublishVolume": ("Node", csi_pb2.NodePublishVolumeResponse),
    "NodeUnpublishVolume": ("Node", csi_pb2.NodeUnpublishVolumeResponse),
    "NodeGetVolumeStats": ("Node", csi_pb2.NodeGetVolumeStatsResponse),
    "NodeExpandVolume": ("Node", empty_pb2.Empty),
    "NodeGetCapabilities": ("Node", csi_pb2.NodeGetCapabilitiesResponse),
    "NodeGetInfo": ("Node", csi_pb2.NodeGetInfoResponse),
}


@dataclass(frozen=True)
class RpcRecord:
    """One finished call, for whoever watches: its name, its status and how long it took in seconds."""

    method: str
    code: grpc.StatusCode
    seconds: float


class Calls:
    """Calls at sockets; `on_rpc` is told of every one that has finished."""

    def __init__(self, on_rpc: Callable[[RpcRecord], None] | None) -> None:
        self._on_rpc = on_rpc

    async def fresh(
        self, endpoint: str, path: str, request: Message, response: type[_Response], timeout: float
    ) -> _Response:
        """The answer. Raises grpc.aio.AioRpcError."""
        began = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            async with channel(endpoint, "localhost") as connection:
                return await invoke(connection, path, request, response, timeout)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise
        finally:
            if self._on_rpc is not None:
                self._on_rpc(RpcRecord(path.rpartition("/")[2], code, time.monotonic() - began))


def channel(endpoint: str, authority: str) -> grpc.aio.Channel:
    """A connection that is shared with nobody."""
    path = endpoint.removeprefix("unix://").removeprefix("unix:")
    return grpc.aio.insecure_channel(
        f"unix:{path}",
        options=(
            ("grpc.default_authority", authority),
            # Without this two channels to one socket share a connection, and a failed one its backoff.
            ("grpc.use_local_subchannel_pool", 1),
        ),
    )


async def connected(channel: grpc.aio.Channel) -> None:
    """Wait for the connection, and raise TimeoutError at the first failure instead of trying on."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
            raise TimeoutError
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def invoke(
    channel: grpc.aio.Channel, path: str, request: Message, response: type[_Response], timeout: float
) -> _Response:
    """One call over `channel`. Raises grpc.aio.AioRpcError."""
    multicallable: grpc.aio.UnaryUnaryMultiCallable[Message, _Response] = channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return await multicallable(request, timeout=timeout)
