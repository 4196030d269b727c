"""The CSI Identity service."""

from collections.abc import Callable
from typing import Any

import grpc.aio
from google.protobuf.wrappers_pb2 import BoolValue

from csi.pb import csi_pb2, csi_pb2_grpc

AnyContext = grpc.aio.ServicerContext[Any, Any]


class IdentityService(csi_pb2_grpc.IdentityServicer):
    """Says who the driver is. `ready` answers Probe; it must be local and cheap (a failing Probe means a restart)."""

    def __init__(self, driver_name: str, version: str, ready: Callable[[], bool]) -> None:
        self._driver_name = driver_name
        self._version = version
        self._ready = ready

    async def GetPluginInfo(
        self, request: csi_pb2.GetPluginInfoRequest, context: AnyContext
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=self._driver_name, vendor_version=self._version)

    async def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: AnyContext
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        return csi_pb2.GetPluginCapabilitiesResponse()

    async def Probe(self, request: csi_pb2.ProbeRequest, context: AnyContext) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._ready()))
