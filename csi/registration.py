"""Announcing the driver to kubelet without a sidecar (k8s.io/kubelet, pluginregistration v1)."""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from csi.boundary import ErrorBoundary
from csi.errors import CsiError
from csi.pb import pluginregistration_pb2, pluginregistration_pb2_grpc
from csi.reach import Reach, looked
from runtime.bounded import Bounded
from runtime.stopping import stay_cancelled

_log = logging.getLogger("podsvid.registration")
AnyContext = grpc.aio.ServicerContext[Any, Any]
SUPPORTED_VERSIONS = ("1.0.0",)
# How often to look whether somebody removed our socket, in seconds.
WATCH_INTERVAL = 5.0
RETRY_DELAY = 1.0
# Less than the second that kubelet waits for GetInfo: else nobody would be told why.
LOOK_SECONDS = 0.7


class Registration(pluginregistration_pb2_grpc.RegistrationServicer):
    """Serves the registration socket and keeps it there.

    The socket has a new name at every start: kubelet backs off for minutes on a path whose owner did not answer.
    """

    def __init__(self, driver_name: str, endpoint: Path, registry: Path, reach: Reach | None = None) -> None:
        self._reach = reach
        self._looks = Bounded(LOOK_SECONDS)
        # Why kubelet was not told of the driver; empty where it was.
        self.refused = ""
        self._driver_name = driver_name
        self._endpoint = endpoint
        self._registry = registry
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._socket: Path | None = None
        self.registered = False

    async def GetInfo(
        self, request: pluginregistration_pb2.InfoRequest, context: AnyContext
    ) -> pluginregistration_pb2.PluginInfo:
        if self._reach is not None:
            try:
                await looked(self._looks, self._reach.check)
            except CsiError as error:
                # No pod is sent here, instead of all of them with nothing in their volumes.
                self.refused = str(error)
                raise
        self.refused = ""
        return pluginregistration_pb2.PluginInfo(
            type="CSIPlugin",
            name=self._driver_name,
            endpoint=str(self._endpoint),
            supported_versions=SUPPORTED_VERSIONS,
        )

    async def NotifyRegistrationStatus(
        self, request: pluginregistration_pb2.RegistrationStatus, context: AnyContext
    ) -> pluginregistration_pb2.RegistrationStatusResponse:
        self.registered = request.plugin_registered
        if request.plugin_registered:
            _log.info("registered with kubelet", extra={"driver": self._driver_name})
        else:
            _log.error(
                "kubelet refused the registration", extra={"driver": self._driver_name, "error": request.error[:256]}
            )
            self._changed.set()
        return pluginregistration_pb2.RegistrationStatusResponse()

    @property
    def announced(self) -> bool:
        """Whether the socket is where kubelet looks."""
        return self._socket is not None and self._socket.exists()

    @property
    def bound(self) -> str:
        """The name under which the socket was bound: by it its connections are known."""
        return str(bound_at(self._socket)) if self._socket is not None else ""

    def remove_stale(self) -> None:
        """Unlink sockets that earlier runs left, as early as possible: kubelet dials whatever it finds."""
        self._registry.mkdir(parents=True, exist_ok=True)
        for stale in self._registry.glob(f"{self._driver_name}-*reg.sock"):
            with suppress(FileNotFoundError):
                stale.unlink()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The socket is there while inside."""
        await self._open()
        try:
            yield
        finally:
            await self._close()

    async def run(self) -> None:
        """Make the socket anew when kubelet refused it or somebody removed it. Never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL):
                    await self._changed.wait()
            gone = not self.announced
            if not self._changed.is_set() and not gone:
                continue
            if gone:
                _log.warning("registration socket disappeared; making it again", extra={"driver": self._driver_name})
            self._changed.clear()
            try:
                await self._close()
                await asyncio.sleep(RETRY_DELAY)
                await self._open()
            except (OSError, RuntimeError) as error:
                # The process serves every pod of the node: it outlives a directory that is away or full.
                _log.error(
                    "registration socket could not be made; trying again",
                    extra={"driver": self._driver_name, "error": str(error)},
                )
            stay_cancelled()

    async def _open(self) -> None:
        self._registry.mkdir(parents=True, exist_ok=True)
        self._socket = self._registry / f"{self._driver_name}-{secrets.token_hex(4)}-reg.sock"
        self._server = grpc.aio.server(interceptors=[ErrorBoundary()])
        pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(self, self._server)
        await serve_private(self._server, self._socket)

    async def _close(self) -> None:
        self.registered = False
        if self._server is not None:
            await self._server.stop(0.5)
            self._server = None
        if self._socket is not None:
            with suppress(FileNotFoundError, NotADirectoryError):
                self._socket.unlink()


async def serve_private(server: grpc.aio.Server, socket: Path) -> None:
    """Start `server` on a socket that only root can reach.

    Bound under a name that kubelet ignores and renamed into place, so that whoever sees it can also connect.
    """
    hidden = bound_at(socket)
    hidden.unlink(missing_ok=True)
    try:
        server.add_insecure_port(f"unix:{hidden}")
        os.chmod(hidden, 0o600)
        await server.start()
        os.rename(hidden, socket)
    except BaseException:
        await server.stop(None)
        hidden.unlink(missing_ok=True)
        raise


def bound_at(socket: Path) -> Path:
    """Where the socket of `serve_private` is bound."""
    return socket.with_name(f".{socket.name[-24:]}")
