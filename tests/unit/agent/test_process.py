"""The agent's process: the only one of its run directory, without core files, ended when one of its loops is."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent.daemon import _run_until
from agent.errors import AlreadyRunning
from agent.process import only_one

ROOT = Path(__file__).parents[3]


def test_a_second_agent_of_one_run_directory_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with only_one(run_dir):
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        with pytest.raises(AlreadyRunning, match=str(run_dir)), only_one(run_dir):
            pass
        with only_one(tmp_path / "another"):
            pass
    with only_one(run_dir):
        pass


def test_a_lock_file_that_was_taken_away_meanwhile_locks_nobody(tmp_path: Path) -> None:
    with only_one(tmp_path):
        (tmp_path / "lock").unlink()
        # The lock that counts is that of the file which is there.
        with only_one(tmp_path):
            assert (tmp_path / "lock").exists()


def test_a_process_with_keys_leaves_no_core_file_and_no_file_for_others(tmp_path: Path) -> None:
    made = tmp_path / "made"
    program = (
        "import os, resource\nfrom agent.process import prepare\nos.umask(0)\nprepare()\n"
        f"open({str(made)!r}, 'w').close()\nprint(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\nprint(soft == hard)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(0, 0)", "True"]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


async def forever() -> None:
    await asyncio.Event().wait()


async def ends() -> None:
    return


async def fails() -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize("loop", [ends, fails])
def test_a_loop_that_ends_ends_the_process_and_says_which(loop: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="the trust loop ended") as ended:
            await _run_until(asyncio.Event(), {"rotation": forever, "trust": loop})
        assert isinstance(ended.value.__cause__, OSError if loop is fails else type(None))
        assert len(asyncio.all_tasks()) == 1, "the other loops go on"

    asyncio.run(main())


def test_a_stop_that_was_asked_for_is_no_failure() -> None:
    async def main() -> None:
        stopping = asyncio.Event()
        stopping.set()
        await _run_until(stopping, {"rotation": forever})
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


LOADED = """
import sys

from agent import unserved

unserved.load()
import agent.daemon

left_out = {"http.client", "http.server", "urllib.request", "wsgiref.simple_server", "email.message", "html"}
assert not left_out & set(sys.modules), left_out & set(sys.modules)
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder

registry = CollectorRegistry()
Counter("one", "One.", registry=registry).inc()
assert b"one_total 1.0" in choose_encoder("")[0](registry)
import http.server
import urllib.request
import wsgiref.simple_server

assert issubclass(wsgiref.simple_server.WSGIRequestHandler, http.server.BaseHTTPRequestHandler)
assert urllib.request.Request("http://a.test/").host == "a.test"
"""
ANOTHER = """
import sys

from agent import unserved

unserved._STAND_INS = {"http.server": ()}
unserved.load()
import http.server
import prometheus_client

assert issubclass(prometheus_client.MetricsHandler, http.server.BaseHTTPRequestHandler)
"""


@pytest.mark.parametrize("program", [LOADED, ANOTHER], ids=["as it is", "it takes what is not known"])
def test_the_process_loads_no_web_server_and_whoever_wants_one_finds_it(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_c_library_makes_few_heaps_for_all_threads() -> None:
    program = """
import ctypes, sys, threading
from pathlib import Path
from agent.process import prepare

prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
found, here = set(), threading.Barrier(8)

def make():
    here.wait(30)
    found.add(libc.malloc(1000) >> 26)
    here.wait(30)

threads = [threading.Thread(target=make) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
sys.exit(len(found) > 2)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
