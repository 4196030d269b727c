"""What signers count as agreement of agents: nothing unknown, no number of another past, none that cannot be."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from runtime import giving_way
from signer.authority import acknowledgements
from signer.authority.acknowledgements import MAX_TOTAL, Agents
from signer.authority.knowledge import SETTLE, Acks, Knowledge, Sources
from signer.authority.passed_on import MAX_AUTHORITIES, MAX_SVIDS, Acknowledged, Wanted, read_replica
from signer.authority.rollback import FIRST_PAUSE, MAX_PAUSE, NOTED, OTHERS, Rollbacks, Shown
from signer.authority.rotation import Rotation
from signer.authority.slots import Stage
from signer.authority.state import SEQUENCE_SLACK, AuthorityState, believable, sequence_at
from signer.errors import ApiUnavailable, TransitionRefused
from tests.fake_kube import FakeKube
from tests.signer_rig import START, StepClock
from tests.unit.signer.said import DIGEST, all_read, says, wanted
from tests.unit.signer.test_acknowledgements import A, agent, agents
from tests.unit.signer.test_lifecycle import ALL, POLICY, done, first, life, stages
from tests.unit.signer.test_rotation import PATH, Cluster, Replica, loop, passes, said, until

UNKNOWN = Acks(frozenset(), {}, "pods are not read yet")
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


# Unknown blocks.


async def prepared(state: AuthorityState, now: datetime = START) -> AuthorityState:
    return (await life().prepare(state, "x509", now))[0]


def test_nobody_known_is_not_everybody() -> None:
    state = done(prepared(first()))
    for now in (START, START + POLICY.ack_bound, START + timedelta(hours=3)):
        assert life().due(state, UNKNOWN, now) is None, "neither by acknowledgements nor by the bound"
        assert life().outlook(state, UNKNOWN, now)[0] == "unknown: pods are not read yet"
    assert life().due(state, ALL, START) is not None
    ended = state.active_x509.not_after
    # One of the same moment would have ended with it.
    state = done(prepared(first(), START + timedelta(hours=1)))
    step = life().due(state, UNKNOWN, ended)
    assert step is not None
    assert (step.action, step.reason) == ("activate", "the active one has ended")
    with pytest.raises(TransitionRefused, match="nobody knows yet who would refuse its SVIDs: pods are not read yet"):
        life().activate(state, "x509", UNKNOWN, START, forced=False)
    after, _ = life().activate(state, "x509", UNKNOWN, START, forced=True)
    assert stages(after) == ["old", "active"]


def test_a_revoked_root_outlives_its_bound_while_nobody_is_known_but_not_for_ever() -> None:
    """All signers were away for as long as the bound: no SVID has been renewed yet."""
    state, _ = life().asked(first(), "x509", forced=True, now=START)
    state = done(prepared(state))
    state, _ = life().activate(state, "x509", ALL, START, forced=True)
    tainted = next(slot for slot in state.x509 if slot.stage is Stage.TAINTED)
    assert tainted.ends_at is not None
    assert life().due(state, replace(UNKNOWN, in_use={}), START) is None
    assert life().due(state, UNKNOWN, tainted.ends_at + POLICY.ack_bound - SECOND) is None
    for acks, now in ((ALL, START), (UNKNOWN, tainted.ends_at + POLICY.ack_bound)):
        step = life().due(state, acks, now)
        assert step is not None
        assert (step.action, step.authority_id) == ("retire", tainted.id)
    waiting = Acks(frozenset({"silent"}), None)
    assert life().due(state, waiting, tainted.ends_at) is not None, "of agents that are known it waits no longer"


class Known:
    """A replica's knowledge, with all of it settable."""

    def __init__(self, state: AuthorityState, patience: timedelta = POLICY.ack_bound) -> None:
        self.clock = StepClock()
        self.kube = FakeKube(self.clock)
        self.agents = Agents(self.kube, "podsvid", "one", self.clock)
        self.unread = ""
        self.live = A
        sources = Sources(lambda: self.live, lambda: self.unread, _none)
        self.knowledge = Knowledge(self.agents, sources, patience, self.clock)
        self.state = state
        self.agents.know(Wanted.of(self.state))

    def acks(self) -> Acks:
        return self.knowledge.acks(self.state)

    def acknowledged(self) -> None:
        self.agents.connect(agent("a"))
        self.agents.acknowledged("a", self.state.sequence, {}, self.state.digest)


