"""Parts of the exposed process: its counts, its log and the tokens that it asks for, over a channel in this process."""

import asyncio
import base64
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from agent.channel import messages
from agent.channel.frames import Wire
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.exposed import tokens as tokens_module
from agent.exposed.counts import Counts
from agent.exposed.saying import MOST, Saying
from agent.exposed.tokens import Tokens
from tests.fake_authority import SPIFFE_ID, StepClock

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
        tokens = Tokens(exposed, StepClock())
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
        tokens.answered(messages.Token(asked[2].request, "late", 0.0))
        tokens.answered(messages.Token(99, "nobody's", 0.0))
        odd = asyncio.ensure_future(tokens.of(7).get(SPIFFE_ID, ("api",)))
        tokens.answered(messages.Token((await anext(said)).request, "no token", 0.0))
        with pytest.raises(AuthorityUnavailable, match="no JWT-SVID"):
            await odd

    over_a_channel(main)


class Asking:
    """Asks for JWT-SVIDs, and answers what reaches the agent."""

    def __init__(self, exposed: Wire[Any]) -> None:
        self.clock = StepClock()
        self.tokens = Tokens(exposed, self.clock)
        self.asked = 0
        self.of = {volume: self.tokens.of(volume) for volume in (7, 8)}
        self._until, self._size = 0.0, 0

    async def get(self, *audiences: str, volume: int = 7, kept: float = 60.0, size: int = 0) -> str:
        """The token. `kept`: for how many seconds it may be handed out again if the agent is asked now."""
        self._until = self.clock.now().timestamp() + kept if kept else 0.0
        self._size = size
        return (await self.of[volume].get(SPIFFE_ID, audiences)).svid.token

    async def answer(self, said: AsyncIterator[Any]) -> None:
        """Answer what is asked, for ever."""
        async for wanted in said:
            self.asked += 1
            self.tokens.answered(messages.Token(wanted.request, token(self.asked, self._size), self._until))


def token(number: int, size: int = 0) -> str:
    parts: list[dict[str, Any]] = [
        {"alg": "ES256", "kid": "k", "typ": "JWT"},
        {"sub": str(SPIFFE_ID), "aud": ["a"], "exp": 4_000_000_000, "n": number, "pad": "x" * size},
    ]
    return ".".join([*(b64(json.dumps(each).encode()) for each in parts), b64(b"signature")])


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def asking(main: Callable[[Asking], Awaitable[None]]) -> None:
    async def run(exposed: Wire[Any], said: AsyncIterator[Any]) -> None:
        at = Asking(exposed)
        answering = asyncio.ensure_future(at.answer(said))
        await main(at)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)

    over_a_channel(run)


def test_a_token_is_handed_out_again_for_as_long_as_the_agent_said_and_to_nobody_else() -> None:
    async def main(at: Asking) -> None:
        first = await at.get("a", "b")
        assert await at.get("b", "a", "b") == first
        assert at.asked == 1
        assert len({first, await at.get("a"), await at.get("a", "b", volume=8)}) == 3
        at.clock.at += timedelta(seconds=60)
        assert await at.get("a", "b") != first

    asking(main)


def test_a_token_that_may_not_be_handed_out_again_is_not_kept() -> None:
    async def main(at: Asking) -> None:
        assert await at.get("a", kept=0.0) != await at.get("a", kept=0.0)

    asking(main)


def test_what_is_to_be_forgotten_is_not_handed_out_again() -> None:
    async def main(at: Asking) -> None:
        first, others = await at.get("a"), await at.get("a", volume=8)
        at.tokens.forget(7)
        at.tokens.forget(99)
        assert await at.get("a") != first
        assert await at.get("a", volume=8) == others

    asking(main)


def test_an_answer_that_came_before_what_has_it_forgotten_is_not_kept() -> None:
    async def main(exposed: Wire[Any], said: AsyncIterator[Any]) -> None:
        tokens = Tokens(exposed, StepClock())
        getting = asyncio.ensure_future(tokens.of(7).get(SPIFFE_ID, ("a",)))
        wanted = await anext(said)
        # Both were read from the channel before whoever asked goes on.
        tokens.answered(messages.Token(wanted.request, token(1), 4e9))
        tokens.forget(7)
        assert (await getting).svid.token == token(1)
        again = asyncio.ensure_future(tokens.of(7).get(SPIFFE_ID, ("a",)))
        assert (await anext(said)).volume == 7
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    over_a_channel(main)


def test_what_is_kept_of_a_volume_is_bounded_in_number_and_size_and_gone_with_it(monkeypatch: Any) -> None:
    async def main(at: Asking) -> None:
        for number in range(4):
            await at.get(f"a{number}")
        assert at.asked == 4
        await at.get("a3")
        assert at.asked == 4
        await at.get("a0")
        assert at.asked == 5
        await at.get("long", size=2048)
        await at.get("long", size=2048)
        assert at.asked == 7
        at.tokens.closed(7)
        await at.get("a3")
        await at.get("a3")
        assert at.asked == 9

    monkeypatch.setattr(tokens_module, "KEPT", 3)
    asking(main)
