"""What people type: upgrades from every earlier chart, uninstalls, plain manifests applied and deleted, a drain.

All of it under pods that shake hands without a pause: none fails, nothing is lost. The tests follow one another on one
installation; lines of kubectl are those that the documentation has.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.go_tools import Progress

from . import product_image
from .api import ApiError, Object
from .chart import CHART, ROOT, helm
from .cluster import Cluster
from .installation import NAMESPACE, component, empty, release, settings, volumes_of_podsvid
from .kubectl import MANIFESTS, Shell, shell
from .layout import NODE
from .signing import BUNDLE, SECRET, TRUST_DOMAIN
from .test_chart import EARLIER
from .test_install import left_on_the_node
from .traffic import Traffic, running, serial, target, volume, workload
from .waiting import wait_for

pytestmark = pytest.mark.timeout(900)
POLICY = "/apis/podsvid.io/v1alpha1/clusterworkloadidentities"
PODS = "/api/v1/namespaces/default/pods"
APPS = "/apis/apps/v1/namespaces/default"
OTHER = "other"
STAYING = 4
README = (MANIFESTS / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
APPLY = "kubectl apply -f namespace.yaml -f crds.yaml -f admission.yaml -f podsvid.yaml -f protect.yaml"
CHECK = (
    "kubectl -n podsvid delete job podsvid-uninstall-guard --ignore-not-found",
    "kubectl apply -f uninstall/check.yaml",
    "until kubectl -n podsvid logs -f job/podsvid-uninstall-guard; do sleep 1; done",
)
ALLOW = "kubectl annotate --overwrite namespace podsvid podsvid.io/deletion=allowed"
DELETE = "kubectl delete -f uninstall/check.yaml -f podsvid.yaml"
PUBLIC = (
    "kubectl apply -f public/podsvid.yaml",
    (
        "kubectl -n podsvid create secret tls podsvid-oidc --cert=tls.crt --key=tls.key"
        " --dry-run=client -o yaml | kubectl apply -f -"
    ),
)
FOR_GOOD = (
    "kubectl delete -f crds.yaml -f namespace.yaml",
    "kubectl delete configmap --all-namespaces --field-selector metadata.name=podsvid-bundle",
    "kubectl delete -f admission.yaml -f protect.yaml",
)
TRY = "kubectl -n podsvid delete configmap podsvid-agent --dry-run=server"
PROTECTION = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/podsvid-protection"
DRAIN = "kubectl drain NODE --ignore-daemonsets"
UNCORDON = "kubectl uncordon NODE"
WITHOUT_SIGNERS = f"{DRAIN} --pod-selector=app.kubernetes.io/component!=signer"
# Of all that podsvid makes.
KINDS = (
    "crd,csidriver,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding,namespace,"
    "configmap,secret,serviceaccount,role,rolebinding,service,networkpolicy,pdb,lease,daemonset,deployment,job,pod"
)


def controlled(kind: str, name: str, **more: object) -> Object:
    """What keeps pods as `workload` makes them: nobody drains a pod that nobody would make again."""
    labels = {"app": "traffic", "of": name}
    template = {"metadata": {"labels": labels}, "spec": workload(name)["spec"]}
    spec: Object = {"selector": {"matchLabels": labels}, "template": template, **more}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": spec}


def pods_of(cluster: Cluster, label: str) -> list[Object]:
    """Those that run on the node that has a kubelet."""
    found: list[Object] = cluster.api.get(f"{PODS}?labelSelector={label.replace('=', '%3D')}")["items"]
    return [each for each in found if each["spec"].get("nodeName") == NODE]


def ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return {"Ready": "True"}.items() <= {each["type"]: each["status"] for each in conditions}.items()


def staying(cluster: Cluster) -> list[Object]:
    """The pods of DaemonSets, which no drain takes away."""
    return [pod for number in range(STAYING) for pod in pods_of(cluster, f"of=stays-{number}")]


def folders(cluster: Cluster) -> list[Path]:
    return [volume(cluster, pod["metadata"]["uid"]) for pod in staying(cluster)]


def up(cluster: Cluster) -> bool | str:
    """Whether agent and signers run, and none of before."""
    for kind, wanted in (("agent", 1), ("signer", 2)):
        found = component(cluster, kind)
        if len(found) != wanted or not all(map(ready, found)):
            return f"{kind}: {sum(map(ready, found))} ready of {len(found)}"
    return True


def down(cluster: Cluster) -> bool | str:
    found = component(cluster, "agent") + component(cluster, "signer")
    return not found or str([each["metadata"]["name"] for each in found])


def kept(cluster: Cluster) -> Object:
    """What must be the same whatever is done: the CA to the byte, the trust bundle, the policy and its conditions."""
    policy = cluster.api.get(f"{POLICY}/kept")
    return {
        "secret": cluster.api.get(SECRET)["data"],
        "bundle": cluster.api.get(BUNDLE)["data"],
        "policy": (policy["metadata"]["uid"], policy["spec"]),
        "conditions": {each["type"]: each["status"] for each in policy["status"]["conditions"]},
    }


@contextmanager
def shaking(cluster: Cluster, progress: Progress, what: str) -> Iterator[None]:
    """Handshakes of the staying pods while inside. None may fail, none mint what is not due, nothing get lost."""
    where, before = folders(cluster), kept(cluster)
    assert len(where) == STAYING
    serials, traffic = [serial(each) for each in where], Traffic(where)
    driving, began = threading.Thread(target=traffic.run, daemon=True), time.monotonic()
    driving.start()
    try:
        yield
    finally:
        traffic.stop()
        driving.join()
        took = time.monotonic() - began
        progress(f"{what}: {took:.0f} s, {traffic.done} handshakes, {len(traffic.failures)} failed")
    assert traffic.failures == []
    assert traffic.done > 100
    assert folders(cluster) == where
    assert [serial(each) for each in where] == serials, "SVIDs were minted again that were not due"
    assert kept(cluster) == before


def gone_and_applied_again(shell: Shell, cluster: Cluster, progress: Progress) -> None:
    """Without podsvid, who comes waits and who goes hangs; once it is back, both is over by itself."""
    wait_for("podsvid to be gone", lambda: down(cluster), progress=progress)
    leaving = target(cluster, "leaving")
    shell.done("kubectl delete pod leaving --wait=false")
    cluster.pods.create(workload("late"))
    assert (cluster.pods.find("leaving") or {})["metadata"]["deletionTimestamp"]
    assert str(leaving) in volumes_of_podsvid(cluster)
    assert running(cluster, "late") is not True
    assert APPLY in README
    began = time.monotonic()
    shell.done(APPLY)
    wait_for("podsvid", lambda: up(cluster), progress=progress)
    progress(f"podsvid is up {time.monotonic() - began:.0f} s after it was applied")
    wait_for("the pod that came", lambda: running(cluster, "late"), progress=progress)
    wait_for("the pod that left", lambda: cluster.pods.find("leaving") is None, progress=progress)
    assert str(leaving) not in volumes_of_podsvid(cluster)
    progress(f"who came runs and who left is gone {time.monotonic() - began:.0f} s after it was applied")
    # By the same CA, and the same policy.
    traffic = Traffic([target(cluster, "late"), *folders(cluster)])
    for _ in range(20):
        traffic.once()
    assert traffic.failures == []
    cluster.pods.delete("late")
    leaves(cluster, progress)


def leaves(cluster: Cluster, progress: Progress) -> None:
    """A pod that ends with a grace period."""
    body = workload("leaving")
    body["spec"]["terminationGracePeriodSeconds"] = 1
    cluster.pods.create(body)
    wait_for("the pod that leaves", lambda: running(cluster, "leaving"), progress=progress)


def allow(shell: Shell, progress: Progress) -> None:
    """Deletion, and wait until the API server has heard of it."""
    shell.done(ALLOW)
    wait_for("deletion to be allowed", lambda: shell.typed(TRY).returncode == 0, progress=progress)


def plain(shell: Shell, cluster: Cluster, progress: Progress) -> None:
    """By the manifests from here on, whether a test before has done so or not."""
    if cluster.api.find(PROTECTION) is None:
        release(cluster, "uninstall", "podsvid", "--no-hooks", "--timeout", "5m")
        wait_for("podsvid to be gone", lambda: down(cluster), progress=progress)
        shell.done(APPLY)
        wait_for("podsvid", lambda: up(cluster), progress=progress)
    wait_for("the protection", lambda: shell.typed(TRY).returncode != 0, progress=progress)


@pytest.fixture(scope="module")
def here(cluster: Cluster, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory, progress: Progress
         ) -> Iterator[Shell]:  # fmt: skip
    """The first chart's values installed by Helm, a policy, and pods that stay for as long as their node is there."""
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    there = tmp_path_factory.mktemp("typed")
    found = shell(cluster, there, images["now"], TRUST_DOMAIN)
    for earlier in EARLIER:
        shutil.copytree(CHART, there / earlier.stem)
        shutil.copy(earlier, there / earlier.stem / "values.yaml")
    try:
        release(cluster, "install", "podsvid", str(there / EARLIER[0].stem), "--create-namespace", "--wait",
                "--timeout", "5m", *settings(cluster, images["now"], TRUST_DOMAIN))  # fmt: skip
        spec = {"podSelector": {"matchLabels": {"app": "traffic"}}, "x509TTL": "50m"}
        cluster.api.create(POLICY, {"apiVersion": "podsvid.io/v1alpha1", "kind": "ClusterWorkloadIdentity",
                                    "metadata": {"name": "kept"}, "spec": spec})  # fmt: skip
        wait_for("the policy to count", lambda: "status" in cluster.api.get(f"{POLICY}/kept"), progress=progress)
        for number in range(STAYING):
            cluster.api.create(f"{APPS}/daemonsets", controlled("DaemonSet", f"stays-{number}"))
        wait_for("the pods that stay", lambda: sum(map(ready, staying(cluster))) == STAYING, progress=progress)
        leaves(cluster, progress)
        yield found
    finally:
        away(cluster, found, progress)


