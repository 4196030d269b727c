"""Blocks that may all take equally long: one timer for all of them.

A timer for each, which is nearly always cancelled, takes as much as a fiftieth of a mint, and a mint has several.
"""

import asyncio
from itertools import takewhile
from typing import Self


class Deadlines:
    """So many `seconds` for each block; those that began first are late first. Belongs to one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # In the order in which they began, which is that in which they end.
        self._begun: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def one(self) -> "Deadline":
        """To be entered at once, in a task. Raises TimeoutError where it is left late, as asyncio.timeout does."""
        loop = asyncio.get_running_loop()
        found = Deadline(self, loop.time() + self._seconds)
        self._begun[found] = None
        if self._timer is None:
            self._timer = loop.call_at(found.at, self._look)
        return found

    def left(self, deadline: "Deadline") -> None:
        """Its block has ended."""
        self._begun.pop(deadline, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        # In one pass: a dict whose first ones are gone passes by each of their places to find the next.
        late = list(takewhile(lambda each: each.at <= now, self._begun))
        for each in late:
            del self._begun[each]
        first = next(iter(self._begun), None)
        self._timer = loop.call_at(first.at, self._look) if first is not None else None
        for each in late:
            each.end()


class Deadline:
    """One block's, which is late at `at`, by the loop's clock."""

    __slots__ = ("_cancelling", "_of", "_over", "_task", "at", "expired")

    def __init__(self, of: Deadlines, at: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be late")
        self._of = of
        self._task = task
        # Who else wants the task to end: that is not swallowed.
        self._cancelling = task.cancelling()
        self.at = at
        self.expired = False
        self._over = False

    def end(self) -> None:
        """Its time is over now. May be repeated, and changes nothing once its block has ended."""
        # Nobody would take back what is cancelled then: the call would end as if its caller had given it up.
        if not self.expired and not self._over:
            self.expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._over = True
        self._of.left(self)
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
