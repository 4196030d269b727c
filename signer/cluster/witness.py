"""Whether this replica's time of day can be believed: the API server tells its own with each answer."""

import logging
from datetime import datetime, timedelta

from runtime.clock import Clock

_log = logging.getLogger("podsvid.signer")
# NTP keeps clocks far closer; and an old authority stays trusted for longer than this after its last SVID.
TOLERANCE = timedelta(minutes=1)
# Seconds between two lines of log that say so: while they differ, and where they agreed in between, as after one answer
# that was late.
COMPLAINT_SECONDS, CHANGE_SECONDS = 600.0, 10.0


class Witness:
    """The API server's clock, and how far off this replica's is: by two that differ nobody knows if an hour passed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # What it said, and when by the clock that nobody sets: this replica's may be set between two answers.
        self._heard: tuple[datetime, float] | None = None
        self._complained = False
        self._complained_at = float("-inf")

    def heard(self, at: datetime) -> None:
        """The API server's time of day is `at`, which is aware. Where they differ that is said now and then."""
        self._heard = at, self._clock.monotonic()
        doubt, now = self.doubt, self._clock.monotonic()
        if doubt and now - self._complained_at >= (COMPLAINT_SECONDS if self._complained else CHANGE_SECONDS):
            self._complained, self._complained_at = True, now
            _log.error(
                "clocks differ; the authorities stay as they are, a rotation after a theft too",
                extra={"ahead": round(self.ahead.total_seconds()), "error": doubt},
            )
        elif not doubt and self._complained:
            self._complained = False
            _log.info("clocks agree again")

    def now(self) -> datetime:
        """Its time of day: for tokens and the ends of pods, which it dates. This replica's until it has said."""
        return self._clock.now() - self.ahead

    def monotonic(self) -> float:
        """This replica's seconds, as `Clock` has it."""
        return self._clock.monotonic()

    @property
    def ahead(self) -> timedelta:
        """By how much this replica's clock is ahead; nothing while the API server has not said."""
        if self._heard is None:
            return timedelta(0)
        at, heard_at = self._heard
        return self._clock.now() - at - timedelta(seconds=self._clock.monotonic() - heard_at)

    @property
    def doubt(self) -> str:
        """For people: by how much they differ; empty where they agree."""
        ahead = self.ahead
        if abs(ahead) <= TOLERANCE:
            return ""
        by = timedelta(seconds=round(abs(ahead).total_seconds()))
        return (
            f"this signer's clock is {by} {'ahead of' if ahead > timedelta(0) else 'behind'} the API server's: nothing "
            "is done by the time until both agree; set them right, or delete this signer's pod where its node is wrong"
        )
