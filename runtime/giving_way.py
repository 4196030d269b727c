"""Long work gives way: it is done in slices, and between two of them others have all the turns that they need.

A call takes a dozen turns of the event loop, with the network between them. Were a slice done in each turn, one call
would wait for a dozen slices; so what is no call's rests for a moment after each of its slices.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

# Seconds. A call that is at hand meets two or three slices, however long the work is.
REST = 0.003
T = TypeVar("T")


async def give_way() -> None:
    """Between two slices."""
    await asyncio.sleep(REST)


async def slices(things: Iterable[T], size: int) -> AsyncIterator[tuple[T, ...]]:
    """`size` of them at a time. What they are of must not change meanwhile."""
    left = iter(things)
    part = tuple(itertools.islice(left, size))
    while part:
        yield part
        part = tuple(itertools.islice(left, size))
        if part:
            await give_way()
