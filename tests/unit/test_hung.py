"""A test that hangs where its timeout does not reach: the run ends, and says where it hung (tests/conftest.py)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# As a fixture that waits for ever for a process which does not end: the timeout's one exception was used up before.
HANGS = """
import threading

def test_hangs():
    try:
        threading.Event().wait()
    finally:
        threading.Event().wait()

def test_after():
    pass
"""


def test_a_test_that_hangs_while_it_cleans_up_ends_the_run_with_all_stacks(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 0.5\nhung_after = 1\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:looptime_plugin",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert "Timeout (0:00:01.500000)!" in done.stderr
    assert "in test_hangs" in done.stderr
    assert "passed" not in done.stdout
