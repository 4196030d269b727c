"""A namespace with more policies than count: which ones do, what is kept of the others, and that nobody gains by it."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.cluster.objects import Metadata, PolicyObject
from signer.cluster.places import Places
from signer.errors import Reason, Refused
from signer.model import LivePod
from signer.policy import policies as module
from signer.policy.index import Index
from signer.policy.policy import (
    MAX_CLUSTER_SPEC,
    MAX_SPEC,
    Policy,
    PolicySettings,
    decide,
    matching,
    read_outline,
    read_policy,
)
from svid.spiffeid import TrustDomain
from tests.live_pods import Fixed
from tests.typed import typed
from tests.unit.signer.test_policy import POD, body, given_to, policy, refused
from tests.unit.signer.test_policy_cost import POLICIES, Rig, followed, told

SETTINGS = PolicySettings(TrustDomain("example.org"))
LARGE: Any = {"hint": "x" * 900, "dnsNameTemplates": [f"n{n}-{'y' * 200}.{{namespace}}.svc" for n in range(32)]}


class Followed:
    """An index and what a mirror would keep, without the mirror."""

    def __init__(self, most: int) -> None:
        self.index = Index(most)
        self.kept: dict[str, Policy] = {}

    def put(self, each: PolicyObject) -> None:
        new = self.index.read(each)
        assert new is not None
        self._swap(new.uid, new)

    def remove(self, uid: str) -> None:
        self._swap(uid, None)

    def read_again(self, objects: dict[str, PolicyObject]) -> None:
        while self.index.due():
            for each in self.index.due():
                self._swap(each.uid, read_policy(objects[each.uid]))

    def _swap(self, uid: str, new: Policy | None) -> None:
        old = self.kept.pop(uid, None)
        if new is not None:
            self.kept[uid] = new
        over = self.index.policy(old, new)
        if over is not None:
            self._swap(over.uid, self.index.outline(over))


def outcome(policies: Any, pod: LivePod) -> tuple[str, str | None]:
    try:
        found = decide(matching(policies, pod, {}), pod, (), SETTINGS)
    except Refused as error:
        return str(error.reason), None
    return "given", found.policy


AGES = st.lists(st.sampled_from(["2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z", "2030-01-03T00:00:00Z"]), min_size=6)


@given(
    POLICIES,
    AGES,
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.sets(st.integers(0, 5)),
    st.sampled_from(["web", "api", "x"]),
)
def test_who_is_not_refused_gets_what_all_policies_together_give(
    specs: Any, ages: Sequence[str], rng: random.Random, most: int, gone: set[int], account: str
) -> None:
    """In whatever order they come and go; and which ones count depends on their age alone."""
    objects = {}
    for number, (namespace, spec) in enumerate(specs):
        each = typed(PolicyObject, body(f"p{number}", namespace, ages[number], **spec))
        objects[each.metadata.uid or ""] = each
    followed = Followed(most)
    for each in rng.sample(list(objects.values()), len(objects)):
        followed.put(each)
    for number in gone:
        for uid in [each for each in objects if each.endswith(f"-p{number}")]:
            del objects[uid]
            followed.remove(uid)
    whole = {uid: found for uid, each in objects.items() if (found := read_policy(each)) is not None}
    pod = LivePod("shop", "web-0", "uid-1", "node-a", account, {"a": "x"})
    everything = outcome(whole.values(), pod)
    for _ in range(2):
        # Before and after what got a place was read again.
        now = outcome(followed.index.policies(pod), pod)
        assert now == everything or now[0] in {Reason.POLICY_DENIED, Reason.POLICY_UNUSABLE}
        followed.read_again(objects)
    for namespace in ("shop", "other"):
        own = sorted((each for each in whole.values() if each.namespace == namespace), key=lambda each: each.age)
        kept = {each.uid for each in followed.kept.values() if each.namespace == namespace and not each.left_out}
        assert kept == {each.uid for each in own[:most]}
        if namespace == "shop" and len(own) <= most:
            assert outcome(followed.index.policies(pod), pod) == everything
    for uid in list(followed.kept):
        followed.remove(uid)
    assert (followed.index._namespaced, followed.index._free) == ({}, set())


def test_of_those_that_are_left_out_nothing_is_kept_but_what_says_so() -> None:
    async def test(rig: Rig) -> None:
        for number in range(12):
            # Listed by name, which is not their age.
            rig.put(f"p{number:02}", "shop", f"2030-01-{28 - number:02}T00:00:00Z", priority=number, **LARGE)
        rig.put("other", "other", "2030-02-01T00:00:00Z", **LARGE)
        await told()
        kept = rig.policies._namespaced.values.values()
        whole = {str(each) for each in kept if not each.left_out}
        assert whole == {"other/other", "shop/p09", "shop/p10", "shop/p11"}
        for each in kept:
            if each.left_out:
                assert (each.hint, each.dns_names, each.path, each.pods.requirements) == ("", (), None, ())
        assert len({id(each.problem) for each in kept if each.left_out}) == 1
        # A change of one that is left out makes it no larger.
        rig.put("p00", "shop", "2030-01-28T00:00:00Z", priority=50, **LARGE)
        await told()
        changed = next(each for each in kept if each.name == "p00")
        assert (changed.left_out, changed.priority, changed.hint) == (True, 50, "")
        # Which ones count is known without reading any again.
        assert not [each for each in rig.kube.reads if "/shop/workloadidentities/" in each]

    followed(test, most=3)


def test_what_is_left_out_steps_aside_for_nobody() -> None:
    async def test(rig: Rig) -> None:
        rig.put("wide")
        rig.put("own", "shop", podSelector={"matchLabels": {"app": "web"}})
        rig.put("young", "shop", "2030-01-02T00:00:00Z", podSelector={"matchLabels": {"app": "none"}})
        await told()
        assert rig.policies.entitlement(POD).policy == "shop/own"
        # It is as if the policy were there and broken: no wider one steps in, nor the cluster's.
        with pytest.raises(Refused, match="young cannot be used: its namespace has more than 1 ") as caught:
            rig.policies.entitlement(LivePod("shop", "x", "u", "n", "sa"))
        assert caught.value.reason is Reason.POLICY_UNUSABLE
        # Its priority is known.
        rig.put("young", "shop", "2030-01-02T00:00:00Z", priority=1)
        await told()
        with pytest.raises(Refused, match="young cannot be used"):
            rig.policies.entitlement(POD)
        # So is whether it denies, however young it is.
        rig.put("youngest", "shop", "2030-01-03T00:00:00Z", deny=True)
        await told()
        with pytest.raises(Refused, match="youngest denies"):
            rig.policies.entitlement(POD)

    followed(test, most=1)


def test_one_that_gets_a_place_is_read_again_and_until_then_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AGAIN_SECONDS", 0.0)

    async def test(rig: Rig) -> None:
        first = rig.put("first", "shop")
        second = rig.put("second", "shop", "2030-01-02T00:00:00Z", hint="mine")
        third = rig.put("third", "shop", "2030-01-03T00:00:00Z", hint="third")
        await told()
        rig.kube.denied.add(("get", second))
        rig.kube.remove(first)
        await told()
        with pytest.raises(Refused, match="second cannot be used"):
            rig.policies.entitlement(POD)
        # Its status is not told meanwhile: it is neither in use nor one too many.
        await rig.policies.statuses.write(Fixed([]))
        assert "status" not in rig.kube.objects[second]
        assert rig.ready(third) == ("False", "TooManyPolicies")
        rig.kube.denied.clear()
        await told()
        assert rig.policies.entitlement(POD).hint == "mine"
        await rig.policies.statuses.write(Fixed([POD]))
        assert rig.ready(second) == ("True", "InUse")
        # One that goes while it is due is none.
        rig.kube.denied.add(("get", third))
        rig.kube.remove(second)
        rig.kube.remove(third)
        await told()
        assert rig.policies.entitlement(POD).policy is None
        assert rig.policies._index.due() == []

    followed(test, most=1)


def test_so_many_decide_whoever_comes() -> None:
    """Also before the one that lost its place was made an outline; and outlines decide as one."""
    places: Places[Policy] = Places(2, lambda each: each.rank)
    for name in ("c", "a", "d", "b"):
        places.add(policy(name, "shop"))
    assert [each.name for each in places.deciding] == ["a", "b"]
    for name in ("f", "e"):
        places.add(policy(name, "shop").outline("too many"))
    assert [each.name for each in places.deciding] == ["a", "b", "e"]


def test_one_namespace_takes_no_place_of_another() -> None:
    async def test(rig: Rig) -> None:
        rig.put("own", "shop", "2030-01-09T00:00:00Z")
        for number in range(20):
            rig.put(f"a{number}", "attacker", "2030-01-01T00:00:00Z", priority=1000, deny=True)
        await told()
        assert rig.policies.entitlement(POD).policy == "shop/own"

    followed(test, most=1)


def test_a_status_is_written_for_the_object_and_not_for_its_name() -> None:
    """One that is deleted and made again between two rounds has none yet."""

    async def test(rig: Rig) -> None:
        path = rig.put("own", "shop")
        await told()
        await rig.policies.statuses.write(Fixed([]))
        rig.kube.remove(path)
        rig.put("own", "shop")
        await told()
        await rig.policies.statuses.write(Fixed([]))
        assert rig.ready(path) == ("True", "InUse")

    followed(test)


@pytest.mark.parametrize(("namespace", "most"), [("shop", MAX_SPEC), ("", MAX_CLUSTER_SPEC)])
def test_of_a_spec_that_is_too_large_is_read_where_it_stands(namespace: str, most: int) -> None:
    """It refuses everybody whom no other policy wins, and denies where it denies."""
    large: Any = {"podSelector": {"matchLabels": {"app": "none"}}, "padding": "x" * most}
    older = policy("a", "shop")
    assert given_to(POD, older, policy("b", namespace, **large)).policy == "shop/a"
    assert refused(POD, older, policy("b", namespace, priority=1, **large)) is Reason.POLICY_UNUSABLE
    assert refused(POD, policy("b", namespace, deny=True, **large), policy("c", priority=9)) is Reason.POLICY_DENIED
    assert refused(POD, policy("b", namespace, deny=["?"], **large), older) is Reason.POLICY_DENIED


@pytest.mark.parametrize("spec", [b"[1]", b'{"a": ', b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_an_outline_that_cannot_be_read_denies(spec: bytes) -> None:
    body = PolicyObject(Metadata("n", "shop", "u"), msgspec.Raw(spec))
    found = read_outline(body, "too many")
    assert found is not None
    assert (found.deny, found.left_out, found.problem) == (True, True, "too many")
