"""The kubelet's side of the CSI contract, without a kubelet.

``StandInKubelet`` does to a driver what the kubelet of Kubernetes 1.36 does for inline ephemeral volumes: it
watches the plugin registry, registers drivers, publishes and unpublishes volumes over a fresh connection per
call, and keeps the same books about which failures leave a volume behind. ``podsvid quickstart``, the tests and
the benchmarks all drive the agent through it, so what it gets wrong they all get wrong: where the kubelet does
something odd, the stand-in does the same odd thing and says so.

It talks only to the sockets it finds below its root. It never mounts anything; it unmounts only in ``reboot``.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from csi.pb import csi_pb2, pluginregistration_pb2

__all__ = [
    "DriverNotRegistered",
    "DriverRefused",
    "Pod",
    "PodVolume",
    "PublishFailed",
    "Registration",
    "RestartOutcome",
    "RpcRecord",
    "StandInError",
    "StandInKubelet",
    "StatsFailed",
    "UnpublishFailed",
    "VolumeLeftBehind",
    "VolumeState",
    "mount_points_below",
    "volume_id_of",
]

CSI_TIMEOUT: Final = 120.0
"""Seconds for the capability calls and the publish together, and for one unpublish."""

DIAL_TIMEOUT: Final = 10.0
GET_INFO_TIMEOUT: Final = 1.0
NOTIFY_TIMEOUT: Final = 5.0

FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 122.0

TOKENS_KEY: Final = "csi.storage.k8s.io/serviceAccount.tokens"

_VOLUME_DATA: Final = "vol_data.json"
_CSI_PLUGIN_TYPE: Final = "CSIPlugin"
_DRIVER_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+].*)?")

# After one of these the kubelet cannot know whether the volume was mounted: it calls it uncertain, tries again,
# and unpublishes it when the pod goes. Every other code is final: nothing was mounted, nothing will be undone.
_NON_FINAL: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)

_MNT_DETACH: Final = 2

_Response = TypeVar("_Response", bound=Message)
_Result = TypeVar("_Result")


# --- errors ---------------------------------------------------------------------------------------------------


class StandInError(Exception):
    """The root of what the stand-in raises; ``reason`` is stable, the text is for people."""

    reason = "STAND_IN_ERROR"


class DriverNotRegistered(StandInError):
    """The driver is not in the list of registered drivers: nothing was called, try again later."""

    reason = "DRIVER_NOT_REGISTERED"


class DriverRefused(StandInError):
    """What a plugin said about itself was refused at registration."""

    reason = "DRIVER_REFUSED"


class _RpcFailed(StandInError):
    """A call that the driver, or the connection to it, answered with a status other than OK."""

    def __init__(self, what: str, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{what}: rpc error: code = {code.name} desc = {message}")
        self.code = code
        self.message = message

    @property
    def final(self) -> bool:
        """Whether the kubelet takes the code as proof that nothing is mounted."""
        return self.code not in _NON_FINAL


class PublishFailed(_RpcFailed):
    """NodePublishVolume, or the capability call before it, failed."""

    reason = "PUBLISH_FAILED"


class UnpublishFailed(_RpcFailed):
    """NodeUnpublishVolume failed; the kubelet would try again for as long as it lives."""

    reason = "UNPUBLISH_FAILED"


class StatsFailed(_RpcFailed):
    """NodeGetVolumeStats failed."""

    reason = "STATS_FAILED"


class VolumeLeftBehind(StandInError):
    """The driver says that the volume is gone, and it is not: in a cluster the pod's directory is an orphan."""

    reason = "VOLUME_LEFT_BEHIND"


# --- values ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """A pod as far as a CSI driver hears of it."""

    namespace: str
    name: str
    uid: str
    service_account: str = "default"


