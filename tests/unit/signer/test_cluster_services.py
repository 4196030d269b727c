"""Published bundles, events, acknowledgements, policies' status and mirrors over an API server in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.authority.acknowledgements import MAX_STREAMS, RETURN_SECONDS, Agents
from signer.cluster.events import Events
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, Named
from signer.errors import Reason, Refused
from signer.model import Agent, LivePod, PodClaim
from signer.policy.policies import Policies
from signer.policy.policy import GROUP, PolicySettings
from signer.publishing.config_maps import Copy, Publisher, bundle_map
from svid.bundle import TrustBundle
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.live_pods import write_status
from tests.signer_rig import START, StepClock
from tests.unit.signer.said import says, wanted
from tests.unit.signer.test_lifecycle import first

TD = TrustDomain("example.org")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


async def running(loops: list[Awaitable[None]], test: Callable[[], Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(each) for each in loops]
    try:
        await test()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def copies(publisher: Publisher) -> "Mirror[DataObject, Copy]":
    ((_, found),) = publisher._copies
    return found


def publisher(kube: FakeKube, namespaces: str = "") -> Publisher:
    return Publisher(kube, namespaces, (bundle_map("podsvid-bundle"),), "podsvid.io/spiffe", TD, StepClock())


def config_map(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/podsvid-bundle"


def namespace(kube: FakeKube, name: str, **labels: str) -> None:
    kube.put(f"/api/v1/namespaces/{name}", {"metadata": {"name": name, "labels": labels}})


CTB = "/apis/certificates.k8s.io/{}/clustertrustbundles"


def test_the_bundle_is_published_healed_and_cleaned_up() -> None:
    bundle = first().bundle

    async def run() -> None:
        kube = FakeKube(StepClock())
        kube.missing |= {CTB.format(version) for version in ("v1", "v1beta1", "v1alpha1")}
        for name in ("a", "b", "c"):
            namespace(kube, name, wanted="yes")
        kube.put(config_map("c"), {"metadata": {"name": "podsvid-bundle"}, "data": {"ca.crt": "mine"}})
        publishing = publisher(kube, "wanted=yes")
        await publishing.publish([bundle])

        def right(*names: str) -> bool:
            have = {key for key in kube.objects if key.endswith("/configmaps/podsvid-bundle")} - {config_map("c")}
            pem = bundle.to_pem().decode()
            return have == set(map(config_map, names)) and all(
                kube.objects[key]["data"]["ca.crt"] == pem for key in have
            )

        async def test() -> None:
            await until(lambda: right("a", "b"))
            assert TrustBundle.from_jwks(TD, kube.objects[config_map("a")]["data"]["bundle.json"].encode()) == bundle
            # Somebody else's object of the name is left alone.
            assert kube.objects[config_map("c")]["data"] == {"ca.crt": "mine"}
            kube.remove(config_map("a"))
            kube.objects[config_map("b")]["data"]["ca.crt"] = "changed"
            kube.put(config_map("b"), {**kube.objects[config_map("b")], "data": {"ca.crt": "changed"}})
            await until(lambda: right("a", "b"))
            namespace(kube, "d", wanted="yes")
            await until(lambda: right("a", "b", "d"))
            kube.remove("/api/v1/namespaces/b")
            await until(lambda: right("a", "d") and len(copies(publishing).values) == 3)
            writes = len(kube.writes)
            await publishing.reconcile()
            assert len(kube.writes) == writes

        await running([publishing.run()], test)

    asyncio.run(run())


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha1"])
def test_cluster_trust_bundles_where_the_api_has_them(version: str) -> None:
    own = first().bundle

    async def run() -> None:
        kube = FakeKube(StepClock())
        newer = {"v1": (), "v1beta1": ("v1",), "v1alpha1": ("v1", "v1beta1")}[version]
        kube.missing |= {CTB.format(each) for each in newer}
        publishing = publisher(kube)
        partner = TrustBundle(TrustDomain("partner.test"), own.x509_authorities)
        await publishing.publish([own, partner])
        await publishing.reconcile()
        prefix = f"{CTB.format(version)}/podsvid.io:spiffe:"
        assert {key for key in kube.objects if "trustbundles" in key} == {
            f"{prefix}example.org",
            f"{prefix}partner.test",
        }
        assert kube.objects[f"{prefix}example.org"]["spec"]["trustBundle"] == own.to_pem().decode()
        await publishing.publish([own])
        await publishing.reconcile()
        assert {key for key in kube.objects if "trustbundles" in key} == {f"{prefix}example.org"}

    asyncio.run(run())


def test_events_are_few_and_never_in_the_way() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        events = Events(kube, "signer-1", clock)
        pod = PodClaim("default", "web", "uid-1")
        for _ in range(50):
            events.refused(pod, "POLICY_DENIED", "policy x denies")
        for number in range(3000):
            events.refused(PodClaim("default", f"p{number}", f"u{number}"), "POLICY_DENIED", "x" * 5000)

        async def test() -> None:
            await until(lambda: len(kube.objects) == 1)
            (stored,) = kube.objects.values()
            assert (stored["reason"], stored["type"]) == ("IdentityRefused", "Warning")
            assert stored["note"] == "POLICY_DENIED: policy x denies (see docs/troubleshooting.md#policy_denied)"
            assert stored["regarding"]["uid"] == "uid-1"
            assert len(stored["note"]) <= 1024

        kube.down = False
        await running([events.run()], test)

    asyncio.run(run())


def test_what_an_agent_asks_for_makes_no_new_event() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        events = Events(kube, "signer-1", clock)
        pod = PodClaim("default", "web", "uid-1")
        for number in range(300):
            events.refused(pod, "DNS_NAME_DENIED", f"'n{number}.test' is not among the DNS names")
        events.refused(pod, "KEY_WEAK", "another reason is news")
        clock.pass_by(minutes=5)
        events.refused(pod, "DNS_NAME_DENIED", "later")
        assert events._queue.qsize() == 3

    asyncio.run(run())


def test_a_surprise_is_no_write_for_each_renewal() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        events = Events(kube, "signer-1", clock)
        for _ in range(10):
            events.surprise(PodClaim("default", "web", "uid-1"), "PolicySurprise", "policy x won over y")
            clock.pass_by(minutes=25)
        events.refused(PodClaim("default", "last", "uid-2"), "POLICY_DENIED", "policy x denies")

        async def test() -> None:
            await until(lambda: len(kube.objects) == 2)
            assert sorted(each["regarding"]["name"] for each in kube.objects.values()) == ["last", "web"]

        await running([events.run()], test)

    asyncio.run(run())


def agent(node: str) -> Agent:
    return Agent(node, f"uid-{node}", f"agent-{node}", f"pod-{node}", START + timedelta(hours=1))


def telling(kube: FakeKube, clock: StepClock, identity: str) -> Agents:
    made = Agents(kube, "podsvid", identity, clock)
    made.know(wanted(9))
    return made


def test_acknowledgements_of_all_replicas_count() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        one, two = telling(kube, clock, "one"), telling(kube, clock, "two")
        live = frozenset({"a", "b"})

        async def test() -> None:
            await until(lambda: one._others.synced)
            handle = one.connect(agent("a"))
            two.connect(agent("b"))
            assert one.summary(wanted(7), live) == (live, None)
            says(one, "a", 7, {"x": 2})
            says(two, "b", 6, {"x": 1, "y": 1})
            await two.write()
            await until(lambda: "b" in one._known()[0])
            assert one.summary(wanted(7), live) == (frozenset({"b"}), {"x": 3, "y": 1})
            says(two, "b", 8, {"y": 2})
            await two.write()
            await until(lambda: one.summary(wanted(7), live)[0] == frozenset())
            assert one.summary(wanted(7), live)[1] == {"x": 2, "y": 2}
            # The agent went over to the other replica; what it said here is soon no longer its word.
            one.disconnect(handle)
            clock.pass_by(seconds=RETURN_SECONDS + 1)
            assert one.summary(wanted(7), live) == (frozenset({"a"}), None)
            writes = len(kube.writes)
            await two.write()
            assert len(kube.writes) == writes
            # A replica that is gone says nothing any more, though its ConfigMap is there.
            clock.pass_by(minutes=16)
            assert one.summary(wanted(7), frozenset({"b"})) == (frozenset({"b"}), None)

        await running([one._others.run()], test)

    asyncio.run(run())


def test_one_agent_cannot_fill_what_all_share() -> None:
    """Neither with streams, nor with words: these go to the other replicas through one ConfigMap."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        agents = telling(kube, clock, "one")
        handles = [agents.connect(agent("a")) for _ in range(MAX_STREAMS)]
        with pytest.raises(Refused) as caught:
            agents.connect(agent("a"))
        assert caught.value.reason is Reason.BUSY
        assert agents.connected == MAX_STREAMS
        agents.connect(agent("b"))
        agents.disconnect(handles[0])
        agents.connect(agent("a"))
        honest = {"ab" * 20: 3}
        says(agents, "a", 7, {**honest, **{f"\U0001f600{number}" * 20: 1 for number in range(1000)}})
        says(agents, "b", 7, {**honest, **{f"{number:040x}": 2**32 - 1 for number in range(10_000)}})
        assert agents.summary(wanted(7), frozenset({"a"})) == (frozenset(), honest)
        await agents.write()
        (stored,) = kube.objects.values()
        assert len(stored["data"]["nodes"]) < 8 * 1024

    asyncio.run(run())


