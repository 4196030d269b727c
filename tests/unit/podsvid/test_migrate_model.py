"""What `migrate spire` writes gives a pod no ID that SPIRE did not: random objects, random pods, a model of SPIRE."""

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from podsvid.migrate.spire import Migration, documents_of, migrate
from signer.cluster.objects import PolicyObject
from signer.errors import Refused
from signer.model import LivePod
from signer.policy.policy import Policy, PolicySettings, decide, matching, read_policy
from svid.spiffeid import TrustDomain
from tests.spire_objects import ACTIONS, CLUSTER, DOMAIN, IGNORED, NODES, entry, ids_of, kubernetes
from tests.typed import typed
from tests.unit.podsvid.migrating import document, options

SETTINGS = PolicySettings(TrustDomain(DOMAIN), require_policy=True)
NAMESPACES: Mapping[str, Mapping[str, str]] = {
    "shop": {"kubernetes.io/metadata.name": "shop", "team": "a"},
    "bank": {"kubernetes.io/metadata.name": "bank"},
    "kube-system": {"kubernetes.io/metadata.name": "kube-system", "team": "a"},
}
CONFIG = {"apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ControllerManagerConfig"}
KEYS, VALUES = ("app", "tier", "example.org/team"), ("web", "db", "x")
PODS = st.builds(
    LivePod,
    namespace=st.sampled_from(sorted(NAMESPACES)),
    name=st.sampled_from(["web-0", "db-1"]),
    uid=st.sampled_from(["uid-1", "uid-2"]),
    node_name=st.sampled_from(sorted(NODES)),
    service_account=st.sampled_from(["default", "billing"]),
    labels=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)),
)
EXPRESSIONS = st.one_of(
    st.builds(
        lambda key, operator, values: {"key": key, "operator": operator, "values": values},
        st.sampled_from([*KEYS, "team", "kubernetes.io/metadata.name"]),
        st.sampled_from(["In", "NotIn"]),
        st.lists(st.sampled_from([*VALUES, "a", "shop"]), min_size=1, max_size=2, unique=True),
    ),
    st.builds(
        lambda key, operator: {"key": key, "operator": operator},
        st.sampled_from([*KEYS, "team"]),
        st.sampled_from(["Exists", "DoesNotExist"]),
    ),
)
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(st.sampled_from([*KEYS, "team"]), st.sampled_from([*VALUES, "a"]), max_size=1),
        "matchExpressions": st.lists(EXPRESSIONS, max_size=2),
    },
)
IDS = st.tuples(
    st.sampled_from([["spiffe://{{ .TrustDomain }}"], ["spiffe://", DOMAIN], ["spiffe://", "{{ .TrustDomain }}"]]),
    st.lists(
        st.one_of(
            st.sampled_from(["/ns", "/app", "/x-", "/spire", ".y"]).map(lambda each: [each]),
            st.sampled_from(sorted(ACTIONS)).map(lambda each: ["/", each]),
            st.sampled_from(sorted(ACTIONS)).map(lambda each: ["/x-", each]),
        ),
        min_size=1,
        max_size=4,
    ),
).map(lambda found: [*_apart(found[0]), *(part for each in found[1] for part in each)])
WORKLOAD_SELECTORS = st.sampled_from(
    [
        ["k8s:ns:", "{{ .PodMeta.Namespace }}"],
        ["k8s:pod-label:app:", '{{ index .PodMeta.Labels "app" }}'],
        ["k8s:pod-label:tier:", '{{ index .PodMeta.Labels "app" }}'],
        ["k8s:sa:billing"],
        ["k8s:ns:shop"],
        ["k8s:pod-label:app:web"],
        ["k8s:ns-label:team:a"],
        ["k8s:container-name:app"],
        ["unix:uid:0"],
    ]
)
DNS_NAMES = st.sampled_from(
    [
        ["fixed.example"],
        ["*.example"],
        ["a b"],
        ["x.", "{{ .PodMeta.Namespace }}"],
        ['{{ index .PodMeta.Labels "app" }}', ".example"],
        ["x-", "{{ .PodMeta.Labels.app }}", ".example"],
        ['{{ index .PodMeta.Annotations "a" }}', ".example"],
    ]
)
SPIFFEIDS = st.tuples(
    st.fixed_dictionaries(
        {},
        optional={
            "podSelector": SELECTORS,
            "namespaceSelector": SELECTORS,
            "fallback": st.booleans(),
            "className": st.sampled_from(["", "other"]),
            "ttl": st.sampled_from(["0s", "30m0s", "1h30m"]),
            "federatesWith": st.sampled_from([[], ["partner.example"]]),
        },
    ),
    st.fixed_dictionaries(
        {
            "id": IDS,
            "selectors": st.lists(WORKLOAD_SELECTORS, max_size=2),
            "dns": st.lists(DNS_NAMES, max_size=2) | st.just([]),
        }
    ),
)
ALIASES = [
    entry("alias-1", "/nodes", "/spire/server", f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_ns:spire"),
    entry("alias-2", "/pool", "/spire/server", f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_node_label:pool:x"),
]
ENTRIES = st.builds(
    lambda number, path, parent, selectors, **more: entry(f"e{number}", path, parent, *selectors, **more),
    st.integers(0, 9),
    st.sampled_from([*["/ns/shop/sa/billing", "/web", "/ns/bank/x"] * 3, "/spire/x", "/podsvid"]),
    st.sampled_from([*["/nodes"] * 6, "/pool", "/elsewhere", NODES["node-a"].agent]),
    st.lists(
        st.sampled_from(
            [
                # What a policy can say more often than what it cannot.
                *("k8s:ns:shop", "k8s:sa:billing", "k8s:pod-label:app:web") * 4,
                *("k8s:ns:shop", "k8s:ns:bank", "k8s:sa:billing", "k8s:sa:default", "k8s:pod-label:app:web"),
                *(
                    "k8s:pod-label:example.org/team:x",
                    "k8s:ns-label:team:a",
                    "k8s:node-name:node-a",
                    "k8s:pod-uid:uid-1",
                ),
                *("k8s:pod-name:web-0", "k8s:container-name:app", "unix:uid:0", "docker:label:a:b"),
            ]
        ),
        max_size=3,
        unique=True,
    ),
    expires_at=st.sampled_from(["0", "0", "0", "1900000000"]),
)


def _apart(parts: list[str]) -> list[str]:
    return ["spiffe://", "{{ .TrustDomain }}"] if parts == ["spiffe://{{ .TrustDomain }}"] else parts


def _made(spiffeids: list[Any], entries: list[Any]) -> tuple[Migration, list[Policy]]:
    objects = []
    for number, (spec, parts) in enumerate(spiffeids):
        templates = ["".join(each) for each in parts["selectors"]]
        names = ["".join(each) for each in parts["dns"]]
        whole = {
            **spec,
            "dnsNameTemplates": names,
            "spiffeIDTemplate": "".join(parts["id"]),
            "workloadSelectorTemplates": templates,
        }
        objects.append(kubernetes("ClusterSPIFFEID", f"c{number}", **whole))
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    line = ("--trust-domain", DOMAIN, "--cluster-name", CLUSTER, "--ignored-namespaces", ",".join(IGNORED))
    given_options = options(*line)
    migration = migrate([document(CONFIG), document(listed), document({"entries": entries})], given_options)
    policies = []
    for each in json.loads(json.dumps(documents_of(migration))):
        each["metadata"] |= {"uid": each["metadata"]["name"], "creationTimestamp": "2030-01-01T00:00:00Z"}
        found = read_policy(typed(PolicyObject, each))
        assert found is not None
        assert found.problem == ""
        policies.append(found)
    return migration, policies


@settings(max_examples=400, deadline=None)
@given(st.lists(SPIFFEIDS, max_size=3), st.lists(ENTRIES, max_size=4), st.lists(PODS, min_size=1, max_size=6))
def test_no_pod_gets_what_spire_did_not_give_it(spiffeids: list[Any], more: list[Any], pods: list[LivePod]) -> None:
    entries = [*ALIASES, *more]
    _, policies = _made(spiffeids, entries)
    event(f"{len(policies)} policies")
    for pod in pods:
        labels = NAMESPACES[pod.namespace]
        allowed = ids_of(spiffeids, entries, pod, labels)
        try:
            found = decide(matching(policies, pod, labels), pod, (), SETTINGS)
        except Refused:
            continue
        event("an identity")
        assert str(found.spiffe_id) in allowed


@settings(max_examples=400, deadline=None)
@given(SPIFFEIDS, st.lists(PODS, min_size=1, max_size=6))
def test_what_is_carried_over_without_a_word_is_for_the_same_pods(one: Any, pods: list[LivePod]) -> None:
    migration, policies = _made([one], [])
    if migration.report.findings or not policies:
        return
    event("carried over")
    (policy,) = policies
    spec = one[0]
    assert policy.federates_with == tuple(map(TrustDomain, spec.get("federatesWith", [])))
    assert (policy.x509_ttl is None) == (spec.get("ttl", "0s") == "0s")
    for pod in pods:
        labels = NAMESPACES[pod.namespace]
        allowed = ids_of([one], [], pod, labels)
        assert policy.matches(pod, labels) == bool(allowed)
        if allowed:
            event("an identity")
            assert {str(decide([policy], pod, (), SETTINGS).spiffe_id)} == allowed


@settings(max_examples=200, deadline=None)
@given(ENTRIES, st.lists(PODS, min_size=1, max_size=6))
def test_an_entry_is_for_the_same_pods_or_is_told_of(one: Any, pods: list[LivePod]) -> None:
    migration, policies = _made([], [*ALIASES, one])
    told = [each for each in migration.report.findings if each.source.startswith(f"entry {one['id']} ")]
    assert bool(told) != bool(policies)
    for pod in pods if policies else ():
        labels = NAMESPACES[pod.namespace]
        allowed = ids_of([], [*ALIASES, one], pod, labels)
        assert policies[0].matches(pod, labels) == bool(allowed)
        if allowed:
            event("an identity")
            assert {str(decide(policies, pod, (), SETTINGS).spiffe_id)} == allowed


def test_the_model_ignores_what_the_controller_ignores() -> None:
    pod = LivePod("kube-system", "p", "u", "node-a", "default", {})
    every: tuple[dict[str, Any], dict[str, Any]] = ({}, {"id": ["spiffe://", DOMAIN, "/x"], "selectors": [], "dns": []})
    assert ids_of([every], [], pod, NAMESPACES["kube-system"]) == set()
    assert "kube-system" in IGNORED
