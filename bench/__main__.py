"""Measure a real agent over its real sockets, print a table, and record it in bench/results/."""

import argparse
import asyncio
import compileall
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio

from agent.pb import sds_pb2, workload_pb2
from agent.socket.sds import SERVICE as SDS
from bench import floor
from bench.report import RATIO, Report, environment, record, table
from csi.pb import csi_pb2
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import PodVolume
from tests.support import DEADLINE, DRIVER, HEADER, ROOT, Host, first, host, pod, svid_stream

VOLUME = PodVolume(name="spiffe")
# A run that takes longer hangs.
LIMIT = 480.0
# From the kill of the agent until the SVIDs that it left are due: it starts, picks up, and streams are opened.
LEAD = timedelta(seconds=20)
# What was begun with the last publish is done by then.
IDLE_AFTER, IDLE_SECONDS = 8.0, 5.0
# The floors' p50 on the host that the budgets were set on, a quiet one with two cores (2026-11-27).
USUAL_START, USUAL_PUBLISH, USUAL_CONNECT, USUAL_IDLE, USUAL_KEYS = 0.0805, 0.794, 1.01, 0.019, 0.0143
MEMORY = {0: 85.0, 110: 105.0, 500: 155.0}


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1e3


@asynccontextmanager
async def registered(here: Host) -> AsyncIterator[StandInKubelet]:
    """An agent that is started on `here` and registered; it looks for sockets often enough not to be measured."""
    kubelet = StandInKubelet(here.kubelet_root, registry_interval=0.01)
    # A socket's limits would be what is measured.
    here.start("--socket-rate", "100000", "--socket-burst", "100000", "--socket-quarantine", "false")
    await kubelet.start()
    try:
        await kubelet.wait_registered(DRIVER)
        yield kubelet
    finally:
        await kubelet.stop()


