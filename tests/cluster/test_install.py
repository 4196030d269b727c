"""The chart and the image as they are shipped: installed, upgraded under traffic, rolled back, taken away."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.go_tools import Progress

from . import kubeconfig, product_image
from .api import Object
from .chart import CHART, ROOT, helm
from .cluster import Cluster
from .installation import (
    DRIVER,
    NAMESPACE,
    TAINT,
    component,
    empty,
    release,
    set_taints,
    settings,
    volumes_of_podsvid,
)
from .layout import NODE
from .traffic import Traffic, running, serial, target, workload
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)
LONG = bool(os.environ.get("PODSVID_LONG"))
PODS = 30 if LONG else 8
TRUST_DOMAIN = "cluster.test"
POLICY = "/apis/podsvid.io/v1alpha1/clusterworkloadidentities"


@pytest.fixture(scope="module")
def installed(cluster: Cluster, images: dict[str, str], progress: Progress) -> Iterator[float]:
    """The chart on a cluster without podsvid, first with the image of the commit before; the seconds that took."""
    empty(cluster)
    product_image.load(cluster, [name for which, name in images.items() if which != "more"])
    set_taints(cluster, [TAINT])
    started = time.monotonic()
    image = images.get("before", images["now"])
    try:
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
                *settings(cluster, image, TRUST_DOMAIN))  # fmt: skip
        took = time.monotonic() - started
        progress(f"helm install --wait: {took:.0f} s")
        yield took
    finally:
        for pod in cluster.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dtraffic")["items"]:
            cluster.pods.delete(pod["metadata"]["name"])
        set_taints(cluster, [])
        empty(cluster)


def test_the_life_of_an_installation(
    cluster: Cluster, images: dict[str, str], installed: float, progress: Progress, tmp_path: Path
) -> None:
    taints = cluster.api.get(f"/api/v1/nodes/{NODE}")["spec"].get("taints", [])
    assert TAINT["key"] not in [each["key"] for each in taints], "the start-up taint is still there"
    names = [f"traffic-{number}" for number in range(PODS)]
    started = time.monotonic()
    cluster.pods.create(workload(names[0]))
    wait_for("the first pod", lambda: running(cluster, names[0]), progress=progress)
    progress(f"first pod with an identity: {time.monotonic() - started:.1f} s after it was created")
    for name in names[1:]:
        cluster.pods.create(workload(name))
    for name in names:
        wait_for(name, lambda name=name: running(cluster, name), progress=progress)  # type: ignore[misc]
    folders = [target(cluster, name) for name in names]
    serials = [serial(folder) for folder in folders]
    assert len(set(serials)) == PODS

    async def changes() -> None:
        traffic = Traffic(folders)
        driving = asyncio.create_task(asyncio.to_thread(traffic.run))
        try:
            if "before" in images:
                await change("upgrade to this commit's image", "upgrade", "podsvid", str(CHART),
                             *settings(cluster, images["now"], TRUST_DOMAIN), "--wait", "--timeout", "5m")  # fmt: skip
                assert_image(cluster, images["now"])
                await change("rollback", "rollback", "podsvid", "1", "--wait", "--timeout", "5m")
                assert_image(cluster, images["before"])
                await change("upgrade again", "upgrade", "podsvid", str(CHART),
                             *settings(cluster, images["now"], TRUST_DOMAIN), "--wait", "--timeout", "5m")  # fmt: skip
            await change("new settings", "upgrade", "podsvid", str(CHART),
                         *settings(cluster, images["now"], TRUST_DOMAIN), "--set", "agent.settings.log_level=debug",
                         "--wait", "--timeout", "5m")  # fmt: skip
        finally:
            traffic.stop()
            await driving
        progress(f"{traffic.done} handshakes during upgrades and rollback, {len(traffic.failures)} failed")
        assert traffic.failures == []
        assert traffic.done > 100

    async def change(what: str, *arguments: str) -> None:
        began = time.monotonic()
        await asyncio.to_thread(release, cluster, *arguments)
        progress(f"{what}: {time.monotonic() - began:.0f} s")
        assert [serial(folder) for folder in folders] == serials, "SVIDs were minted again that were not due"

    asyncio.run(changes())

    # A pod on the new agent, and the signer's view of it.
    cluster.pods.create(workload("late"))
    wait_for("a pod after the upgrades", lambda: running(cluster, "late"), progress=progress)

    explain(cluster, progress)
    doctor(cluster, tmp_path, progress)
    refusals(cluster, progress)
    refused = helm("uninstall", "podsvid", "--namespace", NAMESPACE, "--timeout", "5m", kubeconfig=cluster.kubeconfig)
    assert refused.returncode != 0, refused.stdout
    said = refused.stdout + refused.stderr
    progress(f"helm uninstall with pods:\n{said}")
    assert f"REFUSED: {PODS + 1} pods mount {DRIVER}" in said
    assert "default/traffic-0, default/traffic-1" in said
    assert "\\n" not in said, "Helm shows line ends as it logs them"
    assert len(component(cluster, "agent")) == 1

    cluster.api.create(POLICY, {"apiVersion": "podsvid.io/v1alpha1", "kind": "ClusterWorkloadIdentity",
                                "metadata": {"name": "left"}, "spec": {}})  # fmt: skip
    for name in (*names, "late"):
        cluster.pods.delete(name)
    # Without a grace period they are gone from the API before kubelet has taken their volumes down.
    wait_for("the pods' volumes to be gone", lambda: volumes_of_podsvid(cluster) == [], progress=progress)
    out = release(cluster, "uninstall", "podsvid", "--wait", "--timeout", "5m")
    progress(f"helm uninstall:\n{out}")
    assert "CustomResourceDefinition" in out, "what stays is not said"
    assert "What stays: 1 policies" in out
    for each in ("Secret podsvid-authority", "ConfigMaps podsvid-bundle", "Lease podsvid-signer", "#uninstall"):
        assert each in out
    wait_for("podsvid's pods to be gone", lambda: not component(cluster, "agent") and not component(cluster, "signer"),
             progress=progress)  # fmt: skip
    assert left_on_the_node(cluster) == []
    assert left_in_the_namespace(cluster) <= SAID
    assert cluster.api.get(f"{POLICY}/left")["metadata"]["name"] == "left"
    cluster.api.remove(f"{POLICY}/left")


def explain(cluster: Cluster, progress: Progress) -> None:
    """`podsvid explain` from outside of the cluster, with nothing but a kubeconfig."""

    def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "podsvid", "explain", *arguments, "--kubeconfig", str(cluster.kubeconfig)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    told = asked("default/late")
    progress(f"podsvid explain default/late:\n{told.stdout}{told.stderr}")
    assert told.returncode == 0, told.stdout + told.stderr
    found = json.loads(asked("default/late", "--output", "json").stdout)
    assert found["missing"] == {}
    assert found["policy"]["spiffe_id"] == f"spiffe://{TRUST_DOMAIN}/ns/default/sa/default"
    (volume,) = found["on_node"]["volumes"]
    assert int(volume["serial"], 16) == serial(target(cluster, "late"))
    assert volume["spiffe_id"] == found["policy"]["spiffe_id"]
    nobody = asked("default/nobody")
    assert nobody.returncode == 1
    assert "pod default/nobody does not exist" in nobody.stderr


def doctor(cluster: Cluster, folder: Path, progress: Progress) -> None:
    """With the rights that its page has nothing of a whole installation is wrong, and what is broken is found."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    given = list(yaml.safe_load_all(textwrap.dedent(page[page.index("    apiVersion: rbac") :])))
    account, access = "podsvid-doctor", folder / "doctor"
    rbac, own = "/apis/rbac.authorization.k8s.io/v1", "/api/v1/namespaces/default/serviceaccounts"
    driver = f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}"
    made = []

    def create(path: str, body: Object) -> None:
        cluster.api.create(path, body)
        made.append(f"{path}/{body['metadata']['name']}")

    def asked() -> tuple[int, dict[str, str]]:
        line = [sys.executable, "-m", "podsvid", "doctor", "--kubeconfig", str(access), "-o", "json"]
        told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert told.returncode in (0, 3), told.stderr
        found = json.loads(told.stdout)["findings"]
        progress(f"podsvid doctor: {told.returncode}, {[(each['reason'], each['seen']) for each in found]}")
        return told.returncode, {each["reason"]: each["weight"] for each in found}

    try:
        create(own, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}})
        kubeconfig.with_token(access, cluster.kubeconfig, cluster.api.token(account, "default"))
        # Who may nothing is told so, and nothing else.
        assert asked() == (3, {"COULD_NOT_LOOK": "unknown"})
        for each in given:
            namespace = each["metadata"].get("namespace")
            place = f"{rbac}/namespaces/{namespace}" if namespace else rbac
            create(f"{place}/{each['kind'].lower()}s", each)
            binding: Object = {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": f"{each['kind']}Binding",
                "metadata": each["metadata"],
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": each["kind"], "name": account},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
            }
            create(f"{place}/{each['kind'].lower()}bindings", binding)

        def well() -> bool | str:
            code, found = asked()
            assert "COULD_NOT_LOOK" not in found, "its page leaves a right out"
            return (code == 0 and set(found.values()) <= {"note"}) or str(found)

        wait_for("the doctor to find nothing wrong", well, progress=progress)
        cluster.api.patch(driver, {"spec": {"requiresRepublish": False}})
        assert "DRIVER_WRONG" in asked()[1]
    finally:
        cluster.api.patch(driver, {"spec": {"requiresRepublish": True}})
        for path in made:
            cluster.api.remove(path)


