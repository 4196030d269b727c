"""Pods go from SPIRE and spiffe-csi to podsvid one by one, and back, on one node, as docs/migration.md says."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from podsvid import outcome
from tests.go_tools import Progress
from tests.interop.spire.page import MIGRATION, block, typed
from tests.mounted import mount_points

from . import product_image, spiffe_csi, spire
from .api import ApiError, Object
from .chart import ROOT
from .cluster import Cluster
from .image import TEST_IMAGE
from .installation import empty, release, settings
from .kubectl import Shell
from .waiting import wait_for

pytestmark = pytest.mark.timeout(900)
DRIVERS = "/apis/storage.k8s.io/v1/csidrivers"
STEPS = "From SPIRE + spiffe-csi"
SHOP = "shop"
PODS = tuple(f"web-{number}" for number in range(4))
MOUNT = "/spiffe-workload-api"
# Both sides renew while pods shake hands.
LIFE = "30"
SHORT = {"ttl.x509": f"{LIFE}s", "signer.settings.x509_min_ttl": "10s"}
PODSVID, SPIRE = "podsvid", "spire"


@dataclass(frozen=True)
class Told:
    """What a pod has said last: tests/conformance/go/client/mesh.go has its fields."""

    rounds: int
    reached: int
    made: int
    failed: int
    texts: list[str]
    through: set[str]
    serials: int


@dataclass
class Site:
    """SPIRE, podsvid, the pods that shake hands, and who types."""

    cluster: Cluster
    shell: Shell
    progress: Progress
    told: Path
    # spiffe-csi, until it is taken from the node.
    theirs: ExitStack

    def type(self, heading: str, begin: str, **instead: str) -> str:
        """What the page has there; what it printed."""
        return self.shell.done(typed(block(heading, begin, MIGRATION), instead), seconds=300)

    def all(self) -> dict[str, Told]:
        """What each pod that there ever was has told, by its name."""
        return {file.stem: _told(json.loads(file.read_text())) for file in self.told.glob("*.json")}

    def running(self) -> dict[str, str]:
        """The pod of each Deployment that is not being ended, by the Deployment's name."""
        pods = self.cluster.api.get(f"/api/v1/namespaces/{SHOP}/pods")["items"]
        alive = [each["metadata"] for each in pods if "deletionTimestamp" not in each["metadata"]]
        return {each["labels"]["app"]: each["name"] for each in alive}

    def shaken(self) -> None:
        """Each that runs has called all others anew, twice: the round that it is in began before."""
        before = {name: told.rounds for name, told in self.all().items()}

        def more() -> bool | str:
            now = self.all()
            late = [
                pod for pod in self.running().values() if pod not in now or now[pod].rounds < before.get(pod, 0) + 2
            ]
            return not late or f"{', '.join(late)} called nobody"

        wait_for("handshakes", more, progress=self.progress)

    def move(self, name: str, command: str) -> None:
        """What is typed for one of them, and what it does: another pod, and no other Deployment's."""
        before = self.running()
        self.shell.done(command, seconds=300)
        after = self.running()
        assert {each for each in PODS if before[each] != after[each]} == {name}
        self.shaken()

    def through(self) -> dict[str, set[str]]:
        """Whom the chain of each that runs has led through, by Deployment."""
        told = self.all()
        return {name: told[pod].through for name, pod in self.running().items()}


def _told(found: Object) -> Told:
    return Told(
        found["rounds"],
        found["reached"],
        found["made"],
        found["failed"],
        found["texts"] or [],
        set(found["through"]),
        len(found["serials"]),
    )


def identity(name: str) -> str:
    """Not what podsvid gives without a policy: the entry is migrated."""
    return f"spiffe://example.org/shop/{name}"


