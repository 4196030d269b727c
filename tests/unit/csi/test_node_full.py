"""Publishing on a node without room: refused before anything is minted or mounted, and given back when it fails."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from csi.errors import IdentityUnavailable, NodeFull, PodFull, UndoFailed
from csi.model import Weight
from csi.pb import csi_pb2
from csi.room import MIB, Bounds, expected
from runtime.memory import MemoryUse
from tests.csi_rig import OTHER_UID, UID, Rig, publish_request, rig, target, volume
from tests.unit.csi.test_node_adopt import left_behind


def on_a_full_node(
    main: Callable[[Rig], Awaitable[None]], base: Path, bounds: Bounds, memory: MemoryUse | None = None
) -> None:
    async def run() -> None:
        async with rig(base, bounds=bounds, memory=lambda: memory) as here:
            await main(here)

    asyncio.run(run())


ONE = Bounds(volumes=1, pod_volumes=1)


def second(here: Rig) -> csi_pb2.NodePublishVolumeRequest:
    return publish_request(here.root, OTHER_UID, "csi-2")


def test_nothing_is_asked_for_and_nothing_mounted(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        steps = list(here.steps.taken)
        with pytest.raises(NodeFull):
            await here.publish(second(here))
        assert here.steps.taken == steps
        assert not Path(target(here.root, OTHER_UID)).exists()
        assert here.observed == ["published", "node_full"]
        # What is there goes on.
        await here.publish()
        assert here.observed[-1] == "republished"
        await here.unpublish()
        await here.publish(second(here))
        assert here.observed[-1] == "published"

    on_a_full_node(main, tmp_path, ONE)


def test_one_pod_has_so_many(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        other = publish_request(here.root, UID, "csi-2")
        other.target_path = target(here.root, UID, "other")
        with pytest.raises(PodFull, match="default/web-0 has 1 volumes"):
            await here.publish(other)
        assert here.observed == ["published", "pod_full"]
        await here.publish(second(here))

    on_a_full_node(main, tmp_path, Bounds(pod_volumes=1))


def test_no_memory_left(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        with pytest.raises(NodeFull, match="memory_headroom"):
            await here.publish()
        assert here.steps.taken == []

    on_a_full_node(main, tmp_path, Bounds(headroom=MIB), MemoryUse(100 * MIB, 99 * MIB, 0))


@pytest.mark.parametrize("step", ["issue", "attach", "open"])
def test_a_publish_that_fails_gives_its_room_back(tmp_path: Path, step: str) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing[step] = IdentityUnavailable("not now") if step != "attach" else OSError(12, "no memory")
        with pytest.raises(Exception, match=r"not now|no memory"):
            await here.publish()
        assert here.room.weight == Weight(0, 0)
        here.steps.failing.clear()
        await here.publish(second(here))

    on_a_full_node(main, tmp_path, ONE)


def test_one_that_could_not_be_undone_keeps_its_room_until_it_is_unpublished(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing["open"] = IdentityUnavailable("not now")
        here.steps.failing["detach"] = OSError(16, "busy")
        with pytest.raises(UndoFailed):
            await here.publish()
        assert here.room.weight == expected(volume(here.root).options)
        here.steps.failing.clear()
        with pytest.raises(NodeFull):
            await here.publish(second(here))
        await here.unpublish()
        assert here.room.weight == Weight(0, 0)

    on_a_full_node(main, tmp_path, ONE)


@pytest.mark.parametrize("step", ["issue", "open"])
def test_one_that_could_not_be_undone_counts_whatever_fails_next(tmp_path: Path, step: str) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing |= {"open": IdentityUnavailable("not now"), "detach": OSError(16, "busy")}
        with pytest.raises(UndoFailed):
            await here.publish()
        weight = here.room.weight
        here.steps.failing = {step: IdentityUnavailable("not now")}
        with pytest.raises((IdentityUnavailable, UndoFailed)):
            await here.publish()
        assert here.room.weight == weight
        with pytest.raises(NodeFull):
            await here.publish(second(here))

    on_a_full_node(main, tmp_path, ONE)


def test_one_that_could_not_be_picked_up_counts_whatever_fails_next(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        here.steps.failing["adopt csi-1"] = OSError(5, "unreadable")
        await here.adopt()
        weight = here.room.weight
        assert weight.now > 0
        here.steps.failing = {"issue": IdentityUnavailable("not now")}
        with pytest.raises(IdentityUnavailable):
            await here.publish()
        assert here.room.weight == weight

    on_a_full_node(main, tmp_path, ONE)


def test_one_that_was_unmounted_and_cannot_be_made_again_gives_its_room_back(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        mount = Path(target(here.root))
        mount.rename(mount.with_name("moved"))
        here.steps.failing["issue"] = IdentityUnavailable("not now")
        with pytest.raises(IdentityUnavailable):
            await here.publish()
        assert here.room.weight == Weight(0, 0)

    on_a_full_node(main, tmp_path, ONE)


def test_while_it_is_made_it_counts_as_what_it_may_become_then_as_what_it_is(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.steps.hold("issue")
        publishing = asyncio.create_task(here.publish())
        await here.steps.reached("issue")
        assert here.room.weight == expected(volume(here.root).options)
        with pytest.raises(NodeFull):
            await here.publish(second(here))
        here.steps.release("issue")
        await publishing
        assert 0 < here.room.weight.now < expected(volume(here.root).options).grown
        data = Path(target(here.root)) / "..2026_01_01"
        data.mkdir()
        (data / "file").write_bytes(bytes(MIB))
        here.node.stats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="csi-1", volume_path=target(here.root)))
        assert here.room.weight.now > MIB
        assert here.room.weight.grown > 3 * MIB

    on_a_full_node(main, tmp_path, ONE)
