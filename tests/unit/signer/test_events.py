"""Events on pods: what is in them, how many there are, and that they keep nobody waiting."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from signer.cluster.events import MAX_CLIPPED, QUEUE, REPEAT, SURPRISE_REPEAT, Events
from signer.cluster.kube import Object
from signer.model import PodClaim
from tests.fake_kube import FakeKube
from tests.signer_rig import StepClock

WEB = PodClaim("shop", "web", "uid-1")
SECOND = 1.0


class Rig:
    def __init__(self, docs_url: str = "") -> None:
        self.clock = StepClock()
        self.kube = FakeKube(self.clock)
        self.events = Events(self.kube, "signer-1", self.clock, docs_url)

    def written(self) -> list[Object]:
        return list(self.kube.objects.values())

    def queued(self) -> list[str]:
        """The notes, taken out."""
        queue: Any = self.events._queue
        return [queue.get_nowait().note for _ in range(queue.qsize())]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


@asynccontextmanager
async def writing(rig: Rig) -> AsyncIterator[None]:
    task = asyncio.create_task(rig.events.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_is_in_an_event() -> None:
    async def run() -> None:
        rig = Rig()
        rig.events.refused(WEB, "POLICY_DENIED", "policy x denies; " + "y" * 5000)
        async with writing(rig):
            await until(lambda: len(rig.kube.objects) == 1)
        ((path, found),) = rig.kube.objects.items()
        assert path.startswith("/apis/events.k8s.io/v1/namespaces/shop/events/web.")
        assert (found["type"], found["reason"], found["action"]) == ("Warning", "IdentityRefused", "Mint")
        assert found["note"].startswith("POLICY_DENIED: policy x denies; yyy")
        # The API server refuses more than 1024 bytes.
        assert len(found["note"]) == 1000
        assert found["note"].endswith("yyy (see docs/troubleshooting.md#policy_denied)")
        assert found["eventTime"] == "2030-01-01T00:00:00.000000Z"
        assert found["metadata"]["namespace"] == "shop"
        assert found["regarding"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "shop",
            "name": "web",
            "uid": "uid-1",
        }
        assert (found["reportingController"], found["reportingInstance"]) == ("podsvid.io/signer", "signer-1")

    asyncio.run(run())


def test_what_waits_to_be_written_is_no_longer_than_what_is_written() -> None:
    rig = Rig()
    rig.events.refused(WEB, "POLICY_DENIED", "y" * 5000)
    assert [len(each) for each in rig.queued()] == [1000]


def test_an_event_leads_to_the_site_where_one_is_known() -> None:
    async def run() -> None:
        rig = Rig("https://docs.example.org/podsvid")
        rig.events.certificate_waits(WEB, "KEY_WEAK", "another key")
        async with writing(rig):
            await until(lambda: len(rig.kube.objects) == 1)
        (found,) = rig.written()
        where = "https://docs.example.org/podsvid/troubleshooting.html#key_weak"
        assert found["note"] == f"KEY_WEAK: another key (see {where})"

    asyncio.run(run())


def test_a_surprise_is_no_warning() -> None:
    async def run() -> None:
        rig = Rig()
        rig.events.surprise(WEB, "PolicySurprise", "policy x won over y")
        async with writing(rig):
            await until(lambda: len(rig.kube.objects) == 1)
        (found,) = rig.written()
        assert (found["type"], found["reason"], found["note"]) == (
            "Normal",
            "PolicySurprise",
            "policy x won over y (see docs/troubleshooting.md#policysurprise)",
        )

    asyncio.run(run())


def test_a_reason_is_said_again_after_its_time() -> None:
    rig = Rig()
    rig.events.refused(WEB, "POLICY_DENIED", "one")
    rig.clock.pass_by(seconds=REPEAT - SECOND)
    rig.events.refused(WEB, "POLICY_DENIED", "two")
    assert rig.queued() == ["POLICY_DENIED: one"]
    rig.clock.pass_by(seconds=SECOND)
    rig.events.refused(WEB, "POLICY_DENIED", "three")
    # It is another reason, another pod, or a pod of the name after the one before.
    rig.events.refused(WEB, "KEY_WEAK", "three")
    rig.events.refused(PodClaim("shop", "other", "uid-2"), "POLICY_DENIED", "three")
    rig.events.refused(PodClaim("shop", "web", "uid-3"), "POLICY_DENIED", "three")
    assert rig.queued() == ["POLICY_DENIED: three", "KEY_WEAK: three", "POLICY_DENIED: three", "POLICY_DENIED: three"]


def test_a_surprise_is_said_again_after_days_or_with_other_words() -> None:
    rig = Rig()
    rig.events.surprise(WEB, "PolicySurprise", "x won over y")
    rig.clock.pass_by(seconds=SURPRISE_REPEAT - SECOND)
    rig.events.surprise(WEB, "PolicySurprise", "x won over y")
    rig.events.surprise(WEB, "PolicySurprise", "x won over z")
    assert rig.queued() == ["x won over y", "x won over z"]
    rig.clock.pass_by(seconds=SECOND)
    rig.events.surprise(WEB, "PolicySurprise", "x won over y")
    assert rig.queued() == ["x won over y"]


def test_what_was_clipped_is_said_once_of_each_pod_and_wish_and_again_after_days() -> None:
    rig = Rig()
    other = PodClaim("shop", "other", "uid-2")
    for _ in range(3):
        rig.events.clipped(WEB, "ttl 999h")
        rig.events.clipped(WEB, "ttl 99h")
        rig.events.clipped(other, "ttl 999h")
    assert rig.queued() == ["ttl 999h", "ttl 99h", "ttl 999h"]
    rig.clock.pass_by(seconds=SURPRISE_REPEAT - SECOND)
    rig.events.clipped(WEB, "ttl 999h")
    assert rig.queued() == []
    rig.clock.pass_by(seconds=SECOND)
    rig.events.clipped(WEB, "ttl 999h")
    assert rig.queued() == ["ttl 999h"]


def test_an_agent_that_asks_for_ever_other_lifetimes_makes_a_few_events() -> None:
    """What it says of a wish is its own: the queue and its five events a second are everybody's."""
    rig = Rig()
    for number in range(1000):
        rig.events.clipped(WEB, f"ttl {number}h")
    assert rig.queued() == [f"ttl {number}h" for number in range(MAX_CLIPPED)]
    rig.events.clipped(PodClaim("shop", "other", "uid-2"), "ttl 1h")
    assert rig.queued() == ["ttl 1h"]


