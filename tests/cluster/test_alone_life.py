"""A replica at a real API server under the chart's permissions: none that it lacks, none that it does not use."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.authority.connection import SignerSettings
from agent.authority.signer import SignerAuthority
from agent.errors import AgentError
from podsvid import authority as authority_command
from runtime.clock import SystemClock
from signer import config
from signer.cluster.kube_client import KubeClient
from signer.daemon import Replica
from signer.model import PodClaim
from svid.spiffeid import TrustDomain
from tests import permissions
from tests.go_tools import Progress
from tests.node.test_signer_authority import passed_on, request
from tests.permissions import Call, Permission
from tests.pod_certificates import body, pod_of, source
from tests.ports import free_port
from tests.unit.signer.test_permissions import OLD, OURS, TAINT

from . import chart
from .alone import TRUST_DOMAIN, Alone, api_server, audited
from .api import Object
from .certificates import ask, kubelet
from .signing import AUDIENCE, DRIVER, NAMESPACE

pytestmark = pytest.mark.timeout(600)
VALUES = ("startupTaint.enabled=true", "podCertificates.enabled=true", "signer.settings.bundle_namespaces=wanted=yes")
CTB = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles"
PODS, ACCOUNT = "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/serviceaccounts/web"
PATIENCE = 90.0
# The API server asks itself for this one, when a bundle is written that names the signer.
ATTEST = Call("attest", "certificates.k8s.io", "signers", "", "podsvid.io/spiffe")
# And for this one, when a request is decided.
SIGN = Call("sign", "certificates.k8s.io", "signers", "", "podsvid.io/spiffe")
# What only a race brings, or ten minutes: the first mint of a pod that no watch has told of yet, and one of a pod that
# is deleted, by a token that has ended. tests/unit/signer/test_permissions.py has both.
RARE = {"get pods", "get serviceaccounts"}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("signer.authority.acknowledgements.WRITE_SECONDS", 0.2)
    monkeypatch.setattr("signer.authority.acknowledgements.IDLE_SECONDS", 0.5)
    monkeypatch.setattr("signer.daemon.REFRESH_SECONDS", 0.2)
    monkeypatch.setattr("signer.telling.REFRESH_SECONDS", 0.2)


@pytest.fixture
def alone(built: None, tmp_path: Path, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path, progress) as found:
        found.api.apply([_namespace(NAMESPACE, wanted="yes")])
        found.install(*VALUES)
        world(found)
        yield found


def _namespace(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _object(kind: str, name: str, version: str = "v1", namespace: str = "", **content: object) -> Object:
    labels = content.pop("labels", {})
    metadata = {"name": name, "labels": labels, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def world(alone: Alone) -> None:
    """Something to do for each of the signer's loops, as tests/unit/signer/test_permissions.py has it in memory."""
    root = (alone.layout.pki / "ca.crt").read_text()
    gone = {"version": "1", "identity": "gone", "written_at": OLD.isoformat(), "nodes": "{}"}
    alone.api.apply(
        [
            _namespace("default", wanted="yes"),
            _namespace("stale", wanted="yes"),
            _namespace("elsewhere"),
            *(
                _object("ConfigMap", "podsvid-bundle", namespace=name, labels=OURS, data={"ca.crt": "old"})
                for name in ("stale", "elsewhere")
            ),
            _object(
                "ConfigMap",
                "podsvid-agents-gone",
                namespace=NAMESPACE,
                labels={"podsvid.io/agents-of": "gone"},
                data=gone,
            ),
            *(
                _object(
                    "ClusterTrustBundle",
                    f"podsvid.io:spiffe:{domain}",
                    "certificates.k8s.io/v1beta1",
                    labels=OURS,
                    spec={"trustBundle": root, "signerName": "podsvid.io/spiffe"},
                )
                for domain in (TRUST_DOMAIN, "gone.test")
            ),
            _object("WorkloadIdentity", "a", "podsvid.io/v1alpha1", "default", spec={}),
            _object("ClusterWorkloadIdentity", "b", "podsvid.io/v1alpha1", spec={}),
            # Nobody is there, and its status says so.
            _object(
                "FederatedTrustDomain",
                "partner",
                "podsvid.io/v1alpha1",
                spec={
                    "trustDomain": "partner.test",
                    "bundleEndpointURL": "https://127.0.0.1:1/",
                    "bundleEndpointProfile": {"type": "https_web"},
                },
            ),
            _object("Node", "node-a", spec={"taints": [TAINT]}),
            _object("CSINode", "node-a", "storage.k8s.io/v1", spec={"drivers": [{"name": DRIVER, "nodeID": "node-a"}]}),
            _object("ServiceAccount", "web", namespace="default"),
        ]
    )


def _pod(alone: Alone, name: str, account: str, namespace: str) -> Object:
    csi = {"name": "identity", "csi": {"driver": DRIVER, "readOnly": True}}
    spec = {
        "serviceAccountName": account,
        "nodeName": "node-a",
        "containers": [{"name": "main", "image": "none"}],
        "volumes": [csi] if account == "web" else [],
    }
    path = f"/api/v1/namespaces/{namespace}/pods"
    return alone.api.create(path, _object("Pod", name, namespace=namespace, spec=spec))


