"""Two real Envoys do mutual TLS through SDS from two pods' sockets, over rotations; a third pod is refused.

The example's two lose no call to a rotation, nor to a server that gets no CPU meanwhile.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import envoy
from tests.ports import free_port
from tests.support import ROOT, VOLUME, Host, node, pod

# Rotations that must be lived through; PODSVID_LONG=1 asks for the minute of the issue instead of some 40 s.
ROTATIONS = 20 if os.environ.get("PODSVID_LONG") else 10
OK = b"HTTP/1.1 200 OK"


def spiffe_id(account: str) -> str:
    return f"spiffe://example.org/ns/default/sa/{account}"


class Connection:
    """An HTTP/1.1 connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self, body: bytes = b"hi\n") -> bytes:
        """The status line; empty when the connection was closed instead."""
        self.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
                await self.reader.readexactly(len(body))
            except (asyncio.IncompleteReadError, ConnectionError):
                return b""
        return head.partition(b"\r\n")[0]


async def connected(port: int) -> Connection:
    return Connection(*await asyncio.open_connection("127.0.0.1", port))


async def load(client: envoy.Envoy, port: int) -> tuple[int, int]:
    """Requests over one kept connection and over a fresh one each, until enough rotations were seen."""
    kept = await connected(port)
    requests = failed = 0
    while await updates(client) <= ROTATIONS:
        failed += (await kept.request()) != OK
        fresh = await connected(port)
        failed += (await fresh.request()) != OK
        fresh.writer.close()
        requests += 2
        await asyncio.sleep(0.02)
    failed += (await kept.request()) != OK
    kept.writer.close()
    return requests + 1, failed


async def updates(client: envoy.Envoy) -> int:
    return max((await client.stats("sds.default.update_success")).values(), default=0)


@pytest.mark.timeout(300)
def test_mutual_tls_through_sds_over_rotations(tmp_path: Path) -> None:
    async def run() -> None:
        async with node(ttl="8s") as (here, kubelet):
            sockets = {
                name: here.short(await kubelet.publish(pod(name, name), VOLUME)) / "socket"
                for name in ("client", "server", "stranger")
            }

            async def pair(number: int, api_type: str, bundle: str) -> None:
                inner, outer, third = free_port(), free_port(), free_port()
                server = envoy.bootstrap(
                    sds_socket=sockets["server"],
                    api_type=api_type,
                    bundle=bundle,
                    inbound=(inner, spiffe_id("client")),
                    outbound=None,
                )
                client, stranger = (
                    envoy.bootstrap(
                        sds_socket=sockets[name],
                        api_type=api_type,
                        bundle=bundle,
                        inbound=None,
                        outbound=(port, inner, spiffe_id("server")),
                    )
                    for name, port in (("client", outer), ("stranger", third))
                )
                async with (
                    envoy.running(tmp_path, number, server) as serving,
                    envoy.running(tmp_path, number + 1, client) as calling,
                    envoy.running(tmp_path, number + 2, stranger) as other,
                ):
                    requests, failed = await load(calling, outer)
                    print(f"{api_type} {bundle}: {requests} requests, {failed} failed")
                    assert failed == 0
                    assert await (await connected(third)).request() == b""
                    verified = await serving.stats("ssl.fail_verify_san")
                    assert sum(verified.values()) >= 1
                    for each in (serving, calling, other):
                        assert not sum((await each.stats("update_rejected")).values())

            await asyncio.gather(pair(0, "GRPC", "ALL"), pair(3, "DELTA_GRPC", "ROOTCA"))

    asyncio.run(run())


async def rotated(here: Host, name: str) -> None:
    """As a person has a pod's SVID renewed."""
    command = [sys.executable, "-m", "podsvid", "node", "rotate", f"default/{name}", "--socket"]
    command.append(str(here.base / "r" / "admin.sock"))
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


@pytest.mark.timeout(120)
def test_a_call_of_the_example_outlives_renewals_and_a_server_without_cpu(tmp_path: Path) -> None:
    names = ("envoy-client", "envoy-server")

    async def run() -> None:
        async with node() as (here, kubelet):
            sockets = {name: here.short(await kubelet.publish(pod(name, name), VOLUME)) / "socket" for name in names}
            ports = {name: free_port() for name in names}
            client, server = (
                envoy.of_example(name, sds_socket=sockets[name], listens=ports[name], peer=ports["envoy-server"])
                for name in names
            )
            async with (
                envoy.running(tmp_path, 0, server) as serving,
                envoy.running(tmp_path, 1, client) as calling,
            ):
                before = await updates(calling)
                async with asyncio.timeout(60):
                    # What it has under way ends with it, whatever fails.
                    async with asyncio.TaskGroup() as meanwhile:
                        with serving.without_cpu():
                            fresh = await connected(ports["envoy-client"])
                            answer = meanwhile.create_task(fresh.request(b"hello\n"))
                            for name in names:
                                meanwhile.create_task(rotated(here, name))
                            # The one attempt that Envoy makes of itself is over by then.
                            while not sum((await calling.stats("server.upstream_cx_connect_timeout")).values()):
                                await asyncio.sleep(0.05)
                        assert await answer == OK
                    while await updates(calling) == before:
                        await asyncio.sleep(0.05)
                fresh.writer.close()
                assert not sum((await serving.stats("ssl.fail_verify")).values())

    asyncio.run(run())
