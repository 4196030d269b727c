"""What is left is picked up beside kubelet's calls, which come first, and only while there is memory for it."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from csi import adoption
from csi.errors import NodeFull, TargetConflict
from csi.journal import Entry
from csi.model import Volume, Weight
from csi.room import MIB, OWN, Bounds
from runtime.memory import MemoryUse
from runtime.turns import Turns, Who
from tests.csi_rig import NOW, OTHER_UID, UID, Rig, contents, plain_directory, publish_request, rig, target, volume
from tests.csi_rig import unpublish_request as unpublishing
from tests.unit.csi.test_node_publish import closed

FREE = MemoryUse(512 * MIB, 100 * MIB, 0)
FULL = MemoryUse(512 * MIB, 512 * MIB, 0)


class Memory:
    """What the cgroup says; may be changed meanwhile."""

    def __init__(self, use: MemoryUse | None = None) -> None:
        self.use = use

    def __call__(self) -> MemoryUse | None:
        return self.use


def on_a_node(main: Callable[[Rig, Memory], Awaitable[None]], base: Path, use: MemoryUse | None = None) -> None:
    async def run() -> None:
        memory = Memory(use)
        async with rig(base, bounds=Bounds(headroom=32 * MIB), memory=memory) as here:
            async with asyncio.timeout(30):
                await main(here, memory)

    asyncio.run(run())


def left_behind(
    here: Rig, uid: str = UID, name: str = "spiffe", generations: int = 1, due: int = 40, namespace: str = "default"
) -> Volume:
    """A volume as an earlier process left it, called `csi-` and its name."""
    place = Path(target(here.root, uid, name))
    place.mkdir(parents=True)
    written = contents()
    with plain_directory(place) as directory:
        for number in range(generations):
            directory.write(written, NOW + timedelta(seconds=number))
            os.utime(place / os.readlink(place / "..data"), (number, number))
    here.mounts.mounted.add(place.stat().st_ino)
    usual = volume(here.root, uid, f"csi-{name}")
    pod = replace(usual.pod, namespace=namespace)
    found = replace(usual, pod=pod, target=str(place), below_pods=(*usual.below_pods[:3], name, "mount"))
    here.journal.record(Entry(found, written.identity.default.serial, NOW + timedelta(minutes=due)))
    return found


async def again(here: Rig, found: Volume) -> None:
    request = publish_request(here.root, found.pod.uid, found.id)
    request.target_path = found.target
    await here.publish(request)


async def gone(here: Rig, found: Volume) -> None:
    request = unpublishing(here.root, found.pod.uid, found.id)
    request.target_path = found.target
    await here.node.unpublish(request)


def generations(of: Volume) -> int:
    return len([name for name in os.listdir(of.target) if name.startswith("..2")])


def still_open(of: Volume) -> list[str]:
    """This process's descriptors of the volume's directory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that they are listed by
            found.append(os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)"))
    return [each for each in found if each == of.target]


def adopted(here: Rig) -> list[str]:
    return [volume_id for volume_id, *_ in here.workloads.adopted]


