"""A blocking call is never left behind: whoever is cancelled waits until nothing of it runs."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.blocking import Blocking


def test_a_call_runs_on_a_thread_of_the_executor_and_its_error_arrives() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        with ThreadPoolExecutor(1, "blocking") as executor:
            blocking = Blocking(executor)
            assert (await blocking(lambda: threading.current_thread().name)).startswith("blocking")
            with pytest.raises(OSError, match="No space"):
                await blocking(fail)

    asyncio.run(main())


def test_a_caller_that_is_cancelled_returns_when_its_call_has_ended_and_not_before() -> None:
    began, go_on, steps = threading.Event(), threading.Event(), []

    def call() -> None:
        began.set()
        assert go_on.wait(30)
        steps.append("the call ended")

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            caller = asyncio.create_task(Blocking(executor)(call))
            await asyncio.get_running_loop().run_in_executor(None, began.wait)
            for _ in range(3):
                # A stop cancels again whatever goes on.
                caller.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not caller.done(), "what the call writes into could be closed under it"
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert steps == ["the call ended"]

    asyncio.run(main())


def test_a_call_that_had_not_begun_is_waited_for_too() -> None:
    go_on, ran = threading.Event(), threading.Event()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            blocking = Blocking(executor)
            first = asyncio.create_task(blocking(lambda: go_on.wait(30)))
            second = asyncio.create_task(blocking(ran.set))
            for _ in range(10):
                await asyncio.sleep(0)
            second.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not second.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert ran.is_set()
            assert await first

    asyncio.run(main())
