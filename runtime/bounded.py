"""One thread for files that may hang (NFS, a pipe): each wait for them is bounded, and only one is read at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")
DEADLINE_SECONDS = 30.0


class Unanswered(Exception):
    """It was not done in time. What was begun may go on; until it has ended nothing else is begun."""


class Bounded:
    """Does one thing at a time, in a thread of its own, of which the end of the process does not wait.

    The event loop's own threads are few and everybody's: one that hangs at each attempt has taken them all in the end.
    """

    def __init__(self, seconds: float = DEADLINE_SECONDS) -> None:
        self.seconds = seconds
        # In the order in which they came; whoever waits is woken once, when it is its turn.
        self._turn = asyncio.Lock()
        self._ended: Future[None] | None = None

    async def do(self, work: Callable[[], _T]) -> _T:
        """What `work` returns or raises. Raises Unanswered."""
        try:
            async with asyncio.timeout(self.seconds), self._turn:
                # Of one that was given up.
                if self._ended is not None and not self._ended.done():
                    await asyncio.wait([asyncio.wrap_future(self._ended)])
                return await asyncio.wrap_future(self._begin(work))
        except TimeoutError:
            raise Unanswered from None

    def _begin(self, work: Callable[[], _T]) -> Future[_T]:
        result, ended = Future[_T](), Future[None]()
        # From here on who waits no more cannot cancel them: the thread says when it has ended.
        result.set_running_or_notify_cancel()
        ended.set_running_or_notify_cancel()
        try:
            Thread(target=_done, args=(work, result, ended), name="files", daemon=True).start()
        except RuntimeError:  # there are as many threads as the process may have
            raise Unanswered from None
        self._ended = ended
        return result


def _done(work: Callable[[], _T], result: Future[_T], ended: Future[None]) -> None:
    try:
        found = work()
    except BaseException as error:
        result.set_exception(error)
    else:
        result.set_result(found)
    ended.set_result(None)