def test_nobody_speaks_for_a_node_without_a_stream() -> None:
    agents = telling(FakeKube(StepClock()), StepClock(), "one")
    says(agents, "a", 9, {})
    assert agents.summary(wanted(7), frozenset({"a"})) == (frozenset({"a"}), None)
    agents.disconnect(agents.connect(agent("a")))
    says(agents, "a", 9, {})
    assert agents.summary(wanted(7), frozenset({"a"})) == (frozenset({"a"}), None)


@given(st.dictionaries(st.sampled_from(["version", "identity", "written_at", "nodes"]), st.text(max_size=30)))
def test_a_foreign_config_map_is_nobodys_word(data: dict[str, Any]) -> None:
    from signer.authority.passed_on import read_replica

    named = {"name": f"podsvid-agents-{data.get('identity', '')}"[:253].rstrip("-.")}
    assert read_replica({"metadata": named, "data": {**data, "version": "2"}}) is None


def test_agents_of_another_replica_are_counted_when_nothing_changes_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas after a rotation, when nobody waits any more: an alert counts by the leader's numbers."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        leader, other = (telling(kube, clock, name) for name in ("one", "two"))
        handle = other.connect(agent("a"))

        def waiting() -> frozenset[str]:
            return leader.summary(wanted(7), frozenset({"a"}))[0]

        async def test() -> None:
            says(other, "a", 7, {"x": 3})
            await until(lambda: not waiting())
            # Pods come and go: that alone is not written at once.
            clock.pass_by(minutes=2)
            writes = len(kube.writes)
            says(other, "a", 7, {"x": 4})
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(kube.writes) == writes

        monkeypatch.setattr("signer.authority.acknowledgements.WRITE_SECONDS", 0.0)
        await running([leader.run(), other.run()], test)

        async def hours() -> None:
            for _ in range(30):
                clock.pass_by(minutes=5)  # as often as an idle replica looks
                await other.write()
                await leader.write()
                await until(lambda: not waiting())

        await running([leader._others.run()], hours)
        maps = "/api/v1/namespaces/podsvid/configmaps/podsvid-agents"
        assert kube.writes.count(("replace", f"{maps}-two")) < 20
        # Who has nothing to tell does not tell it again.
        assert kube.writes.count(("replace", f"{maps}-one")) == 1
        other.disconnect(handle)

    asyncio.run(run())


