"""`podsvid migrate spire`, case by case: what becomes of each field, and what is said of what can become nothing."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from podsvid.cli import main
from podsvid.migrate.fields import Unfit, Verdict, go_duration
from podsvid.migrate.gotemplate import Names, dns_name, id_path
from podsvid.migrate.sources import MAX_DEPTH, MAX_YAML, UnusableDocument, parsed
from podsvid.migrate.spire import Migration, documents_of
from podsvid.migrate.written import is_name
from podsvid.outcome import WrongUsage
from tests.shapes import described
from tests.spire_objects import CLUSTER, DOMAIN, entry, kubernetes
from tests.support import ROOT
from tests.unit.podsvid.migrating import migrated, told

CRDS = ROOT / "deploy" / "chart" / "podsvid" / "files" / "crds"
BUNDLE = json.dumps({"keys": []})
ID = "spiffe://example.org/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}"
APP = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
# Of whom the controller takes no notice, in words that leave no doubt.
EXACTLY = ("--ignored-namespaces", "kube-system")
NODES = entry("n", "/nodes", "/spire/server", f"k8s_psat:cluster:{CLUSTER}")


CONFIG = {"apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ControllerManagerConfig"}


def spiffeid(**spec: Any) -> dict[str, Any]:
    return kubernetes("ClusterSPIFFEID", "one", **({"spiffeIDTemplate": ID} | spec))


def only(migration: Migration) -> dict[str, Any]:
    (found,) = documents_of(migration)
    return found


def of_entry(*selectors: str, path: str = "/web", parent: str = "/nodes", **more: Any) -> Migration:
    return migrated({"entries": [NODES, entry("e", path, parent, *selectors, **more)]})


def faults(value: Any, schema: Any, where: str = "") -> list[str]:
    """Where a value is not what a CRD's schema says, its rules aside."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{where} is no {schema['type']}"]
    found = []
    if isinstance(value, str):
        if len(value) > schema.get("maxLength", 1 << 30) or not re.search(schema.get("pattern", ""), value):
            found.append(f"{where} {value!r}")
        if value not in schema.get("enum", [value]):
            found.append(f"{where} {value!r}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30):
            found.append(f"{where} has {len(value)}")
        for each in value:
            found += faults(each, schema["items"], f"{where}[]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for key, each in value.items():
            inner = known.get(key, schema.get("additionalProperties"))
            found += [f"{where}.{key} is not known"] if not inner else faults(each, inner, f"{where}.{key}")
        found += [f"{where}.{each} is missing" for each in schema.get("required", ()) if each not in value]
    return found


def fits(document: dict[str, Any]) -> bool:
    plural = {
        "ClusterWorkloadIdentity": "clusterworkloadidentities",
        "WorkloadIdentity": "workloadidentities",
        "FederatedTrustDomain": "federatedtrustdomains",
    }[document["kind"]]
    schema = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert faults(document["spec"], schema["properties"]["spec"]) == []
    return True


def test_every_field_that_has_a_counterpart() -> None:
    migration = migrated(
        spiffeid(
            ttl="1h30m0s",
            jwtTtl="90s",
            dnsNameTemplates=["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.svc.{{ .ClusterDomain }}", "fixed.example"],
            workloadSelectorTemplates=["k8s:sa:billing", "k8s:pod-uid:{{ .PodMeta.UID }}"],
            federatesWith=["partner.example", "partner.example"],
            namespaceSelector={"matchLabels": {"team": "a"}},
            podSelector={"matchExpressions": [{"key": "tier", "operator": "In", "values": ["web", "db"]}]},
            autoPopulateDNSNames=True,
            hint="main",
            fallback=True,
            className="spire",
        ),
        line=("--class-name", "spire", "--cluster-domain", "cluster.local", "--ignored-namespaces", "spire"),
    )
    found = only(migration)
    assert fits(found)
    assert found == {
        "apiVersion": "podsvid.io/v1alpha1",
        "kind": "ClusterWorkloadIdentity",
        "metadata": {"name": "one", "labels": {"podsvid.io/migrated-from": "spire"}},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["db", "web"]}]},
            "namespaceSelector": {
                "matchLabels": {"team": "a"},
                "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["spire"]}],
            },
            "serviceAccounts": ["billing"],
            "spiffeIDTemplate": "/ns/{namespace}/sa/{service_account}",
            "dnsNameTemplates": ["{pod}.{namespace}.svc.cluster.local", "fixed.example"],
            "dnsNamesFromServices": True,
            "x509TTL": "1h30m",
            "jwtTTL": "1m30s",
            "hint": "main",
            "federatesWith": ["partner.example"],
            "priority": -1,
        },
    }


