"""How many reviews are spent on tokens that may be bad: by who brings them, so that nobody pays for another's.

A refused review costs the API server what others do. Where the cluster's keys prove a token it does not matter who
brought it; where they do not, as with a new key or without the right to read keys, only senders can be told apart.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from runtime.bucket import Bucket
from runtime.clock import Clock
from signer.model import Sender, Standing

# Senders that are remembered, of each standing.
MAX_SENDERS = 20_000
# Seconds. Who had no token refused for so long, and waits for no answer, is asked about however many bad ones others
# bring.
QUIET = 60.0


@dataclass(frozen=True, slots=True)
class Limit:
    """Reviews whose token was refused, or is asked about: so many at once, and so many more a second."""

    at_once: float
    a_second: float

    def bucket(self, now: float) -> Bucket:
        """A full one of it."""
        return Bucket(self.a_second, self.at_once, now)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sender, and of all of its standing; None: each is bounded by itself only."""

    each: Limit
    all: Limit | None


LIMITS: Mapping[Standing, Limits] = MappingProxyType(
    {
        # Addresses are many: half of it for one leaves room for who shares one with an attacker.
        Standing.STRANGER: Limits(Limit(50.0, 10.0), Limit(100.0, 20.0)),
        # Any pod may be one: all of them are no more than strangers.
        Standing.PROXY: Limits(Limit(16.0, 1.0), Limit(100.0, 20.0)),
        # As many as a node has mints, and a replica, in flight.
        Standing.AGENT: Limits(Limit(64.0, 10.0), Limit(512.0, 100.0)),
        # Its token was signed by the cluster, so there is no other one that it could speak for.
        Standing.PROVEN: Limits(Limit(10.0, 1.0), None),
    }
)


class _Known:
    """One sender: its own budget, and whether anything speaks against it."""

    def __init__(self, limit: Limit, now: float) -> None:
        self.own = limit.bucket(now)
        self.under_way = 0
        self.refused_at: float | None = None

    def quiet(self, now: float) -> bool:
        at = self.refused_at
        return not self.under_way and (at is None or now - at >= QUIET)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one review was paid from, until its answer is there."""

    sender: _Known
    common: Bucket | None


class Doubt:
    """The budgets. Belongs to one event loop."""

    def __init__(self, clock: Clock, limits: Mapping[Standing, Limits] = LIMITS) -> None:
        self._clock = clock
        self._limits = limits
        now = clock.monotonic()
        self._common = {kind: each.all.bucket(now) for kind, each in limits.items() if each.all is not None}
        self._senders: dict[Standing, OrderedDict[str, _Known]] = {kind: OrderedDict() for kind in limits}

    def ask(self, sender: Sender) -> Asked | None:
        """Pay for one review of what `sender` brings, to be ended by `answered`; None: it has to wait."""
        now = self._clock.monotonic()
        known = self._known(sender, now)
        if known.own.left(now) < 1.0:
            return None
        common = None if known.quiet(now) else self._common.get(sender.standing)
        if common is not None:
            if common.left(now) < 1.0:
                return None
            common.spend()
        known.own.spend()
        known.under_way += 1
        return Asked(known, common)

    def answered(self, asked: Asked, refused: bool) -> None:
        """Its token was refused; or it was good, or nobody could tell: then it costs nothing."""
        asked.sender.under_way -= 1
        if refused:
            asked.sender.refused_at = self._clock.monotonic()
            return
        asked.sender.own.give(1.0)
        if asked.common is not None:
            asked.common.give(1.0)

    def _known(self, sender: Sender, now: float) -> _Known:
        senders = self._senders[sender.standing]
        known = senders.get(sender.name)
        if known is None:
            known = senders[sender.name] = _Known(self._limits[sender.standing].each, now)
        senders.move_to_end(sender.name)
        if len(senders) > MAX_SENDERS:
            # The one that was quiet for longest.
            idle = next((name for name, each in senders.items() if not each.under_way), None)
            if idle is not None:
                del senders[idle]
        return known
