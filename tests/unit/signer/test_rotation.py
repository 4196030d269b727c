"""Steps on what is stored: by the leader or by a person, against other replicas, and against an older Secret."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from signer.authority.acknowledgements import Agents
from signer.authority.lifecycle import Life
from signer.authority.rotation import ATTEMPTS, Rotation
from signer.authority.slots import BOTH
from signer.authority.state import AuthorityState
from signer.authority.store import SecretStore
from signer.cluster.kube import Object
from signer.cluster.leader import Leader
from signer.cluster.witness import Witness
from signer.errors import Conflict, StateDamaged, TransitionRefused
from signer.metrics import Metrics
from signer.model import Agent
from signer.upstream.certify import SelfSigned, UpstreamUnusable
from signer.upstream.roots import RootSource
from svid.authority import X509Authority
from svid.keys import PrivateKey
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.meanwhile import after, before, unhurried
from tests.signer_rig import START, Apart, StepClock
from tests.unit.signer.said import abandonments, all_read, sources
from tests.unit.signer.test_lifecycle import POLICY, TD, life, stages

BEGUN = StepClock().monotonic()
PATH = "/api/v1/namespaces/podsvid/secrets/authority"


class Cluster:
    """An API server and what its replicas share: time, and nothing else."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.monotonic = 1000.0
        self.kube = FakeKube(self.clock)
        self.live: frozenset[str] = frozenset()

    @property
    def stored(self) -> AuthorityState:
        return SecretStore(self.kube, "podsvid", "authority", TD)._stored(self.kube.objects[PATH]).state

    def writes(self) -> list[str]:
        """How the Secret was written."""
        return [verb for verb, path in self.kube.writes if "secrets" in path]


class Replica:
    """One signer's part of it."""

    def __init__(self, cluster: Cluster, name: str, by: Life | None = None, roots: RootSource | None = None) -> None:
        self.leader = Leader(
            cluster.kube,
            "podsvid",
            "lease",
            name,
            timedelta(seconds=15),
            Apart(cluster.clock, lambda: cluster.monotonic),
            random.Random(1),
        )
        self.agents = Agents(cluster.kube, "podsvid", name, cluster.clock)
        self.witness = Witness(cluster.clock)
        self.metrics = Metrics()
        self.rotation = Rotation(
            SecretStore(cluster.kube, "podsvid", "authority", TD),
            abandonments(cluster.kube, cluster.clock),
            by or life(),
            self.leader,
            self.agents,
            sources(lambda: cluster.live, lambda: self.witness.doubt),
            self.metrics,
            cluster.clock,
            random.Random(1),
            roots=roots,
        )

    async def open(self) -> None:
        await all_read(self.agents)
        await self.rotation.open()

    def counted(self, kind: str, step: str) -> float:
        labels = {"kind": kind, "step": step}
        return self.metrics.registry.get_sample_value("podsvid_signer_authority_steps_total", labels) or 0.0


