"""Gauges that show what parts of the process know: asked on the event loop, so that no scrape walks what it changes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from prometheus_client import Gauge

# Seconds, also the least from one time to the next where they are asked for whoever reads them. At 5,000 agents the
# leader counts for some 10 ms each time; scrapers come a few times a minute.
REFRESH_SECONDS = 2.0


class Shown:
    """The numbers of these gauges, as they were when they were asked for last. Belongs to one event loop.

    `now`: seconds of a clock that only rises.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._asked: list[Callable[[], None]] = []
        self._now = now
        self._next = float("-inf")

    def add(self, gauge: Gauge, ask: Callable[[], float]) -> None:
        """Show in `gauge` what `ask` answers, from now on; it is asked on the loop only."""

        def show() -> None:
            gauge.set(ask())

        self._add(show)

    def add_all(self, gauges: Mapping[str, Gauge], ask: Callable[[], Mapping[str, float]]) -> None:
        """Show in each of `gauges` what the answer has under its name; 0 where it has nothing."""

        def show() -> None:
            found = ask()
            for name, gauge in gauges.items():
                gauge.set(found.get(name, 0.0))

        self._add(show)

    def add_each(self, gauge: Gauge, ask: Callable[[], Mapping[str, float]]) -> None:
        """Show in `gauge` a value for each label that the answer has, and none for others."""
        shown: set[str] = set()

        def show() -> None:
            found = ask()
            for label in shown - found.keys():
                gauge.remove(label)
            shown.clear()
            shown.update(found)
            for label, value in found.items():
                gauge.labels(label).set(value)

        self._add(show)

    def refresh(self) -> None:
        """Ask all of them."""
        for show in self._asked:
            show()

    async def fresh(self) -> None:
        """Ask all of them for who reads them next, unless somebody has just done so: a process of which nobody wants to
        know anything is not woken for it."""
        now = self._now()
        if now >= self._next:
            self.refresh()
            # Not where one could not be asked: nobody is to take what was left of it for new.
            self._next = now + REFRESH_SECONDS

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Ask them again and again, for ever."""
        while True:
            await sleep(REFRESH_SECONDS)
            self.refresh()

    def _add(self, show: Callable[[], None]) -> None:
        self._asked.append(show)
        show()
