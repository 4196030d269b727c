"""What `podsvid api watch` does with each state: write it, show it, run a command, send a signal.

One state at a time, always the newest. A state is not written while the command runs on the one before, so whatever
the command reads belongs together.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from agent.errors import AgentError
from podsvid.api.errors import Unreachable
from podsvid.api.following import Backoff
from runtime.feed import Feed

DIRECTORY_VARIABLE = "PODSVID_DIR"
# Seconds that replaced files stay for who began to read them. They hold a private key, and who watches one of them
# hears of the new one when it goes.
SUPERSEDED = 3.0
_GRACE = 5.0
_State = TypeVar("_State")
Report = Callable[[str], None]


class CommandNotStarted(AgentError):
    """The command of --exec cannot be started."""

    reason = "COMMAND_NOT_STARTED"


async def watch(
    states: AsyncGenerator[_State, None],
    write: Callable[[_State], None],
    then: Callable[[_State], Awaitable[None]],
    sweep: Callable[[], None],
    *,
    stop: asyncio.Event,
    first_within: float | None,
    backoff: Backoff,
    report: Report,
) -> None:
    """`write` each state, `then` the rest, until `stop`. What comes while this is busy is passed over for the newest.

    Seconds later `sweep` takes away what `write` replaced. A state equal to the one before is none. A `write` that
    raises OSError or AgentError is repeated, except the first. Raises Unreachable when there is no state within
    `first_within` seconds, and what the callables raise.
    """
    feed: Feed[_State] = Feed()
    stopped = asyncio.create_task(stop.wait())
    tasks = [
        asyncio.create_task(_receive(states, feed, first_within)),
        asyncio.create_task(_handle(feed, write, then, sweep, backoff, report)),
    ]
    try:
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.wait([stopped, *tasks])
    if not stop.is_set():
        for ended in tasks:
            if not ended.cancelled():
                ended.result()


async def _receive(states: AsyncGenerator[_State, None], feed: Feed[_State], first_within: float | None) -> None:
    try:
        async with aclosing(states), asyncio.timeout(first_within) as limit:
            async for state in states:
                limit.reschedule(None)
                if state != feed.current:
                    feed.publish(state)
    except TimeoutError:
        raise Unreachable(f"no answer within {first_within:g} s") from None


async def _handle(
    feed: Feed[_State],
    write: Callable[[_State], None],
    then: Callable[[_State], Awaitable[None]],
    sweep: Callable[[], None],
    backoff: Backoff,
    report: Report,
) -> None:
    seen = 0
    written = False
    while True:
        seen = await feed.wait_beyond(seen)
        while True:
            state = feed.current
            assert state is not None
            try:
                write(state)
            except (OSError, AgentError) as error:
                if not written:
                    raise
                # The old files are still whole, but they expire.
                wait = backoff.draw()
                report(f"{error}; trying again in {wait:.1f} s")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        seen = await feed.wait_beyond(seen)
            else:
                break
        written = True
        backoff.reset()
        await then(state)
        try:
            async with asyncio.timeout(SUPERSEDED):
                await feed.wait_beyond(seen)
        except TimeoutError:
            try:
                sweep()
            except (OSError, AgentError) as error:
                report(f"the files before cannot be removed: {error}")


class Command:
    """Runs `arguments` and waits for it, at most `timeout` seconds. `directory` is told to it in PODSVID_DIR.

    Its output goes to the standard error, since the standard output is for the states. It is a process group of its
    own, which is terminated when the time is over or the caller is cancelled.
    """

    def __init__(self, arguments: Sequence[str], directory: str | None, timeout: float, report: Report) -> None:
        self._arguments = tuple(arguments)
        self._environment = {name: value for name, value in os.environ.items() if name != DIRECTORY_VARIABLE}
        if directory is not None:
            self._environment[DIRECTORY_VARIABLE] = directory
        self._timeout = timeout
        self._report = report
        self._was_started = False

    async def run(self) -> None:
        """Raises CommandNotStarted when it cannot be started and never was; other trouble is reported."""
        name = self._arguments[0]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments, stdin=asyncio.subprocess.DEVNULL, stdout=2, env=self._environment, process_group=0
            )
        except (OSError, ValueError) as error:
            if not self._was_started:
                raise CommandNotStarted(f"{name} cannot be started: {error}") from None
            self._report(f"{name} cannot be started: {error}")
            return
        self._was_started = True
        try:
            async with asyncio.timeout(self._timeout):
                await process.wait()
        except TimeoutError:
            self._report(f"{name} has not ended within {self._timeout:g} s and is terminated")
        finally:
            await _end(process)
        self._report(f"{name} {_how_it_ended(process.returncode)}")


class Notification:
    """Sends `number` to the process `pid`, which must be positive.

    The process that is there at first is held on to, so that a later one that got its number is left alone.
    """

    def __init__(self, pid: int, number: signal.Signals, report: Report) -> None:
        assert pid > 0
        self._pid = pid
        self._number = number
        self._report = report
        self._descriptor: int | None = None

    def send(self) -> None:
        """Trouble is reported."""
        try:
            if self._descriptor is None:
                self._descriptor = os.pidfd_open(self._pid)
            signal.pidfd_send_signal(self._descriptor, self._number)
        except OSError as error:
            self._report(f"{self._number.name} cannot be sent to process {self._pid}: {error.strerror}")


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await process.wait()


def _how_it_ended(code: int | None) -> str:
    return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
