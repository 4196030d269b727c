"""Work that comes again and grows with the cluster takes a small part of the time, whatever its size."""

import asyncio
from collections.abc import Callable

# Of the time; and seconds that are waited at most for what took long.
SHARE, MOST = 0.05, 10.0


class Pace:
    """Waits between the rounds of a loop: as long as is said, longer where the last round took long.

    A round that gives way takes longer where others have much to do, so it comes less often then. `now`: seconds that
    only grow; `most`: what it waits for what took long, at most.
    """

    def __init__(self, now: Callable[[], float], most: float = MOST) -> None:
        self._now = now
        self._most = most
        self._begun = now()

    def due(self, least: float) -> float:
        """Seconds to wait after the round that ends now, `least` or more."""
        return max(least, min((self._now() - self._begun) * (1 / SHARE - 1), self._most))

    async def rest(self, least: float) -> None:
        """Wait so long; then the next round begins."""
        await asyncio.sleep(self.due(least))
        self._begun = self._now()
