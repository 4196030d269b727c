"""What runs for kubelet's calls: one operation a volume at a time, each to its end once it has begun."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from csi.errors import OperationPending

_log = logging.getLogger("podsvid.csi")
_Result = TypeVar("_Result")


class Operations:
    """The operations that run. One that has begun outlives a caller that goes away; one that waits ends with it.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._running: set[asyncio.Task[Any]] = set()
        # Those that have done nothing yet.
        self._waiting: set[asyncio.Task[Any]] = set()

    @contextmanager
    def exclusively(self, volume_id: str) -> Iterator[None]:
        """The block is the volume's only operation. Raises OperationPending."""
        if volume_id in self._busy:
            raise OperationPending("another call for this volume is still running; try again")
        self._busy.add(volume_id)
        try:
            yield
        finally:
            self._busy.discard(volume_id)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Over the block the operation that it is in has nothing to undo, and ends when its caller goes away."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)

    async def run(self, operation: Coroutine[Any, Any, _Result]) -> _Result:
        """Its result. kubelet's deadline cancels the caller; a half-done mount must still be finished or undone."""
        task = asyncio.get_running_loop().create_task(operation, name="csi operation")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task in self._waiting:
                task.cancel()
            task.add_done_callback(_log_unseen)
            raise

    async def settle(self) -> None:
        """Wait for those that still run."""
        while self._running:
            await asyncio.wait(self._running)


def _log_unseen(task: asyncio.Task[Any]) -> None:
    # The boundary logs what a call answers, but here nobody waits for the answer any more.
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("operation failed after its caller went away", extra={"error": str(error)}, exc_info=error)
