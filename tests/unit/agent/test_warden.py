"""Looks at exposed processes: what is decided by what the kernel and the process say, when, and what time brings."""

import asyncio

import looptime
import pytest

from agent.channel.messages import Weighed, Weight
from agent.servers import warden as warden_module
from agent.servers.load import PART, Usage
from agent.servers.quarantine import Move, Place, Times
from agent.servers.warden import CALM, LEAST, SOON, Warden

MEMORY = 1000
PODS = {1: "bad", 2: "good"}


class Scene:
    def __init__(self, *, active: bool = True) -> None:
        self.now = 100.0
        self.cpu = self.waited = 0.0
        self.memory = 1.0
        self.looks: list[int] = []
        self.moves: list[Move] = []
        self.gone = False
        self.warden = Warden(Times(600.0, 30.0, 600.0), self.moves.extend, self.usage, lambda: self.now, active=active)

    def usage(self, pid: int) -> Usage:
        self.looks.append(pid)
        if self.gone:
            raise FileNotFoundError
        return Usage(self.cpu, self.memory, self.waited)

    def begin(self, place: Place = Place.SHARED, pid: int = 7) -> None:
        self.warden.began(place, pid, MEMORY, PODS.get)

    def flood(self, place: Place = Place.SHARED, calls: int = 10_000) -> None:
        self.warden.weighed(place, Weighed({1: Weight(1, calls, 0, 0, 1, 1), 2: Weight(1, 1, 0, 0, 1, 1)}))

    def moved(self) -> list[tuple[str, str, str]]:
        found = [(each.pod, str(each.to), str(each.why)) for each in self.moves]
        self.moves.clear()
        return found


def test_who_costs_too_much_memory_is_moved_at_once_and_closed_when_it_goes_on() -> None:
    at = Scene()
    at.begin()
    at.now += 1
    at.flood()
    assert at.moved() == []
    at.now += 1
    at.memory = PART * MEMORY
    at.flood(calls=20_000)
    assert at.moved() == [("bad", "quarantine", "memory")]
    assert (at.warden.place("bad"), at.warden.place("good")) == (Place.QUARANTINE, Place.SHARED)
    assert at.warden.closed_for("bad") == 0
    at.begin(Place.QUARANTINE, 8)
    at.now += 1
    at.flood(Place.QUARANTINE)
    assert at.moved() == [("bad", "closed", "memory")]
    assert at.warden.closed_for("bad") == 30
    assert at.looks == [7, 7, 8]


def test_memory_that_one_has_filled_is_not_blamed_on_who_is_left() -> None:
    at = Scene()
    at.begin()
    at.now += 1
    at.memory = PART * MEMORY
    at.flood()
    assert at.moved() == [("bad", "quarantine", "memory")]
    at.warden.left(Place.SHARED, 1)
    # What it sent is still being read, and more is kept of it.
    at.memory = 0.7 * MEMORY
    for second in range(60):
        at.now += 1
        # Six calls a second, each with a connection of its own.
        calls = 6 * (second + 1)
        at.warden.weighed(Place.SHARED, Weighed({2: Weight(calls, calls, 0, 0, 6, 6)}))
    assert at.moved() == []
    # Who fills it anew is to blame for that.
    at.memory = 0.8 * MEMORY
    at.warden.weighed(Place.SHARED, Weighed({2: Weight(400, 10_000, 0, 0, 6, 6)}))
    assert at.moved() == []
    at.now += 1
    at.warden.look(Place.SHARED)
    assert at.moved() == [("good", "quarantine", "memory")]


def test_nobody_is_moved_while_nothing_is_wrong() -> None:
    at = Scene()
    at.begin()
    for _ in range(20):
        at.now += 1
        at.flood(calls=100_000)
        at.cpu += 0.2
    assert at.moved() == []


def test_time_of_a_core_moves_who_takes_it() -> None:
    at = Scene()
    at.begin()
    found = []
    for second in range(10):
        at.now += 1
        at.cpu += 0.9
        at.flood(calls=2_000 * (second + 1))
        found += at.moved()
    assert found == [("bad", "quarantine", "cpu")]


def test_a_core_that_it_waits_for_moves_who_it_is_wanted_for() -> None:
    at = Scene()
    at.begin()
    found = []
    for second in range(10):
        at.now += 1
        at.cpu += 0.2
        at.waited += 2.0
        at.flood(calls=2_000 * (second + 1))
        found += at.moved()
    assert found == [("bad", "quarantine", "cpu")]


@pytest.mark.parametrize(("share", "closed"), [(0.7, False), (0.9, True)])
def test_what_limits_allow_is_no_reason_to_be_closed(share: float, closed: bool) -> None:
    at = Scene()
    at.begin()
    at.flood()
    at.warden.ended(Place.SHARED, asked=False)
    assert at.moved() == [("bad", "quarantine", "ended")]
    at.begin(Place.QUARANTINE)
    found = []
    for second in range(8):
        at.now += 1
        at.cpu += share
        at.waited += 5.0
        at.flood(Place.QUARANTINE, calls=2_000 * (second + 1))
        found += at.moved()
    assert bool(found) == closed


@pytest.mark.parametrize("asked", [True, False])
def test_an_end_is_blamed_on_who_was_heavy_unless_it_was_asked_for(asked: bool) -> None:
    at = Scene()
    at.begin()
    at.flood()
    at.warden.ended(Place.SHARED, asked=asked)
    assert at.moved() == ([] if asked else [("bad", "quarantine", "ended")])
    at.warden.ended(Place.SHARED, asked=False)
    assert at.moved() == [], "a process that never served ended"


