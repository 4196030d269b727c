"""The log of the exposed process: its lines go to the agent, which alone writes them."""

import asyncio
import logging
import traceback
from typing import Any

from agent.channel.frames import Wire
from agent.channel.messages import Said

# Lines that wait; beyond them they are lost, and counted.
MOST = 256
_TEXT = 8 * 1024
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Saying(logging.Handler):
    """Sends every record; may be used from any thread of the process. Belongs to the loop that is running."""

    def __init__(self, wire: Wire[Any]) -> None:
        super().__init__()
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[Said] = asyncio.Queue(MOST)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        fields = {key[:128]: str(value)[:_TEXT] for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))[-_TEXT:]
        line = Said(
            min(record.levelno, 50), record.name[:128], record.getMessage()[:512], dict(list(fields.items())[:16])
        )
        self._loop.call_soon_threadsafe(self._put, line)

    async def run(self) -> None:
        """Send what comes, for ever."""
        while True:
            await self._wire.send(await self._waiting.get())
            if self._lost:
                lost, self._lost = self._lost, 0
                fields = {"lines": str(lost)}
                await self._wire.send(Said(logging.WARNING, "podsvid.exposed", "lines of the log were lost", fields))

    def _put(self, line: Said) -> None:
        try:
            self._waiting.put_nowait(line)
        except asyncio.QueueFull:
            self._lost += 1
