"""Sets of files that `podsvid api` writes: whole or not at all, whoever reads, writes or dies beside it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from podsvid.api.file_set import DirectoryInUse, FileSet, NotOurs, SetFile
from tests.inotify import MASKS, watching
from tests.node.api_rig import environment, modes


def contents(directory: Path, name: str = "data") -> dict[str, bytes]:
    data = directory / f"..{name}"
    return {path.name: path.read_bytes() for path in data.iterdir()}


def generations(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith("..podsvid.")]


def test_a_set_is_replaced_as_one_and_what_is_no_longer_part_vanishes(base: Path) -> None:
    out = base / "out"
    files = FileSet(out, "data")
    os.umask(mask := os.umask(0o077))
    try:
        os.umask(0o077)
        files.write({"a": SetFile(b"1"), "b": SetFile(b"1", secret=True)})
    finally:
        os.umask(mask)
    assert modes(out) == {"a": 0o644, "b": 0o600}
    (out / "mine").write_text("x")
    held = os.open(out / "..data", os.O_RDONLY)
    files.write({"a": SetFile(b"2"), "c": SetFile(b"2")})
    assert modes(out).keys() == {"a", "c", "mine"}
    assert (out / "a").read_bytes() == (out / "c").read_bytes() == b"2"
    # Whoever has the one before open reads it to its end; the one before that is gone.
    assert sorted(os.listdir(held)) == ["a", "b"]
    files.write({"a": SetFile(b"3")})
    assert os.listdir(held) == []
    os.close(held)
    assert len(generations(out)) == 2
    assert contents(out) == {"a": b"3"}
    assert (out / "mine").read_text() == "x"


def test_a_sweep_leaves_the_present_files_and_all_that_is_not_of_the_set(base: Path) -> None:
    files, others = FileSet(base, "data"), FileSet(base, "jwt")
    for content in (b"1", b"2"):
        files.write({"a": SetFile(content, secret=True)})
        others.write({"b": SetFile(content)})
    held = os.open(base / "..data", os.O_RDONLY)
    files.write({"a": SetFile(b"3", secret=True)})
    with watching(base / "a", MASKS["fsnotify"]) as watch:
        files.write({"a": SetFile(b"4", secret=True)})
        assert os.listdir(held) == []
        files.sweep()
        assert watch.events()
    os.close(held)
    assert contents(base) == {"a": b"4"}
    assert len([name for name in generations(base) if ".data." in name]) == 1
    assert len([name for name in generations(base) if ".jwt." in name]) == 2
    (base / "..data").unlink()
    (base / "..data").symlink_to("elsewhere")
    with pytest.raises(NotOurs, match="in the way"):
        files.sweep()


def test_sets_of_other_names_share_a_directory(base: Path) -> None:
    FileSet(base, "data").write({"a": SetFile(b"1")})
    FileSet(base, "jwt").write({"b": SetFile(b"2")})
    FileSet(base, "jwt").write({"c": SetFile(b"3")})
    FileSet(base, "data").write({"a": SetFile(b"4")})
    assert modes(base).keys() == {"a", "c"}
    with pytest.raises(NotOurs, match="/a is in the way"):
        FileSet(base, "jwt").write({"a": SetFile(b"5")})
    assert (base / "a").read_bytes() == b"4"


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling", "data file", "data link"])
def test_what_somebody_else_made_is_never_replaced(base: Path, kind: str) -> None:
    (base / "elsewhere").write_text("precious")
    name = "..data" if kind.startswith("data") else "b"
    match kind:
        case "file" | "data file":
            (base / name).write_text("precious")
        case "directory":
            (base / name).mkdir()
        case "link" | "data link":
            (base / name).symlink_to("elsewhere")
        case "dangling":
            (base / name).symlink_to("nowhere")
    before = {path.name: os.readlink(path) if path.is_symlink() else "" for path in base.iterdir()}
    with pytest.raises(NotOurs, match="was not made by this command"):
        FileSet(base, "data").write({"a": SetFile(b"1"), "b": SetFile(b"1")})
    assert {path.name: os.readlink(path) if path.is_symlink() else "" for path in base.iterdir()} == before
    assert (base / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("call", ["mkdir", "symlink", "rename", "fsync", "fchmod"])
def test_a_write_that_fails_leaves_everything_as_it_was(base: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileSet(base, "data")
    files.write({"a": SetFile(b"1", secret=True)})
    before = sorted(path.name for path in base.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, call, full)
        files.write({"a": SetFile(b"2"), "b": SetFile(b"2")})
    assert sorted(path.name for path in base.iterdir()) == before
    assert contents(base) == {"a": b"1"}
    files.write({"b": SetFile(b"3")})
    assert modes(base).keys() == {"b"}


WRITES_AND_DIES = """
import os, sys
from pathlib import Path
from podsvid.api.file_set import FileSet, SetFile
calls = int(sys.argv[2])
def dying(call):
    def wrapped(*arguments, **named):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), 9)
        return call(*arguments, **named)
    return wrapped
for name in ("mkdir", "symlink", "rename", "fsync", "fchmod", "open", "unlink", "rmdir", "listdir"):
    setattr(os, name, dying(getattr(os, name)))
FileSet(Path(sys.argv[1]), "data").write({"a": SetFile(b"2"), "new": SetFile(b"2")})
"""


def test_a_write_that_is_killed_at_any_point_leaves_a_whole_set_and_no_trace_after_the_next(base: Path) -> None:
    files = FileSet(base, "data")
    killed = 0
    for calls in range(1, 100):
        files.write({"a": SetFile(b"1"), "old": SetFile(b"1", secret=True)})
        ended = subprocess.run(
            [sys.executable, "-c", WRITES_AND_DIES, str(base), str(calls)], env=environment(), check=False
        )
        found = contents(base)
        assert found in ({"a": b"1", "old": b"1"}, {"a": b"2", "new": b"2"})
        assert {name: (base / name).read_bytes() for name in found} == found
        files.write({"a": SetFile(b"3"), "old": SetFile(b"3")})
        # Whatever of the killed one is left goes away by the write after it.
        files.write({"a": SetFile(b"4"), "old": SetFile(b"4")})
        assert len(generations(base)) == 2
        assert {path.name for path in base.iterdir()} == {"..data", "a", "old", *generations(base)}
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        killed += 1
    assert killed > 15


def read_in(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def test_a_reader_never_sees_half_a_set(base: Path) -> None:
    files = FileSet(base, "data")
    names = ("a", "b", "c")
    files.write({name: SetFile(b"0") for name in names})
    done = threading.Event()
    torn: list[set[bytes]] = []

    def read() -> None:
        while not done.is_set():
            folder = os.open(base / "..data", os.O_RDONLY | os.O_DIRECTORY)
            try:
                seen = {read_in(folder, name) for name in names}
            except FileNotFoundError:
                continue  # slept through two generations: gone, but never mixed
            finally:
                os.close(folder)
            if len(seen) != 1:
                torn.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(100):
            files.write({name: SetFile(str(n).encode()) for name in names})
    finally:
        done.set()
        reader.join()
    assert torn == []


def test_writers_of_one_directory_wait_for_each_other_and_not_for_ever(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podsvid.api.file_set._LOCK_WAIT", 0.05)
    holder = os.open(base, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(DirectoryInUse):
        FileSet(base, "data").write({"a": SetFile(b"1")})
    os.close(holder)
    FileSet(base, "data").write({"a": SetFile(b"1")})
