"""When SVIDs are renewed: in a window that leaves time for an outage, and never all at the same instant."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svid.renewal import RenewalWindow

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Drawn(random.Random):
    """Draws what it is told."""

    def __init__(self, value: float) -> None:
        super().__init__(1)
        self._value = value

    def random(self) -> float:
        return self._value


def test_half_of_the_life_is_left_when_the_window_ends() -> None:
    window = RenewalWindow.of(NOW, NOW + HOUR)
    assert window == RenewalWindow(NOW + timedelta(minutes=24), NOW + timedelta(minutes=30))


@pytest.mark.parametrize("drawn", [0.0, 0.25, 0.5, 0.99])
def test_the_instant_is_where_in_the_window_chance_says(drawn: float) -> None:
    window = RenewalWindow(NOW, NOW + HOUR)
    assert window.draw(Drawn(drawn)) == NOW + HOUR * drawn


def test_svids_issued_together_spread_over_the_whole_window() -> None:
    window, rng = RenewalWindow(NOW, NOW + HOUR), random.Random(1)
    minutes = [int((window.draw(rng) - NOW).total_seconds() // 60) for _ in range(6000)]
    assert set(minutes) == set(range(60))
    # A storm would be many of them in one minute: 100 are the mean.
    assert max(minutes.count(each) for each in range(60)) < 150


@given(st.timedeltas(timedelta(0), timedelta(days=90)), st.randoms(use_true_random=False))
def test_no_instant_is_outside_of_its_window(life: timedelta, rng: random.Random) -> None:
    window = RenewalWindow.of(NOW, NOW + life)
    assert NOW <= window.start <= window.draw(rng) <= window.end <= NOW + life


def test_a_window_that_ends_before_it_starts_is_none() -> None:
    assert RenewalWindow(NOW, NOW).draw(random.Random(1)) == NOW
    with pytest.raises(ValueError, match="ends before it starts"):
        RenewalWindow(NOW, NOW - timedelta(microseconds=1))


def test_what_has_ended_already_is_due_at_once() -> None:
    assert RenewalWindow.of(NOW, NOW - HOUR) == RenewalWindow(NOW, NOW)