def test_what_was_clipped_while_the_queue_was_full_is_said_later() -> None:
    rig = Rig()
    for number in range(QUEUE):
        rig.events.refused(PodClaim("shop", f"p{number}", f"u{number}"), "POLICY_DENIED", "no")
    rig.events.clipped(WEB, "ttl 999h")
    rig.queued()
    rig.events.clipped(WEB, "ttl 999h")
    assert rig.queued() == ["ttl 999h"]


def test_pods_whose_wishes_were_clipped_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.events.MAX_REMEMBERED", 3)
    rig = Rig()
    for uid in "abc":
        rig.events.clipped(PodClaim("shop", uid, uid), "ttl 1h")
    # Another wish of it: this one is the newest of them.
    rig.events.clipped(PodClaim("shop", "a", "a"), "ttl 2h")
    rig.events.clipped(PodClaim("shop", "d", "d"), "ttl 1h")
    assert list(rig.events._clipped) == ["c", "a", "d"]


def test_who_may_make_many_gets_no_further_than_behind_so_many_and_can_say_it_later() -> None:
    rig = Rig()
    for number in range(5):
        rig.events.refused(PodClaim("shop", f"p{number}", f"u{number}"), "POLICY_DENIED", "no", 3)
        rig.events.surprise(PodClaim("shop", f"p{number}", f"u{number}"), "PolicySurprise", "odd", 3)
    rig.events.refused(WEB, "POLICY_DENIED", "no")
    assert len(rig.queued()) == 4
    rig.events.refused(PodClaim("shop", "p4", "u4"), "POLICY_DENIED", "no", 3)
    assert len(rig.queued()) == 1


def test_a_flood_is_cut_and_what_was_cut_can_be_said_later() -> None:
    rig = Rig()
    for number in range(QUEUE + 100):
        rig.events.refused(PodClaim("shop", f"p{number}", f"u{number}"), "POLICY_DENIED", "no")
    assert len(rig.queued()) == QUEUE
    rig.events.refused(PodClaim("shop", "p0", "u0"), "POLICY_DENIED", "no")
    assert rig.queued() == []
    # Nobody was told of this one.
    last = f"u{QUEUE + 99}"
    rig.events.refused(PodClaim("shop", "last", last), "POLICY_DENIED", "no")
    assert rig.queued() == ["POLICY_DENIED: no"]


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.events.MAX_REMEMBERED", 3)
    rig = Rig()
    for uid in "abc":
        rig.events.refused(PodClaim("shop", uid, uid), "POLICY_DENIED", "no")
    rig.clock.pass_by(seconds=REPEAT)
    # Said again, this one is the newest of them.
    rig.events.refused(PodClaim("shop", "a", "a"), "POLICY_DENIED", "no")
    rig.events.refused(PodClaim("shop", "d", "d"), "POLICY_DENIED", "no")
    assert [uid for uid, _ in rig.events._said] == ["c", "a", "d"]


def test_a_refused_event_is_said_once_and_the_next_are_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("signer.cluster.events.SPACING", 0.0)
    caplog.set_level(logging.WARNING)

    def said() -> int:
        return sum(each.getMessage() == "event not written" for each in caplog.records)

    async def run() -> None:
        rig = Rig()
        rig.kube.denied.add(("create", "/apis/events.k8s.io/"))

        def refuse(*names: str) -> None:
            for name in names:
                rig.events.refused(PodClaim("shop", name, name), "POLICY_DENIED", "no")

        async with writing(rig):
            refuse("a", "b", "c")
            await until(lambda: rig.events._queue.empty())
            await until(lambda: said() == 1)
            rig.kube.denied.clear()
            refuse("d")
            await until(lambda: len(rig.kube.objects) == 1)
            assert said() == 1
            rig.kube.down = True
            refuse("e")
            await until(lambda: said() == 2)

    asyncio.run(run())


def test_events_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of refusals is no flood at the API server."""
    monkeypatch.setattr("signer.cluster.events.SPACING", 1000.0)

    async def run() -> None:
        rig = Rig()
        for name in "abc":
            rig.events.refused(PodClaim("shop", name, name), "POLICY_DENIED", "no")
        async with writing(rig):
            await until(lambda: len(rig.kube.objects) == 1)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(rig.kube.objects) == 1

    asyncio.run(run())