def deployment(name: str, told: Path) -> list[Object]:
    """One that serves, and calls the others, by the socket of its volume: the first of its volumes, as on the page."""
    meta = {"name": name, "namespace": SHOP}
    program = spire.programs()["go-client"]
    peers = [f"{identity(each)}@{each}.{SHOP}.svc.cluster.local:8443" for each in PODS if each != name]
    volumes: dict[str, tuple[str, Object]] = {
        "spiffe": (MOUNT, {"csi": {"driver": spiffe_csi.DRIVER, "readOnly": True}}),
        "programs": ("/programs", {"hostPath": {"path": str(program.parent)}}),
        "told": ("/told", {"hostPath": {"path": str(told)}}),
    }
    container = {
        "name": "main",
        "image": TEST_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/programs/go-client", "mesh", f"unix://{MOUNT}/spire-agent.sock"],
        "args": ["/told/$(POD).json", "/told/begin", *peers],
        "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": each, "mountPath": path, "readOnly": each != "told"} for each, (path, _) in volumes.items()
        ],
    }
    pod = {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 30,
        "containers": [container],
        "volumes": [{"name": each, **source} for each, (_, source) in volumes.items()],
    }
    spec = {
        "replicas": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta,
         "spec": {"selector": {"app": name}, "ports": [{"port": 8443}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec},
    ]  # fmt: skip


def commands(folder: Path) -> Path:
    """`spire-server` as the page says what that stands for, and this tree's `podsvid`."""
    found = folder / "bin"
    found.mkdir()
    for name, command in (
        ("spire-server", "kubectl -n spire-server exec spire-server-0 -c spire-server -- spire-server"),
        ("podsvid", f"env PYTHONPATH={ROOT} {sys.executable} -m podsvid"),
    ):
        (found / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (found / name).chmod(0o700)
    return found


def registered(shell: Shell) -> None:
    """SPIRE's entries: all nodes of the cluster, and each account of the shop on them."""
    nodes = "spiffe://example.org/nodes"
    create = "spire-server entry create"
    shell.done(f"{create} -node -spiffeID {nodes} -selector k8s_psat:cluster:{spire.CLUSTER}")
    for name in PODS:
        shell.done(
            f"{create} -spiffeID {identity(name)} -parentID {nodes} -x509SVIDTTL {LIFE} "
            f"-selector k8s:ns:{SHOP} -selector k8s:sa:{name}"
        )


def migrated(site: Site) -> None:
    """Step 2: the entries become policies."""
    lines = block("What `migrate spire` writes", "kubectl get", MIGRATION).splitlines()
    (show,) = [each for each in lines if "entry show" in each]
    (write,) = [each for each in lines if "podsvid migrate" in each]
    (apply,) = [each for each in lines if "kubectl apply" in each]
    site.shell.done(show)
    # No controller is here, whose configuration says the names.
    names = f"entries.json --trust-domain example.org --cluster-name {spire.CLUSTER}"
    made = site.shell.typed(typed(write, {"objects.json controller.json entries.json": names}))
    report = (site.shell.folder / "report.txt").read_text(encoding="utf-8")
    # The signer's settings are not known there, which let them live as short as they do; nothing else is to be told.
    assert made.returncode == outcome.NOT_NOW, report
    assert f"not quite the same ({len(PODS)}):" in report
    assert report.count(f"its SVIDs live 1m, not {LIFE}s, where the signer's settings are the defaults") == len(PODS)
    assert "not written (" not in report
    assert site.shell.done(apply).count("created") == len(PODS)


@pytest.fixture(scope="module")
def site(
    cluster: Cluster, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory, progress: Progress
) -> Iterator[Site]:
    """SPIRE below the common root, its pods; podsvid beside it, with an intermediate of the same root."""
    why = spire.lacking()
    if why:
        pytest.skip(why)
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    folder = tmp_path_factory.mktemp("typed")
    (folder / "deploy").symlink_to(ROOT / "deploy")
    told = cluster.directory / "told"
    told.mkdir()
    theirs = ExitStack()
    found = Site(cluster, Shell(folder, cluster.kubeconfig, (commands(folder),)), progress, told, theirs)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, told)
        found.type("A common root", "openssl req")
        found.shell.done("kubectl create namespace spire-server")
        found.type("A common root", "kubectl -n spire-server create secret")
        plugin = block("A common root", 'UpstreamAuthority "disk"', MIGRATION)
        spire.sockets(cluster).mkdir()
        stack.callback(shutil.rmtree, spire.sockets(cluster))
        stack.enter_context(spire.spire(cluster, (folder / "root.crt").read_text(), plugin, progress))
        cluster.api.apply([spiffe_csi.OBJECT])
        stack.callback(cluster.api.remove, f"{DRIVERS}/{spiffe_csi.DRIVER}")
        stack.enter_context(theirs)
        progress(f"volumes are of {theirs.enter_context(spiffe_csi.driver(cluster, spire.sockets(cluster)))}")
        registered(found.shell)
        stack.callback(uninstalled, cluster)
        installed(found, images["now"])
        stack.callback(removed, cluster, progress)
        cluster.api.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP}}])
        for name in PODS:
            cluster.api.apply(deployment(name, told))
        yield found


def installed(site: Site, image: str) -> None:
    """podsvid, as the page has it below the common root, with the values of this cluster."""
    flags = settings(site.cluster, image, "example.org")
    flags += [flag for name, value in SHORT.items() for flag in ("--set", f"{name}={value}")]
    site.type(
        "A common root",
        "kubectl create namespace podsvid",
        **{"--set image.repository=registry.example/podsvid": " ".join(flags)},
    )
    migrated(site)


