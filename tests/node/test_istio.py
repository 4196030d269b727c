"""The port for Istio's proxies, over TLS with gRPC's client: both paths, a rotation, refusals, and who is no proxy."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from runtime.clock import SystemClock
from signer.front import budget
from signer.front.admission import MAX_STRIKES
from signer.front.istio import METHOD, REFUSED, SERVICE
from signer.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from signer.pb.signer_pb2 import MintX509SVIDResponse
from svid.dnsnames import SIGNER_NAME
from svid.spiffeid import SpiffeId
from svid.x509svid import check_x509_svid
from tests.ports import free_port
from tests.signer_rig import Serving, Site, serving
from tests.unit.signer.istio_door import ISTIO_CA, Answer, csr, spiffe

WEB = spiffe("default", "web")
NAME = "podsvid-istio.podsvid.svc"
ROOTS = "/api/v1/namespaces/{}/configmaps/istio-ca-root-cert"


class Mesh:
    """A signer with the port on, and what proxies know of it."""

    def __init__(self, signer: Serving, site: Site, port: int) -> None:
        self.signer, self.site, self.address = signer, site, f"127.0.0.1:{port}"

    @property
    def state(self) -> Any:
        return self.signer.replica._rotation.state

    def roots(self, namespace: str = "default") -> bytes:
        """As kubelet mounts them."""
        data: dict[str, str] = self.site.kube.objects[ROOTS.format(namespace)]["data"]
        assert list(data) == ["root-cert.pem"]
        return data["root-cert.pem"].encode()

    def proxy(self, name: str = "web", **more: Any) -> str:
        """Its token."""
        claim = self.site.pod(name, driver=None, **more)
        account, node = more.get("account", "web"), more.get("node", "node-a")
        return self.site.token(claim, audience=ISTIO_CA, account=account, node=node)

    def ztunnel(self, node: str = "node-a") -> str:
        return self.proxy(f"ztunnel-{node}", namespace="istio-system", account="ztunnel", node=node)

    @asynccontextmanager
    async def channel(self, name: str = NAME, roots: bytes = b"") -> AsyncIterator[grpc.aio.Channel]:
        trusted = grpc.ssl_channel_credentials(roots or self.roots())
        options = (("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.secure_channel(self.address, trusted, options) as found:
            yield found

    async def ask(
        self, token: str, request: str, impersonated: str = "", *, channel: grpc.aio.Channel | None = None
    ) -> Answer:
        message = IstioCertificateRequest(csr=request, validity_duration=86_400)
        if impersonated:
            message.metadata.update({"ImpersonatedIdentity": impersonated})
        if channel is None:
            async with self.channel() as found:
                return await self.ask(token, request, impersonated, channel=found)
        call: Any = channel.unary_unary(
            f"/{SERVICE}/{METHOD}",
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )
        headers = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
        answer = await call(message, metadata=headers, timeout=20)
        return Answer(tuple(answer.cert_chain))

    def turned_away(self, kind: str) -> float:
        registry = self.signer.replica.metrics.registry
        return registry.get_sample_value("podsvid_signer_turned_away_total", {"kind": kind}) or 0.0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


def meshed(test: Callable[[Mesh], Awaitable[None]], *flags: str) -> None:
    async def run(folder: Path) -> None:
        site, port = Site(datetime.now(UTC).replace(microsecond=0)), free_port()
        on = ("--istio-listen", f"127.0.0.1:{port}", "--istio-ztunnels", "istio-system/ztunnel", *flags)
        for namespace in ("default", "istio-system"):
            site.kube.put(f"/api/v1/namespaces/{namespace}", {"metadata": {"name": namespace}})
        async with asyncio.timeout(60), serving(site, folder, SystemClock(), *on) as signer:
            await until(lambda: all(ROOTS.format(each) in site.kube.objects for each in ("default", "istio-system")))
            await test(Mesh(signer, site, port))

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


def believed(found: Answer, mesh: Mesh, identity: str) -> None:
    """As both kinds of proxies look at an answer: the last element has the roots, and what is between leads to them."""
    assert len(found.elements) >= 2
    chain = [x509.load_pem_x509_certificate(each.encode()) for each in found.elements[:-1]]
    assert check_x509_svid(chain, mesh.state.bundle, datetime.now(UTC)) == SpiffeId.parse(identity)
    assert set(found.roots) == set(mesh.state.bundle.x509_authorities)


def test_a_sidecar_gets_and_renews_its_certificate() -> None:
    async def test(mesh: Mesh) -> None:
        token = mesh.proxy()
        async with mesh.channel() as channel:
            one = await mesh.ask(token, csr(WEB), channel=channel)
            other = await mesh.ask(token, csr(WEB), channel=channel)
        for each in (one, other):
            believed(each, mesh, WEB)
        assert one.leaf.serial_number != other.leaf.serial_number

    meshed(test)


def test_a_ztunnel_gets_those_of_its_nodes_pods() -> None:
    async def test(mesh: Mesh) -> None:
        ztunnel, other = mesh.ztunnel(), mesh.ztunnel("node-b")
        mesh.proxy()
        async with mesh.channel() as channel:
            found = await asyncio.gather(
                *(mesh.ask(ztunnel, csr(WEB), WEB, channel=channel) for _ in range(budget.PROXY_STREAMS))
            )
            for each in found:
                believed(each, mesh, WEB)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await mesh.ask(other, csr(WEB), WEB, channel=channel)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, REFUSED)

    meshed(test)


@pytest.mark.parametrize("name", [NAME, f"{NAME}.cluster.local"])
def test_it_proves_itself_by_the_names_that_proxies_call(name: str) -> None:
    async def test(mesh: Mesh) -> None:
        async with mesh.channel(name) as channel:
            assert (await mesh.ask(mesh.proxy(), csr(WEB), channel=channel)).identity == WEB
        # And by no other one: nobody takes it for the signer's port for agents.
        async with mesh.channel(SIGNER_NAME) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await mesh.ask(mesh.proxy(), csr(WEB), channel=channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    meshed(test)


def test_names_are_a_setting() -> None:
    async def test(mesh: Mesh) -> None:
        async with mesh.channel("ca.mesh.example") as channel:
            assert (await mesh.ask(mesh.proxy(), csr(WEB), channel=channel)).identity == WEB

    meshed(test, "--istio-names", "ca.mesh.example,istiod.istio-system.svc")


def test_through_a_rotation_the_roots_come_with_each_answer_and_the_port_is_believed() -> None:
    async def test(mesh: Mesh) -> None:
        token, before = mesh.proxy(), mesh.roots()
        rotation = mesh.signer.replica._rotation
        # An agent that never acknowledges holds the next one back.
        mesh.site.pod("agent", account="podsvid-agent", namespace="podsvid", driver=None)
        await until(lambda: bool(rotation.live_nodes()))
        active = mesh.state.active_x509_id
        await rotation.step("prepare", "x509", "", forced=False)
        await until(lambda: len(mesh.state.bundle.x509_authorities) == 2)
        async with mesh.channel(roots=before) as channel:
            found = await mesh.ask(token, csr(WEB), channel=channel)
            assert len(found.roots) == 2
            believed(found, mesh, WEB)
        await until(lambda: mesh.roots().count(b"BEGIN CERT") == 2)
        await rotation.step("activate", "x509", "", forced=True)
        await until(lambda: mesh.state.active_x509_id != active)
        # Who has not renewed since knows the former authority only: the port still proves itself by it.
        async with mesh.channel(roots=before) as channel:
            found = await mesh.ask(token, csr(WEB), channel=channel)
        believed(found, mesh, WEB)
        assert not check_by(found, before)

    meshed(test)


def check_by(found: Answer, roots: bytes) -> bool:
    """Whether one of these signed the leaf."""
    for root in x509.load_pem_x509_certificates(roots):
        try:
            found.leaf.verify_directly_issued_by(root)
        except Exception:
            continue
        return True
    return False


def test_after_a_theft_the_port_proves_itself_by_what_is_trusted() -> None:
    async def test(mesh: Mesh) -> None:
        rotation, stolen = mesh.signer.replica._rotation, mesh.state.active_x509_id
        await rotation.step("rotate", "x509", "", forced=True)
        await until(lambda: all(slot.id != stolen for slot in mesh.state.x509))
        await until(lambda: mesh.roots().count(b"BEGIN CERT") == 1)
        new = mesh.roots()

        async def believes() -> bool:
            async with mesh.channel(roots=new) as channel:
                try:
                    return (await mesh.ask(mesh.proxy(), csr(WEB), channel=channel)).identity == WEB
                except grpc.aio.AioRpcError:
                    return False

        async with asyncio.timeout(30):
            while not await believes():
                await asyncio.sleep(0.1)

    meshed(test)


@pytest.mark.parametrize("audience", ["signer.podsvid.io", "https://kubernetes.default.svc"])
def test_tokens_for_others_are_good_for_nothing_here_and_close_the_connection(audience: str) -> None:
    async def test(mesh: Mesh) -> None:
        claim = mesh.site.pod("web", driver=None)
        token = mesh.site.token(claim, audience=audience)
        async with mesh.channel() as channel:
            for _ in range(4):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await mesh.ask(token, csr(WEB), channel=channel)
                assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
        await until(lambda: mesh.turned_away("istio_unauthenticated") == 1)
        # Proxies' tokens prove no agent, either.
        proxy = mesh.site.token(claim, audience=ISTIO_CA)
        assert await agents_answer(mesh, proxy) is grpc.StatusCode.UNAUTHENTICATED

    meshed(test)


def test_one_good_token_does_not_pay_for_bad_ones() -> None:
    async def test(mesh: Mesh) -> None:
        bad = mesh.site.token(mesh.site.pod("other", driver=None), audience="signer.podsvid.io")
        async with mesh.channel() as channel:
            assert (await mesh.ask(mesh.proxy(), csr(WEB), channel=channel)).identity == WEB
            for _ in range(MAX_STRIKES):
                with pytest.raises(grpc.aio.AioRpcError):
                    await mesh.ask(bad, csr(WEB), channel=channel)
        await until(lambda: mesh.turned_away("istio_unauthenticated") == 1)

    meshed(test)


async def agents_answer(mesh: Mesh, token: str) -> grpc.StatusCode:
    roots = grpc.ssl_channel_credentials(mesh.roots())
    options = (("grpc.ssl_target_name_override", SIGNER_NAME),)
    async with grpc.aio.secure_channel(mesh.signer.address, roots, options) as channel:
        call: Any = channel.unary_unary(
            "/podsvid.signer.v1.Signer/MintX509SVID", response_deserializer=MintX509SVIDResponse.FromString
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=20)
        return caught.value.code()


def test_nothing_else_is_served_there() -> None:
    async def test(mesh: Mesh) -> None:
        async with mesh.channel() as channel:
            call: Any = channel.unary_unary("/podsvid.signer.v1.Signer/MintX509SVID")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=(("authorization", f"Bearer {mesh.site.agent()}"),), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    meshed(test)


def test_a_message_that_is_larger_than_any_proxys_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "podsvid.audit")

    async def test(mesh: Mesh) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.ask(mesh.proxy(), "x" * budget.PROXY_MESSAGE)
        assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED)
        # By gRPC: nothing of it was handed on.
        await until(lambda: "the call has no message, or a longer one" in str(refusals(caplog)))

    meshed(test)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(each)["why"] for each in caplog.records if each.name == "podsvid.audit" and each.msg == "mint refused"]


def test_one_pods_connections_are_few_and_another_pods_are_its_own() -> None:
    async def test(mesh: Mesh) -> None:
        many, other = mesh.proxy("many"), mesh.proxy("other")
        async with mesh.channel() as kept:
            assert (await mesh.ask(other, csr(WEB), channel=kept)).identity == WEB
            async with AsyncExitStack() as opened:
                for _ in range(budget.CONNECTIONS_OF_PROXY + 2):
                    channel = await opened.enter_async_context(mesh.channel())
                    await mesh.ask(many, csr(WEB), channel=channel)
                await until(lambda: mesh.turned_away("istio_node") == 2)
                assert (await mesh.ask(other, csr(WEB), channel=kept)).identity == WEB

    meshed(test)


def test_strangers_are_counted_by_themselves_and_silent_ones_cost_agents_nothing() -> None:
    async def test(mesh: Mesh) -> None:
        host, _, port = mesh.address.rpartition(":")
        writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(budget.PROXY_WAITING + 10)]
        try:
            await until(lambda: mesh.turned_away("istio_strangers") + mesh.turned_away("istio_address") >= 10)
            assert mesh.turned_away("strangers") == mesh.turned_away("address") == 0
            assert await agents_answer(mesh, mesh.site.agent()) is grpc.StatusCode.PERMISSION_DENIED
            # One that speaks goes before those that do not.
            assert (await mesh.ask(mesh.proxy(), csr(WEB))).identity == WEB
        finally:
            for each in writers:
                each.close()

    meshed(test)


def test_it_is_off_unless_it_is_asked_for() -> None:
    async def run(folder: Path) -> None:
        site = Site(datetime.now(UTC).replace(microsecond=0))
        async with asyncio.timeout(60), serving(site, folder, SystemClock()) as signer:
            assert signer.replica._istio is None
            site.kube.put("/api/v1/namespaces/default", {"metadata": {"name": "default"}})
            bundle = ROOTS.format("default").replace("istio-ca-root-cert", "podsvid-bundle")
            await until(lambda: bundle in site.kube.objects)
            assert ROOTS.format("default") not in site.kube.objects

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


def test_a_foreign_config_map_of_that_name_is_left_alone() -> None:
    async def test(mesh: Mesh) -> None:
        mesh.site.kube.put(
            ROOTS.format("late"), {"metadata": {"name": "istio-ca-root-cert"}, "data": {"root-cert.pem": "x"}}
        )
        mesh.site.kube.put("/api/v1/namespaces/late", {"metadata": {"name": "late"}})
        bundle = ROOTS.format("late").replace("istio-ca-root-cert", "podsvid-bundle")
        await until(lambda: bundle in mesh.site.kube.objects)
        assert mesh.roots("late") == b"x"

    meshed(test)
