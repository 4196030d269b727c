"""nginx serves mutual TLS from a volume's files and is told of each rotation by `podsvid api watch --signal`."""

import asyncio
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from podsvid.quickstart.pods import PodVolume
from tests.ports import free_port
from tests.processes import end
from tests.support import IS_ROOT, ROOT, node, pod, serial

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root"),
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
]
ROTATIONS = 3
CONFIG = """
daemon off; worker_processes 1; pid {base}/nginx.pid; error_log {base}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
  uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {volume}/tls.crt; ssl_certificate_key {volume}/tls.key;
    ssl_client_certificate {volume}/ca.crt; ssl_verify_client on;
    location / {{ return 200 "hi"; }}
  }}
}}
"""


async def request(port: int, files: Path) -> tuple[bytes, str]:
    """The status line, and the serial of nginx's certificate, whose chain the client checked."""
    context = ssl.create_default_context(cafile=str(files / "ca.crt"))
    context.check_hostname = False
    # One directory handle, so that chain and key are of one rotation.
    newest = (files / "..data").resolve()
    context.load_cert_chain(newest / "tls.crt", newest / "tls.key")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert()
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    status = await reader.readline()
    await reader.read()
    writer.close()
    return status, certificate["serialNumber"].lower()


@pytest.mark.timeout(180)
def test_mutual_tls_over_rotations_without_a_failed_request(tmp_path: Path) -> None:
    async def run() -> None:
        async with node(ttl="10s") as (here, kubelet):
            volume = PodVolume(name="spiffe", attributes={"layout": "cert-manager"})
            web, client = [await kubelet.publish(pod(name, name), volume) for name in ("web", "client")]
            port = free_port()
            (tmp_path / "nginx.conf").write_text(CONFIG.format(base=tmp_path, port=port, volume=web))
            nginx = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
            command = [sys.executable, "-m", "podsvid", "api", "watch", "--socket", str(here.short(web) / "socket")]
            watch = None
            try:
                async with asyncio.timeout(30):
                    while not (tmp_path / "nginx.pid").exists():
                        await asyncio.sleep(0.02)
                watch = subprocess.Popen([*command, "--signal", str(nginx.pid)], cwd=ROOT, stdout=subprocess.DEVNULL)
                requests = 0
                served: set[str] = set()
                async with asyncio.timeout(120):
                    while len(served) <= ROTATIONS:
                        status, found = await request(port, client)
                        assert status == b"HTTP/1.1 200 OK\r\n"
                        served.add(found)
                        requests += 1
                        await asyncio.sleep(0.02)
                    while (await request(port, client))[1] != serial(web):
                        await asyncio.sleep(0.02)
                assert requests > 20
                with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                    await _without_a_certificate(port, client)
            finally:
                for process in (watch, nginx):
                    if process is not None:
                        end(process)

    asyncio.run(run())


async def _without_a_certificate(port: int, files: Path) -> None:
    context = ssl.create_default_context(cafile=str(files / "ca.crt"))
    context.check_hostname = False
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    status = await reader.readline()
    writer.close()
    assert status.startswith(b"HTTP/1.1 200"), status
