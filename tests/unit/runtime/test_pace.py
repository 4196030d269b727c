"""Rounds that take long come less often, and what takes no time comes when it is said to."""

import asyncio

import pytest

from runtime.pace import MOST, SHARE, Pace


@pytest.mark.parametrize(("took", "waits"), [(0.0, 2.0), (0.05, 2.0), (0.2, 0.2 * (1 / SHARE - 1)), (60.0, MOST)])
def test_a_round_takes_its_share_of_the_time_and_no_more(took: float, waits: float) -> None:
    at = [100.0]
    pace = Pace(lambda: at[0])
    at[0] += took
    assert pace.due(2.0) == pytest.approx(waits)


def test_what_is_waited_is_no_part_of_the_next_round() -> None:
    at = [100.0]

    def now() -> float:
        return at[0]

    async def run() -> float:
        pace = Pace(now)
        resting = asyncio.ensure_future(pace.rest(0.0))
        await asyncio.sleep(0)
        at[0] += 5.0
        await resting
        return pace.due(1.0)

    assert asyncio.run(run()) == 1.0


def test_what_is_asked_for_may_be_longer_than_the_most() -> None:
    assert Pace(lambda: 0.0).due(60.0) == 60.0


def test_whoever_is_waited_for_waits_less() -> None:
    at = [100.0]
    pace = Pace(lambda: at[0], most=3.0)
    at[0] += 60.0
    assert pace.due(1.0) == 3.0
