"""When a CA above is asked again: ever more rarely, and not at the same moment as everybody else that it failed."""

import random
from datetime import timedelta

from runtime.clock import Clock

FIRST, MOST = timedelta(seconds=5), timedelta(minutes=15)
# After an answer that asking again does not change; and at most, when what signs is about to end.
REFUSED, PRESSED = timedelta(hours=1), timedelta(minutes=1)
_SPREAD = 0.2


class Backoff:
    """Told of each failure. By the monotonic clock: one that is set ahead must not make an hour a moment."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._failed_at = 0.0
        self._pause = 0.0

    def left(self, *, pressed: bool = False) -> timedelta:
        """For how long it is not asked; `pressed`: what signs is about to end."""
        pause = min(self._pause, PRESSED.total_seconds()) if pressed else self._pause
        return timedelta(seconds=max(self._failed_at + pause - self._clock.monotonic(), 0.0))

    @property
    def failing(self) -> bool:
        """Whether the last attempt was in vain."""
        return self._failures > 0

    def failed(self, *, for_good: bool = False) -> None:
        """It was asked in vain; `for_good`: the same answer would come again."""
        usual: timedelta = min(FIRST * 2 ** min(self._failures, 20), MOST)
        spread = self._rng.uniform(1 - _SPREAD, 1 + _SPREAD)
        self._pause = (REFUSED if for_good else usual).total_seconds() * spread
        self._failures += 1
        self._failed_at = self._clock.monotonic()

    def forget(self) -> None:
        """What failed before says nothing of the next attempt."""
        self._failures, self._pause = 0, 0.0
