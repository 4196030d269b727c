"""Time as something that is handed in, so that tests own it."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time of day, and how much time passes: the one may be set, the other not."""

    def now(self) -> datetime:
        """Aware UTC: for what certificates, tokens and other hosts say, and for people. May be set back or forward."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment: for how old knowledge is, how long to wait, and rates. Nobody sets it."""
        ...


class SystemClock:
    """The host's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        # Not time.monotonic, which stands still while a machine sleeps: what was known before is that much older.
        return time.clock_gettime(time.CLOCK_BOOTTIME)
