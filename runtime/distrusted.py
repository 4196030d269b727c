"""Processes of the daemon's own that may be somebody else's by now: what they know of it, and how they end."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from functools import partial

from runtime.stopping import end


def environment(**more: str) -> dict[str, str]:
    """Nothing of this process's own, in which settings, paths and credentials could be, but where Python finds its
    modules, and `more`."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", **more}


async def put_down(process: Process, handing_on: "asyncio.Task[None]", seconds: float) -> str:
    """How it ended: by itself within so many seconds, or killed, its group with it (it was begun as one's first).

    `handing_on`: what hands on its stderr, where it says why; it has ended, too.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await process.wait()
    # What somebody who got into it began there; itself also where it has left its group.
    for kill in (process.kill, partial(os.killpg, process.pid, signal.SIGKILL)):
        with suppress(ProcessLookupError):
            kill()
    code = await process.wait()
    await asyncio.wait([handing_on], timeout=seconds)
    await end((handing_on,))
    return f"signal {-code}" if code < 0 else f"exit code {code}"
