"""The election: never two leaders, whatever is slow, lost, or done by somebody else in between."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.cluster.kube import Object
from signer.cluster.leader import Leader
from signer.errors import ApiUnavailable, Conflict
from tests.fake_kube import FakeKube
from tests.meanwhile import after, before, unhurried
from tests.signer_rig import Apart, StepClock

LEASES = "/apis/coordination.k8s.io/v1/namespaces/podsvid/leases"
LEASE = f"{LEASES}/lease"
DURATION = timedelta(seconds=15)


class Time:
    """A host's monotonic clock, which need not run as fast as another's."""

    def __init__(self, speed: float = 1.0) -> None:
        self.now, self.speed = 1000.0, speed

    def pass_by(self, seconds: float) -> None:
        self.now += seconds * self.speed


def leader(kube: Any, name: str, time: Time) -> Leader:
    return Leader(kube, "podsvid", "lease", name, DURATION, Apart(StepClock(), lambda: time.now), random.Random(1))


def taken_by(kube: FakeKube, name: str) -> None:
    """Somebody writes another name into the lease, as kubectl can."""
    lease = kube.objects.get(LEASE, {"metadata": {"name": "lease"}, "spec": {"leaseDurationSeconds": 15}})
    kube.put(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": name}})


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 12), st.booleans()), max_size=40))
def test_there_are_never_two_leaders(schedule: list[tuple[str, float, bool]]) -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        replicas = {name: leader(kube, name, time) for name in "abc"}
        for name, passed, cut_off in schedule:
            time.now += passed
            kube.down = cut_off
            if cut_off:
                with pytest.raises(ApiUnavailable):
                    await replicas[name].attempt()
            else:
                await replicas[name].attempt()
                # Whoever got through knows who has the lease.
                assert replicas[name].holder == kube.objects[LEASE]["spec"]["holderIdentity"]
            kube.down = False
            assert sum(each.leading for each in replicas.values()) <= 1

    asyncio.run(run())


class Slow:
    """One replica's way to the API server: each call waits before its effect, and its answer waits after it."""

    def __init__(self, kube: FakeKube) -> None:
        self._kube = kube
        self._turn = asyncio.Event()
        self.lost = False

    def go_on(self, lost: bool) -> None:
        self.lost = lost
        self._turn.set()

    async def get(self, path: str) -> Object:
        return await self._held(lambda: self._kube.get(path))

    async def create(self, path: str, body: Object) -> Object:
        return await self._held(lambda: self._kube.create(path, body))

    async def replace(self, path: str, body: Object) -> Object:
        return await self._held(lambda: self._kube.replace(path, body))

    async def _held(self, call: Callable[[], Any]) -> Object:
        await self._wait()
        answer: Object = await call()
        await self._wait()
        return answer

    async def _wait(self) -> None:
        self._turn.clear()
        await self._turn.wait()
        if self.lost:
            raise ApiUnavailable("lost on its way")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0, 0, 1, 4, 11, 13, 16]), st.integers(0, 9))))
def test_calls_that_overlap_or_are_lost_make_no_second_leader(schedule: list[tuple[str, int, int]]) -> None:
    """Every moment of one replica's calls can fall between any two of the other's; their clocks differ in speed."""

    async def run() -> None:
        kube = FakeKube(StepClock())
        times = {"a": Time(0.95), "b": Time(1.05)}
        ways = {name: Slow(kube) for name in times}
        replicas = {name: leader(ways[name], name, times[name]) for name in times}
        attempts: dict[str, asyncio.Task[None]] = {}
        for name, passed, luck in schedule:
            for time in times.values():
                time.pass_by(passed)
            assert sum(each.leading for each in replicas.values()) <= 1
            if name in attempts:
                ways[name].go_on(lost=luck == 0)
            else:
                attempts[name] = asyncio.create_task(replicas[name].attempt())
            for _ in range(4):
                await asyncio.sleep(0)
            if attempts[name].done():
                failure = attempts.pop(name).exception()
                assert failure is None or isinstance(failure, ApiUnavailable)
            assert sum(each.leading for each in replicas.values()) <= 1
        for task in attempts.values():
            task.cancel()
        await asyncio.gather(*attempts.values(), return_exceptions=True)

    asyncio.run(run())


def test_the_next_leader_takes_over_when_the_lease_ran_out_or_was_given_up() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        await one.attempt()
        await two.attempt()
        assert (one.leading, two.leading, two.holder) == (True, False, "one")
        time.now += 12.1  # the one before stops before the other may begin
        await two.attempt()
        assert (one.leading, two.leading) == (False, False)
        time.now += 3
        await two.attempt()
        assert two.leading
        assert kube.objects[LEASE]["spec"]["leaseTransitions"] == 1
        await two.release()
        assert not two.leading
        await one.attempt()
        assert one.leading

    asyncio.run(run())


