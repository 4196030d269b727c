"""What a policy's status and `explain` say: to whom pods went, why a policy cannot be used, and since when."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from runtime import giving_way
from signer.cluster.kube import Object
from signer.cluster.objects import PolicyObject
from signer.errors import ApiUnavailable, Conflict, Reason, Refused
from signer.model import LivePod, TtlLimits
from signer.policy.explanation import Other
from signer.policy.policies import Policies
from signer.policy.policy import CLUSTER, GROUP, NAMESPACED, PolicySettings, decide, matching, read_policy
from signer.policy.services import Service
from signer.policy.statuses import FIRST_WAIT, MAX_REFUSED, MAX_WAIT
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.live_pods import Fixed, write_status
from tests.signer_rig import StepClock
from tests.typed import typed
from tests.unit.signer.test_policy import POD, SETTINGS, body, given_to, policy, refused

MINUTE = timedelta(minutes=1)
LIMITS = TtlLimits(60 * MINUTE, MINUTE, 120 * MINUTE, 24 * 60 * MINUTE, 5 * MINUTE, 60 * MINUTE)
HOME = f"{GROUP}/namespaces/shop/{NAMESPACED}"


class Rig:
    def __init__(self) -> None:
        self.clock = StepClock()
        self.kube = FakeKube(self.clock)
        self.kube.put("/api/v1/namespaces/shop", {})
        self.policies = Policies(
            self.kube, PolicySettings(TrustDomain("example.org"), ttls=LIMITS), timedelta(minutes=10), self.clock
        )

    def put(self, path: str, **spec: Any) -> str:
        metadata = {"name": path.rpartition("/")[2], "generation": 7}
        self.kube.put(path, {"metadata": metadata, "spec": spec})
        return path

    def cluster(self, name: str, **spec: Any) -> str:
        return self.put(f"{GROUP}/{CLUSTER}/{name}", **spec)

    async def status(self, path: str, *pods: LivePod) -> tuple[Object, dict[str, Object]]:
        await told()
        await write_status(self.policies, pods)
        found = self.kube.objects[path]["status"]
        return found, {each["type"]: each for each in found["conditions"]}


async def told() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def followed(test: Callable[[Rig], Awaitable[None]]) -> None:
    async def run() -> None:
        rig = Rig()
        following = asyncio.ensure_future(rig.policies.run())
        await rig.policies.wait_synced()
        try:
            await test(rig)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


def pod(number: int = 0, **changes: Any) -> LivePod:
    fields: dict[str, Any] = {"node_name": "node-a", "service_account": "web", **changes}
    return LivePod("shop", f"web-{number}", f"uid-{number}", **fields)


def test_pods_that_get_no_svid_are_not_counted() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("all")
        none = pod(3, finished=True), pod(4, node_name=""), pod(5).outline()
        found, conditions = await rig.status(path, pod(1), pod(2), *none)
        assert (found["podsMatched"], found["observedGeneration"]) == (2, 7)
        assert {each["observedGeneration"] for each in conditions.values()} == {7}
        assert (conditions["Ready"]["status"], conditions["Ready"]["reason"]) == ("True", "InUse")
        assert (conditions["Conflicting"]["status"], conditions["Conflicting"]["reason"]) == ("False", "NoConflict")

    followed(test)


def test_a_policy_that_cannot_be_used_says_why() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("broken", x509TTL="a while")
        _, conditions = await rig.status(path)
        ready = conditions["Ready"]
        assert (ready["status"], ready["reason"]) == ("False", "Unusable")
        assert ready["message"].startswith("x509TTL 'a while' is not a duration")

    followed(test)


def test_a_policy_that_cannot_be_carried_out_for_a_pod_says_why() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("labelled", spiffeIDTemplate="/{labels['app']}")
        _, conditions = await rig.status(path, pod(1, labels={"app": "web"}))
        assert conditions["Ready"]["status"] == "True"
        _, conditions = await rig.status(path, pod(1, labels={"app": "web"}), pod(2))
        assert conditions["Ready"]["status"] == "False"
        assert "pod shop/web-2 has no label 'app'" in conditions["Ready"]["message"]

    followed(test)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"x509TTL": "48h"}, "x509TTL 48h is above x509_max_ttl: 1d is granted"),
        ({"jwtTTL": "90m"}, "jwtTTL 90m is above jwt_max_ttl: 1h is granted"),
        ({"x509TTL": "30s"}, "x509TTL 30s is below x509_min_ttl: 1m is granted"),
        ({"x509TTL": "24h", "jwtTTL": "60m"}, ""),
        ({}, ""),
        # Nobody gets a lifetime of it.
        ({"x509TTL": "48h", "deny": True}, ""),
        ({"x509TTL": "48h", "hint": "x" * 2000}, ""),
    ],
)
def test_a_policys_lifetime_that_nobody_gets_stands_in_its_status_as_it_was_written(
    spec: dict[str, Any], said: str
) -> None:
    async def test(rig: Rig) -> None:
        _, conditions = await rig.status(rig.cluster("long", **spec), pod())
        clipped, ready = conditions["TtlClipped"], conditions["Ready"]
        assert (clipped["status"], clipped["reason"], clipped["message"]) == (
            ("True", "OutsideOfLimits", said) if said else ("False", "WithinLimits", "pods get its lifetimes")
        )
        assert clipped["observedGeneration"] == 7
        assert ready["status"] == ("False" if "hint" in spec else "True")
        assert rig.policies.explain(pod()).clipped == said

    followed(test)


def test_explain_says_how_long_svids_live_and_what_can_be_asked_for() -> None:
    async def test(rig: Rig) -> None:
        await told()
        found = rig.policies.explain(pod())
        assert (found.x509_ttl, found.x509_ttl_most, found.clipped) == ("1h", "2h", "")
        rig.cluster("p", x509TTL="90m")
        await told()
        found = rig.policies.explain(pod())
        assert (found.x509_ttl, found.x509_ttl_most, found.clipped) == ("1h30m", "1h30m", "")
        rig.cluster("no", deny=True)
        await told()
        assert rig.policies.explain(pod()).x509_ttl == ""

    followed(test)


def test_a_namespaces_own_policy_has_its_status() -> None:
    async def test(rig: Rig) -> None:
        found, conditions = await rig.status(rig.put(f"{HOME}/own"), pod(1), replace(pod(2), namespace="elsewhere"))
        assert found["podsMatched"] == 1
        assert conditions["Ready"]["status"] == "True"

    followed(test)


def test_a_denial_is_in_use_and_not_unusable() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("no", deny=True)
        found, conditions = await rig.status(path, pod())
        assert found["podsMatched"] == 1
        assert conditions["Ready"]["status"] == "True"

    followed(test)


def test_whoever_loses_pods_is_told_of_some_of_them() -> None:
    async def test(rig: Rig) -> None:
        winner, loser = rig.cluster("older"), rig.cluster("younger")
        found, conditions = await rig.status(loser, *(pod(number) for number in range(9)))
        assert found["podsMatched"] == 9
        assert (conditions["Conflicting"]["status"], conditions["Conflicting"]["reason"]) == ("True", "LostToOthers")
        said = "shop/web-0 (to older), shop/web-1 (to older), shop/web-2 (to older)"
        assert conditions["Conflicting"]["message"] == f"9 pods went to older policies: {said}"
        _, conditions = await rig.status(winner)
        assert conditions["Conflicting"]["status"] == "False"

    followed(test)


@pytest.mark.parametrize("over", [{"priority": 1}, {"deny": True}, {"namespace": "shop"}])
def test_who_yields_to_what_somebody_put_first_has_no_conflict(over: dict[str, Any]) -> None:
    """A policy of one namespace over a cluster-wide default is how both are meant."""

    async def test(rig: Rig) -> None:
        usual = rig.cluster("usual")
        if "namespace" in over:
            rig.put(f"{HOME}/own")
        else:
            rig.cluster("before", **over)
        found, conditions = await rig.status(usual, pod(0), pod(1))
        assert found["podsMatched"] == 2
        assert (conditions["Conflicting"]["status"], conditions["Conflicting"]["reason"]) == ("False", "NoConflict")
        assert conditions["Conflicting"]["message"] == "no pod is disputed; 2 have one that goes before it"
        if "deny" not in over:
            assert rig.policies.entitlement(pod()).surprises == (), "and no event for each pod"

    followed(test)


def test_a_message_is_as_long_as_the_api_server_takes() -> None:
    async def test(rig: Rig) -> None:
        rig.cluster("a" * 253)
        loser = rig.cluster("loser")
        pods = [LivePod("n" * 63, f"{number}" + "p" * 252, f"u{number}", "node-a", "web") for number in range(3)]
        _, conditions = await rig.status(loser, *pods)
        assert len(conditions["Conflicting"]["message"]) == 1024

    followed(test)


def test_a_condition_says_since_when() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("labelled", spiffeIDTemplate="/{labels['app']}")
        _, before = await rig.status(path, pod(labels={"app": "web"}))
        rig.clock.pass_by(minutes=1)
        _, after = await rig.status(path, pod())
        assert after["Conflicting"]["lastTransitionTime"] == before["Conflicting"]["lastTransitionTime"]
        assert before["Ready"]["lastTransitionTime"] == "2030-01-01T00:00:00Z"
        assert after["Ready"]["lastTransitionTime"] == "2030-01-01T00:01:00Z"
        # Other words for the same state are no transition.
        rig.clock.pass_by(minutes=1)
        _, again = await rig.status(path, pod(1))
        assert again["Ready"]["message"] != after["Ready"]["message"]
        assert again["Ready"]["lastTransitionTime"] == after["Ready"]["lastTransitionTime"]

    followed(test)


def test_a_replica_that_begins_to_lead_writes_nothing_that_is_there_already() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("all")
        await rig.status(path, pod())
        writes, reads = len(rig.kube.writes), len(rig.kube.reads)
        for _ in range(3):
            await rig.status(path, pod())
        assert (len(rig.kube.writes), len(rig.kube.reads)) == (writes, reads)
        other = Policies(rig.kube, PolicySettings(TrustDomain("example.org")), timedelta(minutes=10), rig.clock)
        following = asyncio.ensure_future(other.run())
        await other.wait_synced()
        rig.clock.pass_by(minutes=1)
        await write_status(other, [pod()])
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert len(rig.kube.writes) == writes

    followed(test)


def test_one_policy_that_changed_meanwhile_holds_up_no_other() -> None:
    async def test(rig: Rig) -> None:
        first, gone, last = rig.cluster("a"), rig.cluster("b"), rig.cluster("c")
        await told()
        get, put = rig.kube.get, rig.kube.replace

        async def vanishing(path: str) -> Object:
            if path == gone:
                rig.kube.objects.pop(gone, None)
            return await get(path)

        async def contended(path: str, body: Object) -> Object:
            if path == f"{first}/status":
                raise Conflict("changed")
            return await put(path, body)

        rig.kube.get, rig.kube.replace = vanishing, contended  # type: ignore[method-assign]
        await write_status(rig.policies, [pod()])
        assert rig.kube.objects[last]["status"]["podsMatched"] == 1
        rig.kube.replace = put  # type: ignore[method-assign]
        # What did not get through is tried again.
        await write_status(rig.policies, [pod()])
        assert rig.kube.objects[first]["status"]["podsMatched"] == 1

    followed(test)


def test_an_api_server_that_is_away_ends_no_writing_of_statuses(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("a")
        await told()
        rig.kube.down = True
        await write_status(rig.policies, [pod()])
        assert "policy status not written" in [each.message for each in caplog.records]
        rig.kube.down = False
        await told()
        rig.clock.pass_by(seconds=FIRST_WAIT)
        await write_status(rig.policies, [pod()])
        assert "status" in rig.kube.objects[path]

    followed(test)


def test_explain_names_who_wins_and_why_it_refuses() -> None:
    async def test(rig: Rig) -> None:
        rig.put(f"{HOME}/own", spiffeIDTemplate="/ns/{namespace}/{labels['absent']}")
        rig.cluster("wide")
        rig.cluster("other", podSelector={"matchLabels": {"app": "x"}})
        await told()
        found = rig.policies.explain(pod())
        assert (found.policy, found.matched, found.spiffe_id) == ("shop/own", ("shop/own", "wide"), "")
        assert found.outcome.startswith(
            "refused: POLICY_UNUSABLE: policy shop/own: pod shop/web-0 has no label 'absent'"
        )
        assert found.not_matched == (Other("other", "podSelector wants app=x, and the pod has no label app"),)
        assert found.lost == (("wide", "shop/own is the namespace's own"),)
        rig.kube.put("/api/v1/namespaces/elsewhere", {})
        await told()
        elsewhere = rig.policies.explain(replace(pod(), namespace="elsewhere"))
        assert (elsewhere.outcome, elsewhere.policy, elsewhere.matched) == ("allowed", "wide", ("wide",))
        assert elsewhere.spiffe_id == "spiffe://example.org/ns/elsewhere/sa/web"

    followed(test)


def test_labels_of_a_namespace_count_as_they_are_now() -> None:
    async def test(rig: Rig) -> None:
        rig.cluster("a", namespaceSelector={"matchLabels": {"team": "a"}})
        path = "/api/v1/namespaces/shop"
        rig.kube.put("/api/v1/namespaces/other", {"metadata": {"name": "other", "labels": {"team": "a"}}})
        for team, name in (("b", None), ("a", "a"), ("b", None)):
            rig.kube.put(path, {"metadata": {"name": "shop", "labels": {"team": team}}})
            await told()
            assert rig.policies.entitlement(pod()).policy == name
        rig.kube.put(path, {"metadata": {"name": "shop", "labels": {"team": "a"}}})
        await told()
        rig.kube.remove(path)
        await told()
        # What it is labelled with by now is not known.
        with pytest.raises(Refused, match="namespace shop has not been read yet"):
            rig.policies.entitlement(pod())

    followed(test)


def test_a_namespace_that_was_not_read_yet_is_none_without_labels() -> None:
    async def test(rig: Rig) -> None:
        rig.cluster("tenants", namespaceSelector={"matchLabels": {"tenant": "yes"}}, deny=True)
        absent = {"matchExpressions": [{"key": "tenant", "operator": "DoesNotExist"}]}
        rig.cluster("platform", namespaceSelector=absent, spiffeIDTemplate="/platform/{service_account}")
        await told()
        new = replace(pod(), namespace="new")
        with pytest.raises(Refused) as caught:
            rig.policies.entitlement(new)
        assert caught.value.reason == "API_SERVER_UNAVAILABLE"
        assert rig.policies.explain(new).outcome.startswith("refused: API_SERVER_UNAVAILABLE: namespace new")
        rig.kube.put("/api/v1/namespaces/new", {"metadata": {"labels": {"tenant": "yes"}}})
        await told()
        with pytest.raises(Refused) as caught:
            rig.policies.entitlement(new)
        assert caught.value.reason == "POLICY_DENIED"

    followed(test)


class Refusing:
    """Makes an API server refuse statuses: those of an object near its own limit, or by a webhook."""

    def __init__(self, rig: Rig, *paths: str) -> None:
        self.paths = {f"{each}/status" for each in paths}
        self.asked: list[str] = []
        self._replace = rig.kube.replace
        rig.kube.replace = self.replace  # type: ignore[method-assign]

    async def replace(self, path: str, body: Object) -> Object:
        self.asked.append(path)
        if path in self.paths:
            raise ApiUnavailable("the API server answers 500: etcdserver: request is too large")
        return await self._replace(path, body)


def test_a_status_that_cannot_be_written_keeps_no_other_from_being_written() -> None:
    async def test(rig: Rig) -> None:
        bad = rig.put(f"{GROUP}/namespaces/evil/{NAMESPACED}/a")
        good = [rig.put(f"{HOME}/b{n}") for n in range(5)] + [rig.cluster("c")]
        await told()
        Refusing(rig, bad)
        await write_status(rig.policies, [pod()])
        assert [each for each in good if "status" not in rig.kube.objects[each]] == []

    followed(test)


def test_statuses_that_nobody_takes_are_asked_for_a_few_at_a_time_and_in_turn() -> None:
    async def test(rig: Rig) -> None:
        paths = [rig.put(f"{HOME}/b{n}") for n in range(2 * MAX_REFUSED + 1)]
        await told()
        refusing = Refusing(rig, *paths)
        for number in (1, 2):
            await write_status(rig.policies, [pod()])
            assert len(refusing.asked) == number * MAX_REFUSED
        assert len(set(refusing.asked)) == 2 * MAX_REFUSED
        refusing.paths.clear()
        rig.clock.pass_by(seconds=FIRST_WAIT)
        for _ in paths:
            await write_status(rig.policies, [pod()])
        assert all("status" in rig.kube.objects[each] for each in paths)

    followed(test)


def test_a_status_that_is_never_taken_is_tried_ever_more_rarely() -> None:
    async def test(rig: Rig) -> None:
        bad = rig.put(f"{HOME}/a")
        await told()
        refusing = Refusing(rig, bad)
        begun, at = rig.clock.monotonic(), []

        async def watched(seconds: float) -> None:
            until = rig.clock.monotonic() + seconds
            while rig.clock.monotonic() < until:
                before = len(refusing.asked)
                await write_status(rig.policies, [pod()])
                if len(refusing.asked) > before:
                    at.append(rig.clock.monotonic() - begun)
                rig.clock.pass_by(seconds=5)

        await watched(8 * MAX_WAIT)
        waits = [two - one for one, two in pairwise(at)]
        assert waits[:4] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT, 8 * FIRST_WAIT]
        assert waits[-2:] == [MAX_WAIT, MAX_WAIT]
        # Others are written at once meanwhile, and so is this one when it is another one.
        other = rig.put(f"{HOME}/b")
        await told()
        await write_status(rig.policies, [pod()])
        assert "status" in rig.kube.objects[other]
        asked = len(refusing.asked)
        rig.kube.put(bad, {**rig.kube.objects[bad], "metadata": {**rig.kube.objects[bad]["metadata"], "generation": 2}})
        await told()
        await write_status(rig.policies, [pod()])
        assert len(refusing.asked) == asked + 1
        rig.clock.pass_by(seconds=FIRST_WAIT)
        refusing.paths.clear()
        await write_status(rig.policies, [pod()])
        assert "status" in rig.kube.objects[bad]
        assert rig.policies.statuses._refused == {}
        # Nor is anything remembered of one that is gone.
        refusing.paths.add(f"{other}/status")
        rig.kube.put(other, {**rig.kube.objects[other], "spec": {"deny": True}})
        await told()
        await write_status(rig.policies, [pod()])
        assert len(rig.policies.statuses._refused) == 1
        rig.kube.remove(other)
        await told()
        await write_status(rig.policies, [pod()])
        assert rig.policies.statuses._refused == {}

    followed(test)


def test_an_outage_is_no_policys_fault() -> None:
    async def test(rig: Rig) -> None:
        bad = rig.put(f"{HOME}/a")
        await told()
        refusing = Refusing(rig, bad)
        rig.policies._namespaced.lost_since = rig.clock.monotonic()
        for number in range(1, 4):
            await write_status(rig.policies, [pod()])
            assert len(refusing.asked) == number
        assert rig.policies.statuses._refused == {}

    followed(test)


def test_a_status_that_is_never_taken_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        bad = rig.put(f"{HOME}/a")
        await told()
        refusing = Refusing(rig, bad)
        leading = asyncio.ensure_future(rig.policies.statuses.lead(Fixed([pod()]), 0.0))
        for number, wait in enumerate((0.0, FIRST_WAIT, 2 * FIRST_WAIT), 1):
            rig.clock.pass_by(seconds=wait)
            while len(refusing.asked) < number:
                await asyncio.sleep(0)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    followed(test)
    (line,) = (vars(each) for each in caplog.records)
    assert (line["message"], line["policy"], line["again_in"]) == ("policy status not written", "shop/a", FIRST_WAIT)


def test_who_stops_to_count_half_way_counts_again() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("all")
        await told()
        pods = Fixed([pod(number) for number in range(200)])
        steps = itertools.count()
        rig.policies.statuses._used = lambda: next(steps) * giving_way.SLICE_SECONDS / 50
        writing = asyncio.ensure_future(rig.policies.statuses.write(pods))
        while not pods.looked_at:
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await rig.policies.statuses.write(pods)
        assert rig.kube.objects[path]["status"]["podsMatched"] == 200

    followed(test)


def test_what_changes_during_a_count_has_a_status_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generation would stand beside a count of what it was before, or of a part of the pods."""

    async def test(rig: Rig) -> None:
        path, other = rig.cluster("changes"), rig.cluster("other")
        pods = Fixed(pod(number) for number in range(3))
        await told()

        async def change() -> None:
            changed = {"name": "changes", "uid": rig.kube.objects[path]["metadata"]["uid"], "generation": 8}
            rig.kube.put(path, {"metadata": changed, "spec": {"podSelector": {"matchLabels": {"app": "none"}}}})
            rig.cluster("new")
            await told()
            monkeypatch.setattr(giving_way, "give_way", told)

        monkeypatch.setattr(giving_way, "give_way", change)
        rig.policies.statuses._used = itertools.count().__next__
        await rig.policies.statuses.write(pods)
        new = f"{GROUP}/{CLUSTER}/new"
        assert [path for path in (path, other, new) if "status" in rig.kube.objects[path]] == [other]
        await rig.policies.statuses.write(pods)
        found = [rig.kube.objects[each]["status"] for each in (path, other, new)]
        assert [(each["observedGeneration"], each["podsMatched"]) for each in found] == [(8, 0), (7, 3), (7, 3)]

    followed(test)


