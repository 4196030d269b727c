"""Runs a suite's tests in a pytest of its own and counts what they found."""

import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.processes import end

from .suites import HERE, Suite, SuiteError
from .table import PAGE, Row

ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Found:
    """How many tests of a suite passed and how many did not. One that was skipped showed nothing: it did not pass.

    `gaps` are expected failures: what podsvid is known not to do yet. They count in neither.
    """

    passed: int
    failed: int
    gaps: int = 0


def run(suite: Suite) -> tuple[Row, int]:
    """Run all its tests, with pytest's own output; what to write down, and how many gaps are known.

    Raises SuiteError if they did not all run.
    """
    begun, moment, ran = time.monotonic(), datetime.now(UTC), commit()
    with tempfile.TemporaryDirectory(prefix="podsvid-interop-") as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(suite.folder), "-v", f"--junitxml={report}"]
        status = _ended(command)
        found = count(report.read_text(encoding="utf-8")) if report.exists() else Found(0, 0)
    # 1 says that tests failed, which is a result. With any other status some may not have run.
    if status not in (0, 1) and not found.failed:
        raise SuiteError(f"{suite.name}: pytest ended with status {status} in the middle of its tests, or had none")
    minutes = (time.monotonic() - begun) / 60
    row = Row(suite.name, suite.version, moment.date(), ran, found.passed, found.failed, minutes)
    return row, found.gaps


def _ended(command: Sequence[str]) -> int:
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except BaseException:
        # As from a terminal: it then ends the servers that its tests started.
        end(process, signal.SIGINT)
        raise


def count(report: str) -> Found:
    """From pytest's JUnit report."""
    passed = failed = gaps = 0
    for case in ElementTree.fromstring(report).iter("testcase"):
        trouble = [each for each in case if each.tag in ("failure", "error", "skipped")]
        if not trouble:
            passed += 1
        elif all(each.get("type") == "pytest.xfail" for each in trouble):
            gaps += 1
        else:
            failed += 1
    return Found(passed, failed, gaps)


def commit() -> str:
    """Of the tree that runs; with a `+` when it has more than that, the page of results aside."""
    found = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}")
    return f"{found}+" if changed else found


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SuiteError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()
