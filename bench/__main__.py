"""Measure a real agent over its real sockets, print a table, and record it in bench/results/."""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import grpc.aio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from csi.pb import csi_pb2
from csi.standin import Pod, PodVolume, StandInKubelet
from tests.support import DRIVER, HEADER, Host, first, host, pod, svid_stream

RESULTS = Path(__file__).parent / "results"
VOLUME = PodVolume(name="spiffe")
FLOOR_SERVER = """
import asyncio, sys, grpc.aio
async def empty(request, context):
    yield b""
async def main():
    server = grpc.aio.server()
    handlers = {"Empty": grpc.unary_stream_rpc_method_handler(empty)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Floor", handlers),))
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    print("serving", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Row:
    """One line of the table; `values` in `unit`, the budget as text."""

    what: str
    unit: str
    values: tuple[float, ...]
    budget: str

    def cells(self) -> list[str]:
        ordered = sorted(self.values)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        numbers = (min(ordered), statistics.median(ordered), p99, max(ordered))
        return [self.what, self.unit, str(len(ordered)), *(f"{number:.4g}" for number in numbers), self.budget]


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1e3


class Bench:
    """Collects rows; progress goes to stderr."""

    def __init__(self, scale: float) -> None:
        self.rows: list[Row] = []
        self._scale = scale

    def count(self, number: int) -> int:
        return max(3, int(number * self._scale))

    def add(self, what: str, unit: str, values: Sequence[float], budget: str = "-") -> None:
        row = Row(what, unit, tuple(values), budget)
        self.rows.append(row)
        print("  ".join(row.cells()), file=sys.stderr, flush=True)

    def floors(self) -> None:
        """What a mint cannot be faster than."""
        values = []
        for _ in range(self.count(500)):
            started = time.perf_counter()
            key = ec.generate_private_key(ec.SECP256R1())
            key.sign(b"x" * 400, ec.ECDSA(hashes.SHA256()))
            values.append((time.perf_counter() - started) * 1e3)
        self.add("floor: P-256 key + signature", "ms", values)

    async def floor_fetch(self) -> None:
        """What connect + first message cannot be faster than: an empty grpc.aio handler in another process."""
        with host() as here:
            address = here.base / "floor.sock"
            server = subprocess.Popen([sys.executable, "-c", FLOOR_SERVER, str(address)], stdout=subprocess.PIPE)
            try:
                assert server.stdout is not None
                server.stdout.readline()

                async def fetch() -> None:
                    options = (("grpc.use_local_subchannel_pool", 1),)
                    async with grpc.aio.insecure_channel(f"unix:{address}", options=options) as channel:
                        await anext(aiter(channel.unary_stream("/Floor/Empty")(b"", metadata=HEADER)))

                values = [await timed(fetch) for _ in range(self.count(300))]
                self.add("floor: connect + first message, empty handler", "ms", values)
            finally:
                server.kill()
                server.wait()

    async def latencies(self, here: Host, kubelet: StandInKubelet) -> None:
        """Publish one after the other and 110 at once; connect + first SVID; fetches a second."""
        endpoint = kubelet.registration(DRIVER).endpoint
        async with grpc.aio.insecure_channel(f"unix:{endpoint}") as channel:
            publish = channel.unary_unary(
                "/csi.v1.Node/NodePublishVolume",
                request_serializer=csi_pb2.NodePublishVolumeRequest.SerializeToString,
                response_deserializer=csi_pb2.NodePublishVolumeResponse.FromString,
            )

            def prepared(number: int) -> csi_pb2.NodePublishVolumeRequest:
                request = kubelet.publish_request(pod(f"p{number}", f"sa{number}"), VOLUME)
                Path(request.target_path).parent.mkdir(parents=True)
                return request

            requests = [prepared(number) for number in range(self.count(200))]
            values = [await timed(lambda each=each: publish(each)) for each in requests]  # type: ignore[misc]
            self.add("NodePublishVolume, one after the other", "ms", values, "p50 5, p99 25")
            burst = [prepared(number) for number in range(1000, 1110)]
            values = await asyncio.gather(*(timed(lambda each=each: publish(each)) for each in burst))  # type: ignore[misc]
            self.add("NodePublishVolume, 110 at once", "ms", values)
        socket = here.short(Path(requests[0].target_path)) / "socket"
        values = [await timed(lambda: first(socket)) for _ in range(self.count(500))]
        self.add("Workload API, connect + first SVID", "ms", values, "p50 1.5")
        rates = []
        for _ in range(5):
            batch = self.count(400)
            started = time.perf_counter()
            gate = asyncio.Semaphore(8)

            async def fetch(gate: asyncio.Semaphore = gate) -> None:
                async with gate:
                    await first(socket)

            await asyncio.gather(*(fetch() for _ in range(batch)))
            rates.append(batch / (time.perf_counter() - started))
        self.add("Workload API, fetches with a new connection each, 8 at once", "1/s", rates)

    async def at_volumes(self, number: int, budget: str) -> None:
        """RSS and idle CPU with one open stream a volume; pick-up and a due storm where there are volumes."""
        with host() as here:
            here.start()
            kubelet = StandInKubelet(here.kubelet_root)
            await kubelet.start()
            try:
                await kubelet.wait_registered(DRIVER)
                pods = [pod(f"p{n}", f"sa{n}") for n in range(number)]
                targets = [await kubelet.publish(each, VOLUME) for each in pods]
                async with AsyncExitStack() as stack:
                    for target in targets:
                        call = await stack.enter_async_context(svid_stream(here.short(target) / "socket"))
                        await anext(aiter(call))
                    resident, busy = await self._resources(here)
                self.add(f"RSS, {number} volumes, a stream each", "MB", [resident], budget)
                self.add(f"idle CPU, {number} volumes", "% of a core", [busy], "0.5 at 110" if number == 110 else "-")
                if number == 110:
                    await self._pick_up(here, kubelet)
                if number == 500:
                    await self._due_at_once(here, kubelet, pods, targets)
            finally:
                await kubelet.stop()

    async def starts(self) -> None:
        """Start of the process until kubelet has registered it, with nothing to pick up."""
        values = []
        for _ in range(self.count(8)):
            with host() as here:
                kubelet = StandInKubelet(here.kubelet_root, registry_interval=0.01)
                await kubelet.start()
                started = time.perf_counter()
                here.start()
                await kubelet.wait_registered(DRIVER)
                values.append(time.perf_counter() - started)
                await kubelet.stop()
        self.add("start to registered", "s", values, "0.8")

    async def _resources(self, here: Host) -> tuple[float, float]:
        assert here.process is not None
        folder = Path(f"/proc/{here.process.pid}")

        def ticks() -> int:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        await asyncio.sleep(2)
        before, started = ticks(), time.monotonic()
        await asyncio.sleep(10)
        seconds = (ticks() - before) / os.sysconf("SC_CLK_TCK")
        status = (folder / "status").read_text(encoding="utf-8")
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return resident / 1024, seconds / (time.monotonic() - started) * 100

    async def _pick_up(self, here: Host, kubelet: StandInKubelet) -> None:
        values = []
        for _ in range(3):
            here.kill()
            await kubelet.stop()
            started = time.perf_counter()
            here.start()
            await kubelet.start()
            while True:
                await kubelet.wait_registered(DRIVER)
                if here.log.read_text(encoding="utf-8").count('"event": "agent serving"') > len(values) + 1:
                    break
                await asyncio.sleep(0.01)
            values.append(time.perf_counter() - started)
        self.add("start to registered, 110 volumes to pick up", "s", values, "1.5")

    async def _due_at_once(
        self, here: Host, kubelet: StandInKubelet, pods: Sequence[Pod], targets: Sequence[Path]
    ) -> None:
        values = []
        for _ in range(3):
            here.kill()
            # Nothing but the journal decides when a picked-up SVID is due.
            due = datetime.now(UTC) + timedelta(seconds=12)
            for path in (here.base / "r" / "journal").iterdir():
                entry = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps({**entry, "renew_at": due.isoformat()}), encoding="utf-8")
            before = [os.readlink(target / "..data") for target in targets]
            here.start()
            while any(os.readlink(target / "..data") == old for target, old in zip(targets, before, strict=True)):
                await asyncio.sleep(0.2)
            written = max(os.lstat(target / "..data").st_mtime for target in targets)
            values.append(written - due.timestamp())
        self.add("500 SVIDs due at once, until the last is written", "s", values, "1.0")


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    packages = {name: version(name) for name in ("grpcio", "cryptography", "protobuf")}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **packages,
    }


def table(rows: Sequence[Row], about: dict[str, str]) -> str:
    """The results as Markdown."""
    lines = ["# Results", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += ["| what | unit | n | min | p50 | p99 | max | budget |", "|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


async def run(scale: float) -> list[Row]:
    """All measurements, a few minutes at scale 1."""
    bench = Bench(scale)
    bench.floors()
    await bench.floor_fetch()
    await bench.starts()
    with host() as here:
        here.start()
        kubelet = StandInKubelet(here.kubelet_root)
        await kubelet.start()
        try:
            await kubelet.wait_registered(DRIVER)
            await bench.latencies(here, kubelet)
        finally:
            await kubelet.stop()
    for number, budget in ((0, "60"), (110, "75"), (500, "120")):
        await bench.at_volumes(number, budget)
    return bench.rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions; records nothing")
    arguments = parser.parse_args()
    rows, about = asyncio.run(run(0.1 if arguments.quick else 1.0)), environment()
    print(table(rows, about))
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "latest.md").write_text(table(rows, about), encoding="utf-8")
        document = {"environment": about, "rows": [asdict(row) for row in rows]}
        (RESULTS / f"{about['date']}-{about['cores']}-cores.json").write_text(
            json.dumps(document) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
