"""The scheduler under a loop whose time is faked: no test waits, every test says when something happened."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import looptime
import pytest

from agent.workload.rotation import MAX_NAP, RotationScheduler
from runtime.feed import Feed
from runtime.stopping import end

START = datetime(2026, 6, 1, tzinfo=UTC)


class LoopClock:
    """The wall clock follows the loop's time; tests may step it."""

    def __init__(self) -> None:
        self.step = timedelta(0)

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time()) + self.step

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Middle(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def elapsed() -> float:
    return asyncio.get_running_loop().time()


def on_fake_time(main: Callable[[], Awaitable[Any]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def running(scheduler: RotationScheduler, seconds: float) -> None:
    task = asyncio.ensure_future(scheduler.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_each_key_is_rotated_when_it_is_due_and_never_before() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), []

        async def rotate(key: str) -> datetime:
            seen.append((key, round(elapsed())))
            return clock.now() + timedelta(seconds=100)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("b", START + timedelta(seconds=70))
        scheduler.schedule("a", START + timedelta(seconds=10))
        await running(scheduler, 180)
        assert seen == [("a", 10), ("b", 70), ("a", 110), ("b", 170)]

    on_fake_time(main)


def test_failures_back_off_and_a_success_resets_them() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), []

        async def rotate(key: str) -> datetime:
            seen.append(round(elapsed()))
            if len(seen) <= 8:
                raise RuntimeError("the authority is away")
            return clock.now() + timedelta(days=1)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START)
        await running(scheduler, 400)
        assert seen == [0, 1, 3, 7, 15, 31, 63, 123, 183]
        assert scheduler.failures("a") == 0

    on_fake_time(main)


def test_what_failed_is_tried_again_at_once_when_that_is_asked_for() -> None:
    """And what was under way just then: it began before."""

    async def main() -> None:
        clock, seen, away = LoopClock(), [], True

        async def rotate(key: str) -> datetime:
            seen.append((key, round(elapsed())))
            if key == "good":
                return clock.now() + timedelta(days=1)
            if key == "slow":
                await asyncio.sleep(20)
            if away:
                raise RuntimeError("the authority is away")
            return clock.now() + timedelta(days=1)

        scheduler = RotationScheduler(rotate, clock, Middle())
        for key in ("good", "bad", "slow"):
            scheduler.schedule(key, START)

        async def back() -> None:
            nonlocal away
            await asyncio.sleep(150)  # "bad" waits until 183, "slow" is trying
            scheduler.retry()
            await asyncio.sleep(20)
            away = False

        returning = asyncio.create_task(back())
        await running(scheduler, 175)
        await returning
        assert [at for key, at in seen if key == "good"] == [0]
        assert any(150 <= at <= 151 for key, at in seen if key == "bad"), seen
        slow = [at for key, at in seen if key == "slow"]
        assert any(at < 150 < at + 20 for at in slow), slow
        ended = next(at + 20 for at in slow if at < 150 < at + 20)
        assert any(ended <= at <= ended + 1 for at in slow), slow

    on_fake_time(main)


def test_a_clock_that_is_set_back_has_everything_looked_at_again() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), []

        async def rotate(key: str) -> datetime:
            seen.append((key, round(elapsed())))
            return clock.now() + timedelta(seconds=1000)

        scheduler = RotationScheduler(rotate, clock, Middle())
        clock.step = timedelta(days=2)
        scheduler.schedule("a", START + clock.step + timedelta(seconds=100))
        scheduler.schedule("b", START + clock.step + timedelta(seconds=100))

        async def later() -> None:
            await asyncio.sleep(10)
            clock.step = timedelta(0)

        stepping = asyncio.create_task(later())
        await running(scheduler, 90)
        assert seen == [("a", MAX_NAP), ("b", MAX_NAP)]
        await stepping

    on_fake_time(main)


def test_a_clock_that_drifts_or_jumps_ahead_is_no_clock_that_was_set_back() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), []

        async def rotate(key: str) -> datetime:
            seen.append((key, round(elapsed())))
            return clock.now() + timedelta(days=100)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("soon", START + timedelta(hours=2))
        scheduler.schedule("late", START + timedelta(days=50))

        async def drift() -> None:
            for number in range(20):
                await asyncio.sleep(20)
                clock.step += timedelta(hours=1) if number == 10 else timedelta(seconds=-1)

        drifting = asyncio.create_task(drift())
        await running(scheduler, 500)
        assert seen == []
        await drifting

    on_fake_time(main)


