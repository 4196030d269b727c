"""When the signer is tried again: ever more rarely, but soon where nobody is there and somebody waits for it.

To find nobody costs nobody anything. A signer that is there and cannot may have too many as it is.
"""

import random
from collections.abc import Callable

from agent.authority.contact import MAX_RETRY

# Seconds: the first pause, by how much each is longer than the one before, and the one while somebody waits.
FIRST_LEAST, FIRST_MOST, GROWTH, SOON = 0.5, 3.0, 1.6, 1.5


class Pacing:
    """Asked before each attempt, and told how it went. `waited_for`: somebody waits for the signer. `time`: seconds."""

    def __init__(self, rng: random.Random, waited_for: Callable[[], bool], time: Callable[[], float]) -> None:
        self._rng = rng
        self._waited_for = waited_for
        self._time = time
        self._failures = 0
        self._failed_at = 0.0
        self._pause = 0.0
        # Where nobody was there: the pause while somebody waits.
        self._soon: float | None = None

    def may_try(self) -> bool:
        """Whether it is time."""
        short = self._soon is not None and self._waited_for()
        pause = min(self._soon or 0.0, self._pause) if short else self._pause
        return self._time() >= self._failed_at + pause

    def failed(self, *, nobody: bool) -> None:
        """No signer was reached; `nobody`: nothing listens there."""
        if nobody != (self._soon is not None):
            # Who was not there for long and is back has many callers, and is no worse for it.
            self._failures = 0
        # Spread: all agents lost it in the same moment.
        first = self._rng.uniform(FIRST_LEAST, FIRST_MOST)
        self._pause = min(first * GROWTH ** min(self._failures, 20), MAX_RETRY * self._rng.uniform(0.75, 1.0))
        self._soon = SOON * self._rng.uniform(0.5, 1.0) if nobody else None
        self._failures += 1
        self._failed_at = self._time()

    def forget(self) -> None:
        """What failed before says nothing of the next attempt."""
        self._failures, self._pause, self._soon = 0, 0.0, None
