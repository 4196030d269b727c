"""How much one node may ask for: a node that asks without end gets its own pods into trouble and no others."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from runtime.clock import Clock
from signer.errors import Reason, Refused

MAX_NODES = 20_000
BUSY_RETRY = timedelta(milliseconds=200)
# What a node says on its trust streams, a second and at once. Agents say what changed, the newest only.
REPORTS, REPORTS_AT_ONCE = 10.0, 20.0


class Slots:
    """So many at once, whoever asks."""

    def __init__(self, most: int) -> None:
        self._free = most

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Take one; False: there is none."""
        if self._free < 1:
            yield False
            return
        self._free -= 1
        try:
            yield True
        finally:
            self._free += 1


@dataclass(slots=True)
class _Node:
    tokens: float
    counted_at: datetime
    running: int = 0
    # Below zero: what was said already that others of the node wait for.
    reports: float = REPORTS_AT_ONCE


class NodeLimits:
    """A token bucket and a number of calls in flight, for each node."""

    def __init__(self, rate: int, burst: int, concurrent: int, clock: Clock) -> None:
        self._rate = rate
        self._burst = burst
        self._concurrent = concurrent
        self._clock = clock
        self._nodes: OrderedDict[str, _Node] = OrderedDict()

    @asynccontextmanager
    async def slot(self, node_uid: str) -> AsyncIterator[None]:
        """Hold one of the node's slots. Raises Refused (RATE_LIMITED, BUSY) with when to try again."""
        node = self._node(node_uid)
        if node.running >= self._concurrent:
            raise Refused(
                Reason.BUSY, f"this node has {self._concurrent} mints in flight already", retry_after=BUSY_RETRY
            )
        if node.tokens < 1.0:
            wait = timedelta(seconds=(1.0 - node.tokens) / self._rate)
            raise Refused(
                Reason.RATE_LIMITED, f"this node asks for more than {self._rate} mints a second", retry_after=wait
            )
        node.tokens -= 1.0
        node.running += 1
        try:
            yield
        finally:
            node.running -= 1

    async def heard(self, node_uid: str) -> None:
        """Wait until the node may say one more thing on its trust streams."""
        node = self._node(node_uid)
        node.reports -= 1.0
        if node.reports < 0.0:
            await asyncio.sleep(-node.reports / REPORTS)

    def _node(self, uid: str) -> _Node:
        now = self._clock.now()
        node = self._nodes.get(uid)
        if node is None:
            node = self._nodes[uid] = _Node(float(self._burst), now)
        passed = max((now - node.counted_at).total_seconds(), 0.0)
        node.tokens = min(float(self._burst), node.tokens + passed * self._rate)
        node.reports = min(REPORTS_AT_ONCE, node.reports + passed * REPORTS)
        node.counted_at = now
        self._nodes.move_to_end(uid)
        if len(self._nodes) > MAX_NODES:
            # The one that was quiet for longest; its bucket is full again, so nothing is forgotten.
            idle = next((key for key, each in self._nodes.items() if each.running == 0), None)
            if idle is not None:
                del self._nodes[idle]
        return node