def test_who_federated_with_nobody_is_given_nobody() -> None:
    # Without the field podsvid gives all bundles that there are.
    assert only(migrated(spiffeid()))["spec"]["federatesWith"] == []
    assert only(of_entry("k8s:ns:shop"))["spec"]["federatesWith"] == []


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"admin": True}, "administers SPIRE's server"),
        ({"downstream": True}, "downstream"),
        ({"className": "another"}, "of class 'another'"),
        ({"newSelector": {}}, "field 'newSelector' is not known here"),
        ({"spiffeIDTemplate": ""}, "no spiffeIDTemplate"),
        ({"spiffeIDTemplate": "/ns/x"}, "does not begin with spiffe://"),
        ({"spiffeIDTemplate": "spiffe://example.org/{{ .PodMeta.Annotations.a }}"}, "has no counterpart"),
        ({"spiffeIDTemplate": "spiffe://example.org/{{ .ClusterName }}"}, "{{ .ClusterName }} is not known"),
        ({"spiffeIDTemplate": "spiffe://example.org/spire/agent/x"}, "is SPIRE's own"),
        ({"spiffeIDTemplate": "spiffe://example.org/podsvid"}, "is podsvid's own"),
        ({"spiffeIDTemplate": "spiffe://example.org/a b"}, "is no template of podsvid's"),
        ({"spiffeIDTemplate": "spiffe://example.org"}, "is no template of podsvid's"),
        ({"spiffeIDTemplate": "spiffe://{{ .PodMeta.Namespace }}/x"}, "is of trust domain"),
        ({"spiffeIDTemplate": "spiffe://example.org/{x}"}, "has a brace"),
        ({"podSelector": {"matchLabels": {"a": True}}}, "that is no text"),
        ({"podSelector": {"matchFields": []}}, "'matchFields' is not known"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}},
            "Kubernetes refuses",
        ),
        ({"podSelector": {"matchLabels": {f"a{n}": "b" for n in range(65)}}}, "podsvid does not take it"),
        ({"podSelector": []}, "podSelector is no object"),
        ({"workloadSelectorTemplates": ["k8s:container-name:app"]}, "for more pods"),
        ({"workloadSelectorTemplates": ["unix:uid:{{ .PodMeta.UID }}"]}, "for more pods"),
        ({"federatesWith": ["Not A Domain"]}, "federatesWith:"),
        ({"ttl": "soon"}, "is no duration"),
        ({"hint": "x" * 1025}, "hint is longer"),
        ({"fallback": "yes"}, "neither true nor false"),
        ({"dnsNameTemplates": ["a.example", "*.example"]}, "DNS name '*.example' cannot be said"),
        ({"dnsNameTemplates": ["-a.example"]}, "DNS name '-a.example' cannot be said"),
        ({"dnsNameTemplates": ["{{ .PodMeta.Annotations.host }}.x"]}, "Annotations.host }} has no counterpart"),
        ({"dnsNameTemplates": ["{{ .ClusterDomain }}"]}, "{{ .ClusterDomain }} is not known"),
        ({"dnsNameTemplates": [f"a{n}.example" for n in range(33)]}, "more than 32 DNS names"),
    ],
)
def test_what_cannot_be_said_is_not_written(spec: dict[str, Any], why: str) -> None:
    migration = migrated(spiffeid(**spec), line=("--trust-domain", DOMAIN, "--class-name", "mine", "--watch-classless"))
    assert migration.objects == ()
    (finding,) = told(migration, Verdict.LEFT_OUT)
    assert why in finding.why
    assert finding.source == "ClusterSPIFFEID one"
    assert migration.report.code == 3


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"jwtTtl": "1.5s"}, "jwtTtl of 1.5 s is 2s here"),
        ({"dnsNameTemplates": ["{{ .PodMeta.Labels.app }}.x"], "podSelector": APP}, "is refused here"),
        ({"dnsNameTemplates": ["{{ .PodMeta.Name }}.x"]}, "is refused here"),
        ({"autoPopulateDNSNames": True}, "names of Services have their namespace"),
        (
            {"spiffeIDTemplate": 'spiffe://example.org/x-{{ index .PodMeta.Labels "app" }}'},
            "a pod without label 'app' gets nothing of it here",
        ),
    ],
)
def test_what_differs_is_told(spec: dict[str, Any], why: str) -> None:
    migration = migrated(spiffeid(**spec), line=EXACTLY)
    assert fits(only(migration))
    (finding,) = told(migration, Verdict.DIFFERS)
    assert why in finding.why
    assert migration.report.code == 3


@pytest.mark.parametrize(
    ("spec", "why", "to_do"),
    [
        ({"ttl": "48h"}, "its SVIDs live 1d, not 2d", "x509_max_ttl"),
        ({"ttl": "20s"}, "its SVIDs live 1m, not 20s", "x509_min_ttl"),
        ({"jwtTtl": "3h"}, "its SVIDs live 1h, not 3h", "jwt_max_ttl"),
    ],
)
def test_a_lifetime_that_the_signer_does_not_give_is_told_of_each(spec: dict[str, Any], why: str, to_do: str) -> None:
    migration = migrated(
        spiffeid(**spec), {"entries": [NODES, entry("e", "/web", "/nodes", "k8s:ns:shop")]}, line=EXACTLY
    )
    (finding,) = told(migration, Verdict.DIFFERS)
    assert (finding.source, why in finding.why, to_do in finding.to_do) == ("ClusterSPIFFEID one", True, True)
    (other,) = told(
        migrated({"entries": [NODES, entry("e", "/web", "/nodes", "k8s:ns:shop", x509_svid_ttl=172800)]}),
        Verdict.DIFFERS,
    )
    assert "its SVIDs live 1d, not 2d" in other.why