def test_one_that_is_unfit_lets_another_lead_and_goes_on_where_there_is_none() -> None:
    """A leader whose clock is wrong takes no step: not even what was asked for after a theft would go on."""

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = (leader(kube, name, time) for name in ("one", "two"))

        async def turns(*replicas: Leader, seconds: float = 5.0) -> list[bool]:
            time.now += seconds
            for each in replicas:
                await each.attempt()
            return [each.leading for each in replicas]

        wrong = {"one"}
        one.unfit, two.unfit = lambda: "one" in wrong, lambda: "two" in wrong
        assert await turns(one, two) == [True, False], "there was none before"
        assert await turns(one) == [False], "it gives way"
        assert kube.objects[LEASE]["spec"]["holderIdentity"] == ""
        assert await turns(one) == [False], "it waits for others"
        assert await turns(two, one) == [True, False]
        assert await turns(two, one) == [True, False]
        # Both are, or the API server's clock is wrong: somebody publishes and tells people why nothing goes on.
        wrong.add("two")
        assert await turns(two, one) == [False, False]
        assert await turns(two, one, seconds=10.0) == [False, False]
        assert True in await turns(two, one, seconds=6.0)
        await turns(two, one)
        for _ in range(4):
            await turns(two, one, seconds=6.0)
        for _ in range(10):
            assert True in await turns(two, one), "the lead goes to and fro"
        # Right again, and wrong again later.
        wrong.clear()
        await turns(two, one)
        first, second = (one, two) if one.leading else (two, one)
        wrong.add("one" if first is one else "two")
        assert await turns(first) == [False]
        assert await turns(second) == [True]

    asyncio.run(run())


def test_a_lost_swap_ends_the_lead_at_once() -> None:
    """Another wrote the lease between this replica's read and its write: it may believe to lead, too."""

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one = leader(kube, "one", time)
        await one.attempt()
        before(kube, "replace", lambda: taken_by(kube, "two"))
        await one.attempt()
        assert not one.leading
        assert kube.objects[LEASE]["spec"]["holderIdentity"] == "two"

    asyncio.run(run())


def test_a_lost_race_for_a_deleted_lease_ends_the_lead_at_once() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        await one.attempt()
        kube.remove(LEASE)
        # The other sees first that it is gone, and has made a new one when this replica's own arrives.
        before(kube, "create", lambda: taken_by(kube, "two"))
        await one.attempt()
        assert not one.leading
        await two.attempt()
        assert two.leading

    asyncio.run(run())


def test_a_lease_that_another_holds_ends_the_lead_at_once() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one = leader(kube, "one", time)
        await one.attempt()
        taken_by(kube, "two")
        await one.attempt()
        assert (one.leading, one.holder) == (False, "two")

    asyncio.run(run())


def test_a_free_lease_is_won_by_one_of_two() -> None:
    async def run() -> None:
        kube, time = unhurried(FakeKube(StepClock())), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        await asyncio.gather(one.attempt(), two.attempt())
        assert [one.leading, two.leading] == [True, False]
        await one.release()
        await asyncio.gather(two.attempt(), one.attempt())
        assert sum([one.leading, two.leading]) == 1

    asyncio.run(run())


@pytest.mark.parametrize("call", ["create", "replace"])
def test_the_lease_counts_from_before_a_call_that_took_long(call: str) -> None:
    """The others count from when the write was done; its answer may have come much later."""

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        if call == "replace":
            await one.attempt()
            time.now += 5
        written: list[float] = []

        def late() -> None:
            written.append(time.now)
            time.now += 11

        after(kube, call, late)
        await one.attempt()
        assert one.leading
        time.now = written[0] + 11.9
        assert one.leading
        time.now = written[0] + 12
        assert not one.leading
        await two.attempt()
        assert not two.leading

    asyncio.run(run())


def test_a_read_that_took_long_counts_too() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one = leader(kube, "one", time)
        await one.attempt()
        begun = time.now

        def late() -> None:
            time.now += 13

        after(kube, "get", late)
        await one.attempt()
        # Written just now, but the lease may be another's since: nothing is known of the time before the answer.
        assert not one.leading
        assert time.now == begun + 13

    asyncio.run(run())


def test_another_lease_is_fresh_from_when_it_was_seen_to_change() -> None:
    """Not from the time that its holder wrote into it, and not from when this replica first saw it."""

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        await one.attempt()
        for _ in range(5):
            time.now += 10
            await one.attempt()
            await two.attempt()
            assert (one.leading, two.leading) == (True, False)
        time.now += 14.9
        await two.attempt()
        assert not two.leading
        time.now += 0.1
        await two.attempt()
        assert two.leading

    asyncio.run(run())


