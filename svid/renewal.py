"""When an SVID is renewed: the authority names a window, its holder draws one instant in it, once (cf. RFC 9773)."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

EARLIEST, LATEST = 0.40, 0.50


@dataclass(frozen=True, slots=True)
class RenewalWindow:
    """From `start` to `end`, both aware; raises ValueError when it ends before it starts."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError("renewal window ends before it starts")

    @classmethod
    def of(cls, issued_at: datetime, not_after: datetime) -> Self:
        """The usual window: two fifths to half of the life left at issue, so that half outlasts an outage."""
        life = max(not_after - issued_at, timedelta(0))
        return cls(issued_at + life * EARLIEST, issued_at + life * LATEST)

    def draw(self, rng: random.Random) -> datetime:
        """One instant, uniformly; many SVIDs issued together spread over the window."""
        return self.start + (self.end - self.start) * rng.random()
