"""The processes of a run, each ended by its id: API server, signer, fleets of agents; and what is seen of them."""

import asyncio
import itertools
import json
import os
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc.aio

from bench.scale.cores import waited
from bench.scale.population import NAMESPACE, TRUST_DOMAIN, Cluster
from bench.signer import cpu_seconds
from signer.admin_api import SERVICE
from signer.pb import admin_pb2
from tests.ports import free_port

# Seconds.
STOP_SECONDS, PROBE_SECONDS, ANSWER_SECONDS, LOOK_SECONDS = 30.0, 10.0, 120.0, 0.1
# Beside its connections a process has so many descriptors.
SPARE_DESCRIPTORS = 256
LAG = "podsvid_signer_loop_lag_seconds"


class NotMeasured(Exception):
    """Something did not come about in its time, or broke; the text is for the table."""


def raise_limits(connections: int) -> None:
    """As many descriptors as the system gives, for this process and its children. Raises NotMeasured."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < connections + SPARE_DESCRIPTORS:
        raise NotMeasured(f"a process may open {most} files, {connections + SPARE_DESCRIPTORS} are needed: ulimit -Hn")


async def until(true: Callable[[], Any], what: str, seconds: float, every: float = LOOK_SECONDS) -> float:
    """Wait for `true`, which may be awaitable; when it was. Raises NotMeasured."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found if not asyncio.iscoroutine(found) else await found:
            return time.time()
        await asyncio.sleep(every)
    raise NotMeasured(f"{what}: not within {seconds:g} s")


@dataclass
class Child:
    """A process and its log."""

    running: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, log: Path, *command: str, piped: bool = False) -> "Child":
        """A Python module with its arguments; `piped`: to be talked with."""
        with log.open("ab") as file:
            pipes = (subprocess.PIPE, subprocess.PIPE) if piped else (subprocess.DEVNULL, file)
            started = subprocess.Popen([sys.executable, "-m", *command], stdin=pipes[0], stdout=pipes[1], stderr=file)
        return cls(started, log)

    def check(self) -> bool:
        """Raises NotMeasured when it has ended."""
        if self.running.poll() is not None:
            words = self.log.read_text(errors="replace")[-1500:]
            raise NotMeasured(f"{self.log.stem} ended with status {self.running.returncode}: {words}")
        return True

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self.running.poll() is None:
            self.running.terminate()
            try:
                self.running.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.running.kill()
        self.running.wait()


