"""Services of a namespace with more than count, or that select by too much: which give names, and that it is said."""

import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.cluster.objects import ServiceObject
from signer.errors import ApiUnavailable
from signer.model import LivePod
from signer.policy import policies
from signer.policy.policy import CLUSTER, GROUP
from signer.policy.services import Service, ServiceIndex, read_service
from tests.live_pods import Fixed
from tests.signer_rig import StepClock
from tests.typed import typed
from tests.unit.signer.test_policy_cost import Rig, followed, told

POD = LivePod("shop", "web-0", "uid-1", "node-a", "web", {"app": "web", "tier": "front"})
LARGE = {f"l{number}": "x" for number in range(17)}
DAYS = st.lists(st.integers(1, 3), min_size=8, max_size=8)
SELECTORS = st.lists(
    st.sampled_from([{"app": "web"}, {"tier": "front"}, {"app": "web", "tier": "front"}, {"app": "x"}, LARGE, {}]),
    min_size=8,
    max_size=8,
)


def service(name: str, selector: dict[str, str], day: int = 1, namespace: str = "shop") -> ServiceObject:
    metadata = {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}"}
    created = {"creationTimestamp": f"2030-01-{day:02}T00:00:00Z"}
    return typed(ServiceObject, {"metadata": {**metadata, **created}, "spec": {"selector": selector}})


class Followed:
    """An index and what a mirror would keep, without the mirror."""

    def __init__(self, most: int) -> None:
        self.index = ServiceIndex(most)
        self.kept: dict[str, Service] = {}

    def put(self, each: ServiceObject) -> None:
        self.swap(each.metadata.uid or "", self.index.read(each))

    def swap(self, uid: str, new: Service | None) -> None:
        old = self.kept.pop(uid, None)
        if new is not None:
            self.kept[uid] = new
        over = self.index.changed(old, new)
        if over is not None:
            self.swap(over.uid, over.outline())


@given(SELECTORS, DAYS, st.randoms(use_true_random=False), st.integers(1, 4), st.sets(st.integers(0, 7)))
def test_the_oldest_give_names_in_whatever_order_they_come_and_go(
    selectors: Sequence[dict[str, str]], days: Sequence[int], rng: random.Random, most: int, gone: set[int]
) -> None:
    objects = [service(f"s{number}", each, days[number]) for number, each in enumerate(selectors)]
    at = Followed(most)
    for each in rng.sample(objects, len(objects)):
        at.put(each)
    # One that is told of again changes nothing.
    at.put(rng.choice(objects))
    for number in gone:
        at.swap(f"shop-s{number}", None)
    left = {each.metadata.uid: each for number, each in enumerate(objects) if number not in gone}
    while at.index.due():
        for outline in at.index.due():
            at.swap(outline.uid, at.index.read(left[outline.uid]))
    read = [found for each in left.values() if (found := read_service(each)) is not None]
    small = sorted((each for each in read if not each.large), key=lambda each: each.age)
    counts = {each.name for each in small[:most]}
    assert {each.name for each in at.index.of(POD) if each.selects(POD)} == {
        each.name for each in small[:most] if each.selects(POD)
    }
    assert {each.name for each in at.kept.values() if each.selector} == counts
    assert at.index.left_out == len(read) - len(counts)
    said = at.index.unread("shop")
    assert any("services_per_namespace" in each for each in said) is (len(small) > most)
    assert any("more than 16 labels" in each for each in said) is any(each.large for each in read)
    for uid in list(at.kept):
        at.swap(uid, None)
    index = at.index
    assert (index._by_label, index._places, index._large, index._free, index.left_out) == ({}, {}, {}, set(), 0)


def test_of_one_that_is_left_out_little_is_kept() -> None:
    objects = [service(f"s{number}", {"app": "x" * 2000}) for number in range(500)]
    at = Followed(1)
    tracemalloc.start()
    try:
        for each in objects:
            at.put(each)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 500 * 1024


def put(rig: Rig, name: str, created: str, selector: dict[str, str], namespace: str = "shop") -> str:
    path = f"/api/v1/namespaces/{namespace}/services/{name}"
    rig.kube.put(path, {"metadata": {"creationTimestamp": created}, "spec": {"selector": selector}})
    return path


def names(rig: Rig, pod: LivePod = POD) -> list[str]:
    return [each.partition(".")[0] for each in rig.policies.entitlement(pod).dns_names if each.endswith(".svc")]


BEYOND = "all but the oldest 2 of the namespace (services_per_namespace)"
TOO_LARGE = "those of the namespace that select by more than 16 labels or 2048 characters"
SAID = "Services give no DNS names: too many in their namespace, or too large a selector"


