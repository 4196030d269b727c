"""What is due next, at most so many at once, back-off for each that fails: for renewals, and for what they leave."""

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

from runtime.clock import Clock
from runtime.stopping import end

_log = logging.getLogger("podsvid.rotation")
# asyncio sleeps on the monotonic clock but certificates end by the wall clock: look again at least this often.
MAX_NAP = 30.0
# A wall clock that lost more than this against the monotonic one was set back: adjustments are smaller.
SET_BACK = timedelta(seconds=5)
FIRST_RETRY, MAX_RETRY = timedelta(seconds=1), timedelta(seconds=60)
RETRY_WITHIN = timedelta(seconds=1)
# Turns that are kept though they are not planned any more, beside as many as there are of those that are.
_PASSED_OVER = 64
_EVER = datetime.max.replace(tzinfo=UTC)
Rotate = Callable[[str], Awaitable[datetime | None]]
Prepare = Callable[[str], Awaitable[None]]


class RotationScheduler:
    """Calls `rotate(key)` when `key` is due; it answers the next due instant, if any, or raises to be tried again.

    `sweeps` says what that is in the log. A key is never rotated twice at once. What takes long beforehand and needs
    nothing of the others is `prepare`'s: who waits there takes no place among those at once. Belongs to one event loop.
    """

    def __init__(
        self,
        rotate: Rotate,
        clock: Clock,
        rng: random.Random,
        *,
        prepare: Prepare | None = None,
        at_once: int = 16,
        sweeps: bool = False,
    ) -> None:
        self._rotate = rotate
        self._sweeps = sweeps
        self._prepare = prepare
        self._clock = clock
        self._rng = rng
        self._slots = asyncio.Semaphore(at_once)
        self._due: dict[str, datetime] = {}
        # The same in turn, without those that run; what is not planned any more is passed over when its turn comes.
        self._turns: list[tuple[datetime, str]] = []
        # Until when `run` sleeps, if nothing is planned earlier.
        self._sleeps = _EVER
        self._failures: dict[str, int] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        # Who waits for the end of the attempt that begins next.
        self._asked: dict[str, list[asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        # How often `retry` was asked for.
        self._retried = 0

    def schedule(self, key: str, due: datetime) -> None:
        """Rotate `key` at `due` (aware), whatever was planned before."""
        self._due[key] = due
        if key not in self._running:
            self._plan(key, due)

    def hasten(self, key: str, due: datetime) -> None:
        """Rotate `key` at `due` (aware) unless it is planned earlier, or runs: then it says itself when it is due."""
        planned = self._due.get(key)
        if key not in self._running and (planned is None or due < planned):
            self.schedule(key, due)

    def retry(self) -> None:
        """Try again soon whatever failed: why it did may be over. Not all in one moment."""
        self._retried += 1
        for key in self._failures:
            self.hasten(key, self._clock.now() + self._soon())

    def due(self, key: str) -> datetime | None:
        """When `key` is due; None while it is being rotated or when it is unknown."""
        return self._due.get(key)

    def is_running(self, key: str) -> bool:
        """Whether `key` is being rotated, or waits for others that are."""
        return key in self._running

    async def rotate_now(self, key: str) -> None:
        """Rotate `key` and wait until that attempt has ended; `failures` says how. One that runs already is no answer.

        A key that is forgotten meanwhile ends it, too.
        """
        ended = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, []).append(ended)
        self.schedule(key, self._clock.now())
        await ended

    def failures(self, key: str) -> int:
        """How often in a row the rotation of `key` failed."""
        return self._failures.get(key, 0)

    async def forget(self, key: str) -> None:
        """Drop `key`; nothing of it runs when this returns."""
        self._due.pop(key, None)
        self._failures.pop(key, None)
        task = self._running.get(key)
        if task is not None:
            await end([task])
            self._due.pop(key, None)
        _answer(self._asked.pop(key, ()))

    async def run(self) -> None:
        """Rotate for ever."""
        loop = asyncio.get_running_loop()
        seen, seen_at = self._clock.now(), loop.time()
        async with asyncio.TaskGroup() as workers:
            try:
                while True:
                    self._changed.clear()
                    now, at = self._clock.now(), loop.time()
                    if self._due and now < seen + timedelta(seconds=at - seen_at) - SET_BACK:
                        _log.warning("the clock was set back; looking at every volume", extra={"now": now.isoformat()})
                        # What was planned by a clock that was ahead may come days too late by this one.
                        self._due = dict.fromkeys(self._due, now)
                        self._sort()
                    seen, seen_at = now, at
                    while (first := self._first()) is not None and first[0] <= now:
                        heapq.heappop(self._turns)
                        del self._due[first[1]]
                        self._start(workers, first[1])
                    await self._wait()
            finally:
                # The group would cancel each but once.
                await end(self._running.values())

    def _start(self, workers: asyncio.TaskGroup, key: str) -> None:
        task = workers.create_task(self._attempt(key), name=f"rotate {key}")
        self._running[key] = task
        asked = self._asked.pop(key, ())
        # Not a `finally` in the task: one cancelled before its first step never runs it.
        task.add_done_callback(lambda _: self._finished(key, asked))

    def _finished(self, key: str, asked: "Iterable[asyncio.Future[None]]") -> None:
        self._running.pop(key, None)
        due = self._due.get(key)
        if due is not None:
            self._plan(key, due)
        _answer(asked)

    def _plan(self, key: str, due: datetime) -> None:
        """Have its turn come: `run` wakes only where it would sleep longer, by this clock or since that was set."""
        heapq.heappush(self._turns, (due, key))
        if len(self._turns) > 2 * len(self._due) + _PASSED_OVER:
            self._sort()
        if due < self._sleeps or self._clock.now() >= self._sleeps:
            self._changed.set()

    def _sort(self) -> None:
        self._turns = [(due, key) for key, due in self._due.items() if key not in self._running]
        heapq.heapify(self._turns)

    def _first(self) -> tuple[datetime, str] | None:
        """Whose turn is next."""
        while self._turns:
            due, key = self._turns[0]
            if self._due.get(key) == due and key not in self._running:
                return self._turns[0]
            heapq.heappop(self._turns)
        return None

    async def _attempt(self, key: str) -> None:
        retried = self._retried
        try:
            if self._prepare is not None:
                await self._prepare(key)
            async with self._slots:
                due = await self._rotate(key)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            # One that began before `retry` was asked for may have failed for what is over.
            due = self._clock.now() + (self._delay(failures) if retried == self._retried else self._soon())
            _log.warning(
                "replaced files cannot be removed; trying again" if self._sweeps else "rotation failed; trying again",
                extra={"volume_id": key, "error": str(error), "failures": failures, "retry_at": due.isoformat()},
            )
        else:
            self._failures.pop(key, None)
        # A request that arrived meanwhile stands.
        if due is not None:
            self._due.setdefault(key, due)

    def _soon(self) -> timedelta:
        return RETRY_WITHIN * self._rng.random()

    def _delay(self, failures: int) -> timedelta:
        doublings: int = 2 ** min(failures - 1, 16)
        delay = min(FIRST_RETRY * doublings, MAX_RETRY)
        return delay * self._rng.uniform(0.75, 1.25)

    async def _wait(self) -> None:
        first, now, nap = self._first(), self._clock.now(), MAX_NAP
        if first is not None:
            nap = min(nap, max(0.0, (first[0] - now).total_seconds()))
        self._sleeps = now + timedelta(seconds=nap)
        try:
            async with asyncio.timeout(nap):
                await self._changed.wait()
        except TimeoutError:
            return


def _answer(asked: "Iterable[asyncio.Future[None]]") -> None:
    for each in asked:
        if not each.done():  # whoever asked may have gone
            each.set_result(None)
