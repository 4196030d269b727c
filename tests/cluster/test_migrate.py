"""`podsvid migrate` and `kubectl podsvid` with a real API server, kubectl and Helm; no node is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.go_tools import missing
from tests.interop.kubernetes import Kubernetes, kubernetes
from tests.spire_objects import CLUSTER, DOMAIN, entry
from tests.spire_objects import kubernetes as spire_object

from . import chart
from .host import ClusterError
from .programs import PROGRAMS, program

pytestmark = pytest.mark.timeout(600)
CRDS = chart.CHART / "files" / "crds"
PAGE = (chart.ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
ID = "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}"
APP = 'spiffe://{{ .TrustDomain }}/app/{{ index .PodMeta.Labels "app" }}'
# Twenty of all kinds: what becomes of each.
OBJECTS: tuple[tuple[Mapping[str, object], str], ...] = (
    (spire_object("ClusterSPIFFEID", "plain", spiffeIDTemplate=ID), "ClusterWorkloadIdentity plain"),
    (
        spire_object(
            "ClusterSPIFFEID",
            "all-of-it",
            spiffeIDTemplate=APP,
            podSelector={"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]},
            namespaceSelector={"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]},
            ttl="1h30m0s",
            jwtTtl="90s",
            dnsNameTemplates=["{{ .PodMeta.Namespace }}.example", "fixed.example"],
            workloadSelectorTemplates=["k8s:sa:billing"],
            federatesWith=["web.example"],
            autoPopulateDNSNames=True,
            hint="main",
        ),
        "ClusterWorkloadIdentity all-of-it",
    ),
    (
        spire_object(
            "ClusterSPIFFEID", "rest", spiffeIDTemplate=APP, fallback=True, podSelector={"matchLabels": {"app": "x"}}
        ),
        "ClusterWorkloadIdentity rest",
    ),
    (
        spire_object(
            "ClusterSPIFFEID",
            "container",
            spiffeIDTemplate=ID,
            workloadSelectorTemplates=["k8s:container-name:a"],
            podSelector={"matchLabels": {"app": "y"}},
        ),
        "",
    ),
    (
        spire_object(
            "ClusterSPIFFEID",
            "admin",
            spiffeIDTemplate=ID,
            admin=True,
            podSelector={"matchLabels": {"app": "z"}},
        ),
        "",
    ),
    (
        spire_object(
            "ClusterFederatedTrustDomain",
            "web",
            trustDomain="web.example",
            bundleEndpointURL="https://web.example/",
            bundleEndpointProfile={"type": "https_web"},
        ),
        "FederatedTrustDomain web",
    ),
    (
        spire_object(
            "ClusterFederatedTrustDomain",
            "spiffe",
            trustDomain="spiffe.example",
            bundleEndpointURL="https://spiffe.example:8443",
            bundleEndpointProfile={"type": "https_spiffe", "endpointSPIFFEID": "spiffe://spiffe.example/spire/server"},
            trustDomainBundle='{"keys": []}',
        ),
        "FederatedTrustDomain spiffe",
    ),
    (
        spire_object(
            "ClusterStaticEntry",
            "static",
            spiffeID=f"spiffe://{DOMAIN}/static",
            parentID=f"spiffe://{DOMAIN}/nodes",
            selectors=["k8s:sa:a", "k8s:ns-label:team:b"],
            x509SVIDTTL="30m0s",
        ),
        "ClusterWorkloadIdentity static",
    ),
)
ENTRIES: tuple[tuple[Mapping[str, object], str], ...] = (
    (entry("n1", "/nodes", "/spire/server", f"k8s_psat:cluster:{CLUSTER}"), ""),
    (entry("n2", "/pool", "/spire/server", f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_node_label:pool:x"), ""),
    (
        entry(
            *("e1", "/ns/shop/sa/billing", "/nodes", "k8s:ns:shop", "k8s:sa:billing"),
            x509_svid_ttl=3600,
            jwt_svid_ttl=300,
            hint="main",
            federates_with=["spiffe://web.example"],
        ),
        "WorkloadIdentity ns-shop-sa-billing",
    ),
    (
        entry("e2", "/web", "/nodes", "k8s:ns:shop", "k8s:pod-label:example.org/app:web", dns_names=["web.example"]),
        "ClusterWorkloadIdentity web",
    ),
    (
        # Texts that kubectl's reader takes for a truth and for numbers where they stand bare.
        entry("e3", "/ns/shop/x", "/nodes", "k8s:ns:bank", "k8s:pod-label:y:0o17", "k8s:pod-label:a:12345e6"),
        "ClusterWorkloadIdentity ns-shop-x",
    ),
    (entry("e4", "/part", "/pool", "k8s:ns:shop"), ""),
    (entry("e5", "/one", f"/spire/agent/k8s_psat/{CLUSTER}/x", "k8s:pod-uid:1"), ""),
    (entry("e6", "/image", "/nodes", "k8s:ns:shop", "k8s:container-image:a/b:c"), ""),
    (entry("e7", "/uid", "/nodes", "unix:uid:0"), ""),
    (entry("e8", "/down", "/nodes", "k8s:ns:shop", downstream=True), ""),
    (entry("e9", "/stored", "/nodes", "aws_secretsmanager:secretname:a", store_svid=True), ""),
    (entry("e10", "/ends", "/nodes", "k8s:ns:shop", expires_at="1900000000"), ""),
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    wanted = [each for each in PROGRAMS if each.name in ("etcd", "kube-apiserver", "kubectl", "helm")]
    lacking = missing(wanted)
    if lacking:
        raise ClusterError(
            f"not built yet: {', '.join(each.name for each in lacking)}; run python -m tests.cluster.harness build"
        )
    with kubernetes(tmp_path_factory.mktemp("api") / "k") as found:
        yield found


@pytest.fixture(scope="module")
def kubectl(
    api: Kubernetes, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """kubectl with this checkout's plug-in, as pip installs it."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = tomllib.loads((chart.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for name in ("podsvid", "kubectl-podsvid"):
        module, _, function = scripts[name].partition(":")
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        path.chmod(0o755)
    (folder / "kubectl").symlink_to(program("kubectl"))
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(chart.ROOT),
        "KUBECONFIG": str(api.kubeconfig),
        "HOME": str(folder),
    }

    def run(*line: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "kubectl"), *line]
        done = subprocess.run(
            command, input=given, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    run("apply", "-f", str(CRDS))
    run("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))
    for namespace in ("shop", "bank"):
        run("create", "namespace", namespace)
    return run


def test_the_plug_in(kubectl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert "kubectl-podsvid" in kubectl("plugin", "list").stdout
    assert re.fullmatch(r"podsvid \S+\n", kubectl("podsvid", "--version").stdout)
    assert kubectl("podsvid", "explain", "--help").stdout.startswith("usage: kubectl podsvid explain")
    wrong = kubectl("podsvid", "agnet", check=False)
    assert (wrong.returncode, "did you mean agent?; see kubectl podsvid --help" in wrong.stderr) == (2, True)
    # Asked of the real API server, by kubectl's own kubeconfig: there is no podsvid there.
    asked = kubectl("podsvid", "explain", "shop/absent", check=False)
    assert asked.returncode == 1
    assert asked.stderr.startswith("podsvid: ")


def test_an_api_server_takes_what_becomes_of_twenty_objects(
    kubectl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert len(OBJECTS) + len(ENTRIES) == 20
    objects, entries = tmp_path / "objects.json", tmp_path / "entries.json"
    listed = {"apiVersion": "v1", "kind": "List", "items": [each for each, _ in OBJECTS]}
    objects.write_text(json.dumps(listed))
    entries.write_text(json.dumps({"entries": [each for each, _ in ENTRIES], "next_page_token": ""}))
    line = ("podsvid", "migrate", "spire", str(objects), str(entries), "--trust-domain", DOMAIN)
    made = kubectl(*line, check=False)
    assert made.returncode == 3
    documents = list(yaml.safe_load_all(made.stdout))
    wanted = {became for _, became in (*OBJECTS, *ENTRIES) if became}
    assert {f"{each['kind']} {each['metadata']['name']}" for each in documents} == wanted
    kubectl("apply", "-f", "-", given=made.stdout)
    for each in documents:
        place = ("-n", each["metadata"]["namespace"]) if "namespace" in each["metadata"] else ()
        name = f"{each['kind'].lower()}s" if each["kind"] == "FederatedTrustDomain" else each["kind"].lower()
        there = json.loads(kubectl("get", name, each["metadata"]["name"], *place, "-o", "json").stdout)
        # The API server has left out nothing and refused nothing; priority is its default's.
        default = {"priority": 0} if "Workload" in each["kind"] else {}
        assert there["spec"] == {**default, **each["spec"]}
    # And away again, by the page's commands.
    lines = re.findall(r"^    kubectl (delete .*podsvid\.io/migrated-from=spire)$", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for each in lines:
        kubectl(*each.split())
    left = kubectl("get", "clusterworkloadidentities,workloadidentities,federatedtrustdomains", "-A", "-o", "name")
    assert left.stdout == ""


def test_the_chart_takes_what_becomes_of_values(
    kubectl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    given = {
        "app": {
            "trustDomain": DOMAIN,
            "name": "mine.example",
            "certificateRequestDuration": "2h30m",
            "approver": {"metrics": {"service": {"servicemonitor": {"enabled": True}}}},
        },
        "imagePullSecrets": [{"name": "pull"}],
        "nodeSelector": {"pool": "0o17", "y": "12345e6"},
        "openshift": {"securityContextConstraint": {"enabled": True}},
    }
    made = kubectl("podsvid", "migrate", "csi-driver-spiffe", "-", given=json.dumps(given), check=False)
    assert made.returncode == 3
    values = tmp_path / "values.yaml"
    values.write_text(made.stdout)
    rendered = chart.render(flags=("-f", str(values)))
    (agent,) = (each for each in rendered if each["kind"] == "DaemonSet")
    selector = agent["spec"]["template"]["spec"]["nodeSelector"]
    assert selector == {**selector, "pool": "0o17", "y": "12345e6"}
    assert {each["metadata"]["name"] for each in rendered if each["kind"] == "CSIDriver"} == {
        "csi.podsvid.io",
        "mine.example",
    }
