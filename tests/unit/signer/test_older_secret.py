"""An older Secret is put back while signers run: none that starts meanwhile makes it the newest."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from signer.authority.knowledge import Sources
from signer.authority.lifecycle import Step
from signer.authority.opening import HEALED_AFTER
from signer.authority.rotation import Rotation
from signer.authority.state import SEQUENCE_SLACK, sequence_at
from signer.errors import ApiUnavailable, StateDamaged, TransitionRefused
from tests.unit.signer.test_lifecycle import POLICY, life, stages
from tests.unit.signer.test_rotation import PATH, Cluster, Replica, loop, passes, said, until


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


class Revoked:
    """A signer runs, an authority was revoked, and the Secret of before that is put back."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.published: int | None = None
        self.reads = 0
        self.knows = self.replica("knows")
        self.victim = ""

    async def begin(self) -> None:
        await self.knows.open()
        await self.knows.rotation.step("prepare", "x509", "", forced=False)
        self.victim = self.cluster.stored.x509[1].id
        self.older = dict(self.cluster.kube.objects[PATH]["data"])
        self.cluster.clock.pass_by(minutes=1)
        await self.knows.rotation.step("revoke", "x509", self.victim, forced=True)
        self.newest = self.cluster.stored.sequence
        self.published = self.newest
        self.cluster.clock.pass_by(minutes=1)
        self.put_back()

    def put_back(self) -> None:
        self.cluster.kube.put(PATH, {"data": self.older})

    def replica(self, name: str) -> Replica:
        made = Replica(self.cluster, name)

        async def read() -> int:
            self.reads += 1
            if self.published is None:
                raise ApiUnavailable("away")
            return self.published

        made.rotation = Rotation(
            made.rotation._store,
            made.rotation._abandonments,
            life(),
            made.leader,
            made.agents,
            Sources(frozenset, lambda: "", read),
            made.metrics,
            self.cluster.clock,
            random.Random(1),
        )
        return made

    @property
    def trusted(self) -> bool:
        return self.victim in [slot.id for slot in self.cluster.stored.x509]


def revoked(test: Callable[[Revoked], Awaitable[None]]) -> None:
    async def run() -> None:
        at = Revoked()
        await at.begin()
        await test(at)

    asyncio.run(run())


def replaced(one: Replica) -> float:
    read = one.metrics.registry.get_sample_value
    return read("podsvid_signer_rollbacks_detected_total", {"how": "replaced"}) or 0.0


def test_who_sees_it_puts_the_newer_one_back_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(at: Revoked) -> None:
        older = at.cluster.stored
        await at.knows.rotation.follow(older)
        assert at.cluster.stored.sequence == at.newest
        assert not at.trusted
        assert replaced(at.knows) == 1
        writes = at.cluster.writes()
        # An event that comes late is no older Secret.
        await at.knows.rotation.follow(older)
        await at.knows.rotation.follow(at.cluster.stored)
        assert at.cluster.writes() == writes
        at.put_back()
        at.cluster.kube.down = True
        await at.knows.rotation.follow(older)
        assert len(said(caplog, "an older Secret could not be replaced yet; trying again")) == 1

    revoked(test)


def test_what_is_news_costs_no_read(caplog: pytest.LogCaptureFixture) -> None:
    async def test(at: Revoked) -> None:
        await at.knows.rotation._loaded()
        at.cluster.kube.down = True
        await at.knows.rotation.follow(at.cluster.stored)
        later, _ = await life().prepare(at.cluster.stored, "x509", at.cluster.clock.now())
        await at.knows.rotation.follow(later)
        assert at.knows.rotation.state == later
        assert not said(caplog, "an older Secret could not be replaced yet; trying again")

    revoked(test)


def test_who_starts_by_an_older_secret_waits_for_those_that_know_better(caplog: pytest.LogCaptureFixture) -> None:
    async def test(at: Revoked) -> None:
        starts = at.replica("starts")
        opening = asyncio.create_task(starts.open())
        await until(lambda: bool(said(caplog, STARTS)))
        assert starts.rotation.state is None, "nothing is signed, served or published by it"
        await at.knows.rotation.follow(at.cluster.stored)
        await opening
        assert starts.rotation.state is not None
        assert starts.rotation.state.sequence == at.newest
        await starts.rotation.promise("x509", POLICY.x509_max_ttl)
        await starts.rotation.step("prepare", "jwt", "", forced=False)
        assert not at.trusted

    revoked(test)


STARTS = "the authorities' Secret is older than the published trust bundle; waiting for signers that know better"


