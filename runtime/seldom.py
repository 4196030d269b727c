"""What strangers bring about is said now and then, not each time."""

from collections.abc import Callable


class Seldom:
    """Due at once, and then not again for so many seconds of `now`."""

    def __init__(self, seconds: float, now: Callable[[], float]) -> None:
        self._seconds = seconds
        self._now = now
        self._next = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it may be said now; asking takes the turn."""
        now = self._now()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def now_and_then(call: Callable[[], object], seconds: float, now: Callable[[], float]) -> Callable[[], None]:
    """`call`, but not again for so many seconds of `now`."""
    seldom = Seldom(seconds, now)

    def maybe() -> None:
        if seldom.due:
            call()

    return maybe
