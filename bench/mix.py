"""All that strangers and a stolen token can do to a signer, at once and for minutes, while honest agents mint.

    python -m bench.strangers --mix --minutes 10 [--json]

The signer is a process of its own in a cgroup of 1 GiB and on a core of its own, with the settings of the chart. The
attackers share another core with the honest agents and yield to them, so that what is measured is the signer and not
who asks it. Attackers come from many addresses, as from many pods; each agent has one. Quiet is measured before and
after, in the same run and at the same places.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench.limited import Limited, NoCgroup, limited
from bench.report import Row, environment
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm, signature_hash
from svid.spiffeid import TrustDomain
from tests.ports import free_port
from tests.signer_process import process

LIMIT = 1 << 30
MB = 1e6
# The last node is the attackers'. Of the others each has an agent with a kept connection and, from another address,
# one that comes anew each time.
PODS, NODES = 8, 4
HONEST, NEWCOMERS = "127.0.0.{}", "127.0.1.{}"
ATTACKERS = "127.{}.0.1"
FIRST_NETWORK = 64
# Seconds between mints of an agent: of one that stays, and of one that comes anew (an address has 5 a second).
KEPT_EVERY, NEW_EVERY = 0.05, 0.5
# Seconds: a mint that takes longer has failed. And of quiet, before and after; what both last at most.
PATIENCE, QUIET = 10.0, 20.0
SETTLING = 12.0
PROGRESS = 10.0
# As chart and docs have them.
SETTINGS = ("--node-rate", "50", "--node-burst", "1000", "--node-concurrency", "64", "--address-rate", "5")
BEHIND = ("chrt", "--other", "0", "nice", "-n", "19")
WAYS = ("kept connection", "new connection")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What --mix understands."""
    parser.add_argument("--mix", action="store_true", help="all kinds at once against a signer in 1 GiB")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the mix")
    parser.add_argument("--quiet", type=float, default=QUIET, help="seconds of quiet before, and after")
    parser.add_argument("--addresses", type=int, default=250, help="that each kind of the mix comes from")
    parser.add_argument("--kinds", default="", help="some of them for the mix, with commas between")
    parser.add_argument("--json", action="store_true", help="the mix's figures as JSON on stdout")
    parser.add_argument("--anywhere", action="store_true", help="the mix without a core for the signer, and no cgroup")
    parser.add_argument("--profile", type=Path, help="where cProfile writes what the signer did")


@dataclass
class Served:
    """What honest agents got: milliseconds of each mint by way, and failures by text."""

    times: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    failures: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """By way: how many, p50, p99 and the longest, in milliseconds."""
        found: dict[str, Any] = {}
        for way, times in self.times.items():
            row = Row(way, "ms", tuple(times))
            found[way] = {"served": len(times)}
            if times:
                found[way] |= {name: row.statistic(name) for name in ("p50", "p99", "max")}
        return {**found, "failed": self.failures}


@dataclass(frozen=True)
class Vitals:
    """Bytes and processes of the signer. `anonymous` and `resident_peak` are its own, `group_peak` the cgroup's."""

    resident: int
    resident_peak: int
    anonymous: int
    group: int
    group_peak: int
    killed: int
    descriptors: int
    threads: int


