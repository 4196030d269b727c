"""The CSI Node service: publish, republish, unpublish, stats, and the pick-up of volumes after a restart."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio

from csi.adoption import Adoption
from csi.errors import (
    CsiError,
    IdentityUnavailable,
    InvalidRequest,
    MountDenied,
    MountNotShared,
    TargetConflict,
    UndoFailed,
    VolumeConflict,
    VolumeFailed,
    VolumeNotFound,
)
from csi.journal import Journal
from csi.model import Issued, Volume
from csi.mount import Targets
from csi.operations import Operations
from csi.pb import csi_pb2, csi_pb2_grpc
from csi.ports import Workloads
from csi.profile import Profile
from csi.reach import LOOK_SECONDS, Reach, SharedLooks
from csi.request import PublishRequest, check_target, parse_publish
from csi.room import INODE, MOUNT, Room
from csi.turns import VolumeTurns
from csi.volume import VolumeDirectory, modes
from runtime.blocking import Blocking
from runtime.terminal import shown
from runtime.tracing import Tracing
from svid.keys import PrivateKey

_log = logging.getLogger("podsvid.csi")
AnyContext = grpc.aio.ServicerContext[Any, Any]
CAPABILITIES = (
    csi_pb2.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP,
    csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS,
    csi_pb2.NodeServiceCapability.RPC.VOLUME_CONDITION,
)


@dataclass(frozen=True, slots=True)
class Published:
    """A volume that is mounted and served."""

    volume: Volume
    directory: VolumeDirectory


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the node service must know: names, kubelet's root as kubelet spells it, and the mint deadline (seconds)."""

    node_name: str
    kubelet_root: str
    mint_deadline: float = 85.0


Observe = Callable[[str, float], None]


class DriverNode(csi_pb2_grpc.NodeServicer):
    """The Node service of one driver name; the volumes behind all of them are one NodeService's."""

    def __init__(self, node: "NodeService", driver: str, profile: Profile) -> None:
        self._node = node
        self._driver = driver
        self._profile = profile

    async def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: AnyContext
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.NodeServiceCapability(rpc=csi_pb2.NodeServiceCapability.RPC(type=kind)) for kind in CAPABILITIES
            ]
        )

    async def NodeGetInfo(
        self, request: csi_pb2.NodeGetInfoRequest, context: AnyContext
    ) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id=self._node.name)

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: AnyContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        await self._node.publish(request, self._driver, self._profile)
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: AnyContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        await self._node.unpublish(request)
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: AnyContext
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        return self._node.stats(request)