def away(cluster: Cluster, shell: Shell, progress: Progress) -> None:
    """Whatever a test that failed has left."""
    with suppress(ApiError):
        cluster.api.patch(f"/api/v1/nodes/{NODE}", {"spec": {"unschedulable": None}})
    forget_other(cluster)
    for path in ("deployments/web", *(f"daemonsets/stays-{each}" for each in range(STAYING))):
        cluster.api.remove(f"{APPS}/{path}")
    for name in ("late", "leaving"):
        cluster.api.remove(f"{PODS}/{name}")
    shell.typed(ALLOW)
    empty(cluster)


def test_upgrades_from_every_earlier_chart(here: Shell, cluster: Cluster, images: dict[str, str], progress: Progress
                                           ) -> None:  # fmt: skip
    own = settings(cluster, images["now"], TRUST_DOMAIN)
    with shaking(cluster, progress, f"upgrades from {len(EARLIER)} charts"):
        for earlier in EARLIER:
            began = time.monotonic()
            # As it was installed: its values and nothing of a chart before.
            if earlier != EARLIER[0]:
                release(cluster, "upgrade", "podsvid", str(here.folder.parent / earlier.stem), "--reset-values", *own)
            release(cluster, "upgrade", "podsvid", str(CHART), "--reuse-values", "--wait", "--timeout", "5m")
            progress(f"upgrade from {earlier.stem}: {time.monotonic() - began:.1f} s")
        release(cluster, "upgrade", "podsvid", str(CHART), "--reset-then-reuse-values", "--wait", "--timeout", "5m")


