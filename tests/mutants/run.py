"""Trying mutants: each in a copy of the checkout, so that nobody's working tree is ever changed."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .model import Mutant, MutantsError, Outcome

ROOT = Path(__file__).resolve().parents[2]
# A change that makes a test hang is noticed, too.
PATIENCE_SECONDS = 240
# pytest's exit statuses.
_PASSED, _FAILED = 0, 1

Report = Callable[[Mutant, Outcome], None]


def try_all(mutants: Sequence[Mutant], jobs: int, report: Report) -> dict[Mutant, Outcome]:
    """What the tests say of each, `jobs` at a time. Raises MutantsError when they fail without any change, too."""
    with _copies(jobs) as copies:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)
        arguments = sorted({argument for each in mutants for argument in each.tests})
        output = copies[0] / "unchanged.log"
        if arguments and _pytest(copies[0], arguments, output, PATIENCE_SECONDS * 5) != _PASSED:
            raise MutantsError(f"the tests fail without any change:\n{output.read_text(errors='replace')[-3000:]}")

        def attempt(mutant: Mutant) -> tuple[Mutant, Outcome]:
            copy = free.get()
            try:
                outcome = _try(mutant, copy)
            finally:
                free.put(copy)
            report(mutant, outcome)
            return mutant, outcome

        with ThreadPoolExecutor(jobs) as workers:
            return dict(workers.map(attempt, mutants))


def _try(mutant: Mutant, copy: Path) -> Outcome:
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied(source), encoding="utf-8")
    try:
        status = _pytest(copy, mutant.tests, copy / "mutant.log", PATIENCE_SECONDS)
    finally:
        path.write_text(source, encoding="utf-8")
    if status is None:
        return Outcome.KILLED
    return {_PASSED: Outcome.SURVIVED, _FAILED: Outcome.KILLED}.get(status, Outcome.BROKEN)


def _pytest(copy: Path, arguments: Sequence[str], output: Path, patience: float) -> int | None:
    """Its exit status; None when it took too long."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def _copies(number: int) -> Iterator[list[Path]]:
    """That many copies of what git knows of the checkout, and of what is new in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="mutants-") as base:
        copies = [Path(base) / str(n) for n in range(number)]
        for copy in copies:
            for name in filter(None, listed):
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
        yield copies
