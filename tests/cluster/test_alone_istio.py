"""Istio's CA API with a real API server's tokens of two nodes: who gets what, by the chart's permissions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from signer.front.istio import METHOD, REFUSED, SERVICE
from signer.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tests.go_tools import Progress
from tests.pod_certificates import pod_of
from tests.ports import free_port
from tests.unit.signer.istio_door import Answer, csr

from .alone import POLICIES, TRUST_DOMAIN, Alone, api_server
from .api import Object
from .signing import NAMESPACE
from .test_alone_life import _namespace, _object, replica, until

pytestmark = pytest.mark.timeout(600)
ZTUNNEL = ("istio-system", "ztunnel")
# Every namespace has the roots; and the chart gives no leave for taints here.
FLAGS = ("--bundle-namespaces", "", "--startup-taint", "false", "--istio-ztunnels", "istio-system/ztunnel")
ROOTS = "/api/v1/namespaces/{}/configmaps/istio-ca-root-cert"


def spiffe(namespace: str, account: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}"


WEB = spiffe("default", "web")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.05)


@pytest.fixture(scope="module")
def alone(built: None, tmp_path_factory: pytest.TempPathFactory, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path_factory.mktemp("alone"), progress) as found:
        found.api.apply([_namespace(NAMESPACE)])
        found.install("istio.enabled=true")
        accounts = [("default", "web"), ("default", "other"), ZTUNNEL]
        found.api.apply(
            [
                *(_namespace(each) for each in ("default", "istio-system")),
                *(_object("Node", each) for each in ("node-a", "node-b")),
                *(_object("ServiceAccount", name, namespace=namespace) for namespace, name in accounts),
            ]
        )
        yield found


class Mesh:
    """What proxies have, and how they call."""

    def __init__(self, alone: Alone, port: int) -> None:
        self.alone, self._address = alone, f"127.0.0.1:{port}"

    def pod(self, name: str, node: str, namespace: str = "default", account: str = "web", **labels: str) -> Object:
        body = pod_of(name, account, node)
        body["metadata"]["labels"] = labels
        return self.alone.api.create(f"/api/v1/namespaces/{namespace}/pods", body)

    def token(self, pod: Object, audience: str = "istio-ca") -> str:
        """As kubelet projects it."""
        account = pod["spec"]["serviceAccountName"]
        return self.alone.api.token(account, pod["metadata"]["namespace"], audience, pod)

    async def ask(self, token: str, request: str, impersonated: str = "") -> Answer:
        roots = self.alone.api.get(ROOTS.format("default"))["data"]["root-cert.pem"].encode()
        message = IstioCertificateRequest(csr=request, validity_duration=86_400)
        message.metadata.update({"ImpersonatedIdentity": impersonated} if impersonated else {"CertSigner": ""})
        options = (("grpc.ssl_target_name_override", f"podsvid-istio.{NAMESPACE}.svc"),)
        async with grpc.aio.secure_channel(self._address, grpc.ssl_channel_credentials(roots), options) as channel:
            call: Any = channel.unary_unary(
                f"/{SERVICE}/{METHOD}",
                request_serializer=IstioCertificateRequest.SerializeToString,
                response_deserializer=IstioCertificateResponse.FromString,
            )
            found = await call(message, metadata=(("authorization", f"Bearer {token}"),), timeout=30)
        return Answer(tuple(found.cert_chain))

    async def impersonate(self, token: str, wanted: str) -> Answer:
        return await self.ask(token, csr(wanted, critical=True), wanted)

    async def refused(self, asking: Awaitable[Answer]) -> None:
        assert await self.refuses(asking)

    async def refuses(self, asking: Awaitable[Answer]) -> bool:
        """Whether it is, and then with the one text that there is."""
        try:
            await asking
        except grpc.aio.AioRpcError as error:
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, REFUSED)
            return True
        return False

    def events(self, namespace: str) -> set[tuple[str, str]]:
        found = self.alone.api.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        return {(each["regarding"]["name"], each["note"].split(":", 1)[0]) for each in found}


def meshed(alone: Alone, folder: Path, test: Callable[[Mesh], Awaitable[None]]) -> None:
    port = free_port()

    def published() -> bool:
        return all(alone.api.find(ROOTS.format(each)) for each in ("default", "istio-system"))

    async def run() -> None:
        async with replica(alone, folder, *FLAGS, "--istio-listen", f"127.0.0.1:{port}"):
            await until(published)
            await test(Mesh(alone, port))

    asyncio.run(run())


def test_proxies_get_what_their_projected_tokens_prove(alone: Alone, tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        pod = mesh.pod("web", "node-a")
        found = await mesh.ask(mesh.token(pod), csr(WEB))
        assert found.identity == WEB
        assert len(found.elements) == 2
        await mesh.refused(mesh.ask(mesh.token(pod, "signer.podsvid.io"), csr(WEB)))
        await mesh.refused(mesh.ask(mesh.token(pod), csr(spiffe("default", "other"))))
        await until(lambda: ("web", "NOT_ENTITLED") in mesh.events("default"))
        assert ("web", "NOT_ENTITLED") in mesh.events("default")
        # Bound to that pod, it is good for nothing once that is gone, which all hear of a moment later.
        token = mesh.token(pod)
        alone.api.remove("/api/v1/namespaces/default/pods/web?gracePeriodSeconds=0")
        async with asyncio.timeout(30):
            while not await mesh.refuses(mesh.ask(token, csr(WEB))):
                await asyncio.sleep(0.1)

    meshed(alone, tmp_path, test)


def test_a_ztunnel_has_its_own_nodes_pods_and_no_others(alone: Alone, tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        tunnels = {each: mesh.pod(f"ztunnel-{each}", each, *ZTUNNEL) for each in ("node-a", "node-b")}
        tokens = {node: mesh.token(pod) for node, pod in tunnels.items()}
        mesh.pod("one", "node-a")
        mesh.pod("two", "node-a")
        far = mesh.pod("far", "node-b", account="other")
        assert (await mesh.impersonate(tokens["node-a"], WEB)).identity == WEB
        other = spiffe("default", "other")
        assert (await mesh.impersonate(tokens["node-b"], other)).identity == other
        # Neither has the other's, and no pod has anybody's.
        await mesh.refused(mesh.impersonate(tokens["node-b"], WEB))
        await mesh.refused(mesh.impersonate(tokens["node-a"], other))
        await mesh.refused(mesh.impersonate(mesh.token(far), other))
        wanted = {("ztunnel-node-a", "POD_NOT_FOUND"), ("ztunnel-node-b", "POD_NOT_FOUND")}
        await until(lambda: wanted <= mesh.events("istio-system"))
        assert wanted <= mesh.events("istio-system")
        # One of the pods is given another thing.
        policy = {
            "apiVersion": "podsvid.io/v1alpha1",
            "kind": "ClusterWorkloadIdentity",
            "metadata": {"name": "two"},
            "spec": {"podSelector": {"matchLabels": {"app": "two"}}, "spiffeIDTemplate": "/ns/{namespace}/sa/mine"},
        }
        mesh.pod("labelled", "node-a", app="two")
        alone.api.create(f"{POLICIES}/clusterworkloadidentities", policy)
        async with asyncio.timeout(30):
            while not await mesh.refuses(mesh.impersonate(tokens["node-a"], WEB)):
                await asyncio.sleep(0.1)
        alone.api.remove("/api/v1/namespaces/default/pods/labelled?gracePeriodSeconds=0")
        async with asyncio.timeout(30):
            while await mesh.refuses(mesh.impersonate(tokens["node-a"], WEB)):
                await asyncio.sleep(0.1)

    meshed(alone, tmp_path, test)
