"""One command at a time reads an agent from within its pod: what each loads counts in the agent's memory limit."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from podsvid.waiting import GIVEN_UP, SAID_AFTER, GaveUp, say

# `rotate` waits for a signer, and nobody's look at the node waits for that.
_READING: Final = ("ls", "explain")
_PAUSE = 0.05


@contextmanager
def turn(
    arguments: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    *,
    now: Callable[[], float] = time.monotonic,
    rest: Callable[[float], object] = time.sleep,
) -> Iterator[None]:
    """While inside no other such command runs. To be entered before what it needs is loaded: who waits is small.

    Only where the agent's settings are in the environment, as in its pod: elsewhere its memory is not the agent's. The
    lock is of the run directory itself, which the agent never locks. Raises GaveUp.
    """
    folder = environment.get("PODSVID_RUN_DIR")
    if not folder or len(arguments) < 2 or arguments[0] != "node" or arguments[1] not in _READING:
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the command says better what is wrong there
        yield
        return
    try:
        _wait(descriptor, now, rest)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, now: Callable[[], float], rest: Callable[[float], object]) -> None:
    began, told = now(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = now() - began
        except OSError:  # a file system without locks: better two at once than none
            return
        else:
            return
        if waited >= GIVEN_UP:
            raise GaveUp(
                f"another `podsvid node` was still reading after {GIVEN_UP:g} s: one at a time runs in an agent's pod; "
                "end what is left of it, or try again"
            )
        if waited >= SAID_AFTER and not told:
            told = True
            say("waiting for another `podsvid node` in this pod")
        rest(_PAUSE)
