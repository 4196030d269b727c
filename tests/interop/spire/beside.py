"""A cluster with podsvid and SPIRE servers of other trust domains, which know each other by bundle endpoints alone."""

import asyncio
import json
import shlex
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from podsvid.quickstart.pods import Pod, PodVolume
from signer.public.shown import Pair
from svid.spiffeid import TrustDomain
from tests.cluster import signing
from tests.cluster.api import Object
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Shell
from tests.cluster.signing import AUDIENCE, NAMESPACE, TRUST_DOMAIN, SignerProcess, signer_process
from tests.cluster.waiting import say
from tests.interop.kubernetes import kubernetes
from tests.interop.rig import LOOK_SECONDS, podsvid, registered
from tests.interop.spire import page
from tests.interop.spire.spire import IN_MEMORY, PARTNER_GROUP, Spire, admitted, configured, joined, serving
from tests.interop.spire.talk import Peer
from tests.ports import free_port
from tests.public_rig import web_pair, write_pair
from tests.support import ROOT, host

OURS = TrustDomain(TRUST_DOMAIN)
POD = f"spiffe://{OURS}/ns/default/sa/web"
NODE = "node-1"
RELATIONS = "/apis/podsvid.io/v1alpha1/federatedtrustdomains"
# Seconds for what takes five refresh hints, and minutes of SPIRE's.
PATIENCE = 900.0
_FLAGS = (
    *("--bundle-hint", "1m", "--x509-ttl", "1m", "--x509-max-ttl", "1m", "--retire-after", "1s"),
    *("--reissue-over", "2s", "--lease", "3s"),
)


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Look until it holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(LOOK_SECONDS)


class Front:
    """What a load balancer is that passes TCP through: `target` is the port where it does."""

    def __init__(self) -> None:
        self.port, self.target = 0, 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._one, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, to_behind = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_passed(reader, to_behind), _passed(behind, writer))


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass(frozen=True)
class Ours:
    """podsvid at an API server: one replica serves the bundle by https_spiffe, the other by https_web."""

    cluster: Cluster
    signers: tuple[SignerProcess, SignerProcess]
    ports: tuple[int, int]
    # What both sides' https_web is by, each for the name localhost.
    web: Pair
    folder: Path

    @property
    def admin(self) -> str:
        """The socket of `podsvid authority` and `podsvid bundle`."""
        return str(self.signers[0].admin_socket)

    def relation(self, name: str) -> Object:
        """The FederatedTrustDomain."""
        return self.cluster.api.get(f"{RELATIONS}/{name}")

    def conditions(self, name: str) -> dict[str, str]:
        """Reasons of its conditions."""
        found = (self.relation(name).get("status") or {}).get("conditions") or []
        return {each["type"]: each["reason"] for each in found}

    @asynccontextmanager
    async def pod(self) -> AsyncIterator[tuple[Peer, Path]]:
        """One with a volume, by an agent on a node of its own."""
        api = self.cluster.api
        signing.node(self.cluster, NODE)
        signing.account(self.cluster, "web")
        agent = signing.pod(self.cluster, "agent", NODE, "podsvid-agent", namespace=NAMESPACE, driver=None)
        web = signing.pod(self.cluster, "web", NODE, "web")
        flags = await asyncio.to_thread(signing.agent_flags, self.cluster, say, self.signers[0], agent, self.folder)
        with host() as here:
            here.start("--trust-domain", TRUST_DOMAIN, *flags)
            async with registered(here) as kubelet:
                token = api.token("web", "default", AUDIENCE, web)
                tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
                volume = PodVolume(tokens=tokens)
                target = await kubelet.publish(Pod("default", "web", web["metadata"]["uid"], "web"), volume)
                yield Peer(POD, here.short(target) / "socket"), target


@contextmanager
def podsvid_serves() -> Iterator[Ours]:
    """Both replicas sign."""
    with tempfile.TemporaryDirectory(prefix="pf", dir="/tmp") as name, kubernetes(Path(name) / "k") as at:
        cluster, folder, ports = cast(Cluster, at), Path(name), (free_port(), free_port())
        web = web_pair(datetime.now(UTC), host="localhost")
        chain, key = write_pair(web, folder)
        signing.install(cluster, say)
        flags = [("--bundle-listen", f"127.0.0.1:{port}", *_FLAGS) for port in ports]
        by_web = ("--bundle-profile", "https_web", "--bundle-cert-file", str(chain), "--bundle-key-file", str(key))
        with (
            signer_process(cluster, say, "signer-1", *flags[0]) as one,
            signer_process(cluster, say, "signer-2", *flags[1], *by_web) as other,
        ):
            yield Ours(cluster, (one, other), ports, web, folder)


