"""One command at a time reads an agent from within its pod: what each loads counts in the agent's memory limit."""

import argparse
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from podsvid.waiting import GIVEN_UP, SAID_AFTER, GaveUp, say

# `rotate` waits for a signer, and nobody's look at the node waits for that.
_READING: Final = ("ls", "explain")
_PAUSE = 0.05


@contextmanager
def turn(
    parsed: argparse.Namespace,
    environment: Mapping[str, str] = os.environ,
    *,
    now: Callable[[], float] = time.monotonic,
    rest: Callable[[float], object] = time.sleep,
) -> Iterator[None]:
    """While inside no other such command runs. To be entered before what it needs is loaded: who waits is small.

    Only where the agent's settings are in the environment, as in its pod: elsewhere its memory is not the agent's. The
    lock is of the directory that the socket is in, which the agent never locks: who asks another agent waits for
    another lock. It waits no longer than the command may take. Raises GaveUp.
    """
    if not environment.get("PODSVID_RUN_DIR") or parsed.action not in _READING:
        yield
        return
    try:
        descriptor = os.open(os.path.dirname(parsed.socket) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the command says better what is wrong there
        yield
        return
    try:
        _wait(descriptor, min(parsed.timeout, GIVEN_UP), now, rest)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, most: float, now: Callable[[], float], rest: Callable[[float], object]) -> None:
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
        if waited >= most:
            raise GaveUp(
                f"another `podsvid node` was still reading after {most:g} s: one at a time runs in an agent's pod; "
                "end what is left of it, or try again"
            )
        if waited >= SAID_AFTER and not told:
            told = True
            say("waiting for another `podsvid node` in this pod")
        rest(min(_PAUSE, most - waited))
