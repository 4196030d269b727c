"""What a process that may be somebody else's by now writes to its stderr: read, a few lines of it, and handed on.

On the daemon's own stderr it could write lines that look like the daemon's, and have the daemon's own be lost.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from runtime.bucket import Bucket

# Bytes of a line, and lines a second and at once: what an honest one writes are crashes.
LINE, LINES_RATE, LINES_BURST = 2048, 5.0, 50.0
# What is beyond them is read so many bytes at a time, unlooked at, and so many seconds apart.
_SKIPPED, _SKIPPING = 64 * 1024, 0.02


async def hand_on(written: asyncio.StreamReader, said: Callable[[str, Mapping[str, int]], None]) -> None:
    """Until it is closed: each line, without its end, to `said`, with `bytes_lost` where some before it were too many.

    The stream's `limit` is to be LINE.
    """
    lines, lost = Bucket(LINES_RATE, LINES_BURST, time.monotonic()), 0
    while True:
        if not lines.take(time.monotonic()):
            skipped = await written.read(_SKIPPED)
            if not skipped:
                return
            lost += len(skipped)
            await asyncio.sleep(_SKIPPING)
            continue
        try:
            line = await written.readuntil(b"\n")
        except asyncio.IncompleteReadError as rest:
            line = rest.partial
            if not line:
                return
        except asyncio.LimitOverrunError:
            line = await written.read(LINE)
        said(line[:LINE].decode(errors="replace").rstrip(), {"bytes_lost": lost} if lost else {})
        lost = 0
