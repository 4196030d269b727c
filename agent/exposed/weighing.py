"""What each volume's socket costs, told to the agent after each change: when this process ends, it knows by whom."""

import asyncio
from typing import Any

from agent.channel.frames import Wire
from agent.channel.messages import MOST_WEIGHED, Weighed, Weight
from agent.socket.accounts import Accounts
from agent.socket.connections import Connections

# Seconds from one report to the next.
PAUSE = 0.1
# Seconds in which this process, if it gets any of a processor, reads what somebody sends it now and then: what has just
# come is nobody's fault, and nor is what waits because others have all processors.
READING = 0.02


class Weighing:
    """Belongs to one event loop. `accounts` are those of the sockets that are open; they say when they `changed`."""

    def __init__(self, connections: Connections) -> None:
        self.accounts: Accounts | None = None
        self._connections = connections
        self._said: dict[int, Weight] = {}
        self._dirty: set[int] = set()
        self._changed = asyncio.Event()

    def changed(self, volume: int) -> None:
        """It costs more."""
        self._dirty.add(volume)
        self._changed.set()

    async def look(self) -> Weighed:
        """What changed since the last report, after a look at who keeps this process busy now."""
        self._connections.look()
        unheard = self._connections.unheard()
        if unheard:
            await asyncio.sleep(READING)
            self._connections.count_busy(unheard)
        open_now = self.accounts.weights() if self.accounts else {}
        self._said = {volume: weight for volume, weight in self._said.items() if volume in open_now}
        self._dirty |= set(open_now)
        return self._report()

    async def run(self, wire: Wire[Any]) -> None:
        """Report after each change, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await wire.send(self._report())
            await asyncio.sleep(PAUSE)

    def _report(self) -> Weighed:
        found: dict[int, Weight] = {}
        while self._dirty and len(found) < MOST_WEIGHED:
            volume = self._dirty.pop()
            each = self.accounts.weight(volume) if self.accounts else None
            if each is None:
                continue
            weight = Weight(
                each.connections, each.calls, each.refused, each.busy, each.open_connections, each.open_calls
            )
            if weight != self._said.get(volume):
                self._said[volume] = found[volume] = weight
        if self._dirty:
            # They are in the next one.
            self._changed.set()
        return Weighed(found)
