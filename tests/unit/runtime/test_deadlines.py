"""Many blocks have one timer, and each is late as asyncio.timeout would have it late."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import looptime
import pytest

from runtime.deadlines import Deadlines


def run(test: Coroutine[None, None, None]) -> None:
    loop = looptime.new_event_loop(start=0)
    loop.run_until_complete(test)
    loop.close()


def test_each_block_is_late_by_itself() -> None:
    async def test() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines(5.0)
        began, late = loop.time(), dict[float, float]()

        async def hang(begins: float) -> None:
            await asyncio.sleep(begins)
            with pytest.raises(TimeoutError), deadlines.one():
                await asyncio.sleep(100.0)
            late[begins] = loop.time() - began

        async def pass_by() -> None:
            with deadlines.one():
                await asyncio.sleep(4.0)

        await asyncio.gather(pass_by(), *(hang(each) for each in (0.0, 1.0, 4.5, 20.0)))
        assert late == {each: pytest.approx(each + 5.0) for each in (0.0, 1.0, 4.5, 20.0)}
        assert not deadlines._begun
        # One that began after all others had ended.
        await hang(0.5)

    run(test())


def test_who_waits_is_ended_at_once_where_others_say_so() -> None:
    async def test() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines(5.0)
        with pytest.raises(TimeoutError), deadlines.one() as deadline:
            loop.call_later(1.0, deadline.end)
            await asyncio.sleep(100.0)
        assert deadline.expired
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(test())


def test_whose_block_has_ended_is_ended_by_nobody() -> None:
    async def test() -> None:
        deadlines = Deadlines(5.0)
        with deadlines.one() as deadline:
            pass
        assert not deadlines._begun
        deadline.end()
        # Here it would be cancelled, and nothing would make a TimeoutError of it.
        await asyncio.sleep(1.0)
        assert not deadline.expired

    run(test())


def test_all_that_are_late_at_once_are_ended_and_the_next_is_in_time() -> None:
    async def test() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines(5.0)
        late = list[float]()

        async def hang(begins: float) -> None:
            await asyncio.sleep(begins)
            with pytest.raises(TimeoutError), deadlines.one():
                await asyncio.sleep(100.0)
            late.append(loop.time())

        began = loop.time()
        await asyncio.gather(*(hang(0.0) for _ in range(50)), *(hang(1.0) for _ in range(50)))
        assert late == [pytest.approx(began + 5.0)] * 50 + [pytest.approx(began + 6.0)] * 50
        assert not deadlines._begun

    run(test())


@pytest.mark.parametrize("error", [None, ValueError("own")])
def test_what_a_late_block_makes_of_it_is_left_as_it_is(error: Exception | None) -> None:
    async def test() -> None:
        deadlines, found = Deadlines(5.0), list[BaseException]()
        try:
            with deadlines.one() as deadline:
                try:
                    await asyncio.sleep(100.0)
                except asyncio.CancelledError:
                    if error is not None:
                        raise error from None
        except ValueError as own:
            found.append(own)
        assert (found, deadline.expired) == ([error] if error else [], True)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(test())


async def _cancelled(within: Callable[[], Awaitable[None]]) -> BaseException | None:
    task = asyncio.ensure_future(within())
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.exception()


def test_who_is_cancelled_is_not_late() -> None:
    async def test() -> None:
        deadlines = Deadlines(5.0)

        async def hang() -> None:
            with deadlines.one():
                await asyncio.sleep(100.0)

        async def both() -> None:
            with deadlines.one() as deadline:
                # Late and cancelled in one turn: whoever cancels it has to hear that it ended so.
                asyncio.get_running_loop().call_at(asyncio.get_running_loop().time() + 1.0, deadline.end)
                await asyncio.sleep(100.0)

        assert await _cancelled(hang) is None
        assert await _cancelled(both) is None
        assert not deadlines._begun

    run(test())


def test_its_own_error_is_left_as_it_is_and_it_may_be_inside_of_another() -> None:
    async def test() -> None:
        outer, inner = Deadlines(5.0), Deadlines(2.0)
        with pytest.raises(ValueError, match="own"), outer.one():
            raise ValueError("own")
        with outer.one():
            with pytest.raises(TimeoutError), inner.one():
                await asyncio.sleep(100.0)
            await asyncio.sleep(1.0)
        with pytest.raises(TimeoutError), outer.one(), Deadlines(50.0).one():
            await asyncio.sleep(100.0)

    run(test())
