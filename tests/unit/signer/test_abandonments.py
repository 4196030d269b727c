"""A Secret of before a theft is put back while no signer runs: nothing that was abandoned signs or is trusted again."""

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from signer.authority import recovery
from signer.authority.abandonments import KEPT_AFTER_END, MAX_CHARACTERS, MAX_ENTRIES, Entry, Record, record_of
from signer.authority.slots import KINDS
from signer.authority.state import SEQUENCE_SLACK, Abandoned, AuthorityState, Goal, sequence_at
from signer.errors import ApiUnavailable, Forbidden
from tests.meanwhile import before
from tests.signer_rig import START
from tests.unit.signer.said import abandonments
from tests.unit.signer.test_compromise import Thief
from tests.unit.signer.test_lifecycle import ALL, TD, done, first, life, stages
from tests.unit.signer.test_rotation import PATH, Cluster, Replica, said

RECORD = "/api/v1/namespaces/podsvid/configmaps/authority-abandoned"
AGAIN = "the authorities' Secret has in service what was abandoned; abandoned again before anything is signed"
DAMAGED = "the record of abandoned authorities is damaged; what is not understood is passed over"
UNWRITTEN = "abandoned authorities could not be recorded outside of the Secret; trying again"


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


def ids(state: AuthorityState | None) -> set[str]:
    assert state is not None
    return {slot.id for kind in KINDS for slot in state.slots(kind)}


async def started(cluster: Cluster, name: str = "one") -> Replica:
    one = Replica(cluster, name)
    await one.open()
    await one.leader.attempt()
    cluster.monotonic += 60
    await one.leader.attempt()
    return one


async def carried_on(one: Replica) -> None:
    for _ in range(20):
        await one.rotation._advance()


async def stolen(cluster: Cluster, one: Replica, kind: str = "both") -> None:
    """A theft, from the command to its end."""
    await one.rotation.step("rotate", kind, "", forced=True)
    await carried_on(one)
    cluster.clock.pass_by(minutes=10)
    await carried_on(one)
    assert all(each.left_at for each in cluster.stored.abandoned)
    assert not cluster.stored.goals


def saved(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.kube.objects[PATH]["data"])


def recorded(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kube.objects[RECORD]["data"]["abandoned.json"])
    return found


def rewritten(cluster: Cluster, **changes: Any) -> None:
    text = json.dumps({**recorded(cluster), **changes})
    cluster.kube.put(RECORD, {"data": {"abandoned.json": text}})


def abandoned(cluster: Cluster) -> set[str]:
    return {each.authority_id for each in cluster.stored.abandoned}


@pytest.mark.parametrize("kind", ["both", "x509", "jwt"])
def test_a_secret_of_before_a_theft_brings_nothing_back(kind: str) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        await one.rotation.step("prepare", "x509", "", forced=False)
        await one.rotation.step("activate", "x509", "", forced=True)
        await one.rotation.step("prepare", "x509", "", forced=False)
        backup, before = saved(cluster), cluster.stored
        thief = Thief.of(before)
        await stolen(cluster, one, kind)
        gone = abandoned(cluster)
        assert gone
        cluster.clock.pass_by(hours=1)
        cluster.kube.put(PATH, {"data": backup})
        two = await started(cluster, "two")
        seen = two.rotation.states
        assert seen.version == 1, "nothing was seen before it"
        assert two.rotation.state is not None
        assert not gone & ids(two.rotation.state)
        assert not gone & ids(cluster.stored)
        assert not gone & set(thief.accepted(cluster.stored, cluster.clock.now()))
        assert cluster.stored.sequence > before.sequence
        assert gone == abandoned(cluster)
        assert (stages(cluster.stored), stages(cluster.stored, "jwt")) == (
            ["old", "active", "prepared"] if kind == "jwt" else ["active"],
            ["active"],
        )
        # Made now, by the way that a first one is.
        assert cluster.stored.longest("x509" if kind != "jwt" else "jwt") is not None
        assert two.rotation.next_steps(cluster.stored)[0].startswith("rollback at ")
        assert "which was abandoned; it was taken out of service again" in two.rotation.next_steps(cluster.stored)[0]
        read = two.metrics.registry.get_sample_value
        assert read("podsvid_signer_rollbacks_detected_total", {"how": "abandoned"}) == 1

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [timedelta(days=2), timedelta(days=-2)], ids=["ahead", "behind"])
def test_what_was_abandoned_by_a_clock_that_was_wrong_does_not_come_back_either(wrong: timedelta) -> None:
    """A person forces it, at whichever replica answers: its times are nonsense later, the names are not."""

    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        backup = saved(cluster)
        cluster.clock.wrong += wrong
        await stolen(cluster, one)
        gone = abandoned(cluster)
        cluster.clock.wrong -= wrong
        # Whoever leads then has read it, and writes it again.
        two = await started(cluster, "two")
        await two.rotation._abandonments.keep(cluster.stored)
        cluster.kube.put(PATH, {"data": backup})
        three = await started(cluster, "three")
        assert all(
            each.abandoned.asked_at <= cluster.clock.now() for each in three.rotation._abandonments.record.entries
        )
        assert gone
        assert not gone & ids(three.rotation.state)
        assert not gone & ids(cluster.stored)

    asyncio.run(run())


