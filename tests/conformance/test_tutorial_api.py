"""What docs/tutorials/api.md has people type: a quickstart, Go's server and client, and Python, over renewals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.programs import PROGRAMS, program
from tests.go_tools import missing
from tests.support import ROOT

PAGE = (ROOT / "docs" / "tutorials" / "api.md").read_text(encoding="utf-8")
GO = "/tmp/workload-api-go"
PYTHON = "/tmp/venv/bin/python"
pytestmark = [
    pytest.mark.skipif(
        any(each.name == "workload-api-go" for each in missing(PROGRAMS)),
        reason="workload-api-go is not built: python -m tests.cluster.harness build",
    ),
    pytest.mark.timeout(180),
    # The example's port is one for the whole machine.
    pytest.mark.alone,
]


def line(about: str) -> str:
    """The page's one line to type with this in it."""
    (found,) = [each.strip() for each in PAGE.splitlines() if each.startswith("    ") and about in each]
    return found


@contextmanager
def typed(text: str) -> Iterator["subprocess.Popen[str]"]:
    """Running while this is entered, with whatever it has started."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        ["sh", "-ec", text], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_programs_follow_their_sockets_over_renewals() -> None:
    lab = Path(tempfile.mkdtemp(prefix="podsvid-lab-"))
    # Built from these very files; the one that the page installs is here already.
    instead = {"/tmp/lab": str(lab), GO: str(program("workload-api-go")), PYTHON: sys.executable}
    own = {".venv/bin/podsvid": f"{sys.executable} -m podsvid", "--ttl 20s": "--ttl 6s --json", "/tmp/lab": str(lab)}
    try:
        with typed(f"exec {replaced(line('podsvid quickstart'), own)}") as quickstart:
            published = json.loads(said(quickstart))
            assert published["event"] == "published"
            instead["PID"] = re.sub(r"^/proc/(\d+)/.*", r"\1", published["socket"])
            assert published["socket"] == f"/proc/{instead['PID']}/root{lab}/pod-1/socket"
            json.loads(said(quickstart))
            _follow(instead)
    finally:
        shutil.rmtree(lab, ignore_errors=True)


def _follow(instead: dict[str, str]) -> None:
    call = replaced(line(" call https"), instead)
    with (
        typed(f"{replaced(line(' serve'), instead)} 2>&1") as server,
        typed(replaced(line("workload-api-python/main.py"), instead)) as python,
    ):
        assert said(server).endswith("serving as spiffe://example.org/ns/demo/sa/app-2")
        serials, calls, until = set[str](), 0, time.monotonic() + 90
        while len(serials) < 4:
            found = re.fullmatch(r"spiffe://example\.org/ns/demo/sa/app serial (\S+) until \S+Z", said(python))
            assert found
            serials.add(found[1])
            answer = subprocess.run(["sh", "-c", call], capture_output=True, text=True, check=False)
            assert (answer.returncode, answer.stdout) == (0, "hello spiffe://example.org/ns/demo/sa/app\n"), answer
            calls += 1
            assert time.monotonic() < until
        assert calls >= 4


def replaced(text: str, instead: dict[str, str]) -> str:
    """With this run's names in place of the page's, of those that are there."""
    for old, new in instead.items():
        text = text.replace(old, new)
    return text
