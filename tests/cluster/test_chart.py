"""The chart without a cluster: what it renders, what it refuses, and that its parts fit the programs' own settings."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import cast

import pytest
import yaml

from agent import config as agent_config
from podsvid.cli import _parser
from podsvid.uninstall_check import DEFINED
from runtime.clock import SystemClock
from signer import config as signer_config
from signer.cluster.kube import KubeApi
from signer.upstream.certmanager import PREFIX, CertManager
from signer.upstream.chosen import chosen
from tests import certmanager_contract, permissions
from tests.openbao_contract import TD
from tests.unit.signer.test_certmanager import StandIn

from . import chart
from .api import Object
from .host import ClusterError

pytestmark = pytest.mark.timeout(5400)
MANIFESTS = chart.ROOT / "deploy" / "manifests"
GOLDEN = Path(__file__).parent / "golden" / "everything.yaml"
# Other than the defaults, wherever that changes what is rendered.
EVERYTHING = (
    *("trustDomain=example.org", "image.repository=mirror/podsvid", "image.tag=v2", "imagePullSecrets[0].name=pull"),
    *("kubelet.root=/var/lib/k0s/kubelet", "drivers={csi.podsvid.io,csi.spiffe.io=spire}", "audience=here"),
    *(
        "tracing.endpoint=http://collector:4317",
        "ttl.x509=30m",
        "ttl.podMax=1h30m",
        "ttl.jwt=1m",
        "agent.settings.sds_svid_name=mine",
        "agent.hostNetwork=true",
    ),
    *("agent.nodeSelector.a=b", "agent.podLabels.c=d", "signer.replicas=3", "signer.stateKeySecret=state-key"),
    "signer.keyStoreSecret=key-store",
    *("signer.bundle.enabled=true", "signer.bundle.serviceType=LoadBalancer", "signer.bundle.serviceAnnotations.g=h"),
    *(
        "signer.oidc.enabled=true",
        "signer.oidc.certSecret=oidc-tls",
        "signer.settings.jwt_issuer=https://oidc.example.org",
    ),
    *(
        "signer.upstreamSecret=upstream",
        "signer.settings.dns_names={a.b,*.c}",
        "signer.settings.node_rate=7",
        "signer.settings.workers=2",
    ),
    *(
        "startupTaint.enabled=true",
        "podCertificates.enabled=true",
        "istio.enabled=true",
        "monitoring.serviceMonitor.enabled=true",
        "monitoring.rules.enabled=true",
        "docsURL=https://docs.example.org/podsvid/",
        "signer.podAnnotations.e=f",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def programs(built: None) -> None:
    """Helm."""


def documents(*values: str) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in chart.render(*values)}


def test_alerts_lead_to_the_page_of_a_checkout_unless_the_site_is_known() -> None:
    rules = ("monitoring.rules.enabled=true", "trustDomain=example.org")

    def led(*values: str) -> set[str]:
        (found,) = (each for (kind, _), each in documents(*rules, *values).items() if kind == "PrometheusRule")
        urls = [rule["annotations"]["runbook_url"] for group in found["spec"]["groups"] for rule in group["rules"]]
        return {url.partition("#")[0] for url in urls}

    assert led() == {"docs/operations.md"}
    for site in ("https://docs.example.org/podsvid", "https://docs.example.org/podsvid/"):
        assert led(f"docsURL={site}") == {"https://docs.example.org/podsvid/operations.html"}


def test_the_guard_leads_to_the_site_where_it_is_known() -> None:
    site = "https://docs.example.org/podsvid"
    for values, expected in (((), []), ((f"docsURL={site}",), [{"name": "PODSVID_DOCS_URL", "value": site}])):
        guard = documents("trustDomain=example.org", *values)["Job", "podsvid-uninstall-guard"]
        (container,) = guard["spec"]["template"]["spec"]["containers"]
        assert container.get("env", []) == expected


def test_lint() -> None:
    done = chart.helm("lint", "--strict", str(chart.CHART), "--set", "trustDomain=example.org")
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_switched_on_renders_as_recorded() -> None:
    rendered = chart.template(*EVERYTHING, flags=("--kube-version", "1.35.0"))
    if os.environ.get("TESTS_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(rendered)
    assert rendered == GOLDEN.read_text(), "look at the difference; TESTS_UPDATE_GOLDEN=1 records it"


ALL = ("--no-hooks", "--set", "crds.install=false", "--set", "admissionPolicy.enabled=false")
PUBLIC = (
    *("signer.bundle.enabled=true", "signer.oidc.enabled=true", "signer.oidc.certSecret=podsvid-oidc"),
    "signer.settings.jwt_issuer=https://oidc.example.org",
)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("podsvid.yaml", ALL),
        ("public/podsvid.yaml", (*ALL, *(flag for value in PUBLIC for flag in ("--set", value)))),
        ("admission.yaml", ("--show-only", "templates/admission.yaml")),
        ("crds.yaml", ("--show-only", "templates/crds.yaml")),
        ("uninstall/check.yaml", ("--show-only", "templates/uninstall-guard.yaml")),
    ],
)
def test_the_plain_manifests_are_what_the_chart_renders(name: str, flags: tuple[str, ...]) -> None:
    rendered = chart.template("trustDomain=example.org", flags=("--kube-version", "1.34.0", *flags))
    # That is for Helm: `kubectl logs` shows lines.
    rendered = "".join(line for line in rendered.splitlines(keepends=True) if line.strip() != "- --one-line")
    assert (MANIFESTS / name).read_text() == rendered, "run `make manifests`"


def test_what_one_deletes_by_habit_has_neither_the_ca_nor_a_policy_in_it() -> None:
    def kinds(name: str) -> set[str]:
        return {each["kind"] for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each}

    for name in ("podsvid.yaml", "public/podsvid.yaml"):
        assert not kinds(name) & {"Namespace", "CustomResourceDefinition", "Secret"}
        # No policy can protect one: a deletion that is refused would take them away all the same.
        assert not [each for each in kinds(name) if each.startswith("ValidatingAdmissionPolicy")]
    assert kinds("namespace.yaml") == {"Namespace"}
    assert kinds("crds.yaml") == {"CustomResourceDefinition"}
    # Of a folder that is deleted whole, what protects the others goes after them.
    assert max(each.name for each in MANIFESTS.glob("*.yaml")) == "protect.yaml"


def test_everything_that_the_manifests_make_is_protected() -> None:
    documents = [
        each
        for name in ("podsvid.yaml", "public/podsvid.yaml", "crds.yaml", "namespace.yaml")
        for each in yaml.safe_load_all((MANIFESTS / name).read_text())
        if each
    ]
    policy = next(
        each for each in yaml.safe_load_all((MANIFESTS / "protect.yaml").read_text()) if "Policy" in each["kind"]
    )
    matched = policy["spec"]["matchConstraints"]
    (rule,) = matched["resourceRules"]
    for each in documents:
        assert matched["objectSelector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        plural = each["kind"].lower().replace("policy", "policie") + "s"
        assert plural in rule["resources"]
        group, _, version = each["apiVersion"].rpartition("/")
        assert group in rule["apiGroups"], version


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("trustDomain=", "/trustDomain"),
        ("trustDomain=Upper", "/trustDomain"),
        ("ttl.x509=soon", "/ttl/x509"),
        ("ttl.podMax=more", "/ttl/podMax"),
        ("signer.settings.x509_pod_max_ttl=2h", "x509_pod_max_ttl"),
        ("agent.settings.unknown=1", "unknown"),
        ("agent.settings.trust_domain=x", "trust_domain"),
        ("signer.settings.kubeconfig=/x", "kubeconfig"),
        ("signer.replicas=0", "/signer/replicas"),
        ("drivers[0]=UPPER", "/drivers/0"),
        ("kubelet.root=relative", "/kubelet/root"),
        ("agent.runDir=/tmp/x", "/agent/runDir"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("tracing.endpoint=collector", "/tracing/endpoint"),
        ("typo=1", "typo"),
        ("profile=friendly", "/profile"),
        ("networkPolicy.scrapers[0].anybody=x", "anybody"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        chart.template("trustDomain=example.org", value)


# Numbers, switches and maps as YAML has them.
NATURAL = (
    *("trustDomain=example.org", "agent.settings.socket_quarantine=false", "agent.settings.volumes=60000"),
    *("signer.settings.pods_per_namespace=1000000", r"signer.settings.federated_bundles.b\.test=/etc/b"),
)


@pytest.mark.parametrize("values", [("trustDomain=example.org",), EVERYTHING, NATURAL])
def test_the_programs_take_the_settings_that_are_rendered(values: tuple[str, ...], tmp_path: Path) -> None:
    found = documents(*values)
    for name, load in (("agent", agent_config.load), ("signer", signer_config.load)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(found["ConfigMap", f"podsvid-{name}"]["data"][f"{name}.yaml"])
        pod = found["DaemonSet" if name == "agent" else "Deployment", f"podsvid-{name}"]["spec"]["template"]["spec"]
        arguments = [str(file) if each.startswith("/etc/podsvid/") else each for each in pod["containers"][0]["args"]]
        environment = {each["name"]: each.get("value", "a") for each in pod["containers"][0]["env"]}
        loaded = load(_parser(name).parse_args(arguments), environment)
        assert str(loaded.trust_domain.name) == "example.org"


def test_who_runs_as_what() -> None:
    found = documents("trustDomain=example.org")
    agent = found["DaemonSet", "podsvid-agent"]["spec"]["template"]["spec"]
    signer = found["Deployment", "podsvid-signer"]["spec"]["template"]["spec"]
    guard = found["Job", "podsvid-uninstall-guard"]["spec"]["template"]["spec"]
    assert agent["automountServiceAccountToken"] is False
    assert (agent["hostPID"], agent["hostNetwork"]) == (False, False)
    for pod in (signer, guard):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    bound = [each["subjects"] for (kind, _), each in found.items() if kind.endswith("RoleBinding")]
    names = {subject["name"] for subjects in bound for subject in subjects}
    assert names == {"podsvid-signer", "podsvid-uninstall-guard"}
    assert (signer["serviceAccountName"], guard["serviceAccountName"]) == ("podsvid-signer", "podsvid-uninstall-guard")
    # A new cluster's nodes all have the taint that the signer is to take off.
    assert {"key": "podsvid.io/agent-not-ready", "operator": "Exists"} in signer["tolerations"]


def test_may_patch_nodes_only_for_the_startup_taint() -> None:
    for values, expected in ((("trustDomain=a",), False), (("trustDomain=a", "startupTaint.enabled=true"), True)):
        rules = documents(*values)["ClusterRole", "podsvid-signer"]["rules"]
        assert any("nodes" in rule.get("resources", ()) for rule in rules) is expected


def test_the_guard_has_rights_only_while_it_runs_and_none_to_read_the_authority() -> None:
    found = documents("trustDomain=example.org")
    for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
        annotations = found[kind, "podsvid-uninstall-guard"]["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-delete"
        assert int(annotations["helm.sh/hook-weight"]) < 0
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded,hook-failed"
    rules = found["ClusterRole", "podsvid-uninstall-guard"]["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"list"}
    assert {each for rule in rules for each in rule["resources"]} == {
        "pods",
        "workloadidentities",
        "clusterworkloadidentities",
    }
    assert ("Role", "podsvid-uninstall-guard") not in found


def test_probes_and_metrics_have_ports_of_their_own_on_both_kinds_of_address() -> None:
    found = documents("trustDomain=example.org")
    for kind, name in (("DaemonSet", "agent"), ("Deployment", "signer")):
        (container,) = found[kind, f"podsvid-{name}"]["spec"]["template"]["spec"]["containers"]
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert (ports["metrics"], ports["health"]) == (9099, 9098)
        probes = [container[f"{each}Probe"]["httpGet"]["port"] for each in ("startup", "liveness", "readiness")]
        assert probes == ["health"] * 3
        settings = yaml.safe_load(found["ConfigMap", f"podsvid-{name}"]["data"][f"{name}.yaml"])
        assert (settings["metrics_listen"], settings["health_listen"]) == ("[::]:9099", "[::]:9098")
    assert found["Service", "podsvid-signer"]["spec"]["ipFamilyPolicy"] == "PreferDualStack"


MONITORING = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
NODES = {"ipBlock": {"cidr": "10.0.0.0/16"}}
SCRAPERS = "networkPolicy.scrapers[0].namespaceSelector.matchLabels.name=monitoring"
PROBERS = "networkPolicy.probers[0].ipBlock.cidr=10.0.0.0/16"
AGENTS = "networkPolicy.agents[0].ipBlock.cidr=10.0.0.0/16"
HOSTILE = ("trustDomain=example.org", "profile=hostile", "signer.stateKeySecret=state-key")


def ingress(name: str, *values: str) -> dict[str, list[Object] | None]:
    """By port, who may come; None is everybody."""
    spec = documents(*values)["NetworkPolicy", f"podsvid-{name}"]["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    return {port["port"]: rule.get("from") for rule in spec["ingress"] or [] for port in rule["ports"]}


def agents_pods() -> list[Object]:
    labels = {"app.kubernetes.io/name": "podsvid", "app.kubernetes.io/instance": "podsvid"}
    return [{"podSelector": {"matchLabels": {**labels, "app.kubernetes.io/component": "agent"}}}]


@pytest.mark.parametrize(
    ("values", "signer", "agent"),
    [
        (
            ("trustDomain=a",),
            {"grpc": agents_pods(), "metrics": None, "health": None},
            {"metrics": None, "health": None},
        ),
        (
            ("trustDomain=a", SCRAPERS, PROBERS, AGENTS),
            {"grpc": [*agents_pods(), NODES], "metrics": [MONITORING], "health": [NODES]},
            {"metrics": [MONITORING], "health": [NODES]},
        ),
        (
            ("trustDomain=a", "agent.hostNetwork=true"),
            {"grpc": None, "metrics": None, "health": None},
            {"metrics": None, "health": None},
        ),
        (HOSTILE, {"grpc": agents_pods()}, {}),
        ((*HOSTILE, SCRAPERS), {"grpc": agents_pods(), "metrics": [MONITORING]}, {"metrics": [MONITORING]}),
        ((*HOSTILE, PROBERS), {"grpc": agents_pods(), "health": [NODES]}, {"health": [NODES]}),
        ((*HOSTILE, "agent.hostNetwork=true", AGENTS), {"grpc": [NODES]}, {}),
    ],
)
def test_who_may_come(values: tuple[str, ...], signer: Object, agent: Object) -> None:
    assert ingress("signer", *values) == signer
    assert ingress("agent", *values) == agent


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("signer.stateKeySecret=",), "signer.stateKeySecret"),
        (("signer.settings.require_policy=false",), "signer.settings.require_policy"),
        (("networkPolicy.enabled=false",), "networkPolicy.enabled"),
        (("agent.hostNetwork=true",), "networkPolicy.agents"),
        (("admissionPolicy.enabled=false",), "admissionPolicy.enabled"),
        (("ttl.podMax=2h",), "ttl.podMax"),
    ],
)
def test_profile_hostile_says_what_it_lacks(values: tuple[str, ...], said: str) -> None:
    chart.template(*HOSTILE)
    with pytest.raises(ClusterError, match=f"profile hostile needs\n- {said}"):
        chart.template(*HOSTILE, *values)
    # Without the profile each is a choice.
    chart.template(*HOSTILE, *values, "profile=standard")


def rendered_settings(name: str, *values: str) -> Object:
    found: Object = yaml.safe_load(documents(*values)["ConfigMap", f"podsvid-{name}"]["data"][f"{name}.yaml"])
    return found


def test_profile_hostile_requires_policies_and_tightens_limits(tmp_path: Path) -> None:
    signer, agent = rendered_settings("signer", *HOSTILE, "ttl.x509=30m"), rendered_settings("agent", *HOSTILE)
    assert signer["require_policy"] == "true"
    assert signer["x509_max_ttl"] == signer["x509_ttl"] == "30m"
    assert "x509_pod_max_ttl" not in signer
    assert signer["jwt_max_ttl"] == signer["jwt_ttl"]
    assert "state_key_file" in signer
    defaults = [
        (signer, signer_config.SignerConfig, ("node_rate", "node_burst", "node_concurrency")),
        (agent, agent_config.AgentConfig, ("socket_connections", "socket_calls", "socket_rate", "socket_burst")),
    ]
    for settings, model, names in defaults:
        usual = {each.name: each.metadata["default"] for each in dataclasses.fields(model)}
        for name in names:
            assert int(settings[name]) < int(usual[name])
    own = ("ttl.podMax=2h", "signer.settings.x509_max_ttl=4h")
    assert rendered_settings("signer", *HOSTILE, *own)["x509_pod_max_ttl"] == "2h"
    # Who sets one says so, and has it.
    assert rendered_settings("signer", *HOSTILE, "signer.settings.node_rate=33")["node_rate"] == "33"
    assert "require_policy" not in rendered_settings("signer", "trustDomain=a")


def test_the_signer_writes_under_names_that_a_policy_gives() -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    found = documents("trustDomain=a", "signer.settings.bundle_config_map=roots", "signer.settings.state_secret=ca")
    policy, binding = (found[kind, "podsvid-signer"]["spec"] for kind in kinds)
    assert (binding["policyName"], binding["validationActions"]) == ("podsvid-signer", ["Deny"])
    assert policy["failurePolicy"] == "Fail"
    assert "system:serviceaccount:podsvid:podsvid-signer" in policy["matchConditions"][0]["expression"]
    # Another reason is an answer that the signer takes for an API server in trouble.
    assert {each["reason"] for each in policy["validations"]} == {"Forbidden"}
    text = yaml.safe_dump(policy["validations"])
    assert "'roots'" in text or "''roots''" in text
    assert "'ca'" in text or "''ca''" in text
    covered = {each for rule in policy["matchConstraints"]["resourceRules"] for each in rule["resources"]}
    # Whatever may be created, changed or removed without a name is covered.
    rules = [*found["ClusterRole", "podsvid-signer"]["rules"], *found["Role", "podsvid-signer"]["rules"]]
    for rule in rules:
        changes = {"create", "update", "patch", "delete"} & set(rule["verbs"])
        nameless = {"tokenreviews", "events"}
        nameless |= {f"{each}/status" for each in DEFINED}
        if changes and "resourceNames" not in rule:
            assert set(rule.get("resources", ())) - nameless <= covered
    assert not any(
        (kind, "podsvid-signer") in documents("trustDomain=a", "admissionPolicy.enabled=false") for kind in kinds
    )


def test_kubectl_drains_a_node_with_a_signer_and_needs_no_flag_for_it() -> None:
    """`--ignore-daemonsets` leaves the agent alone; a pod with an emptyDir takes `--delete-emptydir-data` as well."""
    found = documents(*EVERYTHING)
    pods = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for (kind, _), each in found.items()
            if kind in ("Deployment", "Job")}  # fmt: skip
    assert set(pods) == {"podsvid-signer", "podsvid-uninstall-guard"}
    for pod in pods.values():
        assert not [each for each in pod.get("volumes", ()) if "emptyDir" in each]
    environment = {each["name"]: each.get("value") for each in pods["podsvid-signer"]["containers"][0]["env"]}
    assert environment["PODSVID_ADMIN_SOCKET"] == "/dev/shm/podsvid-signer/admin.sock"


@pytest.mark.parametrize(
    ("values", "budget"),
    [
        ((), 1),
        (("signer.replicas=1",), None),
        (("signer.replicas=3", "signer.podDisruptionBudget.minAvailable=2"), 2),
        (("signer.podDisruptionBudget.minAvailable=2",), None),
        (("signer.podDisruptionBudget.minAvailable=50%",), "50%"),
        (("signer.replicas=1", "signer.podDisruptionBudget.minAvailable=50%"), None),
        (("signer.podDisruptionBudget.enabled=false",), None),
    ],
)
def test_a_budget_never_keeps_every_signer(values: tuple[str, ...], budget: object) -> None:
    found = documents("trustDomain=a", *values).get(("PodDisruptionBudget", "podsvid-signer"))
    assert (found and found["spec"]["minAvailable"]) == budget


EARLIER = sorted((Path(__file__).parent / "values").glob("*.yaml"))


def reused(folder: Path, earlier: Path) -> Path:
    """The chart as `helm upgrade --reuse-values` renders it: with the values of a chart before in place of its own."""
    there = folder / "podsvid"
    shutil.copytree(chart.CHART, there)
    shutil.copy(earlier, there / "values.yaml")
    return there


def names(values: Object, before: str = "") -> set[str]:
    """Every value by its path."""
    return {
        name
        for key, each in values.items()
        for name in (names(each, f"{before}{key}.") if isinstance(each, dict) and each else {f"{before}{key}"})
    }


def test_each_chart_that_had_other_values_is_kept() -> None:
    assert sorted(int(each.stem.partition("-")[0]) for each in EARLIER) == list(range(1, len(EARLIER) + 1))
    newest = max(EARLIER, key=lambda each: int(each.stem.partition("-")[0]))
    now = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert names(yaml.safe_load(newest.read_text())) == names(now), (
        "a value came or went: keep values.yaml as tests/cluster/values/NUMBER-WHAT.yaml, with the next number"
    )


@pytest.mark.parametrize("earlier", EARLIER, ids=lambda each: each.stem)
def test_values_of_earlier_charts_upgrade(earlier: Path, tmp_path: Path) -> None:
    old = reused(tmp_path, earlier)
    for values in (("trustDomain=example.org",), (*HOSTILE, "monitoring.serviceMonitor.enabled=true")):
        found = {(each["kind"], each["metadata"]["name"]): each for each in chart.render(*values, where=old)}
        now = documents(*values)
        # The old chart's own defaults, such as limits, are what --reuse-values asks for. What is there is all of it.
        assert found.keys() == now.keys()
        for name in ("podsvid-agent", "podsvid-signer"):
            assert found["ConfigMap", name]["data"] == now["ConfigMap", name]["data"]


def test_defaults_fill_what_is_missing_and_change_nothing_that_was_set(tmp_path: Path) -> None:
    old = reused(tmp_path, EARLIER[0])
    off = ("networkPolicy.enabled=false", "admissionPolicy.enabled=false", "uninstallGuard.enabled=false")
    rendered = chart.render("trustDomain=a", *off, "agent.resources.limits=null", "agent.tolerations=null", where=old)
    kinds = {each["kind"] for each in rendered}
    assert not kinds & {"NetworkPolicy", "ValidatingAdmissionPolicy", "Job"}
    (agent,) = (each for each in rendered if each["kind"] == "DaemonSet")
    spec = agent["spec"]["template"]["spec"]
    assert "limits" not in spec["containers"][0]["resources"]
    # A value that is null is one that nobody gave.
    assert spec["tolerations"] == [{"operator": "Exists"}]


def test_where_a_quota_has_to_name_priority_classes_it_does() -> None:
    def classes(*values: str, version: str = "1.34.0") -> list[str] | None:
        for each in chart.render("trustDomain=a", *values, flags=("--kube-version", version)):
            if each["kind"] == "ResourceQuota":
                (scope,) = each["spec"]["scopeSelector"]["matchExpressions"]
                assert (scope["scopeName"], scope["operator"]) == ("PriorityClass", "In")
                found: list[str] = scope["values"]
                return found
        return None

    both, on = ["system-node-critical", "system-cluster-critical"], "priorityQuota.enabled=true"
    assert classes() is None
    assert classes(on) == classes(version="v1.34.1-gke.1829001") == both
    assert classes(on, "signer.priorityClassName=ours") == ["system-node-critical"]
    assert classes(on, "agent.priorityClassName=ours", "signer.priorityClassName=") is None
    for kind, name in (("DaemonSet", "agent"), ("Deployment", "signer")):
        found = documents("trustDomain=a", f"{name}.priorityClassName=")[kind, f"podsvid-{name}"]
        assert "priorityClassName" not in found["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("values", "flags", "bound"),
    [
        ((), (), False),
        (("openshift.enabled=true",), (), True),
        ((), ("--api-versions", "security.openshift.io/v1"), True),
    ],
)
def test_openshift_binds_the_constraints_that_each_account_needs(
    values: tuple[str, ...], flags: tuple[str, ...], bound: bool
) -> None:
    found = {
        each["subjects"][0]["name"]: each["roleRef"]["name"].rpartition(":")[2]
        for each in chart.render("trustDomain=a", *values, flags=flags)
        if each["kind"] == "RoleBinding" and each["metadata"]["name"].endswith("-scc")
    }
    wanted = {"podsvid-agent": "privileged", "podsvid-signer": "nonroot-v2", "podsvid-uninstall-guard": "nonroot-v2"}
    assert found == (wanted if bound else {})
    assert all(accounts(*values) >= {each} for each in found)


def accounts(*values: str) -> set[str]:
    return {name for kind, name in documents("trustDomain=a", *values) if kind == "ServiceAccount"}


def test_the_commands_that_are_documented_label_the_namespace_before_they_wait_for_pods() -> None:
    """A cluster that enforces a standard for namespaces without a label admits no agent before."""
    pages = [chart.ROOT / "README.md", *(chart.ROOT / "docs").rglob("*.md")]
    found = [page.name for page in pages if "helm install podsvid" in (text := page.read_text())]
    assert {"README.md", "start.md", "operations.md"} <= set(found)
    for page in pages:
        text = page.read_text()
        assert "--create-namespace" not in text, page.name
        before, install, _ = text.partition("helm install podsvid")
        if install:
            assert "pod-security.kubernetes.io/enforce=privileged" in before, page.name


def test_every_template_has_all_values_before_it_reads_one() -> None:
    for each in (chart.CHART / "templates").iterdir():
        if not each.name.startswith("_"):
            assert each.read_text().startswith('{{- include "podsvid.complete" . -}}\n'), each.name


def test_values_are_documented_and_complete() -> None:
    """Every value of the schema has a default in values.yaml, so that a reader finds it."""
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())

    def missing(properties: Object, given: Object, path: str) -> list[str]:
        found = []
        for name, each in properties.items():
            if name == "global":
                continue
            if name not in given:
                found.append(f"{path}{name}")
            elif "properties" in each and name != "resources":
                found += missing(each["properties"], given[name], f"{path}{name}.")
        return found

    assert missing(schema["properties"], values, "") == []


# Another value for each that cannot be told from its default; where it takes other values to count, those.
OTHER: dict[str, object] = {
    "docsURL": "http://docs.example.org",
    "trustDomain": "other.org",
    "profile": "hostile",
    "openshift.enabled": True,
    "image.digest": f"sha256:{'0' * 64}",
    "image.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "x"}],
    "kubelet.root": "/other/kubelet",
    "drivers": ["other.example"],
    "agent.runDir": "/run/other",
    "agent.settings": {"log_level": "debug"},
    "signer.settings": {"log_level": "debug"},
    "signer.address": "elsewhere:1",
    "signer.openbao.address": "https://elsewhere:8200",
    "signer.certManager.issuerName": "other-ca",
    "signer.certManager.issuerKind": "ClusterIssuer",
    "signer.certManager.issuerGroup": "other.example",
    "signer.awsPca.arns": ["arn:aws:acm-pca:x"],
    "signer.googleCas.pool": "projects/p/locations/l/caPools/other",
    "signer.spire.address": "elsewhere:8081",
    "signer.spire.hostPath": "/run/other",
    "signer.spire.spiffeId": "spiffe://example.org/other",
    "signer.serviceAccountAnnotations": {"some": "other"},
    "signer.bundle.profile": "https_web",
    **{f"signer.{each}.serviceType": "NodePort" for each in ("bundle", "oidc")},
    "tracing.endpoint": "http://collector:4317",
    "monitoring.serviceMonitor.interval": "7s",
    **{f"{each}.tolerations": [{"key": "x"}] for each in ("agent", "signer")},
    **{f"{each}.resources": {"limits": {"memory": "9Gi"}} for each in ("agent", "signer")},
    **{f"{each}.affinity": {"nodeAffinity": {"x": "y"}} for each in ("agent", "signer")},
    **{f"networkPolicy.{each}": [{"ipBlock": {"cidr": "10.0.0.0/8"}}] for each in ("scrapers", "probers", "agents")},
    **{f"ttl.{each}": "7m" for each in ("x509", "jwt")},
    "ttl.podMax": "2h",
    "istio.names": ["ca.mesh.example"],
    "istio.ztunnels": [],
    "istio.clusters": ["other"],
}
SWITCHED_ON = (
    *(
        "signer.stateKeySecret=state-key",
        "startupTaint.enabled=true",
        "podCertificates.enabled=true",
        "istio.enabled=true",
        "monitoring.serviceMonitor.enabled=true",
    ),
    *("monitoring.rules.enabled=true", "monitoring.dashboard.enabled=true"),
    *("signer.openbao.address=https://openbao:8200", "signer.openbao.caSecret=openbao-ca"),
)


POOL = "projects/org-pki/locations/europe-west1/caPools/podsvid"
# Another CA above.
ALONE = ("signer.upstreamSecret", "signer.awsPca.arns", "signer.googleCas.pool")
BELOW_SPIRE = ("signer.spire.address=spire-server.spire:8081", "signer.spire.spiffeId=spiffe://a/podsvid-signer")
OF_SPIRE = tuple(
    f"signer.spire.{each}" for each in ("address", "csiDriver", "hostPath", "socket", "spiffeId", "svidSecret")
)
# What another value is refused without.
TOGETHER = {"signer.bundle.profile": ("signer.bundle.certSecret=tls",)}
OF_CERT_MANAGER = tuple(
    f"signer.certManager.{each}" for each in ("issuerName", "issuerKind", "issuerGroup", "namespace", "rootsConfigMap")
)


def leaves(values: Object, before: str = "") -> dict[str, object]:
    """Each value that one sets, with its default: resources and labels are set whole."""
    found: dict[str, object] = {}
    for key, each in values.items():
        path = f"{before}{key}"
        whole = path in OTHER or not isinstance(each, dict) or not each or key == "labels"
        found |= {path: each} if whole else leaves(each, f"{path}.")
    return found


def another(path: str, default: object) -> object:
    if path in OTHER:
        return OTHER[path]
    if f"{path}=true" in SWITCHED_ON:
        return False
    match default:
        case bool():
            return not default
        case int():
            return default + 1
        case dict():
            return {"some": "other"}
        case str():
            return "other"
    raise AssertionError(f"name another value of {path} in OTHER")


def test_every_value_is_read_by_something(tmp_path: Path) -> None:
    unread = []
    before = chart.template("trustDomain=example.org", *SWITCHED_ON)
    # There is one CA above: with the one the other is refused.
    no_openbao = [each for each in SWITCHED_ON if not each.startswith("signer.openbao.")]
    cert_manager = [*no_openbao, "signer.certManager.issuerName=org-ca"]
    google = [*no_openbao, f"signer.googleCas.pool={POOL}"]
    spire = [*no_openbao, *BELOW_SPIRE]
    bundle = [*SWITCHED_ON, "signer.bundle.enabled=true"]
    web = [*bundle, "signer.bundle.profile=https_web", "signer.bundle.certSecret=tls"]
    issuer = [*SWITCHED_ON, "signer.settings.jwt_issuer=https://oidc.example.org", "signer.oidc.certSecret=tls"]
    oidc = [*issuer, "signer.oidc.enabled=true"]
    others = {
        **{f"signer.bundle.{each}": bundle for each in ("profile", "serviceType", "serviceAnnotations")},
        **{f"signer.oidc.{each}": oidc for each in ("certSecret", "serviceType", "serviceAnnotations")},
        "signer.bundle.certSecret": web,
        "signer.oidc.enabled": issuer,
        **dict.fromkeys(ALONE, no_openbao),
        **dict.fromkeys(OF_CERT_MANAGER, cert_manager),
        "signer.googleCas.ca": google,
        **dict.fromkeys(OF_SPIRE, spire),
    }
    without = {path: chart.template("trustDomain=example.org", *switched_on) for path, switched_on in others.items()}
    for path, default in leaves(yaml.safe_load((chart.CHART / "values.yaml").read_text())).items():
        body = another(path, default)
        for name in reversed(path.split(".")):
            body = {name: body}
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(body))
        # Files of values give way to --set.
        switched_on = others.get(path, SWITCHED_ON)
        given = [each for each in ("trustDomain=example.org", *switched_on) if each.partition("=")[0] != path]
        given += TOGETHER.get(path, ())
        found = chart.template(*given, flags=("--values", str(tmp_path / "values.yaml")))
        if found == without.get(path, before):
            unread.append(path)
    assert unread == []


def test_another_login_at_openbao_has_what_it_needs_and_no_token(tmp_path: Path) -> None:
    files = "/var/run/podsvid-openbao-files"
    found = documents(
        *("trustDomain=a", "signer.openbao.address=https://bao:8200", "signer.openbao.caSecret=bao"),
        *("signer.settings.openbao_auth=approle", "signer.settings.openbao_role_id=some-role"),
        f"signer.settings.openbao_secret_id_file={files}/secret-id",
    )
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    assert (loaded.above.openbao.auth, str(loaded.above.openbao.secret_id_file)) == ("approle", f"{files}/secret-id")
    volumes = found["Deployment", "podsvid-signer"]["spec"]["template"]["spec"]["volumes"]
    assert "openbao" not in {each["name"] for each in volumes}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("signer.upstreamSecret=other", "there is one CA above"),
        ("signer.openbao.caSecret=", "name the Secret whose ca.crt"),
    ],
)
def test_an_openbao_that_the_signer_would_refuse_is_refused_before(more: str, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        chart.template(
            "trustDomain=a", "signer.openbao.address=https://bao:8200", "signer.openbao.caSecret=bao-ca", more
        )


def test_below_openbao_the_signer_has_a_token_for_it_alone_and_knows_whom_to_send_it_to(tmp_path: Path) -> None:
    found = documents("trustDomain=a", "signer.openbao.address=https://bao:8200", "signer.openbao.caSecret=bao-ca")
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    assert (loaded.upstream, loaded.above.openbao.role) == ("openbao", "podsvid-signer")
    pod = found["Deployment", "podsvid-signer"]["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}["openbao"]
    assert str(loaded.above.openbao.token_file) == f"{mounted}/token"
    assert str(loaded.above.openbao.ca_file) == f"{mounted}-files/ca.crt"
    (volume,) = [each for each in pod["volumes"] if each["name"] == "openbao"]
    (token,) = volume["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "openbao"
    (files,) = [each for each in pod["volumes"] if each["name"] == "openbao-files"]
    assert files["secret"]["secretName"] == "bao-ca"
    without = documents("trustDomain=a")
    assert "openbao" not in str(without["Deployment", "podsvid-signer"])
    assert "openbao" not in str(without["ConfigMap", "podsvid-signer"])


CERT_MANAGER = ("trustDomain=a", "signer.certManager.issuerName=org-ca")


def test_below_cert_manager_the_signer_may_do_what_it_does_in_that_namespace_and_no_more(tmp_path: Path) -> None:
    found = documents(*CERT_MANAGER, "signer.certManager.namespace=pki")
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    given = [
        each
        for each in permissions.permissions(found.values(), "podsvid-signer")
        if each.group == "cert-manager.io" or each.resource == "certificaterequests"
    ]
    assert {each.namespace for each in given} == {"pki"}

    async def run() -> None:
        at = StandIn()
        at.namespace = "pki"
        guarded = permissions.Guarded(at.api, given)
        remote = chosen(loaded.above, cast(KubeApi, guarded), SystemClock()).remote
        assert isinstance(remote, CertManager)
        request = certmanager_contract.a_request(remote)
        handle = await remote.submit(request.to_ca(TD))
        assert await remote.submit(request.to_ca(TD)) == handle
        await remote.poll(request.to_ca(TD), handle)
        await remote.forget(request.id, handle)
        assert (guarded.refused, permissions.unused(given, guarded.calls)) == (set(), [])

    asyncio.run(run())


def test_without_cert_manager_the_signer_may_nothing_of_its() -> None:
    found = [each for (_, name), each in documents("trustDomain=a").items() if name.startswith("podsvid-signer")]
    assert "cert-manager.io" not in str(found)


def test_below_cert_manager_roots_come_from_a_config_map(tmp_path: Path) -> None:
    found = documents(*CERT_MANAGER, "signer.certManager.rootsConfigMap=org-roots")
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    pod = found["Deployment", "podsvid-signer"]["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    (volume,) = [each for each in pod["volumes"] if each.get("configMap") == {"name": "org-roots"}]
    assert str(loaded.above.cert_manager.roots) == f"{mounted[volume['name']]}/ca.crt"
    assert loaded.above.cert_manager.namespace == loaded.namespace


def test_the_admission_policy_holds_the_signer_to_its_own_requests() -> None:
    policy = documents(*CERT_MANAGER)["ValidatingAdmissionPolicy", "podsvid-signer"]["spec"]
    assert ["certificaterequests"] in [each["resources"] for each in policy["matchConstraints"]["resourceRules"]]
    (rule,) = [each["expression"] for each in policy["validations"] if "cert-manager" in each["message"]]
    assert PREFIX in rule
    assert "'org-ca'" in rule


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((*CERT_MANAGER, "signer.upstreamSecret=other"), "there is one CA above"),
        (
            (*CERT_MANAGER, "signer.openbao.address=https://b:8200", "signer.openbao.caSecret=c"),
            "there is one CA above",
        ),
        (("trustDomain=a", "signer.certManager.rootsConfigMap=x"), "nothing is asked of cert-manager"),
        (("trustDomain=a", "signer.certManager.issuerName=a'b"), "issuerName"),
        ((*CERT_MANAGER, "signer.settings.cert_manager_namespace=elsewhere"), "cert_manager_namespace"),
    ],
)
def test_a_cert_manager_that_the_signer_would_refuse_is_refused_before(values: tuple[str, ...], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        chart.template(*values)


ARN = "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/11223344-1234-1122-2233-112233445566"
ROLE = "arn:aws:iam::111122223333:role/podsvid-signer"


def test_below_aws_the_signer_is_told_which_ca_and_its_account_which_role(tmp_path: Path) -> None:
    annotation = f"signer.serviceAccountAnnotations.eks\\.amazonaws\\.com/role-arn={ROLE}"
    found = documents("trustDomain=a", f"signer.awsPca.arns={{{ARN}}}", annotation)
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    assert (loaded.upstream, loaded.above.aws_pca.arns) == ("aws-pca", (ARN,))
    account = found["ServiceAccount", "podsvid-signer"]["metadata"]
    assert account["annotations"] == {"eks.amazonaws.com/role-arn": ROLE}
    assert "annotations" not in documents("trustDomain=a")["ServiceAccount", "podsvid-signer"]["metadata"]


@pytest.mark.parametrize(
    "values",
    [
        ("istio.rootConfigMap=podsvid-bundle",),
        ("istio.rootConfigMap=roots", "signer.settings.bundle_config_map=roots"),
        ("istio.rootConfigMap=podsvid-authority-abandoned",),
        ("istio.rootConfigMap=podsvid-signer",),
    ],
)
def test_one_config_map_is_not_two_of_podsvids(values: tuple[str, ...]) -> None:
    """Helm would say yes, and the signer not start."""
    with pytest.raises(ClusterError, match=r"istio\.rootConfigMap: .* is another ConfigMap of podsvid's"):
        chart.template("trustDomain=a", "istio.enabled=true", *values)
    # Without the port there is none.
    chart.template("trustDomain=a", *values)


def test_below_google_the_signer_is_told_which_pool(tmp_path: Path) -> None:
    found = documents("trustDomain=a", f"signer.googleCas.pool={POOL}", "signer.googleCas.ca=first")
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    assert (loaded.upstream, loaded.above.google_cas.pool, loaded.above.google_cas.ca) == ("google-cas", POOL, "first")
    with pytest.raises(ClusterError, match="nothing is asked of Google"):
        chart.template("trustDomain=a", "signer.googleCas.ca=first")


@pytest.mark.parametrize(
    ("more", "volume", "found"),
    [
        ([], {"csi": {"driver": "csi.spiffe.io", "readOnly": True}}, {"spire_agent_socket": "spire-agent.sock"}),
        (
            ["signer.spire.hostPath=/run/spire", "signer.spire.socket=api.sock"],
            {"hostPath": {"path": "/run/spire", "type": "Directory"}},
            {"spire_agent_socket": "api.sock"},
        ),
        (
            ["signer.spire.svidSecret=svid"],
            {"secret": {"secretName": "svid", "defaultMode": 0o440}},
            {"spire_svid_dir": ""},
        ),
    ],
)
def test_below_spire_the_signer_has_its_svid_from_where_it_is_told(
    tmp_path: Path, more: list[str], volume: Object, found: dict[str, str]
) -> None:
    made = documents("trustDomain=a", *BELOW_SPIRE, *more)
    (tmp_path / "signer.yaml").write_text(made["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    assert (loaded.upstream, loaded.spire_address) == ("spire", "spire-server.spire:8081")
    assert str(loaded.spire_spiffe_id) == "spiffe://a/podsvid-signer"
    pod = made["Deployment", "podsvid-signer"]["spec"]["template"]["spec"]
    (own,) = (each for each in pod["volumes"] if each["name"].startswith("spire"))
    assert {key: each for key, each in own.items() if key != "name"} == volume
    (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == own["name"])
    assert mount["readOnly"] is True
    wanted = {name: str(Path(mount["mountPath"]) / text) for name, text in found.items()}
    assert {name: str(getattr(loaded, name)) for name in wanted} == wanted
    with pytest.raises(ClusterError, match="nothing is asked of a SPIRE server"):
        chart.template("trustDomain=a", "signer.spire.svidSecret=svid")


@pytest.mark.parametrize("drivers", ["{csi.podsvid.io,csi.spiffe.io}", "{csi.podsvid.io,csi.spiffe.io=spire}"])
def test_the_svid_of_spires_comes_from_no_driver_of_podsvids_own(drivers: str) -> None:
    """The signer would wait for its own authority, or get an SVID of its own."""
    taken_over = ("trustDomain=a", *BELOW_SPIRE, f"drivers={drivers}")
    with pytest.raises(ClusterError, match=r"csi\.spiffe\.io is podsvid's own .*set signer\.spire\.hostPath"):
        chart.template(*taken_over)
    for other in ("hostPath=/run/spire", "svidSecret=svid", "csiDriver=csi.spire.example"):
        chart.template(*taken_over, f"signer.spire.{other}")


def test_by_which_id_spire_knows_the_signer_has_to_be_said() -> None:
    with pytest.raises(ClusterError, match="by which SPIFFE ID the SPIRE server knows the signer"):
        chart.template("trustDomain=a", BELOW_SPIRE[0])


@pytest.mark.parametrize(
    "other",
    [
        "signer.upstreamSecret=x",
        "signer.openbao.address=http://127.0.0.1:1",
        "signer.certManager.issuerName=x",
        f"signer.googleCas.pool={POOL}",
        "signer.spire.address=spire-server:8081",
    ],
)
def test_beside_a_clouds_ca_there_is_no_other(other: str) -> None:
    with pytest.raises(ClusterError, match="there is one CA above"):
        chart.template("trustDomain=a", f"signer.awsPca.arns={{{ARN}}}", other)


def test_every_key_of_a_secret_that_is_documented_is_read(tmp_path: Path) -> None:
    found = documents("trustDomain=a", "signer.upstreamSecret=upstream", "signer.stateKeySecret=state-key")
    (tmp_path / "signer.yaml").write_text(found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"])
    line = ["signer", "--config", str(tmp_path / "signer.yaml")]
    loaded = signer_config.load(_parser("signer").parse_args(line), {"PODSVID_IDENTITY": "b"})
    pod = found["Deployment", "podsvid-signer"]["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    secrets = {each["secret"]["secretName"]: mounted[each["name"]] for each in pod["volumes"] if "secret" in each}
    # Of a volume's tls.crt, tls.key and ca.crt: tests/unit/signer/test_upstream.py.
    assert str(loaded.upstream_dir) == secrets["upstream"]
    assert str(loaded.state_key_file) == f"{secrets['state-key']}/key"


def test_public_listeners_are_off_unless_said_and_by_whom_they_prove_themselves() -> None:
    assert ("Service", "podsvid-bundle") not in documents("trustDomain=example.org")
    web = ("trustDomain=example.org", "signer.bundle.enabled=true", "signer.bundle.profile=https_web")
    found = documents(*web, "signer.bundle.certSecret=tls")
    assert found["Service", "podsvid-bundle"]["spec"]["type"] == "ClusterIP"
    assert "/var/run/podsvid-bundle/tls.key" in found["ConfigMap", "podsvid-signer"]["data"]["signer.yaml"]
    oidc = ("trustDomain=example.org", "signer.oidc.enabled=true")
    for values, lacks in (
        (web, "signer.bundle.certSecret"),
        ((*web, "signer.bundle.profile=https_spiffe", "signer.bundle.certSecret=tls"), "signer.bundle.certSecret"),
        (oidc, "signer.oidc.certSecret"),
        ((*oidc, "signer.oidc.certSecret=tls"), "signer.settings.jwt_issuer"),
    ):
        with pytest.raises(ClusterError, match=lacks):
            chart.render(*values)