def test_policies_status_is_written_once() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        policies = Policies(kube, PolicySettings(TD), timedelta(hours=1), clock)
        pods = [LivePod("shop", f"p{n}", f"u{n}", "node", "web", {"app": "web"} if n else {}) for n in range(3)]
        with pytest.raises(Refused) as caught:
            policies.entitlement(pods[0])
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        namespace(kube, "shop", team="a")
        path = f"{GROUP}/namespaces/shop/workloadidentities/web"
        kube.put(path, {"metadata": {"name": "web"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}}})
        wide = f"{GROUP}/clusterworkloadidentities/wide"
        kube.put(wide, {"metadata": {"name": "wide"}, "spec": {"namespaceSelector": {"matchLabels": {"team": "a"}}}})

        async def test() -> None:
            await until(lambda: policies.synced)
            assert policies.entitlement(pods[1]).policy == "shop/web"
            assert policies.entitlement(pods[0]).policy == "wide"
            await write_status(policies, pods)
            assert kube.objects[path]["status"]["podsMatched"] == 2
            conditions = {each["type"]: each for each in kube.objects[wide]["status"]["conditions"]}
            assert kube.objects[wide]["status"]["podsMatched"] == 3
            assert conditions["Ready"]["status"] == "True"
            assert conditions["Conflicting"]["message"] == "no pod is disputed; 2 have one that goes before it"
            writes = len(kube.writes)
            clock.pass_by(minutes=1)
            await write_status(policies, pods)
            assert len(kube.writes) == writes == 2
            explained = policies.explain(pods[0])
            assert explained.policy == "wide"
            assert [each.because for each in explained.not_matched] == [
                "podSelector wants app=web, and the pod has no label app"
            ]
            kube.put(wide, {**kube.objects[wide], "spec": {"deny": True}})
            await until(lambda: policies.explain(pods[1]).outcome.startswith("refused: POLICY_DENIED"))

        await running([policies.run()], test)

    asyncio.run(run())


