"""A pod that fills the heap faster than the agent looks loses its connections, and nobody does else."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.exposed import filling
from agent.exposed.filling import AT_ONCE, CALM, GROWING, RATE, WAITING, Filling, heap

MIB = 1 << 20


@dataclass
class Scene:
    """A heap, a clock and the connections, as a test sets them. `pods`: those that have too much waiting."""

    used: int = 10 * MIB
    now: float = 100.0
    # Seconds of processor time that a look at the heap takes, and that were taken.
    takes: float = 0.0
    spent: float = 0.0
    pods: list[str] = field(default_factory=lambda: ["bad"])
    asked: list[int] = field(default_factory=list)
    closed: int = 0
    came: threading.Event = field(default_factory=threading.Event)

    def shut_filling(self, least: int) -> list[str]:
        self.asked.append(least)
        return self.pods

    def heap(self) -> int:
        self.spent += self.takes
        return self.used

    def count(self) -> None:
        self.closed += 1

    def filling(self) -> Filling:
        return Filling(self, self.heap, self.count, lambda: self.now, lambda: self.spent)


def test_a_heap_that_grows_too_fast_costs_whoever_fills_it_its_connections() -> None:
    scene = Scene()
    at = scene.filling()
    scene.used += AT_ONCE
    at.look()
    assert not scene.asked
    scene.used += 1
    at.look()
    assert (scene.asked, scene.closed) == ([WAITING], 1)
    # What is given back may grow again.
    scene.used -= AT_ONCE
    at.look()
    scene.used += AT_ONCE // 2
    at.look()
    assert scene.closed == 1


def test_nobody_is_closed_that_has_nothing_waiting() -> None:
    scene = Scene(pods=[])
    at = scene.filling()
    scene.used += 2 * AT_ONCE
    at.look()
    assert (scene.asked, scene.closed) == ([WAITING], 0)


@given(st.lists(st.tuples(st.integers(-40 * MIB, 40 * MIB), st.floats(0, 2)), max_size=30))
def test_what_grows_no_faster_than_it_may_closes_nothing_and_what_does_is_closed_at_the_next_look(
    steps: Sequence[tuple[int, float]],
) -> None:
    scene = Scene(used=1 << 40)
    at = scene.filling()
    room = float(AT_ONCE)
    for grown, seconds in steps:
        scene.used += grown
        scene.now += seconds
        # The heap gives back before time does.
        room = min(min(room - grown, AT_ONCE) + RATE * seconds, AT_ONCE)
        before = scene.closed
        at.look()
        if abs(room) > 1:
            assert (scene.closed > before) == (room < 0)


def test_it_looks_more_often_while_the_heap_grows_and_takes_a_part_of_its_time_at_most() -> None:
    scene = Scene()
    at = scene.filling()
    assert at.look() == CALM
    scene.used += 1
    assert at.look() == GROWING
    assert at.look() == CALM
    scene.takes = 0.01
    assert at.look() == pytest.approx(0.01 / filling.SHARE)


def test_what_the_c_library_says_is_what_is_in_use() -> None:
    used = heap()
    assert used is not None
    before = used()
    # Pieces of their own, as gRPC's: what is large is another mapping.
    kept = [bytes(4096) for _ in range(2000)]
    assert 4096 * 2000 <= used() - before < 2 * 4096 * 2000
    large = bytes(64 * MIB)
    assert used() - before >= len(large)
    del kept, large
    assert used() - before < MIB
