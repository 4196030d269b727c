"""What a decision and a status cost follows what concerns a pod and what changed, not what there is."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer import gauges
from signer.attestation.pods import read_pod
from signer.cluster.mirror import SLICE
from signer.cluster.objects import Pod as PodObject
from signer.cluster.objects import PolicyObject, Texts
from signer.errors import InvalidPolicy, Reason, Refused
from signer.metrics import Metrics
from signer.model import LivePod
from signer.policy import statuses as module
from signer.policy.index import Index
from signer.policy.policies import Policies
from signer.policy.policy import (
    CLUSTER,
    GROUP,
    MAX_SPEC,
    NAMESPACED,
    Policy,
    PolicySettings,
    decide,
    matching,
    read_policy,
)
from signer.policy.selector import read_selector
from signer.policy.services import MAX_SERVICES, Service, ServiceIndex
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.live_pods import Fixed
from tests.signer_rig import StepClock
from tests.typed import typed
from tests.unit.signer.test_policy import policy

POD = LivePod("shop", "web-0", "uid-1", "node-a", "web", {"app": "web"})


def indexed(policies: Iterable[Policy] = (), most: int = 100) -> Index:
    found = Index(most)
    for each in policies:
        found.policy(None, each)
    return found


def test_a_decision_looks_at_no_policy_of_another_namespace_or_other_labels() -> None:
    own = [policy("own", "shop"), policy("wide"), policy("app", podSelector={"matchLabels": {"app": "web"}})]
    own.append(policy("account", serviceAccounts=["web"]))
    alone = len(list(indexed(own).policies(POD)))
    others = [policy(f"p{n}", f"ns{n % 50}") for n in range(5000)]
    others += [policy(f"n{n}", namespaceSelector={"matchLabels": {"team": f"t{n}"}}) for n in range(500)]
    others += [policy(f"l{n}", podSelector={"matchLabels": {"app": f"a{n}"}}) for n in range(500)]
    others += [policy(f"a{n}", serviceAccounts=[f"sa{n}"]) for n in range(500)]
    crowded = indexed([*own, *others])
    crowded.namespace(None, ("shop", {"team": "shop"}))
    assert len(list(crowded.policies(POD))) == alone == 4


def test_only_services_that_may_select_the_pod_are_looked_at_and_not_all_of_those() -> None:
    services = [Service(f"ns{n % 50}", f"s{n}", (("app", "web"),)) for n in range(5000)]
    services += [Service("shop", f"x{n}", (("app", f"a{n}"),)) for n in range(5000)]
    front = Service("shop", "front", (("app", "web"),))
    found = ServiceIndex(10_000)
    for each in [*services, front]:
        found.changed(None, each)
    assert list(found.of(POD)) == [front]
    for number in range(1000):
        found.changed(None, Service("shop", f"t{number:04}", (("app", "web"),)))
    looked_at = 0

    def counted() -> Iterator[Service]:
        nonlocal looked_at
        for each in found.of(POD):
            looked_at += 1
            yield each

    wide = policy("wide", dnsNamesFromServices=True)
    given = decide([wide], POD, counted(), PolicySettings(TrustDomain("example.org")))
    assert looked_at == MAX_SERVICES + 1
    (surprise,) = given.surprises
    assert surprise == (
        "DNS names of Services were left out: 246 Services; "
        "all but 256 of those with a label of the pod in their selector"
    )
    # Each replica sees the same ones.
    assert [each.name for each in found.of(POD)][:3] == ["front", "t0000", "t0001"]
    found.changed(front, None)
    assert next(found.of(POD)).name == "t0000"


LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xyz"), max_size=2)
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": LABELS,
        "matchExpressions": st.lists(
            st.fixed_dictionaries(
                {"key": st.sampled_from("ab"), "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"])},
                optional={"values": st.lists(st.sampled_from("xyz"), max_size=3)},
            ),
            max_size=2,
        ),
    },
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "podSelector": SELECTORS,
        "namespaceSelector": SELECTORS,
        "serviceAccounts": st.lists(st.sampled_from(["web", "api"]), max_size=2),
        "priority": st.integers(0, 2),
        "deny": st.booleans(),
    },
)
POLICIES = st.lists(st.tuples(st.sampled_from(["", "", "shop", "other"]), SPECS), max_size=6)


@given(POLICIES, POLICIES, LABELS, LABELS, st.sampled_from(["web", "api", "x"]))
def test_the_index_finds_what_going_through_all_finds(
    before: Any, now: Any, labels: dict[str, str], namespace: dict[str, str], account: str
) -> None:
    """Also after each policy has become another one."""
    old = {n: policy(f"p{n}", where, **spec) for n, (where, spec) in enumerate(before)}
    new = {n: policy(f"p{n}", where, **spec) for n, (where, spec) in enumerate(now)}
    index = indexed(old.values())
    for number in range(6):
        index.policy(old.get(number), new.get(number))
    index.namespace(None, ("shop", {"gone": "x"}))
    index.namespace(("shop", {"gone": "x"}), ("shop", namespace))
    pod = replace(POD, labels=labels, service_account=account)
    everything = matching(new.values(), pod, namespace)
    assert matching(index.policies(pod), pod, index.labels("shop")) == everything
    for each in new.values():
        index.policy(each, None)
    assert list(index.policies(pod)) == []
    assert (index._namespaced, index._cluster) == ({}, {})


class Rig:
    def __init__(self, most: int = 100) -> None:
        self.kube = FakeKube(StepClock())
        for namespace in ("shop", "other"):
            self.kube.put(f"/api/v1/namespaces/{namespace}", {})
        settings = PolicySettings(TrustDomain("example.org"), max_per_namespace=most, max_services=most)
        self.policies = Policies(self.kube, settings, timedelta(minutes=10), self.kube._clock)

    def put(self, name: str, namespace: str = "", created: str = "2030-01-01T00:00:00Z", **spec: Any) -> str:
        path = f"{GROUP}/namespaces/{namespace}/{NAMESPACED}/{name}" if namespace else f"{GROUP}/{CLUSTER}/{name}"
        self.kube.put(path, {"metadata": {"name": name, "creationTimestamp": created}, "spec": spec})
        return path

    def ready(self, path: str) -> tuple[str, str]:
        found = {each["type"]: each for each in self.kube.objects[path]["status"]["conditions"]}
        return found["Ready"]["status"], found["Ready"]["reason"]


def followed(test: Callable[[Rig], Any], most: int = 100) -> None:
    async def run() -> None:
        rig = Rig(most)
        following = asyncio.ensure_future(rig.policies.run())
        await rig.policies.wait_synced()
        try:
            await test(rig)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


async def told() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


def test_the_oldest_of_a_namespace_count_and_the_others_say_that_they_do_not() -> None:
    async def test(rig: Rig) -> None:
        second = rig.put("second", "shop", "2030-01-02T00:00:00Z")
        first = rig.put("first", "shop", "2030-01-01T00:00:00Z")
        third = rig.put("third", "shop", "2030-01-03T00:00:00Z", deny=True, serviceAccounts=["api"])
        elsewhere = rig.put("third", "other", "2030-01-03T00:00:00Z")
        await told()
        # Whom it denies is not known any more: everybody of its namespace.
        with pytest.raises(Refused, match=r"shop/third denies .*: its namespace has more than 2") as caught:
            rig.policies.entitlement(POD)
        assert caught.value.reason is Reason.POLICY_DENIED
        assert rig.policies.entitlement(replace(POD, namespace="other")).policy == "other/third"
        await rig.policies.statuses.write(Fixed([POD]))
        assert [rig.ready(path) for path in (first, second, third, elsewhere)] == [
            ("True", "InUse"),
            ("True", "InUse"),
            ("False", "TooManyPolicies"),
            ("True", "InUse"),
        ]
        message = rig.kube.objects[third]["status"]["conditions"][0]["message"]
        assert message == (
            "its namespace has more than 2 WorkloadIdentities (policies_per_namespace), and only the oldest are read: "
            "this one is taken to be for all pods of the namespace, and refuses those that it wins; delete some"
        )
        assert rig.policies.explain(POD).policy == "shop/third"
        # There is room for it now.
        rig.kube.remove(second)
        await told()
        assert rig.policies.entitlement(POD).policy == "shop/first"
        with pytest.raises(Refused, match=r"third denies pod shop/web-0 an identity$"):
            rig.policies.entitlement(replace(POD, service_account="api"))
        await rig.policies.statuses.write(Fixed([POD]))
        assert rig.ready(third) == ("True", "InUse")

    followed(test, most=2)


def test_a_status_is_brought_up_to_date_by_what_changed() -> None:
    async def test(rig: Rig) -> None:
        wide = rig.put("wide")
        rig.put("own", "ns1")
        pods = Fixed([replace(POD, namespace=f"ns{n % 5}", uid=f"u{n}") for n in range(20)])
        await told()
        await rig.policies.statuses.write(pods)
        assert rig.kube.objects[wide]["status"]["podsMatched"] == 20
        await told()

        async def looked_at() -> list[str]:
            pods.looked_at.clear()
            await rig.policies.statuses.write(pods)
            return pods.looked_at

        assert await looked_at() == []
        rig.policies.statuses.pod_changed(None, pods.of_namespace("ns3")[0])
        assert await looked_at() == ["ns3"]
        rig.policies.statuses.pod_changed(pods.of_namespace("ns2")[0], None)
        assert await looked_at() == ["ns2"]
        rig.put("own", "ns1", deny=True)
        rig.kube.put("/api/v1/namespaces/ns4", {"metadata": {"labels": {"a": "b"}}})
        rig.kube.put("/api/v1/namespaces/ns4/services/s", {"spec": {"selector": {"app": "web"}}})
        await told()
        assert await looked_at() == ["ns1", "ns4"]
        rig.put("wide", priority=1)
        await told()
        assert await looked_at() == [f"ns{n}" for n in range(5)]

    followed(test)


def test_statuses_give_way_and_are_written_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WRITES", 10)

    async def test(rig: Rig) -> None:
        paths = [rig.put(f"p{n:02}") for n in range(25)]
        pods = Fixed(replace(POD, uid=f"u{n}") for n in range(50 * SLICE))
        await told()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        await rig.policies.statuses.write(pods)
        beside.cancel()
        assert turns >= 50
        for written in (10, 20, 25):
            assert sum("status" in rig.kube.objects[path] for path in paths) == written
            await rig.policies.statuses.write(pods)
        writes = len(rig.kube.writes)
        await rig.policies.statuses.write(pods)
        assert len(rig.kube.writes) == writes == 25

    followed(test)


def test_the_loops_lag_is_how_much_later_than_wanted_a_task_has_its_turn() -> None:
    now, late = 100.0, iter([0.0, 0.07, -1.0, 3.0])
    metrics = Metrics()

    async def sleep(seconds: float) -> None:
        nonlocal now
        more = next(late, None)
        if more is None:
            raise asyncio.CancelledError
        now += seconds + more

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(gauges.measure_lag(metrics, lambda: now, sleep))
    found = {
        (sample.name.removeprefix("podsvid_signer_loop_lag_seconds"), sample.labels.get("le")): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    assert found["_count", None] == 4
    assert found["_sum", None] == pytest.approx(3.07)
    assert [found["_bucket", le] for le in ("0.05", "0.1", "2.5", "5.0")] == [2, 3, 3, 4]


def test_what_is_kept_of_a_policy_is_not_much_more_than_its_json() -> None:
    """A tenant writes a hundred that count: three times its JSON is kept of each; 90 KiB of one that is not ASCII."""
    listed = [
        {"key": "k", "operator": "NotIn", "values": [f"{n:02}{each:03x}" for each in range(256)]} for n in range(6)
    ]
    conditions = [{"key": f"k{n}", "operator": "In", "values": ["v" * 50] * 4} for n in range(32)]
    names = [f"{n}" + "{pod}.{node}" * 20 for n in range(32)]
    federated = [f"{'t' * 200}{n}.test" for n in range(64)]
    specs: list[dict[str, Any]] = [
        {"podSelector": {"matchExpressions": listed}},
        {"podSelector": {"matchExpressions": conditions}},
        {"dnsNameTemplates": names},
        {"federatesWith": federated},
    ]
    wide = "x" * 54 + "\U0001f600"
    conditions = [{"key": f"{n}", "operator": "In", "values": ["a"]} for n in range(32)]
    labels = {f"{n:02}{wide}{wide}": "" for n in range(64)}
    worst: dict[str, Any] = {
        "podSelector": {"matchLabels": labels, "matchExpressions": conditions},
        "serviceAccounts": [f"s{n}{wide}" for n in range(64)],
        "dnsNameTemplates": [f"a{n}" for n in range(32)],
        "federatesWith": [f"t{n}" for n in range(64)],
    }
    for spec in (*specs, worst):
        text = json.dumps(spec, separators=(",", ":"), ensure_ascii=False).encode()
        assert 7_000 < len(text) < MAX_SPEC
        bodies = [typed(PolicyObject, {"metadata": {"name": "p", "namespace": "a", "uid": f"u{n}"}}) for n in range(20)]
        bodies = [msgspec.structs.replace(each, spec=msgspec.Raw(text)) for each in bodies]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            kept = [read_policy(each) for each in bodies]
            gc.collect()
            cost = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
        finally:
            tracemalloc.stop()
        assert all(each is not None and not each.problem for each in kept)
        assert cost < (90 * 1024 if spec is worst else 3 * len(text) + 2048)


def test_a_value_matches_as_a_whole_and_never_as_a_part_of_the_list() -> None:
    def matches(operator: str, values: list[str], label: str | None) -> bool:
        found = read_selector({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]})
        return found.matches({} if label is None else {"k": label})

    values = ["web", "web-2", "", "\u00e4", "\udc80"]
    for value in values:
        assert matches("In", values, value)
        assert not matches("NotIn", values, value)
    for other in ("we", "eb", "web\0web-2", "web-", "\0", "\u00c3", None):
        assert not matches("In", values, other)
        assert matches("NotIn", values, other)
    assert not matches("In", ["web"], "")
    found = read_selector({"matchExpressions": [{"key": "k", "operator": "In", "values": values}]})
    assert found.requirements[0].values == tuple(values)
    # It would pass for two, of which one could be somebody's.
    with pytest.raises(InvalidPolicy, match="NUL"):
        matches("In", ["web\0db"], "db")


@pytest.mark.parametrize("operator", ["In", "NotIn"])
def test_a_selector_has_no_key_or_value_that_no_label_can_have(operator: str) -> None:
    """The API server refuses it too: `migrate` writes none."""

    def read(key: str, value: str) -> None:
        read_selector({"matchExpressions": [{"key": key, "operator": operator, "values": ["a", value]}]})

    longest = f"{'p' * 253}/{'k' * 63}"
    read(longest, "v" * 63)
    for key, value in ((longest + "k", "v"), ("k", "v" * 64)):
        with pytest.raises(InvalidPolicy, match="no label has a key or a value"):
            read(key, value)
    with pytest.raises(InvalidPolicy, match="no label has a key or a value"):
        read_selector({"matchLabels": {"k": "v" * 64}})


def test_a_namespace_with_more_labels_than_are_kept_is_unknown() -> None:
    """Of a pod in it nobody could say what a policy by namespaceSelector does."""

    async def test(rig: Rig) -> None:
        pod = LivePod("big", "web-0", "uid-1", "node-a", "web")
        rig.kube.put("/api/v1/namespaces/big", {"metadata": {"labels": {f"l{n}": "x" for n in range(128)}}})
        await told()
        assert rig.policies.entitlement(pod)
        rig.kube.put("/api/v1/namespaces/big", {"metadata": {"labels": {f"l{n}": "x" for n in range(129)}}})
        await told()
        with pytest.raises(Refused, match="more than 128 labels is not read") as caught:
            rig.policies.entitlement(pod)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE

    followed(test)


def test_equal_texts_are_one_and_no_more_than_so_many_are_held() -> None:
    texts = Texts(most=4)
    first = "".join(["a", "b"])
    assert texts.same(first) is first
    assert texts.same("".join(["a", "b"])) is first
    for number in range(3):
        texts.same(f"x{number}")
    again = "".join(["a", "b"])
    # Full: it began anew.
    assert texts.same(again) is again
    assert len(texts._found) == 1


def test_labels_of_pods_are_shared_while_they_are_many() -> None:
    """Nothing is interned: Python 3.12 holds for ever what is."""
    texts = Texts()
    bodies = [
        typed(PodObject, {"metadata": {"name": "p", "namespace": "a", "uid": f"u{n}", "labels": {"k y": "v w"}}})
        for n in range(2)
    ]
    one, two = (read_pod(each, texts) for each in bodies)
    assert one is not None
    assert two is not None
    (key, value), (other_key, other_value) = *one.labels.items(), *two.labels.items()
    assert key is other_key
    assert value is other_value


@given(
    st.lists(
        st.builds(
            LivePod,
            namespace=st.sampled_from(["shop", "other"]),
            name=st.sampled_from(["web-0", "web-1"]),
            uid=st.just("uid"),
            node_name=st.just("node-a"),
            service_account=st.sampled_from(["web", "db"]),
            labels=st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b"])),
        ),
        max_size=12,
    )
)
def test_many_pods_of_one_moment_get_what_each_gets_by_itself_and_policies_are_matched_once_for_those_alike(
    pods: list[LivePod],
) -> None:
    """A ztunnel's account may have hundreds of pods, which are alike but for their names."""
    clock = StepClock()
    kube = FakeKube(clock)
    for namespace in ("shop", "other"):
        kube.put(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"team": namespace}}})
    for name, spec in {
        "labelled": {"podSelector": {"matchLabels": {"app": "a"}}, "spiffeIDTemplate": "/{pod}/{labels['app']}"},
        "account": {"serviceAccounts": ["db"], "x509TTL": "10m"},
        "shop": {"namespaceSelector": {"matchLabels": {"team": "shop"}}, "dnsNameTemplates": ["{pod}.example"]},
        "denied": {"podSelector": {"matchLabels": {"tier": "b"}}, "deny": True},
    }.items():
        kube.put(f"{GROUP}/{CLUSTER}/{name}", {"metadata": {"name": name}, "spec": spec})
    policies = Policies(kube, PolicySettings(TrustDomain("example.org")), timedelta(minutes=10), clock)
    asyncio.run(listed(policies))

    def outcome(by: Callable[[LivePod], Any], pod: LivePod) -> Any:
        try:
            return by(pod)
        except Refused as refusal:
            return refusal.reason, str(refusal)

    alone = [outcome(policies.entitlement, each) for each in pods]
    looked_up, matching = [], policies.matching

    def counted(pod: LivePod) -> list[Policy]:
        looked_up.append(pod)
        return matching(pod)

    policies.matching = counted  # type: ignore[method-assign]
    together = policies.entitlements()
    assert [outcome(together, each) for each in pods] == alone
    assert len(looked_up) == len(
        {(each.namespace, each.service_account, *sorted(each.labels.items())) for each in pods}
    )


async def listed(policies: Policies) -> None:
    for mirror in policies._mirrors:
        await mirror._list()
