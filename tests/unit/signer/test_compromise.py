"""After a theft: nothing that was in the Secret when a forced rotation was asked for is trusted once it is over."""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.recovery import MAX_REMEMBERED
from signer.authority.slots import KINDS, Stage
from signer.authority.state import Abandoned, AuthorityState, Goal
from signer.authority.timing import FORCED_GRACE
from signer.errors import StateDamaged, TransitionRefused
from svid.authority import X509Authority
from svid.errors import InvalidSvid
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import check_jwt_svid
from svid.x509svid import check_x509_svid
from tests.meanwhile import before
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, WEB, advanced, done, first, life, stages
from tests.unit.signer.test_rotation import Cluster, Replica
from tests.unit.signer.test_store import upstream_files

NOBODY = Acks(frozenset({"silent"}), None)
SECOND = timedelta(seconds=1)
# From the command until nothing of before is trusted, whoever is silent.
BOUND = 2 * POLICY.forced_window + FORCED_GRACE


@dataclass
class Thief:
    """Everybody's keys that ever were in the Secret."""

    x509: dict[str, X509Authority]
    jwt: dict[str, JwtSigningKey]

    @classmethod
    def of(cls, *states: AuthorityState) -> "Thief":
        found = cls({}, {})
        for state in states:
            found.x509 |= {slot.id: slot.authority for slot in state.x509 if isinstance(slot.authority, X509Authority)}
            found.jwt |= {slot.id: slot.key for slot in state.jwt if isinstance(slot.key, JwtSigningKey)}
        return found

    def accepted(self, state: AuthorityState, now: datetime) -> list[str]:
        """Which of its keys forge what verifiers of `state` take."""
        found = []
        for each, authority in self.x509.items():
            try:
                check_x509_svid(authority.issue(KEY, WEB, ttl=timedelta(hours=1), now=now), state.bundle, now)
                found.append(each)
            except InvalidSvid:
                pass
        for each, key in self.jwt.items():
            try:
                token = key.issue(WEB, ["api"], ttl=timedelta(minutes=10), now=now).token
                check_jwt_svid(token, {TD: state.bundle}, "api", now)
                found.append(each)
            except InvalidSvid:
                pass
        return found


def stolen(state: AuthorityState, now: datetime, *kinds: str) -> AuthorityState:
    return life().compromised(state, kinds or KINDS, now)[0]


def rotated(state: AuthorityState, kind: str, now: datetime) -> AuthorityState:
    """An ordinary rotation up to where the new one signs."""
    return advanced(life().asked(state, kind, forced=False, now=now)[0], now)


