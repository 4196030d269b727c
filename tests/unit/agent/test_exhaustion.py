"""An exposed process whose memory is used up ends, wherever that shows; other failures are told as they always are."""

import subprocess
import sys

import pytest

from agent.exposed.exhaustion import SAID, STATUS
from tests.support import ROOT

BEGIN = """
import asyncio, ctypes, gc, threading
from agent.exposed import exhaustion
exhaustion.end_when_exhausted()

def much():
    return bytearray(2**62)

def wrong():
    raise ValueError("something else")

class Goes:
    def __init__(self, how):
        self.how = how
    def __del__(self):
        self.how()

def in_a_callback(how):
    ctypes.CFUNCTYPE(ctypes.c_bool)(how)()

def in_a_thread(how):
    one = threading.Thread(target=how)
    one.start()
    one.join()

def where_nobody_looks(how):
    Goes(how)

def in_the_loop(how):
    async def main():
        asyncio.get_running_loop().set_exception_handler(exhaustion.of_loop)
        asyncio.get_running_loop().call_soon(how)
        for _ in range(3):
            await asyncio.sleep(0)
    asyncio.run(main())

def in_a_task(how):
    async def failing():
        how()
    async def main():
        asyncio.get_running_loop().set_exception_handler(exhaustion.of_loop)
        task = asyncio.ensure_future(failing())
        await asyncio.sleep(0)
        del task
        gc.collect()
        await asyncio.sleep(0)
    asyncio.run(main())

"""
PLACES = ("in_a_callback", "in_a_thread", "where_nobody_looks", "in_the_loop", "in_a_task")


def ran(what: str) -> tuple[int, bytes, bytes]:
    program = [sys.executable, "-c", f"{BEGIN}{what}\nprint('went on')"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("place", PLACES)
def test_it_ends_where_memory_failed(place: str) -> None:
    assert ran(f"{place}(much)") == (STATUS, b"", SAID)


@pytest.mark.parametrize("place", PLACES[1:])
def test_it_goes_on_after_other_failures(place: str) -> None:
    code, said, error = ran(f"{place}(wrong)")
    assert (code, said) == (0, b"went on\n")
    assert b"something else" in error
