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
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from google.protobuf.message import Message

from csi.pb import csi_pb2
from podsvid.quickstart.backoff import until_done
from podsvid.quickstart.calls import CSI_TIMEOUT, METHODS, Calls, RpcRecord
from podsvid.quickstart.disk import VolumeDirectories, make_private_dirs, mount_points_below, unmount
from podsvid.quickstart.errors import PublishFailed, StandInError, VolumeLeftBehind
from podsvid.quickstart.node_service import NodeService
from podsvid.quickstart.pods import Pod, PodVolume, VolumeState, volume_id_of
from podsvid.quickstart.registry import PluginRegistry, Registration
from podsvid.quickstart.request import publish_request


@dataclass(frozen=True)
class RestartOutcome:
    """What a restarted kubelet did with what it found: volume ids."""

    published: tuple[str, ...]
    unpublished: tuple[str, ...]


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
        self._clock = clock
        self._sleep = sleep
        self._calls = Calls(on_rpc)
        self._registry = PluginRegistry(self.registry_dir, self._calls, registry_interval, clock, sleep)
        self._directories = VolumeDirectories(self.pods_dir)
        self._wanted: dict[str, _Wanted] = {}
        self._volumes: dict[str, _Volume] = {}
        self._locks: dict[str, asyncio.Lock] = {}

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
        make_private_dirs(self.root, self.pods_dir, self.plugins_dir, self.registry_dir)
        self._registry.start()

    async def stop(self) -> None:
        """Stop watching and forget who is registered. Volumes stay as they are: a kubelet leaves them too."""
        await self._registry.stop()

    def registration(self, driver: str | None = None) -> Registration:
        """The registered driver of that name (default: the one this kubelet's volumes use).

        Raises DriverNotRegistered, with what the last refused socket was refused for.
        """
        return self._registry.registration(driver or self.driver)

    async def wait_registered(self, driver: str | None = None, *, timeout: float | None = 30.0) -> Registration:
        """Wait until the driver is registered; raise DriverNotRegistered after ``timeout`` seconds."""
        return await self._registry.wait_registered(driver or self.driver, timeout=timeout)

    async def wait_deregistered(self, driver: str | None = None, *, timeout: float | None = 30.0) -> None:
        """Wait until the driver's socket is gone from the registry; raise StandInError after ``timeout``."""
        await self._registry.wait_deregistered(driver or self.driver, timeout=timeout)

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
        target = self.target_path(pod, volume)
        return publish_request(pod, volume, target, tokens_in_secrets=self._tokens_in_secrets, mount_group=mount_group)

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
        return await until_done(lambda: self.publish(pod, volume), timeout, self._clock, self._sleep)

    async def unpublish(self, pod: Pod, volume: PodVolume) -> bool:
        """The pod is gone: unmount its volume and remove its directories, in one attempt.

        Returns whether the driver was asked: the kubelet does not ask about a volume that it forgot after a
        final error. Raises DriverNotRegistered, UnpublishFailed (both: it would try again), and
        VolumeLeftBehind when the driver answers OK and something is still there.
        """
        return await self._unpublish(volume_id_of(pod.uid, volume.name))

    async def unpublish_until(self, pod: Pod, volume: PodVolume, *, timeout: float | None = CSI_TIMEOUT + 3) -> bool:
        """Unpublish with the kubelet's backoff until it works; gives up as ``publish_until`` does."""
        return await until_done(lambda: self.unpublish(pod, volume), timeout, self._clock, self._sleep)

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
        service = NodeService(self._calls, self.registration())
        return await service.stats(volume.name, volume_id_of(pod.uid, volume.name), self.target_path(pod, volume))

    async def call(
        self, method: str, request: Message, timeout: float = CSI_TIMEOUT, *, driver: str | None = None
    ) -> Message:
        """One raw CSI call by its short name ("NodePublishVolume", "Probe"), past all bookkeeping.

        Raises DriverNotRegistered, grpc.aio.AioRpcError, and ValueError for a method that CSI does not have
        here. The answer is of the method's response type.
        """
        try:
            service, response = METHODS[method]
        except KeyError:
            raise ValueError(f"{method!r} is not one of {', '.join(sorted(METHODS))}") from None
        endpoint = self.registration(driver).endpoint
        return await self._calls.fresh(endpoint, f"/csi.v1.{service}/{method}", request, response, timeout)

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
        for volume_id, driver, target in self._directories.found():
            self._volumes[volume_id] = _Volume(driver, target, VolumeState.UNCERTAIN, reconstructed=True)
        await self.start()

        for driver in {wanted.driver for wanted in self._wanted.values()} | {
            known.driver for known in self._volumes.values()
        }:
            await self.wait_registered(driver, timeout=registered_within)

        vanished = [volume_id for volume_id in self._volumes if volume_id not in self._wanted]
        running = list(self._wanted.items())
        outcomes = await asyncio.gather(
            *(until_done(lambda i=i: self._unpublish(i), timeout, self._clock, self._sleep) for i in vanished),  # type: ignore[misc]
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
            unmount(mount_point)

    # --- how ------------------------------------------------------------------------------------------------

    async def _publish(self, volume_id: str, pod: Pod, volume: PodVolume) -> Path:
        registration = self.registration()
        target = self.target_path(pod, volume)
        known = self._volumes.get(volume_id)
        self._wanted[volume_id] = _Wanted(pod, volume, registration.driver)
        self._directories.make(volume_id, target, registration.driver, registration.node_id)

        try:
            await NodeService(self._calls, registration).publish(
                volume.name, lambda mount_group: self.publish_request(pod, volume, mount_group=mount_group)
            )
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
                    self._directories.remove(target)
                except VolumeLeftBehind as left:
                    raise failure from left
            else:
                self._volumes[volume_id] = _Volume(registration.driver, target, VolumeState.UNCERTAIN)
            raise
        self._volumes[volume_id] = _Volume(registration.driver, target, VolumeState.MOUNTED)
        return target

    async def _unpublish(self, volume_id: str) -> bool:
        async with self._lock(volume_id):
            self._wanted.pop(volume_id, None)
            known = self._volumes.get(volume_id)
            if known is None:
                return False
            await NodeService(self._calls, self.registration(known.driver)).unpublish(volume_id, known.target)
            self._directories.remove(known.target)
            del self._volumes[volume_id]
            self._locks.pop(volume_id, None)
            self._directories.remove_pod(known.target)
            return True

    def _lock(self, volume_id: str) -> asyncio.Lock:
        # The kubelet never has two operations in flight for one volume.
        return self._locks.setdefault(volume_id, asyncio.Lock())