class NodeService:
    """Owns the published volumes. One operation a volume at a time; an operation outlives a caller that goes away."""

    def __init__(
        self,
        settings: NodeSettings,
        targets: Targets,
        workloads: Workloads,
        journal: Journal,
        blocking: Blocking,
        observe_publish: Observe,
        tracing: Tracing,
        room: Room,
        turns: VolumeTurns,
        reach: Reach | None = None,
    ) -> None:
        self._settings = settings
        self._targets = targets
        self._workloads = workloads
        self._journal = journal
        self._blocking = blocking
        self._observe_publish = observe_publish
        self._tracing = tracing
        self._room = room
        self._turns = turns
        self._looks = None if reach is None else SharedLooks(reach.check, LOOK_SECONDS)
        self._published: dict[str, Published] = {}
        self._operations = Operations()
        self._adoption = Adoption(targets, workloads, journal, blocking, room, self._picked_up)

    @property
    def volumes(self) -> int:
        """How many volumes are published."""
        return len(self._published)

    @property
    def waiting(self) -> int:
        """How many that an earlier process published are not picked up yet."""
        return self._adoption.waiting

    @property
    def name(self) -> str:
        """The node's name as Kubernetes knows it."""
        return self._settings.node_name

    async def publish(self, request: csi_pb2.NodePublishVolumeRequest, driver: str, profile: Profile) -> None:
        """Publish or republish for the driver of that name. Raises CsiError."""
        started = asyncio.get_running_loop().time()
        result = "error"
        try:
            parsed = parse_publish(request, self._settings.kubelet_root, driver, profile)
            facts = {**parsed.volume.pod.trace_facts, "podsvid.volume_id": parsed.volume.id}
            with self._tracing.span("NodePublishVolume", facts) as span:
                result = await self._operations.run(self._publish(parsed))
                span.note({"podsvid.result": result})
        except CsiError as error:
            result = error.reason.lower()
            raise
        finally:
            self._observe_publish(result, asyncio.get_running_loop().time() - started)

    async def unpublish(self, request: csi_pb2.NodeUnpublishVolumeRequest) -> None:
        """Undo a publish, or whatever is left of one. Raises CsiError."""
        if not request.volume_id:
            raise InvalidRequest("volume_id is missing")
        if not request.target_path:
            raise InvalidRequest("target_path is missing")
        below = check_target(request.target_path, self._settings.kubelet_root)
        with self._adoption.unpublishing():
            await self._operations.run(self._unpublish(request.volume_id, below))

    def stats(self, request: csi_pb2.NodeGetVolumeStatsRequest) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Usage and condition of a published volume. Raises CsiError."""
        if not request.volume_id:
            raise InvalidRequest("volume_id is missing")
        if not request.volume_path:
            raise InvalidRequest("volume_path is missing")
        published = self._published.get(request.volume_id)
        if published is None or published.volume.target != request.volume_path:
            raise VolumeNotFound(f"volume {shown(request.volume_id)} is not published at {shown(request.volume_path)}")
        self._weigh(published.volume, published.directory)
        condition = self._workloads.condition(request.volume_id)
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=published.directory.usage(),
            volume_condition=csi_pb2.VolumeCondition(abnormal=condition.abnormal, message=condition.message),
        )

    async def look(self) -> None:
        """Find what an earlier process published and make room where memory is short, before kubelet may call.

        Raises HostUnanswered.
        """
        await self._adoption.look()

    async def adopt(self) -> None:
        """Take over what `look` found, one volume after the other, beside kubelet's calls."""
        await self._adoption.run()
        self._workloads.complete()

    async def settle(self) -> None:
        """Wait for the operations that still run."""
        await self._operations.settle()
        await self._adoption.settle()

    def close(self) -> None:
        """Let go of the volumes' directories. They stay mounted: a stop is not an unpublish."""
        for published in self._published.values():
            published.directory.close()
        self._published.clear()
        self._adoption.close()

    async def _publish(self, request: PublishRequest) -> str:
        volume = request.volume
        with self._operations.exclusively(volume.id):
            await self._adoption.before_publish(volume.id)
            published = self._published.get(volume.id)
            if published is not None:
                _check_same(published.volume, volume)
                # What is there already is no volume that cannot be made.
                with suppress(MountDenied, MountNotShared):
                    await self._look()
                if await self._blocking(lambda: self._targets.is_at(published.directory.descriptor, volume.below_pods)):
                    self._workloads.republished(volume.id, request.token)
                    return "republished"
            await self._look()
            if published is not None:
                _log.warning("volume was unmounted behind podsvid; mounting again", extra={"volume_id": volume.id})
                await self._forget(volume.id)
            taken = self._room.admit(volume)
            try:
                async with AsyncExitStack() as turn:
                    with self._operations.waiting():
                        # Before the turn: whoever waits for a slow key keeps nobody from taking one.
                        key = await self._workloads.key(volume)
                        await turn.enter_async_context(self._turns.whole(volume))
                    await self._publish_new(request, key)
            except UndoFailed:
                raise  # something is there still; kubelet comes back and unpublishes it
            except BaseException:
                # One that an earlier publish or agent left is there as before.
                if taken or published is not None:
                    self._room.release(volume.id)
                raise
            return "published"

    async def _look(self) -> None:
        """Raises HostUnanswered, and what says that no volume can be made here."""
        if self._looks is not None:
            with self._operations.waiting():
                await self._looks.look()

    async def _publish_new(self, request: PublishRequest, key: PrivateKey) -> None:
        volume = request.volume
        try:
            async with asyncio.timeout(self._settings.mint_deadline):
                with self._tracing.span("mint"):
                    issued = await self._workloads.issue(volume, request.token, key)
        except TimeoutError:
            raise IdentityUnavailable(
                f"no SVID within {self._settings.mint_deadline:g} s; is the authority reachable?"
            ) from None
        async with self._turns.making(volume):
            await self._make(request, issued)

    async def _make(self, request: PublishRequest, issued: Issued) -> None:
        volume = request.volume
        wanted = modes(volume.group).directory
        try:
            with self._tracing.span("mount"):
                mounted = await self._blocking(
                    lambda: self._targets.mount(volume.below_pods, mode=wanted, group=volume.group)
                )
        except OSError as error:
            raise VolumeFailed(f"the volume could not be mounted: {error.strerror or error}") from error
        directory = VolumeDirectory(mounted.descriptor, volume, self._room.generations)
        try:
            with self._tracing.span("write and serve"):
                await self._workloads.open(volume, directory, issued)
        except Exception as error:
            directory.close()
            if not mounted.made:
                # A running pod may be using it, with an SVID that is still good: only what this call made is undone.
                _log.error("volume could not be renewed", extra={"volume_id": volume.id}, exc_info=error)
                raise UndoFailed(f"the volume was mounted before and could not be renewed: {_told(error)}") from error
            await self._undo(volume)
            if isinstance(error, OSError):
                raise VolumeFailed(f"the volume could not be made: {error.strerror or error}") from error
            raise
        self._published[volume.id] = Published(volume, directory)
        self._weigh(volume, directory)
        # The first renewal may come before kubelet's next publish brings a newer token.
        self._workloads.republished(volume.id, request.token)
        _log.info(
            "volume published",
            extra={
                "volume_id": volume.id,
                "pod": str(volume.pod),
                "spiffe_id": str(issued.identity.default.spiffe_id),
                "serial": issued.identity.default.serial,
                "not_after": issued.identity.expires_at.isoformat(),
            },
        )

    async def _undo(self, volume: Volume) -> None:
        try:
            await self._blocking(lambda: self._targets.remove(volume.below_pods))
        except OSError as error:
            raise UndoFailed(f"a failed publish could not be undone: {error.strerror or error}") from error

    async def _unpublish(self, volume_id: str, below: tuple[str, ...]) -> None:
        with self._operations.exclusively(volume_id):
            published = self._published.get(volume_id)
            pod = published.volume.pod if published else self._adoption.pod_of(volume_id)
            async with AsyncExitStack() as turn:
                with self._operations.waiting():
                    await turn.enter_async_context(self._turns.ending(volume_id, pod))
                await self._take_away(volume_id, below)

    async def _take_away(self, volume_id: str, below: tuple[str, ...]) -> None:
        await self._adoption.before_unpublish(volume_id, below)
        known = self._published.get(volume_id)
        if known is not None and known.volume.below_pods != below:
            raise TargetConflict(f"volume is published at {known.volume.target}, not at this target_path")
        if known is not None:
            await self._forget(volume_id, for_good=True)
        else:
            await self._forget_unknown(volume_id)
        try:
            await self._blocking(lambda: self._targets.remove(below))
        except OSError as error:
            raise UndoFailed(f"the volume could not be removed: {error.strerror or error}") from error
        self._room.release(volume_id)
        if known is not None:
            _log.info("volume unpublished", extra={"volume_id": volume_id, "pod": str(known.volume.pod)})

    async def _forget(self, volume_id: str, *, for_good: bool = False) -> None:
        await self._workloads.close(volume_id)
        directory = self._published.pop(volume_id).directory
        if for_good:
            await self._blocking(directory.empty)
        directory.close()

    def _weigh(self, volume: Volume, directory: VolumeDirectory) -> None:
        # What it weighed before is near enough where something is just written or taken away in it.
        with suppress(OSError):
            self._room.hold(volume, directory.weight(MOUNT, INODE))

    async def _forget_unknown(self, volume_id: str) -> None:
        try:
            await self._blocking(lambda: self._journal.forget(volume_id))
        except InvalidRequest:
            # No volume of ours was ever called that, so there is nothing to forget.
            return

    def _picked_up(self, volume: Volume, directory: VolumeDirectory) -> None:
        self._published[volume.id] = Published(volume, directory)
        self._weigh(volume, directory)


def _check_same(published: Volume, wanted: Volume) -> None:
    if published.target != wanted.target:
        raise TargetConflict(f"volume is already published at {published.target}")
    if published != wanted:
        raise VolumeConflict("volume is already published with other arguments; unpublish it first")


def _told(error: Exception) -> str:
    # kubelet shows it in the pod's event: what nobody foresaw may hold a secret in its text.
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, CsiError) else f"{type(error).__name__}; see the agent's log"
