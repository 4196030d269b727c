"""Renewals spread: the window lies early enough in an SVID's life, and each holder draws an instant of its own."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svid.renewal import RenewalWindow

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Fixed(random.Random):
    """Always draws the same."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self._value = value

    def random(self) -> float:
        return self._value


def test_the_usual_window_is_from_two_fifths_to_half_of_the_life() -> None:
    assert RenewalWindow.of(NOW, NOW + 10 * HOUR) == RenewalWindow(NOW + 4 * HOUR, NOW + 5 * HOUR)


@pytest.mark.parametrize("ends_at", [NOW, NOW - HOUR])
def test_what_has_ended_is_due_now(ends_at: datetime) -> None:
    assert RenewalWindow.of(NOW, ends_at) == RenewalWindow(NOW, NOW)


def test_a_window_that_ends_before_it_starts_is_none() -> None:
    assert RenewalWindow(NOW, NOW).draw(random.Random(1)) == NOW
    with pytest.raises(ValueError, match="ends before it starts"):
        RenewalWindow(NOW, NOW - timedelta(microseconds=1))


@pytest.mark.parametrize(
    ("drawn", "wanted"), [(0.0, NOW), (0.25, NOW + HOUR), (0.5, NOW + 2 * HOUR), (0.75, NOW + 3 * HOUR)]
)
def test_what_is_drawn_decides_the_instant(drawn: float, wanted: datetime) -> None:
    assert RenewalWindow(NOW, NOW + 4 * HOUR).draw(Fixed(drawn)) == wanted


def test_a_thousand_that_were_issued_together_come_back_all_over_the_window() -> None:
    rng, window = random.Random(1), RenewalWindow.of(NOW, NOW + 10 * HOUR)
    drawn = [window.draw(rng) for _ in range(1000)]
    assert len(set(drawn)) == 1000
    tenths = [int((each - window.start) / (window.end - window.start) * 10) for each in drawn]
    assert all(60 <= tenths.count(tenth) <= 140 for tenth in range(10))


@given(st.integers(0, 10**8), st.integers(0, 2**32))
def test_no_instant_is_outside_of_its_window_nor_after_half_of_the_life(seconds: int, seed: int) -> None:
    end = NOW + timedelta(seconds=seconds)
    window = RenewalWindow.of(NOW, end)
    drawn = window.draw(random.Random(seed))
    assert NOW <= window.start <= drawn <= window.end
    assert window.end <= NOW + (end - NOW) / 2
