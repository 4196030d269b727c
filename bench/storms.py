"""What one tenant has kubelet do, all at once: a process of its own, which bench.fair and bench.hostile start.

    python -m bench.storms KIND KUBELET_ROOT MANY SECONDS
    python -m bench.storms jwt SOCKET MANY SECONDS

Each call is on a connection of its own, as kubelet's are; what is put off is asked for again after half a second, a
second, and so on. Says `ready`, waits for a line, and says as JSON how many volumes were made and calls put off; after
another line it takes away what it made. With `jwt` so many callers ask a pod's socket for JWT-SVIDs, each time for an
audience that nobody asked for before.
"""

import asyncio
import itertools
import json
import os
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import grpc.aio

from agent.pb import workload_pb2
from csi.pb import csi_pb2
from tests.csi_rig import DRIVER, publish_request, unpublish_request
from tests.support import HEADER

RSA: Mapping[str, str] = MappingProxyType({"keyAlgorithm": "rsa-4096", "ttl": "1m"})


@dataclass(frozen=True)
class Kind:
    """How many volumes a pod wants, and what its author wrote for each: the shortest `ttl` that one gets is a minute.

    `at_once`: kubelet's calls under way. It asks for a pod's tokens first, some fifty a second.
    """

    of_a_pod: int = 1
    attributes: Mapping[str, str] = field(default_factory=dict)
    at_once: int = 1000


VOLUMES: Mapping[str, Kind] = MappingProxyType(
    {
        "start": Kind(),
        "stop": Kind(),
        "keystores": Kind(1, {"layout": "keystore"}),
        "rsa": Kind(100, RSA),
        "rsa-keystores": Kind(1, {**RSA, "keystores": "pkcs12"}),
        "many": Kind(25, {"ttl": "1m"}, at_once=500),
    }
)
FIRST_WAIT = 0.5
# Seconds in which all can be taken away again.
LEAVING = 120.0
# Of who was refused a JWT-SVID.
JWT_WAIT = 0.1


class Storm:
    """Volumes of one namespace."""

    def __init__(self, root: Path, kind: str, many: int) -> None:
        self._endpoint = root / "plugins" / DRIVER / "csi.sock"
        self.made, self.put_off = 0, 0
        wanted, uid = VOLUMES[kind], ""
        self._calls = asyncio.Semaphore(wanted.at_once)
        self._wanted: list[tuple[csi_pb2.NodePublishVolumeRequest, csi_pb2.NodeUnpublishVolumeRequest]] = []
        for number in range(many):
            uid = uid if number % wanted.of_a_pod else str(uuid.uuid4())
            volume = f"csi-{uuid.uuid4().hex}"
            name = f"v{number}"
            target = f"{root}/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount"
            Path(target).parent.mkdir(parents=True)
            publish = publish_request(root, uid, volume, **wanted.attributes)
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
        async with self._calls, grpc.aio.insecure_channel(f"unix:{self._endpoint}", options=options) as channel:
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


@dataclass(frozen=True)
class Done:
    """What a storm came to; `share` is the part of a core that its process took."""

    made: int
    put_off: int
    seconds: float
    share: float


class Child:
    """A storm's process, for who starts it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    @classmethod
    async def ready(cls, kind: str, of: Path, many: int, seconds: float) -> Self:
        """One that waits to begin."""
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "bench.storms", kind, str(of), str(many), str(seconds))
        found = cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
        assert await found._output.readline() == b"ready\n"
        return found

    def begin(self) -> asyncio.Task[Done]:
        """Let it go on until it has all that it wants, or its time is over."""
        return asyncio.create_task(self._done())

    async def end(self) -> None:
        """Have it take away what it made."""
        self._input.write(b"\n")
        self._input.close()
        assert await self._process.wait() == 0

    async def _done(self) -> Done:
        before = cpu(self._process.pid)
        self._input.write(b"\n")
        found = json.loads(await self._output.readline())
        seconds = found["seconds"]
        return Done(found["made"], found["put_off"], seconds, (cpu(self._process.pid) - before) / max(seconds, 0.1))


def cpu(process: int) -> float:
    """Seconds that a process has used."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        # Who started it may be gone, and the agent.
        async with asyncio.timeout(LEAVING):
            await storm.stop()


def main(arguments: Sequence[str]) -> int:
    kind, root, many, seconds = arguments
    # A connection for each volume.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(run(kind, Path(root), int(many), float(seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
