"""How fast proxies' calls come to be signed: by nodes in turn, and nobody who left is waited for."""

import asyncio
from collections.abc import Awaitable, Callable

import looptime

from signer.front.pace import Pace


def run(test: Callable[[], Awaitable[None]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(test())
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_so_many_go_on_at_once_and_the_others_a_second() -> None:
    async def test() -> None:
        pace, begun = Pace(10.0, 5.0, now), now()
        at: list[float] = []

        async def one() -> None:
            await pace.turn("node")
            at.append(now() - begun)

        await asyncio.gather(*(one() for _ in range(25)))
        assert at[:5] == [0.0] * 5
        assert 1.9 <= at[-1] <= 2.2

    run(test)


def test_a_node_that_asks_for_very_much_waits_for_itself() -> None:
    async def test() -> None:
        pace, begun = Pace(10.0, 1.0, now), now()
        await pace.turn("many")
        waiting = [asyncio.ensure_future(pace.turn("many")) for _ in range(50)]
        await asyncio.sleep(0)
        await pace.turn("one")
        assert now() - begun < 0.35
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(test)


def test_who_left_is_not_waited_for() -> None:
    async def test() -> None:
        pace = Pace(10.0, 1.0, now)
        await pace.turn("a")
        left = [asyncio.ensure_future(pace.turn("a")) for _ in range(50)]
        await asyncio.sleep(0)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        begun = now()
        await pace.turn("a")
        assert now() - begun < 0.3
        assert not pace._lines

    run(test)


def test_a_node_that_comes_after_with_very_much_keeps_nobody_waiting() -> None:
    async def test() -> None:
        pace, begun = Pace(10.0, 1.0, now), now()
        await pace.turn("one")
        first = asyncio.ensure_future(pace.turn("one"))
        second = asyncio.ensure_future(pace.turn("one"))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(pace.turn("many")) for _ in range(50)]
        await asyncio.gather(first, second)
        assert now() - begun < 0.5
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(test)
