"""Wall-clock time as something that is handed in, so that tests own it."""

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time by which certificates start and end."""

    def now(self) -> datetime:
        """Aware UTC."""
        ...


class SystemClock:
    """The host's wall clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)
