"""One thread for files that may hang (NFS, a pipe): each wait for them is bounded, and only one is read at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

_T = TypeVar("_T")
DEADLINE_SECONDS = 30.0
# Seconds that the thread is there for what comes next: to start one costs more than most of what it does.
KEPT_SECONDS = 1.0


class Unanswered(Exception):
    """It was not done in time. What was begun may go on; until it has ended nothing else is begun."""


class Bounded:
    """Does one thing at a time, in a thread of its own, of which the end of the process does not wait.

    The event loop's own threads are few and everybody's: one that hangs at each attempt has taken them all in the end.
    """

    def __init__(self, seconds: float = DEADLINE_SECONDS, kept: float = KEPT_SECONDS) -> None:
        self.seconds = seconds
        self._kept = kept
        # Of the thread: what it is to do next, and whether it will look there once more.
        self._next: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._looks, self._changing = False, Lock()
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
        todo = partial(_done, work, result, ended)
        with self._changing:
            if not self._looks:
                try:
                    Thread(target=self._do_all, name="files", daemon=True).start()
                except RuntimeError:  # there are as many threads as the process may have
                    raise Unanswered from None
                self._looks = True
            self._next.put(todo)
        self._ended = ended
        return result

    def _do_all(self) -> None:
        """What comes while the thread is kept."""
        while (todo := self._come()) is not None:
            todo()
            # What it holds is not to live as long as the thread.
            del todo

    def _come(self) -> Callable[[], None] | None:
        try:
            return self._next.get(timeout=self._kept)
        except Empty:
            with self._changing:
                # It may have come just now, from who took the thread to be there.
                self._looks = not self._next.empty()
                return self._next.get() if self._looks else None


def _done(work: Callable[[], _T], result: Future[_T], ended: Future[None]) -> None:
    try:
        found = work()
    except BaseException as error:
        result.set_exception(error)
    else:
        result.set_result(found)
    ended.set_result(None)
