"""How long a command waits, for what, and that it says so: nobody looks at a terminal that says nothing."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from podsvid.outcome import CommandError
from runtime.aside import begun

if TYPE_CHECKING:
    from concurrent.futures import Future

# Seconds: after so many it is said what is waited for, and after so many all in all it is given up.
SAID_AFTER, GIVEN_UP = 2.0, 10.0
_Answer = TypeVar("_Answer")


class GaveUp(CommandError):
    """What was waited for did not come in time."""

    reason = "TIMED_OUT"


def say(text: str) -> None:
    """A line on the standard error, beside what the command answers."""
    print(f"podsvid: {text}", file=sys.stderr, flush=True)


class Waiting:
    """What is left of a command's `seconds`. Work is done on threads of its own: a signal waits for none of it."""

    def __init__(
        self,
        seconds: float,
        tell: Callable[[str], None] = say,
        said_after: float = SAID_AFTER,
        now: Callable[[], float] = time.monotonic,
        longer: str = "; --timeout gives it longer",
    ) -> None:
        self.seconds = seconds
        self._tell = tell
        self._said_after = said_after
        self._now = now
        # Who has no such flag is not told of it.
        self._longer = longer
        self._began = now()
        self._told: set[str] = set()

    def left(self) -> float:
        """Seconds, never quite none: what takes a timeout takes none of 0."""
        return max(self._began + self.seconds - self._now(), 0.01)

    def result(self, work: "Future[_Answer]", what: str) -> _Answer:
        """What `work` returned or raised; after a while it is said that `what` is waited for. Raises GaveUp."""
        if not self._ended(work, min(self._said_after, self.left())) and self.left() > 0.1 and what not in self._told:
            self._told.add(what)
            self._tell(f"waiting for {what}, {self.left():.0f} s at most")
        if not self._ended(work, self.left()):
            raise self.gave_up(what)
        return work.result()

    @staticmethod
    def _ended(work: "Future[_Answer]", seconds: float) -> bool:
        # Not above: the command line reads this module's numbers, and most commands wait for nothing.
        from concurrent.futures import wait

        return bool(wait([work], seconds).done)

    def gave_up(self, what: str) -> GaveUp:
        """To be raised where time has run out elsewhere."""
        return GaveUp(f"no answer from {what} within {self.seconds:g} s{self._longer}")

    def ask(self, what: str, work: Callable[[], _Answer]) -> _Answer:
        """What `work` returns or raises. Raises GaveUp."""
        return self.result(begun(work), what)
