"""Clocks of signer and node that differ: an SVID that is not good here yet is waited for, and nothing is final."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import looptime
import pytest

from agent.authority.protocol import JwtRequest, Minted, MintedJwt, MintRequest
from agent.authority.signer import _behind
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload import clocks
from agent.workload.issuer import Issuer
from csi.model import PodRef, PodToken, Volume
from runtime.blocking import Blocking
from svid.authority import BACKDATE
from svid.identity import Trust
from tests.fake_authority import HOUR, SPIFFE_ID, FakeAuthority, StepClock, bundle_of, root
from tests.unit.agent.signer_scene import Scene as SignerScene
from tests.unit.agent.signer_scene import on_stage as with_a_signer
from tests.workload_rig import slow_work

TOKEN = PodToken("the pod's token")
POD = PodRef("default", "web-1", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111", "web")
VOLUME = Volume("csi-1", "/target", ("below",), POD, None)
SECOND = timedelta(seconds=1)


class LoopClock(StepClock):
    """Runs with the event loop's own time."""

    def now(self) -> Any:
        return super().now() + timedelta(seconds=asyncio.get_running_loop().time())


class Scene:
    """An issuer, and an authority whose clock is `ahead` of its own; `backdate` is how far its SVIDs begin before."""

    def __init__(self, executor: ThreadPoolExecutor, ahead: timedelta, backdate: timedelta, ttl: timedelta) -> None:
        self.clock = LoopClock()
        self.authority = FakeAuthority(self.clock)
        self.ahead, self.backdate, self.ttl, self.signing = ahead, backdate, ttl, self.authority.x509
        self.authority.bend, self.authority.bend_jwt = self._x509, self._jwt
        self.issuer = Issuer(self.authority, slow_work(Blocking(executor)), self.clock, random.Random(1), Metrics())

    def _x509(self, asked: MintRequest, minted: Minted) -> Minted:
        at = self.clock.now() + self.ahead
        chain = self.signing.issue(asked.public_key, SPIFFE_ID, ttl=self.ttl, now=at, backdate=self.backdate)
        return replace(minted, chain=chain, signed_at=at)

    def _jwt(self, asked: JwtRequest, minted: MintedJwt) -> MintedJwt:
        at = self.clock.now() + self.ahead
        svid = self.authority.jwt_key.issue(asked.spiffe_id, asked.audiences, ttl=self.ttl, now=at)
        return replace(minted, svid=svid)

    async def mint(self) -> float:
        """Seconds until it is there and verifies."""
        loop = asyncio.get_running_loop()
        key = await self.issuer.key(VOLUME, renewal=False)
        began = loop.time()
        issued = await self.issuer.mint_x509(VOLUME, TOKEN, key)
        issued.identity.check(self.clock.now())
        return loop.time() - began


def on_stage(
    play: Callable[[Scene], Awaitable[Any]], ahead: float, backdate: timedelta = BACKDATE, ttl: timedelta = HOUR
) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await play(Scene(executor, timedelta(seconds=ahead), backdate, ttl))

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.parametrize("ahead", [-120, -60, -15, 0, 15, 60, 120])
def test_two_minutes_either_way_cost_nothing(ahead: float) -> None:
    async def play(at: Scene) -> None:
        assert await at.mint() == 0

    on_stage(play, ahead)


@pytest.mark.parametrize(("ahead", "backdate", "waited"), [(15, 10, 5), (60, 10, 50), (120, 60, 60), (175, 120, 55)])
def test_an_svid_that_is_about_to_be_valid_is_waited_for(ahead: float, backdate: float, waited: float) -> None:
    async def play(at: Scene) -> None:
        assert waited <= await at.mint() <= waited + 2

    on_stage(play, ahead, timedelta(seconds=backdate))


def test_one_that_will_not_be_soon_is_no_final_refusal_and_both_times_are_told() -> None:
    async def play(at: Scene) -> None:
        with pytest.raises(AuthorityUnavailable) as found:
            await at.mint()
        assert asyncio.get_running_loop().time() == 0, "it waited for nothing"
        text = str(found.value)
        assert text.startswith("CLOCKS_DIFFER: the SVID is not valid before 2026-06-01T12:05:00Z;")
        assert "this node's clock says 2026-06-01T12:00:00Z" in text
        assert "the authority's said 2026-06-01T12:05:10Z: 310 s ahead" in text
        # Once a clock was set it is as if nothing had been.
        at.ahead = timedelta(0)
        assert await at.mint() == 0

    on_stage(play, 310, timedelta(seconds=10))