@asynccontextmanager
async def loop(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A loop that must not end by itself."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


async def passes() -> None:
    """Time for a loop to do what it should not."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.getMessage() == message]


def test_an_older_state_is_neither_news_nor_a_confirmation() -> None:
    """A watch can bring what was before, and a Secret be put back: a revoked authority must not return."""

    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one").rotation
        await one.open()
        older = one.state
        assert older is not None
        await one.step("prepare", "x509", "", forced=False)
        newest, version = one.state, one.states.version
        assert newest is not None
        cluster.clock.pass_by(minutes=1)
        one.see(older)
        assert (one.state, one.states.version, one.confirmed_at) == (newest, version, BEGUN)
        # The same again is a confirmation and no news.
        one.see(AuthorityState.from_json(newest.to_json(), TD))
        assert (one.state, one.states.version) == (newest, version)
        assert one.confirmed_at == cluster.clock.monotonic()
        later, _ = life().activate(newest, "x509", one.acks(newest), START, forced=True)
        one.see(later)
        assert (one.state, one.states.version) == (later, version + 1)

    asyncio.run(run())


def test_of_two_first_replicas_one_makes_the_authorities() -> None:
    async def run() -> None:
        cluster = Cluster()
        unhurried(cluster.kube)
        one, two = (Replica(cluster, name).rotation for name in ("one", "two"))
        await asyncio.gather(one.open(), two.open())
        assert one.state is not None
        assert two.state is not None
        assert one.state.to_json() == two.state.to_json() == cluster.stored.to_json()
        assert one.confirmed_at == two.confirmed_at == BEGUN

    asyncio.run(run())


def test_a_secret_that_comes_and_goes_while_a_signer_starts_is_not_made_again() -> None:
    async def run() -> None:
        cluster = Cluster()
        kube = cluster.kube

        def theirs() -> None:
            kube.put(PATH, {"data": {}})
            before(kube, "get", lambda: kube.remove(PATH))

        before(kube, "create", theirs)
        starting = Replica(cluster, "one").rotation
        with pytest.raises(StateDamaged, match="start it again"):
            await starting.open()
        assert starting.state is None
        assert PATH not in kube.objects

    asyncio.run(run())


def test_a_damaged_secret_is_left_as_it_is() -> None:
    async def run() -> None:
        cluster = Cluster()
        cluster.kube.put(PATH, {"data": {"state.json": "!"}})
        starting = Replica(cluster, "one").rotation
        with pytest.raises(StateDamaged):
            await starting.open()
        assert cluster.writes() == []

    asyncio.run(run())


def test_a_secret_that_is_gone_is_not_made_anew_under_running_workloads(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        replica = Replica(cluster, "one")
        one = replica.rotation
        await one.open()
        known = one.state
        cluster.kube.remove(PATH)
        with pytest.raises(StateDamaged, match="Secret is gone"):
            await one.step("rotate", "x509", "", forced=False)
        await replica.leader.attempt()
        cluster.clock.pass_by(days=6)
        cluster.monotonic += 1
        async with loop(one.run()):
            await until(lambda: bool(said(caplog, "step failed; trying again")))
        assert PATH not in cluster.kube.objects
        assert one.state is known
        assert one.confirmed_at == BEGUN
        assert cluster.writes() == ["create"]

    asyncio.run(run())


def test_only_the_leader_takes_steps_by_itself() -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        cluster.clock.pass_by(days=5, hours=1)
        async with loop(two.rotation.run()):
            reads = len(cluster.kube.reads)
            await passes()
            # Nor does it ask the API server again and again for what is the leader's.
            assert (cluster.writes(), len(cluster.kube.reads)) == (["create"], reads)
            await two.leader.attempt()
            await until(lambda: stages(cluster.stored) == ["old", "active"])
        async with loop(one.rotation.run()):
            # It has the lease no more: it is another's now.
            cluster.monotonic += 12
            cluster.clock.pass_by(days=6)
            writes = cluster.writes()
            await passes()
            assert cluster.writes() == writes

    asyncio.run(run())


def test_a_leader_whose_lease_ran_out_while_it_read_does_nothing() -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        await one.leader.attempt()
        cluster.clock.pass_by(days=6)

        def slow() -> None:
            cluster.monotonic += 12

        async with loop(one.rotation.run()):
            after(cluster.kube, "get", slow, PATH)
            await until(lambda: not one.leader.leading)
            await passes()
        assert cluster.writes() == ["create"]

    asyncio.run(run())


def test_a_step_that_another_replica_did_is_not_done_again() -> None:
    """It is due by what this replica has seen, and no longer by what is stored."""

    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        await two.rotation.step("rotate", "x509", "", forced=False)
        one.rotation.see(cluster.stored)
        await two.leader.attempt()
        await two.rotation._advance()
        assert stages(cluster.stored) == ["active", "prepared"]
        cluster.live = frozenset({"a"})
        await two.leader.release()
        await one.leader.attempt()
        writes = len(cluster.kube.writes)
        await one.rotation._advance()
        assert len(cluster.kube.writes) == writes
        assert one.rotation.state is not None
        assert stages(one.rotation.state) == ["active", "prepared"]

    asyncio.run(run())


def test_of_two_leaders_at_once_one_step_counts(caplog: pytest.LogCaptureFixture) -> None:
    """A lease can fail (a host that stood still); the Secret's compare and swap does not."""
    caplog.set_level(logging.INFO)

    async def run() -> None:
        cluster = Cluster()
        unhurried(cluster.kube)
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
            each.leader._led_until = float("inf")
        first = cluster.stored.active_x509_id
        cluster.clock.pass_by(days=5, hours=1)
        await asyncio.gather(one.rotation._advance(), two.rotation._advance())
        assert cluster.writes() == ["create", "replace", "replace"]
        assert stages(cluster.stored) == ["active", "prepared"]
        assert cluster.stored.active_x509_id == first
        assert one.counted("x509", "prepare") + two.counted("x509", "prepare") == 1
        assert len(said(caplog, "authorities changed")) == 1
        (lost,) = said(caplog, "another replica changed the authorities first")
        assert (vars(lost)["step"], vars(lost)["kind"]) == ("prepare", "x509")

    asyncio.run(run())


def test_a_step_that_was_asked_for_is_done_on_what_another_left() -> None:
    async def run() -> None:
        cluster = Cluster()
        unhurried(cluster.kube)
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        # Both at once, of two kinds: the second is done on the state of the first.
        messages = await asyncio.gather(
            one.rotation.step("prepare", "x509", "", forced=False),
            two.rotation.step("prepare", "jwt", "", forced=False),
        )
        assert [each.split()[0] for each in messages] == ["prepared", "prepared"]
        assert stages(cluster.stored) == stages(cluster.stored, "jwt") == ["active", "prepared"]
        # Both at once, the same: one of them learns that it was done.
        outcomes = await asyncio.gather(
            one.rotation.step("activate", "x509", "", forced=False),
            two.rotation.step("activate", "x509", "", forced=False),
            return_exceptions=True,
        )
        refusals = [each for each in outcomes if isinstance(each, TransitionRefused)]
        assert len(refusals) == 1
        assert "prepare one first" in str(refusals[0])

    asyncio.run(run())


def test_a_step_that_loses_every_race_is_given_up_and_said_so() -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        before_it = one.rotation.state
        tried = 0

        async def conflicting(path: str, body: Object) -> Object:
            nonlocal tried
            tried += 1
            raise Conflict("somebody was faster")

        cluster.kube.replace = conflicting  # type: ignore[method-assign]
        with pytest.raises(TransitionRefused, match="at the same time"):
            await one.rotation.step("prepare", "x509", "", forced=False)
        assert tried == ATTEMPTS
        assert one.rotation.state is before_it
        assert one.counted("x509", "prepare") == 0

    asyncio.run(run())


def test_each_step_is_said_and_counted_and_no_key_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        (created,) = said(caplog, "authorities created")
        assert vars(created)["sequence"] == cluster.stored.sequence
        message = await one.rotation.step("prepare", "x509", "", forced=False)
        (changed,) = said(caplog, "authorities changed")
        found = vars(changed)
        assert (found["step"], found["kind"], found["why"]) == ("prepare", "x509", message)
        assert found["sequence"] == cluster.stored.sequence
        assert list(found["x509"].values()) == ["active", "prepared"]
        assert list(found["jwt"].values()) == ["active"]
        assert one.counted("x509", "prepare") == 1
        prepared = cluster.stored.x509[1].id
        await one.rotation.step("revoke", "x509", prepared, forced=False)
        assert one.counted("x509", "revoke") == 1
        assert stages(cluster.stored) == ["active"]
        assert one.rotation.state is not None
        assert one.rotation.state.to_json() == cluster.stored.to_json()
        # What changes nothing is neither written, nor said, nor counted.
        await one.rotation.step("rotate", "jwt", "", forced=False)
        writes, lines = len(cluster.kube.writes), len(said(caplog, "authorities changed"))
        assert "under way already" in await one.rotation.step("rotate", "jwt", "", forced=False)
        assert (len(cluster.kube.writes), len(said(caplog, "authorities changed"))) == (writes, lines)
        assert one.counted("jwt", "rotate") == 1
        assert "PRIVATE KEY" not in "\n".join(str(vars(each)) for each in caplog.records)

    asyncio.run(run())


def test_a_persons_step_waits_for_agents_unless_it_is_forced() -> None:
    async def run() -> None:
        cluster = Cluster()
        cluster.live = frozenset({"node-a"})
        one = Replica(cluster, "one")
        await one.open()
        await one.rotation.step("prepare", "x509", "", forced=False)
        with pytest.raises(TransitionRefused, match="node-a"):
            await one.rotation.step("activate", "x509", "", forced=False)
        one.agents.connect(Agent("node-a", "u", "agent", "p", START))
        # One that has what was before has not acknowledged.
        one.agents.acknowledged("node-a", cluster.stored.sequence - 1, {})
        with pytest.raises(TransitionRefused, match="node-a"):
            await one.rotation.step("activate", "x509", "", forced=False)
        one.agents.acknowledged("node-a", cluster.stored.sequence, {})
        await one.rotation.step("activate", "x509", "", forced=False)
        assert stages(cluster.stored) == ["old", "active"]
        old = cluster.stored.x509[0].id
        await one.rotation.step("revoke", "x509", old, forced=True)
        assert stages(cluster.stored) == ["active"]
        await one.rotation.step("prepare", "x509", "", forced=False)
        await one.rotation.step("activate", "x509", "", forced=True)
        assert stages(cluster.stored) == ["old", "active"]
        await one.rotation.step("rotate", "x509", "", forced=True)
        assert [goal.forced for goal in cluster.stored.goals] == [True]

    asyncio.run(run())


def test_a_rotation_outlives_outages_and_conflicts_of_its_steps(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        await one.rotation.step("rotate", "x509", "", forced=False)
        await one.leader.attempt()
        cluster.kube.denied.add(("replace", PATH))
        async with loop(one.rotation.run()):
            await until(lambda: len(said(caplog, "step failed; trying again")) > 1)
            assert stages(cluster.stored) == ["active"]
            cluster.kube.denied.clear()
            await until(lambda: stages(cluster.stored) == ["old", "active"])

    asyncio.run(run())


def test_where_a_ca_above_certifies_nothing_jwt_keys_are_replaced_all_the_same() -> None:
    """A stolen JWT key would be trusted for as long as the CA above is out of order; `show` says why X.509 waits."""

    class OutOfOrder:
        async def certify(
            self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
        ) -> X509Authority:
            raise UpstreamUnusable("upstream CA: it has ended")

    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        begun = cluster.stored
        one.rotation._life._make.above = OutOfOrder()
        await one.rotation.step("rotate", BOTH, "", forced=True)
        await one.leader.attempt()
        async with loop(one.rotation.run()):
            await until(lambda: [each.id for each in cluster.stored.jwt] not in ([], [begun.jwt[0].id]))
            await until(lambda: stages(cluster.stored, "jwt") == ["active"])
            await until(lambda: "UPSTREAM_UNUSABLE" in " ".join(one.rotation.next_steps(cluster.stored)))
            assert stages(cluster.stored) == ["active"]
            told = one.rotation.next_steps(cluster.stored)
            assert "x509: prepare now, a rotation was asked for" in told
            assert any(
                each.startswith(
                    "x509: it failed to prepare: UPSTREAM_UNUSABLE: upstream CA: it has ended; wanted since"
                )
                for each in told
            )
            assert one.rotation.waiting_since == cluster.clock.now()
            assert not any(each.startswith("jwt") and "failed" in each for each in told)
            one.rotation._life._make.above = SelfSigned()
            cluster.clock.pass_by(seconds=30)
            await until(lambda: cluster.stored.active_x509_id != begun.active_x509_id)
            assert "failed" not in " ".join(one.rotation.next_steps(cluster.stored))

    asyncio.run(run())


def test_what_a_leader_failed_at_is_no_alarm_once_another_leads_or_has_done_it() -> None:
    """It came back with the lease, days later, and rested on a step that another had done."""

    class OutOfOrder:
        async def certify(
            self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
        ) -> X509Authority:
            raise UpstreamUnusable("upstream CA: it has ended")

    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        cluster.clock.pass_by(days=5)
        one.rotation._life._make.above = OutOfOrder()
        attempts = one.rotation._attempts
        async with loop(one.rotation.run()):
            await one.leader.attempt()
            await until(lambda: attempts.waiting_since is not None)
            cluster.monotonic += 12
            await until(lambda: attempts.waiting_since is None)
            assert attempts.notes == []
            # The same where it leads all the time, and the step is done by a person's command elsewhere.
            await one.leader.attempt()
            await until(lambda: attempts.waiting_since is not None)
            await two.rotation.step("prepare", "x509", "", forced=False)
            await two.rotation.step("activate", "x509", "", forced=True)
            one.rotation.see(cluster.stored)
            await until(lambda: attempts.waiting_since is None)

    asyncio.run(run())


def test_agents_are_asked_to_tell_while_a_step_waits_for_them_and_no_longer() -> None:
    async def run() -> None:
        cluster = Cluster()
        cluster.live = frozenset({"dead"})
        one, other = (Replica(cluster, name) for name in ("one", "other"))
        for each in (one, other):
            await each.open()
        await one.leader.attempt()
        async with AsyncExitStack() as loops:
            for each in (one, other):
                await loops.enter_async_context(loop(each.rotation.run()))
            await passes()
            assert (one.agents.wanted, other.agents.wanted) == (False, False)
            await one.rotation.step("prepare", "x509", "", forced=False)
            other.rotation.see(cluster.stored)
            # The agents of those that do not lead are waited for as well.
            await until(lambda: one.agents.wanted and other.agents.wanted)
            cluster.clock.pass_by(seconds=POLICY.ack_bound.total_seconds())
            await until(lambda: stages(cluster.stored) == ["old", "active"])
            await until(lambda: not one.agents.wanted)

    asyncio.run(run())


def test_the_state_is_read_again_and_again_though_no_watch_says_anything(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name).rotation for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        async with loop(one.confirm(timedelta(0))):
            cluster.clock.pass_by(minutes=1)
            await until(lambda: one.confirmed_at == cluster.clock.monotonic())
            await two.step("prepare", "x509", "", forced=False)
            await until(lambda: one.state is not None and len(one.state.x509) == 2)
            # Cut off, it knows no more than it did; and it goes on trying.
            cluster.kube.down = True
            confirmed = cluster.clock.monotonic()
            cluster.clock.pass_by(minutes=1)
            await until(lambda: len(said(caplog, "the authorities' state could not be confirmed")) > 1)
            assert one.confirmed_at == confirmed
            cluster.kube.down = False
            await until(lambda: one.confirmed_at == cluster.clock.monotonic())

    asyncio.run(run())