@dataclass(frozen=True)
class PodVolume:
    """One ``volumes[].csi`` of a pod's specification, with what the kubelet adds to it.

    ``tokens`` is audience -> {"token": ..., "expirationTimestamp": ...}; ``fs_group`` is the pod's fsGroup;
    ``secrets`` stands for the Secret that ``nodePublishSecretRef`` names.
    """

    name: str = "spiffe"
    attributes: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = True
    fs_group: int | None = None
    tokens: Mapping[str, Mapping[str, str]] | None = field(default=None, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    fs_type: str = ""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            raise ValueError(f"a volume's name is one path segment, not {self.name!r}")


@dataclass(frozen=True)
class Registration:
    """A driver in the list of registered drivers."""

    driver: str
    endpoint: str
    node_id: str
    registry_socket: Path
    versions: tuple[str, ...]


@dataclass(frozen=True)
class RpcRecord:
    """One finished call, for whoever watches: its name, its status and how long it took in seconds."""

    method: str
    code: grpc.StatusCode
    seconds: float


@dataclass(frozen=True)
class RestartOutcome:
    """What a restarted kubelet did with what it found: volume ids."""

    published: tuple[str, ...]
    unpublished: tuple[str, ...]


class VolumeState(StrEnum):
    """What the kubelet remembers of a volume; a volume that it forgot has none."""

    MOUNTED = "mounted"
    UNCERTAIN = "uncertain"


@dataclass
class _Volume:
    """The kubelet's memory of one volume."""

    driver: str
    target: Path
    state: VolumeState
    # Found on disk after a restart: then even a final error proves nothing about what was there before.
    reconstructed: bool = False


@dataclass(frozen=True)
class _Wanted:
    """What the API server says should run here. It survives ``restart`` and ``reboot``; memory does not."""

    pod: Pod
    volume: PodVolume
    driver: str


@dataclass
class _Backoff:
    delay: float
    until: float


def volume_id_of(pod_uid: str, volume_name: str) -> str:
    """The volume id that the kubelet makes for an inline volume: 68 characters, never shared between pods."""
    return "csi-" + hashlib.sha256((pod_uid + volume_name).encode()).hexdigest()


def backoff_delays() -> Iterator[float]:
    """The kubelet's waits in seconds after the first, second ... failure of the same operation."""
    delay = FIRST_BACKOFF
    while True:
        yield delay
        delay = min(delay * 2, LONGEST_BACKOFF)


# --- the kubelet ----------------------------------------------------------------------------------------------


class StandInKubelet:
    """Plays the kubelet for the drivers that register below ``kubelet_root``.

    An asynchronous context manager: inside it the plugin registry is watched. Every coroutine must run in the
    event loop that entered it. ``clock`` (monotonic seconds) and ``sleep`` carry every backoff; the registry is
    looked at every ``registry_interval`` seconds of real time.

    ``tokens_in_secrets`` is ``CSIDriver.spec.serviceAccountTokenInSecrets``. ``on_rpc`` is told of every
    finished CSI call.
    """

    def __init__(
        self,
        kubelet_root: Path,
        *,
        driver: str = "csi.podsvid.io",
        tokens_in_secrets: bool = True,
        registry_interval: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_rpc: Callable[[RpcRecord], None] | None = None,
    ) -> None:
        self.root = kubelet_root
        self.driver = driver
        self._tokens_in_secrets = tokens_in_secrets
        self._registry_interval = registry_interval
        self._clock = clock
        self._sleep = sleep
        self._on_rpc = on_rpc

        self._wanted: dict[str, _Wanted] = {}
        self._volumes: dict[str, _Volume] = {}
        self._locks: dict[str, asyncio.Lock] = {}

        self._registered: dict[str, Registration] = {}
        self._refusals: dict[Path, str] = {}
        self._registry_backoffs: dict[Path, _Backoff] = {}
        self._registration_changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    # The directories that a node has before any driver runs.

    @property
    def pods_dir(self) -> Path:
        return self.root / "pods"

    @property
    def registry_dir(self) -> Path:
        return self.root / "plugins_registry"

    @property
    def plugins_dir(self) -> Path:
        return self.root / "plugins"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Make the node's directories and begin to watch the plugin registry."""
        if self._watcher is not None:
            raise StandInError("the stand-in kubelet runs already")
        _make_private_dirs(self.root, self.pods_dir, self.plugins_dir, self.registry_dir)
        self._watcher = asyncio.create_task(self._watch_registry(), name="watch of the plugin registry")

    async def stop(self) -> None:
        """Stop watching and forget who is registered. Volumes stay as they are: a kubelet leaves them too."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        self._registered.clear()
        self._registry_backoffs.clear()
        self._announce_registration()

    # --- registration -----------------------------------------------------------------------------------------

    def registration(self, driver: str | None = None) -> Registration:
        """The registered driver of that name (default: the one this kubelet's volumes use).

        Raises DriverNotRegistered, with what the last refused socket was refused for.
        """
        name = driver or self.driver
        try:
            return self._registered[name]
        except KeyError:
            because = "".join(f"; {path.name}: {why}" for path, why in sorted(self._refusals.items()))
            raise DriverNotRegistered(
                f"driver name {name} not found in the list of registered CSI drivers{because}"
            ) from None

    async def wait_registered(self, driver: str | None = None, *, timeout: float | None = 30.0) -> Registration:
        """Wait until the driver is registered; raise DriverNotRegistered after ``timeout`` seconds."""
        name = driver or self.driver
        if not await self._wait_registration(lambda: name in self._registered, timeout):
            return self.registration(name)  # raises, and says why
        return self._registered[name]

    async def wait_deregistered(self, driver: str | None = None, *, timeout: float | None = 30.0) -> None:
        """Wait until the driver's socket is gone from the registry; raise StandInError after ``timeout``."""
        name = driver or self.driver
        if not await self._wait_registration(lambda: name not in self._registered, timeout):
            raise StandInError(f"driver {name} is still registered after {timeout} s")

    async def _wait_registration(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._registration_changed.wait()
        return condition()

    def _announce_registration(self) -> None:
        # Waiters hold the old event; whoever comes later waits for the next change.
        changed, self._registration_changed = self._registration_changed, asyncio.Event()
        changed.set()

    async def _watch_registry(self) -> None:
        # The inode number is part of the key: a socket that was removed and made again is another plugin.
        plugins: dict[tuple[Path, int, int], asyncio.Task[None]] = {}
        try:
            while True:
                present = dict.fromkeys(_sockets_below(self.registry_dir))
                for key in plugins.keys() - present:
                    plugins.pop(key).cancel()
                    self._deregister(key[0])
                for key in present:
                    if key not in plugins:
                        plugins[key] = asyncio.create_task(
                            self._register_until_accepted(key[0]), name=f"registration of {key[0].name}"
                        )
                await asyncio.sleep(self._registry_interval)
        finally:
            for task in plugins.values():
                task.cancel()
            await asyncio.gather(*plugins.values(), return_exceptions=True)

    async def _register_until_accepted(self, socket: Path) -> None:
        while True:
            # The backoff belongs to the path, not to the inode: a driver that makes a fresh socket under an old
            # name inherits the wait that the old one earned.
            backoff = self._registry_backoffs.get(socket)
            if backoff is not None and backoff.until > self._clock():
                await self._sleep(backoff.until - self._clock())
            try:
                await self._register(socket)
            except StandInError as error:
                delay = FIRST_BACKOFF if backoff is None else min(backoff.delay * 2, LONGEST_BACKOFF)
                self._registry_backoffs[socket] = _Backoff(delay, self._clock() + delay)
                self._refusals[socket] = str(error)
                self._announce_registration()
            else:
                self._registry_backoffs.pop(socket, None)
                self._refusals.pop(socket, None)
                return

    async def _register(self, socket: Path) -> None:
        """One attempt: dial, GetInfo, validate, NodeGetInfo, tell the plugin. Raises StandInError."""
        # The kubelet's registration dial sets no authority, so the escaped path of the socket arrives as one.
        authority = urllib.parse.quote(str(socket), safe="")
        async with _channel(str(socket), authority) as channel:
            try:
                async with asyncio.timeout(DIAL_TIMEOUT):
                    await _connected(channel)
                info = await _invoke(
                    channel,
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
                    await self._notify(channel, registered=False, error=str(refusal))
                raise
            # Registered first, told afterwards, as in the kubelet: a plugin that fails to hear of it still is.
            self._registered[registration.driver] = registration
            self._announce_registration()
            with suppress(grpc.aio.AioRpcError):
                await self._notify(channel, registered=True, error="")

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
            node = await self._fresh_call(
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

    async def _notify(self, channel: grpc.aio.Channel, *, registered: bool, error: str) -> None:
        await _invoke(
            channel,
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
        self._announce_registration()

    # --- paths and requests -----------------------------------------------------------------------------------

    def target_path(self, pod: Pod, volume: PodVolume) -> Path:
        """Where the kubelet wants the volume of this pod."""
        return self.pods_dir / pod.uid / "volumes" / "kubernetes.io~csi" / volume.name / "mount"

    def state(self, pod: Pod, volume: PodVolume) -> VolumeState | None:
        """What the kubelet remembers of the volume; None when it never knew it or forgot it."""
        known = self._volumes.get(volume_id_of(pod.uid, volume.name))
        return None if known is None else known.state

    def publish_request(
        self, pod: Pod, volume: PodVolume, *, mount_group: bool = False
    ) -> csi_pb2.NodePublishVolumeRequest:
        """The request as the kubelet builds it; ``mount_group``: the driver has VOLUME_MOUNT_GROUP."""
        context = dict(volume.attributes)
        # What the kubelet says about the pod wins over what the pod's author wrote.
        context |= {
            "csi.storage.k8s.io/pod.name": pod.name,
            "csi.storage.k8s.io/pod.namespace": pod.namespace,
            "csi.storage.k8s.io/pod.uid": pod.uid,
            "csi.storage.k8s.io/serviceAccount.name": pod.service_account,
            "csi.storage.k8s.io/ephemeral": "true",
        }
        secrets = dict(volume.secrets)
        if volume.tokens is not None:
            tokens = json.dumps({audience: dict(token) for audience, token in volume.tokens.items()})
            (secrets if self._tokens_in_secrets else context)[TOKENS_KEY] = tokens
        group = str(volume.fs_group) if mount_group and volume.fs_group is not None else ""
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id_of(pod.uid, volume.name),
            target_path=str(self.target_path(pod, volume)),
            volume_capability=csi_pb2.VolumeCapability(
                mount=csi_pb2.VolumeCapability.MountVolume(fs_type=volume.fs_type, volume_mount_group=group),
                access_mode=csi_pb2.VolumeCapability.AccessMode(
                    mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
                ),
            ),
            readonly=volume.read_only,
            secrets=secrets,
            volume_context=context,
        )

    # --- volumes ----------------------------------------------------------------------------------------------

    async def publish(self, pod: Pod, volume: PodVolume) -> Path:
        """One attempt to mount the volume; returns its directory.

        Raises DriverNotRegistered (nothing was touched) and PublishFailed. After a final failure of a first
        publish the kubelet has cleaned up and forgotten the volume; after any other it remembers it. A final
        failure of a volume that is mounted already changes nothing.
        """
        volume_id = volume_id_of(pod.uid, volume.name)
        async with self._lock(volume_id):
            return await self._publish(volume_id, pod, volume)

    async def republish(self, pod: Pod, volume: PodVolume) -> Path:
        """Publish a mounted volume again, as ``requiresRepublish`` does at every sync of the pod.

        ``volume`` may carry new tokens. Raises StandInError when the volume is not mounted, else as ``publish``.
        """
        if self.state(pod, volume) is not VolumeState.MOUNTED:
            raise StandInError(f"volume {volume.name} of {pod.namespace}/{pod.name} is not mounted")
        return await self.publish(pod, volume)

    async def publish_until(self, pod: Pod, volume: PodVolume, *, timeout: float | None = CSI_TIMEOUT + 3) -> Path:
        """Publish with the kubelet's backoff until it works.

        Gives up when the next wait would end more than ``timeout`` seconds (of the injected clock) after the
        start, and raises what the last attempt raised.
        """
        return await self._until_done(lambda: self.publish(pod, volume), timeout)

    async def unpublish(self, pod: Pod, volume: PodVolume) -> bool:
        """The pod is gone: unmount its volume and remove its directories, in one attempt.

        Returns whether the driver was asked: the kubelet does not ask about a volume that it forgot after a
        final error. Raises DriverNotRegistered, UnpublishFailed (both: it would try again), and
        VolumeLeftBehind when the driver answers OK and something is still there.
        """
        volume_id = volume_id_of(pod.uid, volume.name)
        async with self._lock(volume_id):
            self._wanted.pop(volume_id, None)
            known = self._volumes.get(volume_id)
            if known is None:
                return False
            await self._unpublish(volume_id, known)
            return True

    async def unpublish_until(self, pod: Pod, volume: PodVolume, *, timeout: float | None = CSI_TIMEOUT + 3) -> bool:
        """Unpublish with the kubelet's backoff until it works; gives up as ``publish_until`` does."""
        return await self._until_done(lambda: self.unpublish(pod, volume), timeout)

    def delete_pod(self, pod: Pod) -> None:
        """The pod disappears from the API server while nobody looks; ``restart`` will find its volumes."""
        for volume_id, wanted in list(self._wanted.items()):
            if wanted.pod.uid == pod.uid:
                del self._wanted[volume_id]

    async def stats(self, pod: Pod, volume: PodVolume) -> csi_pb2.NodeGetVolumeStatsResponse:
        """The volume's usage, as the kubelet asks for it once a minute.

        Raises DriverNotRegistered, StatsFailed, and StandInError for what the kubelet logs as an error: a
        driver without GET_VOLUME_STATS, and an answer without any usage.
        """
        registration = self.registration()
        capability = csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS
        try:
            if capability not in await self._capabilities(registration, CSI_TIMEOUT):
                raise StandInError(f"driver {registration.driver} has no capability GET_VOLUME_STATS")
            response = await self._fresh_call(
                registration.endpoint,
                "/csi.v1.Node/NodeGetVolumeStats",
                csi_pb2.NodeGetVolumeStatsRequest(
                    volume_id=volume_id_of(pod.uid, volume.name),
                    volume_path=str(self.target_path(pod, volume)),
                ),
                csi_pb2.NodeGetVolumeStatsResponse,
                CSI_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            raise StatsFailed("NodeGetVolumeStats", error.code(), error.details() or "") from error
        if not response.usage:
            raise StandInError(f"driver {registration.driver} returned no usage for volume {volume.name}")
        return response

    async def call(
        self, method: str, request: Message, timeout: float = CSI_TIMEOUT, *, driver: str | None = None
    ) -> Message:
        """One raw CSI call by its short name ("NodePublishVolume", "Probe"), past all bookkeeping.

        Raises DriverNotRegistered, grpc.aio.AioRpcError, and ValueError for a method that CSI does not have
        here. The answer is of the method's response type.
        """
        try:
            service, response = _METHODS[method]
        except KeyError:
            raise ValueError(f"{method!r} is not one of {', '.join(sorted(_METHODS))}") from None
        endpoint = self.registration(driver).endpoint
        return await self._fresh_call(endpoint, f"/csi.v1.{service}/{method}", request, response, timeout)

    # --- the life of a node -----------------------------------------------------------------------------------

    async def restart(self, *, registered_within: float = 60.0, timeout: float = 60.0) -> RestartOutcome:
        """The kubelet's process is replaced: memory is lost, the disk and the drivers are not.

        What the disk tells of is uncertain until published again, which happens for every volume of a pod that
        should run; volumes of other pods are unpublished. Raises DriverNotRegistered when a driver that is
        needed does not come within ``registered_within`` seconds, and an ExceptionGroup of what still failed
        after ``timeout`` seconds of retries.
        """
        await self.stop()
        self._volumes.clear()
        self._locks.clear()
        for volume_id, known in self._volumes_on_disk():
            self._volumes[volume_id] = known
        await self.start()

        for driver in {wanted.driver for wanted in self._wanted.values()} | {
            known.driver for known in self._volumes.values()
        }:
            await self.wait_registered(driver, timeout=registered_within)

        vanished = [volume_id for volume_id in self._volumes if volume_id not in self._wanted]
        running = list(self._wanted.items())
        outcomes = await asyncio.gather(
            *(self._until_done(lambda i=i: self._unpublish_known(i), timeout) for i in vanished),  # type: ignore[misc]
            *(self.publish_until(wanted.pod, wanted.volume, timeout=timeout) for _, wanted in running),
            return_exceptions=True,
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failures:
            raise ExceptionGroup("a restarted kubelet could not settle every volume", failures)
        return RestartOutcome(tuple(volume_id for volume_id, _ in running), tuple(vanished))

    async def reboot(self) -> None:
        """The node goes down: mounts below the pods' directories and all memory are gone, directories stay.

        So do the sockets of drivers that were killed: ``restart`` is the boot, and finds them.
        """
        await self.stop()
        self._volumes.clear()
        self._locks.clear()
        for mount_point in reversed(mount_points_below(self.pods_dir)):
            _unmount(mount_point)

    # --- how ------------------------------------------------------------------------------------------------

    async def _publish(self, volume_id: str, pod: Pod, volume: PodVolume) -> Path:
        registration = self.registration()
        target = self.target_path(pod, volume)
        known = self._volumes.get(volume_id)
        self._wanted[volume_id] = _Wanted(pod, volume, registration.driver)
        self._make_volume_dir(volume_id, target, registration)

        try:
            await self._ask_to_publish(registration, pod, volume)
        except asyncio.CancelledError:
            self._volumes.setdefault(volume_id, _Volume(registration.driver, target, VolumeState.UNCERTAIN))
            raise
        except PublishFailed as failure:
            if known is not None and (known.state is VolumeState.MOUNTED or known.reconstructed):
                # It was there before this call, and no code proves that it is not there any more.
                raise
            if failure.final:
                self._volumes.pop(volume_id, None)
                self._wanted.pop(volume_id, None)
                try:
                    self._remove_volume_dir(target)
                except VolumeLeftBehind as left:
                    raise failure from left
            else:
                self._volumes[volume_id] = _Volume(registration.driver, target, VolumeState.UNCERTAIN)
            raise
        self._volumes[volume_id] = _Volume(registration.driver, target, VolumeState.MOUNTED)
        return target

    async def _ask_to_publish(self, registration: Registration, pod: Pod, volume: PodVolume) -> None:
        # One deadline for all three calls, each over a connection of its own.
        deadline = time.monotonic() + CSI_TIMEOUT
        rpc = csi_pb2.NodeServiceCapability.RPC
        try:
            capabilities = await self._capabilities(registration, CSI_TIMEOUT)
            # Asked for again: the kubelet wants SINGLE_NODE_MULTI_WRITER now, and remembers nothing.
            await self._capabilities(registration, deadline - time.monotonic())
            request = self.publish_request(pod, volume, mount_group=rpc.VOLUME_MOUNT_GROUP in capabilities)
            await self._fresh_call(
                registration.endpoint,
                "/csi.v1.Node/NodePublishVolume",
                request,
                csi_pb2.NodePublishVolumeResponse,
                deadline - time.monotonic(),
            )
        except grpc.aio.AioRpcError as error:
            raise PublishFailed(
                f'MountVolume.SetUp failed for volume "{volume.name}"', error.code(), error.details() or ""
            ) from error

    async def _unpublish_known(self, volume_id: str) -> bool:
        async with self._lock(volume_id):
            known = self._volumes.get(volume_id)
            if known is None:
                return False
            await self._unpublish(volume_id, known)
            return True

    async def _unpublish(self, volume_id: str, known: _Volume) -> None:
        registration = self.registration(known.driver)
        try:
            await self._fresh_call(
                registration.endpoint,
                "/csi.v1.Node/NodeUnpublishVolume",
                csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(known.target)),
                csi_pb2.NodeUnpublishVolumeResponse,
                CSI_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            raise UnpublishFailed("NodeUnpublishVolume", error.code(), error.details() or "") from error
        self._remove_volume_dir(known.target)
        del self._volumes[volume_id]
        self._locks.pop(volume_id, None)
        self._remove_pod_dir(known.target)

    async def _capabilities(self, registration: Registration, timeout: float) -> frozenset[int]:
        response = await self._fresh_call(
            registration.endpoint,
            "/csi.v1.Node/NodeGetCapabilities",
            csi_pb2.NodeGetCapabilitiesRequest(),
            csi_pb2.NodeGetCapabilitiesResponse,
            timeout,
        )
        return frozenset(int(capability.rpc.type) for capability in response.capabilities)

    async def _fresh_call(
        self, endpoint: str, path: str, request: Message, response: type[_Response], timeout: float
    ) -> _Response:
        began = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            async with _channel(endpoint, "localhost") as channel:
                return await _invoke(channel, path, request, response, timeout)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise
        finally:
            if self._on_rpc is not None:
                self._on_rpc(RpcRecord(path.rpartition("/")[2], code, time.monotonic() - began))

    async def _until_done(self, attempt: Callable[[], Awaitable[_Result]], timeout: float | None) -> _Result:
        began = self._clock()
        for delay in backoff_delays():
            try:
                return await attempt()
            except StandInError:
                if timeout is not None and self._clock() + delay - began > timeout:
                    raise
            await self._sleep(delay)
        raise AssertionError("the delays never end")

    def _lock(self, volume_id: str) -> asyncio.Lock:
        # The kubelet never has two operations in flight for one volume.
        return self._locks.setdefault(volume_id, asyncio.Lock())

    # --- the disk ---------------------------------------------------------------------------------------------

    def _make_volume_dir(self, volume_id: str, target: Path, registration: Registration) -> None:
        parent = target.parent
        _make_private_dirs(*(d for d in reversed(parent.parents) if d.is_relative_to(self.pods_dir)), parent)
        data = {
            "attachmentID": "",
            "driverName": registration.driver,
            "nodeName": registration.node_id,
            "specVolID": parent.name,
            "volumeHandle": volume_id,
            "volumeLifecycleMode": "Ephemeral",
        }
        # A directory without this file would be one that nobody ever unpublishes: make it before the call.
        (parent / _VOLUME_DATA).write_text(json.dumps(data))

    def _volumes_on_disk(self) -> Iterator[tuple[str, _Volume]]:
        for path in sorted(self.pods_dir.glob(f"*/volumes/kubernetes.io~csi/*/{_VOLUME_DATA}")):
            try:
                data = json.loads(path.read_text())
                volume_id, driver = data["volumeHandle"], data["driverName"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: the kubelet logs it and leaves the directory alone
            yield volume_id, _Volume(driver, path.parent / "mount", VolumeState.UNCERTAIN, reconstructed=True)

    def _remove_volume_dir(self, target: Path) -> None:
        """Remove target, vol_data.json and their directory, unless the target is a mount point still."""
        if Path(os.path.realpath(target)) in mount_points_below(target):
            raise VolumeLeftBehind(f"{target} is still a mount point")
        try:
            with suppress(FileNotFoundError):
                target.rmdir()
            with suppress(FileNotFoundError):
                (target.parent / _VOLUME_DATA).unlink()
            with suppress(FileNotFoundError):
                target.parent.rmdir()
        except OSError as error:
            raise VolumeLeftBehind(f"{error.filename}: {error.strerror}") from error

    def _remove_pod_dir(self, target: Path) -> None:
        # .../<uid>/volumes/kubernetes.io~csi/<name>/mount; other volumes of the pod keep what they stand in.
        for directory in list(target.parents)[1:4]:
            with suppress(OSError):
                directory.rmdir()


# --- helpers --------------------------------------------------------------------------------------------------

# Empty: calls that the project has no messages for, because no driver here is to answer them.
_METHODS: Final[Mapping[str, tuple[str, type[Message]]]] = {
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


def _channel(endpoint: str, authority: str) -> grpc.aio.Channel:
    path = endpoint.removeprefix("unix://").removeprefix("unix:")
    return grpc.aio.insecure_channel(
        f"unix:{path}",
        options=(
            ("grpc.default_authority", authority),
            # Without this two channels to one socket share a connection, and a failed one its backoff.
            ("grpc.use_local_subchannel_pool", 1),
        ),
    )


async def _connected(channel: grpc.aio.Channel) -> None:
    """Wait for the connection, and raise TimeoutError at the first failure instead of trying on."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
            raise TimeoutError
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _invoke(
    channel: grpc.aio.Channel, path: str, request: Message, response: type[_Response], timeout: float
) -> _Response:
    multicallable: grpc.aio.UnaryUnaryMultiCallable[Message, _Response] = channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return await multicallable(request, timeout=timeout)


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


def _make_private_dirs(*directories: Path) -> None:
    for directory in directories:
        with suppress(FileExistsError):
            directory.mkdir(parents=True)
            directory.chmod(0o750)  # whatever the umask is: the kubelet's own mode


def mount_points_below(directory: Path) -> tuple[Path, ...]:
    """The mount points at or below a directory in this process' mount namespace, in the order of mounting.

    Read from mountinfo: comparing device numbers would miss a bind mount from the same filesystem.
    """
    root = os.path.realpath(directory)
    # surrogateescape: a path on Linux is bytes, and other people's mounts are listed here too.
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    points = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in table.splitlines())
    return tuple(Path(point) for point in points if point == root or point.startswith(root.rstrip("/") + "/"))


def _unmount(mount_point: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mount_point), _MNT_DETACH) != 0:
        errno = ctypes.get_errno()
        raise StandInError(f"unmount {mount_point}: {os.strerror(errno)}")
