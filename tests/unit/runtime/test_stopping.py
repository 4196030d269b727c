"""What stops a daemon, and that what it waits for gives way."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from runtime.stopping import SIGNALS, Stopped, asked_to_stop, unless


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_that_would_end_the_process_is_a_stop(number: signal.Signals) -> None:
    async def main() -> None:
        signal.signal(number, signal.SIG_DFL)
        stopping = asked_to_stop()
        assert not stopping.is_set()
        os.kill(os.getpid(), number)
        async with asyncio.timeout(30):
            await stopping.wait()

    asyncio.run(main())


def test_what_was_ignored_at_the_start_stays_ignored() -> None:
    async def main() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stopping = asked_to_stop()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(30):
            await stopping.wait()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(main())


def test_work_gives_way_to_the_stop_and_has_ended_then() -> None:
    async def main() -> None:
        stopping, ended = asyncio.Event(), []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(True)

        asyncio.get_running_loop().call_soon(stopping.set)
        with pytest.raises(Stopped):
            await unless(stopping, work())
        assert ended

    asyncio.run(main())


def test_without_a_stop_work_answers_and_raises_as_ever() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> None:
        raise OSError("no")

    async def main() -> None:
        assert await unless(asyncio.Event(), answer()) == 7
        with pytest.raises(OSError, match="no"):
            await unless(asyncio.Event(), fail())

    asyncio.run(main())


def test_who_waits_and_is_cancelled_takes_the_work_along() -> None:
    async def main() -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        waiting = asyncio.ensure_future(unless(asyncio.Event(), work()))
        await began.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ended.is_set()

    asyncio.run(main())
