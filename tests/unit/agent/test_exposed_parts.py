"""Parts of the exposed process: its counts, its log and the tokens that it asks for, over a channel in this process."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agent.channel import messages
from agent.channel.frames import Wire
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.exposed.counts import Counts
from agent.exposed.saying import MOST, Saying
from agent.exposed.tokens import Tokens
from tests.fake_authority import SPIFFE_ID

METHOD = messages.METHODS[0]


def over_a_channel(main: Callable[[Wire[Any], AsyncIterator[Any]], Awaitable[None]]) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        exposed: Wire[Any] = Wire(ours, messages.orders(), messages.MAX_SNAPSHOT)
        agent: Wire[Any] = Wire(theirs, messages.reports(), messages.MAX_REPORT)
        said = agent.received()
        try:
            async with asyncio.timeout(20):
                await main(exposed, said)
        finally:
            await said.aclose()
            exposed.close()
            agent.close()

    asyncio.run(run())


def test_counts_are_sums_and_many_changes_are_one_report() -> None:
    async def main(exposed: Wire[Any], said: AsyncIterator[Any]) -> None:
        counts = Counts()
        running = asyncio.ensure_future(counts.run(exposed))
        for _ in range(3):
            counts.call_started(METHOD)
        counts.call_ended(METHOD)
        counts.call_refused("open calls")
        counts.sds_pushed()
        counts.sds_rejected()
        assert await anext(said) == messages.Counted({METHOD: 3}, {METHOD: 2}, {"open calls": 1}, 1, 1)
        counts.call_started(METHOD)
        assert (await anext(said)).calls == {METHOD: 4}
        running.cancel()

    over_a_channel(main)


def test_lines_of_the_log_fit_their_bounds_whatever_they_hold() -> None:
    async def main(exposed: Wire[Any], said: AsyncIterator[Any]) -> None:
        saying = Saying(exposed)
        log = logging.Logger("podsvid." + "x" * 200)
        log.addHandler(saying)
        running = asyncio.ensure_future(saying.run())
        fields = {f"field{number}": "y" * 20_000 for number in range(20)}
        log.warning("e" * 1000, extra=fields)
        line = await anext(said)
        assert (line.level, len(line.event), len(line.fields)) == (logging.WARNING, 512, 16)
        try:
            raise ValueError("what it was")
        except ValueError:
            log.exception("failed")
        assert "ValueError: what it was" in (await anext(said)).fields["traceback"]
        running.cancel()

    over_a_channel(main)


def test_lines_that_nobody_takes_are_counted_and_not_kept() -> None:
    async def main(exposed: Wire[Any], said: AsyncIterator[Any]) -> None:
        saying = Saying(exposed)
        log = logging.Logger("podsvid.sds")
        log.addHandler(saying)
        for number in range(MOST + 7):
            log.info(str(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running = asyncio.ensure_future(saying.run())
        assert (await anext(said)).event == "0"
        assert (await anext(said)).fields == {"lines": "7"}
        running.cancel()

    over_a_channel(main)


def test_an_answer_reaches_who_asked_and_late_ones_nobody() -> None:
    async def main(exposed: Wire[Any], said: AsyncIterator[Any]) -> None:
        tokens = Tokens(exposed)
        first, second, third = (asyncio.ensure_future(tokens.of(each).get(SPIFFE_ID, ("api",))) for each in (7, 8, 9))
        asked = [await anext(said) for _ in range(3)]
        assert [(each.volume, each.spiffe_id, each.audiences) for each in asked] == [
            (volume, str(SPIFFE_ID), ("api",)) for volume in (7, 8, 9)
        ]
        tokens.answered(messages.NoToken(asked[1].request, True, "POD_GONE"))
        with pytest.raises(AuthorityRefused, match="POD_GONE"):
            await second
        tokens.answered(messages.NoToken(asked[0].request, False, "later"))
        with pytest.raises(AuthorityUnavailable, match="later"):
            await first
        third.cancel()
        await asyncio.gather(third, return_exceptions=True)
        tokens.answered(messages.Token(asked[2].request, "late"))
        tokens.answered(messages.Token(99, "nobody's"))
        odd = asyncio.ensure_future(tokens.of(7).get(SPIFFE_ID, ("api",)))
        tokens.answered(messages.Token((await anext(said)).request, "no token"))
        with pytest.raises(AuthorityUnavailable, match="no JWT-SVID"):
            await odd

    over_a_channel(main)
