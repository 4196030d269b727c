"""Agent and signer listen on IPv4, IPv6 and both; where a network has no IPv6, everywhere is IPv4."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kubernetes.aio.config import incluster_config

from signer.cluster.kube_client import KubeClient
from svid.certificates import to_pem
from tests.fake_authority import root
from tests.ports import free_port
from tests.signer_process import process
from tests.support import IS_ROOT, ROOT
from tests.unit.runtime.test_listening import ipv6

BOTH = {"127.0.0.1", "::1"}

# In a network of its own: what is served at all addresses is reached by IPv4.
WITHOUT_IPV6 = """\
import asyncio, socket, sys
from runtime import http, pages, settings
from runtime.http import Answer

async def page(accept):
    return Answer(200, b"here")

async def main():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pass
    else:
        sys.exit("this network has IPv6")
    with http.serving(settings.listen(":0"), {"/page": page}, pages.METRICS_LIMITS) as (_, port):
        with socket.create_connection(("127.0.0.1", port), 30) as peer:
            peer.sendall(b"GET /page HTTP/1.1\\r\\n\\r\\n")
            assert (await asyncio.to_thread(peer.makefile("rb").read)).endswith(b"here")
    print("served")

asyncio.run(main())
"""


def reached(port: int) -> set[str]:
    found = set()
    for host in BOTH:
        try:
            socket.create_connection((host, port), timeout=30).close()
        except ConnectionRefusedError:
            continue
        found.add(host)
    return found


@pytest.fixture(params=["[::]:", "[::1]:", ":", "127.0.0.1:", "0.0.0.0:"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A signer whose three listeners are at such addresses."""
    ports = [free_port() for _ in range(3)]
    flags = []
    for name, port in zip(("listen", "metrics-listen", "health-listen"), ports, strict=True):
        flags += [f"--{name}", f"{request.param}{port}"]
    with process(tmp_path, 1, 1, ports[0], *flags):
        yield request.param, ports


@ipv6
def test_every_listener_takes_every_kind_of_address(served: tuple[str, list[int]]) -> None:
    kind, ports = served
    wanted = {"[::]:": BOTH, ":": BOTH, "[::1]:": {"::1"}}.get(kind, {"127.0.0.1"})
    assert [reached(port) for port in ports] == [wanted] * 3


@pytest.mark.skipif(not IS_ROOT, reason="makes a network of its own: run as root")
def test_everywhere_is_ipv4_in_a_network_without_ipv6() -> None:
    inside = 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up; exec "$@"'
    without = ["unshare", "--net", "--mount", "sh", "-c", f"mount -t proc proc /proc 2>/dev/null; {inside}", "sh"]
    done = subprocess.run(
        [*without, sys.executable, "-c", WITHOUT_IPV6],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "served\n", done.stderr


def test_the_api_server_of_an_ipv6_cluster_has_its_address_in_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("TOKEN", "token"), ("CERT", certificate())):
        file = tmp_path / name
        file.write_text(content)
        monkeypatch.setattr(incluster_config, f"SERVICE_{name}_FILENAME", str(file))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    async def connected() -> str:
        client = await KubeClient.connect(None)
        try:
            return str(client._configuration.host)
        finally:
            await client.close()

    assert asyncio.run(connected()) == "https://[fd00::1]:443"


def certificate() -> str:
    return to_pem(root(datetime.now(UTC)).chain).decode()
