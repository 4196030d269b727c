"""The console on a real cluster, with the rights that its page names: rotation, refusal and outage are watched."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser import browser, program
from tests.go_tools import Progress
from tests.node.test_console import console

from . import kubeconfig, product_image
from .alone import audited
from .api import Object
from .chart import CHART
from .cluster import Cluster
from .installation import NAMESPACE, component, empty, release, settings
from .kubectl import Shell
from .signing import TRUST_DOMAIN
from .traffic import running, workload
from .waiting import wait_for

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(program() is None, reason="no browser here: apt-get install chromium-headless-shell"),
]
RBAC, ACCOUNT = "rbac.authorization.k8s.io/v1", "podsvid-looks-on"
PODS = "labelSelector=app%20in%20(well%2Crefused)"
# All that docs/console.md and docs/explain.md say.
RULES = {
    "ClusterRole": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
        {"apiGroups": ["podsvid.io"], "resources": ["federatedtrustdomains"], "verbs": ["list"]},
    ],
    "Role": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]},
    ],
}
DECLARED: list[Object] = [
    {
        "apiVersion": "podsvid.io/v1alpha1",
        "kind": "WorkloadIdentity",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": name}}, **more},
    }
    for name, more in (("well", {}), ("refused", {"deny": True}))
] + [
    {
        "apiVersion": "podsvid.io/v1alpha1",
        "kind": "FederatedTrustDomain",
        "metadata": {"name": "partner"},
        "spec": {
            "trustDomain": "partner.example",
            "bundleEndpointURL": "https://127.0.0.1:1/bundle",
            "bundleEndpointProfile": {"type": "https_web"},
        },
    }
]


@pytest.fixture
def installed(cluster: Cluster, images: dict[str, str]) -> Iterator[None]:
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    flags = settings(cluster, images["now"], TRUST_DOMAIN)
    try:
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
                *flags, "--set", "signer.replicas=1")  # fmt: skip
        cluster.api.apply(DECLARED)
        for name in ("well", "refused"):
            pod = workload(name)
            pod["metadata"]["labels"] = {"app": name}
            cluster.pods.create(pod)
        yield
    finally:
        for pod in cluster.api.get(f"/api/v1/namespaces/default/pods?{PODS}")["items"]:
            cluster.pods.delete(pod["metadata"]["name"])
        # Of it all, test_kubectl.py finds whatever has podsvid in its name.
        for kind in ("clusterroles", "clusterrolebindings"):
            cluster.api.remove(f"/apis/{RBAC}/{kind}/{ACCOUNT}")
        empty(cluster)


def looks_on(cluster: Cluster) -> str:
    """The kubeconfig of somebody who has RULES."""
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    documents: list[Object] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}}
    ]
    for kind, rules in RULES.items():
        metadata = {"name": ACCOUNT} if kind == "ClusterRole" else {"name": ACCOUNT, "namespace": NAMESPACE}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": ACCOUNT}
        documents.append({"apiVersion": RBAC, "kind": kind, "metadata": metadata, "rules": rules})
        binding = {"apiVersion": RBAC, "kind": f"{kind}Binding", "metadata": metadata}
        documents.append({**binding, "roleRef": role, "subjects": [subject]})
    cluster.api.apply(documents)
    path = cluster.directory / f"{ACCOUNT}.kubeconfig"
    kubeconfig.with_token(path, cluster.kubeconfig, cluster.api.token(ACCOUNT, NAMESPACE))
    return str(path)


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """As a machine that hangs has them."""
    for each in processes:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in processes:
            os.kill(each, signal.SIGCONT)


def test_a_rotation_a_refusal_and_an_outage_are_watched(
    cluster: Cluster, installed: None, progress: Progress, tmp_path: Path
) -> None:
    wait_for("the pod", lambda: running(cluster, "well"), progress=progress)
    began = time.monotonic()
    (agent,), (signer,) = (component(cluster, name) for name in ("agent", "signer"))
    processes = [cluster.pods.process(each["metadata"]["name"], NAMESPACE) for each in (agent, signer)]
    state = "document.querySelector('.space .row .state').textContent"
    with console("--kubeconfig", looks_on(cluster), "--every", "5s") as (url, _), browser() as page:
        page.size(1600, 700)
        page.open(url)
        page.until(f"{state} === 'ok'")
        rows = "[...document.querySelectorAll('.space .row:not([hidden])')]"
        (row,) = page.value(f"{rows}.map((row) => [...row.children].map((cell) => cell.textContent))")
        assert "default/well" in row
        assert f"spiffe://{TRUST_DOMAIN}/ns/default/sa/default" in row
        policy = "document.querySelector('.space .row .c-policy').textContent"
        assert page.value(policy) == "default/well"

        # A refusal: from the pod that does not start to what refused it.
        page.value("location.hash = '#pod/default/refused'")
        page.until("document.querySelectorAll('.way li.bad').length === 2")
        assert "POLICY_DENIED" in page.value("document.querySelector('.way').innerText")
        assert "default/refused" in page.value("document.querySelector('main').innerText")

        # Federation, with its last error.
        page.press("2")
        page.until("document.querySelector('.partner .error')")
        assert "partner.example" in page.value("document.querySelector('.partner').innerText")

        # A rotation, by somebody else.
        lanes = "[...document.querySelectorAll('.lane')].map((each) => each.title)"
        there = page.value(lanes)
        typed = Shell(tmp_path, cluster.kubeconfig)
        typed.done(f"kubectl -n {NAMESPACE} exec deploy/podsvid-signer -- podsvid authority rotate --no-wait")
        page.until(f"{lanes}.some((each) => !{json.dumps(there)}.includes(each))")
        page.press("1")
        serial = "document.querySelector('.space .row .c-serial').textContent"
        page.until(serial)
        before = page.value(serial)
        typed.done(f"kubectl -n {NAMESPACE} exec ds/podsvid-agent -c agent -- podsvid node rotate default/well")
        page.until(f"{serial} !== {json.dumps(before)}")

        # An outage of both: what was said last stays, with its age, and passes for nothing else.
        with stopped(*processes):
            page.until(f"/^was ok \\d+s ago$/.test({state})")
            page.press("4")
            page.until("document.querySelectorAll('.problem.bad .hint').length >= 2")
            assert "what is shown was said" in page.value("document.querySelector('.problem.bad').innerText")
        page.press("1")
        page.until(f"{state} === 'ok'")
    progress(f"watched in {time.monotonic() - began:.0f} s")
    calls = {f"{call.verb} {call.resource}" for call, _ in audited(cluster.audit_log, ACCOUNT)}
    assert calls == {"get pods", "list events", "list federatedtrustdomains", "list pods", "get pods/exec"}
