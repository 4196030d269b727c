"""How long the exposed process is waited for: by what the kernel says that it does meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent.servers import patience as patience_module
from agent.servers.load import Effort
from agent.servers.patience import (
    EACH,
    FORGIVEN,
    IDLE,
    IDLE_AGAIN,
    MOST_MORE,
    PACE,
    REFUSED,
    REFUSED_AGAIN,
    RUNNING,
    TURN,
    WAITING,
    Patience,
    next_patience,
)

ASLEEP, STARVED = Effort(0.0, awake=False), Effort(0.0, awake=True)


class Scene:
    """A process of which the kernel says what a test has it say, and one thing that is waited for."""

    def __init__(self, more: float = 1.0) -> None:
        self.effort: Effort | None = ASLEEP
        self.cpu = 0.0
        self.taken = 0
        self.now = 0.0
        self.patience = Patience(lambda: self.effort, lambda: self.taken, more, lambda: self.now)
        self.waited: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        self.patience.begin(self.waited)

    def turn(self, running: float | None = None) -> str:
        """One passes, in which it runs for so long."""
        self.now += TURN
        if running is not None:
            self.cpu += running
            self.effort = Effort(self.cpu, awake=True)
        return self.patience.turn()

    def seconds(self, most: float, running: float | None = None) -> float:
        """For how long there was patience, up to `most`."""
        turns = 0
        while turns * TURN < most and not self.turn(running):
            turns += 1
        return turns * TURN


def on(main: Callable[[], None]) -> None:
    async def run() -> None:
        main()

    asyncio.run(run())


def test_one_that_sleeps_while_it_is_waited_for_is_ended_soon() -> None:
    def main() -> None:
        at = Scene()
        at.begin()
        assert IDLE <= at.seconds(100.0) < IDLE + 4 * TURN
        assert at.patience.over

    on(main)


def test_what_it_sleeps_counts_together_whatever_it_answers_meanwhile() -> None:
    async def main() -> None:
        at = Scene()
        slept = 0.0
        for _ in range(1000):
            at.waited = asyncio.get_running_loop().create_future()
            at.begin()
            slept += at.seconds(9 * TURN)
            if at.patience.over:
                break
            at.waited.set_result(None)
            await asyncio.sleep(0)
            at.now += 1.0
        assert at.patience.over, "it may sleep for nearly as long as it likes, each time"
        assert slept < 2 * IDLE

    asyncio.run(main())


def test_who_sleeps_a_little_now_and_then_is_forgiven() -> None:
    async def main() -> None:
        at = Scene()
        for _ in range(50):
            at.waited = asyncio.get_running_loop().create_future()
            at.begin()
            assert at.seconds(6 * TURN) == pytest.approx(6 * TURN)
            at.waited.set_result(None)
            await asyncio.sleep(0)
            at.now += 0.6 / IDLE_AGAIN

    asyncio.run(main())


def test_what_takes_others_time_may_be_slept_for() -> None:
    """As often as that happens: who lets a socket be closed late ends nothing."""

    async def main() -> None:
        at = Scene()
        for _ in range(50):
            at.waited = asyncio.get_running_loop().create_future()
            at.patience.begin(at.waited, asleep=True)
            assert at.seconds(1.5) == pytest.approx(1.5)
            at.waited.set_result(None)
            await asyncio.sleep(0)
        at.waited = asyncio.get_running_loop().create_future()
        at.patience.begin(at.waited, asleep=True)
        other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert at.seconds(1.0) == pytest.approx(1.0)
        # Beside it something is waited for that is no reason to sleep.
        at.patience.begin(other)
        assert at.seconds(100.0) < IDLE + 4 * TURN
        at = Scene()
        at.patience.begin(at.waited, asleep=True)
        assert RUNNING - 1 <= at.seconds(100.0) < RUNNING + 1

    asyncio.run(main())


def test_one_that_gets_no_processor_is_waited_for() -> None:
    def main() -> None:
        at = Scene()
        at.begin()
        at.effort = STARVED
        assert at.seconds(WAITING - 1) == pytest.approx(WAITING - 1)
        # A little now and then is what it gets.
        assert at.seconds(0.5, running=0.01) == pytest.approx(0.5)
        assert at.seconds(100.0) < 1.0, "it is waited for for ever"

    on(main)


def test_one_that_runs_and_does_not_do_it_has_its_time() -> None:
    def main() -> None:
        at = Scene()
        at.begin()
        # With many threads as with one.
        assert RUNNING - 1 <= at.seconds(100.0, running=3 * TURN) < RUNNING + 1
        at = Scene()
        at.begin()
        assert 2 * RUNNING - 1 <= at.seconds(100.0, running=TURN / 2) < 2 * RUNNING + 1

    on(main)


def test_what_is_to_be_done_at_once_has_more_time() -> None:
    def main() -> None:
        at = Scene()
        at.begin()
        others = [asyncio.get_running_loop().create_future() for _ in range(499)]
        for each in others:
            at.patience.begin(each)
        assert at.seconds(500 * EACH, running=TURN) == pytest.approx(500 * EACH)
        assert at.seconds(100.0, running=TURN) < RUNNING + 1

    on(main)


def test_where_the_kernel_says_nothing_the_clock_does() -> None:
    def main() -> None:
        at = Scene()
        at.effort = None
        at.begin()
        assert RUNNING - 1 <= at.seconds(100.0) < RUNNING + 1

    on(main)


def test_what_it_takes_meanwhile_gives_it_time() -> None:
    def main() -> None:
        at = Scene()
        at.begin()
        turns = 0
        while turns * TURN < 3 * RUNNING and not at.turn(running=TURN):
            at.taken += int(PACE * TURN)
            turns += 1
        assert turns * TURN >= 3 * RUNNING
        assert at.seconds(100.0, running=TURN) < RUNNING + 1

    on(main)


def test_what_has_just_begun_or_is_done_is_no_reason() -> None:
    def main() -> None:
        at = Scene()
        for _ in range(1000):
            # Whenever the process is looked at there is something new on its way to it.
            at.waited = asyncio.get_running_loop().create_future()
            at.begin()
            assert not at.turn()
            at.waited.set_result(None)
            assert not at.turn()

    on(main)


def test_what_it_ran_before_is_nothing_to_what_comes() -> None:
    def main() -> None:
        at = Scene()
        at.effort = Effort(5000.0, awake=True)
        at.begin()
        for _ in range(10):
            assert not at.turn()
        assert at.patience._running == 0

    on(main)


def test_so_many_orders_may_be_refused() -> None:
    def main() -> None:
        at = Scene()
        assert [at.patience.refused() for _ in range(int(REFUSED) + 1)] == [True] * int(REFUSED) + [False]
        assert at.patience.over
        assert not at.patience.refused()
        at = Scene()
        for _ in range(20):
            assert at.patience.refused()
            at.now += 1 / REFUSED_AGAIN

    on(main)


def test_with_one_after_another_there_is_more_of_it_and_no_end_of_starts() -> None:
    def main() -> None:
        more, found = 1.0, []
        for _ in range(5):
            at = Scene(more)
            at.begin()
            found.append(at.seconds(1000.0))
            more = next_patience(at.patience, found[-1])
        assert found[0] < found[1] < found[2] == found[3] == found[4]
        # A caller's own time is longer than that, however often it was started again.
        assert found[-1] == pytest.approx(min(MOST_MORE * IDLE, RUNNING), abs=1)
        at = Scene(more)
        assert next_patience(at.patience, FORGIVEN - 1) == more
        assert next_patience(at.patience, FORGIVEN) == 1.0

    on(main)


def test_it_is_looked_at_only_while_something_is_waited_for(monkeypatch: Any) -> None:
    async def main() -> None:
        at = Scene()
        looks: list[Effort] = []

        def look() -> Effort:
            looks.append(ASLEEP)
            return ASLEEP

        at.patience = Patience(look, lambda: 0, 1.0, lambda: 0.0)
        running = asyncio.ensure_future(at.patience.run())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not looks
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        at.patience.begin(done)
        done.set_result(None)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not looks
        at.begin()
        async with asyncio.timeout(20):
            assert await running == "it did nothing while it was waited for"
        assert len(looks) > 10
        assert at.patience.over

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    asyncio.run(main())