def test_what_is_left_out_is_said_and_comes_back_when_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        rig.put("names", dnsNamesFromServices=True)
        for number in (2, 3):
            put(rig, f"s{number}", f"2030-01-0{number}T00:00:00Z", {"app": "web"})
        put(rig, "theirs", "2030-01-01T00:00:00Z", {"app": "web"}, "other")
        await told()
        assert names(rig) == ["s2", "s3"]
        assert rig.policies.entitlement(POD).surprises == ()
        assert said(caplog) == []
        # An older one takes its place from the newest.
        oldest = put(rig, "s1", "2030-01-01T00:00:00Z", {"app": "web"})
        for number in range(4, 9):
            put(rig, f"s{number}", f"2030-01-0{number}T00:00:00Z", {"app": "web"})
        put(rig, "large", "2030-01-01T00:00:00Z", LARGE)
        await told()
        assert names(rig) == ["s1", "s2"]
        assert rig.policies.services_left_out == 7
        surprise = f"DNS names of Services were left out: {BEYOND}; {TOO_LARGE}"
        assert rig.policies.entitlement(POD).surprises == (surprise,)
        # Nobody else has to do with it, nor who wants no such names.
        assert rig.policies.entitlement(replace(POD, namespace="other")).surprises == ()
        rig.put("plain", priority=1)
        await told()
        assert not any("DNS names" in each for each in rig.policies.entitlement(POD).surprises)
        (line,) = said(caplog)
        assert (line["namespace"], line["service"]) == ("shop", "s3")
        assert isinstance(rig.kube._clock, StepClock)
        rig.kube._clock.pass_by(seconds=60)
        put(rig, "s9", "2030-01-09T00:00:00Z", {"app": "web"})
        await told()
        assert len(said(caplog)) == 2
        rig.kube.remove(f"{GROUP}/{CLUSTER}/plain")
        # What has a place now is read again.
        rig.kube.remove(oldest)
        await told()
        assert names(rig) == ["s2", "s3"]
        for number in range(4, 10):
            rig.kube.remove(f"/api/v1/namespaces/shop/services/s{number}")
        rig.kube.remove("/api/v1/namespaces/shop/services/large")
        await told()
        assert rig.policies.entitlement(POD).surprises == ()
        assert rig.policies.services_left_out == 0

    followed(test, most=2)


def test_the_policys_status_says_so_where_its_pods_lack_names_by_it() -> None:
    async def test(rig: Rig) -> None:
        names, plain = rig.put("names", "shop", dnsNamesFromServices=True), rig.put("plain", "other")

        def condition(path: str) -> tuple[str, str, str] | None:
            found = {each["type"]: each for each in rig.kube.objects[path]["status"]["conditions"]}.get(
                "ServicesLeftOut"
            )
            return (found["status"], found["reason"], found["message"]) if found else None

        pods = Fixed([POD, replace(POD, namespace="other", name="api-0", uid="uid-2")])

        async def written() -> None:
            await told()
            await rig.policies.statuses.write(pods)

        await written()
        assert condition(names) == ("False", "AllRead", "all Services of its pods are read")
        assert condition(plain) is None
        for namespace in ("shop", "other"):
            put(rig, "s1", "2030-01-01T00:00:00Z", {"app": "web"}, namespace)
            put(rig, "s2", "2030-01-02T00:00:00Z", {"app": "web"}, namespace)
        await written()
        most = "all but the oldest 1 of the namespace (services_per_namespace)"
        assert condition(names) == ("True", "TooManyOrTooLarge", f"in namespace shop: {most}")
        assert condition(plain) is None
        # Which others come matters to nobody who is told already.
        looked_at = len(pods.looked_at)
        put(rig, "s3", "2030-01-03T00:00:00Z", {"app": "web"})
        await written()
        assert len(pods.looked_at) == looked_at
        for number in (2, 3):
            rig.kube.remove(f"/api/v1/namespaces/shop/services/s{number}")
        await written()
        assert condition(names) == ("False", "AllRead", "all Services of its pods are read")

    followed(test, most=1)


def test_one_that_cannot_be_read_again_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "READ_AGAIN_SECONDS", 0.0)

    async def test(rig: Rig) -> None:
        rig.put("names", dnsNamesFromServices=True)
        oldest = put(rig, "s1", "2030-01-01T00:00:00Z", {"app": "web"})
        put(rig, "s2", "2030-01-02T00:00:00Z", {"app": "web"})
        await told()
        assert names(rig) == ["s1"]
        listed, away = rig.kube.list, True

        async def listing(path: str, kind: Any, query: Any = None) -> Any:
            if away:
                raise ApiUnavailable("away")
            return await listed(path, kind, query)

        monkeypatch.setattr(rig.kube, "list", listing)
        rig.kube.remove(oldest)
        await told()
        assert names(rig) == []
        lines = [vars(each) for each in caplog.records if each.message == "a Service cannot be read; trying again"]
        assert {(each["namespace"], each["service"], each["reason"]) for each in lines} == {
            ("shop", "s2", "API_SERVER_UNAVAILABLE")
        }
        away = False
        await told()
        assert names(rig) == ["s2"]

    followed(test, most=1)


def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(each) for each in caplog.records if each.message == SAID]
