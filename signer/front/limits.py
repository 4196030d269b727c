"""How much one node may ask for: a node that asks without end gets its own pods into trouble and no others."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from runtime.bucket import Bucket
from runtime.clock import Clock
from signer.errors import Reason, Refused

MAX_NODES = 20_000
BUSY_RETRY = timedelta(milliseconds=200)
# An agent sends a mint's message with its headers, or as soon as it hears that it may.
SILENT_SECONDS = 0.5
# What a node says on its trust streams, a second and at once. Agents say what changed, the newest only.
REPORTS, REPORTS_AT_ONCE = 10.0, 20.0
# Calls of a node beside its mints, those that are refused too: so many times its mints a second, and at once. To refuse
# one takes a third of what a mint takes, so who goes on is not read for a while: seconds at most, each time.
CALLS, CALLS_AT_ONCE = 4, 2
MOST_REST = 5.0
# Batches of one node at once, whose messages are held until each is answered: an agent has two, and may just have given
# up another.
BATCHES = 3


class Place:
    """One of so many, which is given back (`leave`) when it is left. Each mint has one, so there is no generator."""

    def __init__(self, holder: str, share: str = "", leave: Callable[["Place"], None] = lambda _: None) -> None:
        self.holder = holder
        self.share = share
        # Somebody else has it now.
        self.lost = False
        self.silent_since: float | None = None
        self._end: Callable[[], None] = lambda: None
        self._leave = leave

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self)

    def silent(self, now: float, end: Callable[[], None]) -> None:
        """Nothing is done with it until it is `heard`: where places are wanting it is lost, and `end` called."""
        self.silent_since, self._end = now, end

    def heard(self) -> None:
        """Something is done with it: nobody else gets it."""
        self.silent_since = None

    def lose(self) -> None:
        """Give it to another."""
        self.lost, self.silent_since = True, None
        self._end()


class Slots:
    """So many at once, whoever asks; but who holds them silently makes room for who does not.

    Holders may have a share together, of `of_share` at once: then they make room for each other in it. `now` in
    seconds, of the clock that `Place.silent` is told of.
    """

    def __init__(self, most: int, now: Callable[[], float] = lambda: 0.0, of_share: int | None = None) -> None:
        self._free = most
        self._now = now
        self._of_share = most if of_share is None else of_share
        self._places: dict[Place, None] = {}
        self._shares: Counter[str] = Counter()

    def take(self, holder: str = "", share: str = "") -> Place | None:
        """One, to be entered at once and left; None: there is none."""
        if self._shares[share] >= self._of_share:
            self._make_room(holder, [each for each in self._places if each.share == share])
        elif self._free < 1:
            self._make_room(holder, list(self._places))
        if self._free < 1 or self._shares[share] >= self._of_share:
            return None
        place = Place(holder, share, self._leave)
        self._shares[share] += 1
        self._places[place] = None
        self._free -= 1
        return place

    def _make_room(self, holder: str, among: Sequence[Place]) -> None:
        """End one that is silent, the oldest of whoever has most of those; never for one more of the same."""
        latest = self._now() - SILENT_SECONDS
        silent = [each for each in among if each.silent_since is not None and each.silent_since <= latest]
        if not silent:
            return
        crowd, _ = Counter(each.share for each in silent).most_common(1)[0]
        silent = [each for each in silent if each.share == crowd]
        most, _ = Counter(each.holder for each in silent).most_common(1)[0]
        if most != holder:
            found = next(each for each in silent if each.holder == most)
            found.lose()
            self._leave(found)

    def _leave(self, place: Place) -> None:
        if place in self._places:
            del self._places[place]
            self._free += 1
            self._shares[place.share] -= 1
            if not self._shares[place.share]:
                del self._shares[place.share]


@dataclass(slots=True)
class _Node:
    mints: Bucket
    # Below zero: what was said already that others of the node wait for.
    reports: Bucket
    # The same of its calls, which were begun.
    calls: Bucket
    running: int = 0
    batches: int = 0

    def __enter__(self) -> None:
        """One of its mints is in flight, until it is left."""
        self.running += 1

    def __exit__(self, *_: object) -> None:
        self.running -= 1


class NodeLimits:
    """A token bucket and a number of calls in flight, for each node; or for each of what `of` says."""

    def __init__(self, rate: int, burst: int, concurrent: int, clock: Clock, of: str = "node") -> None:
        self._of = of
        self._rate = rate
        self._burst = burst
        self._concurrent = concurrent
        self._clock = clock
        self._nodes: OrderedDict[str, _Node] = OrderedDict()

    def slot(self, node_uid: str) -> AbstractContextManager[None]:
        """One of the node's slots, to be entered at once, and held until it is left. It counts for the rate already.

        Raises Refused (RATE_LIMITED, BUSY) with when to try again.
        """
        node = self._node(node_uid)
        if node.running >= self._concurrent:
            raise Refused(
                Reason.BUSY, f"this {self._of} has {self._concurrent} mints in flight already", retry_after=BUSY_RETRY
            )
        now = self._clock.monotonic()
        if not node.mints.take(now):
            raise Refused(
                Reason.RATE_LIMITED,
                f"this {self._of} asks for more than {self._rate} mints a second",
                retry_after=timedelta(seconds=node.mints.wait(now)),
            )
        return node

    @contextmanager
    def batch(self, node_uid: str) -> Iterator[None]:
        """Hold one of the node's few batches, whose items each take a slot as well. Raises Refused (BUSY)."""
        node = self._node(node_uid)
        if node.batches >= BATCHES:
            raise Refused(Reason.BUSY, f"this node has {BATCHES} batches in flight already", retry_after=BUSY_RETRY)
        node.batches += 1
        try:
            yield
        finally:
            node.batches -= 1

    def called(self, node_uid: str, times: int = 1) -> float:
        """Count calls of the node; seconds for which no other of its connection should come, 0 for most."""
        calls, now = self._node(node_uid).calls, self._clock.monotonic()
        wait = calls.wait(now)
        calls.spend(times)
        return min(wait, MOST_REST)

    async def heard(self, node_uid: str) -> None:
        """Wait until the node may say one more thing on its trust streams."""
        reports, now = self._node(node_uid).reports, self._clock.monotonic()
        wait = reports.wait(now)
        reports.spend()
        if wait > 0.0:
            await asyncio.sleep(wait)

    def _node(self, uid: str) -> _Node:
        node = self._nodes.get(uid)
        if node is None:
            now = self._clock.monotonic()
            node = self._nodes[uid] = _Node(
                mints=Bucket(self._rate, self._burst, now),
                reports=Bucket(REPORTS, REPORTS_AT_ONCE, now),
                calls=Bucket(CALLS * self._rate, CALLS_AT_ONCE * self._burst, now),
            )
        self._nodes.move_to_end(uid)
        if len(self._nodes) > MAX_NODES:
            # The one that was quiet for longest; its bucket is full again, so nothing is forgotten.
            idle = next((key for key, each in self._nodes.items() if each.running == each.batches == 0), None)
            if idle is not None:
                del self._nodes[idle]
        return node
