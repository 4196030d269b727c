"""A feed tells everybody who waits, misses nobody, and hands out the newest value only."""

import asyncio

from runtime.feed import AT_ONCE, Feed


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_everybody_who_waits_is_woken_and_whoever_has_the_newest_waits() -> None:
    async def main() -> None:
        feed: Feed[str] = Feed()
        assert (feed.current, feed.version) == (None, 0)
        waiting = [asyncio.create_task(feed.wait_beyond(0)) for _ in range(3)]
        ahead = asyncio.create_task(feed.wait_beyond(1))
        await settle()
        assert not any(each.done() for each in waiting)
        feed.publish("a")
        await settle()
        assert [each.result() for each in waiting] == [1, 1, 1]
        assert not ahead.done()
        feed.publish("b")
        await settle()
        assert ahead.result() == 2
        assert (feed.current, feed.version) == ("b", 2)

    asyncio.run(main())


def test_what_was_published_before_is_there_at_once_and_the_same_again_is_a_change() -> None:
    async def main() -> None:
        feed: Feed[str] = Feed()
        feed.publish("a")
        feed.publish("a")
        assert await asyncio.wait_for(feed.wait_beyond(0), 30) == 2
        assert await asyncio.wait_for(feed.wait_beyond(1), 30) == 2

    asyncio.run(main())


def test_one_who_stops_waiting_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        feed: Feed[str] = Feed()
        leaves, stays = (asyncio.create_task(feed.wait_beyond(0)) for _ in range(2))
        await settle()
        leaves.cancel()
        await settle()
        assert leaves.cancelled()
        feed.publish("a")
        assert await asyncio.wait_for(stays, 30) == 1

    asyncio.run(main())


def test_thousands_are_woken_in_turns_that_leave_others_theirs() -> None:
    async def main() -> None:
        feed: Feed[str] = Feed()
        waiting = [asyncio.create_task(feed.wait_beyond(0)) for _ in range(10 * AT_ONCE)]
        await settle()
        feed.publish("a")
        woken = []
        while not all(each.done() for each in waiting):
            await asyncio.sleep(0)
            woken.append(sum(each.done() for each in waiting))
        steps = [after - before for before, after in zip([0, *woken], woken, strict=False)]
        assert max(steps) <= AT_ONCE
        assert sum(steps) == len(waiting)
        # What is published meanwhile is seen by all, once.
        waiting = [asyncio.create_task(feed.wait_beyond(1)) for _ in range(3 * AT_ONCE)]
        await settle()
        feed.publish("b")
        feed.publish("c")
        assert set(await asyncio.wait_for(asyncio.gather(*waiting), 30)) <= {2, 3}
        assert not feed._waiting

    asyncio.run(main())