def refusals(cluster: Cluster, progress: Progress) -> None:
    """Why a pod does not start is in its events; once that is mended it starts by itself."""
    deny = {"podSelector": {"matchLabels": {"may": "not"}}, "deny": True}
    cluster.api.create(POLICY, {"apiVersion": "podsvid.io/v1alpha1", "kind": "ClusterWorkloadIdentity",
                                "metadata": {"name": "denied"}, "spec": deny})  # fmt: skip
    wait_for("the policy to count", lambda: "status" in cluster.api.get(f"{POLICY}/denied"), progress=progress)
    denied, named = workload("denied"), workload("named")
    denied["metadata"]["labels"]["may"] = "not"
    named["spec"]["volumes"][0]["csi"]["volumeAttributes"] = {"dnsNames": "payments.svc"}
    for body, reason in ((denied, "POLICY_DENIED"), (named, "DNS_NAME_DENIED")):
        name = str(body["metadata"]["name"])
        cluster.pods.create(body)

        def said(name: str = name, reason: str = reason) -> bool | str:
            lines = [line for line in cluster.pods.describe(name).splitlines() if reason in line]
            sources = {source for source in ("FailedMount", "IdentityRefused") for line in lines if source in line}
            return len(sources) == 2 or str(lines)

        wait_for(f"{reason} from kubelet and from the signer in the pod's events", said, progress=progress)
        assert running(cluster, name) is not True
    cluster.api.remove(f"{POLICY}/denied")
    wait_for("the pod to start by itself", lambda: running(cluster, "denied"), progress=progress)
    for name in ("denied", "named"):
        cluster.pods.delete(name)