class Bench:
    """All measurements; `scale` shortens them."""

    def __init__(self, scale: float) -> None:
        self.report = Report()
        self._scale = scale
        # What later rows stand beside.
        self._starting: list[float] = []
        self._resident: list[float] = []

    def count(self, number: int) -> int:
        return max(2, int(number * self._scale))

    def mint_floor(self) -> None:
        floor.mint()  # the first one loads and seeds
        minting = [floor.mint() for _ in range(self.count(500))]
        self.report.add("floor: P-256 key + signature", "ms", minting)

    async def starts(self) -> None:
        """Start of the process until kubelet has registered it, with nothing to pick up."""
        values = []
        for _ in range(self.count(8)):
            with host() as here:
                with floor.server(here.base / "floor.sock") as (process, seconds):
                    self._starting.append(seconds)
                    self._resident.append(_memory([process.pid]))
                started = time.perf_counter()
                async with registered(here):
                    values.append(time.perf_counter() - started)
        self.report.add("floor: start of Python, grpcio, cryptography, an empty server", "s", self._starting)
        self.report.add(
            "start to registered", "s", values, floor=self._starting, budget={"p50": 1.0}, usual=USUAL_START
        )
        self.report.add("floor: PSS of that empty server", "MB", self._resident)

    async def latencies(self) -> None:
        """Publish one after the other and 110 at once; connect + first SVID; fetches a second."""
        with host() as here, floor.server(here.base / "floor.sock"):
            async with registered(here) as kubelet:
                targets = await self._publishes(here, kubelet)
                await self._fetches(here, [here.short(target) / "socket" for target in targets])
                await self._tokens(here, here.short(targets[1]) / "socket")
                await self._secrets(here, here.short(targets[2]) / "socket")

    async def _publishes(self, here: Host, kubelet: StandInKubelet) -> list[Path]:
        endpoint = kubelet.registration(DRIVER).endpoint
        async with (
            grpc.aio.insecure_channel(f"unix:{endpoint}") as channel,
            grpc.aio.insecure_channel(f"unix:{here.base / 'floor.sock'}") as floor_channel,
        ):
            publish = channel.unary_unary(
                "/csi.v1.Node/NodePublishVolume",
                request_serializer=csi_pb2.NodePublishVolumeRequest.SerializeToString,
                response_deserializer=csi_pb2.NodePublishVolumeResponse.FromString,
            )
            empty = floor_channel.unary_unary(floor.EMPTY_CALL, request_serializer=bytes, response_deserializer=bytes)

            def prepared(name: str) -> csi_pb2.NodePublishVolumeRequest:
                request = kubelet.publish_request(pod(name, f"sa-{name}"), VOLUME)
                Path(request.target_path).parent.mkdir(parents=True)
                return request

            async def once(request: csi_pb2.NodePublishVolumeRequest) -> float:
                return await timed(lambda: publish(request))

            async def once_empty() -> float:
                return await timed(lambda: empty(b""))

            await once_empty()
            requests = [prepared(f"p{number}") for number in range(self.count(300))]
            values, floors = [], []
            for request in requests:
                floors.append(await once_empty() + floor.mint())
                values.append(await once(request))
            self.report.add("floor: an empty call + P-256 key + signature", "ms", floors)
            self.report.add(
                "NodePublishVolume, one after the other",
                "ms",
                values,
                floor=floors,
                budget={"p50": 5, "p99": 25},
                usual=USUAL_PUBLISH,
            )
            each, whole, floors, whole_floors = [], [], [], []
            for turn in range(self.count(3)):
                burst = [prepared(f"b{turn}-{number}") for number in range(110)]
                started = time.perf_counter()
                floors += await asyncio.gather(*(once_empty() for _ in burst))
                whole_floors.append((time.perf_counter() - started) * 1e3)
                started = time.perf_counter()
                each += await asyncio.gather(*(once(request) for request in burst))
                whole.append((time.perf_counter() - started) * 1e3)
            self.report.add("floor: an empty call, 110 at once", "ms", floors)
            self.report.add("NodePublishVolume, 110 at once, each", "ms", each, floor=floors)
            self.report.add("NodePublishVolume, 110 at once, until the last", "ms", whole, floor=whole_floors)
            return [Path(request.target_path) for request in requests]

    async def _fetches(self, here: Host, sockets: Sequence[Path]) -> None:
        """Of all pods in turn: one that fetches so often by itself is set apart for it."""
        empty = here.base / "floor.sock"
        turn = itertools.cycle(sockets)

        async def fetch() -> None:
            await first(next(turn))

        async def fetch_empty() -> None:
            await floor.fetch(empty)

        values, floors = [], []
        for _ in range(self.count(500)):
            floors.append(await timed(fetch_empty))
            values.append(await timed(fetch))
        self.report.add("floor: connect + first message of an empty handler", "ms", floors)
        self.report.add(
            "Workload API, connect + first SVID",
            "ms",
            values,
            floor=floors,
            budget={"p50": 1.5, RATIO: 1.3},
            usual=USUAL_CONNECT,
            known="the relay before gRPC, docs/decisions.md, 5",
        )

        async def rate(call: Callable[[], Awaitable[None]]) -> float:
            gate = asyncio.Semaphore(8)
            batch = self.count(300)

            async def gated() -> None:
                async with gate:
                    await call()

            milliseconds = await timed(lambda: asyncio.gather(*(gated() for _ in range(batch))))
            return batch / milliseconds * 1e3

        rates, floors = [], []
        for _ in range(self.count(5)):
            floors.append(await rate(fetch_empty))
            rates.append(await rate(fetch))
        self.report.add("floor: connections with an empty message, 8 at once", "1/s", floors)
        self.report.add("Workload API, fetches with a connection each, 8 at once", "1/s", rates, floor=floors)

    async def _tokens(self, here: Host, socket: Path) -> None:
        """JWT-SVIDs over a connection that is open: one that is kept, and ever new audiences (RS256)."""
        async with (
            grpc.aio.insecure_channel(f"unix:{socket}") as channel,
            grpc.aio.insecure_channel(f"unix:{here.base / 'floor.sock'}") as floor_channel,
        ):
            ask: Any = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID", request_serializer=bytes)
            empty = floor_channel.unary_unary(floor.EMPTY_CALL, request_serializer=bytes, response_deserializer=bytes)

            async def fetch(audience: str) -> float:
                request = workload_pb2.JWTSVIDRequest(audience=[audience]).SerializeToString()
                return await timed(lambda: ask(request, metadata=HEADER))

            await fetch("kept")
            kept, fresh, floors = [], [], []
            for number in range(self.count(300)):
                floors.append(await timed(lambda: empty(b"")))
                kept.append(await fetch("kept"))
                fresh.append(await fetch(f"fresh-{number}"))
        self.report.add("floor: an empty call on an open connection", "ms", floors)
        self.report.add("FetchJWTSVID, cached", "ms", kept, floor=floors)
        self.report.add("FetchJWTSVID, a new RS256 token", "ms", fresh, floor=floors)

    async def _secrets(self, here: Host, socket: Path) -> None:
        """Connect, and the first secret by SDS, as an Envoy that starts."""
        request = sds_pb2.DiscoveryRequest(resource_names=["default"]).SerializeToString()

        async def secret() -> None:
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
                call: Any = channel.stream_stream(f"/{SDS}/StreamSecrets")()
                await call.write(request)
                await call.read()

        values, floors = [], []
        for _ in range(self.count(300)):
            floors.append(await timed(lambda: floor.fetch(here.base / "floor.sock")))
            values.append(await timed(secret))
        self.report.add("SDS, connect + first secret", "ms", values, floor=floors)

    async def at_volumes(self, number: int) -> None:
        """PSS and idle CPU with one open stream a volume, each time in a new agent; then what needs such a node."""
        resident, busy, idle = [], [], []
        times = self.count(3)
        for turn in range(times):
            with host() as here, floor.server(here.base / "floor.sock") as (empty, _):
                async with registered(here) as kubelet:
                    targets = [await kubelet.publish(pod(f"p{n}", f"sa{n}"), VOLUME) for n in range(number)]
                    sockets = [here.short(target) / "socket" for target in targets]
                    async with AsyncExitStack() as stack:
                        for socket in sockets:
                            await anext(aiter(await stack.enter_async_context(svid_stream(socket))))
                        assert here.process is not None
                        await asyncio.sleep(IDLE_AFTER)
                        both = await asyncio.gather(_busy(here.processes()), _busy([empty.pid]))
                        busy.append(both[0])
                        idle.append(both[1])
                        resident.append(_memory(here.processes()))
                    if turn == times - 1:
                        self.report.add(
                            f"PSS of agent and server, {number} volumes, a stream each",
                            "MB",
                            resident,
                            floor=self._resident,
                            budget={"max": MEMORY[number]},
                        )
                        self.report.add("floor: idle CPU of an empty server", "% of a core", idle)
                        self.report.add(
                            f"idle CPU, {number} volumes, a stream each",
                            "% of a core",
                            busy,
                            floor=idle,
                            budget={"max": 0.5} if number == 110 else None,
                            usual=USUAL_IDLE,
                        )
                        if number == 110:
                            await self._pick_up(here, kubelet)
                        if number == 500:
                            await self._due_at_once(here, targets, sockets)

    async def _pick_up(self, here: Host, kubelet: StandInKubelet) -> None:
        values = []
        for _ in range(self.count(5)):
            here.kill()
            await kubelet.stop()
            # What serves and is registered may only come from the new process.
            logged = here.log.stat().st_size
            started = time.perf_counter()
            here.start()
            await kubelet.start()
            async with asyncio.timeout(DEADLINE):
                await _serving(here, logged, 110)
                await kubelet.wait_registered(DRIVER)
            values.append(time.perf_counter() - started)
        self.report.add(
            "start to registered, 110 volumes to pick up",
            "s",
            values,
            floor=self._starting,
            budget={"p50": 1.5},
            usual=USUAL_START,
        )

    async def _due_at_once(self, here: Host, targets: Sequence[Path], sockets: Sequence[Path]) -> None:
        """Nothing but the journal decides when an SVID that is picked up is due: it is made the same for all."""
        alone, written, pushed = [], [], []
        floors = [sum(floor.mint() for _ in targets) / 1e3 for _ in range(self.count(5))]
        for _ in range(self.count(3)):
            alone.append((await self._storm(here, targets, ()))[0])
            last_written, last_pushed = await self._storm(here, targets, sockets)
            written.append(last_written)
            pushed.append(last_pushed)
        number = len(targets)
        self.report.add(f"floor: {number} P-256 keys + signatures", "s", floors)
        self.report.add(f"{number} SVIDs due at once, no streams, until all are written", "s", alone, floor=floors)
        self.report.add(f"{number} SVIDs due at once, a stream each, until all are written", "s", written, floor=floors)
        self.report.add(
            f"{number} SVIDs due at once, a stream each, until all are written and pushed",
            "s",
            pushed,
            floor=floors,
            budget={"p50": 1.0},
            usual=USUAL_KEYS,
        )

    async def _storm(self, here: Host, targets: Sequence[Path], sockets: Sequence[Path]) -> tuple[float, float]:
        """Seconds from due until the last SVID is in its files, and until the last stream and file has one."""
        here.kill()
        due = datetime.now(UTC) + LEAD
        for path in (here.base / "r" / "journal").iterdir():
            entry = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**entry, "renew_at": due.isoformat()}), encoding="utf-8")
        before = [os.readlink(target / "..data") for target in targets]
        logged = here.log.stat().st_size
        here.start()
        arrived: list[float] = []
        async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
            await _serving(here, logged, len(targets))
            updates = []
            for socket in sockets:
                updates.append(aiter(await stack.enter_async_context(svid_stream(socket))))
                await anext(updates[-1])

            async def arrive(stream: AsyncIterator[object]) -> None:
                await anext(stream)
                arrived.append(time.time())

            if datetime.now(UTC) > due:
                raise RuntimeError("this host is too slow to have every stream open before the SVIDs are due")
            await asyncio.gather(*(arrive(stream) for stream in updates))
            while any(os.readlink(target / "..data") == old for target, old in zip(targets, before, strict=True)):
                await asyncio.sleep(0.2)
        times = [os.lstat(target / "..data").st_mtime for target in targets]
        # The file system's clock is coarse, by some milliseconds.
        if min(times) < due.timestamp() - 0.05:
            raise RuntimeError("an SVID was renewed before it was due: this measured something else")
        return max(times) - due.timestamp(), max(times + arrived) - due.timestamp()


