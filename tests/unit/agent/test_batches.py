"""What is renewed together is asked for together: each has its own answer, once, or its own error."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import looptime
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.authority import batches, calls, connection
from agent.authority.batches import Alone, Batches, Way
from agent.authority.endings import Failed
from agent.authority.protocol import Minted, MintRequest
from agent.errors import AuthorityDenied, AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload.issuer import Issuer
from csi.model import PodRef, Volume
from runtime.blocking import Blocking
from signer.pb import signer_pb2
from tests.fake_signer import Refusal
from tests.unit.agent.signer_scene import AGENT_TOKEN, POD_TOKEN, Scene, on_stage
from tests.workload_rig import slow_work

DENIED = Refusal(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "look there")
BUSY = Refusal(grpc.StatusCode.UNAVAILABLE, "BUSY", "its fill of batches", timedelta(seconds=1))
GONE = Refusal(grpc.StatusCode.UNAVAILABLE, message="the connection broke")


@pytest.fixture
def old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections may have batches from the first moment on."""
    monkeypatch.setattr(connection, "YOUNG_SECONDS", 0.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is waited for as long as it takes."""
    monkeypatch.setattr(batches, "QUIET", 30.0)
    monkeypatch.setattr(batches, "WHOLE", 60.0)


def renewals(at: Scene, count: int, first: int = 0) -> list[MintRequest]:
    pods = [PodRef("default", f"web-{number}", f"uid-{number}", "web") for number in range(first, first + count)]
    return [replace(at.request(), pod=each, renewal=True) for each in pods]


async def minted(at: Scene, *requests: MintRequest) -> list[Minted | BaseException]:
    return await asyncio.gather(*map(at.authority.mint_x509, requests), return_exceptions=True)


def names(at: Scene) -> list[str]:
    return sorted(each.pod.name for each in at.signer.mints)


@pytest.mark.usefixtures("old_enough")
def test_what_is_renewed_at_once_is_one_call_and_each_has_its_own_svid(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        wanted = renewals(at, 20)
        found = await minted(at, *wanted)
        assert at.signer.batches == [20]
        for request, each in zip(wanted, found, strict=True):
            assert isinstance(each, Minted)
            assert each.chain[0].public_key() == request.public_key
        assert {each.pod_token for each in at.signer.mints} == {POD_TOKEN}
        # One word of the agent for all of them.
        assert at.signer.bearers.count(f"Bearer {AGENT_TOKEN}") == len(at.signer.bearers)
        assert at.authority.waiting == 0

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_a_publish_waits_for_nobody_and_a_renewal_that_is_alone_is_a_call_of_its_own(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        publishes = [replace(each, renewal=False) for each in renewals(at, 6)]
        assert all(isinstance(each, Minted) for each in await minted(at, *publishes))
        assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 1)))
        assert at.signer.batches == []
        assert len(at.signer.mints) == 7

    on_stage(tmp_path, play)


def test_a_young_connection_has_no_batch(tmp_path: Path) -> None:
    """The signer takes little at once from it; so many single calls come through all the same."""

    async def play(at: Scene) -> None:
        assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 20)))
        assert (at.signer.batches, len(at.signer.mints)) == ([], 20)
        with pytest.MonkeyPatch.context() as patch:
            age = asyncio.get_running_loop().time() - at.authority.connection._signer.proven_at
            patch.setattr(connection, "YOUNG_SECONDS", age / 2)
            await minted(at, *renewals(at, 2))
            assert at.signer.batches == [2]
            # Nor has one that is not there.
            assert at.authority.connection.takes_batches
            await at.signer.stop()
            await at.until(lambda: not at.authority.connection.takes_batches)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_a_signer_that_knows_no_batches_is_asked_once_and_again_on_another_connection(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.batches = False
        asked: list[int] = []
        lacks = at.authority.connection.lacks_batches

        def noted(number: int) -> None:
            asked.append(number)
            lacks(number)

        at.authority.connection.lacks_batches = noted  # type: ignore[method-assign]
        for _ in range(2):
            at.signer.mints.clear()
            assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 8)))
            assert names(at) == sorted(f"web-{number}" for number in range(8))
        assert len(asked) == 1
        # It is replaced by a newer one.
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        at.signer.mint.batches = True
        await at.signer.start()
        await at.until(lambda: at.authority.contact.connected)
        assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 8)))
        assert at.signer.batches == [8]

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_one_that_is_refused_says_why_and_takes_no_other_with_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.refusals = [DENIED, Refusal(grpc.StatusCode.PERMISSION_DENIED, "POD_FINISHED", "it is over")]
        found = await minted(at, *renewals(at, 5))
        errors = [each for each in found if not isinstance(each, Minted)]
        assert {(type(each), str(each)) for each in errors} == {
            (AuthorityDenied, "POLICY_DENIED: look there"),
            (AuthorityRefused, "POD_FINISHED: it is over"),
        }
        assert (at.signer.batches, len(at.signer.mints)) == ([5], 5)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_one_that_is_to_come_later_is_asked_for_again_when_the_signer_said(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        later = timedelta(milliseconds=150)
        at.signer.mint.refusals = [Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slower", later)]
        at.signer.arrivals.clear()
        assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 5)))
        first, *_, last = at.signer.arrivals
        assert len(at.signer.arrivals) == 6
        assert last - first >= later.total_seconds()

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
@pytest.mark.parametrize("answered", [0, 1, 4])
@pytest.mark.parametrize("how", [GONE, BUSY])
def test_what_a_batch_that_fails_has_not_answered_is_asked_for_by_calls_of_its_own(
    tmp_path: Path, answered: int, how: Refusal
) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.breaks = [(answered, how)] * 100
        for number in (1, 2):
            assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 6)))
            assert at.signer.batches == [6] * number

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_no_workload_has_what_was_made_for_another(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.mixed_up = True
        with ThreadPoolExecutor(1) as executor:
            issuer = Issuer(at.authority, slow_work(Blocking(executor)), at.clock, random.Random(1), Metrics())
            minting = [
                issuer.mint_x509(
                    Volume(f"csi-{each.pod.uid}", "/target", ("below",), each.pod, None),
                    each.token,
                    each.key,
                    renewal=True,
                )
                for each in renewals(at, 2)
            ]
            found = await asyncio.gather(*minting, return_exceptions=True)
        assert at.signer.batches == [2]
        for each in found:
            assert isinstance(each, AuthorityRefused)
            assert "private key does not match the leaf certificate" in str(each)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_what_a_batch_has_failed_for_is_in_no_other(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.breaks = [(0, BUSY)] * 100
        later = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slower", timedelta(milliseconds=1))
        at.signer.mint.refusals = [later] * 4
        assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 4)))
        assert (at.signer.batches, len(at.signer.mints)) == ([4], 8)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_batches_that_are_never_answered_cost_no_renewal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "QUIET", 0.1)

    async def play(at: Scene) -> None:
        count = calls.ITEMS
        at.signer.mint.mute = True
        for first in (0, 100):
            assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, count, first)))
        assert len(at.signer.batches) >= 2
        # None of them was minted twice: the fake does not begin an item that it does not answer.
        assert len(at.signer.mints) == 2 * count
        await at.until(lambda: not at.authority._calls._batches._calls)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
@pytest.mark.parametrize("knows", [False, True])
def test_a_publish_waits_for_no_renewal_that_has_no_turn_yet(tmp_path: Path, knows: bool) -> None:
    """A signer of before, and one whose batches fail: as many single calls are there as the scheduler begins."""

    async def play(at: Scene) -> None:
        at.signer.mint.batches = knows
        at.signer.mint.breaks = [(0, BUSY)] * 100
        turnstile = at.signer.mint.turnstile = asyncio.Semaphore(0)
        requests = [
            replace(each, pod=replace(each.pod, namespace=f"ns-{number % 8}"))
            for number, each in enumerate(renewals(at, calls.ITEMS))
        ]
        renewing = [asyncio.ensure_future(at.authority.mint_x509(each)) for each in requests]
        await at.until(lambda: len(at.signer.mints) == calls.AT_ONCE)
        await at.until(lambda: at.authority.waiting == calls.ITEMS - calls.AT_ONCE)
        publish = asyncio.ensure_future(at.authority.mint_x509(replace(renewals(at, 1, 999)[0], renewal=False)))
        await at.until(lambda: at.authority.waiting == calls.ITEMS - calls.AT_ONCE + 1)
        # One of those that have a turn ends, or at most one more that can wait.
        for number in range(2):
            turnstile.release()
            await at.until(lambda: len(at.signer.mints) > calls.AT_ONCE + number)  # noqa: B023
        assert "web-999" in [each.pod.name for each in at.signer.mints]
        for _ in range(calls.ITEMS):
            turnstile.release()
        assert isinstance(await publish, Minted)
        assert all(isinstance(each, Minted) for each in await asyncio.gather(*renewing))

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_one_whose_answer_never_comes_is_asked_for_again_and_the_others_are_there_at_once(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.silent_of = frozenset({"web-3"})
        wanted = renewals(at, 5)
        tasks = [asyncio.ensure_future(at.authority.mint_x509(each)) for each in wanted]
        await at.until(lambda: all(each.done() for each in tasks[:3]) and tasks[4].done())
        at.signer.mint.silent_of = frozenset()
        assert isinstance(await tasks[3], Minted)
        assert names(at) == sorted(f"web-{number}" for number in range(5))

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough", "patient")
def test_a_slow_one_holds_up_no_other_and_who_is_cancelled_takes_only_itself(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        turnstile = at.signer.mint.turnstile = asyncio.Semaphore(3)
        tasks = [asyncio.ensure_future(at.authority.mint_x509(each)) for each in renewals(at, 5)]
        await at.until(lambda: sum(each.done() for each in tasks) == 3)
        left = [each for each in tasks if not each.done()]
        left[0].cancel()
        await asyncio.gather(left[0], return_exceptions=True)
        assert left[0].cancelled()
        assert not left[1].done()
        at.signer.mint.turnstile = None
        for _ in range(2):
            turnstile.release()
        assert isinstance(await left[1], Minted)
        assert (at.signer.batches, at.authority.waiting) == ([5], 0)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough", "patient")
def test_a_batch_that_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.gate = asyncio.Event()
        tasks = [asyncio.ensure_future(at.authority.mint_x509(each)) for each in renewals(at, 3)]
        await at.until(lambda: len(at.signer.mints) == 3)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await at.until(lambda: not at.authority._calls._batches._calls)

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough")
def test_each_has_its_own_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 1.0)

    async def play(at: Scene) -> None:
        at.signer.mint.turnstile = asyncio.Semaphore(1)
        found = await minted(at, *renewals(at, 3))
        errors = [each for each in found if not isinstance(each, Minted)]
        assert len(errors) == 2
        for each in errors:
            assert isinstance(each, AuthorityUnavailable)
            assert str(each).startswith("SIGNER_UNREACHABLE: the signer at 127.0.0.1:")

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough", "patient")
def test_a_batch_is_no_larger_than_the_signer_takes_and_calls_are_few(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.gate = asyncio.Event()
        minting = asyncio.ensure_future(minted(at, *renewals(at, calls.ITEMS_OF_ONE + 20)))
        await at.until(lambda: sum(at.signer.batches) == calls.ITEMS_OF_ONE)
        assert at.signer.batches == [batches.MOST, calls.ITEMS_OF_ONE - batches.MOST]
        assert at.authority.waiting == 20
        at.signer.mint.gate.set()
        assert all(isinstance(each, Minted) for each in await minting)
        assert max(at.signer.batches) <= batches.MOST

    on_stage(tmp_path, play)


@pytest.mark.usefixtures("old_enough", "patient")
def test_batches_that_take_long_keep_nobody_from_asking(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        slow = at.signer.mint.gate = asyncio.Event()
        held = []
        for number in range(batches.CALLS):
            held += [asyncio.ensure_future(at.authority.mint_x509(each)) for each in renewals(at, 2, 10 * number)]
            # Its items have come to the gate, which the signer looks at a moment after it took the batch.
            await at.until(lambda: len(at.signer.mints) == 2 * (number + 1))  # noqa: B023
        assert at.signer.batches == [2] * batches.CALLS
        at.signer.mint.gate = None
        assert all(isinstance(each, Minted) for each in await minted(at, *renewals(at, 5, 100)))
        assert at.signer.batches == [2] * batches.CALLS
        assert not any(each.done() for each in held)
        slow.set()
        assert all(isinstance(each, Minted) for each in await asyncio.gather(*held))

    on_stage(tmp_path, play)


@dataclass
class Plan:
    """What the signer does with a batch: `fates` of its items in turn, then the end of its stream."""

    fates: list[str]
    ends: str


@dataclass
class Scripted:
    """Implements Way: a signer that does what a plan says; what it was sent is kept."""

    plans: list[Plan]
    sent: list[list[str]] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)
    number = 7

    def channel(self) -> grpc.aio.Channel:
        return cast(grpc.aio.Channel, self)

    def credentials(self) -> tuple[tuple[str, str], ...]:
        return ()

    def lacks_batches(self, number: int) -> None:
        self.lacking.append(number)

    def unary_stream(self, method: str, *_: object) -> Callable[..., AsyncIterator[Message]]:
        assert method == "/podsvid.signer.v1.Signer/MintX509SVIDs"
        return self._answers

    async def _answers(
        self, request: signer_pb2.MintX509SVIDsRequest, timeout: float, **_: object
    ) -> AsyncIterator[Message]:
        assert 2 <= len(request.items) <= batches.MOST
        assert request.ByteSize() <= 48 * 1024
        self.sent.append([each.request.pod.uid for each in request.items])
        plan = self.plans.pop(0) if self.plans else Plan([], "ok")
        fates = [*plan.fates, *["answer"] * len(request.items)]
        order = list(range(len(request.items)))
        random.Random(len(self.sent)).shuffle(order)
        for item in order:
            await asyncio.sleep(0.001)
            answer = signer_pb2.MintX509SVIDResponse(spiffe_id=request.items[item].request.pod.uid)
            outcomes = {
                "answer": [signer_pb2.MintX509SVIDOutcome(item=item, answer=answer)],
                "refusal": [signer_pb2.MintX509SVIDOutcome(item=item, refusal=DENIED.status().SerializeToString())],
                "rubbish": [signer_pb2.MintX509SVIDOutcome(item=item, refusal=b"\xff")],
                "unknown": [signer_pb2.MintX509SVIDOutcome(item=item)],
                "twice": [signer_pb2.MintX509SVIDOutcome(item=item, answer=answer)] * 2,
                "another": [signer_pb2.MintX509SVIDOutcome(item=1000, answer=answer)],
                "none": [],
            }[fates[item]]
            yield signer_pb2.MintX509SVIDsResponse(outcomes=outcomes)
            if plan.ends == "early":
                return
        if plan.ends == "hangs":
            await asyncio.sleep(timeout)
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED)
        if plan.ends != "ok" and plan.ends != "early":
            raise _error(grpc.StatusCode[plan.ends]) if plan.ends != "CLOSED" else asyncio.CancelledError


def _error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, "no")


def test_what_waited_for_a_call_is_sent_in_as_many_as_it_takes() -> None:
    async def main() -> None:
        way = Scripted([])
        collector, deadline = Batches(cast(Way, way)), asyncio.get_running_loop().time() + 2.0
        asked = [
            signer_pb2.MintX509SVIDRequest(pod=signer_pb2.Pod(uid=str(number)), pod_token="t" * 4000)
            for number in range(60)
        ]
        found = await asyncio.gather(*(collector.ask(each, "", deadline) for each in asked))
        assert [each.spiffe_id for each in found] == [str(number) for number in range(60)]
        # 48 KiB each: see `_answers`.
        assert len(way.sent) >= 6

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_once_there_is_a_call_again_others_are_gathered_as_before() -> None:
    async def main() -> None:
        way = Scripted([])
        collector, deadline = Batches(cast(Way, way)), asyncio.get_running_loop().time() + 2.0

        async def ask(count: int) -> None:
            requests = [signer_pb2.MintX509SVIDRequest(pod=signer_pb2.Pod(uid=str(each))) for each in range(count)]
            await asyncio.gather(*(collector.ask(each, "", deadline) for each in requests))

        # More than there are calls for, so that some wait for one.
        await ask(batches.CALLS * batches.MOST + 10)
        await ask(5)
        assert list(map(len, way.sent)) == [batches.MOST] * batches.CALLS + [10, 5]

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_second_answer_changes_nothing_for_anybody_and_each_gives_up_in_its_own_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        way = Scripted([Plan(["twice", "twice", "none", "none"], "hangs")])
        collector = Batches(cast(Way, way))
        requests = [signer_pb2.MintX509SVIDRequest(pod=signer_pb2.Pod(uid=str(number))) for number in range(4)]
        tasks = [
            asyncio.ensure_future(collector.ask(each, "", seconds))
            for each, seconds in zip(requests, (2.0, 2.0, 0.5, 2.0), strict=True)
        ]
        assert [(await each).spiffe_id for each in tasks[:2]] == ["0", "1"]
        with pytest.raises(Failed):
            await tasks[2]
        assert loop.time() == pytest.approx(0.5)
        assert not tasks[3].done()
        with pytest.raises(Alone):
            await tasks[3]
        assert loop.time() == pytest.approx(batches.QUIET, abs=0.01)

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


FATES = ["answer", "refusal", "rubbish", "unknown", "twice", "another", "none"]
ENDS = ["ok", "early", "hangs", "UNAVAILABLE", "UNIMPLEMENTED", "CLOSED"]
PLANS = st.lists(st.builds(Plan, st.lists(st.sampled_from(FATES), max_size=40), st.sampled_from(ENDS)), max_size=6)
# When each is asked for, bytes of its token, and after how long whoever asked is cancelled; in milliseconds.
ASKED = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([10, 1500, 4000, 50_000]), st.one_of(st.none(), st.integers(0, 60))),
    max_size=90,
)


@settings(max_examples=60, deadline=None)
@given(asked=ASKED, plans=PLANS)
def test_each_is_answered_once_with_its_own_or_fails_and_nothing_is_left(
    asked: list[tuple[int, int, int | None]], plans: list[Plan]
) -> None:
    async def main() -> None:
        way = Scripted(plans)
        collector = Batches(cast(Way, way))
        loop = asyncio.get_running_loop()
        told: dict[str, str] = {}

        async def one(number: int, at: int, size: int, cancelled: int | None) -> None:
            uid = str(number)
            request = signer_pb2.MintX509SVIDRequest(pod=signer_pb2.Pod(uid=uid), pod_token="t" * size)
            await asyncio.sleep(at / 1000)
            asking = asyncio.ensure_future(collector.ask(request, "", loop.time() + 2.0))
            if cancelled is not None:
                loop.call_later(cancelled / 1000, asking.cancel)
            try:
                answer = await asking
                assert answer.spiffe_id == uid
                told[uid] = "answer"
            except (Failed, Alone) as error:
                told[uid] = type(error).__name__
            except asyncio.CancelledError:
                assert cancelled is not None
                told[uid] = "cancelled"

        began = loop.time()
        await asyncio.gather(*(one(number, *each) for number, each in enumerate(asked)))
        assert len(told) == len(asked)
        assert loop.time() - began <= 2.1
        sent = [uid for batch in way.sent for uid in batch]
        assert len(sent) == len(set(sent))
        assert {uid for uid, how in told.items() if how == "answer"} <= set(sent)
        assert all(asked[int(uid)][1] < 50_000 for uid in sent)
        assert collector.waiting == 0
        await asyncio.sleep(2 * batches.LONG)
        assert collector._calls == {}
        assert set(way.lacking) <= {7}

    loop = looptime.new_event_loop(start=0)
    found: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: found.append(context))
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert found == []
