"""The exposed process that comes next: started, loaded and confined before it is needed, since that takes most of a
second. It is told nothing while it waits, and is no copy of the one that serves: its addresses are its own."""

import asyncio
import logging

from agent.servers.process import Confinement, Exposed
from runtime.stopping import end

_log = logging.getLogger("podsvid.servers")
# Seconds after which another is started: who serves has its start for itself.
AFTER = 1.0


class Spare:
    """Belongs to one event loop."""

    def __init__(self, confinement: Confinement) -> None:
        self._confinement = confinement
        self._waiting: Exposed | None = None
        self._starting: asyncio.Task[None] | None = None

    async def take(self) -> Exposed:
        """The one that waits, or else a new one. Raises OSError."""
        await self._stop_starting()
        found, self._waiting = self._waiting, None
        if found is not None and found.alive:
            return found
        if found is not None:
            await found.end()
        return await Exposed.start(self._confinement)

    def soon(self) -> None:
        """Have another one started."""
        if self._starting is None and self._waiting is None:
            self._starting = asyncio.create_task(self._start(), name="next exposed process")

    async def end(self) -> None:
        """None waits any more."""
        await self._stop_starting()
        found, self._waiting = self._waiting, None
        if found is not None:
            found.channel.close()
            await found.end()

    async def _start(self) -> None:
        await asyncio.sleep(AFTER)
        try:
            self._waiting = await Exposed.start(self._confinement)
        except OSError as error:
            # What is missing is missed when it is needed, and said then.
            _log.warning("the next process for pods' sockets cannot be started", extra={"error": str(error)})

    async def _stop_starting(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            await end([starting])
