"""What this agent trusts, who said so, and which bundle gives way to which.

The bundle file is for the first contact: whoever can write it is not the signer. What comes from a signer that proved
itself replaces it whatever its number, and among such answers the higher number counts: a replica that lags behind has
nothing to say. A number is the time of a step in milliseconds, so one that is far ahead of the time cannot be: it is
dropped, and never keeps out what the signer says later.
"""

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from runtime.clock import Clock
from runtime.feed import Feed
from svid.bundle import TrustBundle
from svid.identity import Trust

_log = logging.getLogger("podsvid.authority")
# How far ahead of this node's clock a number may be. A signer publishes above what agents say where that is within a
# day of its own clock; the hour is for clocks that differ.
AHEAD = timedelta(hours=25)


def numbered(bundle: TrustBundle, now: datetime) -> TrustBundle:
    """`bundle` as it is where there can have been a step of its number, else without any."""
    return bundle if _believed(bundle.sequence, now) == bundle.sequence else replace(bundle, sequence=None)


class HeldTrust:
    """The one trust that counts now, in `feed`; None before `begin`. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.feed: Feed[Trust] = Feed()
        self._taken_at: datetime | None = None
        self._said: int | None = None
        self._refused: tuple[int, int] | None = None

    def believed(self, number: int | None) -> int | None:
        """`number` where there can have been a step of that sequence; else None."""
        return _believed(number, self._clock.now())

    def begin(self, file: TrustBundle) -> None:
        """Go by a bundle file until a signer has proved itself."""
        self.feed.publish(Trust(numbered(file, self._clock.now()), proven=False))

    def take(self, trust: Trust) -> bool:
        """What a signer that proved itself sent. False: another one has sent what is newer, and this is ignored."""
        present = self.feed.current
        bundle = numbered(trust.bundle, self._clock.now())
        if bundle is not trust.bundle:
            _log.error(
                "the signer's trust bundle has a number that cannot be; the next one replaces it whatever its number",
                extra={"sequence": trust.bundle.sequence},
            )
        held = self.believed(present.bundle.sequence) if present is not None and present.proven else None
        if held is not None and bundle.sequence is not None and bundle.sequence < held:
            self._refuse(bundle.sequence, held)
            return False
        self._refused, self._said = None, trust.bundle.sequence
        if replace(trust, bundle=bundle) != present:
            self._taken_at = self._clock.now()
            self.feed.publish(replace(trust, bundle=bundle))
        return True

    def said(self, trust: Trust) -> int:
        """The number that the signer gave `trust`, believed or not; 0: none that can be told to it."""
        number = trust.bundle.sequence
        if number is None and trust == self.feed.current:
            number = self._said
        return number if number is not None and 0 <= number < 2**63 else 0

    def is_news(self, file: TrustBundle) -> bool:
        """Whether a bundle file may tell of authorities that came after what is held.

        By its number, which a file that people write does not have. A number that was ahead of the time when it was
        taken is counted as of that time: else whoever once stood in the signer's place would outlast the signer's next
        step.
        """
        present, theirs = self.feed.current, self.believed(file.sequence)
        mine = present.bundle.sequence if present is not None else None
        if mine is None or theirs is None:
            return True
        if self._taken_at is not None:
            mine = min(mine, _milliseconds(self._taken_at))
        return theirs > mine

    def _refuse(self, sequence: int, held: int) -> None:
        # Once: a replica that lags behind says the same on each of its streams.
        if self._refused != (sequence, held):
            self._refused = (sequence, held)
            _log.warning(
                "the signer's trust bundle is older than the one held; ignored",
                extra={"sequence": sequence, "held": held},
            )


def _believed(number: int | None, now: datetime) -> int | None:
    return number if number is not None and 0 <= number <= _milliseconds(now + AHEAD) else None


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