def vitals(pid: int, group: Limited | None) -> Vitals:
    """Of a process that runs. Raises OSError."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.partition(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    resident, peak, anonymous = (int(found[name]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon"))
    of_group = (group.used(), group.peak(), group.killed()) if group else (0, 0, 0)
    return Vitals(resident, peak, anonymous, *of_group, len(os.listdir(f"/proc/{pid}/fd")), int(found["Threads"]))


def told(pid: int, folder: Path) -> dict[str, float]:
    """The signer's metrics now. Raises OSError, TimeoutError."""
    file = folder / "metrics.txt"
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    ends = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > ends:
            raise TimeoutError("the signer does not write its metrics")
        time.sleep(0.02)
    rows = [line.rpartition(" ") for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def refusals(metrics: dict[str, float]) -> dict[str, int]:
    """Connections and calls that were turned away, by kind."""
    prefix = 'podsvid_signer_turned_away_total{kind="'
    return {name[len(prefix) : -2]: int(value) for name, value in metrics.items() if name.startswith(prefix)}


def roots(site: Mapping[str, Any]) -> bytes:
    """What the signer's certificate is verified against: PEM."""
    return TrustBundle.from_jwks(TrustDomain("example.org"), Path(site["bundle"]).read_bytes()).to_pem()


class Agent:
    """One node's agent at an address of its own. Belongs to an event loop; to be closed."""

    def __init__(self, site: dict[str, Any], folder: Path, source: str, pod: Sequence[Any], csr: bytes) -> None:
        self._site = site
        self._socket = folder / f"{source}.sock"
        self._source = source
        namespace, name, uid, token, node, _ = pod
        of = signer_pb2.Pod(namespace=namespace, name=name, uid=uid)
        self._request = signer_pb2.MintX509SVIDRequest(pod=of, pod_token=token, csr=csr)
        self._metadata = (("authorization", f"Bearer {site['agents'][node]}"),)
        self._credentials = grpc.ssl_channel_credentials(roots(site))
        self._server: asyncio.Server | None = None

    async def begin(self) -> None:
        """grpc cannot be told what address to come from: it connects to a socket here that leads to the signer."""
        self._server = await asyncio.start_unix_server(self._lead, self._socket)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def mint(self, channel: grpc.aio.Channel) -> None:
        """Raises AioRpcError."""
        call: Any = channel.unary_unary(
            "/podsvid.signer.v1.Signer/MintX509SVID",
            signer_pb2.MintX509SVIDRequest.SerializeToString,
            signer_pb2.MintX509SVIDResponse.FromString,
        )
        await call(self._request, metadata=self._metadata, timeout=PATIENCE, wait_for_ready=True)

    def channel(self) -> grpc.aio.Channel:
        options = (("grpc.ssl_target_name_override", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))
        retry = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2000))
        return grpc.aio.secure_channel(f"unix:{self._socket}", self._credentials, (*options, *retry))

    async def stay(self, served: Served, until: float) -> None:
        """Mint on one connection."""
        async with self.channel() as channel:
            await self._go_on(served, WAYS[0], until, KEPT_EVERY, lambda: self.mint(channel))

    async def come(self, served: Served, until: float) -> None:
        """Mint on a new connection each time."""

        async def once() -> None:
            async with self.channel() as channel:
                await self.mint(channel)

        await self._go_on(served, WAYS[1], until, NEW_EVERY, once)

    async def _go_on(self, served: Served, way: str, until: float, every: float, once: Any) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            began = loop.time()
            try:
                await once()
                served.times[way].append((loop.time() - began) * 1e3)
            except grpc.aio.AioRpcError as error:
                what = f"{way}: {error.code().name}"
                served.failures[what] = served.failures.get(what, 0) + 1
            await asyncio.sleep(every)

    async def _lead(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        host, _, port = self._site["address"].rpartition(":")
        with suppress(OSError):
            far, far_out = await asyncio.open_connection(host, int(port), local_addr=(self._source, 0))
            ways = [asyncio.ensure_future(_pass_on(near, far_out)), asyncio.ensure_future(_pass_on(far, near_out))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for each in ways:
                each.cancel()
            far_out.close()
        near_out.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def signing_request() -> bytes:
    """Of a new key, as DER."""
    key = KeyAlgorithm.EC_P256.generate()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


async def honest(site: dict[str, Any], folder: Path, seconds: float) -> Served:
    """All honest agents mint for so long."""
    csr = signing_request()
    served, until = Served(), asyncio.get_running_loop().time() + seconds
    async with AsyncExitStack() as opened:
        work = []
        for node in range(NODES - 1):
            pod = next(each for each in site["pods"] if each[4] == node)
            stays = Agent(site, folder, HONEST.format(node + 2), pod, csr)
            comes = Agent(site, folder, NEWCOMERS.format(node + 2), pod, csr)
            for each in (stays, comes):
                await each.begin()
                opened.push_async_callback(each.close)
            work += [stays.stay(served, until), comes.come(served, until)]
        await asyncio.gather(*work)
    return served


@contextmanager
def attackers(site: Path, kinds: Sequence[str], seconds: float, addresses: int) -> Iterator[dict[str, int]]:
    """One process a kind; what each did is there when all have ended."""
    done: dict[str, int] = {}
    running = {}
    for number, kind in enumerate(kinds):
        source = f"{ATTACKERS.format(FIRST_NETWORK + number)}/{addresses}"
        command = [
            sys.executable,
            "-m",
            "bench.strangers",
            "--seconds",
            str(seconds),
            "--from",
            source,
            kind,
            str(site),
        ]
        running[kind] = subprocess.Popen([*BEHIND, *command], stdout=subprocess.PIPE, text=True)
    try:
        for kind, each in running.items():
            assert each.stdout is not None
            assert each.stdout.readline() == "attacking\n", f"{kind} did not begin"
        yield done
        for kind, each in running.items():
            output, _ = each.communicate(timeout=PATIENCE * 3)
            assert each.returncode == 0, f"{kind} failed"
            done[kind] = int(output)
    finally:
        for each in running.values():
            each.kill()
            each.wait()


@dataclass
class Mix:
    """What was seen."""

    quiet: Served
    mixed: Served
    after: Served
    before_vitals: Vitals
    most: Vitals
    after_vitals: Vitals
    refused: dict[str, int]
    done: dict[str, int]
    busy: float
    alive: bool

    def figures(self) -> dict[str, Any]:
        """For people and programs."""
        floor, mixed = Served(), self.mixed.figures()
        for way in WAYS:
            floor.times[way] = self.quiet.times[way] + self.after.times[way]
        quiet = floor.figures()
        ratios = {way: _ratio(mixed[way].get("p99"), quiet[way].get("p99")) for way in WAYS}
        return {
            "alive": self.alive,
            "quiet": quiet,
            "mix": mixed,
            "p99 beside quiet": ratios,
            "refused": self.refused,
            "attacks": self.done,
            "core used": round(self.busy, 3),
            "memory": {
                when: asdict(each)
                for when, each in (("quiet", self.before_vitals), ("mix", self.most), ("after", self.after_vitals))
            },
        }


def _ratio(value: float | None, floor: float | None) -> float | None:
    return round(value / floor, 2) if value and floor else None


async def _mix(arguments: argparse.Namespace, kinds: Sequence[str], group: Limited | None) -> Mix:
    minutes, quiet = arguments.minutes, arguments.quiet
    place = [] if arguments.anywhere else ["taskset", "-c", "0"]

    def within(*command: str) -> list[str]:
        command = (*place, *command)
        return group.command(*command) if group else list(command)

    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="pv", dir="/tmp")))
        running, site = opened.enter_context(
            process(folder, PODS, NODES, free_port(), *SETTINGS, profile=arguments.profile, within=within)
        )
        await honest(site, folder, 3.0)
        say(f"quiet, {quiet:g} s")
        before = await honest(site, folder, quiet)
        before_vitals, seen = vitals(running.pid, group), []
        say(f"all of {', '.join(kinds)}, {minutes:g} minutes")
        began, cpu = time.monotonic(), _cpu(running.pid)
        with attackers(folder / "site.json", kinds, minutes * 60, arguments.addresses) as done:
            asking = asyncio.create_task(honest(site, folder, minutes * 60))
            while not asking.done() and running.poll() is None:
                await asyncio.wait([asking], timeout=PROGRESS)
                with suppress(OSError, TimeoutError):
                    seen.append(vitals(running.pid, group))
                    found = refusals(await asyncio.to_thread(told, running.pid, folder))
                    say(_progress(time.monotonic() - began, seen[-1], found))
            mixed = await asking
            busy = (_cpu(running.pid) - cpu) / (time.monotonic() - began) if running.poll() is None else 0.0
        if running.poll() is not None:
            last = seen[-1] if seen else before_vitals
            return Mix(before, mixed, Served(), before_vitals, last, last, {}, done, busy, False)
        # Those that were silent are closed meanwhile.
        await asyncio.sleep(min(SETTLING, quiet))
        after = await honest(site, folder, quiet)
        metrics = await asyncio.to_thread(told, running.pid, folder)
        most = Vitals(*(max(values) for values in zip(*(asdict(each).values() for each in seen), strict=True)))
        now = vitals(running.pid, group)
        return Mix(before, mixed, after, before_vitals, most, now, refusals(metrics), done, busy, True)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _progress(seconds: float, now: Vitals, refused: dict[str, int]) -> str:
    sizes = (
        f"RSS {now.resident / MB:.0f} (peak {now.resident_peak / MB:.0f}), cgroup's peak {now.group_peak / MB:.0f} MB"
    )
    return f"{seconds:4.0f} s: {sizes}, {now.descriptors} descriptors, {now.killed} killed; refused {refused}"


