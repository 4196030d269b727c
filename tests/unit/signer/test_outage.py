"""When the API server is taken to be away: by tokens of several nodes, and never by one that somebody brought."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from signer.attestation.outage import MAX_REMEMBERED, NOBODY_CAME, PAUSE, SEVERAL, TRIAL, Outage
from signer.attestation.tokens import REVIEWS, TokenRefused
from signer.cluster.kube import Object
from signer.errors import ApiUnavailable, Reason, Refused
from signer.model import Sender, Standing
from tests.signer_rig import StepClock
from tests.unit.signer.test_attestation import Rig, rigged

SLOW = "slow.slow.slow"
MOMENT = 0.001


class Reviews:
    """What the API server is asked; tokens in `hang` get no answer, and all of them while it is `away`."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.asked: list[str] = []
        self.hang = {SLOW}
        self.away = False
        self._review, rig.site.kube.hooks[REVIEWS] = rig.site.kube.hooks[REVIEWS], self._answer

    def _answer(self, body: Object) -> Object:
        token = body["spec"]["token"]
        self.asked.append(token)
        if self.away or token in self.hang:
            raise ApiUnavailable("no answer")
        return self._review(body)

    def agent(self, number: int) -> str:
        """A token of the agent of that node, by the cluster's key."""
        token = self.rig.site.agent(f"node-{number}")
        signed = self.rig.signed(token)
        self.rig.site.known(token, signed)
        return signed

    async def fails(self, token: str, sender: Sender | None = None) -> bool:
        """Verify it in vain; whether the API server was asked."""
        before = len(self.asked)
        with pytest.raises(ApiUnavailable):
            await self.rig.reviews.verify(token, *[sender] if sender else [])
        return len(self.asked) > before

    async def lose(self) -> None:
        """As many nodes' tokens get no answer as it takes."""
        self.away = True
        for number in range(SEVERAL):
            assert await self.fails(self.agent(number))


