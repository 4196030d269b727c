"""How much one node may ask for: a bucket and mints in flight for each, whatever happens inside, and bounded memory."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from functools import partial

import pytest

from signer.errors import Reason, Refused
from signer.front import limits as module
from signer.front.limits import (
    BUSY_RETRY,
    CALLS,
    CALLS_AT_ONCE,
    MOST_REST,
    SILENT_SECONDS,
    NodeLimits,
    Place,
    Slots,
)
from tests.signer_rig import StepClock


def limited(
    test: Callable[[NodeLimits, StepClock], Awaitable[None]], rate: int = 2, burst: int = 3, concurrent: int = 100
) -> None:
    clock = StepClock()
    asyncio.run(_run(test, NodeLimits(rate, burst, concurrent, clock), clock))


async def _run(test: Callable[[NodeLimits, StepClock], Awaitable[None]], limits: NodeLimits, clock: StepClock) -> None:
    await test(limits, clock)


async def served(limits: NodeLimits, node: str = "a", most: int = 100) -> int:
    """How many mints the node gets one after another."""
    for number in range(most):
        try:
            with limits.slot(node):
                pass
        except Refused as error:
            assert error.reason is Reason.RATE_LIMITED
            return number
    return most


def test_a_node_gets_its_burst_and_then_its_rate() -> None:
    async def test(limits: NodeLimits, clock: StepClock) -> None:
        assert await served(limits) == 3
        clock.pass_by(seconds=1)
        assert await served(limits) == 2
        # However long it was quiet it saves up no more than the burst.
        clock.pass_by(days=1)
        assert await served(limits) == 3
        # Half a mint is none.
        clock.pass_by(seconds=0.25)
        assert await served(limits) == 0
        assert await served(limits, "b") == 3

    limited(test)


def test_a_node_that_calls_too_often_is_to_be_silent_until_it_has_called_as_often_as_it_may() -> None:
    async def test(limits: NodeLimits, clock: StepClock) -> None:
        assert [limits.called("a") for _ in range(3 * CALLS_AT_ONCE)] == [0.0] * 3 * CALLS_AT_ONCE
        rate = 2 * CALLS
        assert [limits.called("a") for _ in range(3)] == [pytest.approx(number / rate) for number in (1, 2, 3)]
        assert limits.called("b") == 0.0
        clock.pass_by(seconds=5 / rate)
        assert limits.called("a") == 0.0
        for _ in range(100 * rate):
            limits.called("a")
        assert limits.called("a") == MOST_REST
        # Its mints are another matter.
        assert await served(limits) == 3

    limited(test)


def test_the_wait_that_is_told_is_the_one_that_is_needed() -> None:
    async def test(limits: NodeLimits, clock: StepClock) -> None:
        await served(limits)
        clock.pass_by(seconds=0.2)
        with pytest.raises(Refused) as caught, limits.slot("a"):
            pass
        wait = caught.value.retry_after
        assert wait is not None
        assert wait == timedelta(seconds=0.3)
        clock.at += wait
        assert await served(limits) == 1

    limited(test)


def test_a_clock_that_is_set_back_takes_nothing_from_a_node() -> None:
    async def test(limits: NodeLimits, clock: StepClock) -> None:
        assert await served(limits, most=1) == 1
        clock.set_by(days=-1)
        assert await served(limits) == 2
        # Nor does it give for the time that passes a second time.
        clock.pass_by(seconds=1)
        assert await served(limits) == 2

    limited(test)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, Refused])
def test_a_slot_is_given_back_however_the_mint_ends(error: type[BaseException]) -> None:
    async def test(limits: NodeLimits, clock: StepClock) -> None:
        raised = error(Reason.POLICY_DENIED, "no") if error is Refused else error()
        for _ in range(3):
            with pytest.raises(error), limits.slot("a"):
                raise raised
        clock.pass_by(minutes=1)
        assert await served(limits) == 3

    limited(test, concurrent=1)


def test_so_many_are_in_flight_and_who_is_turned_away_pays_nothing() -> None:
    async def test(limits: NodeLimits, clock: StepClock) -> None:
        async with AsyncExitStack() as running:
            for _ in range(2):
                running.enter_context(limits.slot("a"))
            for _ in range(5):
                with pytest.raises(Refused) as caught:
                    running.enter_context(limits.slot("a"))
                assert (caught.value.reason, caught.value.retry_after) == (Reason.BUSY, BUSY_RETRY)
            with limits.slot("b"):
                pass
        assert await served(limits) == 1

    limited(test, concurrent=2)


def test_nodes_are_forgotten_when_there_are_too_many_the_quietest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 3)

    async def test(limits: NodeLimits, clock: StepClock) -> None:
        with limits.slot("running"):
            for node in ("a", "b"):
                assert await served(limits, node) == 3
            assert await served(limits, "a") == 0  # asked last: b is quieter
            for node in ("c", "d"):
                assert await served(limits, node) == 3
                assert await served(limits, "a") == 0
            assert len(limits._nodes) == 3
            # Who has a mint in flight is not forgotten: it would get another one.
            with pytest.raises(Refused), limits.slot("running"):
                pass

    limited(test, concurrent=1)


def test_a_node_with_a_batch_in_flight_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 2)

    async def test(limits: NodeLimits, clock: StepClock) -> None:
        with ExitStack() as held:
            for _ in range(module.BATCHES):
                held.enter_context(limits.batch("a"))
            for node in ("b", "c"):
                assert await served(limits, node) == 3
            with pytest.raises(Refused), limits.batch("a"):
                pass

    limited(test)


def test_a_place_is_lost_only_where_nothing_was_said_for_a_while() -> None:
    now, ended = 100.0, []
    slots = Slots(1, lambda: now)
    with one(slots, "a") as first:
        assert slots.take("b") is None
        first.silent(now, lambda: ended.append("a"))
        now += SILENT_SECONDS - 0.01
        assert slots.take("b") is None
        now += 0.01
        assert slots.take("a") is None, "a holder ends its own call for one more"
        with one(slots, "b") as second:
            assert (ended, first.lost, second.lost) == (["a"], True, False)
            assert slots.take("c") is None
        # The second left; what the first lost does not come back twice.
        with one(slots, "c"):
            assert slots.take("d") is None
        first.heard()
        assert ended == ["a"]
    with one(slots, "e"):
        assert slots.take("f") is None


def one(slots: Slots, holder: str) -> Place:
    place = slots.take(holder)
    assert place is not None
    return place


def test_a_share_has_so_many_and_its_holders_make_room_for_each_other() -> None:
    now, ended = 100.0, list[str]()
    slots = Slots(5, lambda: now, 3)
    with ExitStack() as held:

        def silent(holder: str, share: str) -> Place | None:
            place = slots.take(holder, share)
            if place is not None:
                held.enter_context(place).silent(now, lambda: ended.append(f"{share} {holder}"))
            return place

        assert [silent("many", "a") is not None for _ in range(4)] == [True, True, True, False]
        # Others are not kept waiting by it, and nobody's call is ended for one of a share that is full.
        assert silent("one", "b") is not None
        now += SILENT_SECONDS
        assert silent("many", "a") is None
        assert silent("few", "a") is not None
        assert ended == ["a many"]
        # Where there are no places for anybody, it is the share that has most.
        assert silent("two", "b") is not None
        assert silent("three", "c") is not None
        assert ended == ["a many"] * 2
    with ExitStack() as held:
        taken = [slots.take("x", "a") for _ in range(4)]
        assert [each is not None for each in taken] == [True, True, True, False]
        for each in taken[:3]:
            assert each is not None
            held.enter_context(each)
    assert not slots._shares


def test_in_a_full_share_nobody_elses_call_is_ended() -> None:
    now, ended = 100.0, list[str]()
    slots = Slots(4, lambda: now, 2)
    with ExitStack() as held:
        for share in ("first", "second"):
            for _ in range(2):
                place = slots.take("many", share)
                assert place is not None
                held.enter_context(place).silent(now, partial(ended.append, share))
        now += SILENT_SECONDS
        assert slots.take("few", "second") is not None
        assert ended == ["second"]


def test_a_call_that_has_spoken_keeps_its_place() -> None:
    now = 100.0
    slots = Slots(1, lambda: now)
    with one(slots, "a") as place:
        place.silent(now, lambda: None)
        place.heard()
        now += 100
        assert slots.take("b") is None
        assert not place.lost
