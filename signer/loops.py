"""The loops of a signer, which go on until it stops: one that ends by itself is a bug, and ends the process."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from runtime.stopping import end


async def cancel(tasks: Mapping[str, "asyncio.Task[None]"]) -> None:
    """End them, and wait until they have ended."""
    await end(tasks.values())


async def until(stopping: asyncio.Event, tasks: Mapping[str, "asyncio.Task[None]"]) -> None:
    """Wait for the stop. A loop that ends by itself is a bug: the process ends and is started again."""
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([stop, *tasks.values()], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
    _none_ended(tasks)


async def beside(tasks: Mapping[str, "asyncio.Task[None]"], work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, as long as no loop ends."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait([working, *tasks.values()], return_when=asyncio.FIRST_COMPLETED)
        _none_ended(tasks)
        await working
    finally:
        await end([working])


def _none_ended(tasks: Mapping[str, "asyncio.Task[None]"]) -> None:
    for name, task in tasks.items():
        if task.done():
            raise RuntimeError(f"the {name} loop ended") from (None if task.cancelled() else task.exception())
