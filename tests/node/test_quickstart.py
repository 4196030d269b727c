"""``podsvid quickstart`` as a user starts it: real processes, real mounts where the host allows them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pytest

from tests.mounted import mount_points

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0

Event = dict[str, Any]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")


class Quickstart:
    """One ``podsvid quickstart --json``, its events and what it leaves behind."""

    def __init__(
        self,
        *arguments: str,
        directory: Path | None,
        python: tuple[str, ...] = (sys.executable,),
        json: bool = True,
    ) -> None:
        command = [*python, "-m", "podsvid", "quickstart", "--ttl", "6s", "--pods", "1", *arguments]
        if json:
            command.append("--json")
        if directory is not None:
            command += ["--dir", str(directory)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def next_event(self) -> Event:
        """The next line of JSON; fails the test when there is none before the deadline."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                self.process.kill()
                pytest.fail(f"no event: {self.process.communicate()[1].decode()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: Event = json.loads(line)
        return event

    def finish(self) -> tuple[list[Event], str]:
        """Wait for the end; the events not read yet, and what is on stderr."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return [json.loads(line) for line in (self._buffer + out).splitlines()], err.decode()

    def agent(self) -> int:
        """The process id of the agent."""
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: socket paths below it would be too long.
    made = Path(tempfile.mkdtemp(prefix="pvq-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(autouse=True)
def nothing_left(directory: Path) -> Iterator[None]:
    """Every test ends without mounts and processes that were not there before."""
    yield
    eventually(lambda: not processes_in(str(directory)))
    assert not [each for each in mount_points() if "pvq-" in each]


def processes_in(name: str) -> list[str]:
    """The live processes that have the text in their command line; a zombie has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if name.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def nobodys_python() -> tuple[str, ...]:
    """A command for this Python as an ordinary user, who may not reach the one that runs the tests."""
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # Twice, because it is the agent that has to be started by that user.
    again = "import grpc, rich, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    for python in (sys.executable, system):
        command = (*NOBODY, "env", f"PYTHONPATH={packages}", python)
        with suppress(OSError):
            if subprocess.run([*command, "-c", again], cwd=ROOT, capture_output=True, check=False).returncode == 0:
                return command
    pytest.skip("an ordinary user has no Python here")


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "this never became true"
        time.sleep(0.02)


def through(event: Event) -> Path:
    """The event's volume as seen from outside its mount namespace."""
    return Path(event["volume"])


def test_events_of_a_rotating_volume(directory: Path) -> None:
    with Quickstart("--exit-after", "2", directory=directory) as quickstart:
        events, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors

    assert [event["event"] for event in events] == ["published", "rotated", "rotated"]
    published = events[0]
    assert published["trust_domain"] == "example.org"
    assert published["spiffe_id"] == "spiffe://example.org/ns/demo/sa/app"
    assert published["socket"] == f"{published['volume']}/socket"
    assert published["pid"] == quickstart.process.pid
    assert len({event["serial"] for event in events}) == 3
    for event in events:
        assert re.fullmatch(r"[0-9a-f]+", event["serial"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["not_after"])
    moments = [datetime.fromisoformat(event["not_after"]) for event in events]
    assert moments == sorted(moments)
    assert sorted(path.name for path in directory.iterdir()) == ["agent.log", "quickstart.lock", "state"]


def test_the_volume_can_be_read_from_outside_and_its_socket_reached(directory: Path) -> None:
    with Quickstart(directory=directory) as quickstart:
        published = quickstart.next_event()
        volume = through(published)
        assert (volume / "tls.crt").read_text().startswith("-----BEGIN CERTIFICATE-----")
        assert (volume / "socket").is_socket()
        assert len(f"{volume}/socket") <= 107
        quickstart.process.send_signal(signal.SIGINT)
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors


def test_mounts_stay_in_a_namespace_of_their_own(directory: Path) -> None:
    with Quickstart(directory=directory) as quickstart:
        published = quickstart.next_event()
        if published["target_path"] not in mount_points(published["pid"]):
            pytest.skip("this host allows no mounts")
        assert published["target_path"] not in mount_points()
        quickstart.process.terminate()
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors


def test_several_pods(directory: Path) -> None:
    with Quickstart("--pods", "3", "--exit-after", "1", "--trust-domain", "td.test", directory=directory) as quickstart:
        events, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    published = [event for event in events if event["event"] == "published"]
    assert [event["spiffe_id"] for event in published] == [
        "spiffe://td.test/ns/demo/sa/app",
        "spiffe://td.test/ns/demo/sa/app-2",
        "spiffe://td.test/ns/demo/sa/app-3",
    ]
    rotated = {event["spiffe_id"] for event in events if event["event"] == "rotated"}
    assert rotated == {event["spiffe_id"] for event in published}


def test_two_pods_speak_across_a_rotation_and_refuse_a_stranger(directory: Path) -> None:
    with Quickstart("--pods", "2", "--exit-after", "1", directory=directory) as quickstart:
        events, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    ids = ["spiffe://example.org/ns/demo/sa/app", "spiffe://example.org/ns/demo/sa/app-2"]
    spoken = [event for event in events if event["event"] == "spoke"]
    assert len(spoken) >= 2
    assert all([event[f"{side}_seen"]["spiffe_id"] for side in ("client", "server")] == ids for event in spoken)
    serials = [{event["serial"] for event in events if event.get("spiffe_id") == each} for each in ids]
    for number, side in enumerate(("client", "server")):
        # A look at the files may be older than what is spoken with, never newer.
        assert spoken[0][f"{side}_seen"]["serial"] != spoken[-1][f"{side}_seen"]["serial"]
        assert len({event[f"{side}_seen"]["serial"] for event in spoken} & serials[number]) >= 2
    (refused,) = (event for event in events if event["event"] == "refused")
    assert (refused["server"], refused["claimed"]) == ("demo/pod-2", ids[0])
    assert "certificate" in refused["why"]


def test_it_says_that_everything_is_removed_and_it_is(directory: Path) -> None:
    with Quickstart("--exit-after", "0", directory=None, json=False) as quickstart:
        out, errors = quickstart.process.communicate(timeout=DEADLINE)
    assert quickstart.process.returncode == 0, errors.decode()
    found = re.fullmatch(r"Everything is removed: (\S+) is gone\.", out.decode().splitlines()[-1])
    assert found is not None
    assert not Path(found[1]).exists()


def test_exit_right_after_publishing_without_a_directory() -> None:
    with Quickstart("--exit-after", "0", directory=None) as quickstart:
        events, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    assert [event["event"] for event in events] == ["published"]
    assert not Path(events[0]["target_path"]).parents[5].exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_cleanly(directory: Path, number: signal.Signals) -> None:
    with Quickstart(directory=directory) as quickstart:
        quickstart.next_event()
        quickstart.process.send_signal(number)
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    assert not (directory / "kubelet").exists()


def test_ctrl_c_in_the_terminal_does_not_reach_the_agent(directory: Path) -> None:
    with Quickstart(directory=directory) as quickstart:
        quickstart.next_event()
        assert os.getpgid(quickstart.agent()) != os.getpgid(quickstart.process.pid)
        os.killpg(os.getpgid(quickstart.process.pid), signal.SIGINT)
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors


def test_the_agent_is_this_code_and_runs_as_the_options_say(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODSVID_X509_TTL", "9h")
    with Quickstart(directory=directory) as quickstart:
        quickstart.next_event()
        environment = Path(f"/proc/{quickstart.agent()}/environ").read_bytes().decode().split("\0")
        quickstart.process.terminate()
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    (path,) = (value for name, _, value in (line.partition("=") for line in environment) if name == "PYTHONPATH")
    assert path.split(os.pathsep)[0] == str(ROOT)
    assert not [line for line in environment if line.startswith("PODSVID_")]


def test_an_agent_that_dies_ends_it_with_the_end_of_its_log(directory: Path) -> None:
    with Quickstart(directory=directory) as quickstart:
        quickstart.next_event()
        os.kill(quickstart.agent(), signal.SIGKILL)
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 1
    assert "the agent ended by signal 9" in errors
    assert f"--- the end of {directory}/agent.log" in errors
    assert not (directory / "kubelet").exists()


def test_killed_at_any_moment_it_starts_again_with_the_same_authority(directory: Path) -> None:
    chance = random.Random(20)
    bundles = set()
    for _ in range(20):
        with Quickstart(directory=directory) as quickstart:
            time.sleep(chance.uniform(0.0, 1.5))  # the moment is the point: start, publish, rotation
            quickstart.process.kill()
            quickstart.process.communicate()
    for _ in range(2):
        with Quickstart(directory=directory) as quickstart:
            published = quickstart.next_event()
            bundles.add((through(published) / "ca.crt").read_text())
            quickstart.process.kill()
            quickstart.process.communicate()
        eventually(lambda: not processes_in(str(directory)))
    assert len(bundles) == 1
    with Quickstart("--exit-after", "0", directory=directory) as quickstart:
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors


def test_two_in_one_directory_are_refused(directory: Path) -> None:
    with Quickstart(directory=directory) as first:
        first.next_event()
        with Quickstart(directory=directory) as second:
            _, errors = second.finish()
        assert second.process.returncode == 1
        assert f"another quickstart runs in {directory}" in errors
        first.process.terminate()
        first.finish()
    assert first.process.returncode == 0


def test_a_directory_of_somebody_elses_is_refused(directory: Path) -> None:
    (directory / "thesis.txt").write_text("chapter 1")
    with Quickstart(directory=directory) as quickstart:
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 1
    assert "is not empty and was not made by quickstart" in errors
    assert [path.name for path in directory.iterdir()] == ["thesis.txt"]


def test_a_directory_whose_sockets_would_have_too_long_paths_is_refused(directory: Path) -> None:
    with Quickstart(directory=directory / ("x" * 80)) as quickstart:
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 1
    assert "choose a --dir of at most" in errors


@pytest.mark.parametrize("ttl", ["30", "soon", "0s", "-1s"])
def test_a_ttl_that_is_no_duration_is_refused(directory: Path, ttl: str) -> None:
    with Quickstart(f"--ttl={ttl}", directory=directory) as quickstart:
        _, errors = quickstart.finish()
    assert quickstart.process.returncode == 2
    assert "is not a duration" in errors


def test_without_mounts_it_says_so_and_works(directory: Path) -> None:
    with Quickstart("--without-mounts", "--exit-after", "1", directory=directory) as quickstart:
        events, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    assert [event["event"] for event in events] == ["published", "rotated"]
    assert "WITHOUT MOUNTS" in errors
    assert not (directory / "kubelet").exists()


def test_output_that_is_no_terminal_is_plain_lines(directory: Path) -> None:
    with Quickstart("--exit-after", "1", directory=directory, json=False) as quickstart:
        out, errors = quickstart.process.communicate(timeout=DEADLINE)
    assert quickstart.process.returncode == 0, errors.decode()
    text = out.decode()
    assert "demo/pod-1 published: spiffe://example.org/ns/demo/sa/app" in text
    assert f"{directory}/pod-1/tls.crt -noout -text" in text
    assert "demo/pod-1 rotated:" in text
    kept = f"{directory} has agent.log, quickstart.lock, state."
    assert text.splitlines()[-1] == f"The volumes are removed; the authority stays for the next time: {kept}"


@pytest.mark.parametrize("pods", [1, 5])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_a_terminal_of_that_size_shows_all_of_it(width: int, height: int, pods: int) -> None:
    printed, code = in_a_terminal(width, height, "--pods", str(pods), "--exit-after", "1", "--ttl", "20s")
    *frames, last = frames_of(printed)
    assert code == 0, printed
    for frame in (*frames, last):
        assert len(frame) <= height, "it scrolls"
        assert max(map(len, frame), default=0) <= width, frame
    assert "Starting an agent" in frames[0][0]
    # The last one is drawn twice: when it is over, and when the terminal is given back.
    shown = [each for each in frames if "Stopped." not in each][-1]
    assert [line.split()[0] for line in shown if line.startswith("demo/")] == [f"demo/pod-{n + 1}" for n in range(pods)]
    folded = "".join(line.strip() for line in shown)
    assert "/pod-1/tls.crt -noout -text" in folded
    assert "podsvid api fetch x509" in folded
    assert ("pod-2 refused a stranger" in folded) == (pods > 1)
    assert ("pod-1 met spiffe://example.org/ns/demo/sa/app-2" in folded) == (pods > 1)
    assert len([line for line in last if "valid until" in line]) == pods
    assert "Stopped." in last
    assert not [line for line in last if "tls.crt" in line or "api fetch" in line or "Ctrl-C" in line]
    found = re.fullmatch(r"Everything is removed: (\S+) is gone\.", last[-1])
    assert found is not None
    assert not Path(found[1]).exists()


def in_a_terminal(width: int, height: int, *arguments: str) -> tuple[str, int]:
    """What it writes to a terminal of that size, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "podsvid", "quickstart", *arguments],
        cwd=ROOT,
        env=kept | {"TERM": "xterm-256color", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    data, deadline = b"", time.monotonic() + DEADLINE
    try:
        # Of a terminal that nobody has open any more there is an error to read.
        with suppress(OSError):
            while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                data += os.read(ours, 65536)
        return data.decode(), process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def frames_of(printed: str) -> list[list[str]]:
    """The lines of each frame; the last one has what was printed behind it as well."""
    # Each frame is drawn over the one before, line by line upwards.
    parts = re.split(r"(?:\r?\x1b\[(?:2K|1A))+", printed)
    plain = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part).replace("\r", "") for part in parts]
    return [[line.rstrip() for line in each.strip("\n").split("\n")] for each in plain if each.strip()]


def test_a_reader_that_goes_away_ends_it(directory: Path) -> None:
    with Quickstart(directory=directory) as quickstart:
        quickstart.next_event()
        assert quickstart.process.stdout is not None
        quickstart.process.stdout.close()
        assert quickstart.process.wait(DEADLINE) == 0
        assert quickstart.process.stderr is not None
        assert "Traceback" not in quickstart.process.stderr.read().decode()


@as_root
def test_an_ordinary_user_can_run_it(directory: Path) -> None:
    home = directory / "home"
    home.mkdir()
    directory.chmod(0o755)
    os.chown(home, 65534, 65534)
    with Quickstart("--exit-after", "1", directory=home, python=nobodys_python()) as quickstart:
        published = quickstart.next_event()
        assert (through(published) / "tls.crt").read_text().startswith("-----BEGIN CERTIFICATE-----")
        events, errors = quickstart.finish()
    assert quickstart.process.returncode == 0, errors
    assert [event["event"] for event in events] == ["rotated"]
    assert not (home / "kubelet").exists()