def test_helm_uninstalls_under_pods_and_manifests_go_on(here: Shell, cluster: Cluster, progress: Progress) -> None:
    with shaking(cluster, progress, "helm uninstall"):
        line = ("uninstall", "podsvid", "--namespace", NAMESPACE, "--timeout", "5m")
        refused = helm(*line, kubeconfig=cluster.kubeconfig)
        assert refused.returncode != 0
        assert "default/leaving" in refused.stdout + refused.stderr
        assert up(cluster) is True
        # Past its guard.
        release(cluster, "uninstall", "podsvid", "--no-hooks", "--timeout", "5m")
        gone_and_applied_again(here, cluster, progress)


def test_manifests_are_deleted_and_applied_again_under_pods(here: Shell, cluster: Cluster, progress: Progress) -> None:
    for line in (ALLOW, DELETE, *CHECK):
        assert line in README
    plain(here, cluster, progress)
    with shaking(cluster, progress, "plain manifests"):
        refused = here.typed("kubectl delete -f podsvid.yaml")
        assert refused.returncode != 0
        assert refused.stdout == "", "something was deleted all the same"
        assert "deploy/manifests/README.md says how it is taken away" in refused.stderr
        assert up(cluster) is True
        said = "".join(here.done(line) for line in CHECK)
        assert "default/leaving" in said, said
        allow(here, progress)
        here.done(DELETE)
        gone_and_applied_again(here, cluster, progress)


