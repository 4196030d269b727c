"""What a signer does beside mints is done in slices, however large the cluster: how much one has at most."""

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import giving_way
from signer.attestation.pods import AgentNodes
from signer.authority import acknowledgements, passed_on
from signer.authority.acknowledgements import Agents
from signer.authority.knowledge import Knowledge, Sources
from signer.authority.passed_on import Acknowledged, Wanted, read_replica, words_text, written
from signer.authority.state import AuthorityState
from signer.cluster import mirror
from signer.cluster.kube import Object
from signer.cluster.mirror import SLICE
from signer.cluster.objects import DataObject
from signer.model import LivePod
from signer.policy import statuses
from tests.fake_kube import FakeKube
from tests.live_pods import Fixed
from tests.signer_rig import START, StepClock
from tests.unit.signer.said import DIGEST, all_read, says, wanted
from tests.unit.signer.test_acknowledgements import agent, agents
from tests.unit.signer.test_lifecycle import POLICY, first
from tests.unit.signer.test_policy import policy


class Slices:
    """How much was done between two turns of the others."""

    def __init__(self) -> None:
        self.sizes = [0]
        self.meanwhile: Callable[[], None] = lambda: None

    def did(self) -> None:
        self.sizes[-1] += 1

    def used(self) -> float:
        """The processor's time: a little more than a quarter of a slice for each thing."""
        return sum(self.sizes) * giving_way.SLICE_SECONDS * 0.26

    async def give_way(self) -> None:
        self.sizes.append(0)
        self.meanwhile()


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Slices:
    found = Slices()
    for module in (giving_way, mirror):
        monkeypatch.setattr(module, "give_way", found.give_way)
    return found


@given(st.lists(st.integers()), st.integers(1, 5))
def test_slices_are_all_there_is_in_its_order(things: list[int], size: int) -> None:
    async def run() -> list[tuple[int, ...]]:
        return [part async for part in giving_way.slices(things, size)]

    found = asyncio.run(run())
    assert [each for part in found for each in part] == things
    assert all(len(part) == size for part in found[:-1])


def test_others_have_their_turns_between_two_slices_and_none_is_waited_for_at_the_end(slices: Slices) -> None:
    async def run() -> None:
        async for part in giving_way.slices(range(7), 3):
            for _ in part:
                slices.did()

    asyncio.run(run())
    assert slices.sizes == [3, 3, 1]


