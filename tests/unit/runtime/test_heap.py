"""What is known for long is left out of collections, once it is known and not before."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from runtime import heap


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
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
        assert gc.get_threshold()[2] == heap.OLDEST_AFTER
        assert not settling.done()
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)

    asyncio.run(run())


def test_no_garbage_is_kept_with_it_and_new_garbage_goes() -> None:
    async def run() -> None:
        Cycle()
        settling = asyncio.create_task(heap.settle())
        await asyncio.sleep(0)
        gc.unfreeze()
        assert cycles() == 0
        gc.freeze()
        Cycle()
        assert cycles() == 1
        gc.collect()
        assert cycles() == 0
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
