"""Who gets a turn next: groups alike, in a group its members, nobody who has left. Time is the loop's, and faked."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import looptime
import pytest

from runtime.turns import LATER_SHARE, Crowded, Turns, Who

EVIL, OTHER = Who("evil", "pod"), Who("other", "pod")


class Noted:
    """Implements runtime.turns.Seen."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.refusals: list[str] = []

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def refused(self, why: str) -> None:
        self.refusals.append(why)


class Scene:
    """Turns of one second each, and the order in which they came."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.came: list[Who] = []
        self.most: Counter[str] = Counter()
        self._running: Counter[str] = Counter()

    async def one(self, who: Who, **options: Any) -> None:
        async with self.turns.turn(who, **options):
            self.came.append(who)
            self._running[who.group] += 1
            self._running["all"] += 1
            self.most |= self._running
            await asyncio.sleep(1)
            self._running[who.group] -= 1
            self._running["all"] -= 1

    def ask(self, who: Who, times: int = 1, **options: Any) -> "list[asyncio.Task[None]]":
        return [asyncio.create_task(self.one(who, **options)) for _ in range(times)]


async def begun() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def on_fake_time(main: Callable[[], Awaitable[Any]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_who_asks_once_comes_after_one_turn_of_who_asks_four_hundred_times() -> None:
    async def main() -> None:
        here = Scene(Turns(1))
        asked = here.ask(EVIL, 400)
        await begun()
        (one,) = here.ask(OTHER)
        await one
        # The one that ran already, and the next of its group at most.
        assert here.came.index(OTHER) <= 2
        assert here.turns.waiting == 400 - len(here.came) + 1
        await asyncio.gather(*asked)
        assert len(here.came) == 401
        assert here.turns.waiting == 0

    on_fake_time(main)


def test_a_groups_many_members_are_no_more_than_another_groups_one() -> None:
    async def main() -> None:
        here = Scene(Turns(1))
        tasks = [task for number in range(50) for task in here.ask(Who("evil", f"pod-{number}"), 2)]
        await begun()
        tasks += here.ask(OTHER, 10)
        await asyncio.gather(*tasks)
        # Turn and turn about, from the second on.
        assert [who.group for who in here.came[1:21]].count("other") == 10
        # In the group each member that waits comes once before any comes again.
        evil = [who.member for who in here.came if who.group == "evil"]
        assert len(set(evil[1:51])) == 50

    on_fake_time(main)


def test_a_members_own_come_in_their_order() -> None:
    async def main() -> None:
        turns, came = Turns(1), []

        async def one(number: int) -> None:
            async with turns.turn(EVIL):
                came.append(number)
                await asyncio.sleep(1)

        await asyncio.gather(*map(one, range(20)))
        assert came == list(range(20))

    on_fake_time(main)


def test_no_more_at_once_than_said_and_of_a_group_no_more_than_its_part() -> None:
    async def main() -> None:
        here = Scene(Turns(4, of_group=2))
        tasks = here.ask(EVIL, 20)
        await begun()
        assert len(here.came) == 2
        # There is room for somebody else at once, however many of the first group wait.
        tasks += here.ask(OTHER) + here.ask(Who("third", "pod")) + here.ask(Who("fourth", "pod"))
        await begun()
        assert [who.group for who in here.came] == ["evil", "evil", "other", "third"]
        await asyncio.gather(*tasks)
        assert here.most == {"all": 4, "evil": 2, "other": 1, "third": 1, "fourth": 1}

    on_fake_time(main)


def test_a_member_that_has_too_many_waiting_is_refused_and_others_are_not() -> None:
    async def main() -> None:
        seen = Noted()
        here = Scene(Turns(1, most_waiting=3, seen=seen))
        tasks = here.ask(EVIL, 4)  # one runs
        await begun()
        with pytest.raises(Crowded) as caught:
            await here.one(EVIL)
        assert (caught.value.why, caught.value.waiting) == ("full", 3)
        assert seen.refusals == ["full"]
        tasks += here.ask(OTHER, 3) + here.ask(Who("evil", "another pod"), 3)
        # What can wait is not of that number.
        tasks += here.ask(EVIL, 5, later=True)
        await asyncio.gather(*tasks)
        assert len(here.came) == 15
        await here.one(EVIL)

    on_fake_time(main)


def test_who_waits_too_long_is_told_so_and_is_gone() -> None:
    async def main() -> None:
        seen = Noted()
        here = Scene(Turns(1, seen=seen))
        tasks = here.ask(EVIL, 10)
        await begun()
        with pytest.raises(Crowded) as caught:
            await here.one(EVIL, patience=2.5)
        assert (caught.value.why, caught.value.waiting) == ("late", 7)
        assert seen.refusals == ["late"]
        await asyncio.gather(*tasks)
        assert len(here.came) == 10
        assert seen.waits == [float(number) for number in range(10)]

    on_fake_time(main)


def test_who_is_cancelled_leaves_the_line_and_whoever_has_a_turn_gives_it_back() -> None:
    async def main() -> None:
        here = Scene(Turns(1))
        running, *waiting = here.ask(EVIL, 5)
        (last,) = here.ask(OTHER)
        await begun()
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert here.turns.waiting == 1
        running.cancel()
        await last
        assert here.came == [EVIL, OTHER]
        await here.one(EVIL)

    on_fake_time(main)


def test_a_turn_that_comes_in_the_instant_of_the_cancelling_is_given_on() -> None:
    async def main() -> None:
        turns = Turns(1)
        given = asyncio.Event()

        async def first() -> None:
            async with turns.turn(EVIL):
                await given.wait()

        async def never() -> None:
            async with turns.turn(EVIL):
                raise AssertionError("was cancelled")

        running, cancelled = asyncio.create_task(first()), asyncio.create_task(never())
        await begun()
        given.set()
        await asyncio.sleep(0)  # the first ends, and its turn is the second's, which has not been woken yet
        cancelled.cancel()
        await asyncio.gather(running, cancelled, return_exceptions=True)
        assert cancelled.cancelled()
        async with asyncio.timeout(1), turns.turn(OTHER):
            pass

    on_fake_time(main)


def test_a_turn_is_not_given_to_who_was_cancelled_in_that_instant() -> None:
    async def main() -> None:
        here = Scene(Turns(1))
        running, cancelled = here.ask(EVIL, 2)
        (last,) = here.ask(OTHER)
        await begun()
        # Both end in one step of the loop, the one that has the turn first.
        running.cancel()
        cancelled.cancel()
        await asyncio.gather(running, cancelled, return_exceptions=True)
        async with asyncio.timeout(60):
            await last
        assert here.came == [EVIL, OTHER]
        assert here.turns.waiting == 0
        await asyncio.gather(*here.ask(EVIL, 3))

    on_fake_time(main)


def test_a_block_that_fails_gives_its_turn_back() -> None:
    async def main() -> None:
        turns = Turns(1)
        with pytest.raises(ValueError, match="it"):
            async with turns.turn(EVIL):
                raise ValueError("it")
        async with asyncio.timeout(1), turns.turn(EVIL):
            pass

    on_fake_time(main)


def test_what_can_wait_comes_after_the_others_and_still_gets_its_share() -> None:
    async def main() -> None:
        here = Scene(Turns(1))
        later = here.ask(EVIL, 5, later=True)
        tasks = here.ask(OTHER, 40)
        await begun()
        await asyncio.gather(*later)
        # The first came while nobody else was there; each of the others after a share of those that go first.
        places = [number for number, who in enumerate(here.came) if who == EVIL]
        assert places == [0, *(LATER_SHARE * number for number in range(1, 5))]
        await asyncio.gather(*tasks)

    on_fake_time(main)


def test_the_share_is_not_saved_up_while_nothing_waits_for_it() -> None:
    async def main() -> None:
        here = Scene(Turns(1))
        tasks = here.ask(OTHER, 30)
        await asyncio.sleep(10.5)
        tasks += here.ask(EVIL, 1, later=True)
        await asyncio.gather(*tasks)
        assert here.came.index(EVIL) == 11 + LATER_SHARE - 1

    on_fake_time(main)


def test_nothing_is_kept_of_who_has_gone() -> None:
    async def main() -> None:
        here = Scene(Turns(2, most_waiting=1))
        for number in range(50):
            await asyncio.gather(*here.ask(Who(f"group-{number}", "pod"), 2))
        assert not here.turns._running
        assert not here.turns._first._groups

    on_fake_time(main)