def test_who_leads_again_looks_what_another_wrote_meanwhile() -> None:
    async def test(rig: Rig) -> None:
        path = rig.cluster("all")
        await told()
        await write_status(rig.policies, [pod()])
        rig.kube.put(path, {**rig.kube.objects[path], "status": {"podsMatched": 2}})
        await told()
        await write_status(rig.policies, [pod()])
        assert rig.kube.objects[path]["status"]["podsMatched"] == 2
        leading = asyncio.ensure_future(rig.policies.statuses.lead(Fixed([pod()]), 0.0))
        await told()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        assert rig.kube.objects[path]["status"]["podsMatched"] == 1

    followed(test)


def test_services_count_as_they_are_now() -> None:
    async def test(rig: Rig) -> None:
        rig.cluster("a", dnsNamesFromServices=True)
        path = "/api/v1/namespaces/shop/services/front"
        rig.kube.put(path, {"metadata": {"name": "front"}, "spec": {"selector": {"app": "web", "tier": "front"}}})
        await told()
        labelled = pod(labels={"app": "web", "tier": "front"})
        names = ("front.shop", "front.shop.svc", "front.shop.svc.cluster.local")
        assert rig.policies.entitlement(labelled).dns_names == names
        assert rig.policies.entitlement(pod(labels={"app": "web"})).dns_names == ()
        rig.kube.put(
            path, {"metadata": {"name": "front"}, "spec": {"type": "ExternalName", "selector": {"app": "web"}}}
        )
        await told()
        assert rig.policies.entitlement(labelled).dns_names == ()

    followed(test)