def test_an_end_without_a_heavy_pod_moves_nobody() -> None:
    at = Scene()
    at.begin()
    at.flood(calls=20)
    at.warden.ended(Place.SHARED, asked=False)
    assert at.moved() == []


def test_an_end_with_its_memory_full_is_blamed_on_who_has_a_large_part_of_the_weight() -> None:
    at = Scene()
    at.begin()
    at.warden.weighed(Place.SHARED, Weighed({1: Weight(1, 200, 0, 0, 1, 1), 2: Weight(1, 1, 0, 0, 1, 1)}))
    at.memory = PART * MEMORY
    at.warden._lives[Place.SHARED].watch.look(Usage(0.0, at.memory), at.now)
    at.warden.ended(Place.SHARED, asked=False)
    assert at.moved() == [("bad", "quarantine", "memory")]


def test_looks_are_seldom_soon_when_something_is_suspicious_and_never_more_often_than_that() -> None:
    at = Scene()
    assert at.warden.look(Place.SHARED) == CALM
    assert at.looks == []
    at.begin()
    assert at.warden.look(Place.SHARED) == CALM
    at.memory = PART * MEMORY
    assert at.warden.look(Place.SHARED) == SOON
    looks = len(at.looks)
    for _ in range(10):
        at.flood()
    assert len(at.looks) == looks
    at.now += LEAST
    at.flood()
    assert len(at.looks) == looks + 1
    at.gone = True
    at.now += LEAST
    at.flood()
    assert at.warden.look(Place.SHARED) in (CALM, SOON)


def test_reports_beyond_their_rate_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden_module, "REPORTS_BURST", 2)
    at = Scene()
    at.begin()
    for calls in (1, 2, 100_000):
        at.flood(calls=calls)
    at.warden.ended(Place.SHARED, asked=False)
    assert at.moved() == []


def test_what_left_weighs_no_longer() -> None:
    at = Scene()
    at.begin()
    at.warden.weighed(Place.SHARED, Weighed({1: Weight(0, 0, 0, 0, 10_000, 0)}))
    at.warden.left(Place.SHARED, 1)
    at.warden.left(Place.QUARANTINE, 1)
    at.warden.ended(Place.SHARED, asked=False)
    assert at.moved() == []


def test_that_something_is_wrong_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    at = Scene()
    at.begin()
    at.memory = PART * MEMORY
    for _ in range(5):
        at.now += 1
        at.flood(calls=1)
    assert len(caplog.records) == 1
    at.memory = 1.0
    at.now += 1
    at.flood(calls=1)
    at.memory = PART * MEMORY
    at.now += 1
    at.flood(calls=1)
    assert len(caplog.records) == 2


def test_where_it_is_switched_off_nobody_is_looked_at_or_moved() -> None:
    at = Scene(active=False)
    at.begin()
    at.memory = PART * MEMORY
    at.now += 1
    at.flood()
    assert at.warden.look(Place.SHARED) == CALM
    at.warden.ended(Place.SHARED, asked=False)
    assert (at.moved(), at.looks) == ([], [])


def test_who_goes_on_in_quarantine_where_it_hurts_nobody_stays_there() -> None:
    at = Scene()
    at.begin()
    at.flood()
    at.warden.ended(Place.SHARED, asked=False)
    at.begin(Place.QUARANTINE)
    at.now += 500
    at.flood(Place.QUARANTINE)
    held = at.warden.held("bad")
    assert held is not None
    assert held.since == at.now, "its ten minutes have not begun anew"
    at.now += 500
    at.flood(Place.QUARANTINE, calls=10_001)
    assert at.warden.held("bad") == held


def test_what_is_left_of_a_flood_is_nobodys_who_comes_later() -> None:
    at = Scene()
    at.begin()
    at.memory = PART * MEMORY
    for _ in range(62):
        at.now += 1
        at.flood(calls=1)
    at.now += 1
    at.flood(calls=10_000)
    assert at.moved() == []
    at.memory *= 1.2
    at.now += 1
    at.flood(calls=20_000)
    assert at.moved() == [("bad", "quarantine", "memory")]


def test_time_brings_pods_back() -> None:
    async def main() -> list[tuple[float, str, str, str]]:
        loop = asyncio.get_running_loop()
        began, found = loop.time(), list[tuple[float, str, str, str]]()

        def moved(moves: tuple[Move, ...]) -> None:
            found.extend((loop.time() - began, each.pod, str(each.to), str(each.why)) for each in moves)

        warden = Warden(Times(600.0, 30.0, 600.0), moved, lambda pid: Usage(0.0, 1.0), loop.time)
        running = asyncio.ensure_future(warden.run())
        await asyncio.sleep(1)
        for place in (Place.SHARED, Place.QUARANTINE):
            warden.began(place, 7, MEMORY, PODS.get)
            warden.weighed(place, Weighed({1: Weight(0, 10_000, 0, 0, 0, 0)}))
            warden.ended(place, asked=False)
        await asyncio.sleep(3600)
        running.cancel()
        return [(round(when), pod, to, why) for when, pod, to, why in found]

    loop = looptime.new_event_loop(start=0)
    try:
        found = loop.run_until_complete(main())
    finally:
        loop.close()
    assert found == [
        (1, "bad", "quarantine", "ended"),
        (1, "bad", "closed", "ended"),
        (31, "bad", "quarantine", "over"),
        (631, "bad", "shared", "quiet"),
    ]
