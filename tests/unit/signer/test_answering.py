"""How many first words are answered at once: what only the replica makes late lowers it, what agents get raises it."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from signer.front.answering import ANSWER_SECONDS, LEAST_AT_ONCE, Answering

MOST = 8


class Rig:
    def __init__(self, most: int = MOST) -> None:
        self.at = 100.0
        self.answering: Answering[int] = Answering(most, lambda: self.at)

    def asks(self, *those: int) -> None:
        for each in those:
            self.answering.begin(each)
            self.answering.passed(each, whole=True)


def test_it_is_not_full_while_nothing_was_late() -> None:
    rig = Rig()
    rig.asks(*range(MOST))
    assert not rig.answering.full
    rig.at += ANSWER_SECONDS - 0.01
    for each in range(MOST):
        rig.answering.answered(each)
    assert rig.answering.limit == MOST


@pytest.mark.parametrize("ends", ["answered", "left", "neither"])
def test_late_is_late_whether_it_is_answered_then_or_given_up_or_neither(ends: str) -> None:
    """Of too many none may ever be answered."""
    rig = Rig()
    rig.asks(1)
    rig.at += ANSWER_SECONDS + 0.01
    if ends != "neither":
        getattr(rig.answering, ends)(1)
    assert not rig.answering.full
    assert rig.answering.limit == MOST - 1


def test_each_is_late_once_and_so_many_are_answered_at_least() -> None:
    rig = Rig()
    rig.asks(1)
    rig.at += ANSWER_SECONDS + 0.01
    for _ in range(3):
        assert not rig.answering.full
        rig.answering.passed(1, whole=True)
    rig.answering.answered(1)
    assert rig.answering.limit == MOST - 1
    rig.asks(*range(10, 10 + 2 * MOST))
    rig.at += ANSWER_SECONDS + 0.01
    assert rig.answering.full
    assert rig.answering.limit == LEAST_AT_ONCE


def test_the_time_of_first_words_that_are_not_whole_is_the_peers() -> None:
    rig = Rig()
    rig.answering.begin(1)
    assert 1 in rig.answering
    rig.answering.passed(1, whole=False)
    assert 1 not in rig.answering
    rig.at += 10 * ANSWER_SECONDS
    rig.answering.passed(1, whole=True)
    rig.at += ANSWER_SECONDS - 0.01
    rig.answering.answered(1)
    rig.answering.begin(2)
    rig.answering.passed(2, whole=False)
    rig.at += 10 * ANSWER_SECONDS
    rig.answering.left(2)
    assert rig.answering.limit == MOST


def test_only_an_agent_that_was_answered_soon_raises_it() -> None:
    rig = Rig()
    rig.asks(*range(MOST))
    rig.at += ANSWER_SECONDS + 0.01
    rig.answering.left(0, proven=True)
    for each in range(1, MOST):
        rig.answering.answered(each)
        rig.answering.left(each, proven=True)
    assert rig.answering.limit == LEAST_AT_ONCE
    rig.asks(20, 21, 22)
    rig.answering.answered(20)
    rig.answering.answered(21)
    rig.answering.left(20, proven=True)
    rig.answering.left(21)
    rig.answering.left(22, proven=True)
    assert rig.answering.limit == LEAST_AT_ONCE + 1


class Told(RuleBasedStateMachine):
    """Whatever it is told, in whatever order: who has left is not counted, and the number stays between its bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.there: set[int] = set()

    @rule(one=st.integers(0, 12))
    def begins(self, one: int) -> None:
        if one not in self.there:
            self.there.add(one)
            self.rig.answering.begin(one)

    @rule(one=st.integers(0, 12), whole=st.booleans())
    def passes(self, one: int, whole: bool) -> None:
        self.rig.answering.passed(one, whole=whole)

    @rule(one=st.integers(0, 12))
    def is_answered(self, one: int) -> None:
        self.rig.answering.answered(one)
        assert one not in self.rig.answering

    @rule(one=st.integers(0, 12), proven=st.booleans())
    def leaves(self, one: int, proven: bool) -> None:
        self.there.discard(one)
        self.rig.answering.left(one, proven=proven)

    @rule(seconds=st.floats(0, 1))
    def time_passes(self, seconds: float) -> None:
        self.rig.at += seconds

    @invariant()
    def it_is_bounded(self) -> None:
        answering = self.rig.answering
        full, waiting = answering.full, {each for each in range(13) if each in answering}
        assert waiting <= self.there
        assert LEAST_AT_ONCE <= answering.limit <= MOST
        assert full == (answering.limit < MOST and len(waiting) >= answering.limit)
        kept = (answering._begun, answering._halting, set(answering._asked), answering._late, answering._soon)
        assert set().union(*kept) <= self.there


TestTold = Told.TestCase
