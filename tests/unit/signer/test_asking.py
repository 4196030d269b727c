"""One question for several: each has the answer, or gives up alone."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from signer.attestation.asking import Asking


def test_who_gives_up_in_the_turn_of_the_answer_takes_it_from_nobody() -> None:
    async def test() -> None:
        asked = asyncio.Event()

        async def question() -> str:
            await asked.wait()
            # After the answer is there, and before it is told.
            asyncio.get_running_loop().call_soon(impatient.cancel)
            return "yes"

        asking = Asking(question(), lambda task: None)
        impatient, patient = (asyncio.ensure_future(asking.answer()) for _ in range(2))
        await asyncio.sleep(0)
        asked.set()
        assert await patient == "yes"
        with pytest.raises(asyncio.CancelledError):
            await impatient

    asyncio.run(test())


@pytest.mark.parametrize("fails", [False, True])
def test_all_have_the_answer_whatever_becomes_of_who_is_told(fails: bool) -> None:
    async def test() -> None:
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))

        async def question() -> str:
            if fails:
                raise ValueError("no")
            return "yes"

        def told(task: asyncio.Task[str]) -> None:
            raise RuntimeError("a bug")

        asking = Asking(question(), told)
        found = await asyncio.gather(*(asking.answer() for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in found] == ["no" if fails else "yes"] * 3
        assert [str(each) for each in errors] == ["a bug"]

    asyncio.run(test())


def test_who_gave_up_is_not_kept() -> None:
    async def test() -> None:
        never = asyncio.Event()
        ends: list[Callable[[], object]] = []
        asking = Asking(never.wait(), ends.append)  # type: ignore[arg-type]
        for _ in range(100):
            one = asyncio.ensure_future(asking.answer())
            await asyncio.sleep(0)
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await one
        assert not asking._waiting
        asking._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking.answer()
        assert len(ends) == 1

    asyncio.run(test())
