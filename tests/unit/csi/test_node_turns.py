"""Turns of new volumes: one namespace's four hundred and another's one; and what waits leaves with its caller."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from csi.errors import NodeBusy, OperationPending
from csi.pb import csi_pb2
from csi.room import Bounds
from runtime.turns import Turns, Who
from tests.csi_rig import OTHER_UID, UID, Rig, publish_request, rig
from tests.unit.csi.test_node_publish import refused

# Volumes of one pod are as good as those of many here.
MANY = Bounds(volumes=10_000, pod_volumes=10_000, memory=1 << 40)
NAMESPACE, POD_UID = "csi.storage.k8s.io/pod.namespace", "csi.storage.k8s.io/pod.uid"


def on_a_node(
    main: Callable[[Rig, Turns], Awaitable[None]], base: Path, at_once: int, of_group: int | None = None
) -> None:
    async def run() -> None:
        turns = Turns(at_once, of_group=of_group)
        # Of two threads one may be kept from its work for as long as the other does that of a hundred volumes.
        async with rig(base, bounds=MANY, turns=turns, threads=1) as here:
            await main(here, turns)

    asyncio.run(run())


def request(
    here: Rig, number: int, namespace: str = "evil", uid: str = UID, volume: str = ""
) -> csi_pb2.NodePublishVolumeRequest:
    found = publish_request(here.root, uid, volume or f"csi-{number}", **{NAMESPACE: namespace})
    target = f"{here.root}/pods/{uid}/volumes/kubernetes.io~csi/v{number}/mount"
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    found.target_path = target
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("at_once", "of_group", "most"), [(1, None, 2), (8, 4, 4)])
def test_four_hundred_volumes_of_one_namespace_and_one_of_another(
    tmp_path: Path, at_once: int, of_group: int | None, most: int
) -> None:
    async def main(here: Rig, turns: Turns) -> None:
        order: list[str] = []

        async def publish(number: int, namespace: str, uid: str) -> None:
            await here.publish(request(here, number, namespace, uid))
            order.append(namespace)

        storm = [asyncio.create_task(publish(number, "evil", UID)) for number in range(400)]
        await until(lambda: turns.waiting == 400 - (of_group or at_once))
        done = len(order)
        one = asyncio.create_task(publish(400, "other", OTHER_UID))
        await one
        # Those that had begun, and one more for each of their turns at most.
        assert order.index("other") - done <= 2 * most
        await asyncio.gather(*storm)
        assert here.node.volumes == 401
        assert turns.waiting == 0

    on_a_node(main, tmp_path, at_once, of_group)


def test_whoever_waits_for_a_key_has_no_turn(tmp_path: Path) -> None:
    async def main(here: Rig, turns: Turns) -> None:
        here.steps.hold("key")
        waiting = [asyncio.create_task(here.publish(request(here, number))) for number in range(10)]
        await here.steps.reached("key")
        async with asyncio.timeout(30), turns.turn(Who("other", "pod")):
            pass
        assert "issue" not in here.steps.taken
        here.steps.release("key")
        await asyncio.gather(*waiting)

    on_a_node(main, tmp_path, 1)


def test_a_republish_and_an_unpublish_wait_for_no_turn(tmp_path: Path) -> None:
    async def main(here: Rig, turns: Turns) -> None:
        await here.publish()
        async with turns.turn(Who("evil", "pod")), asyncio.timeout(30):
            await here.publish()
            assert here.observed[-1] == "republished"
            await here.unpublish()
        assert here.node.volumes == 0

    on_a_node(main, tmp_path, 1)


@pytest.mark.parametrize("where", ["key", "turn"])
def test_a_publish_that_waits_ends_with_its_caller_and_nothing_is_made(tmp_path: Path, where: str) -> None:
    async def main(here: Rig, turns: Turns) -> None:
        async with turns.turn(Who("evil", "pod")):
            if where == "key":
                here.steps.hold("key")
            call = asyncio.create_task(here.publish())
            await (here.steps.reached("key") if where == "key" else until(lambda: turns.waiting == 1))
            # It is the volume's one operation while it waits.
            with pytest.raises(OperationPending):
                await here.publish()
            with pytest.raises(OperationPending):
                await here.unpublish()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await here.node.settle()
            assert turns.waiting == 0
        assert here.made() == []
        assert "issue" not in here.steps.taken
        if where == "key":
            here.steps.release("key")
        # kubelet comes again, or gives up.
        await here.publish()
        assert here.node.volumes == 1
        await here.unpublish()

    on_a_node(main, tmp_path, 1)


def test_a_volume_whose_turn_does_not_come_is_refused_for_now_and_nothing_is_made(tmp_path: Path) -> None:
    async def run() -> None:
        turns = Turns(1)
        async with rig(tmp_path, turns=turns, turn_deadline=0.01) as here:
            async with turns.turn(Who("evil", "pod")):
                text = await refused(here, NodeBusy)
            assert text == "no turn for this volume within 0.01 s: 0 others wait on this node; kubelet tries again"
            assert here.observed == ["node_busy"]
            assert here.made() == []
            await here.publish()

    asyncio.run(run())


def test_a_turn_ends_with_its_volumes_publish_whether_it_failed_or_not(tmp_path: Path) -> None:
    async def main(here: Rig, turns: Turns) -> None:
        for step in ("issue", "attach", "open"):
            here.steps.failing[step] = OSError(28, "No space left on device")
            with pytest.raises(Exception, match="No space"):
                await here.publish()
            here.steps.failing.clear()
        async with asyncio.timeout(30):
            await here.publish()
            await here.publish(request(here, 2, "other", OTHER_UID))

    on_a_node(main, tmp_path, 1)


def test_what_the_node_itself_does_for_one_namespace_leaves_room_for_another(tmp_path: Path) -> None:
    async def run() -> None:
        making = Turns(2, of_group=1)
        async with rig(tmp_path, bounds=MANY, making=making) as here:
            here.steps.hold("open")
            storm = [asyncio.create_task(here.publish(request(here, number))) for number in range(20)]
            await until(lambda: here.steps.taken.count("issue") == 20)
            await until(lambda: making.waiting == 19)
            # All are minted, one is being made, in a thread.
            await until(lambda: "attach" in here.steps.taken)
            assert here.steps.taken.count("attach") == 1
            other = asyncio.create_task(here.publish(request(here, 20, "other", OTHER_UID)))
            await until(lambda: here.steps.taken.count("open") == 2)
            here.steps.release("open")
            await asyncio.gather(other, *storm)
            assert here.node.volumes == 21

    asyncio.run(run())


async def published(here: Rig, many: int) -> None:
    """Volumes of the one namespace, and the one after them of another."""
    await asyncio.gather(*(here.publish(request(here, number)) for number in range(many)))
    await here.publish(request(here, many, "other", OTHER_UID))


def going(here: Rig, number: int, uid: str = UID) -> csi_pb2.NodeUnpublishVolumeRequest:
    target = request(here, number, uid=uid).target_path
    return csi_pb2.NodeUnpublishVolumeRequest(volume_id=f"csi-{number}", target_path=target)


def test_four_hundred_unpublishes_of_one_namespace_and_one_of_another(tmp_path: Path) -> None:
    async def run() -> None:
        ending = Turns(4, of_group=2)
        async with rig(tmp_path, bounds=MANY, ending=ending, threads=1) as here:
            await published(here, 400)
            order: list[str] = []

            async def unpublish(number: int, namespace: str, uid: str) -> None:
                await here.node.unpublish(going(here, number, uid))
                order.append(namespace)

            here.steps.hold("close")
            storm = [asyncio.create_task(unpublish(number, "evil", UID)) for number in range(400)]
            await until(lambda: here.steps.taken.count("close") == 2)
            assert ending.waiting == 398
            one = asyncio.create_task(unpublish(400, "other", OTHER_UID))
            # It has begun; so has what kubelet wants taken away that nobody knows, as after a crash.
            await until(lambda: here.steps.taken.count("close") == 3)
            await here.node.unpublish(going(here, 999))
            # A pod that starts waits for none of them either.
            await here.publish(request(here, 401, "third", OTHER_UID))
            assert not order
            here.steps.release("close")
            await one
            assert order.index("other") <= 2 * 2
            await asyncio.gather(*storm)
            assert (here.node.volumes, ending.waiting) == (1, 0)

    asyncio.run(run())


def test_an_unpublish_that_waits_ends_with_its_caller_and_takes_nothing_away(tmp_path: Path) -> None:
    async def run() -> None:
        ending = Turns(1)
        async with rig(tmp_path, ending=ending) as here:
            await here.publish()
            async with ending.turn(Who("evil", "pod")):
                call = asyncio.create_task(here.unpublish())
                await until(lambda: ending.waiting == 1)
                # It is the volume's one operation while it waits.
                with pytest.raises(OperationPending):
                    await here.publish()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                await here.node.settle()
                assert ending.waiting == 0
            assert "close" not in here.steps.taken
            await here.publish()
            assert here.observed[-1] == "republished"
            await here.unpublish()
            assert here.node.volumes == 0

    asyncio.run(run())


def test_an_unpublish_that_has_begun_outlives_its_caller_and_gives_its_turn_back(tmp_path: Path) -> None:
    async def run() -> None:
        ending = Turns(1)
        async with rig(tmp_path, ending=ending) as here:
            await here.publish()
            here.steps.hold("close")
            call = asyncio.create_task(here.unpublish())
            await here.steps.reached("close")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            here.steps.release("close")
            await here.node.settle()
            assert here.node.volumes == 0
            # One that fails gives it back as well.
            await here.publish()
            here.steps.failing["close"] = OSError(5, "Input/output error")
            with pytest.raises(OSError, match="Input/output"):
                await here.unpublish()
            here.steps.failing.clear()
            async with asyncio.timeout(30):
                await here.unpublish()
            assert here.node.volumes == 0

    asyncio.run(run())