def test_nothing_is_made_of_it_meanwhile_even_where_it_has_what_was_abandoned() -> None:
    """Who frees an older Secret of that would date it anew: above what the others know."""

    async def test(at: Revoked) -> None:
        await at.knows.rotation._loaded()
        await at.knows.rotation.step("rotate", "x509", "", forced=True)
        at.published = at.cluster.stored.sequence
        at.put_back()
        starts = at.replica("starts")
        reads, writes = at.reads, at.cluster.writes()
        opening = asyncio.create_task(starts.open())
        await until(lambda: at.reads > reads)
        await asyncio.sleep(0)
        assert at.cluster.writes() == writes
        await at.knows.rotation._loaded()
        newest = at.cluster.stored.to_json()
        await opening
        assert at.cluster.stored.to_json() == newest

    revoked(test)


def test_where_nobody_knows_better_it_is_what_there_is_and_whoever_leads_publishes_above_it_first() -> None:
    async def test(at: Revoked) -> None:
        at.knows.rotation = None  # type: ignore[assignment]
        starts, other = at.replica("starts"), at.replica("other")
        loads = counted(at.cluster)
        await starts.open()
        assert loads() >= HEALED_AFTER
        await other.open()
        assert at.trusted, "what was only revoked is back, and was said to be"
        with pytest.raises(TransitionRefused, match="older than the published trust bundle"):
            await other.rotation.promise("x509", POLICY.x509_max_ttl)
        with pytest.raises(TransitionRefused, match="older than the published trust bundle"):
            await other.rotation.step("prepare", "jwt", "", forced=False)
        step = Step("prepare", "jwt", "its time has come")
        starts.rotation._life.due = lambda *_: step  # type: ignore[method-assign]
        await starts.leader.attempt()
        with pytest.raises(TransitionRefused):
            await starts.rotation._advance()
        await starts.rotation._go_above()
        assert at.cluster.stored.sequence > at.newest
        await other.rotation.step("prepare", "jwt", "", forced=False)

    revoked(test)


def counted(cluster: Cluster) -> Callable[[], int]:
    plain, number = cluster.kube.get, 0

    async def get(path: str) -> Any:
        nonlocal number
        number += path == PATH
        return await plain(path)

    cluster.kube.get = get  # type: ignore[method-assign]
    return lambda: number


def test_a_published_number_that_is_gone_or_cannot_be_holds_nobody_up() -> None:
    async def test(at: Revoked) -> None:
        one, two = at.replica("one"), at.replica("two")
        await one.open()
        at.published = sequence_at(at.cluster.clock.now()) + SEQUENCE_SLACK + 1
        loads = counted(at.cluster)
        await two.open()
        assert loads() == 1
        await two.rotation.promise("x509", POLICY.x509_max_ttl)
        # Somebody had written a higher number; it was undone since.
        at.put_back()
        one.rotation.states.publish(at.cluster.stored)
        at.published = 0
        await one.rotation.step("prepare", "jwt", "", forced=False)
        assert stages(at.cluster.stored, "jwt") == ["active", "prepared"]

    revoked(test)


def test_a_damaged_secret_confirms_nothing_and_is_not_written_over() -> None:
    """Signing stops when the last confirmation is `outage_limit` ago, and goes on when it is put right."""

    async def test(at: Revoked) -> None:
        await at.knows.rotation._loaded()
        confirmed = at.knows.rotation.confirmed_at
        good = dict(at.cluster.kube.objects[PATH]["data"])
        damaged = {"data": {"state.json": "bm9uc2Vuc2U="}}
        at.cluster.kube.put(PATH, damaged)
        writes = at.cluster.writes()
        at.cluster.clock.pass_by(hours=2)
        async with loop(at.knows.rotation.confirm(timedelta(0))):
            await passes()
        with pytest.raises(StateDamaged):
            await at.knows.rotation.step("rotate", "x509", "", forced=True)
        assert at.cluster.writes() == writes
        assert at.knows.rotation.state is not None
        assert at.knows.rotation.confirmed_at == confirmed
        at.cluster.kube.put(PATH, {"data": good})
        await at.knows.rotation._loaded()
        assert at.knows.rotation.confirmed_at == at.cluster.clock.monotonic()

    revoked(test)


def test_a_published_number_that_could_not_be_read_at_the_start_is_read_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test(at: Revoked) -> None:
        starts = at.replica("starts")
        at.published = None
        await starts.open()
        assert said(caplog, "published trust bundle not read")
        at.published = at.newest
        reads = at.reads
        async with loop(starts.rotation.confirm(timedelta(0))):
            await until(lambda: at.reads > reads)
            await passes()
        assert at.reads == reads + 1
        with pytest.raises(TransitionRefused, match="older than the published trust bundle"):
            await starts.rotation.promise("x509", POLICY.x509_max_ttl)

    revoked(test)