def test_it_is_said_loudly_and_audited(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        backup, active = saved(cluster), cluster.stored.active_x509_id
        await stolen(cluster, one)
        cluster.kube.put(PATH, {"data": backup})
        heard: list[tuple[AuthorityState, AuthorityState]] = []
        two = Replica(cluster, "two")
        two.rotation.heard = lambda was, after: heard.append((was, after))
        await two.open()
        (line,) = said(caplog, AGAIN)
        assert line.levelno == logging.ERROR
        assert active in vars(line)["authorities"]
        ((was, after),) = heard
        assert (active in ids(was), active in ids(after)) == (True, False)

    asyncio.run(run())


def test_what_the_secret_calls_abandoned_was_recorded_before() -> None:
    """And that it has left, before it leaves: between two writes a leader may die, and a Secret be restored."""

    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        present = cluster.kube.replace
        checked = 0

        async def replace_secret(path: str, body: Any) -> Any:
            nonlocal checked
            if path == PATH:
                store = one.rotation._store
                after = store._stored({**body, "metadata": {"resourceVersion": "1"}}).state  # type: ignore[attr-defined]
                if after.abandoned:
                    named = {(each["id"], each["left_at"] is not None) for each in recorded(cluster)["entries"]}
                    assert {(each.authority_id, each.left_at is not None) for each in after.abandoned} <= named
                    assert max(recorded(cluster)["thefts"].values()) <= after.sequence
                    checked += 1
            return await present(path, body)

        cluster.kube.replace = replace_secret  # type: ignore[method-assign]
        await stolen(cluster, one)
        assert checked > 4

    asyncio.run(run())


class Killed(BaseException):
    """kill -9: nothing after it is done, nothing is caught."""


def dies(cluster: Cluster, at: int, *, done: bool) -> Callable[[], int]:
    """The process ends at its `at`th write of the Secret or the record, before it or after it; how many there were."""
    count = 0
    for method in ("create", "replace"):

        def hook(present: Any) -> Any:
            async def call(path: str, body: Any) -> Any:
                nonlocal count
                if "secrets" not in path and "configmaps" not in path:
                    return await present(path, body)
                count += 1
                if count == at and not done:
                    raise Killed
                answer = await present(path, body)
                if count == at:
                    raise Killed
                return answer

            return call

        setattr(cluster.kube, method, hook(getattr(cluster.kube, method)))
    return lambda: count


async def thefts_and_restores(cluster: Cluster, at: int, *, done: bool) -> int:
    """Two thefts and three restores; whoever is killed is started again. The number of writes."""
    one = await started(cluster)
    backups = [saved(cluster)]
    await one.rotation.step("prepare", "x509", "", forced=False)
    backups.append(saved(cluster))
    count = dies(cluster, at, done=done)
    left: set[str] = set()

    def checked() -> None:
        known = cluster.kube.objects.get(RECORD)
        if known is not None:
            left.update(each["id"] for each in recorded(cluster)["entries"] if each["left_at"])
        for replica in replicas:
            # What it signs, publishes and serves by.
            state = replica.rotation.state
            gone = {each.authority_id for each in state.abandoned if each.left_at} if state is not None else set()
            assert state is None or not ids(state) & gone
            if state is not None and state.sequence == cluster.stored.sequence:
                assert not ids(state) & {each.authority_id for each in cluster.stored.abandoned if each.left_at}

    replicas = [one]

    async def survived(work: Callable[[Replica], Any]) -> None:
        """By the present one; by the next one again, where that is killed."""
        try:
            await work(replicas[0])
        except Killed:
            replicas[0] = Replica(cluster, "next")
            await again()
            await work(replicas[0])
        checked()

    async def again() -> None:
        try:
            replicas[0] = await started(cluster, "next")
        except Killed:
            replicas[0] = await started(cluster, "next")
        checked()
        assert not ids(cluster.stored) & left, "it came back"

    async def theft(replica: Replica) -> None:
        await replica.rotation.step("rotate", "both", "", forced=True)

    async def time(replica: Replica) -> None:
        await carried_on(replica)

    for step in (theft, "old", time, "older", theft, time, "old"):
        if isinstance(step, str):
            cluster.kube.put(PATH, {"data": backups[step == "old"]})
            await again()
        else:
            await survived(step)
        cluster.clock.pass_by(seconds=30)
        await survived(time)
    cluster.clock.pass_by(minutes=10)
    await survived(time)
    assert (stages(cluster.stored), stages(cluster.stored, "jwt")) == (["active"], ["active"])
    assert ids(cluster.stored) & left == set()
    thief = Thief.of(*(AuthorityState.from_json(base64.b64decode(each["state.json"]), TD) for each in backups))
    assert thief.accepted(cluster.stored, cluster.clock.now()) == []
    return count()


@pytest.mark.parametrize("done", [False, True])
def test_killed_at_every_write_of_thefts_and_restores(done: bool) -> None:
    writes = asyncio.run(thefts_and_restores(Cluster(), 0, done=done))
    assert writes > 12
    for at in range(1, writes + 1):
        asyncio.run(thefts_and_restores(Cluster(), at, done=done))


def test_a_theft_that_was_recorded_and_not_stored_is_carried_out_by_the_next_one() -> None:
    """Nothing of it has left: SVIDs are replaced first, so that nobody is cut off."""

    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        active = cluster.stored.active_x509_id

        def dead() -> None:
            raise ApiUnavailable("away")

        before(cluster.kube, "replace", dead, "secrets")
        with pytest.raises(ApiUnavailable):
            await one.rotation.step("rotate", "both", "", forced=True)
        assert cluster.stored.abandoned == ()
        two = await started(cluster, "two")
        assert cluster.stored.active_x509_id == active
        assert cluster.stored.goals == {Goal("x509", True), Goal("jwt", True)}
        await carried_on(two)
        assert active not in ids(cluster.stored)

    asyncio.run(run())


def test_the_running_leader_carries_it_out_as_well_and_others_do_not() -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = await started(cluster, "one"), Replica(cluster, "two")
        await two.open()

        def dead() -> None:
            raise ApiUnavailable("away")

        cluster.clock.pass_by(hours=2)
        before(cluster.kube, "replace", dead, "secrets")
        with pytest.raises(ApiUnavailable):
            await two.rotation.step("rotate", "x509", "", forced=True)
        # The one that died had a clock that was ahead.
        cluster.clock.set_by(hours=-1)
        for each in (two, one):
            assert cluster.stored.abandoned == ()
            await each.rotation._abandonments.read()
            await each.rotation._loaded()
        assert cluster.stored.goals == {Goal("x509", True)}
        assert cluster.stored.sequence >= one.rotation._abandonments.record.floor > sequence_at(START)
        # So that what is made now is not taken for what was there before, by the next one that starts.
        await carried_on(one)
        made = ids(cluster.stored)
        await started(cluster, "three")
        assert ids(cluster.stored) == made

    asyncio.run(run())


def test_a_secret_that_is_older_than_what_was_stolen_is_of_before_the_theft_as_well() -> None:
    """Its authorities had been replaced in peace: no name tells them, the number does."""

    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        backup, ancient = saved(cluster), ids(cluster.stored)
        for kind in KINDS:
            await one.rotation.step("prepare", kind, "", forced=False)
            await one.rotation.step("activate", kind, "", forced=True)
        cluster.clock.pass_by(days=3)
        await carried_on(one)
        assert not ids(cluster.stored) & ancient
        await stolen(cluster, one)
        assert not abandoned(cluster) & ancient
        cluster.kube.put(PATH, {"data": backup})
        await started(cluster, "two")
        assert not ids(cluster.stored) & ancient
        assert abandoned(cluster) == ancient
        # The record knows them from now on, and the state is not of before it.
        number = cluster.stored.sequence
        await started(cluster, "three")
        assert cluster.stored.sequence == number

    asyncio.run(run())


def test_a_secret_of_after_the_theft_is_any_other() -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        await stolen(cluster, one)
        backup, healthy = saved(cluster), ids(cluster.stored)
        await one.rotation.step("prepare", "x509", "", forced=False)
        cluster.kube.put(PATH, {"data": backup})
        await started(cluster, "two")
        assert ids(cluster.stored) == healthy

    asyncio.run(run())


@pytest.mark.parametrize("error", [ApiUnavailable("away"), Forbidden("cannot get it")])
def test_without_the_record_nothing_is_begun(error: Exception) -> None:
    async def run() -> None:
        cluster = Cluster()
        await started(cluster)

        def away() -> None:
            raise error

        two = Replica(cluster, "two")
        before(cluster.kube, "get", away, "authority-abandoned")
        with pytest.raises(type(error)) as caught:
            await two.open()
        assert ("must be able to get ConfigMap authority-abandoned" in str(caught.value)) == isinstance(
            error, Forbidden
        )
        assert two.rotation.state is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({}, "KeyError"),
        ({"abandoned.json": "{"}, "JSONDecodeError"),
        ({"abandoned.json": "[" * 100_000}, "RecursionError"),
        ({"abandoned.json": "[]"}, "TypeError"),
        ({"abandoned.json": "x" * (MAX_CHARACTERS + 1)}, "at most"),
        ({"abandoned.json": '{"version": 2, "trust_domain": "example.org"}'}, "not of version 1"),
        ({"abandoned.json": '{"version": true, "trust_domain": "example.org"}'}, "not of version 1"),
        ({"abandoned.json": '{"version": 1, "trust_domain": "other.org"}'}, "another trust domain"),
        ({"abandoned.json": '{"version": 1, "trust_domain": "example.org", "entries": 1, "thefts": {}}'}, "TypeError"),
        (
            {"abandoned.json": '{"version": 1, "trust_domain": "example.org", "entries": [1, {}], "thefts": {"x": 1}}'},
            "3 of its entries",
        ),
    ],
)
def test_garbage_is_passed_over_loudly(data: dict[str, str], why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        await started(cluster)
        cluster.kube.put(RECORD, {"data": data})
        known = cluster.stored
        two = await started(cluster, "two")
        (line,) = said(caplog, DAMAGED)
        assert line.levelno == logging.ERROR
        assert why in vars(line)["error"]
        assert "was damaged: " in two.rotation.next_steps(known)[0]
        assert ids(cluster.stored) == ids(known)
        # What is known is written over it, when there is something.
        await stolen(cluster, two)
        assert {each["id"] for each in recorded(cluster)["entries"]} == abandoned(cluster)

    asyncio.run(run())


def test_of_a_record_that_is_damaged_in_part_the_rest_counts() -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        backup = saved(cluster)
        await stolen(cluster, one)
        gone = abandoned(cluster)
        good = recorded(cluster)["entries"]
        later = (cluster.clock.now() + timedelta(days=2)).isoformat()
        bad = [
            {**good[0], "id": "x" * 129},
            {**good[0], "id": ""},
            {**good[0], "id": ["x"]},
            {**good[0], "id": "late", "asked_at": later},
            {**good[0], "kind": "ssh"},
            {**good[0], "left_at": "yesterday"},
        ]
        far = sequence_at(cluster.clock.now()) + SEQUENCE_SLACK + 1
        rewritten(cluster, entries=[*bad, *good, *bad], thefts={"x509": far, "jwt": True, "ssh": 1})
        cluster.kube.put(PATH, {"data": backup})
        two = await started(cluster, "two")
        assert not gone & ids(cluster.stored)
        assert "13 of its entries" in two.rotation._abandonments.notes[0]
        assert cluster.stored.sequence < far

    asyncio.run(run())


def test_a_false_record_under_running_signers_replaces_and_drops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Who can write it is trusted as the signer's account is; still nobody is cut off, and it is said."""

    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        state = cluster.stored
        active = state.active_x509_id
        entry = Abandoned("x509", active, START, left_at=START)
        false = abandonments(cluster.kube, cluster.clock)
        foreign = Entry(Abandoned("jwt", "nobodys", START, left_at=START))
        false.record = Record((Entry(entry), foreign), {"jwt": sequence_at(cluster.clock.now()) + 1000})
        await false.keep(state)
        await one.rotation._abandonments.read()
        await one.rotation._loaded()
        assert active in ids(cluster.stored)
        assert cluster.stored.goals == {Goal("x509", True)}
        assert said(caplog, AGAIN)
        # The successor is known to agents before this one leaves.
        await one.rotation._advance()
        assert stages(cluster.stored) == ["active", "prepared"]

    asyncio.run(run())


def test_a_record_that_is_removed_is_written_again() -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        await stolen(cluster, one)
        cluster.kube.remove(RECORD)
        await one.rotation._abandonments.read()
        await one.rotation._abandonments.keep(cluster.stored)
        assert {each["id"] for each in recorded(cluster)["entries"]} == abandoned(cluster)
        # And so it is for who updates from a signer that kept none.
        cluster.kube.remove(RECORD)
        two = await started(cluster, "two")
        await two.rotation._abandonments.keep(cluster.stored)
        assert {each["id"] for each in recorded(cluster)["entries"]} == abandoned(cluster)
        assert recorded(cluster)["thefts"] == {kind: sequence_at(START) for kind in KINDS}

    asyncio.run(run())


def test_the_leader_keeps_it_by_itself_and_only_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        await stolen(cluster, one)
        cluster.kube.remove(RECORD)
        two = Replica(cluster, "two")
        await two.open()
        for each, kept in ((two, False), (one, True)):
            task = asyncio.create_task(each.rotation.confirm(timedelta(0)))
            for _ in range(200):
                await asyncio.sleep(0)
            task.cancel()
            assert (RECORD in cluster.kube.objects) == kept

    asyncio.run(run())


def test_who_recovers_from_a_theft_does_not_wait_for_the_record(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        cluster.kube.denied |= {(verb, RECORD.rpartition("/")[0]) for verb in ("create", "replace")}
        await stolen(cluster, one)
        assert len(said(caplog, UNWRITTEN)) == 1
        note = one.rotation.next_steps(cluster.stored)[0]
        assert "would bring it back" in note
        cluster.kube.denied.clear()
        await one.rotation._abandonments.keep(cluster.stored)
        assert one.rotation._abandonments.notes == []
        assert {each["id"] for each in recorded(cluster)["entries"]} == abandoned(cluster)

    asyncio.run(run())


def test_two_replicas_that_record_at_once_lose_nothing() -> None:
    async def run() -> None:
        cluster = Cluster()
        one, two = (abandonments(cluster.kube, cluster.clock) for _ in "ab")
        states = [life().compromised(await life().first(START), KINDS, START)[0] for _ in range(3)]
        for each in (one, two):
            await each.read()
        await one.keep(states[0])
        await two.keep(states[1])
        await one.keep(states[2])
        named = {each["id"] for each in recorded(cluster)["entries"]}
        assert named == {each.authority_id for state in states for each in state.abandoned}

    asyncio.run(run())


def test_a_running_signer_takes_no_state_that_brings_back_what_left() -> None:
    """By a hand, or by a signer of before this one: its number is higher than all."""

    async def run() -> None:
        cluster = Cluster()
        one = await started(cluster)
        before_it = cluster.stored
        await stolen(cluster, one)
        healthy = cluster.stored
        forged = replace(before_it, sequence=healthy.sequence + 5)
        one.rotation.see(forged)
        assert ids(one.rotation.state) == ids(healthy)
        store = one.rotation._store
        cluster.kube.put(PATH, {"data": store._body(forged, None)["data"]})  # type: ignore[attr-defined]
        await one.rotation._loaded()
        assert not ids(before_it) & ids(cluster.stored)
        assert ids(one.rotation.state) == ids(cluster.stored)
        assert cluster.stored.sequence > forged.sequence

    asyncio.run(run())


def test_what_ended_is_forgotten_and_of_too_many_the_first(caplog: pytest.LogCaptureFixture) -> None:
    def entry(number: int, **changes: Any) -> Entry:
        asked = START + timedelta(minutes=number)
        return Entry(Abandoned("jwt", f"k{number}", asked, left_at=asked), **changes)

    now = START + timedelta(days=10)
    over, recent = entry(0, ends=now - KEPT_AFTER_END), entry(1, ends=now - KEPT_AFTER_END + timedelta(seconds=1))
    record = Record((over, recent, entry(2)), {"jwt": 7})
    assert record.lasting(now, Record()) == Record((recent, entry(2)), {"jwt": 7})
    # While the state names it, it would come again at once, without its end.
    assert over in record.lasting(now, Record((over,))).entries
    trusted = Entry(Abandoned("x509", "trusted", START))
    many = Record((trusted, *(entry(each) for each in range(MAX_ENTRIES + 3))), {"jwt": 7})
    kept = many.lasting(now, Record())
    assert len(kept.entries) == MAX_ENTRIES
    assert kept.thefts == {"jwt": 7}
    assert {entry(3).key, trusted.key} & {each.key for each in kept.entries} == {trusted.key}
    assert entry(4) in kept.entries
    assert said(caplog, "more authorities were abandoned than are remembered; the first ones are not named any more")


def test_what_is_forgotten_by_name_is_told_by_its_number() -> None:
    state = first()
    theft = sequence_at(START + timedelta(hours=1))
    found = recovery.returned(state, Record((), {"x509": theft}), None)
    assert found.drop == {"x509": {slot.id for slot in state.x509}}
    # One that runs goes by what it knows.
    assert not recovery.returned(state, Record((), {"x509": theft}), state)
    unfinished = Record((Entry(Abandoned("x509", "another", START)),), {"x509": theft})
    found = recovery.returned(state, unfinished, None)
    assert (found.drop, found.declare) == ({}, ("x509",))


def test_what_left_has_left_whoever_says_it_later() -> None:
    left = Entry(Abandoned("x509", "a", START, left_at=START), START)
    trusted = Entry(Abandoned("x509", "a", START))
    for one, other in ((left, trusted), (trusted, left)):
        assert one.joined(other) == left
    assert not Record((trusted,)).covers(Record((left,)))
    assert Record((left,)).covers(Record((trusted,)))
    assert not Record((left,)).covers(Record((left,), {"x509": 1}))


def test_a_prepared_one_of_after_the_theft_takes_over() -> None:
    """Agents have it already: the leader that wrote that the stolen one leaves died before it left."""
    state = life().compromised(first(), KINDS, START)[0]
    state = done(life().prepare(state, "jwt", START))[0]
    state = done(life().prepare(state, "x509", START))[0]
    prepared = {kind: state.slots(kind)[1].id for kind in KINDS}
    record = record_of(state, START)
    record = Record(tuple(Entry(replace(each.abandoned, left_at=START)) for each in record.entries), record.thefts)
    found = recovery.returned(state, record, None)
    assert found.declare == ()
    after = done(life().freed(state, found, record, START))
    assert {kind: [slot.id for slot in after.slots(kind)] for kind in KINDS} == {
        kind: [prepared[kind]] for kind in KINDS
    }
    assert after.goals == frozenset()
    # Unless that was stolen, too.
    record = Record((*record.entries, Entry(Abandoned("x509", prepared["x509"], START))), record.thefts)
    after = done(life().freed(state, recovery.returned(state, record, None), record, START))
    assert prepared["x509"] not in ids(after)
    assert stages(after) == ["active"]


def test_where_jwt_svids_are_off_none_is_made() -> None:
    state = first()
    record = Record(tuple(Entry(Abandoned("jwt", slot.id, START, left_at=START)) for slot in state.jwt))
    off = life(jwt_algorithm=None)
    after = done(off.freed(state, recovery.returned(state, record, None), record, START))
    assert after.jwt == ()
    assert after.x509 == state.x509
    assert life().due(after, ALL, START) is not None