def test_a_lifetime_longer_than_a_policy_takes_is_told_twice() -> None:
    first, second = told(migrated(spiffeid(ttl="2400h"), line=EXACTLY), Verdict.DIFFERS)
    assert "ttl of 8.64e+06 s is 90d here" in first.why
    assert "its SVIDs live 1d, not 90d" in second.why


def test_an_empty_pipe_is_no_migration() -> None:
    with pytest.raises(UnusableDocument, match="there is nothing in it"):
        migrated()
    assert migrated({"entries": []}).report.read == 0


@pytest.mark.parametrize(
    ("selectors", "more", "why"),
    [
        (["k8s:ns:shop", "k8s:container-name:web"], {}, "for more pods"),
        (["k8s:ns:shop", "k8s:container-image:a/b:c"], {}, "for more pods"),
        (["k8s:pod-uid:1"], {}, "'k8s:pod-uid:1' says what no policy can say"),
        (["k8s:ns:shop", "k8s:node-name:a"], {}, "for more pods"),
        (["k8s:ns:shop", "k8s:image-signature:verified"], {}, "for more pods"),
        (["k8s:ns:shop", "unix:uid:1000"], {}, "for more pods"),
        (["docker:label:a:b"], {}, "for more pods"),
        ([], {}, "has no selectors"),
        (["k8s:ns:shop"], {"parent": f"/spire/agent/k8s_psat/{CLUSTER}/x"}, "the agent of one node"),
        (["k8s:ns:shop"], {"parent": "/spire/agent/join_token/x"}, "the agent of one node"),
        (["k8s:ns:shop"], {"parent": "/elsewhere"}, "is not among these entries"),
        (["k8s:ns:shop"], {"admin": True}, "administers SPIRE's server"),
        (["k8s:ns:shop"], {"downstream": True}, "downstream"),
        (["k8s:ns:shop"], {"store_svid": True}, "store_svid"),
        (["k8s:ns:shop"], {"expires_at": "1900000000"}, "expires_at"),
        (["k8s:ns:shop"], {"path": "/spire/x"}, "is SPIRE's own"),
        (["k8s:ns:shop"], {"newer": 1}, "field 'newer' is not known here"),
        (["k8s:ns:shop"], {"x509_svid_ttl": "soon"}, "x509_svid_ttl is no number"),
        (["k8s:ns:shop"], {"spiffe_id": {"trust_domain": "A B", "path": "/x"}}, "is no SPIFFE ID"),
        (["k8s:ns:shop"], {"spiffe_id": {"trust_domain": "example.org", "path": ""}}, "has no path"),
    ],
)
def test_entries_that_no_policy_can_be(selectors: list[str], more: dict[str, Any], why: str) -> None:
    migration = of_entry(*selectors, **more)
    assert migration.objects == ()
    (finding,) = told(migration, Verdict.LEFT_OUT)
    assert why in finding.why
    assert finding.source.startswith("entry e")


def test_an_entry_of_one_namespace() -> None:
    migration = of_entry(
        *("k8s:ns:shop", "k8s:sa:billing", "k8s:pod-label:example.org/app:a:b"),
        path="/ns/shop/sa/billing",
        x509_svid_ttl=3600,
        jwt_svid_ttl=300,
        federates_with=["spiffe://partner.example"],
        hint="main",
    )
    found = only(migration)
    assert fits(found)
    assert found["kind"] == "WorkloadIdentity"
    assert found["metadata"]["namespace"] == "shop"
    assert found["spec"] == {
        "podSelector": {"matchLabels": {"example.org/app": "a:b"}},
        "serviceAccounts": ["billing"],
        "spiffeIDTemplate": "/ns/{namespace}/sa/billing",
        "x509TTL": "1h",
        "jwtTTL": "5m",
        "hint": "main",
        "federatesWith": ["partner.example"],
    }
    (alias,) = told(migration, Verdict.NEEDLESS)
    assert alias.source == "entry n (/nodes)"
    assert migration.report.code == 0


@pytest.mark.parametrize("more", [{"path": "/web"}, {"path": "/ns/shop/x", "dns_names": ["web.example"]}])
def test_what_a_namespace_may_not_say_is_the_clusters(more: dict[str, Any]) -> None:
    found = only(of_entry("k8s:ns:shop", **more))
    assert fits(found)
    assert found["kind"] == "ClusterWorkloadIdentity"
    assert found["spec"]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}
    assert found["spec"]["spiffeIDTemplate"] == more["path"]


