"""Reviews that may be wasted: who brings bad tokens waits, and nobody else does."""

import pytest

from signer.attestation import doubt as module
from signer.attestation.doubt import LIMITS, QUIET, Asked, Doubt, Limit, Limits
from signer.model import Sender, Standing
from tests.signer_rig import StepClock

FEW = {
    Standing.STRANGER: Limits(Limit(3.0, 1.0), Limit(4.0, 2.0)),
    Standing.PROXY: Limits(Limit(3.0, 1.0), Limit(4.0, 2.0)),
    Standing.AGENT: Limits(Limit(3.0, 1.0), Limit(100.0, 2.0)),
    Standing.PROVEN: Limits(Limit(3.0, 1.0), None),
}


def of(name: str, standing: Standing = Standing.STRANGER) -> Sender:
    return Sender(standing, name)


class Rig:
    def __init__(self) -> None:
        self.clock = StepClock()
        self.doubt = Doubt(self.clock, FEW)

    def under_way(self, sender: Sender, most: int = 10) -> list[Asked]:
        """As many as it gets before one is answered."""
        found = [self.doubt.ask(sender) for _ in range(most)]
        return [each for each in found if each is not None]

    def refused(self, sender: Sender, most: int = 10) -> int:
        """How many it has refused, one after another."""
        for number in range(most):
            asked = self.doubt.ask(sender)
            if asked is None:
                return number
            self.doubt.answered(asked, refused=True)
        return most


def test_each_sender_has_so_many_and_more_with_time() -> None:
    rig = Rig()
    assert rig.refused(of("a")) == 3
    assert rig.refused(of("a")) == 0
    rig.clock.pass_by(seconds=2)
    assert rig.refused(of("a")) == 2
    rig.clock.pass_by(days=1)
    assert rig.refused(of("a")) == 3
    rig.clock.pass_by(seconds=1)
    assert rig.refused(of("a")) == 1


def test_good_ones_cost_nothing_however_many() -> None:
    rig = Rig()
    for _ in range(10):
        waiting = rig.under_way(of("a"))
        assert len(waiting) == 3
        for asked in waiting:
            rig.doubt.answered(asked, refused=False)
    # Nor do they earn anything.
    assert rig.refused(of("a")) == 3


def test_who_is_quiet_is_asked_about_though_others_have_taken_everything() -> None:
    rig = Rig()
    # The first of each is free, and two more: the four that all have are gone.
    assert [rig.refused(of(name)) for name in "ab"] == [3, 3]
    assert rig.refused(of("c")) == 1
    asked = rig.doubt.ask(of("d"))
    assert asked is not None
    # One, until it is known to be good.
    assert rig.doubt.ask(of("d")) is None
    rig.doubt.answered(asked, refused=False)
    assert rig.doubt.ask(of("d")) is not None


def test_who_had_one_refused_is_quiet_again_after_a_while() -> None:
    rig = Rig()
    assert [rig.refused(of(name)) for name in "abc"] == [3, 3, 1]
    for _ in range(int(QUIET) - 1):
        rig.clock.pass_by(seconds=1)
        rig.refused(of("a")), rig.refused(of("b"))
    assert rig.doubt.ask(of("c")) is None
    rig.clock.pass_by(seconds=1)
    rig.refused(of("a")), rig.refused(of("b"))
    assert rig.doubt.ask(of("c")) is not None
    # A clock that was set back keeps nobody from being quiet.
    rig.clock.set_by(days=-1)
    assert rig.doubt.ask(of("a", Standing.AGENT)) is not None


def test_a_clock_that_was_set_back_leaves_nobody_suspect_for_ever() -> None:
    rig = Rig()
    assert [rig.refused(of(name)) for name in "abc"] == [3, 3, 1]
    rig.clock.set_by(days=-1)
    rig.clock.pass_by(seconds=QUIET)
    assert rig.doubt.ask(of("c")) is not None


def test_all_of_a_standing_have_so_many_together_and_more_with_time() -> None:
    rig = Rig()
    assert [len(rig.under_way(of(name))) for name in "abcd"] == [3, 3, 1, 1]
    rig.clock.pass_by(seconds=1)
    assert sum(len(rig.under_way(of(name))) for name in "abcd") == 2


def test_what_was_good_is_given_back_to_all() -> None:
    rig = Rig()
    waiting = [*rig.under_way(of("a")), *rig.under_way(of("b"))]
    assert len(rig.under_way(of("c"))) == 1
    for asked in waiting:
        rig.doubt.answered(asked, refused=False)
    assert len(rig.under_way(of("d"))) == 3


@pytest.mark.parametrize("one", Standing)
@pytest.mark.parametrize("other", Standing)
def test_one_standing_takes_nothing_from_another(one: Standing, other: Standing) -> None:
    if one is other:
        return
    rig = Rig()
    for name in "abcdefgh":
        rig.refused(of(name, one))
    assert len(rig.under_way(of("a", other))) == 3


def test_who_was_proven_by_the_cluster_has_no_limit_but_its_own() -> None:
    rig = Rig()
    assert {rig.refused(of(str(number), Standing.PROVEN)) for number in range(100)} == {3}


def test_senders_are_not_remembered_without_end_and_not_forgotten_while_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SENDERS", 3)
    rig = Rig()
    waiting = rig.under_way(of("a", Standing.AGENT))
    for number in range(50):
        rig.refused(of(str(number), Standing.AGENT), 1)
    assert [*rig.doubt._senders[Standing.AGENT]] == ["a", "48", "49"]
    assert rig.doubt.ask(of("a", Standing.AGENT)) is None
    for asked in waiting:
        rig.doubt.answered(asked, refused=True)
    assert len(rig.doubt._senders[Standing.AGENT]) == 3


def test_the_limits_leave_others_room() -> None:
    stranger, agent = LIMITS[Standing.STRANGER], LIMITS[Standing.AGENT]
    for each in (stranger, agent):
        assert each.all is not None
        assert each.each.at_once <= each.all.at_once / 2
        assert each.each.a_second <= each.all.a_second / 2
    assert QUIET > 10
