"""What waiting.py is for, where a command runs an event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from podsvid.waiting import SAID_AFTER, say


@asynccontextmanager
async def awaited(
    what: str, seconds: float | None, tell: Callable[[str], None] = say
) -> AsyncIterator[asyncio.Timeout]:
    """Within, `what` is waited for; it is said after a while, and given up after `seconds`. Raises TimeoutError.

    Who hears that it goes on reschedules the limit.
    """
    most = "" if seconds is None else f", {seconds:g} s at most"
    said = f"waiting for {what}{most}"
    # Of what is given up before then, the error says it.
    worth_it = seconds is None or seconds > SAID_AFTER
    saying = asyncio.get_running_loop().call_later(SAID_AFTER, tell, said) if worth_it else None
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    finally:
        if saying is not None:
            saying.cancel()
