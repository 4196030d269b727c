"""The first signal unwinds a command, and no other ends what that has begun."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest

from podsvid.interrupts import ENDING, FirstOnly, Interrupted, unwinding
from tests.support import ROOT


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        # As in a process of a command (start.py).
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("first", "second"), list(product(ENDING, ENDING)))
def test_what_the_first_signal_has_begun_is_ended_by_no_other(first: signal.Signals, second: signal.Signals) -> None:
    cleaned: list[str] = []

    def work() -> None:
        with unwinding():
            try:
                signal.raise_signal(first)
            finally:
                signal.raise_signal(second)
                cleaned.append("a file")

    with pytest.raises(Interrupted) as caught:
        work()
    assert (cleaned, caught.value.number) == (["a file"], first)
    # Files that are removed at the process's end are not lost either.
    signal.raise_signal(second)


@pytest.mark.parametrize("number", ENDING)
def test_what_is_ignored_stays_ignored_and_keeps_no_other_from_ending_it(number: signal.Signals) -> None:
    """A shell without job control has what it starts in the background ignore Ctrl-C, nohup the hangup."""
    signal.signal(number, signal.SIG_IGN)
    for other in set(ENDING) - {number}:
        with pytest.raises(Interrupted) as caught, unwinding():
            signal.raise_signal(number)
            signal.raise_signal(other)
        assert caught.value.number == other
    assert signal.getsignal(number) == signal.SIG_IGN


def test_without_a_signal_all_is_as_before() -> None:
    with unwinding():
        assert isinstance(signal.getsignal(signal.SIGTERM), FirstOnly)
    assert {signal.getsignal(number) for number in ENDING} == {signal.SIG_DFL}


def test_one_that_was_raised_where_nothing_can_be_comes_once_more() -> None:
    first = FirstOnly()
    first.again()
    signal.signal(signal.SIGHUP, first)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP) if first.came is None else first.again()
    assert first.came == signal.SIGHUP


@pytest.mark.parametrize("asked", [(), ("-W", "default")], ids=["by default", "asked for"])
def test_what_was_not_awaited_when_the_signal_came_is_not_told_unless_somebody_asks(asked: tuple[str, ...]) -> None:
    program = """
from podsvid.interrupts import FirstOnly
async def cut_off(): ...
try:
    FirstOnly()(2, None)
except KeyboardInterrupt:
    cut_off()
"""
    done = subprocess.run([sys.executable, *asked, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("never awaited" in done.stderr) is bool(asked)
    assert bool(done.stderr) is bool(asked)
