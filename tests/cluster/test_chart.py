"""The chart without a cluster: what it renders, what it refuses, and that its parts fit the programs' own settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from agent import config as agent_config
from podsvid.cli import _parser
from signer import config as signer_config

from . import chart
from .api import Object
from .host import ClusterError

pytestmark = pytest.mark.timeout(5400)
GOLDEN = Path(__file__).parent / "golden" / "everything.yaml"
# Other than the defaults, wherever that changes what is rendered.
EVERYTHING = (
    *("trustDomain=example.org", "image.repository=mirror/podsvid", "image.tag=v2", "imagePullSecrets[0].name=pull"),
    *("kubelet.root=/var/lib/k0s/kubelet", "drivers={csi.podsvid.io,csi.spiffe.io=spire}", "audience=here"),
    *(
        "tracing.endpoint=http://collector:4317",
        "ttl.x509=30m",
        "ttl.jwt=1m",
        "agent.settings.sds_svid_name=mine",
        "agent.hostNetwork=true",
    ),
    *("agent.nodeSelector.a=b", "agent.podLabels.c=d", "signer.replicas=3", "signer.stateKeySecret=state-key"),
    *("signer.upstreamSecret=upstream", "signer.settings.dns_names={a.b,*.c}", "signer.settings.node_rate=7"),
    *(
        "startupTaint.enabled=true",
        "monitoring.serviceMonitor.enabled=true",
        "monitoring.rules.enabled=true",
        "signer.podAnnotations.e=f",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def programs(built: None) -> None:
    """Helm."""


def documents(*values: str) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in chart.render(*values)}


def test_lint() -> None:
    done = chart.helm("lint", "--strict", str(chart.CHART), "--set", "trustDomain=example.org")
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_switched_on_renders_as_recorded() -> None:
    rendered = chart.template(*EVERYTHING, flags=("--kube-version", "1.35.0"))
    if os.environ.get("PODSVID_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(rendered)
    assert rendered == GOLDEN.read_text(), "look at the difference; PODSVID_UPDATE_GOLDEN=1 records it"


def test_the_plain_manifests_are_what_the_chart_renders() -> None:
    shipped = (chart.ROOT / "deploy" / "manifests" / "podsvid.yaml").read_text()
    rendered = chart.template("trustDomain=example.org", flags=("--no-hooks", "--kube-version", "1.34.0"))
    assert shipped == (chart.ROOT / "deploy" / "manifests" / "namespace.yaml").read_text() + rendered, (
        "run `make manifests`"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("trustDomain=", "/trustDomain"),
        ("trustDomain=Upper", "/trustDomain"),
        ("ttl.x509=soon", "/ttl/x509"),
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
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        chart.template("trustDomain=example.org", value)


@pytest.mark.parametrize("values", [("trustDomain=example.org",), EVERYTHING])
def test_the_programs_take_the_settings_that_are_rendered(values: tuple[str, ...], tmp_path: Path) -> None:
    found = documents(*values)
    for name, load in (("agent", agent_config.load), ("signer", signer_config.load)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(found["ConfigMap", f"podsvid-{name}"]["data"][f"{name}.yaml"])
        pod = found["DaemonSet" if name == "agent" else "Deployment", f"podsvid-{name}"]["spec"]["template"]["spec"]
        arguments = [str(file) if each.startswith("/etc/podsvid/") else each for each in pod["containers"][0]["args"]]
        loaded = load(_parser(name).parse_args(arguments), {"PODSVID_NODE_NAME": "a", "PODSVID_IDENTITY": "b"})
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
    assert {subject["name"] for subjects in bound for subject in subjects} == {"podsvid-signer"}
    # A new cluster's nodes all have the taint that the signer is to take off.
    assert {"key": "podsvid.io/agent-not-ready", "operator": "Exists"} in signer["tolerations"]


def test_may_patch_nodes_only_for_the_startup_taint() -> None:
    for values, expected in ((("trustDomain=a",), False), (("trustDomain=a", "startupTaint.enabled=true"), True)):
        rules = documents(*values)["ClusterRole", "podsvid-signer"]["rules"]
        assert any("nodes" in rule["resources"] for rule in rules) is expected


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
