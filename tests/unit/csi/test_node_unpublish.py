"""Unpublish, which tolerates everything, and the stats of a volume."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import pytest

from csi.errors import CsiError, InvalidRequest, TargetConflict, UndoFailed, VolumeNotFound
from csi.journal import Entry
from csi.model import Condition
from csi.pb import csi_pb2
from tests.csi_rig import NOW, OTHER_UID, UID, Rig, target, unpublish_request, volume
from tests.unit.csi.test_node_publish import closed, on_a_node

BUSY = OSError(16, "Device or resource busy")


async def refused(here: Rig, error: type[CsiError], request: csi_pb2.NodeUnpublishVolumeRequest | None = None) -> str:
    with pytest.raises(CsiError) as caught:
        await here.node.unpublish(request or unpublish_request(here.root))
    assert type(caught.value) is error
    return str(caught.value)


def test_nothing_serves_the_volume_any_more_when_it_is_taken_away(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        here.steps.hold("detach")
        running = asyncio.create_task(here.unpublish())
        await here.steps.reached("detach")
        assert here.steps.taken[4:] == ["close", "detach"]
        # An open directory would keep the mount busy.
        assert closed(here)
        # Others may have it open for longer.
        assert here.made() == ["mount"]
        here.steps.release("detach")
        await running
        assert here.made() == []
        assert here.node.volumes == 0
        for _ in range(2):
            await here.unpublish()
        assert here.steps.taken[4:] == ["close", "detach"]

    on_a_node(main, tmp_path)


def test_a_volume_that_is_published_elsewhere_is_not_touched_at_either_place(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        other = Path(target(here.root, OTHER_UID))
        other.mkdir()
        (other / "kept").touch()
        told = await refused(here, TargetConflict, unpublish_request(here.root, OTHER_UID))
        assert target(here.root) in told
        assert (other / "kept").exists()
        assert here.made() == ["mount", "mount/tls.key"]
        assert "close" not in here.steps.taken
        assert here.node.volumes == 1
        await here.unpublish()
        assert here.node.volumes == 0

    on_a_node(main, tmp_path)


def test_what_could_not_be_removed_is_removed_by_the_next_call(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        here.steps.failing["detach"] = BUSY
        assert await refused(here, UndoFailed) == "the volume could not be removed: Device or resource busy"
        assert here.node.volumes == 0
        here.steps.failing.clear()
        await here.unpublish()
        assert here.made() == []

    on_a_node(main, tmp_path)


def test_a_volume_whose_socket_does_not_close_stays_known_and_mounted(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        here.steps.failing["close"] = RuntimeError("not yet")
        with pytest.raises(RuntimeError):
            await here.unpublish()
        assert here.node.volumes == 1
        assert "detach" not in here.steps.taken
        here.steps.failing.clear()
        await here.unpublish()
        assert here.made() == []

    on_a_node(main, tmp_path)


def test_of_a_volume_that_is_not_known_the_journal_and_what_is_left_go(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.journal.record(Entry(volume(here.root), "1", NOW + timedelta(hours=1)))
        here.journal.record(Entry(volume(here.root, OTHER_UID, "csi-2"), "1", NOW + timedelta(hours=1)))
        left = Path(target(here.root))
        left.mkdir()
        (left / "tls.key").touch()
        await here.unpublish()
        assert here.made() == []
        assert sorted(os.listdir(tmp_path / "journal")) == ["csi-2.json"]

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("name", ["../csi-1", "a" * 129, ".hidden", "a/b", "ä", "\0"])
def test_an_id_that_never_was_a_volumes_is_fine_and_leads_nowhere(tmp_path: Path, name: str) -> None:
    async def main(here: Rig) -> None:
        (tmp_path / "csi-1.json").touch()
        Path(target(here.root)).mkdir()
        await here.unpublish(volume_id=name)
        assert here.made() == []
        assert (tmp_path / "csi-1.json").exists()

    on_a_node(main, tmp_path)


def test_a_journal_that_cannot_be_changed_leaves_the_volume_for_the_next_call(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        (tmp_path / "journal" / "csi-1.json").mkdir(parents=True)
        with pytest.raises(OSError):
            await here.unpublish()
        (tmp_path / "journal" / "csi-1.json").rmdir()
        await here.unpublish()

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("path", ["/etc", "{root}/pods", "{root}/pods/{uid}/../../etc/mount", "relative"])
def test_nothing_outside_of_the_pods_volumes_is_taken_away(tmp_path: Path, path: str) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        request = csi_pb2.NodeUnpublishVolumeRequest(
            volume_id="csi-2", target_path=path.format(root=here.root, uid=UID)
        )
        assert "not of the form" in await refused(here, InvalidRequest, request)
        assert "detach" not in here.steps.taken
        assert (here.root / "pods" / OTHER_UID).is_dir()
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(target_path=target(here.root))
        assert await refused(here, InvalidRequest, request) == "volume_id is missing"
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id="csi-1")
        assert await refused(here, InvalidRequest, request) == "target_path is missing"
        for stats, told in (
            (csi_pb2.NodeGetVolumeStatsRequest(volume_path="/x"), "volume_id is missing"),
            (csi_pb2.NodeGetVolumeStatsRequest(volume_id="csi-1"), "volume_path is missing"),
        ):
            with pytest.raises(InvalidRequest, match=told):
                here.node.stats(stats)

    on_a_node(main, tmp_path)


def test_stats_are_of_the_published_volume_at_its_path_only(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id="csi-1", volume_path=target(here.root))
        with pytest.raises(VolumeNotFound):
            here.node.stats(request)
        await here.publish()
        here.workloads.health = Condition(True, "the SVID is past its renewal window")
        answer = here.node.stats(request)
        assert answer.volume_condition.abnormal
        assert answer.volume_condition.message == "the SVID is past its renewal window"
        kinds = csi_pb2.VolumeUsage
        assert [each.unit for each in answer.usage] == [kinds.BYTES, kinds.INODES]
        here.workloads.health = Condition(False, "fine")
        assert not here.node.stats(request).volume_condition.abnormal
        for other in (
            csi_pb2.NodeGetVolumeStatsRequest(volume_id="csi-1", volume_path=target(here.root, OTHER_UID)),
            csi_pb2.NodeGetVolumeStatsRequest(volume_id="csi-2", volume_path=target(here.root)),
        ):
            with pytest.raises(VolumeNotFound, match="is not published at"):
                here.node.stats(other)
        await here.unpublish()
        with pytest.raises(VolumeNotFound):
            here.node.stats(request)

    on_a_node(main, tmp_path)
