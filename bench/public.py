"""Strangers at the public listeners: what do agents notice that mint meanwhile?

    python -m bench.public [--rounds N] [--seconds S]
    python -m bench.public --seconds S --rate R ask|crowd PORT PATH

The first: a signer that serves its bundle and OpenID Connect's documents, on a core of its own; honest agents, and who
polls, on the other. In turn, in each round: quiet; 200 pollers a second, half of them at either listener, each from
another address with a new connection; one address that wants 1,000 connections, silent ones and slow ones, and makes a
new one for each that it loses, while ten pollers a second come from elsewhere. Records bench/results/public.md. Needs
root, and cgroups of version 1. The second: those strangers, in a process of their own.
"""

import argparse
import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from bench import markdown
from bench.mix import NODES, PODS, SETTINGS, WAYS, Served, honest
from bench.report import RESULTS, Row, environment
from tests.ports import free_port
from tests.public_rig import HOST, web_pair, write_pair
from tests.signer_process import process

ISSUER = f"https://{HOST}"
PATHS: Mapping[str, str] = {"bundle": "/", "oidc": "/keys"}
LOADS = ("quiet", "pollers", "crowd")
ROUNDS, SECONDS = 6, 8.0
# Pollers a second in all, and those beside the crowd; connections that it holds, and seconds between its slow bytes.
RATE, BESIDE, CONNECTIONS, SLOWLY = 200.0, 10.0, 1000, 0.5
# Seconds that a poller waits for its answer.
PATIENCE = 10.0
# Agents have real-time scheduling: who asks is not measured.
STRANGERS = ("chrt", "--other", "0", "taskset", "-c", "1")


def stranger() -> ssl.SSLContext:
    """A client's that takes whoever answers: what is measured is the other end."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    return found


@dataclass
class Asked:
    """What pollers got: milliseconds of each whole answer, and how many got none."""

    times: list[float] = field(default_factory=list)
    failed: int = 0


async def ask(port: int, path: str, rate: float, seconds: float) -> Asked:
    """So often a second, each from the next address."""
    found, context, running = Asked(), stranger(), set[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    began, number = loop.time(), 0

    async def one(source: str) -> None:
        since = loop.time()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(source, 0))
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                answer = await reader.read(-1)
                writer.close()
        except (OSError, TimeoutError):
            answer = b""
        if answer.startswith(b"HTTP/1.1 200 "):
            found.times.append((loop.time() - since) * 1e3)
        else:
            found.failed += 1

    while number < rate * seconds:
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        task = asyncio.create_task(one(f"127.40.{number // 200 % 200 + 1}.{number % 200 + 1}"))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    await asyncio.gather(*running)
    return found


async def crowd(port: int, path: str, seconds: float) -> int:
    """Hold `CONNECTIONS` from one address; how often one was made."""
    made, until, context = 0, monotonic() + seconds, stranger()

    async def hold(kind: int) -> None:
        nonlocal made
        while monotonic() < until:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", port, ssl=context if kind == 1 else None, local_addr=("127.90.0.1", 0)
                    )
                made += 1
                await slow(kind, reader, writer)
                writer.transport.abort()

    async def slow(kind: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Says nothing; asks byte by byte in TLS; greets byte by byte.
        said = (
            b"",
            f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n".encode(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        )
        for byte in said[kind]:
            writer.write(bytes([byte]))
            with suppress(TimeoutError):
                async with asyncio.timeout(SLOWLY):
                    if await reader.read(1) == b"":
                        return
            if monotonic() > until:
                return
        async with asyncio.timeout(max(0.0, until - monotonic())):
            await reader.read(1)

    await asyncio.gather(*(hold(number % 3) for number in range(CONNECTIONS)))
    return made


@dataclass
class Load:
    """What was seen of one: agents' mints, what pollers got, and the listeners' process."""

    mints: Served = field(default_factory=Served)
    asked: Asked = field(default_factory=Asked)
    made: int = 0
    seconds: float = 0.0
    # Of the listeners' process: seconds of CPU, and bytes.
    busy: float = 0.0
    resident: int = 0


@contextmanager
def pod() -> Iterator[list[str]]:
    """What starts a command in a group that goes before the machine's other work; within it each is what it is."""
    folder = Path("/sys/fs/cgroup/cpu/podsvid-bench-public")
    folder.mkdir()
    try:
        (folder / "cpu.shares").write_text("262144")
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        folder.rmdir()