def test_who_lacks_the_trust_is_looked_at_some_nodes_at_a_time(slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    has = Acknowledged.has

    def counted(word: Acknowledged, trust: Wanted) -> bool:
        slices.did()
        return has(word, trust)

    clock = StepClock()
    here = agents(FakeKube(clock), clock, "here")
    live = frozenset(f"n{number}" for number in range(1000))
    for node in live:
        here.connect(agent(node))
        says(here, node, 9, {"x": 1})
    monkeypatch.setattr(Acknowledged, "has", counted)
    found = asyncio.run(here.look(wanted(9), live))
    assert found == (frozenset(), {"x": 1000})
    assert max(slices.sizes) == acknowledgements.NODES_AT_ONCE < 1000 / 3
    assert sum(slices.sizes) == 1000
    slices.sizes = [0]
    here.know(wanted(8))
    assert asyncio.run(here.ahead(live)) == dict.fromkeys(live, 9)
    assert len(slices.sizes) == -(-1000 // acknowledgements.NODES_AT_ONCE)


def test_a_look_is_what_a_summary_is(slices: Slices) -> None:
    """Whatever agents said, and of the moment at which it begins."""
    rng, clock = random.Random(5), StepClock()
    for _ in range(50):
        here = agents(FakeKube(clock), clock, "here")
        nodes = [f"n{number}" for number in range(rng.choice((0, 3, 600)))]
        handles = {}
        for node in nodes:
            if rng.random() < 0.95:
                handles[node] = here.connect(agent(node))
                digest = rng.choice((DIGEST, bytes(32)))
                uses = rng.choice(({}, {"x": 2}, {"x": 1, "y": 5}))
                says(here, node, rng.choice((8, 9)), uses, digest)
        live = frozenset(each for each in nodes if rng.random() < 0.9)
        before = here.summary(wanted(9), live)

        def everybody_leaves(here: Agents = here, handles: dict[str, int] = handles) -> None:
            while handles:
                here.disconnect(handles.popitem()[1])

        slices.meanwhile = everybody_leaves
        assert asyncio.run(here.look(wanted(9), live)) == before


def known(sources: Sources) -> tuple[Knowledge, Agents, AuthorityState]:
    clock = StepClock()
    here = Agents(FakeKube(clock), "podsvid", "one", clock)
    asyncio.run(all_read(here))
    state = first()
    knowledge = Knowledge(here, sources, POLICY.ack_bound, clock)
    knowledge.know(state)
    clock.pass_by(hours=1)
    return knowledge, here, state


async def nothing() -> int:
    return 0


def test_what_could_not_be_known_when_a_look_began_is_unknown_at_its_end(slices: Slices) -> None:
    unread = ["pods are not read yet"]
    live = frozenset(f"n{number}" for number in range(acknowledgements.NODES_AT_ONCE + 1))
    knowledge, _, state = known(Sources(lambda: live, lambda: "".join(unread), nothing))
    slices.meanwhile = unread.clear
    assert asyncio.run(knowledge.look(state)).unknown == "pods are not read yet"
    assert asyncio.run(knowledge.look(state)).unknown == ""
    slices.meanwhile = lambda: unread.append("lost")
    assert asyncio.run(knowledge.look(state)).unknown == "lost"
    assert knowledge.acks(state).waiting == live


def test_how_many_lacked_the_trust_at_the_last_look_is_kept(slices: Slices) -> None:
    live = frozenset("abc")
    knowledge, here, state = known(Sources(lambda: live, lambda: "", nothing))
    assert knowledge.lacking == 0
    knowledge.leads(True)
    asyncio.run(knowledge.look(state))
    knowledge.leads(True)
    assert knowledge.lacking == 3
    here.connect(agent("a"))
    says(here, "a", state.sequence, {}, state.digest)
    asyncio.run(knowledge.look(state))
    assert knowledge.lacking == 2
    # It leads no more; when it does again, the first look is still to come.
    knowledge.leads(False)
    knowledge.leads(True)
    assert knowledge.lacking == 0


def test_what_agents_said_is_written_some_nodes_at_a_time_and_read_as_it_was(
    slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {f"n{number}": Acknowledged(7, {"x": number}, DIGEST.hex()) for number in range(1000)}
    left = {f"l{number}": Acknowledged(6, {"y": 2, "x": 1}) for number in range(300)}
    dumps = passed_on._json

    def counted(value: object) -> str:
        if isinstance(value, dict):
            slices.sizes[-1] += len(value)
        return dumps(value)

    monkeypatch.setattr(passed_on, "_json", counted)
    for some in (left, {}):
        slices.sizes = [0]
        body = written("here", asyncio.run(words_text(words, some)), START)
        found = read_replica(body)
        assert found is not None
        assert (found.nodes, found.left) == (words, some)
        assert max(slices.sizes) <= 2 * passed_on.NODES_AT_ONCE
        assert sum(slices.sizes) == len(words) + len(some)
        assert json.loads(body["data"]["nodes"])["nodes"]["n3"] == [7, {"0": 3}, len(some) and 1]


class Matching:
    """Policies of which each pod is asked for; these match it."""

    followed = True

    def __init__(self, slices: Slices, matching: Sequence[object] = ()) -> None:
        self._slices = slices
        self._matching = list(matching)

    def all(self) -> list[object]:
        return []

    def matching(self, pod: LivePod) -> list[object]:
        self._slices.did()
        return self._matching

    def unusable(self, policy: object, pod: LivePod) -> tuple[str, str]:
        return "", ""

    def unread_services(self, policy: object, pod: LivePod) -> str:
        return ""


POD = LivePod("shop", "web-0", "uid-1", "node-a", "web", {"app": "web"})


def test_pods_are_counted_for_statuses_some_at_a_time(slices: Slices) -> None:
    clock = StepClock()
    pods = Fixed(replace(POD, namespace=f"ns{n % 3}", uid=f"u{n}") for n in range(500))
    found = statuses.Statuses(FakeKube(clock), Matching(slices), clock, slices.used)  # type: ignore[arg-type]
    asyncio.run(found.write(pods))
    # By what they take, in whichever namespace they are.
    assert slices.sizes == [4] * 125 + [0]
    assert giving_way.SLICE_SECONDS <= 0.001


def test_what_policies_have_in_namespaces_is_added_up_some_at_a_time(
    slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few the namespaces are: there can be any number of policies of all of them."""
    monkeypatch.setattr(Slices, "used", lambda _: 0.0)
    clock = StepClock()
    every = [policy(f"p{number}") for number in range(300)]
    pods = Fixed(replace(POD, namespace=f"ns{n}", uid=f"u{n}") for n in range(20))
    found = statuses.Statuses(FakeKube(clock), Matching(slices, every), clock, slices.used)  # type: ignore[arg-type]
    asyncio.run(found._count(pods, giving_way.Slicing(slices.used)))
    slices.sizes = [0]
    totals = asyncio.run(found._totals())
    assert len(slices.sizes) == -(-20 * 300 // statuses.SUMS_AT_ONCE)
    assert {uid: each.matched for uid, each in totals.items()} == {each.uid: 20 for each in every}
    assert statuses.SUMS_AT_ONCE <= 256


def test_a_slice_by_time_is_what_was_used_since_the_last_rest(slices: Slices) -> None:
    """What others use during one is theirs."""
    now = [0.0]
    rested = []

    def others() -> None:
        rested.append(now[0])
        now[0] += 60 * giving_way.SLICE_SECONDS

    slices.meanwhile = others

    async def run() -> None:
        slicing = giving_way.Slicing(lambda: now[0])
        for _ in range(4):
            now[0] += giving_way.SLICE_SECONDS / 2
            await slicing.go_on()

    asyncio.run(run())
    assert rested == [giving_way.SLICE_SECONDS, pytest.approx(62 * giving_way.SLICE_SECONDS)]


def test_a_list_that_is_read_again_is_taken_some_objects_at_a_time(slices: Slices) -> None:
    """The first one is waited for by all; a later one is nobody's who is served."""

    def read(each: DataObject) -> str | None:
        slices.did()
        return each.metadata.name

    async def run() -> None:
        api = FakeKube(StepClock())
        for number in range(5 * SLICE):
            api.put(f"/api/v1/namespaces/a/configmaps/m{number}", map_of(number))
        followed = mirror.Mirror(api, "/api/v1/configmaps", DataObject, read, StepClock())
        await followed._list()
        assert len(slices.sizes) == 1
        slices.sizes = [0]
        await followed._list()
        assert max(slices.sizes) == SLICE
        assert sum(slices.sizes) == 5 * SLICE

    asyncio.run(run())


def map_of(number: int) -> Object:
    return {"metadata": {"name": f"m{number}", "uid": f"u{number}", "namespace": "a"}, "data": {}}


AGENTS = ("podsvid", "podsvid-agent")
PODS = st.builds(
    LivePod,
    namespace=st.sampled_from(["podsvid", "shop"]),
    name=st.just("p"),
    uid=st.just("u"),
    node_name=st.sampled_from(["", "a", "b", "c"]),
    service_account=st.sampled_from(["podsvid-agent", "default"]),
    finished=st.booleans(),
)


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | PODS)))
def test_the_nodes_with_an_agent_are_those_of_the_pods_that_there_are(
    changes: Iterable[tuple[int, LivePod | None]],
) -> None:
    found, there = AgentNodes(AGENTS), dict[int, LivePod]()
    for uid, new in changes:
        found.pod_changed(there.get(uid), new)
        there.pop(uid, None)
        if new is not None:
            there[uid] = new
        assert found.names == {
            each.node_name
            for each in there.values()
            if (each.namespace, each.service_account) == AGENTS and each.node_name and not each.finished
        }