async def _none() -> int:
    return 0


def test_what_is_needed_to_know_whom_to_wait_for() -> None:
    state = first()

    async def run() -> None:
        known = Known(state)
        known.clock.pass_by(hours=1)
        known.acknowledged()
        assert "other signers is not read yet" in known.acks().unknown
        await all_read(known.agents)
        assert known.acks() == Acks(frozenset(), {}, "")
        known.unread = "pods are not read yet"
        assert known.acks().unknown == "pods are not read yet"
        known.unread = ""
        known.kube.down = True
        task = asyncio.create_task(known.agents._others.run())
        await until(lambda: bool(known.acks().unknown))
        task.cancel()
        assert known.acks().unknown == "what agents acknowledge to the other signers cannot be read now"

    asyncio.run(run())


def test_agents_get_time_to_find_a_new_leader() -> None:
    state = first()

    async def run() -> None:
        known = Known(state)
        await all_read(known.agents)
        assert "agents have until 2030-01-01T00:01:00Z to tell this replica" in known.acks().unknown
        known.clock.pass_by(seconds=SETTLE.total_seconds())
        known.knowledge.leads(False)
        assert known.acks() == Acks(A, None)
        known.knowledge.leads(True)
        assert known.acks().unknown
        known.clock.pass_by(seconds=SETTLE.total_seconds())
        known.knowledge.leads(True)
        assert known.acks() == Acks(A, None)
        # The clock is set back: no new wait of that length.
        known.clock.set_by(days=-3)
        known.knowledge.leads(True)
        known.clock.pass_by(seconds=SETTLE.total_seconds())
        assert known.acks() == Acks(A, None)
        # Agents that may hold a step up for two seconds get no minute.
        hasty = Known(state, timedelta(seconds=2))
        await all_read(hasty.agents)
        assert "agents have until 2030-01-01T00:00:02Z" in hasty.acks().unknown
        hasty.clock.pass_by(seconds=2)
        assert hasty.acks() == Acks(A, None)

    asyncio.run(run())


def test_who_has_said_it_need_not_be_waited_for() -> None:
    state = first()

    async def run() -> None:
        known = Known(state)
        await all_read(known.agents)
        known.acknowledged()
        assert known.acks() == Acks(frozenset(), {}, "")

    asyncio.run(run())


# Acknowledgements name a trust, and numbers are bounded.


def test_a_number_of_another_past_is_no_acknowledgement() -> None:
    here = agents(FakeKube(StepClock()), StepClock(), "one")
    here.connect(agent("a"))
    other = bytes(32)
    for sequence, digest, has in (
        (7, DIGEST, True),
        (8, DIGEST, True),
        (6, DIGEST, False),
        (7, other, False),
        (8, other, False),
        # From before there were digests: the number, where it is the signer's own.
        (7, b"", True),
        (8, b"", False),
        (7, DIGEST[:31], False),
    ):
        says(here, "a", sequence, {}, digest)
        assert here.summary(wanted(7), A) == (frozenset() if has else A, {}), (sequence, digest)


def test_what_other_replicas_write_has_the_trust_too() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        one, two = agents(kube, clock, "one"), agents(kube, clock, "two")
        for node, digest in (("a", DIGEST), ("b", bytes(32)), ("c", b"")):
            one.connect(agent(node))
            says(one, node, 7, {"x": 2}, digest)
        await one.write()
        await all_read(two)
        assert two.summary(wanted(7), frozenset("abc")) == (frozenset("b"), {"x": 6})
        # From a replica of before: numbers without digests.
        body = kube.objects["/api/v1/namespaces/podsvid/configmaps/podsvid-agents-one"]
        body["data"] |= {"version": "1", "nodes": '{"a":[7,{"x":1}],"b":[8,{}]}'}
        found = read_replica(body)
        assert found is not None
        assert [found.nodes[node].has(wanted(7)) for node in "ab"] == [True, False]

    asyncio.run(run())


