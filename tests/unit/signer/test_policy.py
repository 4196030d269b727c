"""Which identity a pod gets: the template language, the rule among policies, and failing closed."""

import re
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from signer.cluster.kube import Object
from signer.cluster.objects import PolicyObject, ServiceObject
from signer.errors import ApiUnavailable, InvalidPolicy, Reason, Refused
from signer.model import Entitlement, LivePod
from signer.policy.explanation import goes_before
from signer.policy.policy import Policy, PolicySettings, decide, matching, read_policy
from signer.policy.services import Service, read_service
from signer.policy.template import Template, dns_template, is_dns_label, is_segment, path_template
from svid.spiffeid import SpiffeId, TrustDomain
from tests.typed import typed

TD = TrustDomain("example.org")
SETTINGS = PolicySettings(TD)
POD = LivePod("shop", "web-0", "uid-1", "node-a", "web", {"app": "web", "tier": "front"})
CRDS = Path(__file__).parents[3] / "deploy" / "chart" / "podsvid" / "files" / "crds"
TEMPLATE_TEXT = st.text(alphabet="ab/.{}[]'_-A0", max_size=12)
PIECES = st.lists(
    st.sampled_from(
        ["/", "ns", "{namespace}", "{labels['app']}", ".", "..", "a-b", "{pod}", "{x}", "{", "}", "_", "é", "'"]
    ),
    max_size=8,
).map("".join)

# Whole segments: most of what is made of them gets past the first check.
GOOD_PIECES = st.lists(
    st.sampled_from(["/ns", "/{namespace}", "/{labels['app']}", "/a-b", "/{pod}.x", "/.", "/..", "/{node}", "/_"]),
    min_size=1,
    max_size=6,
).map("".join)


def body(name: str, namespace: str = "", created: str = "2030-01-01T00:00:00Z", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "creationTimestamp": created}
    return {"metadata": metadata, "spec": spec}


def policy(name: str, namespace: str = "", **spec: Any) -> Policy:
    found = read_policy(typed(PolicyObject, body(name, namespace, **spec)))
    assert found is not None
    return found


def given_to(pod: LivePod, *policies: Policy, services: tuple[Service, ...] = (), **labels: str) -> Entitlement:
    return decide(matching(policies, pod, labels), pod, services, SETTINGS)


def refused(pod: LivePod, *policies: Policy) -> Reason:
    with pytest.raises(Refused) as caught:
        given_to(pod, *policies)
    return caught.value.reason


@given(st.one_of(st.text(max_size=40), TEMPLATE_TEXT, PIECES, GOOD_PIECES))
@example("/ns/{namespace}/app/{labels['app']}")
@example("{labels['app']}.{namespace}.svc")
def test_parsing_raises_nothing_else(text: str) -> None:
    for parse in (Template.parse, path_template, dns_template):
        try:
            parse(text)
        except InvalidPolicy:
            continue


@given(st.one_of(st.text(max_size=20), st.sampled_from(["..", ".", "a/b", "", "a%2fb", "ok", "a\n"])))
def test_a_hostile_label_never_leaves_the_prefix(value: str) -> None:
    template = path_template("/ns/{namespace}/app/{labels['app']}")
    pod = LivePod("shop", "p", "u", "n", "sa", {"app": value})
    try:
        path = template.render(pod, is_segment, "a segment")
    except InvalidPolicy:
        assert not re.fullmatch(r"[a-zA-Z0-9._-]+", value) or value in (".", "..")
        return
    found = SpiffeId.parse(f"spiffe://example.org{path}")
    assert found.path == f"/ns/shop/app/{value}"
    assert len(path.split("/")) == 5


