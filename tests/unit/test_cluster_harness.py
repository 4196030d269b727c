"""The parts of the cluster's harness that need no cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster import harness, kubeconfig
from tests.cluster.host import ClusterError
from tests.cluster.leftovers import listening, mounts_below
from tests.cluster.lock import Lock
from tests.cluster.pki import Pair

MOUNTS = """\
21 1 254:0 / / rw - ext4 /dev/root rw
22 21 254:0 /c /var/lib/c rw shared:1 - ext4 /dev/root rw
23 22 0:40 / /var/lib/c/pods/a\\040b\\134 rw - tmpfs podsvid rw
24 22 0:41 / /var/lib/c/größe rw - tmpfs podsvid rw
25 21 0:42 / /var/lib/cc rw - tmpfs other rw
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose sockets have short names."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_the_mounts_below_a_folder_are_found_in_order_and_no_others() -> None:
    wanted = [Path("/var/lib/c"), Path("/var/lib/c/pods/a b\\"), Path("/var/lib/c/größe")]
    assert mounts_below(Path("/var/lib/c"), MOUNTS) == wanted


def test_the_sockets_of_a_process_are_found_and_not_its_neighbours(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(short / "ours"))
        ours.listen()
        hold = "import socket, sys; s = socket.socket(1); s.bind(sys.argv[1]); print('on', flush=True); input()"
        command = [sys.executable, "-c", hold, str(short / "other")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"on\n"
            assert short / "ours" in listening(Path("/proc/self"))
            assert listening(Path(f"/proc/{other.pid}")) == {short / "other"}
            other.communicate(b"\n")


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.take()
    first.take()
    with pytest.raises(ClusterError, match="another run"):
        second.take()
    assert not second.held
    first.release()
    first.release()
    assert list(tmp_path.iterdir()) == []
    second.take()
    assert second.held
    second.release()


def test_a_kubeconfig_with_a_token_has_the_administrators_server_and_not_its_key(tmp_path: Path) -> None:
    admin, other = tmp_path / "admin", tmp_path / "other"
    kubeconfig.write(admin, "https://127.0.0.1:1", tmp_path / "ca.crt", Pair(tmp_path / "a.crt", tmp_path / "a.key"))
    kubeconfig.with_token(other, admin, "t")
    assert [path.stat().st_mode & 0o777 for path in (admin, other)] == [0o600, 0o600]
    assert yaml.safe_load(other.read_text())["clusters"] == yaml.safe_load(admin.read_text())["clusters"]
    assert yaml.safe_load(other.read_text())["users"] == [{"name": "podsvid", "user": {"token": "t"}}]


class Recorded:
    """In place of a cluster: what would have been done with it."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def stop(self) -> None:
        self.done.append("stop")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()

    def run(_: object, command: list[str]) -> int:
        found.done.append(command)
        return 7

    monkeypatch.setattr(harness, "Cluster", lambda _: found)
    monkeypatch.setattr(harness, "_up", lambda _: found.done.append("up"))
    monkeypatch.setattr(harness, "_run", run)
    monkeypatch.setattr(harness, "install_packages", lambda _: found.done.append("packages"))
    return found


@pytest.mark.parametrize("verb", harness.VERBS)
def test_help_of_a_verb_helps_and_does_nothing(
    verb: str, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        harness.main([verb, "--help"])
    assert (ended.value.code, recorded.done) == (0, [])
    assert harness.VERBS[verb].split(",")[0] in capsys.readouterr().out


@pytest.mark.parametrize("line", [*([verb, "now"] for verb in harness.VERBS if verb != "run"), ["down", "-x"], ["run"]])
def test_what_no_verb_takes_is_refused(line: list[str], recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        harness.main(line)
    assert (ended.value.code, recorded.done) == (2, [])
    assert "usage:" in capsys.readouterr().err


def test_a_command_keeps_its_own_arguments(recorded: Recorded) -> None:
    assert harness.main(["--dir", "/tmp/x", "run", "kubectl", "get", "-A", "--help"]) == 7
    assert harness.main(["down"]) == 0
    assert recorded.done == [["kubectl", "get", "-A", "--help"], "stop"]