@dataclass(frozen=True)
class Beside:
    """A SPIRE of another trust domain that serves its bundle by `profile`, behind `front`."""

    ours: Ours
    spire: Spire
    domain: TrustDomain
    profile: str
    parent: str
    front: Front

    @property
    def name(self) -> str:
        """Of the FederatedTrustDomain."""
        return self.domain.name.partition(".")[0]

    @property
    def workload(self) -> Peer:
        return Peer(f"spiffe://{self.domain}/billing", self.spire.socket, PARTNER_GROUP)

    def type(self, heading: str, begin: str) -> str:
        """Type what the page has there, with this run's names; what it printed."""
        text = page.block(heading, begin)
        for old, new in (
            ("kubectl -n podsvid exec deploy/podsvid-signer -- ", ""),
            ("bundle.cluster.example/", f"localhost:{self.ours.ports[self.profile == 'https_web']}/"),
            ("bundle.spire.example:8443/", f"localhost:{self.front.port}/"),
            ("cluster.example", OURS.name),
            ("spiffe://spire.example/nodes", self.parent),
            ("spire.example", self.domain.name),
            ("name: spire", f"name: {self.name}"),
            ("federatedtrustdomain spire", f"federatedtrustdomain {self.name}"),
            ("unix:user:billing", f"unix:gid:{PARTNER_GROUP}"),
        ):
            text = text.replace(old, new)
        shell = Shell(self.spire.folder, self.ours.cluster.kubeconfig, (self.spire.folder / "bin",))
        return shell.done(text)

    def federate(self) -> None:
        """As the page says for its profile, both ways."""
        if self.profile == "https_spiffe":
            self.type("By SPIFFE", "spire-server bundle show")
            self.type("By SPIFFE", "{ cat")
            self.type("By SPIFFE", "spire-server federation create")
        else:
            self.type("By the web's certificates", "{ cat")
            self.type("By the web's certificates", "spire-server federation create")

    async def bundle(self) -> dict[str, Any]:
        """Its own."""
        found: dict[str, Any] = json.loads(await self.spire.bundle())
        return found

    async def has(self) -> dict[str, Any]:
        """What its server has of podsvid's."""
        said = await self.spire.server("bundle", "list", format="spiffe", id=f"spiffe://{OURS}")
        found: dict[str, Any] = json.loads(said)
        return found


@asynccontextmanager
async def spire_beside(
    ours: Ours, programs: Mapping[str, Path], name: str, profile: str, ca_ttl: str
) -> AsyncIterator[Beside]:
    """Its server and agent run; nobody trusts anybody yet."""
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as scratch:
        folder, domain, front = Path(scratch), TrustDomain(name), Front()
        write_pair(ours.web, folder)
        (folder / "ca.crt").write_bytes(ours.web.chain)
        front.target = free_port()
        values = {
            **IN_MEMORY,
            "port": free_port(),
            "folder": folder,
            "trust_domain": domain,
            "ca_ttl": ca_ttl,
            "federation": _endpoint(profile, front.target, folder),
        }
        spire = configured(programs, folder, values, {"SSL_CERT_FILE": str(folder / "ca.crt")})
        async with AsyncExitStack() as running:
            await running.enter_async_context(front.running())
            await running.enter_async_context(serving(spire))
            parent = await admitted(spire, values)
            server = str(programs["spire-server"])
            _command(folder, "spire-server", [server], "-socketPath", str(folder / "server.sock"))
            _command(folder, "podsvid", podsvid(), "--socket", ours.admin)
            await running.enter_async_context(joined(spire))
            yield Beside(ours, spire, domain, profile, parent, front)


def _command(folder: Path, name: str, command: Sequence[str], *flags: str) -> None:
    """What a person types has these flags in the end."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {shlex.join(command)} "$@" {shlex.join(flags)}\n')
    file.chmod(0o700)


def _endpoint(profile: str, port: int, folder: Path) -> str:
    """The page's part of the server's configuration."""
    text = page.block("Each serves its bundle", "server {").strip().removeprefix("server {").removesuffix("}")
    text = page.typed(text, {"0.0.0.0": "127.0.0.1", "8443": str(port), '"5m"': '"1m"'})
    if profile == "https_web":
        web = page.typed(page.block("Each serves its bundle", "profile"), {"/run/web": str(folder)})
        text = page.typed(text, {'profile "https_spiffe" {}': web})
    return text
