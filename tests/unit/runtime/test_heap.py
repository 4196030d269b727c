"""What is known for long is left out of collections, once it is known and not before."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime import heap


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    # What a signer left out that ran in this process before.
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class Cycle:
    def __init__(self) -> None:
        self.me = self


def cycles() -> int:
    return sum(isinstance(each, Cycle) for each in gc.get_objects())


def test_it_waits_for_all_that_is_to_be_known_and_goes_on_for_ever() -> None:
    async def run() -> None:
        pods, policies = asyncio.Event(), asyncio.Event()

        async def known(what: asyncio.Event) -> None:
            await what.wait()

        gc.collect()
        frozen = gc.get_freeze_count()
        settling = asyncio.create_task(heap.settle(lambda: known(pods), lambda: known(policies)))
        for each in (pods, policies):
            await asyncio.sleep(0)
            assert gc.get_freeze_count() == frozen
            each.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[::2] == (heap.YOUNGEST, heap.OLDEST_AFTER)
        assert not settling.done()
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)

    asyncio.run(run())


class Pauses:
    """As long as the test wants; `over` ends one."""

    def __init__(self) -> None:
        self._begun, self._over = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self._begun.set()
        await self._over.wait()
        self._over.clear()

    async def settled(self) -> None:
        await self._begun.wait()
        self._begun.clear()

    async def over(self) -> None:
        self._over.set()
        await self.settled()


@asynccontextmanager
async def settled(size: Callable[[], int] = lambda: 1, in_use: Callable[[], int] = lambda: 0) -> AsyncIterator[Pauses]:
    """What is there is left out, and it is the first pause."""
    pauses = Pauses()
    settling = asyncio.create_task(heap.settle(pause=pauses, size=size, in_use=in_use))
    await pauses.settled()
    try:
        yield pauses
    finally:
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)


def without_collector(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()


def left_out(what: object) -> bool:
    return not any(each is what for each in gc.get_objects())


def test_no_garbage_is_kept_with_it_and_new_garbage_goes() -> None:
    async def run() -> None:
        Cycle()
        async with settled() as pauses:
            gc.unfreeze()
            assert cycles() == 0
            gc.freeze()
            Cycle()
            assert cycles() == 1
            await pauses.over()
            gc.unfreeze()
            assert cycles() == 0

    without_collector(run)


def test_what_comes_later_is_left_out_after_a_pause() -> None:
    async def run() -> None:
        async with settled() as pauses:
            later = Cycle()
            assert not left_out(later)
            await pauses.over()
            assert left_out(later)

    without_collector(run)


def test_what_is_left_out_and_no_cycle_goes_at_once() -> None:
    async def run() -> None:
        kept = Cycle()
        async with settled():
            gone = weakref.ref(kept)
            del kept.me
            assert left_out(kept)
            del kept
            assert gone() is None

    without_collector(run)


@pytest.mark.parametrize(
    ("grown", "times", "goes"),
    [
        (heap.GROWN * 1.01, heap.AT_LEAST, True),
        (heap.GROWN * 0.99, heap.AT_LEAST, False),
        (heap.GROWN * 1.01, heap.AT_LEAST - 1, False),
        (heap.MUCH * 1.01, 1, True),
    ],
)
def test_what_is_garbage_only_after_it_was_left_out_goes_when_the_process_has_grown(
    grown: float, times: int, goes: bool
) -> None:
    megabytes = 1000

    async def run() -> None:
        nonlocal megabytes
        kept = Cycle()
        async with settled(lambda: megabytes) as pauses:
            gone = weakref.ref(kept)
            del kept
            megabytes = int(1000 * grown)
            for number in range(times):
                assert gone() is not None, number
                await pauses.over()
            assert (gone() is None) == goes

    without_collector(run)


def test_it_has_grown_since_it_was_looked_at_and_not_since_the_start() -> None:
    megabytes = 1000

    async def run() -> None:
        nonlocal megabytes
        async with settled(lambda: megabytes) as pauses:
            megabytes = 2000
            for _ in range(heap.AT_LEAST):
                await pauses.over()
            kept = Cycle()
            await pauses.over()
            gone = weakref.ref(kept)
            del kept
            for _ in range(heap.AT_LEAST + 1):
                await pauses.over()
            assert gone() is not None

    without_collector(run)


@pytest.mark.parametrize(("known", "goes"), [(0, True), (900, False), (400, True)])
def test_a_process_that_has_grown_by_what_is_in_use_is_not_looked_at_as_a_whole(known: int, goes: bool) -> None:
    """Agents that connect: a replica is as large with them, and all of them come at once."""
    megabytes, in_use = 1000, 50

    async def run() -> None:
        nonlocal megabytes, in_use
        kept = Cycle()
        async with settled(lambda: megabytes, lambda: in_use) as pauses:
            gone = weakref.ref(kept)
            del kept
            megabytes, in_use = 2000, 50 + known
            await pauses.over()
            assert (gone() is None) == goes
            # Who leaves takes it away again.
            megabytes, in_use = 1050, 50
            before = gone()
            for _ in range(heap.AT_LEAST - 1):
                await pauses.over()
            assert gone() is before

    without_collector(run)


def test_a_process_whose_size_cannot_be_told_goes_on() -> None:
    async def run() -> None:
        def size() -> int:
            raise OSError("no descriptor is left")

        async with settled(size) as pauses:
            later = Cycle()
            await pauses.over()
            assert left_out(later)

    without_collector(run)