def crd_patterns(kind: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The regular expressions by which the API server judges paths and DNS names."""
    document = yaml.safe_load((CRDS / f"{kind}.yaml").read_text())
    spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    rules = [
        spec["spiffeIDTemplate"]["x-kubernetes-validations"][0]["rule"],
        spec["dnsNameTemplates"]["items"]["x-kubernetes-validations"][0]["rule"],
    ]
    found = [re.search(r'matches\(r"(.*)"\)', rule) for rule in rules]
    assert all(found)
    path, dns = (re.compile(each[1]) for each in found if each)
    return path, dns


PATTERNS = [crd_patterns(kind) for kind in ("workloadidentities", "clusterworkloadidentities")]


def taken(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except InvalidPolicy:
        return False
    return True


@given(st.one_of(PIECES, TEMPLATE_TEXT))
@example("/ns/{namespace}/{labels['a/b.c']}")
@example("/a/.x/..y/{pod}.")
def test_the_api_server_refuses_what_the_signer_would(text: str) -> None:
    """At the API server's door already: the same texts are templates for both."""
    for path, dns in PATTERNS:
        dotted = any(segment in (".", "..") for segment in text.split("/"))
        assert (bool(path.search(text)) and not dotted and not text.endswith("\n")) == taken(path_template, text), text
        assert (bool(dns.search(text)) and not text.endswith("\n")) == taken(dns_template, text), text


def test_without_a_policy() -> None:
    found = given_to(POD)
    assert (str(found.spiffe_id), found.policy) == ("spiffe://example.org/ns/shop/sa/web", None)
    with pytest.raises(Refused) as caught:
        decide([], POD, (), PolicySettings(TD, require_policy=True))
    assert caught.value.reason is Reason.POLICY_DENIED


def test_the_rule() -> None:
    """Each clause beats all that come after it."""
    deny = policy("z-deny", deny=True, priority=-5)
    high = policy("y-high", priority=9)
    namespaced = policy("x-namespaced", "shop")
    old = policy("w-old", created="2020-01-01T00:00:00Z")
    first, second = policy("a-first"), policy("b-second")
    order = [deny, high, namespaced, old, first, second]
    for at in range(len(order)):
        shuffled = [*order[at:][::-1]]
        assert matching(shuffled, POD, {}) == order[at:]
    found = given_to(POD, *order[1:])
    assert (found.policy, found.surprises) == ("y-high", ())
    found = given_to(POD, *order[3:])
    assert found.policy == "w-old"
    assert found.surprises == (
        "policy w-old won over a-first, b-second, which match this pod as well: the oldest wins",
    )
    said = [goes_before(*pair) for pair in pairwise(order)]
    assert said == [
        "z-deny denies",
        "y-high has the higher priority, 9 over 0",
        "shop/x-namespaced is the namespace's own",
        "w-old is older; give one of them a priority",
        "a-first comes first by name; give one of them a priority",
    ]
    assert [winner.disputes(loser) for winner, loser in pairwise(order)] == [False, False, False, True, True]
    assert refused(POD, *order) is Reason.POLICY_DENIED


def test_what_wins_and_is_broken_refuses() -> None:
    wide = policy("wide")
    for broken in (
        policy("broken", "shop", spiffeIDTemplate="/nowhere"),
        policy("broken", "shop", spiffeIDTemplate="/ns/{namespace}/{nothing}"),
        policy("broken", "shop", spiffeIDTemplate="/ns/{namespace}/{labels['absent']}"),
        policy("broken", "shop", x509TTL="a while"),
        policy("broken", "shop", keyAlgorithms=["dsa"]),
        policy("broken", "shop", federatesWith=["NOT A DOMAIN"]),
        policy("broken", "shop", dnsNameTemplates=["web.payments.svc"]),
        policy("broken", "shop", dnsNameTemplates=["{labels['app']}.example.com"]),
        policy("broken", "shop", hint="x" * 1025),
    ):
        assert refused(POD, wide, broken) is Reason.POLICY_UNUSABLE, broken


@pytest.mark.parametrize("path", ["/spire", "/spire/server", "/spire/agent/x/{node}", "/podsvid/signer", "/signer"])
@pytest.mark.parametrize("labelled", [False, True])
def test_ids_that_are_somebodys_own_are_given_to_no_pod(path: str, labelled: bool) -> None:
    """By no policy and by no default path, whether their text says so or what a pod's author wrote on it."""
    settings = replace(SETTINGS, reserved_ids=frozenset({SpiffeId.parse(f"{TD.id}/signer")}))
    first, slash, rest = path[1:].partition("/")
    pod = replace(POD, labels={"a": first}) if labelled else POD
    text = f"/{{labels['a']}}{slash}{rest}" if labelled else path
    for policies, by in (
        ([policy("p", spiffeIDTemplate=text)], settings),
        ([], replace(settings, default_path=text)),
    ):
        with pytest.raises(Refused, match="own; no pod can have it") as caught:
            decide(policies, pod, (), by)
        assert caught.value.reason is Reason.POLICY_UNUSABLE


@pytest.mark.parametrize(
    "path", ["/spires/server", "/Spire/server", "/ns/spire/server", "/signer/x", "/podsvid-signer"]
)
def test_ids_beside_those_are_given(path: str) -> None:
    settings = replace(SETTINGS, reserved_ids=frozenset({SpiffeId.parse(f"{TD.id}/signer")}))
    assert decide([policy("p", spiffeIDTemplate=path)], POD, (), settings).spiffe_id.path == path


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "api"}}, False),
        ({"matchLabels": {"absent": ""}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "absent", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
    ],
)
def test_selectors_are_read_as_kubernetes_does(selector: Object, matches: bool) -> None:
    assert (given_to(POD, policy("p", podSelector=selector)).policy == "p") is matches
    assert (given_to(POD, policy("p", namespaceSelector=selector), app="web", tier="front").policy == "p") is matches


