"""Whose turn it is: nodes take turns, nothing is had twice, and what was put off comes again."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from signer.front.turns import FIRST, MOST, Turns

NODES = st.sampled_from(["a", "b", "c"])


def made(*keys: str, most: int = 100, of_node: int = 100, of_pod: int = 100) -> Turns:
    """Of keys such as a1: the node, and how old it is."""
    turns = Turns(most, of_node, of_pod)
    for key in keys:
        turns.add(key, key[0], key[0], key[1:])
    return turns


def test_the_oldest_of_each_node_in_turn() -> None:
    turns = made("a3", "a1", "a2", "b1", "c1")
    assert [turns.take(0.0) for _ in range(6)] == ["a1", "b1", "c1", "a2", "a3", None]


def test_a_node_that_asks_for_much_waits_for_itself() -> None:
    turns = made(*(f"a{number:03}" for number in range(90)))
    assert turns.take(0.0) == "a000"
    turns.add("b1", "b", "b", "1")
    assert "b1" in {turns.take(0.0) for _ in range(2)}


def test_what_is_taken_or_decided_does_not_come_again() -> None:
    turns = made("a1")
    assert turns.take(0.0) == "a1"
    turns.add("a1", "a", "a", "1")
    assert turns.take(10 * MOST) is None
    turns.remove("a1")
    assert (len(turns), turns.next_at(), turns.take(10 * MOST)) == (0, None, None)


def test_what_is_put_off_comes_ever_later() -> None:
    turns = made("a1")
    now, waited = 0.0, []
    for _ in range(8):
        assert turns.take(now) == "a1"
        turns.put_off("a1", now, 1.0)
        due = turns.next_at()
        assert due is not None
        assert turns.take(due - 0.001) is None
        waited.append(due - now)
        now = due
    assert waited[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert waited[-1] == MOST
    assert turns.take(now) == "a1"
    turns.put_off("a1", now, 0.0)
    assert turns.next_at() == now + 0.75 * MOST


def test_there_is_room_for_so_many_and_so_many_of_a_node() -> None:
    turns = made("a1", "a2", most=3, of_node=2)
    assert not turns.room("a", "a")
    assert turns.room("b", "b")
    turns.add("b1", "b", "b", "1")
    assert not turns.room("c", "c")
    turns.remove("a1")
    assert turns.room("a", "a")


def test_one_pod_fills_no_node_and_what_waits_long_is_behind_what_is_new() -> None:
    turns = made("a1", "a2", of_pod=2)
    assert not turns.room("a", "a")
    assert turns.room("a", "another")
    assert turns.take(0.0) == "a1"
    turns.put_off("a1", 0.0, 1.0)
    turns.add("a9", "a", "another", "9")
    assert [turns.take(MOST) for _ in range(3)] == ["a2", "a9", "a1"]
    assert (turns.tries("a1"), turns.tries("a9"), turns.tries("gone")) == (1, 0, 0)
    turns.remove("a1")
    assert turns.room("a", "a")


def test_where_there_is_no_room_who_was_put_off_first_gives_way() -> None:
    turns = made("a1", "a2", "b1", most=4, of_node=2, of_pod=2)
    for _ in range(3):
        taken = turns.take(0.0)
        assert taken is not None
        assert turns.gives_way("a", "other") is None, "nobody has been put off, or who was is another node's"
        if taken != "a2":
            turns.put_off(taken, 0.0, 1.0)
        if taken == "a1":
            assert turns.gives_way("a", "other") == "a1"
            assert turns.gives_way("b", "other") is None, "it needs none"
            assert turns.gives_way("a", "a") is None, "a pod's places are its own"
            turns.remove("a1")
            turns.add("a3", "a", "other", "3")


def test_where_all_is_full_any_node_gives_way_and_nobody_who_is_decided_just_now() -> None:
    turns = made("a1", "b1", most=2)
    for _ in range(2):
        turns.put_off(turns.take(0.0) or "", 0.0, 1.0)
    assert turns.gives_way("c", "c") == "a1"
    assert turns.take(MOST) == "a1"
    assert turns.gives_way("c", "c") == "b1"
    assert turns.take(MOST) == "b1"
    assert turns.gives_way("c", "c") is None


class Machine(RuleBasedStateMachine):
    """Against what it is to do, by sets."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(1000, 1000, 1000)
        self.now = 0.0
        self.count = 0
        self.ready: dict[str, tuple[str, str]] = {}
        self.taken: dict[str, tuple[str, str]] = {}
        self.later: dict[str, tuple[str, str]] = {}
        self.due: dict[str, float] = {}
        self.tries: Counter[str] = Counter()

    @rule(node=NODES, created=st.sampled_from("123"))
    def add(self, node: str, created: str) -> None:
        self.count += 1
        key = f"{node}-{self.count:06}"
        self.turns.add(key, node, key, created)
        self.ready[key] = node, created

    @rule(passed=st.floats(0, 200))
    def take(self, passed: float) -> None:
        self.now += passed
        for key in [each for each in self.later if self.due[each] <= self.now]:
            self.ready[key] = self.later.pop(key)
        found = self.turns.take(self.now)
        if found is None:
            assert not self.ready
            return
        key, of = found, self.ready.pop(found)
        assert all(other >= (self.tries[key] > 0, of[1], key) for other in self._line(of[0]))
        self.taken[key] = of

    def _line(self, node: str) -> list[tuple[bool, str, str]]:
        return [(self.tries[key] > 0, created, key) for key, (where, created) in self.ready.items() if where == node]

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), draw=st.floats(0, 1))
    def put_off(self, data: st.DataObject, draw: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.taken)))
        self.turns.put_off(key, self.now, draw)
        self.due[key] = self.now + min(MOST, FIRST * 2.0 ** self.tries[key]) * (0.75 + 0.25 * draw)
        self.tries[key] += 1
        self.later[key] = self.taken.pop(key)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        known = sorted({*self.ready, *self.taken, *self.later})
        if known:
            key = data.draw(st.sampled_from(known))
            self.turns.remove(key)
            for each in (self.ready, self.taken, self.later):
                each.pop(key, None)

    @invariant()
    def counted(self) -> None:
        assert len(self.turns) == len(self.ready) + len(self.taken) + len(self.later)
        assert self.turns.next_at() == min((self.due[key] for key in self.later), default=None)


TestTurns = Machine.TestCase
