"""Whether the signer answers, since when it does not, and when to try again."""

import logging
import random
from datetime import datetime

from runtime.clock import Clock
from runtime.feed import Feed

_log = logging.getLogger("podsvid.authority")
# Seconds.
FIRST_RETRY, MAX_RETRY = 1.0, 60.0
# Seconds that who called may come again after: kubelet's longest pause between two publishes, and an attempt.
WAITED_FOR = 150.0


class Contact:
    """What is known of the signer at `address`: told by the trust stream, asked by everybody else."""

    def __init__(self, address: str, clock: Clock, rng: random.Random) -> None:
        self._address = address
        self._clock = clock
        self._rng = rng
        self._connected = False
        self._answered_once = False
        self._failures = 0
        self._away_since: datetime | None = clock.now()
        self._away_at = clock.monotonic()
        self._last_error = "not connected yet"
        self._wanted_at: float | None = None
        # Published each time it answers again.
        self.returns: Feed[None] = Feed()

    @property
    def connected(self) -> bool:
        """Whether the signer answers on the trust stream."""
        return self._connected

    @property
    def answered_once(self) -> bool:
        """Whether it has answered since this agent started."""
        return self._answered_once

    @property
    def away_since(self) -> datetime | None:
        """Since when the signer does not answer, for people; None while it does."""
        return self._away_since

    @property
    def away_for(self) -> float:
        """Seconds for which the signer has not answered; 0 while it does."""
        return self._clock.monotonic() - self._away_at if self._away_since is not None else 0.0

    @property
    def failures(self) -> int:
        """How many attempts have failed in a row."""
        return self._failures

    @property
    def last_error(self) -> str:
        """Why it was lost last, for people."""
        return self._last_error

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for it, or did a short while ago and comes again."""
        return self._wanted_at is not None and self._clock.monotonic() - self._wanted_at < WAITED_FOR

    def wanted(self) -> None:
        """Somebody calls it."""
        self._wanted_at = self._clock.monotonic()

    def answered(self, sequence: int) -> None:
        """It sent the trust of that sequence."""
        back = not self._connected
        if back:
            _log.info("signer connected", extra={"address": self._address, "sequence": sequence})
        self._connected, self._answered_once, self._away_since, self._failures = True, True, None, 0
        if back:
            self.returns.publish(None)

    def ended(self, why: str) -> None:
        """The signer ends each stream after a while; that is an outage only if the next one does not come about."""
        if self._failures or not self._connected:
            self.lost(why)
        else:
            self._failures = 1

    def lost(self, why: str) -> None:
        """It does not answer."""
        self._last_error = why
        self._failures += 1
        if self._connected or self._failures == 1:
            _log.warning("signer lost; SVIDs are kept", extra={"address": self._address, "error": why})
        if self._connected:
            self._away_since, self._away_at = self._clock.now(), self._clock.monotonic()
        self._connected = False

    def delay(self) -> float:
        """Seconds until the next attempt, with full jitter: a signer's restart is no storm."""
        most: float = min(MAX_RETRY, FIRST_RETRY * 2 ** min(self._failures, 10))
        return self._rng.uniform(0.0, most)
