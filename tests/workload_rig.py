"""The workloads of a node over an authority that a test bends: real files, real sockets, a clock that stands still."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from agent.metrics import Metrics
from agent.pb import workload_pb2
from agent.workload.kept import KeptBundles
from agent.workload.registry import WorkloadRegistry
from agent.workload.slow import Lane, SlowWork
from agent.workload.workload import Workload
from csi.journal import Entry, Journal
from csi.model import Issued, JwtFile, PodRef, PodToken, Volume, VolumeOptions
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.turns import Turns
from svid.keys import KeyAlgorithm, PrivateKey
from svid.spiffeid import TrustDomain
from tests.fake_authority import FakeAuthority, StepClock
from tests.here_sockets import HereSockets, socket_path

UID = "0b6a9a4e-6a8e-4c1c-9f3c-111111111111"
POD = PodRef("default", "web-1", UID, "web")
TOKEN = PodToken("the pod's token")
HEADER = (("workload.spiffe.io", "true"),)
GIVEN = (("jwtAudiences", "api"),)
PARTNER = TrustDomain("partner.test")


def slow_work(
    threads: Blocking,
    make: Callable[[KeyAlgorithm], PrivateKey] = KeyAlgorithm.generate,
    most_waiting: int | None = None,
    jwt: Turns | None = None,
) -> SlowWork:
    """Keys and keystores on these threads, one of each at a time; JWT-SVIDs eight at a time."""
    keys, keystores = Turns(1, most_waiting=most_waiting), Turns(1)
    return SlowWork(Lane(keys, threads), Lane(keystores, threads), jwt or Turns(8), make)


async def issue(registry: WorkloadRegistry, volume: Volume, token: PodToken | None) -> Issued:
    """What is minted before a volume is made."""
    return await registry.issue(volume, token, await registry.key(volume))


class Rig:
    """A registry; what an agent's restart keeps is below `base`, the rest is in here."""

    def __init__(
        self,
        base: Path,
        authority: FakeAuthority,
        clock: StepClock,
        executor: ThreadPoolExecutor,
        slow: SlowWork | None = None,
    ) -> None:
        self.base = base
        self.authority = authority
        self.clock = clock
        self.metrics = Metrics()
        self.journal = Journal(base / "journal", str(base))
        blocking = Blocking(executor)
        self.sockets = HereSockets(clock, self.metrics)
        self.registry = WorkloadRegistry(
            authority,
            self.journal,
            blocking,
            clock,
            random.Random(1),
            self.metrics,
            slow or slow_work(blocking),
            self.sockets,
            KeptBundles(base / "federated.json"),
        )
        self._directories: list[VolumeDirectory] = []

    def volume(self, name: str = "spiffe", *jwt: JwtFile, options: VolumeOptions | None = None) -> Volume:
        """A volume whose directory is there; with `jwt`, tokens as files."""
        target = self.base / "pods" / UID / "volumes" / "kubernetes.io~csi" / name / "mount"
        target.mkdir(parents=True, exist_ok=True)
        below = target.relative_to(self.base / "pods").parts
        return Volume(f"csi-{name}", str(target), below, POD, None, options or VolumeOptions(jwt_files=jwt))

    def directory(self, volume: Volume) -> VolumeDirectory:
        found = VolumeDirectory(os.open(volume.target, os.O_RDONLY | os.O_DIRECTORY), volume)
        self._directories.append(found)
        return found

    async def open(self, volume: Volume) -> Workload:
        """Publish it, as kubelet would have it."""
        await self.registry.open(volume, self.directory(volume), await issue(self.registry, volume, TOKEN))
        workload = self.registry.by_volume[volume.id]
        workload.take_token(TOKEN)
        return workload

    async def adopt(self, volume: Volume) -> Workload:
        """Pick it up, as a new process would."""
        directory = self.directory(volume)
        (entry,) = (each for each in self.entries() if each.volume.id == volume.id)
        await self.registry.adopt(volume, directory, directory.read(), entry.renew_at)
        return self.registry.by_volume[volume.id]

    def entries(self) -> list[Entry]:
        """The journal's, none of them damaged."""
        found = list(self.journal.entries())
        assert all(isinstance(each, Entry) for each in found)
        return [each for each in found if isinstance(each, Entry)]

    def rotations(self, kind: str, result: str) -> float:
        """How many renewals ended so."""
        labels = {"kind": kind, "result": result}
        return self.metrics.registry.get_sample_value("podsvid_rotations_total", labels) or 0.0

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop go on until it is so."""
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)

    @asynccontextmanager
    async def looping(self, *loops: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
        """With these loops of the registry running, all that was left picked up."""
        self.registry.complete()
        running = [asyncio.ensure_future(each()) for each in loops]
        try:
            yield
            assert not [each for each in running if each.done()], "a loop ended by itself"
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def end(self) -> None:
        """As the process ends: files and journal stay."""
        await self.registry.stop()
        for socket in self.sockets.made:
            await socket.close()
        for each in self._directories:
            each.close()


@asynccontextmanager
async def rig(base: Path, before: Rig | None = None, slow: SlowWork | None = None) -> AsyncIterator[Rig]:
    """A rig; `before` is the process before, whose authority and clock go on."""
    clock = before.clock if before else StepClock()
    authority = before.authority if before else FakeAuthority(clock)
    with ThreadPoolExecutor(1) as executor:
        found = Rig(base, authority, clock, executor, slow)
        try:
            yield found
        finally:
            await found.end()


def on_rig(base: Path, play: Callable[[Rig], Awaitable[Any]]) -> None:
    """Run `play` over a new rig."""

    async def main() -> None:
        async with rig(base) as found:
            await play(found)

    asyncio.run(main())


async def fetch_jwt(workload: Workload, *audiences: str) -> str:
    """The token that the workload's socket answers with."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"unix:{socket_path(workload.directory)}", options=options) as channel:
        call = channel.unary_unary(
            "/SpiffeWorkloadAPI/FetchJWTSVID",
            request_serializer=workload_pb2.JWTSVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.JWTSVIDResponse.FromString,
        )
        answer = await call(workload_pb2.JWTSVIDRequest(audience=audiences), metadata=HEADER, timeout=30)
    (svid,) = answer.svids
    return str(svid.svid)
