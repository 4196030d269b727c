"""What a program knows for long is not looked at by the garbage collector again and again: that holds its event loop.

One look at 150,000 pods and 5,000 agents' streams takes a good part of a second.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable

from runtime.memory import resident

# So many come, beyond what went, until the youngest are looked at (Python's own: 700, since 3.13 2,000): what calls in
# flight hold would be looked at again and again while they are.
YOUNGEST = 3_500
# Collections of the middle generation until the oldest is looked at: Python's own 10 are for programs that grow slowly.
OLDEST_AFTER = 50
# Seconds from one time to the next that what has come is looked at, and left out.
EVERY = 10.0
# Where the process has grown by so much since all of it was looked at, beside what is known to be in use, it is again;
# after so many times at least, since it also grows with what it learns. By as much as MUCH it is at once: memory has a
# limit.
GROWN, AT_LEAST, MUCH = 1.1, 60, 1.5


async def _pause() -> None:
    await asyncio.sleep(EVERY)


async def settle(
    *known: Callable[[], Awaitable[None]],
    pause: Callable[[], Awaitable[None]] = _pause,
    size: Callable[[], int] = resident,
    in_use: Callable[[], int] = lambda: 0,
) -> None:
    """Leave out what is there once all of `known` have come about, and what is there after each `pause`. Never returns.

    What is left out still goes when nothing refers to it; only cycles in it stay. So garbage is collected before, and
    what became a cycle afterwards is when the process, of `size` bytes, has grown by more than what is `in_use`: a look
    at all of it holds the event loop for a good part of a second, and is not had for what is no garbage.
    """
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(YOUNGEST, middle, OLDEST_AFTER)
    for each in known:
        await each()
    whole, used, passed = 0, 0, AT_LEAST
    while True:
        all_of_it = _size(size) - (in_use() - used) > whole * (GROWN if passed >= AT_LEAST else MUCH)
        if all_of_it:
            gc.unfreeze()
        gc.collect()
        if all_of_it:
            whole, used, passed = _size(size), in_use(), 0
        gc.freeze()
        passed += 1
        await pause()


def _size(size: Callable[[], int]) -> int:
    """Of the process; 0 where it cannot be told, as with no descriptor left: nothing ends for that."""
    try:
        return size()
    except OSError:
        return 0