def test_policies_that_cannot_be_read_any_more_apply_for_the_outage_limit_only() -> None:
    """The API server answers everything else: only the right to read policies was taken away."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        policies = Policies(kube, PolicySettings(TD), timedelta(hours=1), clock)
        pod = LivePod("shop", "p", "u", "node", "web", {})
        namespace(kube, "shop")
        (mirror,) = (each for each in policies._mirrors if each._path.endswith("clusterworkloadidentities"))

        async def test() -> None:
            await until(lambda: policies.synced)
            kube.denied.add(("list", f"{GROUP}/clusterworkloadidentities"))
            kube.down = True
            await until(lambda: mirror.lost_since is not None)
            kube.down = False
            await until(lambda: sum(each.lost_since is not None for each in policies._mirrors) == 1)
            clock.pass_by(minutes=60)
            assert policies.entitlement(pod).policy is None
            clock.pass_by(minutes=1)
            with pytest.raises(Refused, match="longer than outage_limit") as caught:
                policies.entitlement(pod)
            assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
            kube.denied.clear()
            await until(lambda: mirror.lost_since is None)
            assert policies.entitlement(pod).policy is None

        await running([policies.run()], test)

    asyncio.run(run())


def test_a_mirror_lists_again_after_a_gap_and_outlives_outages() -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        mirror: Mirror[Named, str] = Mirror(kube, "/api/v1/pods", Named, lambda each: each.metadata.name, clock)
        kube.put("/api/v1/namespaces/a/pods/one", {})

        def names() -> set[str]:
            return set(mirror.values.values())

        async def test() -> None:
            await until(lambda: names() == {"one"})
            kube.put("/api/v1/namespaces/b/pods/two", {})
            await until(lambda: names() == {"one", "two"})
            kube.remove("/api/v1/namespaces/a/pods/one")
            await until(lambda: names() == {"two"})
            assert mirror.synced
            version = mirror.changed.version
            await asyncio.sleep(0)
            assert mirror.changed.version == version

        await running([mirror.run()], test)
        # What happened while nobody watched, and was compacted away, is found by a new list.
        kube.put("/api/v1/namespaces/b/pods/three", {})
        kube.compact()
        await running([mirror.run()], lambda: until(lambda: names() == {"two", "three"}))

    asyncio.run(run())