def test_at_most_so_many_at_once_and_all_of_them_in_the_end() -> None:
    async def main() -> None:
        clock, now, peak, done = LoopClock(), 0, 0, set()

        async def rotate(key: str) -> datetime:
            nonlocal now, peak
            now += 1
            peak = max(peak, now)
            await asyncio.sleep(1)
            now -= 1
            done.add(key)
            return clock.now() + timedelta(days=1)

        scheduler = RotationScheduler(rotate, clock, Middle(), at_once=3)
        for number in range(10):
            scheduler.schedule(str(number), START)
        await running(scheduler, 4.5)
        assert peak == 3
        assert len(done) == 10

    on_fake_time(main)


def test_a_forgotten_key_stops_at_once_and_can_come_back() -> None:
    async def main() -> None:
        clock, began = LoopClock(), []

        async def rotate(key: str) -> datetime:
            began.append(round(elapsed()))
            await asyncio.sleep(1000)
            return clock.now()

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START)
        task = asyncio.ensure_future(scheduler.run())
        await asyncio.sleep(5)
        await scheduler.forget("a")
        assert round(elapsed()) == 5
        assert scheduler.due("a") is None
        scheduler.schedule("a", clock.now())
        await scheduler.forget("a")
        scheduler.schedule("a", clock.now())
        await asyncio.sleep(5)
        assert began == [0, 5]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    on_fake_time(main)


def test_a_request_during_a_rotation_stands_and_never_runs_beside_it() -> None:
    async def main() -> None:
        clock, began, at_once, peak = LoopClock(), [], 0, 0

        async def rotate(key: str) -> datetime:
            nonlocal at_once, peak
            began.append(round(elapsed()))
            at_once += 1
            peak = max(peak, at_once)
            await asyncio.sleep(10)
            at_once -= 1
            return clock.now() + timedelta(days=1)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START)
        task = asyncio.ensure_future(scheduler.run())
        await asyncio.sleep(2)
        scheduler.schedule("a", START + timedelta(seconds=3))
        await asyncio.sleep(4)
        scheduler.schedule("a", START + timedelta(seconds=40))
        await asyncio.sleep(60)
        assert (began, peak) == ([0, 40], 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    on_fake_time(main)


def test_hastening_never_puts_off_what_is_due_earlier() -> None:
    async def main() -> None:
        clock, release = LoopClock(), asyncio.Event()

        async def rotate(key: str) -> datetime:
            await release.wait()
            return clock.now() + timedelta(hours=1)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START + timedelta(seconds=10))
        scheduler.hasten("a", START + timedelta(seconds=20))
        assert scheduler.due("a") == START + timedelta(seconds=10)
        scheduler.hasten("a", START + timedelta(seconds=5))
        assert scheduler.due("a") == START + timedelta(seconds=5)
        task = asyncio.ensure_future(scheduler.run())
        await asyncio.sleep(6)
        # It runs, and answers itself when it is due next.
        scheduler.hasten("a", START + timedelta(seconds=30))
        release.set()
        await asyncio.sleep(1)
        assert scheduler.due("a") == START + timedelta(seconds=6, hours=1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    on_fake_time(main)


def test_an_overdue_request_waits_for_the_rotation_that_runs() -> None:
    async def main() -> None:
        clock, began = LoopClock(), []

        async def rotate(key: str) -> datetime:
            began.append(round(elapsed()))
            await asyncio.sleep(10)
            return clock.now() + timedelta(days=1)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START)
        task = asyncio.ensure_future(scheduler.run())
        await asyncio.sleep(2)
        scheduler.schedule("a", clock.now())
        await asyncio.sleep(30)
        assert began == [0, 10]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    on_fake_time(main)


def test_a_step_of_the_wall_clock_is_noticed_within_a_nap() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), []

        async def rotate(key: str) -> datetime:
            seen.append(elapsed())
            return clock.now() + timedelta(days=9)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START + timedelta(hours=10))
        task = asyncio.ensure_future(scheduler.run())
        await asyncio.sleep(1)
        clock.step = timedelta(hours=11)
        await asyncio.sleep(MAX_NAP + 1)
        assert len(seen) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    on_fake_time(main)


