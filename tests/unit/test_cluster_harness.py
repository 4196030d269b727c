"""The parts of the cluster's harness that need no cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster import harness, kubeconfig, places
from tests.cluster.cluster import Cluster
from tests.cluster.host import ClusterError, run
from tests.cluster.layout import DEFAULT_DIR, Layout
from tests.cluster.leftovers import mounts_below, remove_mounts
from tests.cluster.lock import Lock
from tests.cluster.pki import Pair

MOUNTS = """\
21 1 254:0 / / rw - ext4 /dev/root rw
22 21 254:0 /c /var/lib/c rw shared:1 - ext4 /dev/root rw
23 22 0:40 / /var/lib/c/pods/a\\040b\\134 rw - tmpfs podsvid rw
24 22 0:41 / /var/lib/c/größe rw - tmpfs podsvid rw
25 21 0:42 / /var/lib/cc rw - tmpfs other rw
"""


def test_the_mounts_below_a_folder_are_found_in_order_and_no_others() -> None:
    wanted = [Path("/var/lib/c"), Path("/var/lib/c/pods/a b\\"), Path("/var/lib/c/größe")]
    assert mounts_below(Path("/var/lib/c"), MOUNTS) == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_two_clusters_on_a_host_each_have_a_folder_of_their_own_in_its_place(tmp_path: Path) -> None:
    place, layouts = tmp_path / "place", [Layout(tmp_path / name) for name in ("one", "other")]
    try:
        for layout in layouts:
            layout.directory.mkdir()
            places.make(layout, [place])
            run(places.inside(layout, ["touch", str(place / layout.directory.name)]))
        assert [run(places.inside(layout, ["ls", str(place)])) for layout in layouts] == ["one\n", "other\n"]
        assert list(place.iterdir()) == []
        hold = places.inside(layouts[1], ["sh", "-c", "echo on; read end"])
        with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"on\n"
            remove_mounts(layouts[0].directory)
            places.remove([place])
            assert run(places.inside(layouts[1], ["ls", str(place)])) == "other\n"
            other.communicate(b"\n")
        remove_mounts(layouts[1].directory)
        places.remove([place])
        assert not place.exists()
    finally:
        for layout in layouts:
            remove_mounts(layout.directory)


def test_who_works_by_hand_is_told_how_to_take_down_that_cluster() -> None:
    told = [harness.by_hand(Cluster(each), "image:1").splitlines()[-1] for each in (Path("/srv/a b"), DEFAULT_DIR)]
    assert "tests.cluster.harness --dir '/srv/a b' down " in told[0]
    assert "tests.cluster.harness down " in told[1]


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