def test_whom_a_policy_is_for() -> None:
    assert given_to(POD, policy("p", "other")).policy is None
    assert given_to(POD, policy("p", serviceAccounts=["api"])).policy is None
    assert given_to(POD, policy("p", serviceAccounts=["api", "web"])).policy == "p"
    # A namespaced policy has no say about namespaces.
    assert given_to(POD, policy("p", "shop", namespaceSelector={"matchLabels": {"a": "b"}})).policy == "shop/p"


def test_what_a_policy_gives() -> None:
    services = (
        Service("shop", "front", (("app", "web"),)),
        Service("shop", "back", (("app", "api"),)),
        Service("other", "front", (("app", "web"),)),
        Service("shop", "headless-without-selector", ()),
    )
    found = given_to(
        POD,
        policy(
            "p",
            spiffeIDTemplate="/team/{labels['app']}/{pod}",
            dnsNameTemplates=["{service_account}.example.com"],
            dnsNamesFromServices=True,
            x509TTL="1h30m",
            jwtTTL="90s",
            keyAlgorithms=["ec-p384"],
            hint="internal",
            federatesWith=["partner.test"],
        ),
        services=services,
    )
    assert str(found.spiffe_id) == "spiffe://example.org/team/web/web-0"
    assert found.dns_names == ("web.example.com", "front.shop", "front.shop.svc", "front.shop.svc.cluster.local")
    assert (found.x509_ttl, found.jwt_ttl) == (timedelta(minutes=90), timedelta(seconds=90))
    assert ([*found.key_algorithms], found.hint) == (["ec-p384"], "internal")
    assert found.federates_with == (TrustDomain("partner.test"),)
    assert found.surprises == ()


def test_a_namespaced_policy_stays_at_home() -> None:
    inside = policy("p", "shop", spiffeIDTemplate="/ns/{namespace}/x", dnsNameTemplates=["a.{namespace}.svc"])
    assert given_to(POD, inside).dns_names == ("a.shop.svc",)
    for template in ("/ns/shop2/x", "/ns/shop/x", "/x/ns/{namespace}/y"):
        assert refused(POD, policy("p", "shop", spiffeIDTemplate=template)) is Reason.POLICY_UNUSABLE


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("svc", "kubernetes.default.svc"),
        ("local", "kubernetes.default.svc.cluster.local"),
        ("cluster", "kubernetes.default.svc.cluster"),
        ("shop", "a.shop.example"),
        ("shop", "a.b.shop"),
        ("shop", "shop"),
        ("shop", "ashop.svc"),
    ],
)
def test_a_namespace_answers_for_no_other_whatever_it_is_called(namespace: str, name: str) -> None:
    one = replace(POD, namespace=namespace)
    assert refused(one, policy("p", namespace, dnsNameTemplates=[name])) is Reason.POLICY_UNUSABLE
    own = [f"a.{namespace}", f"a.{namespace}.svc", f"0.a.{namespace}.svc", f"a.{namespace}.svc.cluster.local"]
    assert given_to(one, policy("p", namespace, dnsNameTemplates=own)).dns_names == tuple(own)