def test_what_is_asked_for_after_the_wall_clock_was_set_ahead_waits_for_no_nap() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), []

        async def rotate(key: str) -> datetime:
            seen.append((key, elapsed()))
            return clock.now() + timedelta(days=1)

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", clock.now() + timedelta(days=30))
        loop = asyncio.ensure_future(running(scheduler, 2 * MAX_NAP))
        await asyncio.sleep(5)
        clock.step = timedelta(hours=1)
        await scheduler.rotate_now("b")
        assert seen == [("b", 5.0)]
        await loop

    on_fake_time(main)


def test_what_is_planned_for_later_wakes_nobody_and_what_was_planned_once_is_not_kept() -> None:
    class Counting(LoopClock):
        asked = 0

        def now(self) -> datetime:
            self.asked += 1
            return super().now()

    async def main() -> None:
        clock, seen = Counting(), []

        async def rotate(key: str) -> None:
            seen.append((key, elapsed()))

        scheduler = RotationScheduler(rotate, clock, Middle())
        soon, later = clock.now() + timedelta(seconds=10), clock.now() + timedelta(hours=1)
        scheduler.schedule("first", soon)
        loop = asyncio.ensure_future(running(scheduler, 20))
        await asyncio.sleep(1)
        before = clock.asked
        for number in range(1000):
            scheduler.schedule(f"{number % 10}", later + timedelta(seconds=number))
            await asyncio.sleep(0)
        # Once for each plan, and never by who sleeps: it would look at all of them.
        assert clock.asked == before + 1000
        assert len(scheduler._turns) < 200
        await loop
        assert seen == [("first", 10.0)]

    on_fake_time(main)


def test_turns_come_in_the_order_of_their_instants_whatever_was_planned_before() -> None:
    async def main() -> None:
        clock, seen = LoopClock(), list[tuple[str, float]]()

        async def rotate(key: str) -> None:
            seen.append((key, elapsed()))

        rng = random.Random(7)
        scheduler = RotationScheduler(rotate, clock, Middle())
        planned: dict[str, int] = {}
        for _ in range(3000):
            key = f"{rng.randrange(100)}"
            if rng.random() < 0.1:
                planned.pop(key, None)
                await scheduler.forget(key)
            else:
                planned[key] = rng.randrange(1, 1000)
                scheduler.schedule(key, START + timedelta(seconds=planned[key]))
        await running(scheduler, 1001)
        assert sorted(seen) == sorted((key, float(at)) for key, at in planned.items())
        assert [at for _, at in seen] == sorted(at for _, at in seen)

    on_fake_time(main)


@pytest.mark.spec("C-26")
def test_a_slow_subscriber_sees_the_newest_state_only() -> None:
    async def main() -> None:
        feed: Feed[int] = Feed()
        feed.publish(1)
        version = await feed.wait_beyond(0)
        for value in range(2, 10):
            feed.publish(value)
        assert await feed.wait_beyond(version) == 9
        assert feed.current == 9

    on_fake_time(main)


@pytest.mark.parametrize("again", [False, True])
def test_a_rotation_that_loses_its_cancellation_keeps_neither_the_stop_nor_who_forgets_its_key(again: bool) -> None:
    """Whoever stops is cancelled again; the key's worker is so beside it."""

    async def main() -> None:
        clock, ended = LoopClock(), []

        async def rotate(key: str) -> datetime:
            try:
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                await asyncio.Event().wait()
            finally:
                ended.append(key)
            raise AssertionError

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START)
        task = asyncio.ensure_future(scheduler.run())
        await asyncio.sleep(1)
        if again:
            task.cancel()
            await asyncio.sleep(1)
            assert not ended
            task.cancel()
            await asyncio.wait([task], timeout=1)
            assert task.done()
        else:
            await scheduler.forget("a")
            await end([task])
        assert ended == ["a"]

    on_fake_time(main)


@pytest.mark.parametrize("steps", range(24))
def test_at_whichever_step_the_scheduler_is_cancelled_it_ends_and_so_does_each_rotation(steps: int) -> None:
    async def main() -> None:
        clock, running = LoopClock(), set[str]()

        async def rotate(key: str) -> datetime:
            running.add(key)
            try:
                for _ in range(5):
                    await asyncio.sleep(0)
            finally:
                running.discard(key)
            return clock.now()

        scheduler = RotationScheduler(rotate, clock, Middle())
        scheduler.schedule("a", START)
        scheduler.schedule("b", START)
        task = asyncio.ensure_future(scheduler.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=1)
        assert task.cancelled()
        assert not running

    on_fake_time(main)
