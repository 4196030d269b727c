"""The builder of the tests' Go programs, with a compiler that is a shell script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import go_tools
from tests.go_tools import BuildError, Program, build, missing, path_of

# Notes each call; `fails` in the module breaks the build. The program that it makes says what it was made of.
GO = """\
#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -o ] && output=$2; shift; done
echo "$PWD $1 cgo=$CGO_ENABLED${GOTOOLCHAIN:+ $GOTOOLCHAIN}" >> "$GO_CALLS"
[ -e fails ] && { echo "it does not compile"; exit 1; }
cat go.mod > "$output"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(GO)
    go.chmod(0o755)
    made = tmp_path / "calls"
    made.touch()
    monkeypatch.setattr(go_tools, "SEARCH_PATH", f"{go.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TESTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GO_CALLS", str(made))
    return made


def module(folder: Path, name: str, version: str = "v1") -> Path:
    home = folder / name
    home.mkdir()
    (home / "go.mod").write_text(version)
    return home


def lines(calls: Path) -> list[str]:
    found = sorted(calls.read_text().splitlines())
    calls.write_text("")
    return found


def test_another_version_of_one_module_builds_that_module_alone(tmp_path: Path, calls: Path) -> None:
    one, other = module(tmp_path, "one"), module(tmp_path, "other")
    programs = [Program("a", one, "./a"), Program("b", one, "./b", cgo=True), Program("c", other, ".")]
    assert missing(programs) == programs
    built = build(programs, lambda _: None)
    assert {name: path.read_text() for name, path in built.items()} == {"a": "v1", "b": "v1", "c": "v1"}
    assert lines(calls) == [f"{one} ./a cgo=0", f"{one} ./b cgo=1", f"{other} . cgo=0"]
    assert build(programs, lambda _: None) == built
    assert lines(calls) == []
    (other / "go.mod").write_text("v2")
    again = build(programs, lambda _: None)
    assert lines(calls) == [f"{other} . cgo=0"]
    assert again["a"] == built["a"]
    assert again["c"].read_text() == "v2"
    assert built["c"].read_text() == "v1", "another checkout may still want it"


def test_other_options_make_another_program(tmp_path: Path) -> None:
    home = module(tmp_path, "one")
    programs = [
        Program("a", home, "."),
        Program("a", home, "./a"),
        Program("a", home, ".", cgo=True),
        Program("a", home, ".", ldflags="-s"),
        Program("a", home, ".", tags="t"),
        Program("a", home, ".", toolchain="go1.26.8"),
        Program("a", home, ".", toolchain="go1.27.3"),
    ]
    assert len({path_of(each) for each in programs}) == len(programs)


def test_a_program_is_built_with_the_version_of_go_that_it_names(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOTOOLCHAIN", raising=False)
    home = module(tmp_path, "one")
    build([Program("a", home, ".", toolchain="go1.26.8"), Program("b", home, ".")], lambda _: None)
    assert lines(calls) == [f"{home} . cgo=0", f"{home} . cgo=0 go1.26.8"]


def test_a_failed_build_says_why_and_keeps_what_was_finished(tmp_path: Path, calls: Path) -> None:
    good, bad = module(tmp_path, "good"), module(tmp_path, "bad")
    (bad / "fails").touch()
    fine, broken = Program("fine", good, "."), Program("broken", bad, ".")
    build([fine], lambda _: None)
    with pytest.raises(BuildError, match=r"broken failed:\nit does not compile"):
        build([fine, broken], lambda _: None)
    assert missing([fine, broken]) == [broken]
    assert list((tmp_path / "cache").rglob("build-*")) == []
    (bad / "fails").unlink()
    lines(calls)
    build([fine, broken], lambda _: None)
    assert lines(calls) == [f"{bad} . cgo=0"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path, calls: Path) -> None:
    program = Program("a", module(tmp_path, "one"), ".")
    left = path_of(program).parents[1] / "build-a"
    left.mkdir(parents=True)
    (left / "a").write_text("half")
    assert build([program], lambda _: None)["a"].read_text() == "v1"
    assert not left.exists()


def test_another_build_of_the_module_is_waited_for(tmp_path: Path, calls: Path) -> None:
    program = Program("a", module(tmp_path, "one"), ".")
    folder = path_of(program).parents[1]
    folder.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    said = []

    def progress(message: str) -> None:
        said.append(message)
        if "another build" in message:
            assert lines(calls) == []
            holder.communicate(b"\n")

    build([program], progress)
    assert said[0] == "another build is at one: waiting for it"
    assert path_of(program).exists()


def test_without_go_it_says_how_to_get_it(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_tools, "SEARCH_PATH", "")
    with pytest.raises(BuildError, match=r"unpack an archive from go\.dev/dl"):
        build([Program("a", module(tmp_path, "one"), ".")], lambda _: None)
