"""What agents hold, told by several replicas: agents that move, streams that overlap, and ConfigMaps of the past."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from signer.authority.acknowledgements import (
    MAX_BYTES,
    RETURN_SECONDS,
    RETURN_USES_SECONDS,
    STALE,
    Agents,
)
from signer.authority.passed_on import LABEL, Wanted, read_replica
from signer.authority.state import sequence_at
from signer.cluster.kube import Object
from signer.model import Agent
from tests.fake_kube import FakeKube
from tests.meanwhile import before
from tests.signer_rig import START, StepClock
from tests.unit.signer.said import DIGEST, says, wanted

MAPS = "/api/v1/namespaces/podsvid/configmaps"
A = frozenset({"a"})


def agent(node: str) -> Agent:
    return Agent(node, f"uid-{node}", f"agent-{node}", f"pod-{node}", START + timedelta(hours=1))


def agents(kube: FakeKube, clock: StepClock, identity: str) -> Agents:
    made = Agents(kube, "podsvid", identity, clock)
    made.know(wanted(9))
    return made


def replica(named: str, told: Any, at: datetime = START, **data: Any) -> Object:
    """A ConfigMap as another replica writes it; all that it tells of have the same trust."""
    if isinstance(told, dict):
        told = {"digests": [DIGEST.hex()], "nodes": {node: [*each, 0] for node, each in told.items()}}
    return {
        "metadata": {"name": f"podsvid-agents-{named}", "labels": {LABEL: named}},
        "data": {
            "version": "2",
            "identity": named,
            "written_at": at.isoformat(),
            "nodes": json.dumps(told),
            **data,
        },
    }


def put(kube: FakeKube, body: Object) -> None:
    kube.put(f"{MAPS}/{body['metadata']['name']}", body)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


async def following(each: Agents, test: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(each._others.run())
    try:
        await until(lambda: each._others.synced)
        await test()
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def seen(body_of: Callable[[FakeKube, StepClock], None], check: Callable[[Agents, StepClock], None]) -> None:
    """What a leader without agents of its own makes of the ConfigMaps that are there."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        body_of(kube, clock)
        leader = agents(kube, clock, "leader")

        async def test() -> None:
            check(leader, clock)

        await following(leader, test)

    asyncio.run(run())


@pytest.mark.parametrize("names", [("one", "two"), ("two", "one")])
def test_the_newer_word_of_an_agent_that_moved_counts(names: tuple[str, str]) -> None:
    """Its old replica still takes the stream for open; which of the two is read first says nothing."""
    old, new = names

    def maps(kube: FakeKube, _: StepClock) -> None:
        put(kube, replica(old, {"a": [7, {"compromised": 3}]}))
        put(kube, replica(new, {"a": [8, {"fresh": 3}]}))

    def check(leader: Agents, _: StepClock) -> None:
        assert leader.summary(wanted(8), A) == (frozenset(), {"fresh": 3})
        assert leader.summary(wanted(9), A)[0] == A

    seen(maps, check)


def test_what_an_agent_says_here_counts_more_than_what_another_replica_heard() -> None:
    """It has moved here: what it said there may be of a process that is gone, with what it held."""

    def maps(kube: FakeKube, _: StepClock) -> None:
        put(kube, replica("one", {"a": [9, {}]}))

    def check(leader: Agents, _: StepClock) -> None:
        assert leader.summary(wanted(9), A) == (frozenset(), {})
        leader.connect(agent("a"))
        assert leader.summary(wanted(9), A)[0] == A
        says(leader, "a", 8, {"compromised": 2})
        assert leader.summary(wanted(9), A) == (A, {"compromised": 2})

    seen(maps, check)


def test_what_this_replica_wrote_before_its_restart_is_not_its_word() -> None:
    def maps(kube: FakeKube, _: StepClock) -> None:
        put(kube, replica("leader", {"a": [9, {}]}))

    seen(maps, lambda leader, _: assert_unknown(leader))


def assert_unknown(leader: Agents) -> None:
    assert leader.summary(wanted(1), A) == (A, None)


def test_a_replica_counts_until_its_word_is_stale() -> None:
    def maps(kube: FakeKube, _: StepClock) -> None:
        put(kube, replica("one", {"a": [9, {}]}))

    def check(leader: Agents, clock: StepClock) -> None:
        clock.pass_by(seconds=STALE)
        assert leader.summary(wanted(9), A) == (frozenset(), {})
        clock.pass_by(seconds=1)
        assert_unknown(leader)

    seen(maps, check)