async def _serving(here: Host, logged: int, volumes: int) -> None:
    """Wait for the agent to say, beyond `logged` bytes of its log, that it serves and has picked up so many.

    Raises RuntimeError where there are more.
    """
    while True:
        said = here.log.read_bytes()[logged:]
        found = said.count(b'"event": "volume picked up"')
        if found > volumes:
            raise RuntimeError(f"the agent picked up {found} volumes, not {volumes}")
        # Where it takes long it serves before it has picked up all.
        if found == volumes and b'"event": "agent serving"' in said:
            return
        await asyncio.sleep(0.01)


def _memory(processes: Sequence[int]) -> float:
    """Megabytes (2**20) of all of them together: what they share counts once (PSS)."""
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines() for each in processes]
    return sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Pss:")) / 1024


async def _busy(processes: Sequence[int]) -> float:
    """Per cent of a core that all threads use while nothing happens; from schedstat, as ticks are too coarse."""

    def seconds() -> float:
        tasks = [task for each in processes for task in Path(f"/proc/{each}/task").iterdir()]
        return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9

    before, started = seconds(), time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    return (seconds() - before) / (time.monotonic() - started) * 100


async def run(bench: Bench) -> None:
    """All measurements, some minutes at scale 1. Raises TimeoutError."""
    async with asyncio.timeout(LIMIT):
        bench.mint_floor()
        await bench.starts()
        await bench.latencies()
        for number in MEMORY:
            await bench.at_volumes(number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions; records nothing")
    arguments = parser.parse_args()
    about = environment()
    # As pip and the image leave it: else each process compiles it anew, and is as late and as large as that makes it.
    for package in ("svid", "runtime", "csi", "agent", "podsvid"):
        compileall.compile_dir(ROOT / package, quiet=1)
    bench = Bench(0.1 if arguments.quick else 1.0)
    try:
        asyncio.run(run(bench))
    except TimeoutError:
        print(table(bench.report.rows, about))
        print(f"not finished after {LIMIT:g} s; nothing is recorded", file=sys.stderr)
        return 1
    print(table(bench.report.rows, about))
    if not arguments.quick:
        record(bench.report.rows, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
