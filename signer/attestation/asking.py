"""One question that several wait for: it is asked once, and each of them gives up by itself."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Asking(Generic[T]):
    """Asks at once, in a task of its own: who gives up must not fail the others. Belongs to one event loop.

    `answered` hears of the task's end, once all who wait have their answer.
    """

    def __init__(self, question: Coroutine[Any, Any, T], answered: "Callable[[asyncio.Task[T]], None]") -> None:
        self._answered = answered
        # One future for each that waits: `asyncio.shield` has two, and two turns of the loop more.
        self._waiting: dict[asyncio.Future[T], None] = {}
        # Held here: a loop keeps no task but by what it waits for.
        self._task = asyncio.create_task(question)
        self._task.add_done_callback(self._tell)

    async def answer(self) -> T:
        """Raises what asking raised."""
        mine: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[mine] = None
        try:
            return await mine
        finally:
            del self._waiting[mine]

    def _tell(self, task: "asyncio.Task[T]") -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        for each in self._waiting:
            if each.done():
                continue
            if error is not None:
                each.set_exception(error)
            else:
                each.set_result(task.result())
        self._answered(task)