def test_a_node_is_drained_as_documented(here: Shell, cluster: Cluster, progress: Progress) -> None:
    for line in (DRAIN, WITHOUT_SIGNERS, UNCORDON):
        assert line in OPERATIONS
    plain(here, cluster, progress)
    # Of nobody's making: kubectl refuses to drain those.
    here.done("kubectl delete pod leaving --ignore-not-found")
    cluster.api.create(f"{APPS}/deployments", controlled("Deployment", "web", replicas=2))
    wait_for("what will be drained", lambda: sum(map(ready, pods_of(cluster, "of=web"))) == 2, progress=progress)
    (agent,) = component(cluster, "agent")
    signers = uids(component(cluster, "signer"))
    with shaking(cluster, progress, "drain"):
        # No other node takes a signer: the last one stays, and serves, for as long as kubectl is patient.
        alone = here.typed(f"{DRAIN} --timeout=8s".replace("NODE", NODE))
        assert alone.returncode != 0
        assert "would violate the pod's disruption budget" in alone.stderr
        wait_for("the pods to be evicted", lambda: pods_of(cluster, "of=web") == [], progress=progress)
        wait_for("their volumes to be gone", lambda: len(volumes_of_podsvid(cluster)) == STAYING, progress=progress)
        wait_for("the evicted signer to be gone", lambda: len(serving(cluster)) == 1, progress=progress)
        assert serving(cluster) < signers
        here.done(WITHOUT_SIGNERS.replace("NODE", NODE))

        cluster.api.create("/api/v1/nodes", another_node())
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(here.typed, DRAIN.replace("NODE", NODE))
            served = []
            while not draining.done():
                stand_in(cluster)
                served.append(bool(serving(cluster)))
                time.sleep(0.2)
        assert all(served), "the budget let the last one go"
        drained = draining.result()
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert f"node/{NODE} drained" in drained.stdout
        for said in (alone, drained):
            assert "emptyDir" not in said.stdout + said.stderr
        assert signers & uids(component(cluster, "signer")) == set()
        assert [agent["metadata"]["uid"]] == [
            each["metadata"]["uid"] for each in component(cluster, "agent") if each["spec"]["nodeName"] == NODE
        ]
        here.done(UNCORDON.replace("NODE", NODE))
        forget_other(cluster)
        wait_for("podsvid", lambda: up(cluster), progress=progress)
        wait_for("what was drained", lambda: sum(map(ready, pods_of(cluster, "of=web"))) == 2, progress=progress)


def uids(pods: Iterable[Object]) -> set[str]:
    return {each["metadata"]["uid"] for each in pods}


def serving(cluster: Cluster) -> set[str]:
    """Signers that are ready."""
    return uids(filter(ready, component(cluster, "signer")))


