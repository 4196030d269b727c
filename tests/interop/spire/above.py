"""A real SPIRE of podsvid's own trust domain, above its signer: on disk, as its server is stopped and started."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from signer.upstream.certify import UpstreamUnusable
from signer.upstream.downstream import from_agent
from signer.upstream.remote import UpstreamAway
from svid.certificates import certificates_from_pem
from tests import spire_contract as contract
from tests.interop.rig import LOOK_SECONDS
from tests.interop.spire.spire import OURS, Spire, admitted, configured, joined, on_disk, serving
from tests.ports import free_port
from tests.support import DEADLINE

# Told apart by the group that they run as: the tests' own, which the signer's process has, and another.
SIGNER, SIGNER_GROUP = f"spiffe://{OURS}/podsvid-signer", 0
WORKLOAD, WORKLOAD_GROUP = f"spiffe://{OURS}/billing", 65534


@dataclass
class Above:
    """Implements contract.Server."""

    spire: Spire
    port: int
    parent: str = ""
    entry: str = ""
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def agent_socket(self) -> Path:
        return Path(self.spire.socket)

    async def start(self) -> None:
        """The server."""
        await self.running.enter_async_context(serving(self.spire))

    async def stop(self) -> None:
        """The server; its agent stays."""
        await self.running.aclose()

    async def register(self, *flags: str) -> None:
        """The signer's entry."""
        said = await self.spire.server(
            *("entry", "create", *flags),
            spiffeID=SIGNER,
            parentID=self.parent,
            selector=f"unix:gid:{SIGNER_GROUP}",
            output="json",
        )
        self.entry = json.loads(said)["results"][0]["entry"]["id"]

    async def forget(self) -> None:
        """Delete the signer's entry."""
        await self.spire.server("entry", "delete", entryID=self.entry)

    async def downstream(self, yes: bool) -> None:
        await self.spire.server(
            *("entry", "update", *(["-downstream"] if yes else [])),
            entryID=self.entry,
            spiffeID=SIGNER,
            parentID=self.parent,
            selector=f"unix:gid:{SIGNER_GROUP}",
        )
        async with asyncio.timeout(DEADLINE):
            while await self._certifies() != yes:
                await asyncio.sleep(LOOK_SECONDS)

    async def _certifies(self) -> bool:
        try:
            await contract.issued(contract.signer(self))
        except UpstreamUnusable:
            return False
        return True

    async def authorities(self) -> tuple[x509.Certificate, ...]:
        return certificates_from_pem((await self.spire.server("bundle", "show", format="pem")).encode())

    async def prepare(self) -> str:
        """Another CA, which the bundle has when this returns; its name."""
        before = len(await self.authorities())
        said = json.loads(await self.spire.server("localauthority", "x509", "prepare", output="json"))
        async with asyncio.timeout(DEADLINE):
            # The server keeps a bundle for a second.
            while len(await self.authorities()) == before:
                await asyncio.sleep(LOOK_SECONDS)
        return str(said["prepared_authority"]["authority_id"])

    async def activate(self, name: str) -> None:
        """Sign by the prepared CA from now on."""
        await self.spire.server("localauthority", "x509", "activate", authorityID=name)

    async def another_ca(self) -> None:
        await self.activate(await self.prepare())

    async def drop_the_old_ca(self) -> None:
        """The bundle has it no more. Without the wait the agent would keep an SVID that nobody takes."""
        said = json.loads(await self.spire.server("localauthority", "x509", "show", output="json"))
        old, new = said["old"]["authority_id"], said["active"]["authority_id"]
        await self.spire.server("localauthority", "x509", "taint", authorityID=old)
        async with asyncio.timeout(DEADLINE):
            while (await from_agent(contract.settings(self), datetime.now(UTC))).svid.authority_id != new:
                await asyncio.sleep(LOOK_SECONDS)
        await self.spire.server("localauthority", "x509", "revoke", authorityID=old)

    async def files(self, folder: Path) -> None:
        await self.spire.server("x509", "mint", spiffeID=SIGNER, write=folder)
        for made, name in (("svid.pem", "tls.crt"), ("key.pem", "tls.key"), ("bundle.pem", "ca.crt")):
            (folder / made).rename(folder / name)
        # SPIRE's listener takes nobody below a new CA for up to a second, by the bundle that it remembers.
        by_files = contract.signer(self, agent_socket=None, svid_dir=folder)
        async with asyncio.timeout(DEADLINE):
            while True:
                with suppress(UpstreamAway):
                    await by_files.roots()
                    return
                await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def above(programs: Mapping[str, Path], ca_ttl: str = "24h") -> AsyncIterator[Above]:
    """Running, with the signer's entry marked downstream, until left."""
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        values = {"port": port, "folder": folder, "trust_domain": OURS, **on_disk(folder), "ca_ttl": ca_ttl}
        found = Above(configured(programs, folder, values), port)
        async with found.running:
            await found.start()
            found.parent = await admitted(found.spire, values)
            await found.register("-downstream")
            await found.spire.server(
                *("entry", "create"),
                spiffeID=WORKLOAD,
                parentID=found.parent,
                selector=f"unix:gid:{WORKLOAD_GROUP}",
                x509SVIDTTL="60",
            )
            async with joined(found.spire):
                await _known(found)
                yield found


async def _known(found: Above) -> None:
    """Wait until the agent gives the signer its SVID, and the server takes it."""
    async with asyncio.timeout(DEADLINE):
        while not await found._certifies():
            await asyncio.sleep(LOOK_SECONDS)