def assert_image(cluster: Cluster, image: str) -> None:
    for name in ("agent", "signer"):
        pods = [each for each in component(cluster, name) if "deletionTimestamp" not in each["metadata"]]
        assert {each["spec"]["containers"][0]["image"] for each in pods} == {image}


# Kubernetes' own, and what the guard says.
SAID = {
    *("ConfigMap kube-root-ca.crt", "ServiceAccount default"),
    *("Secret podsvid-authority", "ConfigMap podsvid-authority-abandoned", "ConfigMap podsvid-bundle"),
    *("Lease podsvid-signer", "ConfigMap podsvid-agents-*"),
}


def left_in_the_namespace(cluster: Cluster) -> set[str]:
    """What a person finds there after `helm uninstall`, signers' names aside."""
    found = set()
    for path in ("configmaps", "secrets", "serviceaccounts", "services"):
        kind = {"configmaps": "ConfigMap", "secrets": "Secret", "serviceaccounts": "ServiceAccount"}.get(
            path, "Service"
        )
        for each in cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/{path}")["items"]:
            name = each["metadata"]["name"]
            found.add(f"{kind} {'podsvid-agents-*' if name.startswith('podsvid-agents-') else name}")
    for each in cluster.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases")["items"]:
        found.add(f"Lease {each['metadata']['name']}")
    return found