def another_node() -> Object:
    """A node of a control plane, where signers may go and workloads may not. Nothing runs there."""
    size = {"cpu": "4", "memory": "8Gi", "pods": "20"}
    taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": OTHER}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": OTHER, "labels": labels},
            "spec": {"taints": [taint]},
            "status": {"capacity": size, "allocatable": size, "conditions": [is_ready()]}}  # fmt: skip


def is_ready() -> Object:
    """What a kubelet says of its node, as of now."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}


def on_other(cluster: Cluster) -> list[tuple[str, Object]]:
    """Those of podsvid's pods, each with its path."""
    found = component(cluster, "signer") + component(cluster, "agent")
    there = [each for each in found if each["spec"].get("nodeName") == OTHER]
    return [(f"/api/v1/namespaces/{NAMESPACE}/pods/{each['metadata']['name']}", each) for each in there]


def stand_in(cluster: Cluster) -> None:
    """What that node's kubelet would say of it and of pods that came there: of a node that says nothing for 40 s or so
    no pod is ready."""
    cluster.api.patch(f"/api/v1/nodes/{OTHER}/status", {"status": {"conditions": [is_ready()]}})
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    for path, pod in on_other(cluster):
        if not ready(pod):
            cluster.api.patch(f"{path}/status", {"status": status})


def forget_other(cluster: Cluster) -> None:
    """That node, and what came there: nobody else would say that it has ended."""
    cluster.api.remove(f"/api/v1/nodes/{OTHER}")
    for path, _ in on_other(cluster):
        cluster.api.delete(path, grace_seconds=0)


def test_the_manifest_with_the_endpoints_goes_in_place_of_the_other(
    here: Shell, cluster: Cluster, progress: Progress
) -> None:
    def read(service: str, path: str) -> Object:
        """What anybody gets there, by the API server, which asks a replica as the Service does."""
        name, port = f"https:podsvid-{service}", service
        said = here.typed(f"kubectl get --raw /api/v1/namespaces/{NAMESPACE}/services/{name}:{port}/proxy{path}")
        return json.loads(said.stdout) if said.returncode == 0 else {}

    for line in PUBLIC:
        assert line in README
    plain(here, cluster, progress)
    here.done(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=oidc.example.org -keyout tls.key -out tls.crt"
    )
    with shaking(cluster, progress, "the endpoints"):
        for line in PUBLIC:
            here.done(line)
        wait_for("the bundle", lambda: bool(read("bundle", "/")), progress=progress)
        document = "/.well-known/openid-configuration"
        wait_for("the documents", lambda: bool(read("oidc", document)), progress=progress)
        wait_for("podsvid", lambda: up(cluster), progress=progress)
        published = json.loads(cluster.api.get(BUNDLE)["data"]["bundle.json"])
        assert read("bundle", "/")["keys"] == published["keys"]
        assert read("oidc", document)["issuer"] == "https://oidc.example.org"
        assert read("oidc", "/keys")["keys"]


def test_it_is_taken_away_and_leaves_nothing(here: Shell, cluster: Cluster, progress: Progress) -> None:
    for line in FOR_GOOD:
        assert line in README
    plain(here, cluster, progress)
    here.done("kubectl delete pod leaving --ignore-not-found")
    here.done("kubectl delete daemonset,deployment -l app=traffic")
    wait_for("the pods' volumes to be gone", lambda: volumes_of_podsvid(cluster) == [], progress=progress)
    said = "".join(here.done(line) for line in CHECK)
    progress(said)
    assert "no pod" in said
    allow(here, progress)
    here.done(DELETE)
    wait_for("podsvid to be gone", lambda: down(cluster), progress=progress)
    assert left_on_the_node(cluster) == []
    for line in FOR_GOOD:
        here.done(line)
    left = here.done(f"kubectl get {KINDS} --all-namespaces -o name")
    assert [each for each in left.splitlines() if "podsvid" in each] == []