def test_each_pods_first_volume_comes_before_any_second_one(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        for number in range(3):
            left_behind(here, UID, f"greedy{number}", due=number)
        left_behind(here, OTHER_UID, "late", due=30)
        await here.adopt()
        assert adopted(here) == ["csi-greedy0", "csi-late", "csi-greedy1", "csi-greedy2"]

    on_a_node(main, tmp_path)


def test_of_as_many_volumes_of_a_pod_those_of_each_namespace_come_in_turn(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        for number in range(3):
            left_behind(here, f"{UID[:-1]}{number}", f"evil{number}", due=number, namespace="evil")
        left_behind(here, f"{UID[:-1]}0", "second", due=1, namespace="evil")
        for number in range(2):
            left_behind(here, f"{OTHER_UID[:-1]}{number}", f"other{number}", due=30 + number, namespace="other")
        await here.adopt()
        assert adopted(here) == ["csi-evil0", "csi-other0", "csi-evil1", "csi-other1", "csi-evil2", "csi-second"]

    on_a_node(main, tmp_path)


def test_a_volume_that_waits_to_be_picked_up_goes_in_its_pods_turn(tmp_path: Path) -> None:
    async def run() -> None:
        ending = Turns(1)
        async with rig(tmp_path, ending=ending) as here:
            left, unknown = left_behind(here), left_behind(here, OTHER_UID, "unknown")
            await here.node.look()
            order: list[str] = []

            async def goes(name: str, uid: str, volume_id: str) -> None:
                request = unpublishing(here.root, uid, volume_id)
                request.target_path = left.target if name == "left" else unknown.target
                await here.node.unpublish(request)
                order.append(name)

            async with ending.turn(Who("x", "y")):
                crowd = [asyncio.create_task(goes(f"stray{n}", OTHER_UID, f"csi-stray{n}")) for n in range(5)]
                for _ in range(5):
                    await asyncio.sleep(0)
                one = asyncio.create_task(goes("left", UID, left.id))
                for _ in range(5):
                    await asyncio.sleep(0)
            await asyncio.gather(one, *crowd)
            # What nobody knows is one namespace among others.
            assert order.index("left") == 1

    asyncio.run(run())


def test_what_is_left_counts_before_it_is_picked_up(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left_behind(here, generations=2)
        await here.node.look()
        assert (here.node.volumes, here.node.waiting) == (0, 1)
        assert 0 < here.room.weight.now < here.room.weight.grown
        await here.node.adopt()
        assert (here.node.volumes, here.node.waiting) == (1, 0)
        assert here.steps.taken == ["adopt csi-spiffe", "complete"]

    on_a_node(main, tmp_path)


def test_an_unpublish_takes_a_volume_away_that_nobody_picked_up(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        await gone(here, left)
        assert not Path(left.target).exists()
        assert here.room.weight == Weight(0, 0)
        assert list(here.journal.entries()) == []
        assert still_open(left) == []
        await here.node.adopt()
        assert adopted(here) == []
        assert "close" not in here.steps.taken

    on_a_node(main, tmp_path)


def test_what_nobody_picked_up_is_emptied_before_it_is_unmounted(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here, generations=2)
        await here.node.look()
        here.steps.hold("detach")
        going = asyncio.create_task(gone(here, left))
        await here.steps.reached("detach")
        assert os.listdir(left.target) == []
        here.steps.release("detach")
        await going

    on_a_node(main, tmp_path)


def test_an_unpublish_at_another_target_takes_nothing_away(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        with pytest.raises(TargetConflict):
            await here.node.unpublish(unpublishing(here.root, OTHER_UID, left.id))
        await here.node.adopt()
        assert adopted(here) == [left.id]

    on_a_node(main, tmp_path)


def test_a_publish_picks_its_volume_up_at_once(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left_behind(here, UID, "first", due=1)
        second = left_behind(here, OTHER_UID, "second", due=2)
        await here.node.look()
        await again(here, second)
        assert adopted(here) == [second.id]
        assert here.observed == ["republished"]
        assert "issue" not in here.steps.taken
        await here.node.adopt()
        assert adopted(here) == [second.id, "csi-first"]

    on_a_node(main, tmp_path)


def test_calls_for_a_volume_that_is_being_picked_up_wait_for_it(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        here.steps.hold(f"adopt {left.id}")
        adopting = asyncio.create_task(here.node.adopt())
        await here.steps.reached(f"adopt {left.id}")
        assert here.node.waiting == 1
        publishing = asyncio.create_task(again(here, left))
        await asyncio.sleep(0)
        assert not publishing.done()
        here.steps.release(f"adopt {left.id}")
        await asyncio.gather(adopting, publishing)
        assert here.observed == ["republished"]
        assert adopted(here) == [left.id]

    on_a_node(main, tmp_path)


def test_an_unpublish_of_one_that_is_being_picked_up_undoes_it(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        here.steps.hold(f"adopt {left.id}")
        adopting = asyncio.create_task(here.node.adopt())
        await here.steps.reached(f"adopt {left.id}")
        going = asyncio.create_task(gone(here, left))
        await asyncio.sleep(0)
        assert "close" not in here.steps.taken
        here.steps.release(f"adopt {left.id}")
        await asyncio.gather(adopting, going)
        assert here.node.volumes == 0
        assert "close" in here.steps.taken
        assert closed(here)
        assert not Path(left.target).exists()

    on_a_node(main, tmp_path)


def test_nothing_is_picked_up_while_something_is_unpublished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "CALM_SECONDS", 60.0)

    async def main(here: Rig, memory: Memory) -> None:
        going, staying = left_behind(here, UID, "going"), left_behind(here, OTHER_UID, "staying")
        await here.node.look()
        here.steps.hold("detach")
        unpublishing = asyncio.create_task(gone(here, going))
        await here.steps.reached("detach")
        adopting = asyncio.create_task(here.node.adopt())
        for _ in range(20):
            await asyncio.sleep(0)
        assert here.workloads.directories == []
        here.steps.release("detach")
        await asyncio.gather(adopting, unpublishing)
        assert adopted(here) == [staying.id]

    on_a_node(main, tmp_path)


def test_an_unpublish_that_hangs_holds_up_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "CALM_SECONDS", 0.0)

    async def main(here: Rig, memory: Memory) -> None:
        going, staying = left_behind(here, UID, "going"), left_behind(here, OTHER_UID, "staying")
        await here.node.look()
        here.steps.hold("detach")
        unpublishing = asyncio.create_task(gone(here, going))
        await here.steps.reached("detach")
        await here.node.adopt()
        assert adopted(here) == [staying.id]
        here.steps.release("detach")
        await unpublishing

    on_a_node(main, tmp_path)


def test_without_memory_what_is_left_waits_until_something_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adoption, "LOOK_SECONDS", 60.0)

    async def main(here: Rig, memory: Memory) -> None:
        going, staying = left_behind(here, UID, "going"), left_behind(here, OTHER_UID, "staying")
        await here.node.look()
        adopting = asyncio.create_task(here.node.adopt())
        with pytest.raises(NodeFull, match="earlier agent; its files stay"):
            await again(here, staying)
        assert here.workloads.directories == []
        assert here.node.waiting == 2
        assert [each.message for each in caplog.records if "wait for memory" in each.message]
        memory.use = FREE
        await gone(here, going)
        await adopting
        assert adopted(here) == [staying.id]

    on_a_node(main, tmp_path, FULL)


def test_it_is_looked_again_though_nothing_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "LOOK_SECONDS", 0.0)

    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        adopting = asyncio.create_task(here.node.adopt())
        await asyncio.sleep(0)
        assert not adopting.done()
        memory.use = FREE
        await adopting
        assert adopted(here) == [left.id]

    on_a_node(main, tmp_path, FULL)


def test_older_files_go_first_where_memory_is_short(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here, generations=3)
        current = os.readlink(Path(left.target) / "..data")
        before = here.room.weight
        await here.node.look()
        assert generations(left) == 1
        assert (Path(left.target) / current / "tls.key").exists()
        assert (Path(left.target) / "tls.key").exists()
        assert here.room.weight.now > before.now

    on_a_node(main, tmp_path, MemoryUse(512 * MIB, 480 * MIB - OWN + 1, 0))


def test_and_stay_where_it_is_not(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here, generations=3)
        await here.node.look()
        assert generations(left) == 3

    on_a_node(main, tmp_path, MemoryUse(512 * MIB, 480 * MIB - OWN, 0))


def test_while_memory_is_short_no_older_files_are_kept(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.adopt()
        (directory,) = here.workloads.directories
        for number in range(4):
            directory.write(contents(), NOW + timedelta(minutes=number))
        assert generations(left) == 3
        memory.use = MemoryUse(512 * MIB, 481 * MIB, 0)
        here.room.figures()
        directory.write(contents(), NOW + timedelta(minutes=5))
        assert generations(left) == 1
        memory.use = FREE
        here.room.figures()
        directory.write(contents(), NOW + timedelta(minutes=6))
        assert generations(left) == 2

    on_a_node(main, tmp_path, FREE)


def test_a_stop_lets_go_of_what_still_waits(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        here.node.close()
        assert still_open(left) == []
        assert Path(left.target).exists()

    on_a_node(main, tmp_path)


def test_a_stop_waits_for_what_is_being_picked_up(tmp_path: Path) -> None:
    async def main(here: Rig, memory: Memory) -> None:
        left = left_behind(here)
        await here.node.look()
        here.steps.hold(f"adopt {left.id}")
        adopting = asyncio.create_task(here.node.adopt())
        await here.steps.reached(f"adopt {left.id}")
        adopting.cancel()
        await asyncio.gather(adopting, return_exceptions=True)
        settling = asyncio.create_task(here.node.settle())
        await asyncio.sleep(0)
        assert not settling.done()
        here.steps.release(f"adopt {left.id}")
        await settling
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)