def uninstalled(cluster: Cluster) -> None:
    release(cluster, "uninstall", "podsvid", "--ignore-not-found", "--no-hooks", "--timeout", "5m")
    empty(cluster)


def removed(cluster: Cluster, progress: Progress) -> None:
    """The shop, while whose volumes it has can still take them down. Nobody calls any more who would be cut off."""
    here = f"/api/v1/namespaces/{SHOP}"
    for name in PODS:
        cluster.api.remove(f"/apis/apps/v1/namespaces/{SHOP}/deployments/{name}")
    for pod in cluster.api.get(f"{here}/pods")["items"]:
        try:
            cluster.api.delete(f"{here}/pods/{pod['metadata']['name']}", grace_seconds=1)
        except ApiError as error:
            if error.status != 404:
                raise
    cluster.api.remove(here)
    wait_for("the shop to be gone", lambda: cluster.api.find(here) is None, progress=progress)


def test_all_pods_go_to_podsvid_and_back_and_no_handshake_fails(site: Site) -> None:
    def there() -> bool | str:
        told, running = site.all(), site.running()
        reached = {name: told[running[name]].reached for name in PODS if running.get(name) in told}
        return reached == dict.fromkeys(PODS, len(PODS) - 1) or f"each has reached {reached}"

    wait_for("all pods to reach each other", there, progress=site.progress)
    (site.told / "begin").touch()
    site.shaken()
    assert site.through() == {name: {SPIRE} for name in PODS}

    lines = block("One pod at a time", "kubectl -n shop patch", MIGRATION)
    undo = re.findall(r"`(kubectl -n shop rollout undo deployment web)`", MIGRATION.read_text())
    assert len(undo) == 1
    for name in PODS:
        site.move(name, typed(lines, {"deployment web": f"deployment {name}"}))
    assert site.through() == {name: {PODSVID} for name in PODS}
    told = site.shell.done("kubectl -n podsvid exec deploy/podsvid-signer -- podsvid authority show")
    assert told.count("root of the CA above") == 1, told

    status = lines.splitlines()[-1]
    assert "rollout status" in status
    for number, name in enumerate(PODS):
        # The page has two ways back.
        first = f"{undo[0]}\n{status}\n" if number % 2 else typed(lines, {'"csi.podsvid.io"': f'"{spiffe_csi.DRIVER}"'})
        site.move(name, typed(first, {"deployment web": f"deployment {name}"}))
    assert site.through() == {name: {SPIRE} for name in PODS}

    none_failed(site, 3 * len(PODS))


def test_a_node_is_taken_over_with_the_drivers_name_and_pods_are_restarted(site: Site) -> None:
    """Steps 3 and 4, on the one node that there is: manifests stay as they are."""
    if not (site.told / "begin").exists():
        pytest.skip("nobody shakes hands")
    begun = site.running()
    site.theirs.close()
    site.type(STEPS, "kubectl delete csidriver")
    site.shell.done("kubectl -n podsvid rollout status daemonset podsvid-agent")
    site.shaken()
    assert site.running() == begun
    assert site.through() == {name: {SPIRE} for name in PODS}
    restart = block(STEPS, "kubectl -n shop rollout restart", MIGRATION)
    for name in PODS:
        site.move(name, typed(restart, {"deployment web": f"deployment {name}"}))
    assert site.through() == {name: {PODSVID} for name in PODS}
    none_failed(site, 4 * len(PODS))

    def unmounted() -> bool | str:
        pods = site.cluster.api.get(f"/api/v1/namespaces/{SHOP}/pods")["items"]
        alive = {each["metadata"]["uid"] for each in pods if each["metadata"]["name"] in site.running().values()}
        mounted = [Path(each) for each in mount_points() if each.endswith("/volumes/kubernetes.io~csi/spiffe/mount")]
        left = {each.parts[-5] for each in mounted}
        return left == alive or f"{len(left - alive)} are there"

    wait_for("the volumes of spiffe-csi to be gone", unmounted, progress=site.progress)


def none_failed(site: Site, pods: int) -> None:
    """Since the beginning, of any pod that there ever was."""
    told = site.all()
    failed, texts = sum(each.failed for each in told.values()), [f"{name}: {each.texts}" for name, each in told.items()]
    made, svids = sum(each.made for each in told.values()), sum(each.serials for each in told.values())
    site.progress(f"{made} handshakes of {len(told)} pods with {svids} SVIDs, {failed} failed")
    assert len(told) == pods
    assert failed == 0, texts
    assert made > 40 * pods
