"""What a rotation replaced: there for who began to read it, gone seconds later, and who watches a file hears of it."""

import asyncio
import os
import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.workload.workload import SUPERSEDED, Workload
from csi.model import VolumeOptions
from csi.volume import VolumeDirectory
from svid.identity import Trust
from tests.fake_authority import HOUR, root
from tests.inotify import MASKS, watching
from tests.workload_rig import Rig, on_rig, rig

FILES = ("tls.crt", "tls.key", "ca.crt")


def generations(workload: Workload) -> list[str]:
    return sorted(path.name for path in Path(workload.volume.target).glob("..2*"))


def read(directory: int) -> list[bytes]:
    def content(name: str) -> bytes:
        with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
            return file.read()

    return [content(name) for name in FILES]


async def swept(at: Rig, workload: Workload) -> None:
    """Let the time come at which what was replaced goes."""
    volume_id = workload.volume.id
    assert at.registry.sweeps.due(volume_id) == at.clock.at + SUPERSEDED
    at.clock.at += SUPERSEDED
    async with at.looping(at.registry.sweeps.run):
        await at.registry.sweeps.rotate_now(volume_id)


@pytest.mark.parametrize("file", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_who_watches_a_file_hears_of_each_rotation_and_finds_the_new_one(tmp_path: Path, mask: int, file: str) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        await swept(at, workload)
        path = Path(workload.volume.target) / file
        seen = [path.read_bytes()]
        with watching(path, mask) as watch:
            for _ in range(10):
                at.clock.at += HOUR / 2
                await workload.renew()
                await swept(at, workload)
                assert watch.events(), "it goes on with one that ends"
                seen.append(path.read_bytes())
        assert len(set(seen)) == 11

    on_rig(tmp_path, play)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_who_watches_the_trust_bundle_hears_when_it_is_another_one(tmp_path: Path, mask: int) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        await swept(at, workload)
        path = Path(workload.volume.target) / "ca.crt"
        before = path.read_bytes()
        if mask == MASKS["modify"]:
            return  # a bundle is not emptied: who mounts it alone keeps it
        with watching(path, mask) as watch:
            trust = at.authority.trust.current
            assert trust is not None
            both = (*trust.bundle.x509_authorities, *root(at.clock.at).bundle.x509_authorities)
            at.authority.trust.publish(Trust(replace(trust.bundle, x509_authorities=both, sequence=9)))
            async with at.looping(at.registry.follow_trust):
                await at.until(lambda: path.read_bytes() != before)
            watch.events()
            await swept(at, workload)
            assert watch.events()

    on_rig(tmp_path, play)


def test_replaced_keys_are_gone_seconds_later_also_for_who_has_them_open_and_until_then_all_is_there(
    tmp_path: Path,
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        await swept(at, workload)
        for _ in range(3):
            handle = os.open(Path(workload.volume.target) / "..data", os.O_RDONLY | os.O_DIRECTORY)
            key = os.open("tls.key", os.O_RDONLY, dir_fd=handle)
            try:
                before = read(handle)
                at.clock.at += HOUR / 2
                await workload.renew()
                at.clock.at += SUPERSEDED - timedelta(microseconds=1)
                async with at.looping(at.registry.sweeps.run):
                    await asyncio.sleep(0)
                    # Whoever began to read before the switch reads to the end what he began with.
                    assert read(handle) == before
                    at.clock.at += timedelta(microseconds=1)
                    await at.registry.sweeps.rotate_now(workload.volume.id)
                assert generations(workload) == [os.readlink(Path(workload.volume.target) / "..data")]
                assert os.pread(key, 10_000, 0) == b""
                with pytest.raises(FileNotFoundError):
                    os.open("tls.key", os.O_RDONLY, dir_fd=handle)
            finally:
                os.close(key)
                os.close(handle)
        assert at.registry.sweeps.due(workload.volume.id) is None, "nothing is left, and nobody looks"

    on_rig(tmp_path, play)


def test_a_second_write_within_these_seconds_starts_them_anew(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        await swept(at, workload)
        at.clock.at += HOUR / 2
        await workload.renew()
        at.clock.at += SUPERSEDED / 2
        workload.ask_for_renewal()
        await workload.renew()
        assert len(generations(workload)) == 3
        await swept(at, workload)
        assert len(generations(workload)) == 1

    on_rig(tmp_path, play)


def test_a_mint_that_takes_its_time_keeps_no_replaced_key(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        workload.ask_for_renewal()
        await workload.renew()
        assert len(generations(workload)) == 2
        at.clock.at += HOUR / 2
        at.authority.go_on.clear()
        async with at.looping(at.registry.scheduler.run, at.registry.sweeps.run):
            at.registry.scheduler.schedule(workload.volume.id, at.clock.at)
            await at.until(lambda: len(at.authority.asked) == 3)
            await at.registry.sweeps.rotate_now(workload.volume.id)
            assert len(generations(workload)) == 1
            at.authority.go_on.set()

    on_rig(tmp_path, play)


def test_what_a_process_left_that_ended_before_its_sweep_goes_when_the_volume_is_picked_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            volume = first.volume()
            workload = await first.open(volume)
            first.clock.at += HOUR / 2
            await workload.renew()
            assert len(generations(workload)) == 2
        async with rig(tmp_path, before=first) as second:
            workload = await second.adopt(volume)
            assert len(generations(workload)) == 2, "somebody may have begun to read just before the end"
            await swept(second, workload)
            assert len(generations(workload)) == 1
            assert len(second.authority.asked) == 2

    asyncio.run(main())


def test_a_volume_that_is_closed_is_swept_no_more(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        workload.ask_for_renewal()
        await workload.renew()
        await at.registry.close(workload.volume.id)
        assert at.registry.sweeps.due(workload.volume.id) is None
        workload.directory.close()
        # One that was on its way nevertheless finds nothing to do, and nobody else's volume.
        async with at.looping(at.registry.sweeps.run):
            await at.registry.sweeps.rotate_now(workload.volume.id)
            assert at.registry.sweeps.failures(workload.volume.id) == 0
        assert len(generations(workload)) == 2

    on_rig(tmp_path, play)


def test_what_cannot_go_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        workload.ask_for_renewal()
        await workload.renew()
        volume_id = workload.volume.id
        async with at.looping(at.registry.sweeps.run):
            with monkeypatch.context() as broken:
                broken.setattr("csi.volume.remove", lambda *_, **__: False)
                await at.registry.sweeps.rotate_now(volume_id)
            assert at.registry.sweeps.failures(volume_id) == 1
            (line,) = [each for each in caplog.records if "replaced files cannot be removed" in each.getMessage()]
            assert line.__dict__["volume_id"] == volume_id
            assert at.registry.scheduler.failures(volume_id) == 0, "no renewal failed"
            await at.registry.sweeps.rotate_now(volume_id)
            assert at.registry.sweeps.failures(volume_id) == 0
        assert len(generations(workload)) == 1

    on_rig(tmp_path, play)


def test_files_that_a_thread_is_writing_are_never_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume(options=VolumeOptions(keystores="pkcs12")))
        workload.ask_for_renewal()
        half, go_on, switch = threading.Event(), threading.Event(), VolumeDirectory._switch

        def slowly(self: VolumeDirectory, stamp: str) -> None:
            half.set()
            assert go_on.wait(30)
            switch(self, stamp)

        monkeypatch.setattr(VolumeDirectory, "_switch", slowly)
        renewing = asyncio.ensure_future(workload.renew())
        await at.until(half.is_set)
        try:
            assert len(generations(workload)) == 2
            assert workload.sweep() == at.clock.at + SUPERSEDED, "it comes back"
            assert len(generations(workload)) == 2
        finally:
            go_on.set()
        await renewing
        assert workload.written == workload.contents
        await swept(at, workload)
        assert len(generations(workload)) == 1

    on_rig(tmp_path, play)


def test_a_watch_sees_nothing_where_nothing_happens(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with watching(path, MASKS["fsnotify"]) as watch, closing(path.open("rb")) as file:
        file.read()
        assert not watch.events()
