"""The root directory of the exposed process: what is in it, and that one that cannot be built leaves all as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.exposed.root import _links, _outermost
from tests.support import IS_ROOT, ROOT

# In a mount namespace of its own: nothing of it reaches this host.
PROGRAM = """
import ctypes, errno, os, sys
from agent.exposed import root

libc = ctypes.CDLL(None, use_errno=True)
failing = sys.argv[1].split(",")

def call(function, *arguments):
    if function.__name__ in failing:
        raise OSError(errno.EPERM, "refused")
    answer = function(*arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer

def view():
    mask = os.umask(0)
    os.umask(mask)
    return os.readlink("/proc/self/ns/mnt"), open("/proc/self/mountinfo").read(), os.listdir("/"), mask

before = view()
try:
    root.enter(libc, call, sys.argv[2:])
    print("entered", sorted(os.listdir("/")))
except OSError:
    print("as before" if view() == before else "changed")
except root.Stranded:
    print("stranded")
"""


def tried(failing: str, *paths: str) -> str:
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", PROGRAM, failing, *paths]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not IS_ROOT, reason="mounts")
@pytest.mark.parametrize("failing", ["unshare", "mount", "syscall", "umount2"])
def test_one_that_cannot_be_built_leaves_all_as_it_was(failing: str) -> None:
    assert tried(failing, "/usr/lib") == "as before"


@pytest.mark.skipif(not IS_ROOT, reason="mounts")
@pytest.mark.parametrize("failing", ["syscall,setns", "umount2,setns"])
def test_one_that_can_neither_be_built_nor_left_is_told_apart(failing: str) -> None:
    assert tried(failing, "/usr/lib") == "stranded"


@pytest.mark.skipif(not IS_ROOT, reason="mounts")
def test_there_is_what_was_named_and_nothing_else() -> None:
    assert tried("none", "/usr/lib", "/dev/null") == "entered ['dev', 'usr']"


def test_links_on_the_way_are_found_wherever_they_lead(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "real" / "two").symlink_to(tmp_path / "one" / "deep")
    (tmp_path / "round").symlink_to("round")
    base = str(tmp_path)
    found = set(_links([f"{base}/one/two", f"{base}/round", f"{base}/real"]))
    assert found == {
        (f"{base}/one", "real"),
        (f"{base}/real/two", f"{base}/one/deep"),
        (f"{base}/round", "round"),
    }
    assert _outermost([f"{base}/one/two", f"{base}/real", f"{base}/real/deep"]) == [f"{base}/real"]
    assert _outermost([base, f"{base}2"]) == [base, f"{base}2"]
