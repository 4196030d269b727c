"""A real SPIRE server and agent of trust domain other.example: a port of the loopback, sockets, SQLite in memory."""

import asyncio
import json
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from svid.bundle import TrustBundle
from svid.spiffeid import TrustDomain
from tests.interop.rig import LOOK_SECONDS, ended, ran
from tests.ports import free_port
from tests.processes import end
from tests.support import DEADLINE

OURS = TrustDomain("example.org")
THEIRS = TrustDomain("other.example")
# Workloads are told apart by the group that they run as.
PARTNER, PARTNER_GROUP = f"spiffe://{THEIRS}/partner", 0
STRANGER, STRANGER_GROUP = f"spiffe://{THEIRS}/stranger", 65534

_SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{folder}/server.sock"
  trust_domain = "{trust_domain}"
  data_dir = "{folder}/server"
  log_level = "DEBUG"
  ca_ttl = "24h"
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{ database_type = "sqlite3" connection_string = "file:interop?mode=memory&cache=shared" }}
  }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
}}
"""
_AGENT = """
agent {{
  data_dir = "{folder}/agent"
  log_level = "DEBUG"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{folder}/agent.sock"
  trust_bundle_path = "{folder}/bundle.pem"
  trust_domain = "{trust_domain}"
  join_token = "{token}"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class SpireError(Exception):
    """SPIRE did not start. The text is the end of its log."""


@dataclass(frozen=True)
class Spire:
    """A server and an agent that answer, with the workloads PARTNER and STRANGER, which federates with nobody."""

    programs: Mapping[str, Path]
    folder: Path

    @property
    def socket(self) -> str:
        """The agent's Workload API."""
        return str(self.folder / "agent.sock")

    async def server(self, *command: str, **flags: str | Path) -> str:
        """A subcommand of `spire-server`; what it printed."""
        words = [word for name, value in flags.items() for word in (f"-{name}", str(value))]
        socket = str(self.folder / "server.sock")
        return await ran(str(self.programs["spire-server"]), *command, "-socketPath", socket, *words)

    async def api(self, *command: str, socket: str) -> tuple[int, str]:
        """A subcommand of `spire-agent api` at any Workload API; its exit status and what it said."""
        status, out, complaints = await ended(str(self.programs["spire-agent"]), "api", *command, "-socketPath", socket)
        return status, out + complaints

    async def bundle(self) -> bytes:
        """The trust domain's own bundle, as SPIFFE JWKS."""
        return (await self.server("bundle", "show", format="spiffe")).encode()

    async def trust(self, bundle: Path) -> None:
        """Give the server podsvid's bundle, and wait until the agent hands it to PARTNER."""
        await self.server("bundle", "set", format="spiffe", id=str(OURS.id), path=bundle)
        wanted = TrustBundle.from_jwks(OURS, bundle.read_bytes()).to_der()
        async with asyncio.timeout(DEADLINE):
            while await self.federated() != wanted:
                await asyncio.sleep(LOOK_SECONDS)

    async def federated(self) -> bytes | None:
        """What the agent hands to PARTNER as podsvid's X.509 authorities, in DER; None while it knows no PARTNER."""
        status, said = await self.api("fetch", "x509", "-output", "json", socket=self.socket)
        if status != 0:
            assert "no identity issued" in said, said  # the agent hears of an entry at its next look
            return None
        return b64decode((json.loads(said).get("federated_bundles") or {}).get(str(OURS.id), ""))


@contextmanager
def _process(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        end(process)


async def _healthy(process: subprocess.Popen[bytes], log: Path, program: Path, socket: Path) -> None:
    try:
        async with asyncio.timeout(DEADLINE):
            while (await ended(str(program), "healthcheck", "-socketPath", str(socket)))[0] != 0:
                if process.poll() is not None:
                    break
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return
    except TimeoutError:
        pass
    raise SpireError(f"{program.name} did not start:\n{log.read_text()[-3000:]}")


@asynccontextmanager
async def started(programs: Mapping[str, Path], folder: Path) -> AsyncIterator[Spire]:
    """SPIRE in that folder, whose path is short, until left."""
    values = {"port": free_port(), "folder": folder, "trust_domain": THEIRS}
    server, agent = programs["spire-server"], programs["spire-agent"]
    here = Spire(programs, folder)
    (folder / "server.conf").write_text(_SERVER.format(**values))
    log = folder / "server.log"
    with _process(log, server, "run", "-config", folder / "server.conf") as process:
        await _healthy(process, log, server, folder / "server.sock")
        token = json.loads(await here.server("token", "generate", output="json"))["value"]
        (folder / "bundle.pem").write_text(await here.server("bundle", "show", format="pem"))
        parent = f"spiffe://{THEIRS}/spire/agent/join_token/{token}"
        await here.server(
            *("entry", "create"), spiffeID=STRANGER, parentID=parent, selector=f"unix:gid:{STRANGER_GROUP}"
        )
        # A trust domain that nothing is known of yet cannot be federated with.
        (folder / "empty.json").write_text('{"keys": []}')
        await here.server("bundle", "set", format="spiffe", id=str(OURS.id), path=folder / "empty.json")
        await here.server(
            *("entry", "create"),
            spiffeID=PARTNER,
            parentID=parent,
            selector=f"unix:gid:{PARTNER_GROUP}",
            federatesWith=str(OURS.id),
        )
        (folder / "agent.conf").write_text(_AGENT.format(**values, token=token))
        log = folder / "agent.log"
        with _process(log, agent, "run", "-config", folder / "agent.conf") as process:
            await _healthy(process, log, agent, folder / "agent.sock")
            await here.trust(folder / "empty.json")
            yield here
