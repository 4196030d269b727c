"""The volumes that an earlier process left: room is made of them first, then they are picked up one by one.

kubelet's calls come first: an unpublish takes a volume away that still waits, a publish picks it up at once. While
there is no memory for one more, those that are left wait: their files are there, and what is unpublished makes room.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from csi.errors import CsiError, NodeFull, TargetConflict
from csi.journal import Damaged, Entry, Journal
from csi.model import Contents, PodRef, Volume, Weight
from csi.mount import Targets
from csi.ports import Workloads
from csi.reach import looked
from csi.room import INODE, MOUNT, Room, expected
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.bounded import Bounded
from svid.errors import SvidError

_log = logging.getLogger("podsvid.csi")
# Seconds that the next volume waits for unpublishes at most, and until it is looked whether there is memory again.
CALM_SECONDS, LOOK_SECONDS = 1.0, 5.0
# Seconds that finding all of them may take: thousands take some.
FIND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Left:
    """A volume that is mounted and not picked up yet. Its directory is open."""

    entry: Entry
    directory: VolumeDirectory


class Adoption:
    """Picks up what is left. `published` gets each that was. Belongs to one event loop."""

    def __init__(
        self,
        targets: Targets,
        workloads: Workloads,
        journal: Journal,
        blocking: Blocking,
        room: Room,
        published: Callable[[Volume, VolumeDirectory], None],
    ) -> None:
        self._targets = targets
        self._workloads = workloads
        self._journal = journal
        self._blocking = blocking
        self._room = room
        self._published = published
        self._left: dict[str, Left] = {}
        self._picking: dict[str, asyncio.Task[None]] = {}
        self._unpublishing = 0
        # Set when an unpublish has ended.
        self._ended = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many volumes are not picked up yet."""
        return len(self._left) + len(self._picking)

    async def look(self) -> None:
        """Find what is left, forget what is gone, and make room where memory is short. Nothing is picked up yet.

        Raises HostUnanswered; whoever is cancelled waits for no place that hangs.
        """
        found = await looked(Bounded(FIND_SECONDS), lambda: list(self._found()))
        self._left = {each.entry.volume.id: each for each in in_turn(each for each in found if isinstance(each, Left))}
        for each in found:
            if isinstance(each, Volume):
                self._room.hold(each, _guess(each))
        await self._weigh()
        if self._room.is_tight(self.waiting):
            freed = self._room.weight.now
            await self._blocking(self._prune)
            await self._weigh()
            freed -= self._room.weight.now
            _log.warning("memory is short; older files were removed", extra={"volumes": self.waiting, "bytes": freed})

    async def run(self) -> None:
        """Pick up one after the other, until none is left."""
        while self._left:
            await self._calm()
            if not self._room.can_adopt():
                await self._wait_for_room()
                continue
            for volume_id in list(self._left)[:1]:
                with suppress(Exception):  # it was said why, and kubelet's next publish tries again
                    await self._pick_up(volume_id)

    def pod_of(self, volume_id: str) -> PodRef | None:
        """Whose volume it is, if it is left."""
        left = self._left.get(volume_id)
        return left.entry.volume.pod if left else None

    async def before_publish(self, volume_id: str) -> None:
        """Have the volume picked up, if it is left. Raises NodeFull where there is no memory for it."""
        if volume_id in self._left and not self._room.can_adopt():
            raise NodeFull(
                "the agent on this node has too little memory left to serve this volume of an earlier agent; its files "
                "stay, and it is tried again by itself"
            )
        with suppress(Exception):
            await self._pick_up(volume_id)

    async def before_unpublish(self, volume_id: str, below: tuple[str, ...]) -> None:
        """Let the volume go, if it is left. Raises TargetConflict where it is at another target."""
        picking = self._picking.get(volume_id)
        if picking is not None:
            await asyncio.wait([picking])
        left = self._left.get(volume_id)
        if left is not None:
            if left.entry.volume.below_pods != below:
                raise TargetConflict(f"volume is published at {left.entry.volume.target}, not at this target_path")
            del self._left[volume_id]
            await self._blocking(left.directory.empty)
            left.directory.close()

    @contextmanager
    def unpublishing(self) -> Iterator[None]:
        """What goes makes room and is quick: nothing is picked up meanwhile."""
        self._unpublishing += 1
        try:
            yield
        finally:
            self._unpublishing -= 1
            self._ended.set()

    async def settle(self) -> None:
        """Wait for what is being picked up."""
        while self._picking:
            await asyncio.wait(list(self._picking.values()))

    def close(self) -> None:
        """Let go of what was not picked up; it stays mounted."""
        for left in self._left.values():
            left.directory.close()
        self._left.clear()

    def _found(self) -> Iterator[Left | Volume]:
        """What is left, or the volume alone where it cannot be told whether it is there."""
        own = self._targets.own()
        for entry in self._journal.entries():
            if isinstance(entry, Damaged):
                _log.error(
                    "journal entry is damaged and was set aside", extra={"file": entry.path.name, "error": entry.why}
                )
                continue
            volume = entry.volume
            try:
                descriptor = self._targets.find(volume.below_pods, own)
            except OSError as error:
                _log.error(
                    "volume cannot be looked at; kubelet's next publish will pick it up",
                    extra={"volume_id": volume.id, "pod": str(volume.pod), "error": error.strerror or str(error)},
                )
                yield volume
                continue
            if descriptor is None:
                _log.info("volume is gone since the last run", extra={"volume_id": volume.id, "pod": str(volume.pod)})
                self._journal.forget(volume.id)
                continue
            yield Left(entry, VolumeDirectory(descriptor, volume, self._room.generations))

    def _prune(self) -> None:
        for each in self._left.values():
            with suppress(OSError):
                each.directory.prune()

    async def _weigh(self) -> None:
        def weighed() -> list[tuple[Volume, Weight]]:
            return [(each.entry.volume, _weight(each)) for each in self._left.values()]

        for volume, weight in await self._blocking(weighed):
            self._room.hold(volume, weight)

    async def _calm(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CALM_SECONDS):
                while self._unpublishing:
                    self._ended.clear()
                    await self._ended.wait()

    async def _wait_for_room(self) -> None:
        _log.error(
            "volumes of an earlier agent wait for memory; what is unpublished makes room, or a higher memory limit",
            extra={"volumes": self.waiting},
        )
        while self._left and not self._room.can_adopt():
            self._ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._ended.wait()

    async def _pick_up(self, volume_id: str) -> None:
        left = self._left.pop(volume_id, None)
        if left is not None:
            self._start(volume_id, self._adopt(left))
        picking = self._picking.get(volume_id)
        if picking is not None:
            await asyncio.shield(picking)

    def _start(self, volume_id: str, adopting: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(adopting, name=f"pick up {volume_id}")
        self._picking[volume_id] = task
        task.add_done_callback(lambda _: self._picking.pop(volume_id, None))

    async def _adopt(self, left: Left) -> None:
        entry, directory = left.entry, left.directory
        volume = entry.volume
        try:
            contents = await self._read(volume, directory)
            same = contents is not None and contents.identity.default.serial == entry.serial
            await self._workloads.adopt(volume, directory, contents, entry.renew_at if same else None)
        except BaseException as error:
            directory.close()
            if isinstance(error, CsiError | OSError):
                _log.error(
                    "volume could not be picked up; kubelet's next publish will",
                    extra={"volume_id": volume.id, "pod": str(volume.pod), "error": str(error)},
                )
            elif isinstance(error, Exception):
                _log.exception(
                    "bug: volume could not be picked up; kubelet's next publish will",
                    extra={"volume_id": volume.id, "pod": str(volume.pod), "error": type(error).__name__},
                )
            raise
        self._published(volume, directory)

    async def _read(self, volume: Volume, directory: VolumeDirectory) -> Contents | None:
        try:
            return await self._blocking(directory.read)
        except (OSError, SvidError) as error:
            _log.warning(
                "volume's files are unusable; a new SVID is due",
                extra={"volume_id": volume.id, "pod": str(volume.pod), "error": str(error)},
            )
            return None


def _weight(left: Left) -> Weight:
    """What it weighs, or is taken for where its files cannot be looked at."""
    try:
        return left.directory.weight(MOUNT, INODE)
    except OSError as error:
        volume = left.entry.volume
        _log.warning(
            "volume cannot be weighed",
            extra={"volume_id": volume.id, "pod": str(volume.pod), "error": error.strerror or type(error).__name__},
        )
        return _guess(volume)


def _guess(volume: Volume) -> Weight:
    """What one like it is taken for."""
    grown = expected(volume.options).grown
    return Weight(grown, grown)


def in_turn(found: Iterable[Left]) -> list[Left]:
    """The first volume of each pod comes before the second of any, and of as many those of each namespace in turn.

    A namespace's own are in the order in which they are due.
    """
    pods: Counter[str] = Counter()
    namespaces: Counter[tuple[int, str]] = Counter()
    turns: list[tuple[int, int, Left]] = []
    for each in sorted(found, key=lambda left: left.entry.renew_at):
        pod = each.entry.volume.pod
        pods[pod.uid] += 1
        beside = pods[pod.uid], pod.namespace
        namespaces[beside] += 1
        turns.append((pods[pod.uid], namespaces[beside], each))
    return [each for *_, each in sorted(turns, key=lambda turn: turn[:2])]
