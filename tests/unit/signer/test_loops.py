"""A loop of the signer that ends by itself ends the process, also while it starts."""

import asyncio

import pytest

from signer import loops


def test_what_is_done_beside_loops_ends_with_them() -> None:
    async def run() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async def ends() -> None:
            raise ValueError("a bug")

        tasks = {"leader election": asyncio.create_task(ends())}
        with pytest.raises(RuntimeError, match="the leader election loop ended"):
            await loops.beside(tasks, work())
        assert cancelled.is_set()

    asyncio.run(run())


def test_what_is_done_beside_loops_raises_what_it_raises_and_they_go_on() -> None:
    async def run() -> None:
        async def fails() -> None:
            raise KeyError("mine")

        async def nothing() -> None:
            return None

        tasks = {"one": asyncio.create_task(asyncio.Event().wait())}
        await loops.beside(tasks, nothing())  # type: ignore[arg-type]
        with pytest.raises(KeyError, match="mine"):
            await loops.beside(tasks, fails())  # type: ignore[arg-type]
        assert not tasks["one"].done()
        await loops.cancel(tasks)  # type: ignore[arg-type]

    asyncio.run(run())
