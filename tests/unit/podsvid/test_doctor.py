"""`podsvid doctor` over a cluster in which nothing is wrong, and then one thing at a time."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import shapes
from podsvid.authority import CommandFailed
from podsvid.by_kubeconfig import NotAllowed, NotTold
from podsvid.doctor import command, kinds, nodes, rules, trust
from podsvid.doctor.kinds import KINDS, Weight
from podsvid.doctor.looking import look
from podsvid.doctor.rules import findings
from podsvid.waiting import Waiting
from tests.unit.podsvid.doctoring import (
    ADMISSION,
    AGENTS,
    CSI_NODES,
    DRIVERS,
    LEASES,
    NOW,
    OTHER,
    OWN,
    PEM,
    PODS,
    SIGNERS,
    TRUST_BUNDLES,
    FakeCluster,
    Objects,
    at,
    change,
    gone,
    healthy,
    named,
    pod,
    seen,
)  # fmt: skip

ROOT = Path(__file__).parents[3]


def test_where_nothing_is_wrong_nothing_is_found() -> None:
    assert seen(healthy()) == []


def not_ready(component: str) -> Callable[[Objects], None]:
    def changed(objects: Objects) -> None:
        workload = AGENTS if component == "agent" else SIGNERS
        objects[workload]["status"] |= {"numberReady": 1, "readyReplicas": 1}
        found = next(each for each in objects[PODS] if each["metadata"]["name"] == f"podsvid-{component}-n2")
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
        found["status"] = {
            "phase": "Running",
            "containerStatuses": [{"name": component, "state": waiting}],
            "conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status"}],
        }

    return changed


def surged(objects: Objects) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    new = pod("signer", "n2")
    new["metadata"]["name"] = "podsvid-signer-n3"
    new["status"] = {"phase": "Pending", "containerStatuses": [{"name": "signer", "state": waiting}]}
    objects[PODS].append(new)


def switched_off(objects: Objects) -> None:
    objects["/api/v1/nodes"][1]["status"] = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    objects[AGENTS]["status"]["numberReady"] = 1
    objects[PODS][1]["status"]["conditions"] = [{"type": "Ready", "status": "False"}]


def unready(name: str, message: str) -> Objects:
    return {"podsMatched": 1, "conditions": [{"type": name, "status": "False", "message": message}]}


BROKEN: dict[str, tuple[Callable[[Objects], None], str]] = {
    "AGENTS_MISSING": (gone(AGENTS), "namespace podsvid has no DaemonSet"),
    "SIGNERS_MISSING": (gone(SIGNERS), "namespace podsvid has no Deployment"),
    "AGENTS_NOT_READY": (
        not_ready("agent"),
        "1 of 2 agents are ready; pod podsvid-agent-n2 on node n2: CrashLoopBackOff",
    ),
    "SIGNERS_TOO_FEW": (not_ready("signer"), "1 of 2 signers are ready; pod podsvid-signer-n2 on node n2: Crash"),
    "SIGNERS_NOT_READY": (change(SIGNERS, "status", "readyReplicas", to=0), "0 of 2 signers are ready"),
    "UPGRADE_STUCK": (surged, "pod podsvid-signer-n3 on node n2: ImagePullBackOff no such image"),
    "UPGRADE_UNFINISHED": (change(AGENTS, "status", "updatedNumberScheduled", to=1), "1 of 2 agents are as"),
    "VERSION_OTHER": (
        change(SIGNERS, "metadata", "labels", to={"app.kubernetes.io/version": "0.0.9"}),
        "installed is 0.0.9; this command is of",
    ),
    "NODES_AWAY": (switched_off, "n2"),
    "DRIVER_MISSING": (change(DRIVERS, to=[]), "no CSIDriver object"),
    "DRIVER_WRONG": (change(DRIVERS, 0, "spec", "tokenRequests", to=[]), "csi.podsvid.io: tokenRequests is empty"),
    "DRIVER_UNREGISTERED": (change(CSI_NODES, 1, "spec", "drivers", to=None), "csi.podsvid.io on n2"),
    "DEFINITIONS_MISSING": (gone(OWN), "clusterworkloadidentities.podsvid.io, "),
    "KUBERNETES_TOO_OLD": (change("/version", "gitVersion", to="v1.29.14-gke.1"), "v1.29.14-gke.1; 1.30"),
    "KUBERNETES_UNTRIED": (change("/version", "gitVersion", to="v1.99.0"), "v1.99.0; tests run 1.35"),
    "AUTHORITY_ENDS": (
        change("authority", "authorities", 0, "not_after", to=at(hours=-1)),
        "KIND_X509 a1 at 2026-11-29T13",
    ),
    "BUNDLE_STALE": (change("/api/v1/configmaps", 0, "data", "ca.crt", to=OTHER), "ConfigMap shop/podsvid-bundle"),
    "AGENTS_SILENT": (
        lambda objects: objects["authority"].update(waiting_nodes=["n2"], agents_waiting=1),
        "1 of 2 agents at sequence 4: n2",
    ),
    "SIGNER_WARNS": (change("authority", "to_do", to=["activate a2"]), "activate a2"),
    "TAINT_LEFT": (change("/api/v1/nodes", 1, "spec", "taints", to=[{"key": nodes.TAINT}]), "on n2"),
    "VERSIONS_DIFFER": (
        change(PODS, 1, "spec", "containers", 0, "image", to="podsvid:2"),
        "podsvid:2 (podsvid-agent-n2)",
    ),
    "COULD_NOT_LOOK": (
        change("/api/v1/nodes", to=NotAllowed("you may not list nodes")),
        "nodes: you may not list nodes",
    ),
    "ADMISSION_MISSING": (
        gone(f"{ADMISSION}/validatingadmissionpolicybindings/podsvid-signer"),
        "ValidatingAdmissionPolicy podsvid-signer",
    ),
    "POLICY_MATCHES_NOTHING": (
        change(f"{OWN}/clusterworkloadidentities", 0, "status", "podsMatched", to=0),
        "all",
    ),
    "NO_POLICY": (change(f"{OWN}/clusterworkloadidentities", to=[]), "neither"),
    "MOUNT_NOT_SHARED": (
        change(AGENTS, "spec", "template", "spec", "containers", 0, "volumeMounts", 0, "mountPropagation", to="None"),
        "its mount of /var/lib/kubelet/pods has mountPropagation None",
    ),
    "CLOCKS_DIFFER": (
        change(LEASES, 1, "spec", "renewTime", to="2026-11-29T12:02:30Z"),
        "node n2 is 150 s ahead of the API server",
    ),
    "UPSTREAM_AWAY": (
        change("authority", "requested_x509", to={"at": "OpenBao", "said": ["first", "permission denied"]}),
        "OpenBao: permission denied",
    ),
    "UPSTREAM_ROOTS_REFUSED": (
        change("authority", "next", to=[f"{trust.ROOTS_KEPT}UPSTREAM_ROOTS_REFUSED: no root of the active authority"]),
        "x509: roots of the CA above: no root of the active authority",
    ),
    "POLICY_UNUSABLE": (
        change(f"{OWN}/workloadidentities", to=[named("bad", status=unready("Ready", "no such field"))]),
        "policy bad: no such field",
    ),
    "FEDERATION_FETCH_FAILED": (
        change(f"{OWN}/federatedtrustdomains", 0, "status", to=unready("Fetched", "connection refused")),
        "FederatedTrustDomain partner: connection refused",
    ),
}


def test_each_reason_is_broken_once() -> None:
    assert set(BROKEN) == set(KINDS)


@pytest.mark.parametrize("reason", BROKEN)
def test_one_thing_that_is_wrong_is_found_and_nothing_else(reason: str) -> None:
    breaking, said = BROKEN[reason]
    objects = healthy()
    breaking(objects)
    found = seen(objects)
    assert [each.reason for each in found] == [reason]
    assert said in found[0].seen
    assert found[0].to_do
    assert found[0].link == f"docs/troubleshooting.md#{reason.lower()}"


ROOT_ENDING = {"subject": "CN=root", "since": at(days=400), "not_after": at(days=-20), "authorities": ["a1"]}


def test_other_ways_of_the_same() -> None:
    for breaking, reason, said in (
        (change(LEASES, 0, "spec", "renewTime", to=at(minutes=3)), "CLOCKS_DIFFER", "n1 is ready, and 180 s behind"),
        (
            change(TRUST_BUNDLES, 0, "spec", "trustBundle", to=PEM + OTHER),
            "BUNDLE_STALE",
            "ClusterTrustBundle podsvid.io",
        ),
        (
            change("authority", "upstream_roots", to=[ROOT_ENDING]),
            "AUTHORITY_ENDS",
            "the root above, CN=root",
        ),
        (change("authority", "warnings", to=["no verifier knows"]), "SIGNER_WARNS", "no verifier knows"),
    ):
        objects = healthy()
        breaking(objects)
        (found,) = seen(objects)
        assert (found.reason, said in found.seen) == (reason, True), found


def test_what_is_on_its_way_is_not_wrong() -> None:
    objects = healthy()
    authority = objects["authority"]
    # A successor was prepared a minute ago: agents may still be at it, and what ends has it.
    authority["authorities"][0]["not_after"] = at(hours=-1)
    authority["authorities"].append(
        {"kind": "KIND_X509", "id": "a2", "stage": "prepared", "prepared_at": at(minutes=1)}
    )
    authority |= {"waiting_nodes": ["n2"], "agents_waiting": 1}
    # A node that is not ready says nothing of its clock, one that is not registered keeps its taint.
    objects["/api/v1/nodes"].append(named("n3", spec={"taints": [{"key": nodes.TAINT}]}, status={}))
    objects[LEASES].append(named("n3", spec={"renewTime": at(hours=1)}))
    # Another trust domain's bundle is another one.
    labels = {"podsvid.io/trust-domain": "example.net", "app.kubernetes.io/managed-by": "podsvid"}
    other = {
        "metadata": {"name": "podsvid-bundle", "namespace": "y", "labels": labels},
        "data": {"ca.crt": OTHER, "bundle.json": ""},
    }
    objects["/api/v1/configmaps"].append(other)
    assert seen(objects) == []


def test_who_may_look_at_nothing_is_told_so_of_each_part() -> None:
    objects = {path: NotAllowed("you may not") for path in healthy()} | {"/version": {"gitVersion": "v1.35.0"}}
    found = seen(objects)
    assert {each.reason for each in found} == {"COULD_NOT_LOOK"}
    # Several lists can be one part.
    assert len(found) >= 14
    assert all(each.seen.endswith(": you may not") for each in found)


def test_a_signer_that_cannot_be_asked_is_said_once_and_the_rest_is_looked_at() -> None:
    class Alone(FakeCluster):
        def signer(self) -> str:
            raise CommandFailed("no signer runs")

    objects = healthy()
    BROKEN["SIGNERS_NOT_READY"][0](objects)
    cluster: Any = Alone(objects)
    found = findings(look(cluster, Waiting(30.0)), NOW)
    assert [each.reason for each in found] == ["SIGNERS_NOT_READY", "COULD_NOT_LOOK"]
    assert found[1].seen == "a signer: no signer runs"


def test_a_signer_finds_its_own_socket_whatever_its_version() -> None:
    cluster: Any = FakeCluster(healthy())
    look(cluster, Waiting(30.0))
    shows = ["show", "--output", "json"]
    assert cluster.ran == [
        ("signer-1", "signer", ["podsvid", "authority", *shows]),
        ("signer-1", "signer", ["podsvid", "bundle", *shows]),
    ]


def test_without_an_api_server_it_is_an_error_and_no_finding() -> None:
    with pytest.raises(NotTold):
        seen({"/version": NotTold("unreachable")})


def test_many_are_named_up_to_a_number() -> None:
    objects = healthy()
    objects["authority"] |= {"waiting_nodes": [f"n{each}" for each in range(20)], "agents_waiting": 30, "agents": 40}
    (found,) = seen(objects)
    assert found.seen.endswith("n0, n1, n2, n3, n4 and 25 more")


def test_the_versions_are_those_that_the_chart_and_the_tests_have() -> None:
    chart = yaml.safe_load((ROOT / "deploy/chart/podsvid/Chart.yaml").read_text())
    assert f">=1.{rules.OLDEST}." in chart["kubeVersion"]
    pinned = (ROOT / "tests/cluster/tools/kubernetes/go.mod").read_text()
    assert f"k8s.io/kubernetes v1.{rules.TRIED}." in pinned


def run(monkeypatch: pytest.MonkeyPatch, objects: Objects, output: str) -> int:
    monkeypatch.setattr("podsvid.by_kubeconfig.KubeconfigCluster", lambda *_: FakeCluster(objects))
    parsed = argparse.Namespace(kubeconfig=None, context=None, podsvid_namespace="podsvid", timeout=30.0, output=output)
    return command.run(parsed, lambda _: None)


def test_worst_first_with_what_to_do_and_where_it_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = healthy()
    for reason in ("NO_POLICY", "TAINT_LEFT", "DRIVER_WRONG", "COULD_NOT_LOOK"):
        BROKEN[reason][0](objects)
    BROKEN["BUNDLE_STALE"][0](objects)
    assert run(monkeypatch, objects, "text") == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[::3]] == [
        "BROKEN DRIVER_WRONG",
        "WRONG BUNDLE_STALE",
        "UNKNOWN COULD_NOT_LOOK",
        "NOTE NO_POLICY",
    ]
    assert lines[1:3] == [f"  do: {KINDS['DRIVER_WRONG'].to_do}", "  see docs/troubleshooting.md#driver_wrong"]


def test_notes_alone_are_nothing_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = healthy()
    assert run(monkeypatch, objects, "text") == 0
    assert capsys.readouterr().out == "nothing is wrong\n"
    BROKEN["NO_POLICY"][0](objects)
    assert run(monkeypatch, objects, "text") == 0
    assert capsys.readouterr().out.endswith("nothing is wrong, but for what is noted above\n")


def test_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    objects = healthy()
    BROKEN["TAINT_LEFT"][0](objects)
    assert run(monkeypatch, objects, "json") == 3
    document = json.loads(capsys.readouterr().out)
    assert list(shapes.of("doctor").faults(document)) == []
    assert document == {
        "findings": [
            {
                "weight": "wrong",
                "reason": "TAINT_LEFT",
                "seen": "on n2",
                "to_do": KINDS["TAINT_LEFT"].to_do,
                "link": "docs/troubleshooting.md#taint_left",
            }
        ]
    }
    assert run(monkeypatch, objects, "yaml") == 3
    assert yaml.safe_load(capsys.readouterr().out) == document


def test_each_link_leads_to_a_heading() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    for reason in KINDS:
        assert f"\n### `{reason}`\n" in page
    assert all(each.weight is not Weight.NOTE or each in kinds.OWN for each in KINDS.values())
