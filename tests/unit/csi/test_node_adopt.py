"""What a new process makes of the volumes that an earlier one published: all it can, and none at another's cost."""

import errno
import json
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from csi.errors import IdentityUnavailable
from csi.journal import Entry
from csi.model import Contents, Volume
from csi.room import expected
from csi.volume import VolumeDirectory
from tests.csi_rig import NOW, OTHER_UID, UID, Rig, contents, plain_directory, target, volume
from tests.unit.csi.test_node_publish import closed, on_a_node

RENEW_AT = NOW + timedelta(minutes=40)


def left_behind(here: Rig, uid: str = UID, volume_id: str = "csi-1") -> tuple[Volume, Contents]:
    """A volume as an earlier process left it: journal, mount and files."""
    written, place = contents(), Path(target(here.root, uid))
    place.mkdir()
    with plain_directory(place) as directory:
        directory.write(written, NOW)
    here.mounts.mounted.add(place.stat().st_ino)
    found = volume(here.root, uid, volume_id)
    here.journal.record(Entry(found, written.identity.default.serial, RENEW_AT))
    return found, written


def events(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [line.message for line in caplog.records if line.levelno >= level]


def test_a_volume_is_picked_up_with_its_svid_and_its_drawn_instant(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        _, written = left_behind(here)
        await here.adopt()
        ((volume_id, found, renew_at),) = here.workloads.adopted
        assert (volume_id, renew_at) == ("csi-1", RENEW_AT)
        assert found is not None
        assert found.identity.default.serial == written.identity.default.serial
        assert here.node.volumes == 1
        # It is published as if this process had done it.
        await here.publish()
        assert here.observed == ["republished"]
        assert "issue" not in here.steps.taken
        await here.unpublish()
        assert here.made() == []

    on_a_node(main, tmp_path)


def test_an_instant_that_was_drawn_for_another_svid_is_not_used(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        found, _ = left_behind(here)
        here.journal.record(Entry(found, "another", RENEW_AT))
        await here.adopt()
        ((_, contents, renew_at),) = here.workloads.adopted
        assert contents is not None
        assert renew_at is None

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("damage", ["no files", "damaged"])
def test_a_volume_whose_files_are_unusable_is_picked_up_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        data = Path(target(here.root)) / "..data"
        if damage == "no files":
            data.unlink()
        else:
            (data / ".state.json").chmod(0o600)
            (data / ".state.json").write_bytes(b"{")
        await here.adopt()
        assert here.workloads.adopted == [("csi-1", None, None)]
        assert events(caplog, logging.WARNING) == ["volume's files are unusable; a new SVID is due"]
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)


def test_a_volume_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        here.mounts.mounted.clear()
        await here.adopt()
        assert here.workloads.adopted == []
        assert here.node.volumes == 0
        assert list(here.journal.entries()) == []

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_volume_that_cannot_be_looked_at_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        left_behind(here, OTHER_UID, "csi-2")
        real = os.open

        def short(path: str, *arguments: object, **named: object) -> int:
            if path == UID:
                raise OSError(number, os.strerror(number))
            return real(path, *arguments, **named)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", short)
            await here.adopt()
        assert [each for each, *_ in here.workloads.adopted] == ["csi-2"]
        assert events(caplog) == ["volume cannot be looked at; kubelet's next publish will pick it up"]
        # It may well be mounted: it counts, and a new agent finds it again.
        assert {each.volume.id for each in here.journal.entries() if isinstance(each, Entry)} == {"csi-1", "csi-2"}
        before = here.room.weight
        assert not here.room.admit(volume(here.root))
        await here.publish()
        assert "attach" not in here.steps.taken
        await here.unpublish()
        assert here.room.weight.grown < before.grown

    on_a_node(main, tmp_path)


@pytest.mark.parametrize(
    "error",
    [OSError(24, "Too many open files"), IdentityUnavailable("not now"), RuntimeError("a bug"), KeyError("another")],
)
def test_a_volume_that_cannot_be_picked_up_keeps_none_of_the_others_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        left_behind(here, OTHER_UID, "csi-2")
        here.steps.failing["adopt csi-1"] = error
        await here.adopt()
        assert [each for each, *_ in here.workloads.adopted] == ["csi-2"]
        assert here.node.volumes == 1
        bug = "" if isinstance(error, OSError | IdentityUnavailable) else "bug: "
        assert events(caplog) == [f"{bug}volume could not be picked up; kubelet's next publish will"]
        # Its mount and its journal stay for that.
        assert Path(target(here.root)).stat().st_ino in here.mounts.mounted
        assert {each.volume.id for each in here.journal.entries() if isinstance(each, Entry)} == {"csi-1", "csi-2"}
        await here.publish()
        assert here.observed == ["published"]
        assert "attach" not in here.steps.taken

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("a bug")])
def test_a_publish_that_cannot_pick_its_volume_up_makes_it_anew(tmp_path: Path, error: Exception) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        await here.node.look()
        here.steps.failing["adopt csi-1"] = error
        await here.publish()
        assert here.observed == ["published"]
        assert "attach" not in here.steps.taken

    on_a_node(main, tmp_path)


def test_a_volume_that_cannot_be_weighed_counts_and_keeps_no_agent_from_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weight(*_: object) -> None:
        raise OSError(5, "Input/output error")

    async def main(here: Rig) -> None:
        left_behind(here)
        left_behind(here, OTHER_UID, "csi-2")
        monkeypatch.setattr(VolumeDirectory, "weight", weight)
        await here.adopt()
        assert here.node.volumes == 2
        assert here.room.weight.now == 2 * expected(volume(here.root).options).grown
        assert events(caplog, logging.WARNING) == ["volume cannot be weighed"] * 2

    on_a_node(main, tmp_path)


def test_a_directory_that_nobody_took_over_is_closed(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        here.steps.failing["adopt csi-1"] = OSError(24, "Too many open files")
        await here.adopt()
        assert closed(here)

    on_a_node(main, tmp_path)


def _another_target(document: dict[str, object]) -> None:
    document["target"] = str(document["target"]).replace(UID, OTHER_UID)


def _another_pod(document: dict[str, object]) -> None:
    pod = document["pod"]
    assert isinstance(pod, dict)
    pod["uid"] = OTHER_UID


def _no_version(document: dict[str, object]) -> None:
    del document["version"]


@pytest.mark.parametrize("change", [_another_target, _another_pod, _no_version])
def test_a_journal_entry_that_is_not_to_be_believed_is_reported_and_gives_nobody_an_identity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[dict[str, object]], None]
) -> None:
    async def main(here: Rig) -> None:
        left_behind(here)
        path = tmp_path / "journal" / "csi-1.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")
        left_behind(here, OTHER_UID, "csi-2")
        await here.adopt()
        assert [each for each, *_ in here.workloads.adopted] == ["csi-2"]
        assert events(caplog) == ["journal entry is damaged and was set aside"]
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)
