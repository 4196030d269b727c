"""Blocking calls off the event loop, which a cancelled task waits for: a thread cannot be called back."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


class Blocking:
    """Runs calls on an executor. A caller that is cancelled still returns only when its call has ended."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def __call__(self, call: Callable[[], Result]) -> Result:
        future = asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Otherwise the directory that the call writes into could be closed and its descriptor reused under it; also
            # where the caller is cancelled again.
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            raise
