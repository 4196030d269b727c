"""How a daemon is told to stop: any signal that would end its process, as an event; and work that gives way to it."""

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

# Whoever sends one of these means the whole process: none of them leaves sockets behind.
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# Seconds after which what was cancelled and goes on is cancelled again: long enough for what closes something.
AGAIN = 10.0
_Answer = TypeVar("_Answer")


class Stopped(Exception):
    """The stop came first."""


def asked_to_stop() -> asyncio.Event:
    """Set once one of `SIGNALS` has come. What was ignored when the process began (nohup) stays ignored."""
    stopping = asyncio.Event()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """What `work` answers or raises; it is cancelled, and has ended, when the stop comes first. Raises Stopped."""
    working = asyncio.ensure_future(work)
    told = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([working, told], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Stopped
    finally:
        await end((working, told))


async def end(tasks: Iterable["asyncio.Future[Any]"], again: float = AGAIN) -> None:
    """Cancel them, and again whichever goes on, until all have ended; nothing of what they raise is raised.

    A task is cancelled by one exception, and whatever raises another one in its place takes it away: a call of grpc
    that fails because of it, an error while something is closed. Who is cancelled here waits until they have ended.
    """
    left, cancelled = set(tasks), False
    while left:
        for each in left:
            each.cancel()
        try:
            done, left = await asyncio.wait(left, timeout=again)
        except asyncio.CancelledError:
            done, left = {each for each in left if each.done()}, {each for each in left if not each.done()}
            cancelled = True
        for each in done:
            if not each.cancelled():
                each.exception()  # seen
    if cancelled:
        raise asyncio.CancelledError


def stay_cancelled() -> None:
    """For loops that catch what fails: raises CancelledError where this task was asked to end and has lost that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() > 0:
        raise asyncio.CancelledError


async def side_by_side(*loops: Coroutine[Any, Any, None]) -> None:
    """Run loops that go on for ever, until one fails; then, or cancelled, all have ended. Raises what that one raises,
    RuntimeError where it ended by itself: that is a bug, and what it did is done by nobody.

    A TaskGroup cancels its tasks once: one that loses that (see `end`) would keep it for ever.
    """
    tasks = [asyncio.ensure_future(each) for each in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for each in done:
        if not each.cancelled():
            each.result()
    raise RuntimeError("a loop that goes on for ever ended by itself")
