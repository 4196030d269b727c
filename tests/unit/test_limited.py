"""The cgroup that the bench puts a signer in: either version, or a message that says what to do."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from bench.limited import NoCgroup, limited
from bench.strangers import addresses


def test_either_version_is_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        1: {
            "memory.limit_in_bytes": "0",
            "memory.max_usage_in_bytes": "7\n",
            "memory.usage_in_bytes": "5\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
        2: {
            "memory.max": "max",
            "memory.peak": "7\n",
            "memory.current": "5\n",
            "memory.events": "low 0\noom 9\noom_kill 2\n",
        },
    }
    made = os.mkdir

    def filled(folder: str, *rest: int) -> None:
        made(folder, *rest)
        for name, text in files[version].items():
            Path(folder, name).write_text(text)
        Path(folder, "cgroup.procs").write_text("")

    for version in (1, 2):
        root = tmp_path / str(version)
        root.mkdir()
        if version == 1:
            (root / "memory").mkdir()
            (root / "memory" / "memory.limit_in_bytes").write_text("0")
        else:
            (root / "cgroup.controllers").write_text("cpu memory\n")
            (root / "cgroup.subtree_control").write_text("\n")
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", filled)
            with limited(1000, root) as group, limited(1000, root) as other:
                assert other.folder != group.folder
                limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
                assert (group.folder / limit).read_text().startswith("1000")
                assert (group.version, group.peak(), group.used(), group.killed()) == (version, 7, 5, 2)
                assert subprocess.run(group.command("echo", "a b"), capture_output=True, check=True).stdout == b"a b\n"
                assert int((group.folder / "cgroup.procs").read_text()) > 1
        if version == 2:
            assert (root / "cgroup.subtree_control").read_text().startswith("+memory")


def test_a_group_is_taken_away_with_who_is_left_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("0")
    made, removed = os.mkdir, Path.rmdir

    def filled(folder: str, *rest: int) -> None:
        made(folder, *rest)
        Path(folder, "memory.limit_in_bytes").write_text("0")

    monkeypatch.setattr(os, "mkdir", filled)
    with subprocess.Popen(["sleep", "600"]) as left:

        def busy(folder: Path) -> None:
            if left.poll() is None:
                raise OSError(errno.EBUSY, "Device or resource busy")
            for file in folder.iterdir():
                file.unlink()
            removed(folder)

        monkeypatch.setattr(Path, "rmdir", busy)
        try:
            with limited(1000, tmp_path) as group:
                (group.folder / "cgroup.procs").write_text(f"{left.pid}\n")
            assert not group.folder.exists()
            assert left.returncode is not None
        finally:
            left.kill()


def test_where_none_can_be_made_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoCgroup, match="neither version 1 nor 2"), limited(1000, tmp_path):
        pass
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "cgroup.subtree_control").mkdir()
    with pytest.raises(NoCgroup, match="run as root"), limited(1000, tmp_path):
        pass


def test_attackers_come_from_many_addresses() -> None:
    assert addresses("127.0.0.1") == ["127.0.0.1"]
    assert addresses("127.64.0.255/3") == ["127.64.0.255", "127.64.1.0", "127.64.1.1"]