def test_a_word_of_the_future_never_gets_old_and_does_not_count() -> None:
    """Whoever writes such a ConfigMap would acknowledge for other replicas' nodes for ever."""

    def ahead(seconds: float) -> Callable[[FakeKube, StepClock], None]:
        return lambda kube, _: put(kube, replica("one", {"a": [9, {}]}, START + timedelta(seconds=seconds)))

    def differs(leader: Agents, clock: StepClock) -> None:
        assert leader.summary(wanted(9), A) == (frozenset(), {}), "clocks of replicas differ"
        clock.pass_by(seconds=1)
        assert_unknown(leader)

    seen(ahead(STALE), differs)
    seen(ahead(STALE + 1), lambda leader, _: assert_unknown(leader))


def test_only_live_nodes_count() -> None:
    """The SVIDs of a node that is gone are nobody's; and a node that nobody knows may hold some."""

    def maps(kube: FakeKube, _: StepClock) -> None:
        put(kube, replica("one", {"a": [9, {"x": 1}], "gone": [2, {"x": 40}]}))

    def check(leader: Agents, _: StepClock) -> None:
        assert leader.summary(wanted(9), A) == (frozenset(), {"x": 1})
        assert leader.summary(wanted(9), A | {"new"}) == (frozenset({"new"}), None)
        assert leader.summary(wanted(9), frozenset()) == (frozenset(), {})

    seen(maps, check)


@pytest.mark.parametrize(
    "body",
    [
        replica("one", {"a": [9, {}]}, version="3"),
        replica("one", {}, version="3", nodes=json.dumps({"a": [9, {}]})),
        replica("one", {"a": [9, {}]}, at=datetime(2030, 1, 1)),
        replica("one", {"a": [9]}),
        replica("one", []),
        replica("one", {"a": ["much", {}]}),
        replica("one", {"a": [9, ["x"]]}),
        {"metadata": {"name": "podsvid-agents-one"}, "data": None},
        # A copy under another name, or what is not a replica's.
        {**replica("one", {"a": [9, {}]}), "metadata": {"name": "copy"}},
        replica("one", {"a": [9, {}]}, identity="two"),
        replica("one", {"a": [9, {}]}, identity="x/../../secrets/authority"),
        {"data": replica("one", {"a": [9, {}]})["data"]},
    ],
)
def test_what_no_replica_writes_is_nobodys_word(body: Object) -> None:
    assert read_replica(body) is None
    assert read_replica(replica("one", {"a": [9, {}]})) is not None


def test_the_end_of_an_old_stream_does_not_forget_the_newer_one() -> None:
    """An agent comes back before the signer knows that its old connection is dead."""
    clock = StepClock()
    here = agents(FakeKube(StepClock()), clock, "one")
    old = here.connect(agent("a"))
    says(here, "a", 6, {})
    newer = here.connect(agent("a"))
    # What it said stands until it says more.
    assert here.summary(wanted(6), A) == (frozenset(), {})
    says(here, "a", 7, {"x": 2})
    here.disconnect(old)
    assert here.summary(wanted(7), A) == (frozenset(), {"x": 2})
    assert here.connected == 1
    says(here, "a", 8, {"x": 1})
    assert here.summary(wanted(8), A) == (frozenset(), {"x": 1})
    here.disconnect(newer)
    assert here.connected == 0
    clock.pass_by(seconds=RETURN_SECONDS + 1)
    assert_unknown(here)


def test_an_agent_that_changes_over_counts_with_its_last_word_for_a_while() -> None:
    """All of them do in the minutes after a recovery: a rotation would wait while any of thousands is on its way."""
    clock = StepClock()
    here = agents(FakeKube(clock), clock, "one")
    handle = here.connect(agent("a"))
    says(here, "a", 7, {"x": 2})
    here.disconnect(handle)
    clock.pass_by(seconds=RETURN_USES_SECONDS)
    assert here.summary(wanted(7), A) == (frozenset(), {"x": 2})
    clock.pass_by(seconds=RETURN_SECONDS - RETURN_USES_SECONDS)
    assert here.summary(wanted(7), A) == (frozenset(), None), "a root must not go by what it held then"
    assert here.summary(wanted(8), A)[0] == A, "but with no more than it said"
    here.know(wanted(6))
    assert asyncio.run(here.ahead(A)) == {"a": 7}
    here.know(wanted(9))
    # It is back, and has not said anything yet; what it does not say does not count for ever.
    handle = here.connect(agent("a"))
    assert here.summary(wanted(7), A) == (frozenset(), None)
    clock.pass_by(seconds=1)
    assert here.summary(wanted(7), A)[0] == A
    here.disconnect(handle)
    assert_unknown(here)


