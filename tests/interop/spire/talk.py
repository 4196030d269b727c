"""Two workloads that talk over mTLS: programs of go-spiffe at any Workload API, or files and OpenSSL."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.rig import as_group, ended
from tests.interop.spire.spire import PARTNER_GROUP
from tests.support import DEADLINE

# What a client hears when the server does not take it: the alert, or no more than the end, where that overtakes it.
REFUSED = r"bad certificate|connection reset|broken pipe|EOF"


@dataclass(frozen=True)
class Peer:
    """A workload: its SPIFFE ID, where its Workload API is, and the group that it runs as."""

    spiffe_id: str
    socket: Path | str
    group: int = PARTNER_GROUP


async def talk(program: Path, server: Peer, client: Peer, renewals: int = 0) -> dict[str, int] | str:
    """Lines over mTLS until the client was renewed so often: what was `sent` and over how many `serials`.

    Each takes the other only for its SPIFFE ID. A text when they do not come to terms: the client's complaint.
    """
    async with _serving(program, server, client) as address:
        command = [str(program), "tls-client", f"unix://{client.socket}", address, server.spiffe_id, str(renewals)]
        status, out, complaints = await ended(*as_group(client.group, *command))
    if status != 0:
        return complaints
    found: dict[str, int] = json.loads(out)
    return found


@asynccontextmanager
async def _serving(program: Path, server: Peer, client: Peer) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *as_group(server.group, str(program), "tls-server", f"unix://{server.socket}", client.spiffe_id),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            line = await process.stdout.readline()
        assert line, "the server has ended"
        yield json.loads(line)["address"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(frozen=True)
class Heard:
    """What came of traffic: connections that were made, what was said of those that failed, and how many authorities
    signed for the client and for the server."""

    made: int
    failed: list[str]
    own: int
    peers: int


class Traffic:
    """A new connection each second from one workload to another, by go-spiffe."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def heard(self) -> Heard:
        """End it."""
        out, complaints = await asyncio.wait_for(self._process.communicate(b""), DEADLINE)
        assert self._process.returncode == 0, complaints.decode()
        return Heard(**json.loads(out))


@asynccontextmanager
async def traffic(program: Path, server: Peer, client: Peer) -> AsyncIterator[Traffic]:
    """While it is entered; each takes the other only for its SPIFFE ID."""
    async with _serving(program, server, client) as address:
        process = await asyncio.create_subprocess_exec(
            *as_group(client.group, str(program), "traffic", f"unix://{client.socket}", address, server.spiffe_id),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield Traffic(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@dataclass(frozen=True)
class Files:
    """A workload whose SVID is in files; `trusts` are the authorities of the other trust domain alone."""

    spiffe_id: str
    chain: Path
    key: Path
    trusts: Path

    def context(self, *, serves: bool) -> ssl.SSLContext:
        """For mTLS with a workload of that other trust domain."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the name is a SPIFFE ID, which is looked at after
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.chain, self.key)
        context.load_verify_locations(self.trusts)
        return context


async def meet(server: Files, client: Files) -> tuple[str, str]:
    """Whom each has seen, over one connection through OpenSSL. Raises ssl.SSLError, ConnectionError."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(_peer(writer))
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server.context(serves=True))
    async with listening, asyncio.timeout(DEADLINE):
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client.context(serves=False))
        try:
            writer.write(b"hello\n")
            # With TLS 1.3 a client hears only here that the server refused it.
            if await reader.readline() != b"hello\n":
                raise ConnectionError("the server closed the connection")
            return await seen, _peer(writer)
        finally:
            writer.close()


def _peer(writer: asyncio.StreamWriter) -> str:
    names = [value for kind, value in writer.get_extra_info("peercert")["subjectAltName"] if kind == "URI"]
    assert len(names) == 1, names
    return str(names[0])
