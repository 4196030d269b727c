"""Blocks that may all take equally long: one timer for all of them.

A timer for each, which is nearly always cancelled, takes as much as a fiftieth of a mint, and a mint has several.
"""

import asyncio
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
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._begun:
            first = next(iter(self._begun))
            if first.at > now:
                self._timer = loop.call_at(first.at, self._look)
                return
            del self._begun[first]
            first.end()


class Deadline:
    """One block's, which is late at `at`, by the loop's clock."""

    __slots__ = ("_cancelling", "_of", "_task", "at", "expired")

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

    def end(self) -> None:
        """Its time is over now. May be repeated."""
        if not self.expired:
            self.expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._of.left(self)
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