def test_static_entries_are_entries() -> None:
    static = kubernetes(
        "ClusterStaticEntry",
        "fixed",
        spiffeID="spiffe://example.org/fixed",
        parentID="spiffe://example.org/nodes",
        selectors=["k8s:sa:a", "k8s:ns-label:team:b"],
        x509SVIDTTL="30m0s",
    )
    nodes = kubernetes(
        "ClusterStaticEntry",
        "nodes",
        spiffeID="spiffe://example.org/nodes",
        parentID="spiffe://example.org/spire/server",
        selectors=["k8s_psat:cluster:prod"],
    )
    found = only(migrated(static, nodes))
    assert fits(found)
    assert found["metadata"]["name"] == "fixed"
    assert found["spec"]["serviceAccounts"] == ["a"]
    assert found["spec"]["namespaceSelector"] == {"matchLabels": {"team": "b"}}
    assert found["spec"]["x509TTL"] == "30m"


def test_a_set_of_nodes_is_another_clusters_or_some_of_this_ones() -> None:
    other = entry("o", "/others", "/spire/server", "k8s_psat:cluster:other")
    some = entry("s", "/some", "/spire/server", "k8s_psat:cluster:prod", "k8s_psat:agent_node_ip:10.0.0.1")
    mine = entry("m", "/mine", "/nodes", "k8s:ns:a")
    theirs, part = entry("t", "/theirs", "/others", "k8s:ns:a"), entry("p", "/part", "/some", "k8s:ns:a")
    all_of_it = {"entries": [NODES, other, some, mine, theirs, part]}
    unsure = migrated(all_of_it)
    assert unsure.objects == ()
    assert any("of several clusters" in each.why for each in told(unsure, Verdict.LEFT_OUT))
    sure = migrated(all_of_it, line=("--cluster-name", CLUSTER))
    assert [each.name for each in sure.objects] == ["mine"]
    assert {each.source: each.why.partition(" ")[0] for each in told(sure, Verdict.LEFT_OUT)} == {
        "entry t (/theirs)": "it",
        "entry p (/part)": "its",
    }


def test_the_controllers_configuration_says_what_options_say() -> None:
    config = {
        "apiVersion": "spire.spiffe.io/v1alpha1",
        "kind": "ControllerManagerConfig",
        "trustDomain": DOMAIN,
        "clusterName": "c1",
        "clusterDomain": "c.local",
        "className": "mine",
        "ignoreNamespaces": ["^a$", "b"],
    }
    text = "spiffe://{{ .TrustDomain }}/{{ .ClusterName }}/{{ .TrustDomain }}"
    objects = [
        spiffeid(className="mine", spiffeIDTemplate=text),
        kubernetes("ClusterSPIFFEID", "two", spiffeIDTemplate=ID),
    ]
    in_map = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"controller.yaml": yaml.safe_dump(config)}}
    for either in (config, in_map):
        migration = migrated(either, *objects)
        found = only(migration)
        assert found["spec"]["spiffeIDTemplate"] == f"/c1/{DOMAIN}"
        (expression,) = found["spec"]["namespaceSelector"]["matchExpressions"]
        assert expression["values"] == ["a", "b"]
        (other,) = told(migration, Verdict.LEFT_OUT)
        assert "acts on its own class alone" in other.why
        # Whatever has `b` in its name is ignored, and no selector can say that.
        (wider,) = told(migration, Verdict.DIFFERS)
        assert "whose name has b in it" in wider.why
        assert migration.report.code == 3
    with pytest.raises(WrongUsage, match="more than one ControllerManagerConfig"):
        migrated(config, config)


@pytest.mark.parametrize(
    "config",
    [
        {"ignoreNamespaces": ["^kube-.*"]},
        {"cacheNamespaces": {"a": {}}},
        {"cacheNamespace": "a"},
        {"staticManifestPath": "/manifests"},
        {"reconcile": {"clusterStaticEntries": True}},
        {"parentIDTemplate": "spiffe://example.org/x"},
    ],
)
def test_where_nobody_knows_in_which_namespaces_nothing_is_written(config: dict[str, Any]) -> None:
    whole = {"apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ControllerManagerConfig", **config}
    migration = migrated(whole, spiffeid())
    assert migration.objects == ()
    assert len(told(migration, Verdict.LEFT_OUT)) == 1
    if "ignoreNamespaces" in config:
        assert migrated(whole, spiffeid(), line=("--ignored-namespaces", "kube-system,kube-public")).objects


