"""What docs/tutorials/api.md has people type: a quickstart, Go's server and client, and Python, over renewals."""

import re
import subprocess
import sys
import time

import pytest

from tests.cluster.programs import PROGRAMS, program
from tests.go_tools import missing
from tests.tutorials import page, quickstart, replaced, said, typed

PAGE = page("api.md")
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


def test_programs_follow_their_sockets_over_renewals() -> None:
    # Built from these very files; the one that the page installs is here already.
    instead = {GO: str(program("workload-api-go")), PYTHON: sys.executable}
    with quickstart(PAGE, "6s") as (_, own):
        _follow(own | instead)


def _follow(instead: dict[str, str]) -> None:
    call = replaced(PAGE.line(" call https"), instead)
    with (
        typed(f"{replaced(PAGE.line(' serve'), instead)} 2>&1") as server,
        typed(replaced(PAGE.line("workload-api-python/main.py"), instead)) as python,
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
