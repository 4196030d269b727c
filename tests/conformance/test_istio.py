"""What Istio's pilot-agent does with a socket at start-up, and what its Envoy asks: a volume as `workload-socket`."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.pb import sds_pb2
from agent.socket.sds import SERVICE
from agent.socket.sds_secrets import TYPE_URL
from podsvid.quickstart.pods import PodVolume
from tests.support import IS_ROOT, VOLUME, node, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
NODE_ID = "sidecar~10.0.0.1~web.default~default.svc.cluster.local"
# As a container sees the volume: kubelet bind-mounts it read-only into the pod's own mount namespace.
IN_A_CONTAINER = """
import errno, os, sys
for name in ("socket", "other"):
    try:
        os.unlink(os.path.join(sys.argv[1], name))
        print("removed", name)
    except OSError as error:
        print(errno.errorcode[error.errno], name)
"""


async def secret(stream: Any, name: str, *, first: bool) -> sds_pb2.Secret:
    """The next secret of a stream that asks for one name, acknowledged as Envoy does."""
    if first:
        node = sds_pb2.Node(id=NODE_ID, cluster="web.default", user_agent_name="envoy")
        request = sds_pb2.DiscoveryRequest(node=node, resource_names=[name], type_url=TYPE_URL)
        await stream.write(request.SerializeToString())
    response = sds_pb2.DiscoveryResponse.FromString(await stream.read())
    (resource,) = response.resources
    acknowledged = sds_pb2.DiscoveryRequest(
        resource_names=[name], type_url=TYPE_URL, version_info=response.version_info, response_nonce=response.nonce
    )
    await stream.write(acknowledged.SerializeToString())
    return sds_pb2.Secret.FromString(resource.value)


def test_the_socket_passes_pilot_agents_check_and_serves_default_and_rootca_over_rotations() -> None:
    async def run() -> None:
        async with node(ttl="6s") as (here, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            socket = here.short(target) / "socket"
            # It must be there, no regular file, and speak HTTP/2 within a second of a dial; Envoy runs as another uid.
            assert not socket.is_file()
            assert os.stat(socket).st_mode & 0o777 == 0o666
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                await channel.channel_ready()
                streams: dict[str, Any] = {
                    name: channel.stream_stream(f"/{SERVICE}/StreamSecrets")() for name in ("default", "ROOTCA")
                }
                async with asyncio.timeout(60):
                    root = await secret(streams["ROOTCA"], "ROOTCA", first=True)
                    chains = [await secret(streams["default"], "default", first=True)]
                    while len(chains) < 4:
                        chains.append(await secret(streams["default"], "default", first=False))
            assert root.validation_context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
            found = {each.tls_certificate.certificate_chain.inline_bytes for each in chains}
            assert len(found) == 4

    asyncio.run(run())


def test_a_read_only_mount_cannot_lose_its_socket_and_another_name_finds_none() -> None:
    async def run() -> None:
        async with node() as (_, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            script = f'mount --bind {target} {target} && mount -o remount,ro,bind {target} && exec "$@"'
            command = [
                "unshare",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
                sys.executable,
                "-c",
                IN_A_CONTAINER,
                str(target),
            ]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
            # To pilot-agent this failure is fatal, so it never starts an SDS server of its own there.
            assert found[0] == "EROFS socket"
            # WORKLOAD_IDENTITY_SOCKET_FILE with another name: nothing there, which pilot-agent treats as fatal too.
            assert found[1] in ("EROFS other", "ENOENT other")
            assert not (target / "other").exists()

    asyncio.run(run())


def test_a_volume_as_workload_certs(tmp_path: Path) -> None:
    async def run() -> None:
        async with node() as (_, kubelet):
            volume = PodVolume(name="workload-certs", attributes={"layout": "istio"})
            target = await kubelet.publish(pod(), volume)
            for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
                assert (target / name).read_bytes().startswith(b"-----BEGIN ")
            check = ["openssl", "verify", "-CAfile", str(target / "root-cert.pem"), str(target / "cert-chain.pem")]
            subprocess.run(check, check=True, capture_output=True)

    asyncio.run(run())