def left_on_the_node(cluster: Cluster) -> list[str]:
    """Mounts, sockets and files of podsvid that outlive it. Its empty run directory goes with the next reboot."""
    root = cluster.kubelet_root
    found = volumes_of_podsvid(cluster)
    found += [str(path) for path in (root / "plugins_registry").glob("*podsvid*")]
    found += [str(path) for path in (root / "plugins").glob(f"{DRIVER}*")]
    return found + [str(path) for path in cluster.layout.agent_run_dir.rglob("*")]


_OWN = re.compile(r"/site-packages/(agent|csi|podsvid|runtime|signer|svid)/")
# Every module of podsvid, but for those that need libraries of an extra, which is no part of the image; and the help
# of every command, for which each is imported.
EVERYTHING = """
import contextlib, importlib, io, json, pkgutil, ssl
import agent, csi, podsvid, runtime, signer, svid
from podsvid.cli import _COMMANDS as commands, main

extras, failed, modules = {"boto3", "botocore", "pkcs11", "google.cloud", "google.api_core", "google.auth"}, [], 0
for package in (agent, csi, podsvid, runtime, signer, svid):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name.endswith("__main__"):
            continue
        modules += 1
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name not in extras:
                failed.append(f"{found.name}: {error}")
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([command, "--help"])
    if code != 0 or "usage: " not in said.getvalue():
        failed.append(f"{command}: {code}")
roots = len(ssl.create_default_context().get_ca_certs())
print(json.dumps({"failed": failed, "modules": modules, "commands": list(commands), "roots": roots}))
"""
LIBRARIES = """
import importlib.metadata, json
print(json.dumps(sorted(f"{found.name}=={found.version}" for found in importlib.metadata.distributions())))
"""
# What a node's disk has room for: goal 120 MiB, and what was reached on Debian 12 with some room above it.
MOST_ON_DISK = 108 * 2**20


def test_the_image_is_small_and_has_nothing_but_what_runs(images: dict[str, str], progress: Progress) -> None:
    size, files = product_image.unpacked(images["now"])
    progress(f"the image takes {size / 2**20:.0f} MiB of a node's disk")
    assert size < MOST_ON_DISK
    programs = {Path(path).name for path in files if Path(path).parent.name in ("bin", "sbin")}
    version = next(name for name in programs if name.startswith("python3."))
    assert programs == {"podsvid", "kubectl-podsvid", version}
    assert not [path for path in files if path.endswith((".py", ".pyi")) and not _OWN.search(path)]
    # What the licences ask for, and what scanners read.
    assert {"opt/podsvid/share/sbom.cdx.json", "usr/share/doc/libssl3/copyright", "var/lib/dpkg/status.d/libssl3",
            "usr/lib/python3.11/LICENSE.txt"} <= set(files)  # fmt: skip
    assert any(re.search(r"/grpcio-[^/]*\.dist-info/.*LICENSE", path) for path in files)
    # Whose release the packages are of: without that scanners match none of them (Trivy, Syft).
    assert {"etc/debian_version", "usr/lib/os-release"} <= set(files)


def test_every_module_and_command_starts_in_the_image(images: dict[str, str]) -> None:
    found = json.loads(product_image.run_in(images["now"], EVERYTHING))
    assert found["failed"] == []
    assert found["modules"] > 300
    assert {"agent", "signer", "authority", "node", "explain", "console", "quickstart", "help"} <= set(
        found["commands"]
    )
    # Its certificates are the base's, for what is asked of others over HTTPS.
    assert found["roots"] > 50


def test_an_image_on_top_has_more_libraries_and_the_same_of_its_own(images: dict[str, str]) -> None:
    more = images["more"]
    before, after = (json.loads(product_image.run_in(name, LIBRARIES)) for name in (images["now"], more))
    assert [each for each in after if each not in before] == ["asn1crypto==1.5.1", "python-pkcs11==0.10.1"]
    assert [each for each in after if each in before] == before
    assert product_image.run_in(more, "import pkcs11._pkcs11; print('loaded')") == "loaded\n"
    assert "usr/lib/vendor/libpkcs11.so" in product_image.unpacked(more)[1]


def test_a_command_in_a_pod_compiles_nothing_before_it_starts(images: dict[str, str]) -> None:
    loaded, compiled = product_image.compiled_at_start(images["now"], "podsvid.cli, podsvid.authority, podsvid.node")
    assert loaded > 100
    assert compiled == []
