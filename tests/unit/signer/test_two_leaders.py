"""Two replicas at the lease at once, slow calls and lost answers: at most one of them leads, at any time."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from itertools import cycle
from typing import Any

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.cluster.kube import Object
from signer.cluster.leader import Leader
from signer.errors import ApiUnavailable
from tests.fake_kube import FakeKube
from tests.racing import before
from tests.signer_rig import Apart, StepClock

COLLECTION = "/apis/coordination.k8s.io/v1/namespaces/podsvid/leases"
LEASE = f"{COLLECTION}/lease"
DURATION = timedelta(seconds=15)


class Time:
    """A monotonic clock that only tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def replica(kube: Any, name: str, monotonic: Callable[[], float], seed: int = 1) -> Leader:
    return Leader(kube, "podsvid", "lease", name, DURATION, Apart(StepClock(), monotonic), random.Random(seed))


def spec(kube: FakeKube) -> dict[str, Any]:
    found: dict[str, Any] = kube.objects[LEASE]["spec"]
    return found


def pair() -> tuple[FakeKube, Time, Leader, Leader]:
    kube, time = FakeKube(StepClock()), Time()
    return kube, time, replica(kube, "one", lambda: time.now), replica(kube, "two", lambda: time.now)


def test_who_loses_the_swap_leads_no_more() -> None:
    async def run() -> None:
        kube, time, one, _ = pair()
        await one.attempt()
        time.pass_by(5)

        def taken() -> None:
            kube.put(LEASE, {"spec": {**spec(kube), "holderIdentity": "two"}})

        before(kube, "replace", taken)
        await one.attempt()
        assert not one.leading
        assert spec(kube)["holderIdentity"] == "two"

    asyncio.run(run())


def test_of_two_that_take_a_free_lease_at_the_same_moment_one_leads() -> None:
    async def run() -> None:
        kube, time, one, two = pair()
        before(kube, "create", two.attempt)
        await one.attempt()
        assert (one.leading, two.leading) == (False, True)
        await two.release()
        before(kube, "replace", two.attempt)
        await one.attempt()
        assert (one.leading, two.leading, spec(kube)["holderIdentity"]) == (False, True, "two")
        time.pass_by(3)
        await one.attempt()
        assert one.holder == "two"

    asyncio.run(run())


def test_a_leader_whose_lease_was_deleted_and_taken_by_another_leads_no_more() -> None:
    async def run() -> None:
        kube, _, one, two = pair()
        await one.attempt()
        kube.remove(LEASE)
        before(kube, "create", two.attempt)
        await one.attempt()
        assert (one.leading, two.leading) == (False, True)

    asyncio.run(run())


def test_a_leader_that_sees_another_holder_leads_no_more() -> None:
    async def run() -> None:
        kube, time, one, _ = pair()
        await one.attempt()
        kube.put(LEASE, {"spec": {**spec(kube), "holderIdentity": "two"}})
        time.pass_by(1)
        await one.attempt()
        assert (one.leading, one.holder) == (False, "two")

    asyncio.run(run())


@pytest.mark.parametrize("method", ["create", "replace"])
def test_the_lease_counts_from_before_the_call(method: str) -> None:
    async def run() -> None:
        kube, time, one, _ = pair()
        if method == "replace":
            await one.attempt()
        before(kube, method, lambda: time.pass_by(11))
        await one.attempt()
        assert one.leading
        time.pass_by(1)
        assert not one.leading

    asyncio.run(run())


def test_a_lease_is_new_from_when_it_was_seen_and_not_from_when_it_was_asked_for() -> None:
    """Two asks, one renews, two hears of it late: one has the whole duration, from its own renewal on."""

    async def run() -> None:
        kube, time, one, two = pair()
        await one.attempt()
        asked = time.now

        async def held_up() -> None:
            time.pass_by(5)
            await one.attempt()

        before(kube, "get", held_up)
        await two.attempt()
        time.now = asked + 16
        await two.attempt()
        assert (one.leading, two.leading) == (True, False)
        time.now = asked + 5 + 15
        await two.attempt()
        assert (one.leading, two.leading) == (False, True)

    asyncio.run(run())


def test_the_holder_renews_before_its_lease_ends_and_keeps_since_when_it_leads() -> None:
    async def run() -> None:
        kube, time, one, two = pair()
        await one.attempt()
        began = spec(kube)["acquireTime"]
        for _ in range(10):
            time.pass_by(11)
            await one.attempt()
            await two.attempt()
            assert (one.leading, two.leading) == (True, False)
        assert (spec(kube)["acquireTime"], spec(kube)["leaseTransitions"]) == (began, 0)
        assert spec(kube)["leaseDurationSeconds"] == 15

    asyncio.run(run())


def test_another_duration_than_ones_own_is_waited_for() -> None:
    async def run() -> None:
        kube, time, _, two = pair()
        kube.put(LEASE, {"spec": {"holderIdentity": "one", "leaseDurationSeconds": 60}})
        await two.attempt()
        time.pass_by(59)
        await two.attempt()
        assert not two.leading
        time.pass_by(1)
        await two.attempt()
        assert two.leading

    asyncio.run(run())


def test_nobody_gives_up_anothers_lease() -> None:
    async def run() -> None:
        kube, time, one, two = pair()
        await one.attempt()
        await two.release()
        assert spec(kube)["holderIdentity"] == "one"
        kube.put(LEASE, {"spec": {**spec(kube), "holderIdentity": "two"}})
        await one.release()
        assert (one.leading, spec(kube)["holderIdentity"]) == (False, "two")
        # Away from the API server it stops all the same.
        three = replica(FakeKube(StepClock()), "three", lambda: time.now)
        await three.attempt()
        three._api.down = True  # type: ignore[attr-defined]
        await three.release()
        assert not three.leading

    asyncio.run(run())


class Slow:
    """An API server whose calls take time before and after they are done, and whose answers may be lost."""

    def __init__(self, kube: FakeKube, calls: Iterator[tuple[float, float, bool]]) -> None:
        self._kube = kube
        self._calls = calls

    async def get(self, path: str) -> Object:
        return await self._late(lambda: self._kube.get(path))

    async def create(self, path: str, body: Object) -> Object:
        return await self._late(lambda: self._kube.create(path, body))

    async def replace(self, path: str, body: Object) -> Object:
        return await self._late(lambda: self._kube.replace(path, body))

    async def _late(self, call: Callable[[], Awaitable[Object]]) -> Object:
        to, back, lost = next(self._calls)
        await asyncio.sleep(to)
        found = await call()
        await asyncio.sleep(back)
        if lost:
            raise ApiUnavailable("the answer was lost")
        return found


CALLS = st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys("abc", CALLS)), st.integers(0, 5))
def test_there_are_never_two_leaders_whatever_the_calls_take(
    calls: Mapping[str, list[tuple[float, float, bool]]], seed: int
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        kube = FakeKube(StepClock())
        replicas = [
            replica(Slow(kube, cycle(calls[name])), name, loop.time, seed + number) for number, name in enumerate("abc")
        ]
        running = [asyncio.ensure_future(each.run()) for each in replicas]
        try:
            for _ in range(160):
                await asyncio.sleep(0.5)
                assert sum(each.leading for each in replicas) <= 1
            assert not [each for each in running if each.done()]
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