def say(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr, flush=True)


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures for people, as Markdown."""
    found = ["| | served | p50, ms | p99, ms | longest, ms |", "|---|---|---|---|---|"]
    for when in ("quiet", "mix"):
        for way in WAYS:
            row = figures[when][way]
            numbers = [row.get(name) for name in ("p50", "p99", "max")]
            shown = " | ".join("-" if each is None else f"{each:.1f}" for each in numbers)
            found.append(f"| {when}, {way} | {row['served']} | {shown} |")
    for when in ("quiet", "mix"):
        if figures[when]["failed"]:
            found += ["", f"Failed, {when}: {figures[when]['failed']}."]
    memory = figures["memory"]["mix"]
    sizes = ", ".join(f"{name} {memory[name] / MB:.0f}" for name in ("resident_peak", "anonymous", "group_peak"))
    found += [
        "",
        f"p99 beside quiet: {figures['p99 beside quiet']}. Alive: {figures['alive']}, killed: {memory['killed']}.",
        f"Memory at most, MB: {sizes}; the signer's core used: {figures['core used']:.0%}.",
        f"Refused: {figures['refused']}.",
        f"Attacks: {figures['attacks']}.",
    ]
    return found


def main(arguments: argparse.Namespace, kinds: Sequence[str]) -> int:
    """0 when the signer is alive and honest agents were served."""
    chosen = arguments.kinds.split(",") if arguments.kinds else kinds
    about = environment()
    with ExitStack() as opened:
        group = None
        if not arguments.anywhere:
            if (os.cpu_count() or 1) < 2:
                say("the signer needs a core that its clients do not use, and there is one core only; see --anywhere")
                return 2
            try:
                group = opened.enter_context(limited(LIMIT))
            except NoCgroup as error:
                say(f"{error}; or see --anywhere")
                return 2
            os.sched_setaffinity(0, {1})
            # Signer and honest agents go before whatever else the machine does; attackers after it.
            with suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
                about["scheduling"] = "real-time"
            about["cgroup"] = f"version {group.version}"
        figures = asyncio.run(_mix(arguments, chosen, group)).figures()
    if arguments.json:
        print(json.dumps({"environment": about, **figures}))
    else:
        print(", ".join(f"{key} {value}" for key, value in about.items()), "", *lines(figures), sep="\n")
    return 0 if figures["alive"] and all(figures["mix"][way]["served"] for way in WAYS) else 1
