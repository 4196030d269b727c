"""Real SPIRE servers and agents: a port of the loopback, sockets. `started` is another trust domain's, in memory."""

import asyncio
import json
import os
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

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
  ca_ttl = "{ca_ttl}"
  experimental {{ cache_reload_interval = "1s" }}
{federation}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{database}" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager {keys}
{upstream}
}}
"""
IN_MEMORY = {
    "ca_ttl": "24h",
    "database": "file:interop?mode=memory&cache=shared",
    "keys": '"memory" { plugin_data {} }',
    "federation": "",
    "upstream": "",
}
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
    # What the server's environment has beside this one's.
    environment: Mapping[str, str] = field(default_factory=dict)

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
def _process(log: Path, more: Mapping[str, str], *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={**os.environ, **more}
        )
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
async def serving(spire: Spire) -> AsyncIterator[None]:
    """Its server runs, by the folder's server.conf."""
    program, log = spire.programs["spire-server"], spire.folder / "server.log"
    with _process(log, spire.environment, program, "run", "-config", spire.folder / "server.conf") as process:
        await _healthy(process, log, program, spire.folder / "server.sock")
        yield


async def admitted(spire: Spire, values: Mapping[str, object]) -> str:
    """The ID of an agent that may join, which is told in the folder's agent.conf."""
    token = json.loads(await spire.server("token", "generate", output="json"))["value"]
    (spire.folder / "bundle.pem").write_text(await spire.server("bundle", "show", format="pem"))
    (spire.folder / "agent.conf").write_text(_AGENT.format(**values, token=token))
    return f"spiffe://{values['trust_domain']}/spire/agent/join_token/{token}"


@asynccontextmanager
async def joined(spire: Spire) -> AsyncIterator[None]:
    """Its agent runs."""
    program, log = spire.programs["spire-agent"], spire.folder / "agent.log"
    with _process(log, {}, program, "run", "-config", spire.folder / "agent.conf") as process:
        await _healthy(process, log, program, spire.folder / "agent.sock")
        yield


def on_disk(folder: Path) -> dict[str, object]:
    """As IN_MEMORY, of a server that is the same after a restart."""
    keys = f'"disk" {{ plugin_data {{ keys_path = "{folder}/keys.json" }} }}'
    return {**IN_MEMORY, "database": folder / "db.sqlite3", "keys": keys}


def configured(
    programs: Mapping[str, Path],
    folder: Path,
    values: Mapping[str, object],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Spire:
    """One that does not run yet. The folder's path is short."""
    (folder / "server.conf").write_text(_SERVER.format(**values))
    return Spire(programs, folder, environment)


@asynccontextmanager
async def started(programs: Mapping[str, Path], folder: Path) -> AsyncIterator[Spire]:
    """SPIRE of trust domain other.example in that folder, whose path is short, until left."""
    values = {"port": free_port(), "folder": folder, "trust_domain": THEIRS, **IN_MEMORY}
    here = configured(programs, folder, values)
    async with serving(here):
        parent = await admitted(here, values)
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
        async with joined(here):
            await here.trust(folder / "empty.json")
            yield here
