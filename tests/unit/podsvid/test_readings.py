"""One `podsvid node ls` at a time in an agent's pod, whose memory limit holds one."""

import argparse
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from podsvid import readings
from podsvid.cli import main
from podsvid.node_options import add_arguments
from podsvid.waiting import GIVEN_UP, GaveUp


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def rest(self, seconds: float) -> None:
        self.seconds += seconds


def parsed(arguments: list[str], folder: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = parser.parse_args(arguments)
    if "--socket" not in arguments:
        found.socket = str(folder / "admin.sock")
    return found


def waited(arguments: list[str], folder: Path) -> float:
    """Seconds until it was its turn."""
    clock = Clock()
    environment = {"PODSVID_RUN_DIR": str(folder)}
    with readings.turn(parsed(arguments, folder), environment, now=clock.now, rest=clock.rest):
        return clock.seconds


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Path]:
    """A run directory in whose pod somebody reads already."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield tmp_path
    os.close(descriptor)


@pytest.mark.parametrize("command", [["ls"], ["explain", "a/b"]])
def test_a_second_one_waits_says_so_and_gives_up(
    reading: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GaveUp, match="one at a time"):
        waited(command, reading)
    assert capsys.readouterr().err.count("waiting for another `podsvid node`") == 1


def test_nothing_else_waits(reading: Path) -> None:
    assert waited(["rotate", "a/b"], reading) == 0


def test_it_waits_no_longer_than_it_may_take(reading: Path) -> None:
    clock = Clock()
    given = parsed(["ls", "--timeout", "1s"], reading)
    with (
        pytest.raises(GaveUp, match="after 1 s"),
        readings.turn(given, {"PODSVID_RUN_DIR": str(reading)}, now=clock.now, rest=clock.rest),
    ):
        pytest.fail("it had its turn")
    assert clock.seconds == pytest.approx(1.0)


def test_who_asks_another_agent_does_not_wait_for_this_one(reading: Path) -> None:
    other = reading / "other"
    other.mkdir()
    assert waited(["ls", "--socket", str(other / "admin.sock")], reading) == 0


@pytest.mark.parametrize(
    ("arguments", "code"), [(["ls", "--help"], 0), (["explain", "-h"], 0), (["ls", "--nonsense"], 2), (["ls", "x"], 2)]
)
def test_help_and_mistakes_are_told_at_once(
    reading: Path, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        pytest.fail("it waited for its turn")

    monkeypatch.setenv("PODSVID_RUN_DIR", str(reading))
    monkeypatch.setattr(readings, "_wait", nobody)
    assert main(["node", *arguments]) == code


def test_it_comes_next_when_the_first_one_ends(tmp_path: Path) -> None:
    ended = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(ended, fcntl.LOCK_EX)
    clock = Clock()

    def rest(seconds: float) -> None:
        clock.rest(seconds)
        os.close(ended)

    with readings.turn(parsed(["ls"], tmp_path), {"PODSVID_RUN_DIR": str(tmp_path)}, now=clock.now, rest=rest):
        assert 0 < clock.seconds < GIVEN_UP
    assert waited(["ls"], tmp_path) == 0


def test_outside_of_an_agents_pod_nobody_waits(reading: Path) -> None:
    with readings.turn(parsed(["ls"], reading), {}):
        pass
    assert waited(["ls"], reading / "absent") == 0


def test_where_there_are_no_locks_nobody_waits(reading: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert waited(["ls"], reading) == 0


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
            assert "google/_upb" not in maps
        finally:
            process.kill()
