"""The cache of one workload's JWT-SVIDs: minted once, kept until drawn, kept through outages, bounded."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.authority.protocol import MintedJwt
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.workload.jwt_svids import KEPT, JwtSvids
from svid.jwtsvid import JwtSvid
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId

WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
API = SpiffeId.parse("spiffe://example.org/ns/default/sa/api")
TTL = timedelta(seconds=100)


class StepClock:
    def __init__(self) -> None:
        self.at = datetime(2026, 6, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


class CountingAuthority:
    """Mints tokens that are numbers, unless told to be away or to refuse; can be held up."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.calls: list[tuple[SpiffeId, tuple[str, ...]]] = []
        self.for_files: list[bool] = []
        self.error: Exception | None = None
        self.reusable = True
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def mint(self, spiffe_id: SpiffeId, audiences: tuple[str, ...], for_file: bool) -> MintedJwt:
        self.calls.append((spiffe_id, audiences))
        self.for_files.append(for_file)
        number = len(self.calls)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        now = self.clock.now()
        svid = JwtSvid(spiffe_id, audiences, now + TTL, now, f"token {number}", {})
        return MintedJwt(svid, RenewalWindow.of(now, now + TTL), self.reusable)


def case(main: Callable[[StepClock, CountingAuthority, JwtSvids], Awaitable[Any]]) -> None:
    async def run() -> None:
        clock = StepClock()
        authority = CountingAuthority(clock)
        svids = JwtSvids(authority.mint, clock, random.Random(7))
        try:
            await main(clock, authority, svids)
        finally:
            await svids.close()

    asyncio.run(run())


def test_one_token_for_the_same_audiences_in_any_order_until_the_drawn_instant() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        first = await svids.get(WEB, ["b", "a", "b"])
        assert authority.calls == [(WEB, ("a", "b"))]
        assert timedelta(seconds=40) <= first.renew_at - clock.at <= timedelta(seconds=50)
        clock.at = first.renew_at - timedelta(microseconds=1)
        assert (await svids.get(WEB, ["a", "b"])) is first
        assert (await svids.get(WEB, ["a"])) is not first
        assert (await svids.get(API, ["a", "b"])).svid.spiffe_id == API
        clock.at = first.renew_at
        assert (await svids.get(WEB, ["a", "b"])).svid.token == "token 4"

    case(main)


def test_callers_at_once_share_one_mint_and_one_that_leaves_takes_nothing_along() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        authority.go_on.clear()
        waiting = [asyncio.ensure_future(svids.get(WEB, ["a"])) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        authority.go_on.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert len(authority.calls) == 1
        assert len({each.svid.token for each in found[1:] if not isinstance(each, BaseException)}) == 1

    case(main)


def test_an_outage_keeps_what_is_valid_and_says_so_when_nothing_is() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        first = await svids.get(WEB, ["a"])
        authority.error = AuthorityUnavailable("away")
        clock.at = first.renew_at
        assert (await svids.get(WEB, ["a"])).svid is first.svid
        # Not each call asks again: an authority that does not answer would hold each of them up.
        assert (await svids.get(WEB, ["a"])).svid is first.svid
        assert len(authority.calls) == 2
        clock.at = first.svid.expires_at
        with pytest.raises(AuthorityUnavailable):
            await svids.get(WEB, ["a"])
        authority.error = None
        assert (await svids.get(WEB, ["a"])).svid.expires_at == clock.at + TTL

    case(main)


def test_a_refusal_is_no_outage() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        first = await svids.get(WEB, ["a"])
        authority.error = AuthorityRefused("no longer yours")
        clock.at = first.renew_at
        with pytest.raises(AuthorityRefused):
            await svids.get(WEB, ["a"])

    case(main)


def test_tokens_with_a_jti_are_handed_out_once() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        authority.reusable = False
        tokens = [(await svids.get(WEB, ["a"])).svid.token for _ in range(3)]
        assert len(set(tokens)) == 3

    case(main)


def test_ever_new_audiences_push_out_the_oldest_only() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        for number in range(KEPT):
            await svids.get(WEB, [f"a{number}"])
        await svids.get(WEB, ["a0"])  # used again, so a1 is the oldest now
        await svids.get(WEB, ["one more"])
        minted = len(authority.calls)
        await svids.get(WEB, ["a0"])
        assert len(authority.calls) == minted
        await svids.get(WEB, ["a1"])
        assert len(authority.calls) == minted + 1

    case(main)


def test_forgotten_tokens_are_minted_anew() -> None:
    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        await svids.get(WEB, ["a"])
        svids.forget()
        assert (await svids.get(WEB, ["a"])).svid.token == "token 2"

    case(main)


def test_one_for_a_file_does_not_wait_for_what_the_pod_asked_for() -> None:
    """What a pod asks for waits in that pod's line; who renews files would wait with it, and others' renewals."""

    async def main(clock: StepClock, authority: CountingAuthority, svids: JwtSvids) -> None:
        authority.go_on.clear()
        asked = asyncio.create_task(svids.get(WEB, ["a"]))
        files = [asyncio.create_task(svids.get(WEB, ["a"], for_file=True)) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        # One each: those for files wait for each other.
        assert authority.for_files == [False, True]
        authority.go_on.set()
        await asyncio.gather(asked, *files)
        # What came last is kept, for both.
        kept = await svids.get(WEB, ["a"])
        assert kept is await svids.get(WEB, ["a"], for_file=True)
        assert len(authority.calls) == 2

    case(main)