def test_a_tie_goes_to_the_oldest_and_then_by_name() -> None:
    old = read_policy(typed(PolicyObject, body("z", created="2029-12-31T23:59:59Z")))
    assert old is not None
    found = [policy("c"), old, policy("a"), policy("b")]
    assert [each.name for each in matching(found, POD, {})] == ["z", "a", "b", "c"]


def test_a_name_is_in_a_certificate_once() -> None:
    twice = policy("p", dnsNameTemplates=["a.example", "a.example", "front.shop.svc"], dnsNamesFromServices=True)
    service = Service("shop", "front", (("app", "web"),))
    found = given_to(POD, twice, services=(service,)).dns_names
    assert found == ("a.example", "front.shop.svc", "front.shop", "front.shop.svc.cluster.local")


def test_a_rendered_name_that_is_none_refuses() -> None:
    long = "x" * 60
    assert refused(POD, policy("p", dnsNameTemplates=[".".join([long] * 5)])) is Reason.POLICY_UNUSABLE
    assert given_to(POD, policy("p", dnsNameTemplates=[".".join([long] * 4)])).dns_names == (".".join([long] * 4),)


def test_a_service_that_makes_no_name_is_left_out_and_told() -> None:
    bad = Service("shop", "x" * 64, (("app", "web"),))
    found = given_to(POD, policy("p", dnsNamesFromServices=True), services=(bad,))
    assert (found.dns_names, found.surprises) == ((), ("DNS names of Services were left out: 1 Services",))


