"""The kubelet's watch of its plugin registry: which sockets are there, and which of them are registered drivers."""

import asyncio
import os
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from csi.pb import csi_pb2, pluginregistration_pb2
from podsvid.quickstart.backoff import FIRST_BACKOFF, longer
from podsvid.quickstart.calls import CSI_TIMEOUT, Calls, channel, connected, invoke
from podsvid.quickstart.errors import DriverNotRegistered, DriverRefused, StandInError

DIAL_TIMEOUT: Final = 10.0
GET_INFO_TIMEOUT: Final = 1.0
NOTIFY_TIMEOUT: Final = 5.0
_CSI_PLUGIN_TYPE: Final = "CSIPlugin"
_DRIVER_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+].*)?")


@dataclass(frozen=True)
class Registration:
    """A driver in the list of registered drivers."""

    driver: str
    endpoint: str
    node_id: str
    registry_socket: Path
    versions: tuple[str, ...]


@dataclass
class _Backoff:
    delay: float
    until: float


class PluginRegistry:
    """Watches `folder` between `start` and `stop`, every `interval` seconds of real time.

    `clock` (monotonic seconds) and `sleep` carry the back-off.
    """

    def __init__(
        self,
        folder: Path,
        calls: Calls,
        interval: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._folder = folder
        self._calls = calls
        self._interval = interval
        self._clock = clock
        self._sleep = sleep
        self._registered: dict[str, Registration] = {}
        self._refusals: dict[Path, str] = {}
        self._backoffs: dict[Path, _Backoff] = {}
        self._changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch. Raises StandInError when it is watched already."""
        if self._watcher is not None:
            raise StandInError("the stand-in kubelet runs already")
        self._watcher = asyncio.create_task(self._watch(), name="watch of the plugin registry")

    async def stop(self) -> None:
        """Stop watching and forget who is registered."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        self._registered.clear()
        self._backoffs.clear()
        self._announce()

    def registration(self, driver: str) -> Registration:
        """The registered driver of that name.

        Raises DriverNotRegistered, with what the last refused socket was refused for.
        """
        try:
            return self._registered[driver]
        except KeyError:
            because = "".join(f"; {path.name}: {why}" for path, why in sorted(self._refusals.items()))
            raise DriverNotRegistered(
                f"driver name {driver} not found in the list of registered CSI drivers{because}"
            ) from None

    async def wait_registered(self, driver: str, *, timeout: float | None = 30.0) -> Registration:
        """Wait until the driver is registered; raise DriverNotRegistered after ``timeout`` seconds."""
        if not await self._wait_registration(lambda: driver in self._registered, timeout):
            return self.registration(driver)  # raises, and says why
        return self._registered[driver]

    async def wait_deregistered(self, driver: str, *, timeout: float | None = 30.0) -> None:
        """Wait until the driver's socket is gone from the registry; raise StandInError after ``timeout``."""
        if not await self._wait_registration(lambda: driver not in self._registered, timeout):
            raise StandInError(f"driver {driver} is still registered after {timeout} s")

    async def _wait_registration(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._changed.wait()
        return condition()

    def _announce(self) -> None:
        # Waiters hold the old event; whoever comes later waits for the next change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _watch(self) -> None:
        # The inode number is part of the key: a socket that was removed and made again is another plugin.
        plugins: dict[tuple[Path, int, int], asyncio.Task[None]] = {}
        try:
            while True:
                present = dict.fromkeys(_sockets_below(self._folder))
                for key in plugins.keys() - present:
                    plugins.pop(key).cancel()
                    self._deregister(key[0])
                for key in present:
                    if key not in plugins:
                        plugins[key] = asyncio.create_task(
                            self._register_until_accepted(key[0]), name=f"registration of {key[0].name}"
                        )
                await asyncio.sleep(self._interval)
        finally:
            for task in plugins.values():
                task.cancel()
            await asyncio.gather(*plugins.values(), return_exceptions=True)

    async def _register_until_accepted(self, socket: Path) -> None:
        while True:
            # The backoff belongs to the path, not to the inode: a driver that makes a fresh socket under an old
            # name inherits the wait that the old one earned.
            backoff = self._backoffs.get(socket)
            if backoff is not None and backoff.until > self._clock():
                await self._sleep(backoff.until - self._clock())
            try:
                await self._register(socket)
            except StandInError as error:
                delay = FIRST_BACKOFF if backoff is None else longer(backoff.delay)
                self._backoffs[socket] = _Backoff(delay, self._clock() + delay)
                self._refusals[socket] = str(error)
                self._announce()
            else:
                self._backoffs.pop(socket, None)
                self._refusals.pop(socket, None)
                return

    async def _register(self, socket: Path) -> None:
        """One attempt: dial, GetInfo, validate, NodeGetInfo, tell the plugin. Raises StandInError."""
        # The kubelet's registration dial sets no authority, so the escaped path of the socket arrives as one.
        authority = urllib.parse.quote(str(socket), safe="")
        async with channel(str(socket), authority) as connection:
            try:
                async with asyncio.timeout(DIAL_TIMEOUT):
                    await connected(connection)
                info = await invoke(
                    connection,
                    "/pluginregistration.Registration/GetInfo",
                    pluginregistration_pb2.InfoRequest(),
                    pluginregistration_pb2.PluginInfo,
                    GET_INFO_TIMEOUT,
                )
            except TimeoutError:
                raise DriverRefused(f"nobody answers at {socket} within {DIAL_TIMEOUT:g} s") from None
            except grpc.aio.AioRpcError as error:
                raise DriverRefused(f"GetInfo: {error.code().name}: {error.details()}") from error

            try:
                registration = await self._accept(socket, info)
            except DriverRefused as refusal:
                self._refusals[socket] = str(refusal)
                with suppress(grpc.aio.AioRpcError):
                    await self._notify(connection, registered=False, error=str(refusal))
                raise
            # Registered first, told afterwards, as in the kubelet: a plugin that fails to hear of it still is.
            self._registered[registration.driver] = registration
            self._announce()
            with suppress(grpc.aio.AioRpcError):
                await self._notify(connection, registered=True, error="")

    async def _accept(self, socket: Path, info: pluginregistration_pb2.PluginInfo) -> Registration:
        if info.type != _CSI_PLUGIN_TYPE:
            raise DriverRefused(f"no handler for plugin type {info.type!r}, only for {_CSI_PLUGIN_TYPE!r}")
        if not _DRIVER_NAME.fullmatch(info.name):
            raise DriverRefused(f"{info.name!r} is not a CSI driver name of at most 63 characters")
        version = _highest_version(tuple(info.supported_versions))
        known = self._registered.get(info.name)
        if known is not None and known.registry_socket != socket and _highest_version(known.versions) >= version:
            raise DriverRefused(
                f"driver {info.name} is already registered with the same or a higher version at {known.registry_socket}"
            )
        endpoint = info.endpoint or str(socket)
        try:
            node = await self._calls.fresh(
                endpoint,
                "/csi.v1.Node/NodeGetInfo",
                csi_pb2.NodeGetInfoRequest(),
                csi_pb2.NodeGetInfoResponse,
                CSI_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            raise DriverRefused(f"NodeGetInfo: {error.code().name}: {error.details()}") from error
        if not node.node_id:
            raise DriverRefused("NodeGetInfo answered with an empty node_id")
        return Registration(info.name, endpoint, node.node_id, socket, tuple(info.supported_versions))

    async def _notify(self, connection: grpc.aio.Channel, *, registered: bool, error: str) -> None:
        await invoke(
            connection,
            "/pluginregistration.Registration/NotifyRegistrationStatus",
            pluginregistration_pb2.RegistrationStatus(plugin_registered=registered, error=error),
            pluginregistration_pb2.RegistrationStatusResponse,
            NOTIFY_TIMEOUT,
        )

    def _deregister(self, socket: Path) -> None:
        self._refusals.pop(socket, None)
        for name, registration in list(self._registered.items()):
            if registration.registry_socket == socket:
                del self._registered[name]
        self._announce()


def _highest_version(versions: Sequence[str]) -> tuple[int, int, int]:
    """The highest of a plugin's CSI versions. Raises DriverRefused unless that is some 1.x."""
    if not versions:
        raise DriverRefused("the plugin lists no supported version")
    parsed = []
    for version in versions:
        match = _VERSION.fullmatch(version)
        if match is None:
            raise DriverRefused(f"{version!r} is not a version")
        parsed.append((int(match[1]), int(match[2]), int(match[3] or 0)))
    supported = [version for version in parsed if version[0] == 1]
    if not supported:
        raise DriverRefused(f"none of the versions {', '.join(versions)} is a 1.x")
    return max(supported)


def _sockets_below(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Every socket in the directory and its subdirectories, with its inode and creation time (ns)."""
    for parent, subdirectories, names in os.walk(directory):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                status = path.lstat()
                if not name.startswith(".") and path.is_socket():
                    yield path, status.st_ino, status.st_ctime_ns
