"""Who gets a signature of a key store next: it makes few in a second, and no node may take them from the others."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature

from signer.keystore.store import KeyStoreUnavailable
from signer.keystore.worker import Worker

_T = TypeVar("_T")
# Seconds that one who wants an SVID waits for it at most; and those who make or try authorities.
DEADLINE_SECONDS, PATIENCE_SECONDS = 2.0, 60.0
# How many wait at most, and of one holder. Two are with the worker: the next begins while the loop hears of the last.
MOST_WAITING, MOST_OF_ONE, AT_ONCE = 512, 64, 2


class _Job:
    def __init__(self, work: Callable[[], Any], done: "asyncio.Future[Any]") -> None:
        self.work = work
        self.done = done


class Signing:
    """Does what waits for a key store off the loop, one after another: of each holder one, in turn.

    `told`: of each with its result, ok or failed by what the store did, late where nobody waited for it any more, full
    where it was not begun, since so many wait.
    """

    def __init__(self, worker: Worker, told: Callable[[str], None] = lambda _: None) -> None:
        self._worker = worker
        self._told = told
        self._lines: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._waiting = 0
        self._running = 0

    async def do(self, work: Callable[[], _T], holder: str = "", seconds: float = DEADLINE_SECONDS) -> _T:
        """What `work` returns or raises. Raises KeyStoreUnavailable.

        What is done for the authorities themselves has no `holder`, waits its turn, and is not turned away: there is
        little of it, and a replica whose key is not tried since many want SVIDs would be taken from all of them.
        """
        if holder and (self._waiting >= MOST_WAITING or len(self._lines.get(holder, ())) >= MOST_OF_ONE):
            self._told("full")
            raise KeyStoreUnavailable("as many wait for the key store as may; try again in a moment")
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._lines.setdefault(holder, deque()).append(job)
        self._waiting += 1
        self._begin()
        try:
            await asyncio.wait([job.done], timeout=seconds)
            if job.done.done():
                return job.done.result()  # type: ignore[no-any-return]
            self._told("late")
            raise KeyStoreUnavailable(f"the key store did not sign within {seconds:g} s; try again in a moment")
        finally:
            self._leave(holder, job)

    def _leave(self, holder: str, job: _Job) -> None:
        if not job.done.cancel() and not job.done.cancelled():
            job.done.exception()  # seen
        line = self._lines.get(holder)
        if line is not None and job in line:
            line.remove(job)
            self._waiting -= 1
        if line is not None and not line:
            del self._lines[holder]

    def _begin(self) -> None:
        while self._running < AT_ONCE and self._waiting:
            holder, line = self._lines.popitem(last=False)
            if not line:
                continue
            job = line.popleft()
            self._waiting -= 1
            if line:
                # The others first.
                self._lines[holder] = line
            self._running += 1
            self._worker.begin(job.work).add_done_callback(partial(self._hear, asyncio.get_running_loop(), job))

    def _hear(self, loop: asyncio.AbstractEventLoop, job: _Job, found: "Future[Any]") -> None:
        """On the worker's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self._ended, job, found)

    def _ended(self, job: _Job, found: "Future[Any]") -> None:
        self._running -= 1
        error = found.exception()
        if isinstance(error, InvalidSignature):
            error = KeyStoreUnavailable("the key store signed with another key than the authority's")
        self._told("failed" if isinstance(error, KeyStoreUnavailable) else "ok")
        if not job.done.done():
            if error is None:
                job.done.set_result(found.result())
            else:
                job.done.set_exception(error)
        self._begin()
