"""What stops a daemon, and that what it waits for gives way."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import looptime
import pytest

from runtime.stopping import AGAIN, SIGNALS, Stopped, asked_to_stop, end, side_by_side, stay_cancelled, unless


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


def on_fake_time(main: Callable[[], Awaitable[None]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


class Loses:
    """A loop that loses so many cancellations, as one does whose call fails by another error then."""

    def __init__(self, times: int = 1) -> None:
        self.left = times
        self.ended = False

    async def run(self) -> None:
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.left -= 1
                    if self.left < 0:
                        raise
        finally:
            self.ended = True


@pytest.mark.parametrize("times", range(3))
def test_a_task_that_loses_its_cancellation_is_cancelled_again(times: int) -> None:
    async def main() -> None:
        loses, other = Loses(times), Loses(0)
        tasks = [asyncio.ensure_future(each.run()) for each in (loses, other)]
        await asyncio.sleep(0)
        await end(tasks)
        assert loses.ended
        assert other.ended
        assert asyncio.get_running_loop().time() == times * AGAIN

    on_fake_time(main)


def test_what_is_being_closed_has_its_time_and_is_not_interrupted_before() -> None:
    closed: list[bool] = []

    async def closing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(AGAIN - 1)
            closed.append(True)

    async def main() -> None:
        task = asyncio.ensure_future(closing())
        await asyncio.sleep(0)
        await end([task])
        assert closed

    on_fake_time(main)


def test_what_a_task_raises_at_its_end_is_not_raised_and_counts_as_seen() -> None:
    told: list[object] = []

    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("in its place")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        task = asyncio.ensure_future(fails())
        await asyncio.sleep(0)
        await end([task])
        del task

    on_fake_time(main)
    assert not told


def test_who_ends_tasks_and_is_cancelled_cancels_them_again_and_waits_for_them() -> None:
    async def main() -> None:
        loses = Loses()
        task = asyncio.ensure_future(loses.run())
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(end([task]))
        await asyncio.sleep(1)
        assert not task.done()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert loses.ended
        assert asyncio.get_running_loop().time() < AGAIN

    on_fake_time(main)


def test_work_that_loses_its_cancellation_gives_way_to_the_stop_all_the_same() -> None:
    async def main() -> None:
        stopping, loses = asyncio.Event(), Loses()
        asyncio.get_running_loop().call_later(1, stopping.set)
        with pytest.raises(Stopped):
            await unless(stopping, loses.run())
        assert loses.ended

    on_fake_time(main)


def test_of_loops_side_by_side_the_first_that_fails_ends_the_others() -> None:
    async def fails() -> None:
        await asyncio.sleep(1)
        raise OSError("no")

    async def main() -> None:
        loses = Loses()
        with pytest.raises(OSError, match="no"):
            await side_by_side(loses.run(), fails())
        assert loses.ended

    on_fake_time(main)


@pytest.mark.parametrize("how", ["returns", "is cancelled"])
def test_a_loop_that_ends_by_itself_is_a_bug_that_is_heard_of(how: str) -> None:
    async def ends() -> None:
        await asyncio.sleep(1)
        if how == "is cancelled":
            raise asyncio.CancelledError

    async def main() -> None:
        loses = Loses()
        with pytest.raises(RuntimeError, match="ended by itself"):
            await side_by_side(loses.run(), ends())
        assert loses.ended

    on_fake_time(main)


def test_loops_side_by_side_end_with_who_runs_them_though_one_loses_its_cancellation() -> None:
    async def main() -> None:
        loses = Loses()
        running = asyncio.ensure_future(side_by_side(loses.run(), Loses(0).run()))
        await asyncio.sleep(1)
        await end([running])
        assert running.cancelled()
        assert loses.ended
        assert asyncio.get_running_loop().time() == 1 + AGAIN

    on_fake_time(main)


def test_a_loop_that_catches_what_fails_ends_where_that_took_its_cancellation_away() -> None:
    turns: list[int] = []

    async def loop() -> None:
        while True:
            turns.append(len(turns))
            try:
                try:
                    await asyncio.sleep(60)
                finally:
                    raise OSError("it could not be closed")
            except OSError:
                stay_cancelled()

    async def main() -> None:
        task = asyncio.ensure_future(loop())
        await asyncio.sleep(90)
        task.cancel()
        await asyncio.wait([task], timeout=1)
        assert task.cancelled()
        assert turns == [0, 1]

    on_fake_time(main)
