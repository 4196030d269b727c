"""One `podsvid node ls` at a time in an agent's pod, whose memory limit holds one."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from podsvid import readings
from podsvid.waiting import GIVEN_UP, GaveUp


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def rest(self, seconds: float) -> None:
        self.seconds += seconds


def waited(arguments: list[str], folder: Path) -> float:
    """Seconds until it was its turn."""
    clock = Clock()
    with readings.turn(arguments, {"PODSVID_RUN_DIR": str(folder)}, now=clock.now, rest=clock.rest):
        return clock.seconds


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Path]:
    """A run directory in whose pod somebody reads already."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield tmp_path
    os.close(descriptor)


@pytest.mark.parametrize("command", ["ls", "explain"])
def test_a_second_one_waits_says_so_and_gives_up(
    reading: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GaveUp, match="one at a time"):
        waited(["node", command], reading)
    assert capsys.readouterr().err.count("waiting for another `podsvid node`") == 1


@pytest.mark.parametrize("arguments", [["node", "rotate", "a/b"], ["node", "--help"], ["node"], ["explain", "ls"]])
def test_nothing_else_waits(reading: Path, arguments: list[str]) -> None:
    assert waited(arguments, reading) == 0


def test_it_comes_next_when_the_first_one_ends(tmp_path: Path) -> None:
    ended = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(ended, fcntl.LOCK_EX)
    clock = Clock()

    def rest(seconds: float) -> None:
        clock.rest(seconds)
        os.close(ended)

    with readings.turn(["node", "ls"], {"PODSVID_RUN_DIR": str(tmp_path)}, now=clock.now, rest=rest):
        assert 0 < clock.seconds < GIVEN_UP
    assert waited(["node", "ls"], tmp_path) == 0


def test_outside_of_an_agents_pod_nobody_waits(reading: Path) -> None:
    with readings.turn(["node", "ls"], {}):
        pass
    assert waited(["node", "ls"], reading / "absent") == 0


def test_where_there_are_no_locks_nobody_waits(reading: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert waited(["node", "ls"], reading) == 0


def test_who_waits_has_loaded_nothing_yet(reading: Path) -> None:
    environment = {**os.environ, "PODSVID_RUN_DIR": str(reading)}
    line = [sys.executable, "-m", "podsvid", "node", "ls"]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "podsvid: waiting for another `podsvid node` in this pod\n"
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
            assert "python" in maps
            assert "cygrpc" not in maps
        finally:
            process.kill()
