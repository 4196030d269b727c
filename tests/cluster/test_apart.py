"""An image's build that is interrupted or killed leaves neither mounts nor processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.go_tools import Progress, cache_root

from .apart import sweep
from .leftovers import mounts_below
from .waiting import wait_for

ROOT = Path(__file__).parents[2]
# What buildah does, in short: a mount for the layers, and a child that outlives its parent's end.
BUILDER = """
import sys
from tests.cluster.apart import run_apart
run_apart(["sh", "-c", 'mkdir "$TMPDIR/m"; mount -t tmpfs layers "$TMPDIR/m"; mkfifo $1.part; mv $1.part $1; '
           'sleep 86399.5 & cat $1', "sh", sys.argv[1]])
"""


def builders() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"86399.5" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_ends_early_leaves_nothing(
    number: signal.Signals, nothing_left: None, progress: Progress, tmp_path: Path
) -> None:
    before = mounts_below(cache_root())
    begun = tmp_path / "begun"
    process = subprocess.Popen([sys.executable, "-c", BUILDER, str(begun)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for("the build to have begun", begun.exists, progress=progress)
        assert builders()
        assert mounts_below(cache_root()) == before
        os.kill(process.pid, number)
        process.wait()
        wait_for("its processes to be gone", lambda: builders() == [], progress=progress)
    finally:
        process.kill()
        process.wait()
    assert mounts_below(cache_root()) == before
    sweep()  # as the next builder does; `nothing_left` looks for what stays