@dataclass
class Site:
    """An API server with a cluster in it, and the signer at it."""

    name: str
    cluster: Cluster
    folder: Path
    flags: Sequence[str] = ()
    # Of the replica, to the others of this cluster.
    identity: str = "signer-1"
    # Where it is written what holds the signer's loop; None: nowhere.
    watch: Path | None = None
    api_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    page_port: int = field(default_factory=free_port)
    kubeconfig: str = ""
    api: Child | None = None
    signer: Child | None = None
    # Largest resident memory of the signers that have ended, in MB.
    peak: float = 0.0

    def __post_init__(self) -> None:
        self.kubeconfig = self.kubeconfig or f"{self.name}.kubeconfig"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def _admin(self) -> Path:
        return self.folder / f"{self.name}.sock"

    def another(self) -> "Site":
        """A second replica at the same API server, which this one starts."""
        return Site(
            f"{self.name}-2",
            self.cluster,
            self.folder,
            self.flags,
            "signer-2",
            api_port=self.api_port,
            kubeconfig=self.kubeconfig,
        )

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}-signer.log"

    async def start_api(self, seconds: float) -> None:
        """Serve the cluster. Raises NotMeasured."""
        sizes = map(str, astuple(self.cluster))
        log = self.folder / f"{self.name}-api.log"
        self.api = Child.start(log, "bench.scale.api", str(self.folder / "cluster.key"), str(self.api_port), *sizes)
        where = f"http://127.0.0.1:{self.api_port}"
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": where}}],
            "users": [{"name": "u", "user": {"token": "none"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (self.folder / self.kubeconfig).write_text(json.dumps(kubeconfig))
        api = self.api
        await until(lambda: api.check() and "serving" in log.read_text(), "the API server", seconds)

    async def start_signer(self, seconds: float) -> float:
        """The daemon as it is installed; seconds until it is ready. Raises NotMeasured."""
        arguments = {
            "trust-domain": TRUST_DOMAIN,
            "namespace": NAMESPACE,
            "identity": self.identity,
            "listen": self.address,
            "metrics-listen": f"127.0.0.1:{self.page_port}",
            "admin-socket": str(self._admin),
            "kubeconfig": str(self.folder / self.kubeconfig),
        }
        flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
        begun = time.time()
        program = ("podsvid",) if self.watch is None else ("bench.scale.watch", str(self.watch))
        self.signer = signer = Child.start(self._log, *program, "signer", *flags, *self.flags)

        async def ready() -> bool:
            return signer.check() and await self.probe()

        return await until(ready, "the signer's readiness", seconds) - begun

    def stop_signer(self) -> None:
        """End the signer."""
        if self.signer is not None:
            if self.signer.running.poll() is None:
                self.peak = max(self.peak, self.resident("VmHWM"))
            self.signer.stop()

    def kill(self) -> None:
        """The replica is gone, at once; workers end with it."""
        assert self.signer is not None
        self.signer.running.kill()
        self.signer.running.wait()

    def stop(self) -> None:
        """End both."""
        self.stop_signer()
        if self.api is not None:
            self.api.stop()

    def forget_peak(self) -> None:
        """VmHWM begins anew."""
        self.peak = max(self.peak, self.resident("VmHWM"))
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def resident(self, line: str) -> float:
        """The signer's memory in MB: VmRSS is now, VmHWM the most so far."""
        assert self.signer is not None
        self.signer.check()
        text = Path(f"/proc/{self.signer.running.pid}/status").read_text()
        return next(int(each.split()[1]) for each in text.splitlines() if each.startswith(line)) * 1024 / 1e6

    @property
    def runs(self) -> bool:
        """Whether the signer is there."""
        return self.signer is not None and self.signer.running.poll() is None

    def used(self) -> tuple[float, float]:
        """Seconds of a processor so far: of the process that decides, and of its workers that there are."""
        return cpu_seconds(self.pid), sum(_of_each(self._workers(), cpu_seconds))

    def resident_in_all(self) -> float:
        """Memory in MB of the signer and its workers now; what they share counts for each."""
        return self.resident("VmRSS") + sum(_of_each(self._workers(), _resident))

    @property
    def pids(self) -> list[int]:
        """The signer's and its workers'."""
        return [self.pid, *self._workers()]

    def _workers(self) -> list[int]:
        return [int(each) for each in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    async def agents(self) -> float:
        """How many watch this replica, by its own word."""
        return await self._gauge("podsvid_signer_agents")

    async def leads(self) -> bool:
        """Whether it does, by its own word."""
        return await self._gauge("podsvid_signer_leader") == 1.0

    async def _gauge(self, name: str) -> float:
        page = await asyncio.to_thread(self._page, "metrics") or ""
        found = [line for line in page.splitlines() if line.startswith(f"{name} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    async def api_counts(self) -> Counter[str]:
        """Requests to the API server so far, by kind."""
        return Counter(await self.api_get("/bench/asked"))

    @property
    def pid(self) -> int:
        """The signer's. Raises NotMeasured when it has ended."""
        assert self.signer is not None
        self.signer.check()
        return self.signer.running.pid

    async def probe(self) -> bool:
        """Whether /readyz says so, which a step of the signer's loop has to say."""
        return await asyncio.to_thread(self._page, "readyz") is not None

    async def lag(self) -> Mapping[float, float] | None:
        """The histogram of the loop's lag so far: how often at most so many seconds; None where there is none."""
        page = await asyncio.to_thread(self._page, "metrics")
        if page is None:
            raise NotMeasured("the metrics page does not answer")
        found = {}
        for line in page.splitlines():
            if line.startswith(f"{LAG}_bucket{{"):
                bound = line.partition('le="')[2].partition('"')[0]
                found[float(bound.replace("+Inf", "inf"))] = float(line.rpartition(" ")[2])
        return found or None

    def _page(self, name: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.page_port}/{name}", timeout=PROBE_SECONDS) as answer:
                return str(answer.read().decode())
        except (OSError, urllib.error.URLError):
            return None

    async def api_get(self, path: str) -> Any:
        """An object of the API server; None when it is not there."""

        def ask() -> Any:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}{path}", timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError:
                return None

        return await asyncio.to_thread(ask)

    async def churn(self, minute: float) -> None:
        """So many pods change a minute from now on."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.api_port}/bench/churn?minute={minute}", method="POST")
        await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=30).close())

    async def bundle(self, seconds: float) -> Path:
        """A file with the trust bundle that the signer published. Raises NotMeasured."""
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-bundle"
        await until(lambda: self.api_get(path), "the published trust bundle", seconds)
        file = self.folder / f"{self.name}-bundle.json"
        file.write_text((await self.api_get(path))["data"]["bundle.json"])
        return file

    async def active(self) -> str:
        """The id of the X.509 authority that signs. Raises NotMeasured."""
        async with grpc.aio.insecure_channel(f"unix:{self._admin}") as channel:
            call = channel.unary_stream(
                f"/{SERVICE}/Watch",
                admin_pb2.WatchRequest.SerializeToString,
                admin_pb2.AuthorityStatus.FromString,
            )(admin_pb2.WatchRequest(), timeout=ANSWER_SECONDS, wait_for_ready=True)
            async for status in call:
                for each in status.authorities:
                    if (each.kind, each.stage) == (admin_pb2.KIND_X509, "active"):
                        call.cancel()
                        return str(each.id)
        raise NotMeasured("the signer names no active authority")

    async def rotate(self, *, forced: bool) -> None:
        """Ask for a rotation."""
        async with grpc.aio.insecure_channel(f"unix:{self._admin}") as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/Step", admin_pb2.StepRequest.SerializeToString, admin_pb2.StepResponse.FromString
            )
            wanted = admin_pb2.StepRequest(action=admin_pb2.ACTION_ROTATE, kind=admin_pb2.KIND_X509, forced=forced)
            await call(wanted, timeout=ANSWER_SECONDS, wait_for_ready=True)

    def logged(self) -> int:
        """Where the signer's log ends now."""
        return self._log.stat().st_size

    def stepped(self, since: int, step: str) -> tuple[float, int] | None:
        """When an authority took that step, by what was logged since, and the sequence; None when it did not."""
        with self._log.open("rb") as file:
            file.seek(since)
            for line in file:
                if b'"authorities changed"' in line and line.endswith(b"\n"):
                    found = json.loads(line)
                    if (found["step"], found["kind"]) == (step, "x509"):
                        return datetime.fromisoformat(found["time"]).timestamp(), int(found["sequence"])
        return None


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _of_each(pids: Sequence[int], measure: Callable[[int], float]) -> list[float]:
    """Of those that are still there."""
    found = []
    for pid in pids:
        with suppress(OSError):
            found.append(measure(pid))
    return found


class FleetProcess:
    """The other side of bench.scale.fleet: a command at a time."""

    def __init__(self, site: Site, number: int, first: int, end: int) -> None:
        self.agents = end - first
        log = site.folder / f"{site.name}-fleet-{number}.log"
        sizes = map(str, astuple(site.cluster))
        command = ("bench.scale.fleet", str(site.folder), site.address, str(first), str(end), *sizes)
        self._child = Child.start(log, *command, piped=True)
        self._reading: asyncio.Future[bytes] | None = None

    async def do(self, what: str, **arguments: Any) -> Any:
        """The answer. Raises NotMeasured when the process is gone."""
        running = self._child.running
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            if self._reading is not None:
                # Of a command that nobody waits for any more.
                await asyncio.shield(self._reading)
            running.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            running.stdin.flush()
            self._reading = asyncio.ensure_future(asyncio.to_thread(running.stdout.readline))
            line = await asyncio.shield(self._reading)
            self._reading = None
        except OSError:
            line = b""
        if not line:
            await asyncio.sleep(1.0)
            self._child.check()
            raise NotMeasured(f"{self._child.log.stem} says nothing")
        return json.loads(line)

    @property
    def pid(self) -> int:
        return self._child.running.pid

    def stop(self) -> None:
        """End it."""
        self._child.stop()


class Fleets:
    """All agents of a site, in few processes; the first of them has the agents of `minters` nodes."""

    def __init__(self, site: Site, minters: int, others: int) -> None:
        self.agents = site.cluster.nodes
        left = self.agents - minters
        cuts = [0, *(minters + left * each // max(others, 1) for each in range(others + 1))]
        pairs = enumerate(itertools.pairwise(cuts))
        self._all = [FleetProcess(site, number, first, end) for number, (first, end) in pairs]

    @property
    def pids(self) -> list[int]:
        """Of all its processes."""
        return [each.pid for each in self._all]

    def used(self) -> float:
        """Seconds of a processor so far, of all its processes."""
        return sum(_of_each(self.pids, cpu_seconds))

    async def mint(self, count: int, at_once: int = 1, rate: float = 0.0) -> Any:
        """By the agents of the first process."""
        return await self._all[0].do("mint", count=count, at_once=at_once, rate=rate)

    async def do(self, what: str, **arguments: Any) -> list[Any]:
        """What each process answers."""
        return list(await asyncio.gather(*(each.do(what, **arguments) for each in self._all)))

    async def count(self, name: str) -> int:
        """A number of their `state`, in all."""
        return sum(each[name] for each in await self.do("state"))

    async def times(self, what: str, key: str = "times", **arguments: Any) -> list[float]:
        """Moments, the earliest first."""
        return sorted(at for each in await self.do(what, **arguments) for at in each[key])

    def stop(self) -> None:
        """End all of them."""
        for each in self._all:
            each.stop()


@dataclass
class Timed:
    """Mints that were timed, by site: how long each took, and what part of the time the signer's loop had no core."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)

    async def mint(self, site: Site, minting: Fleets, count: int, rate: float) -> int:
        """So many at that rate; how many failed."""
        before, begun = waited(site.pid), time.perf_counter()
        found = await minting.mint(count, rate=rate)
        share = (waited(site.pid) - before) / (time.perf_counter() - begun)
        self.shares.setdefault(site.name, []).append(share * 100)
        self.seconds.setdefault(site.name, []).extend(found["seconds"])
        return sum(found["failed"].values())


def load() -> str:
    """The host's load now."""
    return " ".join(f"{each:.2f}" for each in os.getloadavg())