VALUE = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=6), st.lists, max_leaves=4)
TEXTS = st.dictionaries(st.sampled_from(["app", "tier", "absent"]), st.sampled_from(["web", "front", ""]), max_size=2)
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Equals", 7)
EXPRESSIONS = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["app", "absent"]),
            "operator": st.sampled_from(["In", "NotIn", "Exists", "Equals", 7]),
        },
        optional={"values": st.lists(st.sampled_from(["web", "x"]), max_size=2) | VALUE},
    ),
    max_size=2,
)
# Most of these are selectors; the rest has something in one place that does not belong there.
SELECTORS = st.fixed_dictionaries(
    {}, optional={"matchLabels": TEXTS | VALUE, "matchExpressions": EXPRESSIONS | VALUE, "more": VALUE}
)


@given(SELECTORS | VALUE, SELECTORS | VALUE, st.booleans())
@example({"matchExpressions": [{"key": "app", "operator": "Equals"}]}, {}, False)
@example({"matchExpressions": [{"key": "app"}]}, {"matchLabels": {"app": "web"}}, True)
@example({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": "0"}]}, {}, False)
def test_any_selector_is_read_and_what_cannot_be_read_refuses(pods: Any, namespaces: Any, namespaced: bool) -> None:
    home = POD.namespace if namespaced else ""
    found = policy("p", home, podSelector=pods, namespaceSelector=namespaces)
    labels = {"app": "web"}
    # What cannot be read counts as if it held: a policy that matched nothing would leave its pods to a wider one.
    matches = all(
        not readable(each) or as_kubernetes(each, theirs)
        for each, theirs in ((pods, POD.labels), *([] if namespaced else [(namespaces, labels)]))
    )
    assert found.matches(POD, labels) is matches
    assert bool(found.problem) is not (readable(pods) and readable(namespaces))
    if found.problem and matches:
        with pytest.raises(Refused) as caught:
            decide([found], POD, (), SETTINGS)
        assert caught.value.reason is Reason.POLICY_UNUSABLE


def readable(selector: Any) -> bool:
    return not policy("p", podSelector=selector).problem


@pytest.mark.parametrize("values", ["0", {"web": ""}])
def test_the_values_of_a_selector_are_a_list_and_nothing_like_one(values: Any) -> None:
    assert not readable({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]})


def as_kubernetes(selector: Any, labels: Any) -> bool:
    """What a selector means, written down a second time."""
    wanted = (selector or {}).get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for each in (selector or {}).get("matchExpressions") or []:
        value, values = labels.get(each["key"]), each.get("values") or []
        holds = {
            "In": value is not None and value in values,
            "NotIn": value is None or value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[each["operator"]]:
            return False
    return True


METADATA = st.dictionaries(st.sampled_from(["uid", "name", "namespace", "creationTimestamp", "other"]), VALUE)
SPEC = st.dictionaries(st.sampled_from(["podSelector", "hint", "spiffeIDTemplate", "x509TTL", "type", "other"]), VALUE)


@given(st.fixed_dictionaries({}, optional={"metadata": METADATA, "spec": SPEC, "kind": VALUE}))
@example({"metadata": {"name": "x", "namespace": "shop", "uid": "u"}, "spec": {"selector": {"app": "web"}}})
@example({"metadata": {"name": "x"}, "spec": {"selector": {}, "type": "ExternalName"}})
def test_any_object_is_read_without_raising(body: Object) -> None:
    metadata = body.get("metadata") or {}
    # The API server sees to the types of what is not in a policy's spec; what is of another type is no object.
    with suppress(ApiUnavailable):
        found = read_policy(typed(PolicyObject, body))
        assert (found is not None) is bool(metadata.get("uid") and metadata.get("name"))
    with suppress(ApiUnavailable):
        service = read_service(typed(ServiceObject, body))
        assert service is None or service.name


def test_a_dns_label_is_one_label() -> None:
    assert is_dns_label("web-0")
    for wrong in ("a.b", "A", "", "-a", "a-", "x" * 64, "a\n"):
        assert not is_dns_label(wrong)
