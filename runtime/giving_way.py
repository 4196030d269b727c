"""Long work gives way: it is done in slices, and between two of them others have all the turns that they need.

A call takes a dozen turns of the event loop, with the network between them. Were a slice done in each turn, one call
would wait for a dozen slices; so what is no call's rests for a moment after each of its slices.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

# Seconds. A call that is at hand meets two or three slices, however long the work is.
REST = 0.003
# Of the processor's time, where the things of a slice differ in what they take: what a count of them cannot bound.
SLICE_SECONDS = 0.001
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


class Slicing:
    """Gives way when SLICE_SECONDS of `used`, the processor's time of this thread, have passed since the last rest."""

    def __init__(self, used: Callable[[], float]) -> None:
        self._used = used
        self._since = used()

    async def go_on(self) -> None:
        """After each thing that was done."""
        if self._used() - self._since >= SLICE_SECONDS:
            await give_way()
            # What others did meanwhile is not of this slice.
            self._since = self._used()
