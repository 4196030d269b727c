"""What the node's admin socket keeps and waits for, without a node."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import looptime
import pytest

from agent.workload.problems import Problem, Problems
from agent.workload.rotation import RotationScheduler
from csi.model import PodRef
from runtime.terminal import MAX_SHOWN, printable
from tests.unit.agent.test_rotation import LoopClock, Middle

START = datetime(2026, 6, 1, tzinfo=UTC)
POD = PodRef("default", "web", "uid", "account")


def problem(second: int, message: str = "m", reason: str = "R", volume: str = "v") -> Problem:
    at = START + timedelta(seconds=second)
    return Problem(at, POD, volume, reason, message, at)


def test_the_same_problem_again_is_counted_and_becomes_the_newest() -> None:
    kept = Problems(8)
    for second, message in ((0, "a"), (1, "b"), (2, "a"), (3, "a")):
        kept.add(problem(second, message))
    assert [(each.message, each.times) for each in kept] == [("b", 1), ("a", 3)]
    newest = kept.newest
    assert newest is not None
    assert (newest.first_at, newest.at) == (START, START + timedelta(seconds=3))


def test_only_so_many_are_kept_the_newest() -> None:
    kept = Problems(3)
    for second in range(10):
        kept.add(problem(second, str(second)))
    assert [each.message for each in kept] == ["7", "8", "9"]
    assert Problems(3).newest is None


def test_one_volumes_problems_are_taken_without_the_others() -> None:
    kept = Problems(8)
    for second, volume in enumerate("abab"):
        kept.add(problem(second, str(second), volume=volume))
    assert [each.message for each in kept.take("a")] == ["0", "2"]
    assert [each.message for each in kept] == ["1", "3"]
    assert kept.take("a") == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("POD_TOKEN_EXPIRED: kubelet has not", "POD_TOKEN_EXPIRED"),
        ("the signer's answer: X", "R"),
        ("it says POD_TOKEN_EXPIRED: no", "R"),
        ("", "R"),
    ],
)
def test_the_most_specific_code_is_told(message: str, code: str) -> None:
    assert problem(0, message).code == code


def test_only_what_can_be_seen_reaches_a_terminal() -> None:
    replaced = "\N{REPLACEMENT CHARACTER}"
    assert printable("a\x1b[31m\r\n\x00\x9b\u202eb ü") == f"a{replaced}[31m{replaced * 5}b ü"
    assert len(printable("x" * 10 * MAX_SHOWN)) == MAX_SHOWN + 1


def on_fake_time(main: Callable[[], Awaitable[Any]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def with_scheduler(
    rotate: Callable[[str], Awaitable[datetime]], use: Callable[[RotationScheduler], Awaitable[None]]
) -> None:
    scheduler = RotationScheduler(rotate, LoopClock(), Middle())
    running = asyncio.ensure_future(scheduler.run())
    try:
        async with asyncio.timeout(1000):
            await use(scheduler)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_rotating_now_waits_for_an_attempt_that_began_afterwards() -> None:
    begun: list[float] = []

    async def rotate(key: str) -> datetime:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(10)
        return LoopClock().now() + timedelta(hours=1)

    async def use(scheduler: RotationScheduler) -> None:
        scheduler.schedule("a", LoopClock().now())
        await asyncio.sleep(5)
        assert scheduler.is_running("a")
        await scheduler.rotate_now("a")
        assert begun == [0, 10]
        assert asyncio.get_running_loop().time() == 20
        assert not scheduler.is_running("a")

    on_fake_time(lambda: with_scheduler(rotate, use))


def test_rotating_now_ends_with_a_failure_and_with_a_key_that_is_forgotten() -> None:
    async def rotate(key: str) -> datetime:
        await asyncio.sleep(10)
        raise ValueError("no")

    async def use(scheduler: RotationScheduler) -> None:
        await scheduler.rotate_now("a")
        assert scheduler.failures("a") == 1
        for seconds in (0, 5):  # before it begins, and while it runs
            asked = asyncio.ensure_future(scheduler.rotate_now("a"))
            await asyncio.sleep(seconds)
            await scheduler.forget("a")
            await asyncio.wait_for(asked, 1)
            assert scheduler.due("a") is None

    on_fake_time(lambda: with_scheduler(rotate, use))


def test_whoever_asked_and_left_takes_no_answer_from_the_others() -> None:
    async def rotate(key: str) -> datetime:
        await asyncio.sleep(10)
        return LoopClock().now() + timedelta(hours=1)

    async def use(scheduler: RotationScheduler) -> None:
        leaves, stays = [asyncio.ensure_future(scheduler.rotate_now("a")) for _ in range(2)]
        await asyncio.sleep(5)
        leaves.cancel()
        await asyncio.wait_for(stays, 10)
        assert asyncio.get_running_loop().time() == 10

    on_fake_time(lambda: with_scheduler(rotate, use))
