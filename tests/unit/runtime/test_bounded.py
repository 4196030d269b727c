"""Work on files that may hang: one after the other in the order in which it came, however much comes at once."""

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from runtime.bounded import Bounded, Unanswered


def test_hundreds_at_once_are_done_in_their_order_and_each_is_woken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    woken, real = 0, asyncio.wrap_future

    def wrapped(*given: Any, **named: Any) -> Any:
        nonlocal woken
        woken += 1
        return real(*given, **named)

    async def main() -> None:
        monkeypatch.setattr(asyncio, "wrap_future", wrapped)
        loop, one, done = asyncio.get_running_loop(), Bounded(), list[int]()

        def work(number: int) -> None:
            # Not over before whoever waits for it could be woken.
            round_ = threading.Event()
            loop.call_soon_threadsafe(round_.set)
            assert round_.wait(30)
            done.append(number)

        await asyncio.gather(*(one.do(partial(work, number)) for number in range(300)))
        assert done == list(range(300))
        # For its own result, and for the end of the one before where the thread has not quite ended.
        assert woken <= 600

    asyncio.run(main())


def test_while_one_hangs_whoever_waits_is_given_up_and_nothing_else_is_begun() -> None:
    async def main() -> None:
        gate, begun = threading.Event(), list[int]()

        def hangs() -> None:
            begun.append(0)
            assert gate.wait(30)

        one = Bounded(0.05)
        rest = (one.do(lambda number=number: begun.append(number)) for number in range(1, 50))  # type: ignore[misc]
        found = await asyncio.gather(one.do(hangs), *rest, return_exceptions=True)
        assert {type(each) for each in found} == {Unanswered}
        assert begun == [0]
        gate.set()
        patient = Bounded(30)
        assert await patient.do(lambda: 7) == 7

    asyncio.run(main())
