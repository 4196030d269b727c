"""Who has a place at a small server, and how often who comes may: bounds in all and by address.

When it is full, who has been slow for longest makes place: an honest peer sends its request at once, so that a crowd of
slow ones keeps nobody out.
"""

import math
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from runtime.bucket import Bucket

# Who asks without end leaves others theirs: so much of the rate is one address' share.
SHARE = 0.25
# Addresses whose shares are remembered; of more, who has not asked for longest is forgotten.
MAX_ADDRESSES = 256


class Guest(Protocol):
    """A connection. `stage`: how far it is; who is at the lowest makes place first."""

    @property
    def address(self) -> str: ...

    @property
    def stage(self) -> int: ...

    def end(self, why: str) -> None:
        """Cut it off; it leaves its place at once."""
        ...


_Guest = TypeVar("_Guest", bound=Guest)


class Crowd(Generic[_Guest]):
    """The connections of one listener, in the order in which they came."""

    def __init__(self, connections: int, by_address: int, rate: float = math.inf, burst: float = math.inf) -> None:
        self._most = connections
        self._by_address = by_address
        self._rate = rate
        self._burst = burst
        self._guests: dict[_Guest, None] = {}
        self._addresses: dict[str, int] = {}
        self._all: Bucket | None = None
        self.shares: OrderedDict[str, Bucket] = OrderedDict()

    @property
    def guests(self) -> list[_Guest]:
        return list(self._guests)

    def enter(self, new: _Guest) -> None:
        """Give it a place; somebody else's, when there is none."""
        if self._addresses.get(new.address, 0) >= self._by_address:
            self._slowest([each for each in self._guests if each.address == new.address]).end("address")
        elif len(self._guests) >= self._most:
            self._slowest(list(self._guests)).end("crowded")
        self._guests[new] = None
        self._addresses[new.address] = self._addresses.get(new.address, 0) + 1

    def leave(self, gone: _Guest) -> None:
        """Take its place back; again does no harm."""
        if gone not in self._guests:
            return
        del self._guests[gone]
        self._addresses[gone.address] -= 1
        if not self._addresses[gone.address]:
            del self._addresses[gone.address]

    def may(self, address: str, now: float) -> bool:
        """Whether one more is within the rate, its address' and everybody's; it counts. `now`: seconds."""
        if self._rate == math.inf:
            return True
        self._all = self._all or Bucket(self._rate, self._burst, now)
        share = self.shares.setdefault(address, Bucket(self._rate * SHARE, self._burst * SHARE, now))
        self.shares.move_to_end(address)
        if len(self.shares) > MAX_ADDRESSES:
            self.shares.popitem(last=False)
        return share.take(now) and self._all.take(now)

    @staticmethod
    def _slowest(candidates: list[_Guest]) -> _Guest:
        return min(candidates, key=lambda each: each.stage)