def test_old_authorities_of_an_ordinary_rotation_are_not_trusted_after_a_theft() -> None:
    """The first case of forced.py."""
    begun = first()
    now = START + timedelta(hours=1)
    state = rotated(rotated(begun, "x509", START), "jwt", START)
    thief = Thief.of(begun, state)
    assert len(thief.accepted(state, now)) == 4
    state = stolen(state, now)
    state = advanced(state, now)
    assert thief.accepted(state, now) == []
    assert (stages(state), stages(state, "jwt")) == (["active"], ["active"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_waited_to_sign_is_dropped_at_once_and_never_signs(kind: str) -> None:
    """The second case of forced.py."""
    state, _ = done(life().prepare(first(), kind, START))
    prepared = state.slots(kind)[1].id
    thief = Thief.of(state)
    state = stolen(state, START, kind)
    assert stages(state, kind) == ["active"]
    assert prepared not in thief.accepted(state, START)
    state = advanced(state, START, NOBODY)
    assert stages(state, kind) == ["active", "prepared"]
    assert state.slots(kind)[1].id != prepared
    state = advanced(advanced(state, START), START)
    assert [each for each in thief.accepted(state, START) if each in state.abandoned_ids(kind)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_stolen_one_signs_until_its_successor_is_known_and_no_longer(kind: str) -> None:
    state = rotated(first(), kind, START)
    old, active = (slot.id for slot in state.slots(kind))
    state = advanced(stolen(state, START, kind), START, NOBODY)
    assert stages(state, kind) == ["tainted", "active", "prepared"]
    assert state.slots(kind)[1].id == active
    # Silent agents hold it up for the shorter bound only.
    assert advanced(state, START + POLICY.forced_window - SECOND, NOBODY) is state
    after = advanced(state, START + POLICY.forced_window, NOBODY)
    assert after.find(kind, Stage.ACTIVE) is not None
    if kind == "jwt":
        assert stages(after, kind) == ["active"]
        return
    assert stages(after) == ["tainted", "tainted", "active"]
    # All that is left is re-issued in the same window, and leaves at the same bound.
    assert {each.authority_id: each.end - each.start for each in after.directives} == {
        old: POLICY.forced_window,
        active: POLICY.forced_window,
    }
    held = Acks(frozenset(), {old: 1, active: 1})
    assert advanced(after, START + BOUND - SECOND, held) is after
    assert stages(advanced(after, START + BOUND, held)) == ["active"]
    assert stages(advanced(after, START + POLICY.forced_window, Acks(frozenset(), {active: 1}))) == [
        "tainted",
        "active",
    ]


def test_a_tainted_authority_is_given_no_more_time_by_a_theft() -> None:
    state = rotated(first(), "x509", START)
    state, _ = life().revoke(state, "x509", state.x509[0].id, START, forced=False)
    bound = state.x509[0].ends_at
    now = START + timedelta(seconds=10)
    held = Acks(frozenset(), {slot.id: 1 for slot in state.x509})
    state = advanced(stolen(state, now), now, held)
    assert (stages(state), state.x509[0].ends_at) == (["tainted", "tainted", "active"], bound)


def test_a_theft_during_an_ordinary_rotation_starts_it_again() -> None:
    state, _ = life().asked(first(), "x509", forced=False, now=START)
    state = advanced(state, START, NOBODY)
    thief = Thief.of(state)
    state = stolen(state, START, "x509")
    assert (stages(state), state.goals) == (["active"], frozenset({Goal("x509", True)}))
    # An ordinary one that is asked for then is under way already, and stays forced.
    again, said = life().asked(state, "x509", forced=False, now=START)
    assert (again, "under way" in said) == (state, True)
    state = advanced(state, START)
    assert [each for each in thief.accepted(state, START) if each in thief.x509] == []


def test_a_second_theft_abandons_what_the_first_made() -> None:
    state = advanced(stolen(first(), START), START, NOBODY)
    second = stolen(state, START + SECOND)
    assert (stages(second), stages(second, "jwt")) == (["active"], ["active"])
    assert [each.asked_at for each in second.abandoned if each.left_at] == [START + SECOND] * 2
    thief = Thief.of(state, second)
    assert len(thief.x509) == len(thief.jwt) == 2
    # And one that was put in service meanwhile.
    served = advanced(state, START, Acks(frozenset(), {state.active_x509_id: 1}))
    third = advanced(stolen(served, START + SECOND), START + SECOND)
    assert Thief.of(state, served).accepted(third, START + SECOND) == []


def test_an_old_jwt_key_leaves_with_the_stolen_one_and_not_before() -> None:
    """No agent says which tokens are held, so that none is not known; and a thief has the active key as well."""
    state = stolen(rotated(first(), "jwt", START), START, "jwt")
    assert stages(state, "jwt") == ["tainted", "active"]
    step = life().due(state, ALL, START)
    assert step is not None
    assert (step.action, step.kind) == ("prepare", "jwt")


def test_a_second_theft_puts_off_no_re_issue_of_the_first() -> None:
    """Agents renew by the end of the window that they were told; what leaves before it would cut them off."""
    now = START + POLICY.forced_window
    state = advanced(advanced(stolen(first(), START), START, NOBODY), now, NOBODY)
    (told,) = state.directives
    bound = state.x509[0].ends_at
    assert bound == told.end + FORCED_GRACE
    later = now + timedelta(seconds=40)
    held = Acks(frozenset(), {slot.id: 1 for slot in state.x509})
    state = advanced(stolen(state, later), later, held)
    assert (stages(state), state.x509[0].ends_at) == (["tainted", "tainted", "active"], bound)
    ends = {each.authority_id: each.end for each in state.directives}
    assert ends == {told.authority_id: told.end, state.x509[1].id: later + POLICY.forced_window}


def test_asking_twice_is_asking_once_while_nothing_was_made() -> None:
    state = stolen(first(), START)
    again, said = life().compromised(state, KINDS, START + SECOND)
    assert again is state
    assert said == "a forced rotation of the x509 and jwt authorities is under way already; nothing was made since"
    # Of one kind it is under way, of the other it begins.
    one = stolen(first(), START, "jwt")
    both = stolen(one, START + SECOND)
    assert [(each.kind, each.asked_at) for each in both.abandoned] == [("jwt", START), ("x509", START + SECOND)]
    assert both.goals == {Goal("x509", True), Goal("jwt", True)}


def test_one_kind_by_choice() -> None:
    state = first()
    jwt = state.jwt
    state = advanced(stolen(state, START, "x509"), START)
    assert (state.jwt, state.abandoned_ids("jwt")) == (jwt, frozenset())
    off = life(jwt_algorithm=None)
    without = advanced(first(), START, by=off)
    with pytest.raises(TransitionRefused, match="--jwt-svids"):
        off.compromised(without, ("jwt",), START)
    both, said = off.compromised(without, KINDS, START)
    assert said.startswith("forced rotation of the x509 authorities started; abandoned: x509 ")
    assert both.goals == {Goal("x509", True)}


def test_what_is_abandoned_is_recorded_until_it_is_over() -> None:
    state = rotated(rotated(first(), "x509", START), "jwt", START)
    state, _ = done(life().prepare(state, "x509", START))
    old, active, prepared = (slot.id for slot in state.x509)
    old_ends, jwt_ends = state.x509[0].ends_at, state.jwt[0].ends_at
    now = START + timedelta(minutes=5)
    state, said = life().compromised(state, KINDS, now)
    for each in (old, active, prepared, *(slot.id for slot in state.jwt)):
        assert each in said
    at_first = {each.authority_id: each for each in state.abandoned}
    assert at_first[old] == Abandoned("x509", old, now, svids_end=old_ends)
    assert at_first[active] == Abandoned("x509", active, now)
    assert at_first[prepared] == Abandoned("x509", prepared, now, left_at=now)
    assert at_first[state.jwt[0].id] == Abandoned("jwt", state.jwt[0].id, now, svids_end=jwt_ends)
    held = Acks(frozenset(), {active: 1})
    state = advanced(state, now, held)
    activated = {each.authority_id: each for each in state.abandoned}
    assert activated[active].svids_end == now + POLICY.x509_max_ttl + POLICY.overlap
    assert activated[active].left_at is None
    # Nobody holds an SVID of the old one: it left for that.
    assert (activated[old].left_at, activated[old].replaced) == (now, True)
    ended = advanced(state, now + BOUND, held)
    assert {each.authority_id: (each.left_at, each.replaced) for each in ended.abandoned}[active] == (
        now + BOUND,
        False,
    )
    sooner = advanced(state, now + SECOND)
    assert {each.authority_id: each.replaced for each in sooner.abandoned}[active] is True
    jwt = [each for each in ended.abandoned if each.kind == "jwt"]
    assert [each.left_at for each in jwt] == [now, now]
    assert jwt[1].svids_end == now + POLICY.jwt_max_ttl + POLICY.overlap


def test_of_what_has_left_so_much_is_remembered() -> None:
    state = first()
    for number in range(MAX_REMEMBERED):
        now = START + number * timedelta(minutes=1)
        state = advanced(stolen(state, now), now)
    assert len(state.abandoned) <= MAX_REMEMBERED + 2
    assert state.abandoned[-1].asked_at == now
    assert AuthorityState.from_json(state.to_json(), TD).abandoned == state.abandoned


def test_an_authority_that_a_ca_above_certified_stays_accepted_where_its_root_stays(tmp_path: Path) -> None:
    """The record says so: the way out is a new root above."""
    _, upstream = upstream_files(tmp_path)
    below = Life(POLICY, upstream, TD)
    state = done(below.first(START))
    thief = Thief.of(state)
    after, _ = below.compromised(state, KINDS, START)
    after = advanced(after, START, by=below)
    (entry,) = (each for each in after.abandoned if each.kind == "x509")
    assert entry.left_at == START
    assert entry.certified_until == state.active_x509.not_after
    assert thief.accepted(after, START) == [entry.authority_id]
    assert {each.certified_until for each in stolen(first(), START).abandoned} == {None}


def test_no_state_puts_an_abandoned_authority_in_service() -> None:
    """Whoever writes it: a bug, or a hand."""
    state = advanced(stolen(first(), START), START, NOBODY)
    active, prepared = state.x509
    gone = Abandoned("x509", prepared.id, START)
    with pytest.raises(StateDamaged, match="abandoned is prepared"):
        replace(state, abandoned=(*state.abandoned, gone))
    with pytest.raises(StateDamaged, match="abandoned is active"):
        replace(state, goals=frozenset({Goal("jwt", True)}))
    with pytest.raises(StateDamaged, match="abandoned is active"):
        replace(state, goals=frozenset({Goal("x509"), Goal("jwt", True)}))
    with pytest.raises(StateDamaged, match="abandoned is old"):
        replace(state, x509=(replace(active, stage=Stage.OLD), replace(prepared, stage=Stage.ACTIVE)))
    with pytest.raises(StateDamaged, match="jwt authority that was abandoned is active"):
        replace(state, goals=frozenset({Goal("x509", True)}))
    document = json.loads(state.to_json())
    document["abandoned"].append({**document["abandoned"][0], "id": prepared.id})
    with pytest.raises(StateDamaged, match="abandoned is prepared"):
        AuthorityState.from_json(json.dumps(document).encode(), TD)


def test_the_next_leader_goes_on_from_each_step() -> None:
    """It has only what is stored."""

    def to_the_end(state: AuthorityState, dies_after: int) -> tuple[AuthorityState, int]:
        now, steps = START, 0
        held = True
        while now <= START + BOUND + timedelta(minutes=1):
            leader = life()
            acks = Acks(frozenset(), {slot.id: 1 for slot in state.x509}) if held else ALL
            while (step := leader.due(state, acks, now)) is not None:
                after = done(leader.do(state, step, now))
                steps += 1
                if steps == dies_after:
                    # It did not get so far as to store it.
                    leader, after, dies_after = life(), state, 0
                state = AuthorityState.from_json(after.to_json(), TD)
            now += timedelta(seconds=10)
        return state, steps

    begun = rotated(rotated(first(), "x509", START), "jwt", START)
    begun, _ = done(life().prepare(begun, "x509", START))
    thief = Thief.of(begun, first())
    asked = stolen(begun, START)
    whole, steps = to_the_end(asked, 0)
    assert steps >= 6
    for dies_after in range(1, steps + 1):
        state, _ = to_the_end(asked, dies_after)
        assert (stages(state), stages(state, "jwt"), state.goals) == (["active"], ["active"], frozenset())
        assert thief.accepted(state, START + BOUND) == []
        assert {each.authority_id for each in state.abandoned} == {each.authority_id for each in whole.abandoned}


@pytest.mark.parametrize("kind", ["x509", "both"])
def test_a_theft_that_is_told_while_another_replica_activates_counts_for_what_it_activates(kind: str) -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        await two.leader.attempt()
        await one.rotation.step("prepare", "x509", "", forced=False)
        prepared = cluster.stored.x509[1].id
        thief = Thief.of(cluster.stored)

        def activates() -> None:
            stored = cluster.stored
            after, _ = life().activate(stored, "x509", ALL, START, forced=True)
            store = two.rotation._store
            cluster.kube.put(
                "/api/v1/namespaces/podsvid/secrets/authority",
                {"data": store._body(after, None)["data"]},  # type: ignore[attr-defined]
            )

        before(cluster.kube, "replace", activates, "secrets")
        said = await one.rotation.step("rotate", kind, "", forced=True)
        assert prepared in said
        assert prepared in cluster.stored.abandoned_ids("x509")
        assert cluster.stored.active_x509_id == prepared
        two.rotation.see(cluster.stored)
        for _ in range(10):
            await two.rotation._advance()
        assert stages(cluster.stored) == ["active"]
        assert [each for each in thief.accepted(cluster.stored, START) if each in thief.x509] == []
        assert (cluster.stored.abandoned_ids("jwt") != frozenset()) == (kind == "both")

    asyncio.run(run())


def test_a_leader_that_did_not_hear_of_the_theft_puts_nothing_in_service() -> None:
    """What it made on the state of before is lost with its compare and swap."""

    async def run() -> None:
        cluster = Cluster()
        one, two = (Replica(cluster, name) for name in ("one", "two"))
        for each in (one, two):
            await each.open()
        await two.leader.attempt()
        await one.rotation.step("prepare", "x509", "", forced=False)
        two.rotation.see(cluster.stored)
        thief = Thief.of(cluster.stored)

        def told() -> None:
            after = stolen(cluster.stored, START)
            store = one.rotation._store
            cluster.kube.put(
                "/api/v1/namespaces/podsvid/secrets/authority",
                {"data": store._body(after, None)["data"]},  # type: ignore[attr-defined]
            )

        before(cluster.kube, "replace", told, "secrets")
        await two.rotation._advance()
        assert stages(cluster.stored) == ["active"]
        for _ in range(10):
            await two.rotation._advance()
        assert thief.accepted(cluster.stored, START) == []

    asyncio.run(run())


@dataclass
class Member:
    """An agent of the model: what it holds, until when, and what it was told."""

    holds: str
    ends: datetime
    told: AuthorityState
    silent: bool = False


STEP = timedelta(seconds=10)


class Thefts(RuleBasedStateMachine):
    """Thefts among all else that persons, agents, leaders and time do."""

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.state = done(life().first(START))
        self.members = {
            name: Member(self.state.active_x509_id, self.now + POLICY.x509_max_ttl, self.state) for name in ("a", "b")
        }
        self.stolen: dict[tuple[str, str], datetime] = {}
        self.never: set[tuple[str, str]] = set()
        self.gone: set[tuple[str, str]] = set()

    def acks(self) -> Acks:
        waiting = {name for name, each in self.members.items() if each.told.sequence < self.state.sequence}
        held: dict[str, int] = {}
        for each in self.members.values():
            held[each.holds] = held.get(each.holds, 0) + 1
        # Who is silent was not heard since.
        known = not any(each.silent for each in self.members.values())
        return Acks(frozenset(waiting), held if known else None)

    def store(self, after: AuthorityState) -> None:
        if after is self.state:
            return
        assert after.sequence > self.state.sequence
        self.state = AuthorityState.from_json(after.to_json(), TD)
        assert self.state.to_json() == after.to_json()
        present = {(kind, slot.id) for kind in KINDS for slot in self.state.slots(kind)}
        self.gone |= {each for each in self.stolen if each not in present}

    def speak(self) -> None:
        for each in self.members.values():
            if each.silent:
                continue
            each.told = self.state
            wanted = {found.authority_id for found in self.state.directives if found.end <= self.now + STEP}
            if each.holds in wanted or each.ends - POLICY.x509_max_ttl / 2 <= self.now or each.holds not in self.ids():
                each.holds, each.ends = self.state.active_x509_id, self.now + POLICY.x509_max_ttl

    def ids(self) -> set[str]:
        return {slot.id for slot in self.state.x509}

    def lead(self) -> None:
        leader = life()
        for _ in range(12):
            step = leader.due(self.state, self.acks(), self.now)
            if step is None:
                return
            self.store(done(leader.do(self.state, step, self.now)))
            self.nobody_is_cut_off()
        raise AssertionError("the steps do not end")

    @rule(steps=st.sampled_from([1, 3, 12, 25, 400]))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self.now += STEP
            self.lead()
            self.nobody_is_cut_off()
            self.speak()
            self.nothing_stolen_outlives_its_bound()

    @rule(name=st.sampled_from(["a", "b"]))
    def falls_silent_or_returns(self, name: str) -> None:
        each = self.members[name]
        each.silent = not each.silent
        self.speak()

    @rule(kinds=st.sampled_from([KINDS, ("x509",), ("jwt",)]))
    def theft(self, kinds: tuple[str, ...]) -> None:
        was = self.state
        self.store(life().compromised(was, kinds, self.now)[0])
        for kind in kinds:
            for slot in was.slots(kind):
                self.stolen[kind, slot.id] = self.now
                if slot.stage is not Stage.ACTIVE:
                    self.never.add((kind, slot.id))
        present = {(kind, slot.id) for kind in KINDS for slot in self.state.slots(kind)}
        self.gone |= {each for each in self.stolen if each not in present}

    @rule(kind=st.sampled_from(KINDS))
    def ordinary_rotation(self, kind: str) -> None:
        self.store(life().asked(self.state, kind, forced=False, now=self.now)[0])

    @rule(kind=st.sampled_from(KINDS), action=st.sampled_from(["prepare", "activate", "revoke"]))
    def person(self, kind: str, action: str) -> None:
        try:
            if action == "prepare":
                self.store(done(life().prepare(self.state, kind, self.now))[0])
            elif action == "activate":
                self.store(life().activate(self.state, kind, self.acks(), self.now, forced=False)[0])
            else:
                last = self.state.slots(kind)[-1].id
                self.store(life().revoke(self.state, kind, last, self.now, forced=False)[0])
                if (kind, last) not in self.stolen:
                    # Who takes away what was to replace the stolen ones waits for the next.
                    self.stolen.update({each: self.now for each in self.stolen if each[0] == kind})
        except TransitionRefused:
            pass

    def nobody_is_cut_off(self) -> None:
        for each in self.members.values():
            # What each holds is taken by all who have the newest trust, and what is new by all who acknowledge.
            assert each.silent or each.holds in self.ids()
            assert each.silent or self.state.active_x509_id in {slot.id for slot in each.told.x509}

    def nothing_stolen_outlives_its_bound(self) -> None:
        present = {(kind, slot.id) for kind in KINDS for slot in self.state.slots(kind)}
        for each, asked in self.stolen.items():
            assert each not in present or self.now < asked + BOUND + 2 * STEP, (each, asked, self.now)

    @invariant()
    def nothing_stolen_is_put_in_service(self) -> None:
        for kind in KINDS:
            for slot in self.state.slots(kind):
                assert (kind, slot.id) not in self.gone
                if (kind, slot.id) in self.stolen:
                    assert slot.stage in (Stage.ACTIVE, Stage.TAINTED)
                if (kind, slot.id) in self.never:
                    assert slot.stage is Stage.TAINTED

    @invariant()
    def only_what_signs_has_a_key(self) -> None:
        signing = sum(slot.stage in (Stage.PREPARED, Stage.ACTIVE) for kind in KINDS for slot in self.state.slots(kind))
        assert self.state.to_json().count(b"BEGIN PRIVATE KEY") == signing

    @invariant()
    def only_what_the_state_names_is_trusted(self) -> None:
        assert len(self.state.bundle.x509_authorities) == len(self.state.x509)
        assert {key.key_id for key in self.state.bundle.jwt_authorities} == {slot.id for slot in self.state.jwt}


TestThefts = Thefts.TestCase
TestThefts.settings = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
