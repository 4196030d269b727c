"""A token bucket: so many at once, and so many more a second."""


class Bucket:
    """`most` are there at first and at most, `rate` more come a second. `now`: seconds of a clock that only grows."""

    __slots__ = ("_at", "_left", "_most", "_rate")

    def __init__(self, rate: float, most: float, now: float) -> None:
        self._rate = rate
        self._most = self._left = most
        self._at = now

    def left(self, now: float) -> float:
        """How many there are now; below zero: they are owed."""
        self.give((now - self._at) * self._rate)
        self._at = now
        return self._left

    def take(self, now: float) -> bool:
        """Take one; False: there is none."""
        if self.left(now) < 1.0:
            return False
        self._left -= 1.0
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is one to take."""
        return max(1.0 - self.left(now), 0.0) / self._rate

    def spend(self, some: float = 1.0) -> None:
        """Take some, though they be owed then."""
        self._left -= some

    def give(self, some: float) -> None:
        """Some come, or come back."""
        self._left = min(self._left + some, self._most)