def test_a_fallback_waits_for_what_goes_before_it() -> None:
    fallback = kubernetes("ClusterSPIFFEID", "rest", spiffeIDTemplate=ID, fallback=True)
    unsayable = spiffeid(workloadSelectorTemplates=["k8s:container-name:a"])
    elsewhere = spiffeid(workloadSelectorTemplates=["k8s:container-name:a"], podSelector={"matchLabels": {"app": "a"}})
    apart = fallback | {"spec": fallback["spec"] | {"podSelector": {"matchLabels": {"app": "b"}}}}
    assert migrated(fallback, unsayable).objects == ()
    narrowed = migrated(fallback, elsewhere)
    assert fits(only(narrowed))
    (expression,) = only(narrowed)["spec"]["podSelector"]["matchExpressions"]
    assert expression == {"key": "app", "operator": "NotIn", "values": ["a"]}
    assert "leaves alone more pods" in told(narrowed, Verdict.DIFFERS)[0].why
    # In its namespaces alone, or written for some of its pods alone: the fallback leaves alone all of them.
    by_namespace = {"matchLabels": {"team": "a"}}
    in_some = spiffeid(workloadSelectorTemplates=["k8s:container-name:a"], namespaceSelector=by_namespace)
    (expression, _) = only(migrated(fallback, in_some, line=EXACTLY))["spec"]["namespaceSelector"]["matchExpressions"]
    assert expression["key"] == "kubernetes.io/metadata.name"
    in_part = spiffeid(workloadSelectorTemplates=["k8s:sa:x"], podSelector={"matchLabels": {"app": "a"}})
    of_label = spiffeid(dnsNameTemplates=["{{ .PodMeta.Labels.app }}.x"], podSelector={"matchLabels": {"tier": "a"}})
    for other, key in ((in_part, "app"), (of_label, "tier")):
        rest, written = documents_of(migrated(fallback, other))
        assert rest["spec"]["podSelector"] == {"matchExpressions": [{"key": key, "operator": "NotIn", "values": ["a"]}]}
        assert "serviceAccounts" in written["spec"] or "app" in str(written["spec"]["podSelector"])
    assert [each.name for each in migrated(apart, elsewhere).objects] == ["rest"]
    assert [each.name for each in migrated(fallback, spiffeid()).objects] == ["rest", "one"]


def test_federations_of_both_profiles() -> None:
    web = kubernetes(
        "ClusterFederatedTrustDomain",
        "web",
        trustDomain="web.example",
        bundleEndpointURL="https://web.example/bundle",
        bundleEndpointProfile={"type": "https_web"},
    )
    spiffe = kubernetes(
        "ClusterFederatedTrustDomain",
        "spiffe",
        trustDomain="spiffe.example",
        bundleEndpointURL="https://spiffe.example:8443",
        bundleEndpointProfile={"type": "https_spiffe", "endpointSPIFFEID": "spiffe://spiffe.example/spire/server"},
        trustDomainBundle=BUNDLE,
    )
    migration = migrated(web, spiffe, line=("--trust-domain", DOMAIN))
    first, second = documents_of(migration)
    assert fits(first)
    assert fits(second)
    assert first["spec"] == web["spec"]
    assert second["spec"] == spiffe["spec"]
    assert migration.report.code == 0


@pytest.mark.parametrize(
    ("spec", "verdict", "why"),
    [
        ({"bundleEndpointURL": "http://a"}, Verdict.LEFT_OUT, "has to begin with https://"),
        ({"bundleEndpointURL": "https://169.254.169.254/"}, Verdict.LEFT_OUT, "where no trust domain is published"),
        ({"trustDomainBundle": "{}"}, Verdict.LEFT_OUT, "trustDomainBundle: not a JWKS"),
        ({"bundleEndpointProfile": {"type": "https_spiffe"}, "trustDomainBundle": BUNDLE}, Verdict.LEFT_OUT, "whom"),
        ({"bundleEndpointProfile": {"type": "x"}}, Verdict.LEFT_OUT, "neither https_web nor https_spiffe"),
        ({"trustDomain": DOMAIN}, Verdict.NEEDLESS, "the trust domain itself"),
        ({"trustDomain": "A"}, Verdict.LEFT_OUT, "trust domain characters"),
        (
            {"bundleEndpointProfile": {"type": "https_web", "endpointSPIFFEID": "spiffe://a/b"}},
            Verdict.DIFFERS,
            "endpointSPIFFEID is left out",
        ),
        (
            {"bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": "spiffe://a.example/b"}},
            Verdict.DIFFERS,
            "no trustDomainBundle",
        ),
    ],
)
def test_federations_that_are_not_the_same(spec: dict[str, Any], verdict: Verdict, why: str) -> None:
    usual = {
        "trustDomain": "a.example",
        "bundleEndpointURL": "https://a.example/",
        "bundleEndpointProfile": {"type": "https_web"},
    }
    migration = migrated(
        kubernetes("ClusterFederatedTrustDomain", "a", **(usual | spec)), line=("--trust-domain", DOMAIN)
    )
    (finding,) = told(migration, verdict)
    assert why in finding.why
    assert len(migration.objects) == (verdict is Verdict.DIFFERS)


