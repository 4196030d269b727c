"""`.ci/run` with programs that only say that they were called: what it runs, and what it says at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["packages", "lint", "test", "building", "conformance", "cluster", "interop"]
# Notes what it is asked for. What FAIL names fails; a build that HANG names waits until it is ended.
PROGRAM = """\
#!/usr/bin/env bash
said="$(basename "$0") $*"
echo "$said" >> "$CALLS"
case "$said" in
  *"go_tools build"*)
    [ -n "$HANG" ] && { echo $$ > "$HANG"; exec sleep 1000; }
    echo "the compiler's words" ;;
  *"tests.interop"*) echo "interop: spire left out: spire-server is not built" ;;
esac
case "$said" in *"$FAIL"*) exit 1;; esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in (".ci", "tests", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "tests" / "debian-packages.txt").write_text("nginx-light\n")
    for program in ("bin/make", "bin/dpkg", "bin/apt-get", ".venv/bin/python"):
        (tmp_path / program).write_text(PROGRAM)
        (tmp_path / program).chmod(0o755)
    (tmp_path / "bin" / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "bin" / "id").chmod(0o755)
    return tmp_path


def run(checkout: Path, fail: str = "nothing at all", hang: str = "") -> tuple[int, str, list[str]]:
    environment = {
        **os.environ,
        "PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(checkout / "calls"),
        "FAIL": fail,
        "HANG": hang,
    }
    done = subprocess.run([checkout / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, (checkout / "calls").read_text().splitlines()


def table(out: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+) +\d+\.\d +(passed|FAILED)$", out, re.MULTILINE))


def test_every_part_is_run_and_named_with_its_minutes_and_what_was_left_out(checkout: Path) -> None:
    code, out, calls = run(checkout)
    assert code == 0, out
    assert table(out) == dict.fromkeys([*PARTS, "total"], "passed")
    assert [call for call in calls if call.startswith("make")] == [
        f"make {target}" for target in (".venv/.dev", "lint", "test", "conformance", "cluster")
    ]
    assert "python -m tests.go_tools build conformance cluster" in calls
    assert "python -m tests.interop run --ready --most 8 --no-record" in calls
    assert out.splitlines()[-1] == "spire left out: spire-server is not built"
    assert "the compiler's words" not in out


@pytest.mark.parametrize(
    ("fail", "part"),
    [
        ("tests.cluster.harness packages", "packages"),
        ("apt-get", "apt"),
        ("make lint", "lint"),
        ("make test", "test"),
        ("go_tools build", "building"),
        ("make conformance", "conformance"),
        ("make cluster", "cluster"),
        ("tests.interop", "interop"),
    ],
)
def test_it_ends_at_the_first_failure_and_says_so_in_the_table(checkout: Path, fail: str, part: str) -> None:
    if part == "apt":
        part = "packages"
        (checkout / "bin" / "dpkg").write_text("#!/bin/sh\nexit 1\n")
    code, out, _ = run(checkout, fail)
    assert code == 1
    done = PARTS[: PARTS.index(part)]
    assert table(out) == {**dict.fromkeys(done, "passed"), part: "FAILED", "total": "FAILED"}
    assert ("the compiler's words" in out) == (part == "building")


def test_a_build_in_the_background_ends_with_it(checkout: Path) -> None:
    hanging = checkout / "hanging"
    # The lint part waits until the build has begun.
    (checkout / "bin" / "make").write_text(
        '#!/bin/sh\n[ "$1" = lint ] || exit 0\nuntil [ -s "$HANG" ]; do :; done\nexit 1\n'
    )
    code, out, _ = run(checkout, hang=str(hanging))
    assert code == 1
    assert table(out)["lint"] == "FAILED"
    assert not Path(f"/proc/{hanging.read_text().strip()}").exists()


def test_a_part_that_does_not_end_is_ended_and_named(checkout: Path) -> None:
    script = checkout / ".ci" / "run"
    script.write_text(script.read_text().replace("limited 40 make test", "limited 0.001 make test"))
    (checkout / "bin" / "make").write_text('#!/bin/sh\n[ "$1" = test ] || exit 0\nexec sleep 1000\n')
    code, out, _ = run(checkout)
    assert code == 1
    assert "no end within 0.001 minutes" in out
    assert table(out) == {"packages": "passed", "lint": "passed", "test": "FAILED", "total": "FAILED"}


def test_tests_of_one_group_follow_each_other_in_one_process(tmp_path: Path) -> None:
    """Where pytest and xdist do not fit together the marks say nothing: what fills a machine fills it four times."""
    (tmp_path / "test_grouped.py").write_text(
        "import os, pathlib, pytest\n"
        "@pytest.mark.xdist_group('crowd')\n"
        "@pytest.mark.parametrize('number', range(8))\n"
        "def test_one(number):\n"
        "    (pathlib.Path(__file__).parent / f'process-{os.getpid()}').touch()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:looptime_plugin"]
    subprocess.run([*command, "--rootdir", tmp_path, tmp_path], check=True, capture_output=True, cwd=tmp_path)
    assert len(list(tmp_path.glob("process-*"))) == 1
