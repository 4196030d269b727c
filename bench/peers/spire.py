"""SPIRE as the peer: a server and an agent by their own defaults, workloads told apart by group, no limits of rates."""

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from bench.peers.asking import Lane
from bench.peers.machine import SERVERS, family, on
from bench.peers.side import PEER, Side
from tests.interop.rig import ended, ran
from tests.ports import free_port
from tests.support import DEADLINE

TRUST_DOMAIN = "example.org"
ADMIN = f"spiffe://{TRUST_DOMAIN}/bench/admin"
# Of workloads beyond the first, which has this process's group.
GROUPS = 30_000
HOUR = 3600
LOOK_SECONDS = 0.1
# The server reads its registrations anew each five seconds.
RELOADED = 6.0
# Lines that are further apart are of two renewals.
PAUSE = 2.0

_SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{folder}/server.sock"
  trust_domain = "{trust_domain}"
  data_dir = "{folder}/server"
  admin_ids = ["{admin}"]
  ratelimit {{ attestation = false signing = false }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{folder}/db.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{folder}/keys.json" }} }}
}}
"""
_AGENT = """
agent {{
  data_dir = "{folder}/agent"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{folder}/agent.sock"
  trust_bundle_path = "{folder}/roots.pem"
  trust_domain = "{trust_domain}"
  join_token = "{token}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{folder}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class SpireFailed(Exception):
    """SPIRE did not do as it should. The text says what, and the end of its log."""


@dataclass
class Followed:
    """What a program prints: kept in a file, and of the lines that are looked for how many, and when a burst began."""

    file: Path
    made: int = 0
    renewed: int = 0
    begun: float = 0.0
    _last: float = field(default=0.0, repr=False)

    async def follow(self, pipe: asyncio.StreamReader) -> None:
        with self.file.open("wb") as sink:
            while line := await pipe.readline():
                now = time.time()
                sink.write(line)
                sink.flush()
                self.made += b'"Creating X509-SVID"' in line
                if b'"Renewing X509-SVID"' in line:
                    if now - self._last > PAUSE:
                        self.begun, self.renewed = now, 0
                    self._last = now
                    self.renewed += 1


@dataclass(frozen=True)
class Spire:
    """Running. `entries` are the registrations' names by number."""

    programs: Mapping[str, Path]
    folder: Path
    port: int
    server: asyncio.subprocess.Process
    agent: asyncio.subprocess.Process
    told: Followed
    entries: tuple[str, ...]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def side(self) -> Side:
        address = f"unix:{self.folder}/agent.sock"
        lanes = [Lane(address, group=GROUPS + number if number else 0) for number in range(len(self.entries))]

        def agent() -> list[int]:
            return family(self.agent.pid)

        return Side(PEER, lanes, agent, lambda: [*agent(), *family(self.server.pid)])

    async def as_admin(self) -> Mapping[str, str]:
        """The TLS of a caller that the server lets mint anything."""
        own = self.folder / "admin"
        own.mkdir(exist_ok=True)
        await self._command("x509", "mint", spiffeID=ADMIN, write=own)
        return {"Roots": str(self.folder / "roots.pem"), "Cert": str(own / "svid.pem"), "Key": str(own / "key.pem")}

    def as_agent(self) -> Mapping[str, str]:
        """The TLS of its agent, by what that keeps on disk."""
        kept = json.loads((self.folder / "agent" / "agent-data.json").read_text())
        chain = [base64.b64decode(each) for each in kept["svid"]]
        leaf = x509.load_pem_x509_certificate(chain[0])
        wanted = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for each in json.loads((self.folder / "agent" / "keys.json").read_text())["keys"].values():
            key = load_der_private_key(base64.b64decode(each), None)
            if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == wanted:
                break
        else:
            raise SpireFailed("the agent keeps no key of its SVID")
        cert_file, key_file = self.folder / "agent.crt", self.folder / "agent.key"
        cert_file.write_bytes(b"".join(chain))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return {"Roots": str(self.folder / "roots.pem"), "Cert": str(cert_file), "Key": str(key_file)}

    async def _command(self, *command: str, **flags: str | Path) -> str:
        return await _command(self.programs, self.folder, *command, **flags)


async def _command(programs: Mapping[str, Path], folder: Path, *command: str, **flags: str | Path) -> str:
    words = [word for name, value in flags.items() for word in (f"-{name}", str(value))]
    return await ran(str(programs["spire-server"]), *command, "-socketPath", str(folder / "server.sock"), *words)


@asynccontextmanager
async def _running(program: Path, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *on(SERVERS)(str(program), *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def _followed(process: asyncio.subprocess.Process, file: Path) -> AsyncIterator[Followed]:
    assert process.stdout is not None
    found = Followed(file)
    following = asyncio.create_task(found.follow(process.stdout))
    try:
        yield found
    finally:
        following.cancel()


async def _healthy(program: Path, socket: Path, told: Followed) -> None:
    await _until(lambda: socket.exists(), told, f"{program.name} has no socket")
    async with asyncio.timeout(DEADLINE):
        while (await ended(str(program), "healthcheck", "-socketPath", str(socket)))[0] != 0:
            await asyncio.sleep(LOOK_SECONDS)


async def _until(true: Callable[[], bool], told: Followed, what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE):
            while not true():
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise SpireFailed(f"{what}:\n{told.file.read_text()[-2000:]}") from None


@asynccontextmanager
async def spire(programs: Mapping[str, Path], identities: int, ttl: int = HOUR) -> AsyncIterator[Spire]:
    """A server, and an agent that has so many SVIDs of that many seconds, until left. Raises SpireFailed."""
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        values = {"folder": folder, "port": port, "trust_domain": TRUST_DOMAIN, "admin": ADMIN}
        (folder / "server.conf").write_text(_SERVER.format(**values))
        server_program, agent_program = programs["spire-server"], programs["spire-agent"]
        async with (
            _running(server_program, "run", "-config", str(folder / "server.conf")) as server,
            _followed(server, folder / "server.log") as of_server,
        ):
            await _healthy(server_program, folder / "server.sock", of_server)
            token = json.loads(await _command(programs, folder, "token", "generate", output="json"))["value"]
            (folder / "roots.pem").write_text(await _command(programs, folder, "bundle", "show", format="pem"))
            parent = f"spiffe://{TRUST_DOMAIN}/spire/agent/join_token/{token}"
            entries = await _registered(programs, folder, parent, identities, ttl)
            # Those that the server knows only at its next look would be made, and renewed, apart from the others.
            await asyncio.sleep(RELOADED)
            (folder / "agent.conf").write_text(_AGENT.format(**values, token=token))
            async with (
                _running(agent_program, "run", "-config", str(folder / "agent.conf")) as agent,
                _followed(agent, folder / "agent.log") as told,
            ):
                await _healthy(agent_program, folder / "agent.sock", told)
                await _until(lambda: told.made >= identities, told, f"the agent has not {identities} SVIDs")
                yield Spire(programs, folder, port, server, agent, told, entries)


async def _registered(
    programs: Mapping[str, Path], folder: Path, parent: str, identities: int, ttl: int
) -> tuple[str, ...]:
    entries = [
        {
            "selectors": [{"type": "unix", "value": f"gid:{GROUPS + number if number else 0}"}],
            "spiffe_id": f"spiffe://{TRUST_DOMAIN}/ns/default/sa/web-{number}",
            "parent_id": parent,
            "x509_svid_ttl": ttl,
        }
        for number in range(identities)
    ]
    (folder / "entries.json").write_text(json.dumps({"entries": entries}))
    said = await _command(programs, folder, "entry", "create", data=folder / "entries.json", output="json")
    return tuple(each["entry"]["id"] for each in json.loads(said)["results"])
