"""Processes of the daemon's own that may be somebody else's by now: how they begin and end, what they know of it."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from runtime.stderr import LINE
from runtime.stopping import end


async def begun(
    module: str, *arguments: str, passed: Sequence[int] = (), variables: Iterable[tuple[str, str]] = ()
) -> tuple[Process, socket.socket]:
    """`python -m MODULE`, and this end of its channel. Raises OSError.

    Its first argument is the number of its own end, the others are `arguments`. It has that end, the descriptors
    `passed`, a pipe for its stderr, which is to be handed on, and of the environment `variables`.
    """
    ours, its = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", module, str(its.fileno()), *arguments),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            limit=LINE,
            env=_environment(variables),
            pass_fds=(its.fileno(), *passed),
            cwd="/",
            process_group=0,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return process, ours


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


def _environment(variables: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Nothing of this process's own, in which settings, paths and credentials could be, but where Python finds its
    modules."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", **dict(variables)}