def test_two_for_one_pod_are_told_and_two_that_cannot_be_are_not() -> None:
    def of(name: str, label: str, template: str = ID) -> dict[str, Any]:
        labels = {"matchLabels": {"app": label}}
        return kubernetes("ClusterSPIFFEID", name, spiffeIDTemplate=template, podSelector=labels)

    other = "spiffe://example.org/other"
    (finding,) = told(migrated(of("a", "x"), of("b", "x", other), of("c", "y", other)), Verdict.OVERLAPS)
    assert finding.source == "ClusterWorkloadIdentity a and ClusterWorkloadIdentity b"
    assert "podsvid one: the older, or a, whose name" in finding.why
    assert told(migrated(of("a", "x"), of("b", "x")), Verdict.OVERLAPS) == []


def test_names_are_never_one_for_two() -> None:
    twice = [entry(f"e{n}", "/Web", "/nodes", f"k8s:ns:n{n}") for n in range(3)]
    names = [each.name for each in migrated({"entries": [NODES, *twice]}).objects]
    assert names[0] == "web"
    assert len(set(names)) == 3
    same = migrated({"entries": [NODES, twice[0], twice[0]]})
    assert [each.name for each in same.objects] == ["web"]
    assert "there twice" in told(same, Verdict.NEEDLESS)[-1].why
    again = [kubernetes("ClusterSPIFFEID", "a" * 253, spiffeIDTemplate=f"{ID}/{n}") for n in (1, 2, 1)]
    long = migrated(*again)
    assert [len(each.name) for each in long.objects] == [253, 253]
    assert all(is_name(each.name) for each in long.objects)
    assert len(told(long, Verdict.NEEDLESS)) == 1
    bad = kubernetes("ClusterSPIFFEID", "../../etc/x", spiffeIDTemplate=ID)
    assert migrated(bad).objects == ()


def test_trust_domains() -> None:
    other = kubernetes("ClusterSPIFFEID", "two", spiffeIDTemplate="spiffe://other.example/x")
    with pytest.raises(WrongUsage, match="--trust-domain"):
        migrated(spiffeid(), other)
    migration = migrated(spiffeid(), other, line=("--trust-domain", DOMAIN))
    assert [each.name for each in migration.objects] == ["one"]
    (finding,) = told(migration, Verdict.LEFT_OUT)
    assert "is of trust domain 'other.example'" in finding.why


def test_a_literal_trust_domain_may_be_an_old_one() -> None:
    # The controller makes nothing of the first one where it is in another trust domain by now.
    templated = kubernetes("ClusterSPIFFEID", "two", spiffeIDTemplate="spiffe://{{ .TrustDomain }}/x")
    with pytest.raises(WrongUsage, match="may be another one by now: give --trust-domain"):
        migrated(spiffeid(), templated)
    assert len(migrated(spiffeid(), templated, {"entries": [NODES]}).objects) == 2
    assert len(migrated(spiffeid(), templated, line=("--trust-domain", DOMAIN)).objects) == 2
    assert migrated(templated).objects
    (note, *_) = migrated(spiffeid()).report.notes
    assert "trust domain is taken to be example.org" in note


def test_of_which_class_the_controller_is_has_to_be_known() -> None:
    other = spiffeid(className="spire", podSelector={"matchLabels": {"app": "web"}})
    rest = kubernetes("ClusterSPIFFEID", "rest", spiffeIDTemplate=ID, fallback=True)
    with pytest.raises(WrongUsage, match=r"ClusterSPIFFEID one has className 'spire'.*--class-name"):
        migrated(other, rest)
    with pytest.raises(WrongUsage, match="ClusterFederatedTrustDomain a has className"):
        migrated(kubernetes("ClusterFederatedTrustDomain", "a", className="spire"))
    assert [each.name for each in migrated(other, rest, line=("--class-name", "spire")).objects] == ["one"]
    # A controller without a class acts on every class, as its configuration's own documentation has it.
    (narrowed,) = documents_of(migrated(CONFIG, other, rest))
    assert narrowed["metadata"]["name"] == "rest"
    assert "app" in str(narrowed["spec"]["podSelector"])
    # What is certainly another controller's takes no pod from a fallback.
    (alone,) = documents_of(
        migrated({**CONFIG, "className": "mine"}, other, {**rest, "spec": {**rest["spec"], "className": "mine"}})
    )
    assert "podSelector" not in alone["spec"]


def test_a_configuration_that_is_not_known_whole() -> None:
    with pytest.raises(WrongUsage, match="field 'onlyNamespaces' is not known here"):
        migrated({**CONFIG, "onlyNamespaces": ["a"]}, spiffeid())