def reviewed(test: Callable[[Rig, Reviews], Awaitable[None]]) -> None:
    async def run(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        await test(rig, Reviews(rig))

    rigged(run)


def test_whose_token_is_not_answered_waits_alone() -> None:
    """A webhook that verifies others' tokens may be slow, and anybody may send what only it can judge."""

    async def test(rig: Rig, reviews: Reviews) -> None:
        stranger = Sender(Standing.STRANGER, "1.2.3.4")
        claim = rig.site.pod("web", node="node-2")
        for number in range(20):
            reviews.hang.add(f"slow.slow.{number}")
            assert await reviews.fails(f"slow.slow.{number}", stranger)
            assert (await rig.reviews.verify(reviews.agent(1), stranger)).node_name == "node-1"
            agent = await rig.attestor.agent(reviews.agent(2))
            attested = await rig.attestor.pod(agent, rig.site.token(claim, node="node-2"), claim)
            assert not attested.degraded

    reviewed(test)


def test_nor_is_one_asked_about_again_at_once() -> None:
    async def test(rig: Rig, reviews: Reviews) -> None:
        assert await reviews.fails(SLOW)
        rig.site.clock.pass_by(seconds=PAUSE - MOMENT)
        assert not await reviews.fails(SLOW)
        rig.site.clock.pass_by(seconds=MOMENT)
        assert await reviews.fails(SLOW)

    reviewed(test)


def test_one_node_speaks_for_itself_only() -> None:
    """However many of its tokens get no answer; its agent's calls are told at once meanwhile."""

    async def test(rig: Rig, reviews: Reviews) -> None:
        tokens = [reviews.agent(1) for _ in range(SEVERAL + 1)]
        reviews.hang.update(tokens)
        for each in tokens:
            assert await reviews.fails(each)
        assert not await reviews.fails(reviews.agent(1), Sender(Standing.AGENT, "uid-node-1"))
        # A stranger of that name, or whom nobody knows, is not the node.
        for other in (Sender(Standing.STRANGER, "uid-node-1"), Sender(Standing.AGENT, "uid-node-2")):
            assert (await rig.reviews.verify(reviews.agent(1), other)).node_name == "node-1"
        assert (await rig.reviews.verify(reviews.agent(2))).node_name == "node-2"

    reviewed(test)


def test_a_signature_that_is_not_the_clusters_counts_for_no_node() -> None:
    async def test(rig: Rig, reviews: Reviews) -> None:
        tokens = [rig.site.agent(f"node-{number}") for number in range(SEVERAL)]
        reviews.hang.update(tokens)
        for each in tokens:
            assert await reviews.fails(each)
        assert (await rig.reviews.verify(reviews.agent(0))).node_name == "node-0"

    reviewed(test)


def test_several_nodes_make_an_outage_in_which_one_finds_out_and_the_others_do_not_wait() -> None:
    async def test(rig: Rig, reviews: Reviews) -> None:
        await reviews.lose()
        assert not await reviews.fails(reviews.agent(9))
        rig.site.clock.pass_by(seconds=PAUSE - MOMENT)
        assert not await reviews.fails(reviews.agent(9))
        rig.site.clock.pass_by(seconds=MOMENT)
        # What nobody signed finds out nothing.
        assert not await reviews.fails(SLOW)
        assert await reviews.fails(reviews.agent(9))
        assert not await reviews.fails(reviews.agent(8))
        rig.site.clock.pass_by(seconds=PAUSE)
        reviews.away = False
        assert (await rig.reviews.verify(reviews.agent(9))).node_name == "node-9"
        assert (await rig.reviews.verify(rig.site.agent("node-8"))).node_name == "node-8"

    reviewed(test)


def test_others_do_not_wait_for_whom_finds_out() -> None:
    async def test(rig: Rig, reviews: Reviews) -> None:
        await reviews.lose()
        rig.site.clock.pass_by(seconds=PAUSE)
        create, answer = rig.site.kube.create, asyncio.Event()

        async def hanging(path: str, body: Object) -> Object:
            await answer.wait()
            return await create(path, body)

        rig.site.kube.create = hanging  # type: ignore[method-assign]
        finding = asyncio.create_task(rig.reviews.verify(reviews.agent(9)))
        await asyncio.sleep(0)
        rig.site.clock.pass_by(seconds=TRIAL - MOMENT)
        assert not await reviews.fails(reviews.agent(8))
        reviews.away = False
        answer.set()
        assert (await finding).node_name == "node-9"
        assert (await rig.reviews.verify(reviews.agent(8))).node_name == "node-8"

    reviewed(test)


@pytest.mark.parametrize("how", ["good", "bad"])
def test_an_answer_to_anybody_says_that_it_is_there(how: str) -> None:
    async def test(rig: Rig, reviews: Reviews) -> None:
        failing = [reviews.agent(number) for number in range(SEVERAL)]
        reviews.hang.update(failing)
        for each in failing:
            assert await reviews.fails(each)
            if each is failing[0]:
                if how == "good":
                    await rig.reviews.verify(reviews.agent(8))
                else:
                    with pytest.raises(TokenRefused):
                        await rig.reviews.verify("bad.bad.bad")
        assert (await rig.reviews.verify(reviews.agent(9))).node_name == "node-9"

    reviewed(test)


def test_where_no_token_of_a_known_key_comes_another_one_finds_out() -> None:
    """The cluster may have changed its key in the outage."""

    async def test(rig: Rig, reviews: Reviews) -> None:
        await reviews.lose()
        reviews.away = False
        rig.site.clock.pass_by(seconds=PAUSE + NOBODY_CAME - MOMENT)
        unknown = rig.site.agent("node-8")
        assert not await reviews.fails(unknown)
        rig.site.clock.pass_by(seconds=MOMENT)
        assert (await rig.reviews.verify(unknown)).node_name == "node-8"

    reviewed(test)


def test_what_a_stranger_made_up_begins_no_outage_of_which_the_end_is_counted() -> None:
    async def test(rig: Rig, reviews: Reviews) -> None:
        with pytest.raises(Refused):
            await rig.attestor.agent(SLOW)
        rig.site.clock.pass_by(minutes=11)
        reviews.away = True
        # The API server tells of pods still, so it is away only now.
        rig.pods._mirror.heard_at = rig.site.clock.monotonic()
        assert (await rig.attestor.agent(reviews.agent(1))).node_name == "node-1"
        rig.site.clock.pass_by(minutes=11)
        rig.pods._mirror.heard_at = rig.site.clock.monotonic()
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(reviews.agent(1))
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE

    reviewed(test)


def test_a_clock_that_was_set_back_keeps_nobody_out() -> None:
    clock = StepClock()
    outage = Outage(clock)
    for number in range(SEVERAL):
        outage.unanswered(b"%d" % number, f"node-{number}")
    assert outage.leaves(b"other", "", lambda: True)
    clock.set_by(hours=-1)
    clock.pass_by(seconds=PAUSE)
    assert not outage.leaves(b"0", "node-0", lambda: True)


def test_what_is_remembered_has_a_bound() -> None:
    outage = Outage(StepClock())
    for number in range(MAX_REMEMBERED + 5):
        outage.unanswered(b"%d" % number, f"node-{number}")
        outage._away = None
    assert len(outage._tokens) == len(outage._nodes) == MAX_REMEMBERED
    assert len(outage._silent_to) == SEVERAL
    assert not outage.leaves(b"0", "", lambda: True)
    assert outage.leaves(b"%d" % (MAX_REMEMBERED + 4), "", lambda: True)
