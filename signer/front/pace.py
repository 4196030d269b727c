"""How fast calls come to be signed whose callers are very many: so many a second, of each node one in turn."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from runtime.bucket import Bucket

# Seconds: what a sum of fractions lacks at the end is not worth a turn of the loop of its own.
_LEAST = 0.001


class Pace:
    """`burst` at once and `rate` a second go on; the others wait in their nodes' lines. Belongs to one event loop.

    How many wait is for the caller to bound.
    """

    def __init__(self, rate: float, burst: float, now: Callable[[], float]) -> None:
        self._now = now
        self._bucket = Bucket(rate, burst, now())
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, node: str) -> None:
        """Wait until it is the node's turn."""
        if not self._lines and self._bucket.take(self._now()):
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(node, deque()).append(waiting)
        self._look_later()
        try:
            await waiting
        finally:
            line = self._lines.get(node)
            if line is not None and waiting in line:
                line.remove(waiting)
                if not line:
                    del self._lines[node]

    def _look_later(self) -> None:
        if self._timer is None and self._lines:
            wait = max(self._bucket.wait(self._now()), _LEAST)
            self._timer = asyncio.get_running_loop().call_later(wait, self._let_on)

    def _let_on(self) -> None:
        self._timer = None
        while self._lines and self._bucket.take(self._now()):
            node, line = self._lines.popitem(last=False)
            waiting = line.popleft()
            if line:
                # The others first.
                self._lines[node] = line
            if not waiting.done():
                waiting.set_result(None)
        self._look_later()