def test_a_default_path_that_cannot_be_is_a_refusal() -> None:
    settings = PolicySettings(TrustDomain("example.org"), default_path="/{labels['absent']}")
    with pytest.raises(Refused, match="the default path: pod shop/web-0 has no label") as caught:
        decide([], pod(), (), settings)
    assert caught.value.reason is Reason.POLICY_UNUSABLE
    assert decide([], POD, (), SETTINGS).policy is None


def test_every_placeholder_is_its_own_field() -> None:
    template = "/{namespace}/{service_account}/{pod}/{pod_uid}/{node}/{labels['app']}"
    found = given_to(
        LivePod("ns", "pod", "uid", "node", "sa", {"app": "label"}), policy("p", spiffeIDTemplate=template)
    )
    assert found.spiffe_id.path == "/ns/sa/pod/uid/node/label"


def test_an_identity_that_is_too_long_refuses() -> None:
    long = LivePod("n" * 63, "p" * 253, "u", "node", "s" * 253)
    template = "/" + "/".join(["{pod}"] * 9)
    assert refused(long, policy("p", spiffeIDTemplate=template)) is Reason.POLICY_UNUSABLE


def test_each_lifetime_and_bound_is_its_own() -> None:
    found = given_to(POD, policy("p", x509TTL="2h", jwtTTL="3m", hint="€" * 341, keyAlgorithms=["ed25519", "ec-p256"]))
    assert (found.x509_ttl, found.jwt_ttl) == (timedelta(hours=2), timedelta(minutes=3))
    assert sorted(found.key_algorithms) == ["ec-p256", "ed25519"]
    assert refused(POD, policy("p", hint="€" * 342)) is Reason.POLICY_UNUSABLE
    full = [f"n{number}.example" for number in range(32)]
    assert given_to(POD, policy("p", dnsNameTemplates=full)).dns_names == tuple(full)
    assert refused(POD, policy("p", dnsNameTemplates=[*full, "one.more"])) is Reason.POLICY_UNUSABLE