@pytest.mark.parametrize("option", ["kube-system, spire ,", " kube-system,spire"])
def test_ignored_namespaces_are_names(option: str) -> None:
    found = only(migrated(spiffeid(), line=("--ignored-namespaces", option)))
    (expression,) = found["spec"]["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == ["kube-system", "spire"]
    for wrong in ("kube-.*", "a;b", "A", "a b"):
        with pytest.raises(WrongUsage, match="is no namespace's name"):
            migrated(spiffeid(), line=("--ignored-namespaces", f"{option},{wrong}"))


def test_agents_of_one_account_are_all_nodes_where_no_alias_says_otherwise() -> None:
    one = entry("a", "/a", "/spire/server", f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_sa:spire:agent")
    two = entry("b", "/b", "/spire/server", f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_sa:spire:other")
    mine = entry("m", "/mine", "/a", "k8s:ns:a")
    alone = migrated({"entries": [one, mine]})
    assert [each.name for each in alone.objects] == ["mine"]
    assert any("agents of one namespace or account" in each for each in alone.report.notes)
    for beside in (two, NODES):
        several = migrated({"entries": [one, beside, mine]})
        assert several.objects == ()
        assert "is some of the nodes" in told(several, Verdict.LEFT_OUT)[0].why


def test_labels_of_namespaces_are_selectors_where_agents_look_at_them() -> None:
    for migration in (
        of_entry("k8s:ns-label:team:a"),
        migrated(spiffeid(workloadSelectorTemplates=["k8s:ns-label:a:b"])),
    ):
        assert any("enable_namespace_labels" in each for each in migration.report.notes)
    assert not any("enable_namespace_labels" in each for each in of_entry("k8s:ns:shop").report.notes)


def test_a_static_entry_with_a_name_that_the_server_refuses_is_nobodys() -> None:
    static = kubernetes(
        "ClusterStaticEntry",
        "fixed",
        spiffeID="spiffe://example.org/fixed",
        parentID="spiffe://example.org/nodes",
        selectors=["k8s:sa:a"],
        dnsNames=["a b"],
    )
    migration = migrated(static, {"entries": [NODES]})
    assert migration.objects == ()
    assert "DNS name 'a b' cannot be said" in told(migration, Verdict.LEFT_OUT)[0].why


def test_a_fallback_of_nothing_is_none() -> None:
    # As the API server would have it: absent.
    other = spiffeid(workloadSelectorTemplates=["k8s:container-name:a"], fallback=None)
    rest = kubernetes("ClusterSPIFFEID", "rest", spiffeIDTemplate=ID, fallback=True)
    assert migrated(other, rest).objects == ()


def test_many_keys_with_one_twice_are_read_in_time() -> None:
    text = "{" + ",".join(f'"{n}": 1' for n in (*range(100_000), 99_999)) + "}"
    with pytest.raises(UnusableDocument, match="'99999' is there twice"):
        parsed("f", text)


def test_what_is_not_known_is_named() -> None:
    migration = migrated({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}, [1], {"a": 1})
    assert [each.source for each in told(migration, Verdict.LEFT_OUT)] == ["Pod p (here)", "here", "document (here)"]
    assert migration.report.read == 3


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("spiffe://{{ .TrustDomain }}/a", "/a"),
        ("spiffe://{{- .TrustDomain -}} /{{.PodMeta.Name}}", "/{pod}"),
        ("spiffe://example.org/{{ index .PodMeta.Labels `a/b` }}", "/{labels['a/b']}"),
        ("spiffe://example.org/{{\n.PodMeta.Labels.app\t}}", "/{labels['app']}"),
    ],
)
def test_templates(template: str, wanted: str) -> None:
    assert id_path(template, Names("example.org")).text == wanted


@pytest.mark.parametrize(
    "action",
    [
        *("{{ if .PodMeta.Name }}", "{{/* x */}}", '{{ "x" }}', "{{ .PodMeta.Name | x }}", "{{ $x := .PodMeta.Name }}"),
        *(
            '{{ index .PodMeta.Labels "a\'b" }}',
            '{{ index .PodMeta.Labels "a" "b" }}',
            "{{ .PodMeta.Name",
            "}}",
            "{{}}",
        ),
    ],
)
def test_what_is_more_than_a_field_is_no_template_here(action: str) -> None:
    with pytest.raises(Unfit):
        id_path(f"spiffe://example.org/{action}", Names("example.org"))
    with pytest.raises(Unfit):
        dns_name(f"a.{action}", Names("example.org"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h0m0s", 3600.0), ("0s", 0.0), ("0", 0.0), ("1.5h", 5400.0), ("1m30s", 90.0), ("5ms", 0.005)],
)
def test_durations_of_go(text: str, seconds: float) -> None:
    assert go_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "-1h", "1x", "h", "1h 1m", "9" * 400 + "h", "1d"])