@pytest.mark.parametrize(
    "nodes",
    [
        '{"digests":["00"],"nodes":{"a":[7,{},0]}}',
        '{"digests":["zz"],"nodes":{"a":[7,{},0]}}',
        '{"digests":[],"nodes":{"a":[7,{},0]}}',
        '{"digests":[""],"nodes":{"a":[7,{},-1]}}',
        '{"digests":[""],"nodes":{"a":[-7,{},0]}}',
        '{"digests":[""],"nodes":{"a":[true,{},0]}}',
        '{"digests":[""],"nodes":{"a":[1e400,{},0]}}',
        '{"digests":[""],"nodes":{"a":[99999999999999999999,{},0]}}',
        '{"digests":[""],"nodes":{"a":[7,{"x":-1},0]}}',
        '{"digests":[""],"nodes":{"a":[7,{"x":"1"},0]}}',
        '{"digests":[""],"nodes":{"a":[7,{}]}}',
        '{"a":[7,{}]}',
        "[" * 100_000,
    ],
)
def test_numbers_that_cannot_be_are_nobodys_word(nodes: str) -> None:
    for version, more in (("2", ""), ("3", '"authorities":["x"],')):
        told = nodes.replace('{"digests"', f'{{{more}"digests"').replace('"x":', '"0":' if more else '"x":')
        data = {"version": version, "identity": "one", "written_at": START.isoformat(), "nodes": told}
        assert read_replica({"metadata": {"name": "podsvid-agents-one"}, "data": data}) is None
        fine = {**data, "nodes": f'{{{more}"digests":[""],"nodes":{{"a":[7,{{}},0]}}}}'}
        assert read_replica({"metadata": {"name": "podsvid-agents-one"}, "data": fine}) is not None


@pytest.mark.parametrize("place", ["1", "-1", "x", "0.0", ""])
def test_an_authority_that_is_nowhere_is_nobodys_word(place: str) -> None:
    nodes = f'{{"digests":[""],"authorities":["x"],"nodes":{{"a":[7,{{"{place}":1}},0]}}}}'
    data = {"version": "3", "identity": "one", "written_at": START.isoformat(), "nodes": nodes}
    assert read_replica({"metadata": {"name": "podsvid-agents-one"}, "data": data}) is None


def test_an_absurd_word_of_one_agent_is_bounded_where_it_comes_in(caplog: pytest.LogCaptureFixture) -> None:
    clock = StepClock()
    here = agents(FakeKube(clock), clock, "one")
    top = sequence_at(clock.now()) + SEQUENCE_SLACK
    for node in "ab":
        here.connect(agent(node))
    begun = here._lively_until = clock.monotonic()
    for sequence in (2**64 - 1, top + 1):
        says(here, "a", sequence, {"x": 2**32 - 1, "unheard-of": 5})
        assert asyncio.run(here.ahead(A)) == {}
        assert here.summary(wanted(7), A) == (A, {"x": MAX_SVIDS})
    assert len(caplog.records) == 1, "said once in a while, not each time"
    clock.pass_by(minutes=2)
    says(here, "a", 2**64 - 1, {})
    assert len(caplog.records) == 2
    says(here, "a", top, {"x": 1})
    assert asyncio.run(here.ahead(A)) == {"a": top}
    assert asyncio.run(here.ahead(frozenset("b"))) == {}
    # What nobody waits for keeps no replica writing.
    assert here._lively_until == begun