@pytest.mark.parametrize(
    "unread", [f"{GROUP}/{CLUSTER}", f"{GROUP}/{NAMESPACED}", "/api/v1/namespaces", "/api/v1/services"]
)
def test_one_collection_that_was_not_read_is_enough_to_wait(unread: str) -> None:
    """What is in it could deny the pod, or make it somebody else."""

    async def run() -> None:
        rig = Rig()
        rig.kube.denied.add(("list", unread))
        following = asyncio.ensure_future(rig.policies.run())
        await told()
        assert len(rig.kube.reads) == 3
        assert not rig.policies.synced
        with pytest.raises(Refused) as caught:
            rig.policies.entitlement(pod())
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert rig.policies.explain(pod()).outcome.startswith("refused: API_SERVER_UNAVAILABLE: ")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


def test_the_collection_that_was_lost_first_counts() -> None:
    async def run() -> None:
        rig = Rig()
        mirrors = rig.policies._mirrors
        for mirror in mirrors:
            await mirror._list()
        assert rig.policies.entitlement(pod()).policy is None
        mirrors[1].lost_since = rig.clock.monotonic()
        rig.clock.pass_by(minutes=6)
        mirrors[3].lost_since = rig.clock.monotonic()
        rig.clock.pass_by(minutes=4)
        assert rig.policies.entitlement(pod()).policy is None
        rig.clock.pass_by(seconds=1)
        with pytest.raises(Refused, match="longer than outage_limit"):
            rig.policies.entitlement(pod())

    asyncio.run(run())


def test_a_surprise_names_some_of_those_that_lost() -> None:
    (surprise,) = given_to(POD, policy("a"), *(policy(f"p{number}") for number in range(9))).surprises
    assert surprise == "policy a won over p0, p1, p2, p3, p4, which match this pod as well: the oldest wins"
