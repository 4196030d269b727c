"""What one tenant has kubelet do, all at once: a process of its own that bench.fair starts, beside which others start.

    python -m bench.storms KIND KUBELET_ROOT MANY SECONDS
    python -m bench.storms jwt SOCKET MANY SECONDS

Each call is on a connection of its own, as kubelet's are; what is put off is asked for again after half a second, a
second, and so on. Says `ready`, waits for a line, and says as JSON how many volumes were made and calls put off. With
`jwt` so many callers ask a pod's socket for JWT-SVIDs, each time for an audience that nobody asked for before.
"""

import asyncio
import itertools
import json
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from agent.pb import workload_pb2
from csi.pb import csi_pb2
from tests.csi_rig import DRIVER, publish_request, unpublish_request
from tests.support import HEADER

KINDS = ("start", "stop", "keystores", "rsa", "jwt")
ATTRIBUTES = {"keystores": {"layout": "keystore"}, "rsa": {"keyAlgorithm": "rsa-4096"}}
FIRST_WAIT = 0.5
# Of who was refused a JWT-SVID.
JWT_WAIT = 0.1


class Storm:
    """Volumes of one namespace: of a pod each, or with `rsa` all of one pod."""

    def __init__(self, root: Path, kind: str, many: int) -> None:
        self._endpoint = root / "plugins" / DRIVER / "csi.sock"
        self.made, self.put_off = 0, 0
        one = str(uuid.uuid4())
        self._wanted: list[tuple[csi_pb2.NodePublishVolumeRequest, csi_pb2.NodeUnpublishVolumeRequest]] = []
        for number in range(many):
            uid = one if kind == "rsa" else str(uuid.uuid4())
            volume = f"csi-{uuid.uuid4().hex}"
            name = f"v{number}"
            target = f"{root}/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount"
            Path(target).parent.mkdir(parents=True)
            publish = publish_request(root, uid, volume, **ATTRIBUTES.get(kind, {}))
            publish.volume_context["csi.storage.k8s.io/pod.namespace"] = "offender"
            unpublish = unpublish_request(root, uid, volume)
            publish.target_path = unpublish.target_path = target
            self._wanted.append((publish, unpublish))

    async def start(self) -> None:
        """All volumes, until each is there."""
        await asyncio.gather(*(self._publish(publish) for publish, _ in self._wanted))

    async def stop(self) -> None:
        """None of them any more."""
        await asyncio.gather(*(self._unpublish(unpublish) for _, unpublish in self._wanted))

    async def _unpublish(self, request: csi_pb2.NodeUnpublishVolumeRequest) -> None:
        while True:
            try:
                await self._call("NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse)
            except grpc.aio.AioRpcError:
                # As kubelet does; a key that is being made when its publish is given up is made to its end.
                await asyncio.sleep(FIRST_WAIT)
            else:
                return

    async def _publish(self, request: csi_pb2.NodePublishVolumeRequest) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                await self._call("NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse)
            except grpc.aio.AioRpcError:
                self.put_off += 1
                await asyncio.sleep(wait)
                wait *= 2
            else:
                self.made += 1
                return

    async def _call(self, method: str, request: object, response: type) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))
        async with grpc.aio.insecure_channel(f"unix:{self._endpoint}", options=options) as channel:
            call = channel.unary_unary(
                f"/csi.v1.Node/{method}",
                type(request).SerializeToString,  # type: ignore[attr-defined]
                response.FromString,  # type: ignore[attr-defined]
            )
            await call(request, timeout=120.0)


class Askers:
    """Who asks for JWT-SVIDs of one pod."""

    def __init__(self, socket: Path, many: int) -> None:
        self._socket = socket
        self._many = many
        self._run = uuid.uuid4().hex
        self.made, self.put_off = 0, 0

    async def start(self) -> None:
        """For ever."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            await asyncio.gather(*(self._ask(channel, number) for number in range(self._many)))

    async def stop(self) -> None:
        """Nothing is left of it."""

    async def _ask(self, channel: grpc.aio.Channel, caller: int) -> None:
        fetch = channel.unary_unary(
            "/SpiffeWorkloadAPI/FetchJWTSVID", workload_pb2.JWTSVIDRequest.SerializeToString, lambda data: data
        )
        for number in itertools.count():
            try:
                request = workload_pb2.JWTSVIDRequest(audience=[f"{self._run}-{caller}-{number}"])
                await fetch(request, metadata=HEADER, timeout=60.0)
                self.made += 1
            except grpc.aio.AioRpcError:
                self.put_off += 1
                await asyncio.sleep(JWT_WAIT)


async def run(kind: str, root: Path, many: int, seconds: float) -> None:
    storm = Askers(root, many) if kind == "jwt" else Storm(root, kind, many)
    if kind == "stop":
        await storm.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(seconds):
            await (storm.stop() if kind == "stop" else storm.start())
    except TimeoutError:
        pass
    took = asyncio.get_running_loop().time() - began
    print(json.dumps({"made": storm.made, "put_off": storm.put_off, "seconds": took}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    if kind != "stop":
        await storm.stop()


def main(arguments: Sequence[str]) -> int:
    kind, root, many, seconds = arguments
    asyncio.run(run(kind, Path(root), int(many), float(seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