def test_a_sum_of_lies_can_still_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many nodes as there may be; the limit of one is raised, not to need them all."""
    monkeypatch.setattr(acknowledgements, "MAX_SVIDS", MAX_TOTAL)
    here = agents(FakeKube(StepClock()), StepClock(), "one")
    for node in "ab":
        here.connect(agent(node))
        says(here, node, 7, {"x": MAX_TOTAL})
    assert here.summary(wanted(7), frozenset("ab")) == (frozenset(), {"x": MAX_TOTAL})
    assert MAX_TOTAL == 2**32 - 1


def test_no_more_authorities_are_kept_than_an_agent_may_name() -> None:
    here = agents(FakeKube(StepClock()), StepClock(), "one")
    names = frozenset(f"{number:040x}" for number in range(MAX_AUTHORITIES + 10))
    here.know(Wanted(7, DIGEST.hex(), names))
    here.connect(agent("a"))
    says(here, "a", 7, dict.fromkeys(names, 1))
    assert len(here._nodes["a"].in_use) == MAX_AUTHORITIES


def test_what_can_have_been() -> None:
    now = sequence_at(START)
    assert believable(now + SEQUENCE_SLACK, 5, START)
    assert not believable(now + SEQUENCE_SLACK + 1, 5, START)
    # The clock was set back: the own number still counts, and nothing is counted from it.
    assert believable(now * 2, now * 2, START)
    assert not believable(now * 2 + 1, now * 2, START)
    assert not believable(-1, 5, START)


# Sequences, and older Secrets.


def test_each_step_is_above_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        await one.open()
        assert cluster.stored.sequence == sequence_at(START) == 1893456000000
        cluster.clock.pass_by(hours=1)
        await one.rotation.step("prepare", "x509", "", forced=False)
        assert cluster.stored.sequence == sequence_at(cluster.clock.now())
        # The clock goes back, or stands still: it rises all the same.
        cluster.clock.set_by(hours=-2)
        before = cluster.stored.sequence
        await one.rotation.step("revoke", "x509", cluster.stored.x509[1].id, forced=True)
        assert cluster.stored.sequence == before + 1

    asyncio.run(run())


class Restored:
    """A cluster whose signers all started anew with the Secret of an hour ago; an agent holds what came after it."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.cluster.live = A
        self.held = 0
        self.one = Replica(self.cluster, "none")

    async def begin(self, published: int | None = None, action: str = "") -> None:
        before = Replica(self.cluster, "before")
        await before.open()
        if action:
            await before.rotation.step(action, "x509", "", forced=False)
        saved = dict(self.cluster.kube.objects[PATH]["data"])
        self.cluster.clock.pass_by(minutes=30)
        await before.rotation.step("prepare", "jwt", "", forced=False)
        self.held = self.cluster.stored.sequence
        self.digest = self.cluster.stored.digest
        self.cluster.clock.pass_by(minutes=30)
        self.cluster.kube.put(PATH, {"data": saved})
        self.one = self.started(published)
        await self.one.open()
        await self.one.leader.attempt()

    def started(self, published: int | None = None) -> Replica:
        one = Replica(self.cluster, "one")
        number = self.held if published is None else published

        async def read() -> int:
            return number

        sources = Sources(lambda: self.cluster.live, lambda: "", read)
        one.rotation = Rotation(
            one.rotation._store,
            one.rotation._abandonments,
            life(),
            one.leader,
            one.agents,
            sources,
            one.metrics,
            self.cluster.clock,
            random.Random(1),
        )
        return one

    def connect(self, sequence: int | None = None, nodes: str = "a") -> None:
        self.cluster.live |= frozenset(nodes)
        for node in nodes:
            self.one.agents.connect(agent(node))
            self.one.agents.acknowledged(node, self.held if sequence is None else sequence, {}, self.digest)

    def detected(self) -> float:
        read = self.one.metrics.registry.get_sample_value
        return read("podsvid_signer_rollbacks_detected_total", {"how": "restored"}) or 0.0


def restored(test: Callable[[Restored], Awaitable[None]]) -> None:
    asyncio.run(_awaited(test(Restored())))


