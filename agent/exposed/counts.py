"""What is counted about the calls, sent to the agent, which has the metrics."""

import asyncio
from collections import Counter
from typing import Any

from agent.channel.frames import Wire
from agent.channel.messages import Counted

# Seconds from one report to the next.
PAUSE = 0.1


class Counts:
    """Counts calls and SDS responses since the process began (agent.socket's CallMetrics and SdsMetrics)."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._pushed = self._rejected = 0
        self._changed = asyncio.Event()

    def call_started(self, method: str) -> None:
        self._calls[method] += 1
        self._open[method] += 1
        self._changed.set()

    def call_ended(self, method: str) -> None:
        self._open[method] -= 1
        self._changed.set()

    def call_refused(self, why: str) -> None:
        """A call, or a connection."""
        self._refused[why] += 1
        self._changed.set()

    def sds_pushed(self) -> None:
        self._pushed += 1
        self._changed.set()

    def sds_rejected(self) -> None:
        self._rejected += 1
        self._changed.set()

    async def run(self, wire: Wire[Any]) -> None:
        """Report after each change, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await wire.send(
                Counted(dict(self._calls), dict(self._open), dict(self._refused), self._pushed, self._rejected)
            )
            await asyncio.sleep(PAUSE)
