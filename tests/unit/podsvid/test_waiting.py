"""That a command says what it waits for, and gives up in time."""

import threading
from concurrent.futures import Future

import pytest

from podsvid.waiting import GaveUp, Waiting
from runtime.aside import begun


def test_what_is_waited_for_is_said_once_and_given_up() -> None:
    told: list[str] = []
    waiting = Waiting(0.3, told.append, said_after=0.0, now=lambda: 0.0)
    never: Future[int] = Future()
    for _ in range(2):
        with pytest.raises(GaveUp, match=r"no answer from the moon within 0.3 s; --timeout gives it longer"):
            waiting.result(never, "the moon")
    (line,) = told
    assert line.startswith("waiting for the moon, ")


def test_what_answers_at_once_says_nothing() -> None:
    told: list[str] = []
    assert Waiting(60.0, told.append, said_after=60.0).ask("x", lambda: 5) == 5
    assert told == []


def test_what_the_work_raises_is_raised_also_when_it_is_a_timeout() -> None:
    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        Waiting(60.0).ask("x", late)


def test_time_is_for_the_whole_command() -> None:
    now = [0.0]
    waiting = Waiting(10.0, now=lambda: now[0])
    assert waiting.left() == 10.0
    now[0] = 9.0
    assert waiting.left() == 1.0
    now[0] = 11.0
    assert 0 < waiting.left() < 0.1


def test_work_keeps_no_process_from_ending() -> None:
    ended, daemons = threading.Event(), []

    def work() -> None:
        daemons.append(threading.current_thread().daemon)
        ended.wait(60)

    future = begun(work)
    ended.set()
    future.result(60)
    assert daemons == [True]
