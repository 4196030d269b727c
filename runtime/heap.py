"""What a program knows for long is not looked at by the garbage collector again and again: that holds its event loop.

One look at 150,000 pods takes a good part of a second.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable

# Collections of the middle generation until the oldest is looked at: Python's own 10 are for programs that grow slowly.
OLDEST_AFTER = 50


async def settle(*known: Callable[[], Awaitable[None]]) -> None:
    """Leave out what is there once all of `known` have come about. Never returns.

    What is left out still goes when nothing refers to it; only cycles in it stay, so they are collected before.
    """
    youngest, middle, _ = gc.get_threshold()
    gc.set_threshold(youngest, middle, OLDEST_AFTER)
    for each in known:
        await each()
    gc.collect()
    gc.freeze()
    await asyncio.Event().wait()