def test_the_duration_in_the_lease_is_what_counts() -> None:
    """Replicas of two settings, during an upgrade."""

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        long = Leader(
            kube, "podsvid", "lease", "long", 4 * DURATION, Apart(StepClock(), lambda: time.now), random.Random(1)
        )
        short = leader(kube, "short", time)
        await long.attempt()
        await short.attempt()
        time.now += 40
        await short.attempt()
        assert (long.leading, short.leading) == (True, False)

    asyncio.run(run())


def test_what_is_written_in_the_lease() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        clock = StepClock()
        one = Leader(kube, "podsvid", "lease", "one", DURATION, Apart(clock, lambda: time.now), random.Random(1))
        await one.attempt()
        clock.pass_by(seconds=5)
        await one.attempt()
        assert kube.objects[LEASE]["spec"] == {
            "holderIdentity": "one",
            "leaseDurationSeconds": 15,
            "acquireTime": "2030-01-01T00:00:00.000000Z",
            "renewTime": "2030-01-01T00:00:05.000000Z",
            "leaseTransitions": 0,
        }
        time.now += 20
        clock.pass_by(seconds=20)
        two = Leader(kube, "podsvid", "lease", "two", DURATION, Apart(clock, lambda: time.now), random.Random(1))
        await two.attempt()
        time.now += 15
        await two.attempt()
        spec = kube.objects[LEASE]["spec"]
        assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("two", 1)
        assert spec["acquireTime"] == spec["renewTime"] == "2030-01-01T00:00:25.000000Z"

    asyncio.run(run())


def test_only_the_holder_gives_the_lease_up() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        await one.attempt()
        writes = len(kube.writes)
        await two.release()
        assert len(kube.writes) == writes
        # It was taken from the one that believes to lead.
        taken_by(kube, "two")
        await one.release()
        assert kube.objects[LEASE]["spec"]["holderIdentity"] == "two"

    asyncio.run(run())


def test_giving_up_ends_the_lead_before_anybody_can_know_of_it() -> None:
    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one, two = leader(kube, "one", time), leader(kube, "two", time)
        await one.attempt()
        seen: list[bool] = []
        before(kube, "replace", lambda: seen.append(one.leading))
        await one.release()
        await two.attempt()
        assert (seen, one.leading, two.leading) == ([False], False, True)

    asyncio.run(run())


def test_giving_up_does_not_overwrite_who_took_over_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one = leader(kube, "one", time)
        await one.attempt()
        before(kube, "replace", lambda: taken_by(kube, "two"))
        await one.release()
        assert kube.objects[LEASE]["spec"]["holderIdentity"] == "two"
        assert [each.getMessage() for each in caplog.records] == ["lease not released; it ends by itself"]

    asyncio.run(run())


@asynccontextmanager
async def standing(each: Leader) -> AsyncIterator[None]:
    task = asyncio.create_task(each.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


def test_an_outage_is_said_once_and_the_election_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("signer.cluster.leader.RENEW", 0.0)
    caplog.set_level(logging.INFO)

    def said() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name == "podsvid.leader"]

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one = leader(kube, "one", time)
        asked = 0
        get = kube.get

        async def counted(path: str) -> Object:
            nonlocal asked
            asked += 1
            return await get(path)

        kube.get = counted  # type: ignore[method-assign]
        async with standing(one):
            await until(lambda: said() == ["leading"])
            kube.down = True
            begun = asked
            await until(lambda: asked > begun + 5)
            # The lead outlives an outage that is shorter than the lease, and no longer one.
            assert one.leading
            assert said() == ["leading", "lease not renewed"]
            time.now += 12
            assert not one.leading
            kube.down = False
            await until(lambda: one.leading)
            kube.down = True
            await until(lambda: said().count("lease not renewed") == 2)

    asyncio.run(run())


def test_an_election_never_ends_by_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.leader.RENEW", 0.0)

    async def run() -> None:
        kube, time = FakeKube(StepClock()), Time()
        one = leader(kube, "one", time)
        raised = 0

        async def conflicting(path: str, body: Object) -> Object:
            nonlocal raised
            raised += 1
            raise Conflict("somebody was faster")

        kube.create, present = conflicting, kube.create  # type: ignore[method-assign]
        async with standing(one):
            await until(lambda: raised > 2)
            assert not one.leading
            kube.create = present  # type: ignore[method-assign]
            await until(lambda: one.leading)

    asyncio.run(run())