def test_an_svid_that_ended_by_this_nodes_clock_alone_is_no_final_refusal() -> None:
    async def play(at: Scene) -> None:
        with pytest.raises(AuthorityUnavailable, match=r"CLOCKS_DIFFER: the SVID ended at .*: 90 s behind"):
            await at.mint()

    on_stage(play, -90, ttl=timedelta(minutes=1))


def test_a_jwt_svid_that_ended_by_this_nodes_clock_alone_is_no_final_refusal() -> None:
    async def play(at: Scene) -> None:
        with pytest.raises(AuthorityUnavailable, match=r"CLOCKS_DIFFER: the JWT-SVID ended at .*: 90 s behind"):
            await at.issuer.mint_jwt(VOLUME, TOKEN, SPIFFE_ID, ("api",), for_file=True)

    on_stage(play, -90, ttl=timedelta(minutes=1))


def test_a_clock_that_is_set_while_it_is_waited_for_ends_the_waiting() -> None:
    async def play(at: Scene) -> None:
        minting = asyncio.ensure_future(at.mint())
        await asyncio.sleep(10)
        at.clock.wrong = timedelta(seconds=60)
        assert await minting <= 12

    on_stage(play, 60, timedelta(seconds=10))


def test_a_clock_that_is_set_back_meanwhile_does_not_make_it_wait_for_ever() -> None:
    async def play(at: Scene) -> None:
        minting = asyncio.ensure_future(at.mint())
        await asyncio.sleep(30)
        at.clock.wrong = timedelta(seconds=-15)
        with pytest.raises(AuthorityUnavailable, match="CLOCKS_DIFFER"):
            await minting
        assert asyncio.get_running_loop().time() <= clocks.PATIENCE.total_seconds() + 1

    on_stage(play, 60, timedelta(seconds=10))


def test_what_time_does_not_mend_is_refused_at_once() -> None:
    """It begins later, and leads nowhere then either."""

    async def play(at: Scene) -> None:
        bend = at.authority.bend
        stranger = Trust(bundle_of(root(at.clock.now())))
        at.authority.bend = lambda asked, minted: replace(bend(asked, minted), trust=stranger)
        with pytest.raises(AuthorityRefused, match="unusable SVID"):
            await at.mint()
        assert asyncio.get_running_loop().time() == 0

    on_stage(play, 60, timedelta(seconds=10))


def test_an_authority_that_begins_later_is_waited_for_with_what_it_signed() -> None:
    async def play(at: Scene) -> None:
        at.signing = young = root(at.clock.now() + timedelta(days=10, minutes=10, seconds=20))
        at.authority.trust.publish(Trust(bundle_of(young, at.authority.jwt_key)))
        assert 20 <= await at.mint() <= 22

    on_stage(play, 60)


@pytest.mark.parametrize(
    ("signed", "ahead"),
    [(-5, -5), (-0.5, -0.5), (0, 0), (1, 0), (2, 0), (2.5, 0.5), (62, 60)],
)
def test_what_lies_between_asking_and_the_answer_is_no_difference(signed: float, ahead: float) -> None:
    asked = StepClock().at
    assert _behind(asked + signed * SECOND, asked, asked + 2 * SECOND) == ahead * SECOND


@pytest.mark.parametrize("skew", [-60, 60])
def test_the_difference_is_measured_at_each_mint(tmp_path: Path, skew: float) -> None:
    async def play(at: SignerScene) -> None:
        assert at.authority.clock_behind == timedelta(0)
        at.signer.mint.skew = skew * SECOND
        minted = await at.authority.mint_x509(at.request())
        assert minted.signed_at is not None
        assert abs(at.authority.clock_behind - skew * SECOND) < 30 * SECOND
        at.signer.mint.skew = timedelta(0)
        await at.authority.mint_x509(at.request())
        assert abs(at.authority.clock_behind) < SECOND

    with_a_signer(tmp_path, play)
