"""Several agents of one signer on this host: nodes without a kubelet, stand-in kubelets that pass real tokens."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from svid.certificates import certificates_from_pem
from svid.x509svid import X509Svid
from tests.go_tools import Progress
from tests.support import Host, host

from . import signing
from .api import Object
from .cluster import Cluster
from .signing import AUDIENCE, DRIVER, NAMESPACE, SignerProcess
from .waiting import PATIENCE_SECONDS

# kubelet passes tokens again about as often.
REPUBLISH_SECONDS = 20.0


@dataclass
class FleetNode:
    """One node: its agent, its stand-in kubelet, and the pods with their volumes."""

    name: str
    host: Host
    kubelet: StandInKubelet
    agent_pod: Object
    volumes: dict[str, tuple[Pod, PodVolume, Object]] = field(default_factory=dict)
    targets: dict[str, Path] = field(default_factory=dict)


def volume_for(cluster: Cluster, body: Object, account: str) -> PodVolume:
    """The pod's volume as kubelet would pass it, with a new token of the pod."""
    token = cluster.api.token(account, "default", AUDIENCE, body)
    passed = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
    return PodVolume(name="identity", tokens=passed)


def authority_of(target: Path) -> str:
    """Which authority issued what is in the volume now."""
    folder = os.open(target / "..data", os.O_PATH | os.O_DIRECTORY)
    try:
        data = Path(f"/proc/self/fd/{folder}/tls.crt").read_bytes()
        key = Path(f"/proc/self/fd/{folder}/tls.key").read_bytes()
    finally:
        os.close(folder)
    assert certificates_from_pem(data)
    return X509Svid.from_pem(data, key).authority_id


def handshake(server: Path, client: Path) -> None:
    """Mutual TLS between two volumes by OpenSSL, each with the files of one moment. Raises ssl.SSLError."""
    met(tls_context(server, server_side=True), tls_context(client, server_side=False))


def met(serves: ssl.SSLContext, calls: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The ends of a handshake in memory, that of the server first. Raises ssl.SSLError, AssertionError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = serves.wrap_bio(to_server, to_client, server_side=True)
    calling = calls.wrap_bio(to_client, to_server, server_side=False)
    done: set[ssl.SSLObject] = set()
    for _ in range(8):
        for each in (calling, serving):
            if each in done:
                continue
            try:
                each.do_handshake()
                done.add(each)
            except ssl.SSLWantReadError:
                continue
    assert len(done) == 2, "the handshake did not end"
    # TLS 1.3: whether the server took the client's certificate shows with the first data.
    serving.write(b"x")
    assert calling.read(1) == b"x"
    return serving, calling


def tls_context(target: Path, *, server_side: bool) -> ssl.SSLContext:
    """Mutual TLS with the files that a volume has at one moment, whatever is rotated meanwhile."""
    while True:
        now = os.readlink(target / "..data")
        try:
            return _tls_context(target / now, server_side=server_side)
        except FileNotFoundError:
            # Kubelet removes the folder of before with the switch; podsvid leaves it for who is reading it.
            if "kubernetes.io~projected" not in target.parts or os.readlink(target / "..data") == now:
                raise


def _tls_context(generation: Path, *, server_side: bool) -> ssl.SSLContext:
    folder = os.open(generation, os.O_PATH | os.O_DIRECTORY)
    here = f"/proc/self/fd/{folder}"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(f"{here}/tls.crt", f"{here}/tls.key")
        context.load_verify_locations(f"{here}/ca.crt")
        return context
    finally:
        os.close(folder)


class Fleet:
    """The nodes; more pods can be started on each."""

    def __init__(self, cluster: Cluster, account: str, nodes: dict[str, FleetNode]) -> None:
        self.cluster = cluster
        self.account = account
        self.nodes = nodes

    @property
    def targets(self) -> list[Path]:
        return [target for node in self.nodes.values() for target in node.targets.values()]

    async def prepare(self, node: FleetNode, name: str) -> tuple[Pod, PodVolume]:
        """Make a pod on a node, and the volume that kubelet would ask for."""
        body = await asyncio.to_thread(signing.pod, self.cluster, name, node.name, self.account)
        volume = await asyncio.to_thread(volume_for, self.cluster, body, self.account)
        pod = Pod(namespace="default", name=name, uid=body["metadata"]["uid"], service_account=self.account)
        node.volumes[name] = (pod, volume, body)
        return pod, volume

    async def start_pod(self, node: FleetNode, name: str) -> Path:
        """A pod on a node, with its volume published as kubelet does: again and again until it is."""
        pod, volume = await self.prepare(node, name)
        target = node.targets[name] = await node.kubelet.publish_until(pod, volume, timeout=PATIENCE_SECONDS)
        return target

    async def republish(self) -> None:
        """Kubelet's calls for running pods, for ever: each with a new token."""
        while True:
            await asyncio.sleep(REPUBLISH_SECONDS)
            for node in self.nodes.values():
                for name, (pod, volume, body) in list(node.volumes.items()):
                    if name in node.targets:
                        await node.kubelet.republish(pod, await self._renewed(volume, body))

    async def _renewed(self, volume: PodVolume, body: Object) -> PodVolume:
        try:
            fresh = await asyncio.to_thread(volume_for, self.cluster, body, self.account)
        except OSError:
            return volume  # kubelet, too, passes what it has while the API server is away
        return replace(volume, tokens=fresh.tokens)


@asynccontextmanager
async def fleet(
    cluster: Cluster,
    progress: Progress,
    signers: Iterable[SignerProcess],
    names: Iterable[str],
    pods: int,
    account: str = "fleet",
    *flags: str,
) -> AsyncIterator[Fleet]:
    """Nodes of these names with that many pods each; the agents take the signers in turn."""
    addresses = list(signers)
    signing.account(cluster, account)
    async with AsyncExitStack() as stack:
        nodes: dict[str, FleetNode] = {}
        found = Fleet(cluster, account, nodes)
        for number, name in enumerate(names):
            signing.node(cluster, name)
            agent_pod = signing.pod(cluster, f"agent-{name}", name, "podsvid-agent", namespace=NAMESPACE, driver=None)
            stack.callback(forget, cluster, NAMESPACE, f"agent-{name}")
            here = stack.enter_context(host())
            signer = addresses[number % len(addresses)]
            settings = signing.agent_flags(cluster, progress, signer, agent_pod, here.base)
            here.start("--trust-domain", signing.TRUST_DOMAIN, "--node-name", name, *settings, *flags)
            kubelet = StandInKubelet(here.kubelet_root)
            await kubelet.start()
            stack.push_async_callback(kubelet.stop)
            await kubelet.wait_registered(DRIVER, timeout=PATIENCE_SECONDS)
            nodes[name] = FleetNode(name, here, kubelet, agent_pod)
        try:
            for node in nodes.values():
                progress(f"starting {pods} pods on {node.name}")
                await asyncio.gather(*(found.start_pod(node, f"{node.name}-{each}") for each in range(pods)))
            republishing = asyncio.create_task(found.republish())
            stack.callback(republishing.cancel)
            yield found
        finally:
            for node in nodes.values():
                for name in node.volumes:
                    forget(cluster, "default", name)


def forget(cluster: Cluster, namespace: str, name: str) -> None:
    """Delete a pod that no kubelet runs."""
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/{name}", grace_seconds=0)