@contextmanager
def strangers(load: str, ports: Mapping[str, int], seconds: float, seen: Load) -> Iterator[None]:
    """They come for so long; what they got is in `seen` afterwards."""
    line = [*STRANGERS, sys.executable, "-m", "bench.public"]
    rate = {"quiet": 0.0, "pollers": RATE / 2, "crowd": BESIDE / 2}[load]
    kinds = [("ask", name, rate) for name in ports if rate]
    kinds += [("crowd", name, 0.0) for name in ports if load == "crowd" and name == "bundle"]
    running = [
        subprocess.Popen(
            [*line, "--seconds", str(seconds), "--rate", str(per), kind, str(ports[name]), PATHS[name]],
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind, name, per in kinds
    ]
    try:
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == "coming\n"
        yield
        for each in running:
            output, _ = each.communicate(timeout=seconds + 3 * PATIENCE)
            told = json.loads(output)
            seen.made += told.get("made", 0)
            seen.asked.times += told.get("times", [])
            seen.asked.failed += told.get("failed", 0)
    finally:
        for each in running:
            each.kill()
            each.wait()


def listeners(signer: int) -> int:
    """The process that serves strangers. Raises StopIteration."""
    children = Path(f"/proc/{signer}/task/{signer}/children").read_text(encoding="ascii").split()
    return int(next(each for each in children if b"signer.public.child" in Path(f"/proc/{each}/cmdline").read_bytes()))


def used(pid: int) -> float:
    """Seconds of CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def turn(load: str, seen: Load, site: dict[str, Any], folder: Path, ports: Mapping[str, int], pid: int) -> None:
    """One of them, `seen.seconds` longer."""
    seconds = site["seconds"]
    with strangers(load, ports, seconds, seen):
        before, began = used(pid), monotonic()
        mints = await honest(site, folder, seconds)
        seen.busy += used(pid) - before
        seen.seconds += monotonic() - began
        seen.resident = max(seen.resident, resident(pid))
    for way in WAYS:
        seen.mints.times[way] += mints.times[way]
    for what, number in mints.failures.items():
        seen.mints.failures[what] = seen.mints.failures.get(what, 0) + number


def run(rounds: int, seconds: float) -> dict[str, Load]:
    """All of them, in turn."""
    found = {load: Load() for load in LOADS}
    ports = {name: free_port() for name in PATHS}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="pv", dir="/tmp")))
        chain, key = write_pair(web_pair(datetime.now(UTC)), folder)
        flags = (
            *("--bundle-listen", f"127.0.0.1:{ports['bundle']}", "--oidc-listen", f"127.0.0.1:{ports['oidc']}"),
            *("--jwt-issuer", ISSUER, "--oidc-cert-file", str(chain), "--oidc-key-file", str(key)),
        )
        inside = opened.enter_context(pod())
        signer, site = opened.enter_context(
            process(
                *(folder, PODS, NODES, free_port(), *SETTINGS, *flags),
                within=lambda *command: ["taskset", "-c", "0", *inside, *command],
            )
        )
        os.sched_setaffinity(0, {1})
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        # The first answers: both have their certificates by then.
        asyncio.run(_answered(ports))
        pid = listeners(signer.pid)
        site["seconds"] = seconds
        for _ in range(rounds):
            for load in LOADS:
                asyncio.run(turn(load, found[load], site, folder, ports, pid))
                print(load, line(load, found), file=sys.stderr, flush=True)
    return found


async def _answered(ports: Mapping[str, int]) -> None:
    async with asyncio.timeout(6 * PATIENCE):
        for name, port in ports.items():
            while not (await ask(port, PATHS[name], 1.0, 1.0)).times:
                await asyncio.sleep(0.2)


def line(load: str, found: Mapping[str, Load]) -> str:
    """A row of the table."""
    seen, quiet = found[load], found["quiet"]
    cells = [WHAT[load]]
    for way in WAYS:
        row, floor = (Row(way, "ms", tuple(each.mints.times[way])) for each in (seen, quiet))
        cells.append(str(len(row.values)))
        for name in ("p50", "p99", "max"):
            value, beside = row.statistic(name), floor.statistic(name)
            ratio = f" ({value / beside:.2f})" if value and beside and load != "quiet" and name != "max" else ""
            cells.append("-" if value is None else f"{value:.3g}{ratio}")
    cells.append(str(sum(seen.mints.failures.values())))
    asked = Row("", "ms", tuple(seen.asked.times or [0.0]))
    answered = f"{len(seen.asked.times)} of {len(seen.asked.times) + seen.asked.failed}"
    cells += [answered, f"{asked.statistic('p50') or 0:.3g}"] if seen.asked.times else ["-", "-"]
    cells += [str(seen.made or "-"), f"{seen.busy / seen.seconds:.0%}", f"{seen.resident / 1e6:.0f}"]
    return markdown.row(cells)


WHAT = {
    "quiet": "nobody",
    "pollers": f"{RATE:.0f} pollers a second",
    "crowd": f"one address with {CONNECTIONS:,} connections, {BESIDE:.0f} pollers a second from elsewhere",
}


def report(found: Mapping[str, Load], about: Mapping[str, str]) -> str:
    """What is recorded."""
    heads = ["at the public listeners"]
    for way in WAYS:
        heads += [f"mints, {way}", "p50, ms", "p99, ms", "longest, ms"]
    heads += ["failed", "pollers answered", "p50, ms", "connections of the crowd", "CPU of the listeners' process"]
    heads += ["its RSS, MB"]
    return "\n".join(
        [
            "# Strangers at the public listeners",
            "",
            ", ".join(f"{key} {each}" for key, each in about.items()),
            "",
            "`python -m bench.public`: the loads take turns, so what else the machine does meets all of them; in",
            "brackets how many times nobody's. The signer and its listeners' process, which gives way to it, are in",
            "one group of processes, as in a container, which goes before all others of its core. On the other core",
            "are agents, which have real-time scheduling, and strangers, which share what is left with other work.",
            "",
            *markdown.table(heads, (line(load, found) for load in LOADS)),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.public", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn")
    parser.add_argument("--rate", type=float, default=RATE, help="of `ask`: a second")
    parser.add_argument("kind", nargs="?", choices=("ask", "crowd"))
    parser.add_argument("port", nargs="?", type=int)
    parser.add_argument("path", nargs="?", default="/")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("coming", flush=True)
        if arguments.kind == "crowd":
            print(json.dumps({"made": asyncio.run(crowd(arguments.port, arguments.path, arguments.seconds))}))
        else:
            asked = asyncio.run(ask(arguments.port, arguments.path, arguments.rate, arguments.seconds))
            print(json.dumps({"times": [round(each, 3) for each in asked.times], "failed": asked.failed}))
        return 0
    about = environment()
    found = run(arguments.rounds, arguments.seconds)
    text = report(found, about)
    (RESULTS / "public.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