@asynccontextmanager
async def replica(alone: Alone, folder: Path, *more: str) -> AsyncIterator[str]:
    """One with the chart's account, leading; its address. `more`: flags beside its own, which count before those."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    port = free_port()
    line = (
        "--trust-domain",
        TRUST_DOMAIN,
        "--namespace",
        NAMESPACE,
        "--identity",
        "signer-1",
        "--metrics-listen",
        "off",
    )
    flags = ("--bundle-namespaces", "wanted=yes", "--startup-taint", "true", "--listen", f"127.0.0.1:{port}")
    loaded = config.load(parser.parse_args([*line, *flags, "--admin-socket", str(folder / "a.sock"), *more]), {})
    stopping = asyncio.Event()
    async with AsyncExitStack() as services:
        client = await KubeClient.connect(alone.kubeconfig("podsvid-signer"))
        services.push_async_callback(client.close)
        found = Replica(loaded, client, SystemClock(), random.Random(7))
        running = asyncio.create_task(found.run(stopping, services))
        try:
            while await found.not_ready():
                await asyncio.wait([running], timeout=0.05)
                if running.done():
                    running.result()
            yield f"127.0.0.1:{port}"
        finally:
            stopping.set()
            await running


async def until(true: Callable[[], object]) -> None:
    """Wait for it, or for long: the test says what is missing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(true):
                await asyncio.sleep(0.1)


async def asked(alone: Alone, address: str, folder: Path) -> None:
    """A mint, a refusal, an administrator's step."""
    published = f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-bundle"
    await until(lambda: alone.api.find(published))
    bundle, token = folder / "bundle.json", folder / "token"
    bundle.write_text(alone.api.get(published)["data"]["bundle.json"])
    agent, web = _pod(alone, "agent", "podsvid-agent", NAMESPACE), _pod(alone, "web", "web", "default")
    token.write_text(alone.api.token("podsvid-agent", NAMESPACE, AUDIENCE, agent))
    settings = SignerSettings(address, bundle, token, AUDIENCE, TrustDomain(TRUST_DOMAIN), "test", run_dir=folder)
    authority = SignerAuthority(settings, SystemClock(), random.Random(3))
    authority.load()
    following = asyncio.create_task(authority.run())
    try:
        await authority.wait_answered()
        claim = PodClaim("default", "web", web["metadata"]["uid"])
        pod_token = passed_on(alone.api.token("web", "default", AUDIENCE, web))
        await authority.mint_x509(request(claim, pod_token))
        with pytest.raises(AgentError, match="DNS_NAME_DENIED"):
            await authority.mint_x509(request(claim, pod_token, dns_names=("a.svc",)))
        certified = alone.api.create(PODS, pod_of("certified", "web", "node-a", source()))
        account, node = (alone.api.get(each) for each in (ACCOUNT, "/api/v1/nodes/node-a"))
        await asyncio.to_thread(ask, alone, kubelet(alone, "node-a"), body(certified, account, node))
        # Its trust bundle is written anew, taken away by somebody, and made again with the next change.
        own, old = f"{CTB}/podsvid.io:spiffe:{TRUST_DOMAIN}", (alone.layout.pki / "ca.crt").read_text()
        await until(lambda: alone.api.get(own)["spec"]["trustBundle"] != old)
        alone.api.remove(own)
        parser = argparse.ArgumentParser()
        authority_command.add_arguments(parser)
        parsed = parser.parse_args(["prepare", "--socket", str(folder / "a.sock")])
        assert await asyncio.to_thread(authority_command.run, parsed) == 0
        given = shipped("podsvid-signer")
        await until(lambda: not set(permissions.unused(given, calls(alone, "podsvid-signer"))) - RARE)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def shipped(account: str) -> list[Permission]:
    rendered = chart.render(f"trustDomain={TRUST_DOMAIN}", *VALUES, namespace=NAMESPACE)
    return permissions.permissions(rendered, account)


def calls(alone: Alone, account: str) -> set[Call]:
    found = {call for call, _ in audited(alone.layout.audit_log, account)}
    written = any(each.resource == "clustertrustbundles" and each.verb in ("create", "update") for each in found)
    signed = any(each.resource == "podcertificaterequests/status" for each in found)
    return found | ({ATTEST} if written else set()) | ({SIGN} if signed else set())


def test_a_life_under_the_charts_permissions(alone: Alone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # What a call waits for that was never made is said there.
    caplog.set_level(logging.INFO, "podsvid")

    async def run() -> None:
        async with replica(alone, tmp_path, "--pod-certificates", "true") as address:
            await asked(alone, address, tmp_path)

    asyncio.run(run())
    given, made = shipped("podsvid-signer"), calls(alone, "podsvid-signer")
    assert permissions.denied(given, made) == [], "the chart does not allow these calls"
    assert set(permissions.unused(given, made)) - RARE == set(), "no code needs these permissions"
    heard = audited(alone.layout.audit_log, "podsvid-signer")
    refused = [str(call) for call, status in heard if status == 403]
    assert refused == [], "the API server refused what the chart should allow"
    # The last two of what was there before: published where it is wanted, removed where it is not.
    assert alone.api.find("/api/v1/namespaces/elsewhere/configmaps/podsvid-bundle") is None
    assert alone.api.find(f"{CTB}/podsvid.io:spiffe:gone.test") is None
    taints = alone.api.get("/api/v1/nodes/node-a")["spec"].get("taints", [])
    assert TAINT["key"] not in [each["key"] for each in taints]
