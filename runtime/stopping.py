"""How a daemon is told to stop: any signal that would end its process, as an event; and work that gives way to it."""

import asyncio
import signal
from collections.abc import Coroutine
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
        for each in (working, told):
            each.cancel()
        await asyncio.gather(working, told, return_exceptions=True)
