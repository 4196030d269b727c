"""What a policy may say reaches the checks that are behind the first one, and policies are fresh or nothing."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.cluster.kube import Object
from signer.cluster.objects import PolicyObject, ServiceObject
from signer.errors import InvalidPolicy, Reason, Refused
from signer.model import MAX_DNS_NAMES, LivePod
from signer.policy.explanation import Other
from signer.policy.policies import Policies
from signer.policy.policy import (
    CLUSTER,
    GROUP,
    MAX_CLUSTER_SPEC,
    MAX_SPEC,
    NAMESPACED,
    PolicySettings,
    decide,
    read_policy,
)
from signer.policy.services import Service, read_service
from signer.policy.template import Template, dns_template, path_template
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.signer_rig import StepClock
from tests.typed import typed
from tests.unit.signer.test_policy import POD, given_to, policy, refused

OUTAGE = timedelta(minutes=10)
SETTINGS = PolicySettings(TrustDomain("example.org"))
RUBBISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
FIELDS = (
    "podSelector",
    "namespaceSelector",
    "serviceAccounts",
    "spiffeIDTemplate",
    "dnsNameTemplates",
    "dnsNamesFromServices",
    "x509TTL",
    "jwtTTL",
    "keyAlgorithms",
    "hint",
    "federatesWith",
    "priority",
    "deny",
)


@given(st.dictionaries(st.sampled_from(FIELDS), RUBBISH, max_size=4), st.booleans())
def test_any_spec_is_read_and_is_a_policy_that_gives_nothing_by_mistake(spec: Object, namespaced: bool) -> None:
    metadata = {"name": "n", "uid": "u", **({"namespace": "shop"} if namespaced else {})}
    found = read_policy(typed(PolicyObject, {"metadata": metadata, "spec": spec}))
    assert found is not None
    # One that cannot be used says so and has nothing to give; one that can has a path.
    assert bool(found.problem) is (found.path is None)
    if found.problem:
        assert (found.dns_names, found.x509_ttl, found.federates_with) == ((), None, None)
        with pytest.raises(Refused):
            decide([found], POD, (), SETTINGS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("podSelector", []),
        ("podSelector", False),
        ("namespaceSelector", ""),
        ("serviceAccounts", "admin"),
        ("serviceAccounts", {"admin": True}),
        ("dnsNameTemplates", "a.example"),
        ("dnsNameTemplates", {}),
        ("dnsNamesFromServices", "true"),
        ("keyAlgorithms", ""),
        ("keyAlgorithms", {}),
        ("federatesWith", "partner.test"),
        ("federatesWith", {"partner.test": 1}),
        ("priority", "5"),
        ("priority", 1.5),
    ],
)
def test_a_field_of_another_type_is_not_read_as_absent(field: str, value: object) -> None:
    """Absent mostly means more: every account, every key, every trust domain."""
    wide = policy("wide")
    assert refused(POD, policy("p", "shop", **{field: value}), wide) is Reason.POLICY_UNUSABLE


@pytest.mark.parametrize("deny", ["true", "yes", 1, [], {}, "false"])
def test_what_may_be_a_denial_is_one(deny: object) -> None:
    assert refused(POD, policy("p", deny=deny), policy("other", priority=9)) is Reason.POLICY_DENIED
    assert given_to(POD, policy("p", deny=False), policy("other", priority=9)).policy == "other"


@pytest.mark.parametrize(
    "text",
    ["", "/", "//", "/a//b", "/a/", "/a/../b", "/./a", "a", "/a b", "/ä", "/a{", "/{x}", "/{labels}", "/" + "x" * 1024],
)
def test_a_path_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidPolicy):
        path_template(text)


@pytest.mark.parametrize(
    "text", ["{", "}", "a{b", "{pod}}", "{{pod}", "{Pod}", "{pod['x']}", "{node['a']}", "{labels['']}", "{labels[a]}"]
)
def test_a_placeholder_that_is_none_is_no_text_either(text: str) -> None:
    for parse, each in ((Template.parse, text), (path_template, f"/{text}"), (dns_template, text)):
        with pytest.raises(InvalidPolicy, match="placeholder"):
            parse(each)


@pytest.mark.parametrize("text", ["", ".", "a..b", ".a", "a.", "A", "a_b", "ä", "a{", "{x}.b", "x" * 1025])
def test_a_dns_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidPolicy):
        dns_template(text)


def test_a_missing_label_is_never_left_out() -> None:
    unlabelled = LivePod("shop", "p", "u", "n", "sa")
    assert refused(unlabelled, policy("p", spiffeIDTemplate="/x-{labels['app']}")) is Reason.POLICY_UNUSABLE
    assert refused(unlabelled, policy("p", dnsNameTemplates=["a{labels['app']}.example"])) is Reason.POLICY_UNUSABLE


def test_nobody_is_not_everybody() -> None:
    assert given_to(POD, policy("p", federatesWith=[])).federates_with == ()
    assert given_to(POD, policy("p")).federates_with is None
    one = given_to(POD, policy("p", federatesWith=["partner.test"])).federates_with
    assert one == (TrustDomain("partner.test"),)


def test_a_policy_for_no_account_is_for_nobody_else() -> None:
    assert refused(POD, policy("p", serviceAccounts=["web"], deny=True)) is Reason.POLICY_DENIED
    assert given_to(POD, policy("p", serviceAccounts=["other"], deny=True)).policy is None


@pytest.mark.parametrize("ttl", ["1s", "0s", "2161h", "91d", "", "1w", "-1h", "1h 30m", "one hour", "999999999999h"])
def test_a_lifetime_that_is_none_makes_the_policy_unusable(ttl: str) -> None:
    assert refused(POD, policy("p", x509TTL=ttl)) is Reason.POLICY_UNUSABLE
    assert refused(POD, policy("p", jwtTTL=ttl)) is Reason.POLICY_UNUSABLE


def test_lists_and_texts_are_bounded() -> None:
    assert refused(POD, policy("p", dnsNameTemplates=[f"n{n}.example" for n in range(200)])) is Reason.POLICY_UNUSABLE
    assert refused(POD, policy("p", hint="x" * 1025)) is Reason.POLICY_UNUSABLE
    assert given_to(POD, policy("p", hint="x" * 1024)).hint == "x" * 1024


def followed(test: Any, require_policy: bool = False) -> None:
    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        kube.put("/api/v1/namespaces/shop", {})
        settings = PolicySettings(TrustDomain("example.org"), require_policy=require_policy)
        policies = Policies(kube, settings, OUTAGE, clock)
        with pytest.raises(Refused) as caught:
            policies.entitlement(POD)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        following = asyncio.ensure_future(policies.run())
        await policies.wait_synced()
        try:
            await test(kube, policies, clock)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_nothing_is_decided_before_every_policy_was_read() -> None:
    async def test(kube: FakeKube, policies: Policies, clock: StepClock) -> None:
        assert policies.entitlement(POD).policy is None

    followed(test)


def test_where_a_policy_is_wanted_the_default_is_none() -> None:
    async def test(kube: FakeKube, policies: Policies, clock: StepClock) -> None:
        with pytest.raises(Refused) as caught:
            policies.entitlement(POD)
        assert caught.value.reason is Reason.POLICY_DENIED
        assert policies.explain(POD).outcome.startswith("refused: POLICY_DENIED: ")
        kube.put(f"{GROUP}/{CLUSTER}/all", {"metadata": {"name": "all"}, "spec": {}})
        await settled()
        assert policies.entitlement(POD).policy == "all"

    followed(test, require_policy=True)


def test_policies_of_both_kinds_and_labels_of_namespaces_count() -> None:
    async def test(kube: FakeKube, policies: Policies, clock: StepClock) -> None:
        kube.put("/api/v1/namespaces/shop", {"metadata": {"name": "shop", "labels": {"tier": "front"}}})
        selector = {"namespaceSelector": {"matchLabels": {"tier": "front"}}, "spiffeIDTemplate": "/front"}
        kube.put(f"{GROUP}/{CLUSTER}/front", {"metadata": {"name": "front"}, "spec": selector})
        await settled()
        assert policies.entitlement(POD).policy == "front"
        home = f"{GROUP}/namespaces/shop/{NAMESPACED}/own"
        kube.put(home, {"metadata": {"name": "own", "namespace": "shop"}, "spec": {}})
        await settled()
        found = policies.explain(POD)
        assert (found.outcome, found.policy, found.matched) == ("allowed", "shop/own", ("shop/own", "front"))
        assert found.spiffe_id == "spiffe://example.org/ns/shop/sa/web"
        elsewhere = policies.explain(LivePod("other", "p", "u", "n", "sa"))
        assert elsewhere.not_matched == (
            Other("front", "namespaceSelector wants tier=front, and namespace other has no label tier"),
            Other("shop/own", "it is for namespace shop", elsewhere=True),
        )

    followed(test)


def test_services_give_only_so_many_names_and_what_is_left_out_is_said() -> None:
    services = tuple(Service("shop", f"s{n}", (("app", "web"),)) for n in range(40))
    found = given_to(POD, policy("p", dnsNamesFromServices=True), services=services)
    assert len(found.dns_names) == MAX_DNS_NAMES // 3 * 3
    assert found.surprises == (f"DNS names of Services were left out: {40 - MAX_DNS_NAMES // 3} Services",)
    stranger = Service("shop", "other", (("app", "other"),))
    assert given_to(POD, policy("p", dnsNamesFromServices=True), services=(stranger,)).dns_names == ()
    assert given_to(POD, policy("p"), services=services).dns_names == ()


def test_a_spec_that_is_too_large_refuses_whom_it_could_be_for() -> None:
    """Whom it is for is not read out of it: its namespace is, as nobody else's pods are its author's."""
    most = MAX_SPEC - len('{"other": ""}')
    assert policy("p", "shop", other="x" * most).problem == ""
    for found, limit in (
        (policy("p", "shop", podSelector={"matchLabels": {"a": "b"}}, other="x" * most), MAX_SPEC),
        (policy("p", podSelector={"matchLabels": {"a": "b"}}, other="x" * MAX_CLUSTER_SPEC), MAX_CLUSTER_SPEC),
    ):
        assert found.problem == f"its spec has more than {limit} bytes; divide it into several policies"
        assert refused(POD, found, policy("wide")) is Reason.POLICY_UNUSABLE
        assert found.pods.requirements == ()
    assert policy("p", other="x" * most * 2).problem == ""
    stranger = LivePod("other", "p", "u", "n", "sa")
    assert given_to(stranger, policy("p", "shop", other="x" * most * 2)).policy is None


def test_a_service_with_more_labels_than_are_kept_selects_none() -> None:
    def service(labels: int, each: int = 1) -> Service | None:
        selector = {f"l{number}": "x" * each for number in range(labels)}
        return read_service(
            typed(ServiceObject, {"metadata": {"name": "s", "namespace": "a"}, "spec": {"selector": selector}})
        )

    assert [few.large for few in (service(16), service(8, 254)) if few] == [False, False]
    for many in (service(17), service(8, 255)):
        # It is not forgotten: people are told of it.
        assert many is not None
        assert (many.large, many.selector) == (True, ())
        assert not many.selects(POD)
    assert service(0) is None
