"""The chart on the test's cluster: values that fit it, and Helm's calls."""

from __future__ import annotations

from podsvid.uninstall_check import DEFINED
from tests.mounted import mount_lines

from .api import Object
from .chart import helm
from .cluster import Cluster
from .layout import NODE
from .waiting import wait_for

NAMESPACE = "podsvid"
DRIVER = "csi.podsvid.io"
TAINT = {"key": "podsvid.io/agent-not-ready", "effect": "NoSchedule"}


def settings(cluster: Cluster, image: str, trust_domain: str) -> list[str]:
    """Helm's flags for this cluster and an image that it has."""
    repository, _, tag = image.rpartition(":")
    values = {
        "trustDomain": trust_domain,
        "image.repository": repository,
        "image.tag": tag,
        "image.pullPolicy": "Never",
        "kubelet.root": str(cluster.kubelet_root),
        "agent.runDir": str(cluster.layout.agent_run_dir),
        "startupTaint.enabled": "true",
    }
    return [flag for name, value in values.items() for flag in ("--set", f"{name}={value}")]


def release(cluster: Cluster, *arguments: str) -> str:
    """Run Helm for the release; what it printed. Fails the test with the pods' state."""
    done = helm(*arguments, "--namespace", NAMESPACE, kubeconfig=cluster.kubeconfig)
    assert done.returncode == 0, f"helm {' '.join(arguments[:2])}: {done.stderr}\n{state(cluster)}"
    return done.stdout + done.stderr


def state(cluster: Cluster) -> str:
    """Pods of podsvid and what they say: for a failed test."""
    lines = []
    for pod in cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]:
        name = pod["metadata"]["name"]
        lines += [name, cluster.pods.describe(name, NAMESPACE)[-3000:]]
    return "\n".join(lines)


def component(cluster: Cluster, name: str) -> list[Object]:
    """The pods of agent or signer."""
    selector = f"labelSelector=app.kubernetes.io/component%3D{name}"
    items: list[Object] = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?{selector}")["items"]
    return items


def volumes_of_podsvid(cluster: Cluster) -> list[str]:
    """Where podsvid has something mounted for this cluster's pods."""
    return [
        line.split(" ")[4]
        for line in mount_lines()
        if " - tmpfs podsvid " in line and line.split(" ")[4].startswith(f"{cluster.kubelet_root}/")
    ]


def set_taints(cluster: Cluster, taints: list[Object]) -> None:
    """Give the node these start-up taints, in place of others of ours."""
    path = f"/api/v1/nodes/{NODE}"
    others = [each for each in cluster.api.get(path)["spec"].get("taints", []) if each["key"] != TAINT["key"]]
    # A patch, as kubelet may write the node's status meanwhile, such as which images it has now.
    cluster.api.patch(path, {"spec": {"taints": others + taints}})


def empty(cluster: Cluster) -> None:
    """Remove what other tests applied by hand: Helm would not take it over."""
    # The protection first, which refuses the rest.
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        for name in ("podsvid-protection", "podsvid-signer", "podsvid-trust-domain", "podsvid-pod-certificates"):
            cluster.api.remove(f"/apis/admissionregistration.k8s.io/v1/{kind}/{name}")
    cluster.api.remove(f"/api/v1/namespaces/{NAMESPACE}")
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for kind in ("clusterroles", "clusterrolebindings"):
        for name in ("podsvid-signer", "podsvid-uninstall-guard"):
            cluster.api.remove(f"{rbac}/{kind}/{name}")
    cluster.api.remove(f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}")
    defined = [f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{each}.podsvid.io" for each in DEFINED]
    for path in defined:
        cluster.api.remove(path)

    def gone() -> bool | str:
        # What is still there on its way out is there for Helm, and gone a moment later.
        left = [path for path in (f"/api/v1/namespaces/{NAMESPACE}", *defined) if cluster.api.find(path) is not None]
        return not left or ", ".join(left)

    wait_for("the namespace and the custom resources to be gone", gone, progress=lambda _: None)