def test_no_durations_of_go(text: str) -> None:
    with pytest.raises(Unfit):
        go_duration(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x\n", "alias"),
        ("a: 1\na: 2\n", "twice"),
        ('{"a": 1, "a": 2}', "twice"),
        ("a: !!python/object/apply:os.system [x]\n", "tag"),
        ("a: !x 1\n", "tag"),
        ("a: [1\n", "neither YAML nor JSON, line 2"),
        ("? [a]\n: 1\n", "key that is no text"),
        ("a:\n  <<: {b: 1}\n", "key that is no text"),
        pytest.param("[" * 5000, "nested too deeply|neither YAML", id="open"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested too deeply"),
        pytest.param("- " * 5000 + "a", "nested too deeply|neither YAML", id="deep"),
        ("- " * (MAX_DEPTH + 1) + "a", "nested too deeply"),
        pytest.param("#" * (MAX_YAML + 1), "as JSON", id="long"),
        ("a: \x00", "neither YAML nor JSON"),
    ],
)
def test_hostile_files(text: str, said: str) -> None:
    with pytest.raises(UnusableDocument, match=said):
        parsed("f", text)


def test_several_documents_and_texts_that_look_like_something_else() -> None:
    found = parsed("f", "a: 2024-01-01\nb: 0x10\nc: 1.5\nd: yes\ne: ~\n---\n---\n{x: 1}\n")
    assert [each.value for each in found] == [
        {"a": "2024-01-01", "b": "0x10", "c": "1.5", "d": True, "e": None},
        {"x": 1},
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text(json.dumps({"entries": [NODES, entry("e", "/web", "/nodes", "k8s:ns:\x1b[2J")]}))
    assert main(["migrate", "spire", "in.json"]) == 0
    out, said = capsys.readouterr()
    (document,) = yaml.safe_load_all(out)
    assert document["metadata"]["name"] == "web"
    assert "2 read, 1 written" in said
    assert "\x1b" not in out + said
    assert main(["migrate", "spire", "in.json", "-o", "json"]) == 0
    out, said = capsys.readouterr()
    assert described("migrate spire", out)["objects"] == [document]
    assert said == ""
    assert main(["migrate", "spire", "in.json", "--output-dir", "new", "--report", "report"]) == 0
    assert capsys.readouterr() == ("", "")
    (path,) = Path("new").iterdir()
    assert path.name == "0001-clusterworkloadidentity-web.yaml"
    assert yaml.safe_load(path.read_text()) == document
    assert "2 read" in Path("report").read_text()
    assert main(["migrate", "spire", "in.json", "--output-dir", "new"]) == 1
    assert "IN_THE_WAY" in capsys.readouterr().err
    assert main(["migrate", "spire", "absent"]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err
    Path("bad").write_text("a: *b")
    assert main(["migrate", "spire", "bad"]) == 1
    assert "UNUSABLE_DOCUMENT" in capsys.readouterr().err


def test_the_standard_input() -> None:
    command = [sys.executable, "-m", "podsvid", "migrate", "spire", "-", *EXACTLY]
    ran = subprocess.run(command, input=json.dumps(spiffeid()).encode(), cwd=ROOT, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load(ran.stdout)["metadata"]["name"] == "one"


def test_very_many_of_a_sort_are_told_in_short() -> None:
    several = [entry(f"e{n}", "/x", "/nodes", f"k8s:pod-uid:{n}") for n in range(300)]
    migration = migrated({"entries": [NODES, *several]})
    lines = migration.report.lines()
    assert "  and 280 more (-o json has all)" in lines
    assert len(lines) < 100
    assert len(migration.report.members()["findings"]) == 301


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from([ID, "k8s:ns:a", "1h", "In"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["matchLabels", "key", "type"]), inner),
    max_leaves=6,
)
KINDS = (
    "ClusterSPIFFEID",
    "ClusterStaticEntry",
    "ClusterFederatedTrustDomain",
    "ControllerManagerConfig",
    "List",
    "Pod",
)
FIELDS: tuple[str, ...] = (
    "spiffeIDTemplate",
    "podSelector",
    "namespaceSelector",
    "ttl",
    "dnsNameTemplates",
    "workloadSelectorTemplates",
)
FIELDS += (
    "federatesWith",
    "fallback",
    "spiffeID",
    "parentID",
    "selectors",
    "trustDomain",
    "bundleEndpointProfile",
    "hint",
)


def test_a_value_that_no_label_can_have_is_not_written() -> None:
    migration = migrated(spiffeid(podSelector={"matchLabels": {"team": "v" * 64}}))
    assert documents_of(migration) == []
    assert any("no label has" in line for line in migration.report.lines())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
    st.lists(st.dictionaries(st.sampled_from([*NODES, "x"]), JSON, max_size=4) | JSON, max_size=2),
    JSON,
)
def test_nothing_else_is_raised(kind: str, spec: dict[str, Any], entries: list[Any], name: Any) -> None:
    one = {"apiVersion": "spire.spiffe.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    whole = {**one, "items": [spec], "ignoreNamespaces": spec.get("hint"), "reconcile": spec.get("podSelector")}
    changed = [{**NODES, **each} if isinstance(each, dict) else each for each in entries]
    with suppress(WrongUsage):
        migration = migrated(whole, {"entries": [NODES, *changed]}, spiffeid(**spec), name)
        assert all(fits(each) for each in documents_of(migration))
        assert migration.report.lines()