async def _awaited(work: Awaitable[None]) -> None:
    await work


@pytest.mark.parametrize("shown_by", ["agents", "the published bundle"])
def test_a_restored_older_secret_is_published_above_what_agents_hold(
    shown_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(at: Restored) -> None:
        await at.begin(0 if shown_by == "agents" else None)
        if shown_by == "agents":
            at.connect(nodes="ab")
            assert at.one.rotation.state is not None
            waiting = at.one.rotation.acks(at.one.rotation.state).waiting
            assert waiting == at.cluster.live == frozenset("ab"), "a higher number is no consent"
        old = at.cluster.stored
        async with loop(at.one.rotation.run()):
            await until(lambda: at.cluster.stored.sequence > at.held)
            writes = len(at.cluster.kube.writes)
            await passes()
        assert len(at.cluster.kube.writes) == writes
        assert at.cluster.stored.sequence >= sequence_at(at.cluster.clock.now())
        assert at.cluster.stored.digest == old.digest
        assert at.detected() == 1
        (line,) = said(
            caplog, "an older Secret was restored: the cluster knows a newer trust bundle; published anew, above it"
        )
        assert (line.levelno, vars(line)["known"]) == (logging.ERROR, at.held)
        note = at.one.rotation.next_steps(at.cluster.stored)[0]
        assert note.startswith("rollback at ")
        assert "force a rotation again" in note
        at.cluster.clock.pass_by(seconds=NOTED.total_seconds() + 1)
        assert "rollback" not in " ".join(at.one.rotation.next_steps(at.cluster.stored))

    restored(test)


@pytest.mark.parametrize("shown_by", ["agents", "the published bundle"])
def test_of_what_was_issued_since_the_backup_nobody_knows_how_long_it_lives(shown_by: str) -> None:
    """Longer SVIDs may have been promised since: trust ends after the longest that the settings allow."""

    async def test(at: Restored) -> None:
        await at.begin(0 if shown_by == "agents" else None)
        if shown_by == "agents":
            at.connect(nodes="ab")
        assert at.cluster.stored.longest("x509") is not None
        await at.one.rotation._go_above()
        assert (at.cluster.stored.longest("x509"), at.cluster.stored.longest("jwt")) == (None, None)
        await at.one.rotation._advance()
        assert at.cluster.stored.longest("x509") == POLICY.x509_max_ttl
        assert at.cluster.stored.longest("jwt") == POLICY.jwt_max_ttl

    restored(test)


@pytest.mark.parametrize("others", ["", "b"])
def test_the_word_of_one_agent_is_answered_and_says_nothing_of_how_long_svids_live(
    others: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It may lie: its number is gone above; no lifetime is forgotten, no bound begins anew, and no restore is told."""

    async def test(at: Restored) -> None:
        await at.begin(0, action="prepare")
        at.cluster.live |= frozenset(others)
        at.connect(at.cluster.stored.sequence + 1)
        before = at.cluster.stored
        await at.one.rotation._go_above()
        if others:
            assert at.cluster.stored.sequence == before.sequence, "others may say so too"
            at.cluster.clock.pass_by(seconds=OTHERS.total_seconds() - 1)
            await at.one.rotation._go_above()
            assert at.cluster.stored.sequence == before.sequence
            at.cluster.clock.pass_by(seconds=1)
            at.one.leader._led_until = float("inf")
            await at.one.rotation._go_above()
        after = at.cluster.stored
        assert after.sequence > before.sequence + 1
        assert replace(after, sequence=before.sequence).to_json() == before.to_json()
        assert None not in (after.longest("x509"), after.longest("jwt"))
        assert at.detected() == 0
        (line,) = said(caplog, "one agent names a newer trust bundle than there is; published anew, above it")
        assert (line.levelno, vars(line)["node"]) == (logging.WARNING, "a")
        note = at.one.rotation.next_steps(after)[0]
        assert note.startswith("at 2030-")
        assert "node a alone named" in note
        # Of a true restore everything is still forgotten, and begun anew, once.
        at.cluster.clock.pass_by(seconds=FIRST_PAUSE.total_seconds())
        at.connect(after.sequence + SEQUENCE_SLACK // 2, nodes="bc")
        await at.one.rotation._go_above()
        found = at.cluster.stored
        begun = at.cluster.clock.now()
        assert (found.longest("x509"), found.x509[1].prepared_at) == (None, begun)
        assert at.detected() == 1
        at.cluster.clock.pass_by(seconds=2 * FIRST_PAUSE.total_seconds())
        at.connect(found.sequence + 1, nodes="bc")
        await at.one.rotation._go_above()
        assert at.detected() == 2
        assert at.cluster.stored.x509[1].prepared_at == begun

    restored(test)


def test_who_is_ahead_of_a_signer() -> None:
    """Neither who has what it has itself, nor who names what cannot be, whoever passed it on."""
    clock = StepClock()
    here = agents(FakeKube(clock), clock, "one")
    top = sequence_at(clock.now()) + SEQUENCE_SLACK
    for node, number in (("a", 9), ("b", 10), ("c", top), ("d", top + 1), ("e", 8), ("gone", 10)):
        here.connect(agent(node))
        here._nodes[node] = Acknowledged(number)
    assert asyncio.run(here.ahead(frozenset("abcdef"))) == {"b": 10, "c": top}


def test_each_lie_of_one_agent_waits_for_others_again() -> None:
    async def test(at: Restored) -> None:
        await at.begin(0)
        at.cluster.live |= frozenset("b")
        at.connect(at.cluster.stored.sequence + 1)
        at.one.leader._led_until = float("inf")
        await at.one.rotation._go_above()
        at.cluster.clock.pass_by(seconds=OTHERS.total_seconds())
        await at.one.rotation._go_above()
        answered = at.cluster.stored.sequence
        await at.one.rotation._go_above()
        at.cluster.clock.pass_by(hours=2)
        at.one.agents.acknowledged("a", answered + 1, {}, at.digest)
        await at.one.rotation._go_above()
        assert at.cluster.stored.sequence == answered
        # A clock that was set back makes it wait no longer than that.
        at.cluster.clock.set_by(hours=-3)
        await at.one.rotation._go_above()
        at.cluster.clock.pass_by(seconds=OTHERS.total_seconds())
        await at.one.rotation._go_above()
        assert at.cluster.stored.sequence > answered

    restored(test)


def test_who_leaves_while_it_is_looked_is_named_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(at: Restored) -> None:
        await at.begin(0)
        at.connect(at.cluster.stored.sequence + 1)
        at.cluster.live |= frozenset("b")
        at.one.leader._led_until = float("inf")
        await at.one.rotation._go_above()
        at.cluster.clock.pass_by(seconds=OTHERS.total_seconds())

        async def leave() -> None:
            at.one.agents._nodes.clear()

        monkeypatch.setattr(giving_way, "give_way", leave)
        monkeypatch.setattr(acknowledgements, "NODES_AT_ONCE", 1)
        await at.one.rotation._go_above()
        told = [each for each in caplog.records if each.getMessage().startswith("one agent names a newer")]
        assert [vars(each)["node"] for each in told] == ["a"]

    restored(test)


def test_a_replica_that_is_merely_late_publishes_nothing() -> None:
    async def test(at: Restored) -> None:
        await at.begin(0)
        other = Replica(at.cluster, "other")
        await other.open()
        await other.rotation.step("prepare", "jwt", "", forced=False)
        at.connect(at.cluster.stored.sequence)
        writes = at.cluster.writes()
        await at.one.rotation._go_above()
        assert at.cluster.writes() == writes
        assert at.one.rotation.state is not None
        assert at.one.rotation.state.sequence == at.cluster.stored.sequence
        assert at.detected() == 0

    restored(test)


def test_only_who_leads_publishes_above() -> None:
    async def test(at: Restored) -> None:
        await at.begin()
        await at.one.leader.release()
        async with loop(at.one.rotation.run()):
            await passes()
        assert at.cluster.stored.sequence < at.held

    restored(test)


def test_a_published_number_that_cannot_be_is_nobodys() -> None:
    async def test(at: Restored) -> None:
        await at.begin(sequence_at(START) * 2)
        before = at.cluster.stored.sequence
        async with loop(at.one.rotation.run()):
            await passes()
        assert at.cluster.stored.sequence == before

    restored(test)


def test_a_cluster_whose_published_bundle_cannot_be_read_starts_all_the_same() -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")

        async def away() -> int:
            raise ApiUnavailable("away")

        sources = Sources(frozenset, lambda: "", away)
        rotation = Rotation(
            one.rotation._store,
            one.rotation._abandonments,
            life(),
            one.leader,
            one.agents,
            sources,
            one.metrics,
            cluster.clock,
            random.Random(1),
        )
        await rotation.open()
        assert rotation.state is not None

    asyncio.run(run())


def test_of_a_second_older_secret_what_waited_waits_anew_as_well() -> None:
    shown, clock = Shown(frozenset("ab")), StepClock()
    rollbacks = Rollbacks(clock)

    def restored_again(state: AuthorityState) -> AuthorityState:
        clock.at += timedelta(hours=1)
        after = rollbacks.above(state, state.sequence + 7, proven=True)
        rollbacks.done(state.sequence, state.sequence + 7, after.sequence, shown)
        return after

    one, two = (done(prepared(first())) for _ in range(2))
    assert one.x509[1].id != two.x509[1].id
    for each in (one, two):
        after = restored_again(each)
        assert after.x509[1].prepared_at == clock.at
        assert restored_again(after).x509[1].prepared_at == after.x509[1].prepared_at
    # What was not written has begun nothing.
    three = done(prepared(first()))
    rollbacks.above(three, three.sequence + 7, proven=True)
    assert restored_again(three).x509[1].prepared_at == clock.at


def test_what_waited_before_the_backup_waits_anew_once() -> None:
    """Its bound passed long ago, and no agent has what was prepared. Nobody can put the bound off again."""

    async def test(at: Restored) -> None:
        await at.begin(action="prepare")
        at.cluster.clock.pass_by(seconds=SETTLE.total_seconds() + 1)
        at.connect()
        async with loop(at.one.rotation.run()):
            await until(lambda: at.cluster.stored.sequence > at.held)
            await passes()
            assert stages(at.cluster.stored) == ["active", "prepared"]
            begun = at.cluster.stored.x509[1].prepared_at
            assert begun == at.cluster.clock.now()
            # One that lies goes on naming higher numbers.
            at.cluster.clock.pass_by(seconds=FIRST_PAUSE.total_seconds())
            sequence = at.cluster.stored.sequence
            at.one.agents.acknowledged("a", sequence + 10, {}, at.digest)
            await until(lambda: at.cluster.stored.sequence > sequence + 10)
            assert at.cluster.stored.x509[1].prepared_at == begun
            at.cluster.clock.at = begun + POLICY.ack_bound
            await until(lambda: stages(at.cluster.stored) == ["old", "active"])

    restored(test)


def test_one_agent_that_lies_makes_no_storm_of_writes() -> None:
    async def test(at: Restored) -> None:
        await at.begin(0)
        at.one.agents.connect(agent("a"))
        published = []
        for _ in range(24 * 60):
            at.one.agents.acknowledged("a", sequence_at(at.cluster.clock.now()) + SEQUENCE_SLACK, {}, at.digest)
            before = at.cluster.stored.sequence
            for _ in range(3):
                await at.one.rotation._go_above()
            if at.cluster.stored.sequence != before:
                published.append(at.cluster.clock.now())
            at.one.leader._led_until = float("inf")
            at.cluster.clock.pass_by(minutes=1)
        pauses = [after - before for before, after in pairwise(published)]
        assert pauses[:4] == [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4, FIRST_PAUSE * 8]
        assert max(pauses) == pauses[-1] == MAX_PAUSE
        top = sequence_at(at.cluster.clock.now()) + SEQUENCE_SLACK
        assert at.cluster.stored.sequence < top

    restored(test)


def test_whatever_one_agent_says_no_number_gets_further_ahead_than_is_believed_after_a_restore() -> None:
    """It names a day more than the signer's own number, again and again: that was 28 days after one day."""

    async def test(at: Restored) -> None:
        await at.begin(0)
        at.one.agents.connect(agent("a"))
        earlier = at.cluster.stored.sequence
        for _ in range(12 * 60):
            for number in (at.cluster.stored.sequence + SEQUENCE_SLACK, at.cluster.stored.sequence + 1):
                at.one.agents.acknowledged("a", number, {}, at.digest)
                await at.one.rotation._go_above()
            at.one.leader._led_until = float("inf")
            at.cluster.clock.pass_by(minutes=1)
        now = at.cluster.clock.now()
        assert sequence_at(now) < at.cluster.stored.sequence <= sequence_at(now) + SEQUENCE_SLACK
        # What agents truly have by then shows a Secret of before to be an old one.
        assert believable(at.cluster.stored.sequence, earlier, now)

    restored(test)


def test_a_clock_that_was_set_back_lets_a_rollback_be_mended() -> None:
    clock = StepClock()
    rollbacks = Rollbacks(clock)
    assert rollbacks.due
    rollbacks.done(1, 2, 3, Shown(frozenset(), in_the_cluster=True))
    assert not rollbacks.due
    clock.set_by(days=-1)
    assert not rollbacks.due
    clock.pass_by(minutes=1)
    assert rollbacks.due


def test_an_older_secret_under_running_signers_is_replaced_by_the_newest_that_any_of_them_knows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was revoked since stays revoked, whoever of them is first."""

    async def run(order: tuple[int, int]) -> None:
        cluster = Cluster()
        replicas = [Replica(cluster, name) for name in ("late", "knows")]
        late, knows = replicas
        for each in replicas:
            await each.open()
        old = dict(cluster.kube.objects[PATH]["data"])
        await late.rotation.step("prepare", "x509", "", forced=False)
        knows.rotation.see(cluster.stored)
        await knows.rotation.step("revoke", "x509", cluster.stored.x509[1].id, forced=True)
        newest = cluster.stored.to_json()
        cluster.kube.put(PATH, {"data": old})
        for index in (*order, *order):
            await replicas[index].rotation._loaded()
        assert cluster.stored.to_json() == newest
        for each in replicas:
            assert each.rotation.state is not None
            assert each.rotation.state.to_json() == newest
            counted = each.metrics.registry.get_sample_value
            if counted("podsvid_signer_rollbacks_detected_total", {"how": "replaced"}):
                assert "the newer one" in each.rotation.next_steps(each.rotation.state)[0]
        lines = said(caplog, "the authorities' Secret was replaced by an older one; the newer one was put back")
        assert {line.levelno for line in lines} == {logging.ERROR}

    for order in ((0, 1), (1, 0)):
        asyncio.run(run(order))


def test_who_comes_second_in_putting_it_back_reads_again() -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = Replica(cluster, "one"), Replica(cluster, "two")
        for each in (one, two):
            await each.open()
        old = dict(cluster.kube.objects[PATH]["data"])
        await one.rotation.step("prepare", "x509", "", forced=False)
        two.rotation.see(cluster.stored)
        cluster.kube.put(PATH, {"data": old})
        plain = cluster.kube.get

        async def slow(path: str) -> dict[str, object]:
            found = await plain(path)
            await asyncio.sleep(0)
            return found

        cluster.kube.get = slow  # type: ignore[method-assign]
        await asyncio.gather(one.rotation._loaded(), two.rotation._loaded())
        assert stages(cluster.stored) == ["active", "prepared"]

    asyncio.run(run())