def test_a_last_word_ends_with_the_next() -> None:
    """What it says now is of now: a process that was started anew may have less than the one before."""
    here = agents(FakeKube(StepClock()), StepClock(), "one")
    handle = here.connect(agent("a"))
    says(here, "a", 8, {"x": 2})
    here.disconnect(handle)
    here.connect(agent("a"))
    says(here, "a", 7, {"x": 1})
    assert here.summary(wanted(7), A) == (frozenset(), {"x": 1})
    assert here.summary(wanted(8), A) == (A, {"x": 1})


def test_coming_and_going_without_a_word_makes_no_word_last_longer() -> None:
    clock = StepClock()
    here = agents(FakeKube(clock), clock, "one")
    handle = here.connect(agent("a"))
    says(here, "a", 8, {"x": 2})
    here.disconnect(handle)
    for _ in range(int(RETURN_SECONDS) // 10 + 1):
        here.disconnect(here.connect(agent("a")))
        clock.pass_by(seconds=10)
    assert_unknown(here)


def test_other_replicas_hear_of_those_that_change_over() -> None:
    """The leader is another one, and counts by what this replica writes."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        handle = here.connect(agent("a"))
        says(here, "a", 7, {"x": 1})
        here.disconnect(handle)
        here.wanted = True

        async def told() -> dict[str, Any]:
            await here.write()
            found: dict[str, Any] = json.loads(kube.objects[f"{MAPS}/podsvid-agents-one"]["data"]["nodes"])
            return found

        found = await told()
        assert (found["nodes"], found["left"]) == ({}, {"a": [7, {"0": 1}, 0]}), "replicas from before wait for it"
        clock.pass_by(seconds=RETURN_SECONDS + 1)
        assert "left" not in await told()

    asyncio.run(run())


@pytest.mark.parametrize("elsewhere", [[9, {"y": 1}], [8, {"y": 1}], [7, {"y": 1}]])
def test_what_it_says_elsewhere_counts_and_not_its_last_word(elsewhere: list[Any]) -> None:
    """A process that was started anew, at a replica that is behind, may have less than the one before it."""

    def maps(kube: FakeKube, _: StepClock) -> None:
        put(kube, replica("one", {"a": elsewhere}))

    def check(leader: Agents, _: StepClock) -> None:
        leader.know(Wanted(9, DIGEST.hex(), frozenset("xy")))
        handle = leader.connect(agent("a"))
        says(leader, "a", 8, {"x": 2})
        leader.disconnect(handle)
        found = leader.summary(Wanted(8, DIGEST.hex(), frozenset("xy")), A)
        assert found == (frozenset() if elsewhere[0] >= 8 else A, {"y": 1})

    seen(maps, check)


def test_another_replicas_agents_that_change_over_count_for_a_while() -> None:
    def maps(kube: FakeKube, _: StepClock) -> None:
        left = {"digests": [DIGEST.hex()], "nodes": {}, "left": {"a": [9, {"x": 1}, 0], "b": [9, {"x": 1}, 0]}}
        put(kube, replica("one", {}, nodes=json.dumps(left)))
        put(kube, replica("two", {"b": [8, {}]}))

    def check(leader: Agents, clock: StepClock) -> None:
        assert leader.summary(wanted(9), A) == (frozenset(), None), "what it holds is not counted by that"
        assert leader.summary(wanted(9), frozenset("b"))[0] == frozenset("b"), "who speaks elsewhere has said so"
        clock.pass_by(seconds=RETURN_SECONDS)
        assert leader.summary(wanted(9), A)[0] == frozenset()
        clock.pass_by(seconds=1)
        assert_unknown(leader)

    seen(maps, check)


def test_of_several_last_words_the_least_counts() -> None:
    """An agent that was started anew at a replica that is behind, and has left that one, too."""

    def maps(kube: FakeKube, _: StepClock) -> None:
        for name, sequence in (("one", 9), ("two", 8), ("three", 9)):
            left = {"digests": [DIGEST.hex()], "nodes": {}, "left": {"a": [sequence, {}, 0]}}
            put(kube, replica(name, {}, nodes=json.dumps(left)))

    def check(leader: Agents, _: StepClock) -> None:
        assert leader.summary(wanted(9), A) == (A, None)
        leader.disconnect(leader.connect(agent("a")))
        handle = leader.connect(agent("a"))
        says(leader, "a", 9, {})
        leader.disconnect(handle)
        assert leader.summary(wanted(9), A) == (A, None)

    seen(maps, check)


def test_who_is_back_and_has_said_nothing_is_told_once() -> None:
    """With thousands of them the ConfigMap would be too large just when all come back."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        handle = here.connect(agent("a"))
        says(here, "a", 7, {})
        here.disconnect(handle)
        here.connect(agent("a"))
        here.connect(agent("b"))
        await here.write()
        found = json.loads(kube.objects[f"{MAPS}/podsvid-agents-one"]["data"]["nodes"])
        assert (list(found["nodes"]), list(found["left"])) == (["b"], ["a"])

    asyncio.run(run())


def test_one_agents_end_is_not_anothers() -> None:
    clock = StepClock()
    here = agents(FakeKube(StepClock()), clock, "one")
    first, _ = here.connect(agent("a")), here.connect(agent("b"))
    for node in "ab":
        says(here, node, 3, {})
    here.disconnect(first)
    clock.pass_by(seconds=RETURN_SECONDS + 1)
    assert here.summary(wanted(3), frozenset("ab")) == (A, None)
    assert here.summary(wanted(3), frozenset("b")) == (frozenset(), {})


def test_a_config_map_that_could_not_be_made_is_tried_again() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        here.connect(agent("a"))
        says(here, "a", 7, {"x": 1})
        # Somebody made one of the name meanwhile.
        before(kube, "create", lambda: put(kube, replica("one", {})))
        await here.write()
        await here.write()
        stored = kube.objects[f"{MAPS}/podsvid-agents-one"]
        told = {"digests": [DIGEST.hex()], "authorities": ["x"], "nodes": {"a": [7, {"0": 1}, 0]}}
        assert json.loads(stored["data"]["nodes"]) == told
        found = read_replica(stored)
        assert found is not None
        assert (found.written_at, found.nodes["a"].in_use) == (START, {"x": 1})
        assert stored["metadata"]["labels"] == {LABEL: "one"}

    asyncio.run(run())


def test_one_that_was_removed_comes_again_with_the_next_word() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        await here.write()
        kube.remove(f"{MAPS}/podsvid-agents-one")
        here.connect(agent("a"))
        await here.write()
        assert list(kube.objects) == [f"{MAPS}/podsvid-agents-one"]

    asyncio.run(run())


def test_while_somebody_waits_each_look_is_told() -> None:
    """The leader counts by nothing that is stale, and a rotation may wait for one agent for long."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        here.wanted = True
        await here.write()
        clock.pass_by(seconds=2)
        await here.write()
        assert kube.objects[f"{MAPS}/podsvid-agents-one"]["data"]["written_at"] == clock.now().isoformat()

    asyncio.run(run())


def test_the_agents_of_five_thousand_nodes_are_passed_on_in_any_phase(caplog: pytest.LogCaptureFixture) -> None:
    """All of them are this replica's, which does not lead: after a restart of the other one. A theft, an hour after a
    rotation: three authorities."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        authorities = [f"{number:040x}" for number in range(4)]
        here.know(Wanted(sequence_at(clock.now()), DIGEST.hex(), frozenset(authorities)))
        nodes = [f"ip-10-{n // 2500}-{n // 250 % 250}-{n % 250}.eu-central-1.compute.internal" for n in range(5000)]
        for node in nodes:
            here.connect(agent(node))
            here.acknowledged(node, sequence_at(clock.now()), dict.fromkeys(authorities, 110), DIGEST)
        await here.write()
        assert not caplog.records
        found = read_replica(kube.objects[f"{MAPS}/podsvid-agents-one"])
        assert found is not None
        assert {tuple(each.in_use.items()) for each in found.nodes.values()} == {tuple((a, 110) for a in authorities)}
        assert len(found.nodes) == 5000

    asyncio.run(run())


def test_too_many_agents_are_said_and_not_written(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        number = MAX_BYTES // 210 + 1
        for each in range(number):
            here.connect(agent(f"{each:0200}"))
        await here.write()
        assert kube.writes == []
        (line,) = (each for each in caplog.records if each.name == "podsvid.agents")
        assert (line.getMessage(), vars(line)["agents"]) == ("too many agents to pass on", number)

    asyncio.run(run())


def test_only_what_a_replica_left_behind_long_ago_is_removed() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        long_ago = START - timedelta(days=1)
        put(kube, replica("gone", {}, long_ago))
        put(kube, replica("vanished", {}, long_ago))
        put(kube, replica("ancient", {}, START - timedelta(days=2)))
        put(kube, replica("late", {}, START))
        put(kube, replica("of-the-future", {}, START + timedelta(days=1)))
        put(kube, replica("leader", {}, long_ago - timedelta(days=1)))
        # Of somebody else, and an old copy of one that lives.
        foreign = {**replica("x", {}, long_ago - timedelta(days=1)), "metadata": {"name": "theirs", "labels": {}}}
        copied = replica("late", {}, long_ago - timedelta(days=1))
        put(kube, foreign)
        put(kube, {**copied, "metadata": {**copied["metadata"], "name": "copy"}})
        leader = agents(kube, clock, "leader")

        async def test() -> None:
            before = set(kube.objects) - {f"{MAPS}/podsvid-agents-ancient"}
            await leader._forget_stale()
            assert set(kube.objects) == before, "no clock is wrong by days"
            clock.pass_by(seconds=4 * STALE)
            await leader._forget_stale()
            assert set(kube.objects) == before, "whose clock is wrong is not gone: its word has to be seen to get old"
            put(kube, replica("late", {}, START + timedelta(seconds=1)))
            await until(lambda: leader._seen["late"].at == clock.monotonic())
            clock.pass_by(seconds=1)
            # The watch has not told of it yet.
            kube.objects.pop(f"{MAPS}/podsvid-agents-vanished")
            await leader._forget_stale()
            left = {path.rpartition("/")[2] for path in kube.objects}
            assert left == {"podsvid-agents-late", "podsvid-agents-leader", "theirs", "copy"}

        await following(leader, test)

    asyncio.run(run())


def test_what_another_one_removes_at_the_same_time_ends_nothing() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        leader = agents(kube, clock, "leader")
        for name in ("gone-1", "gone-2", "gone-3"):
            put(kube, replica(name, {"node-a": [9, {"a": 1}]}))

        async def test() -> None:
            await until(lambda: len(leader._others.values) == 3)
            clock.pass_by(hours=30)
            delete, left = kube.delete, [f"{MAPS}/podsvid-agents-gone-{number}" for number in (1, 2, 3)]

            async def slow(path: str, body: Object | None = None) -> None:
                while left:
                    kube.remove(left.pop())
                await until(lambda: not leader._others.values)
                await delete(path, body)

            kube.delete = slow  # type: ignore[method-assign]
            await leader._forget_stale()

        await following(leader, test)

    asyncio.run(run())


def test_telling_outlives_refusals(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("signer.authority.acknowledgements.WRITE_SECONDS", 0.0)
    caplog.set_level(logging.WARNING)

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        here.connect(agent("a"))
        says(here, "a", 7, {})
        kube.denied.add(("replace", MAPS))
        task = asyncio.create_task(here.run())
        try:
            await until(lambda: sum(each.name == "podsvid.agents" for each in caplog.records) > 1)
            assert not [path for path in kube.objects if "podsvid-agents" in path]
            kube.denied.clear()
            await until(lambda: f"{MAPS}/podsvid-agents-one" in kube.objects)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_word_is_told_soon_while_it_is_newer_than_any_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.acknowledgements.WRITE_SECONDS", 0.0)

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        here = agents(kube, clock, "one")
        here.connect(agent("a"))
        path = f"{MAPS}/podsvid-agents-one"

        def told() -> int:
            found = json.loads(kube.objects[path]["data"]["nodes"])["nodes"] if path in kube.objects else {}
            return int(found.get("a", [0])[0])

        task = asyncio.create_task(here._tell())
        try:
            clock.pass_by(minutes=2)
            says(here, "a", 7, {})
            await until(lambda: told() == 7)
            clock.pass_by(minutes=2)
            # Nothing new in it, but somebody waits for it.
            says(here, "a", 6, {})
            for _ in range(100):
                await asyncio.sleep(0)
            assert told() == 7
            here.wanted = True
            await until(lambda: told() == 6)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_replica_does_not_read_what_it_wrote_itself() -> None:
    """With thousands of nodes that holds it up each time; what others wrote it reads."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        one = agents(kube, clock, "one")
        put(kube, replica("one", {"node-a": [9, {"a": 1}]}))
        put(kube, replica("two", {"node-b": [9, {"a": 1}]}))

        async def test() -> None:
            await until(lambda: bool(one._others.values))
            assert [each.identity for each in one._others.values.values()] == ["two"]
            assert one.summary(wanted(9), frozenset({"node-b"}))[0] == frozenset()

        await following(one, test)

    asyncio.run(run())
