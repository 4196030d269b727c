"""Crowds at the ports of metrics and probes: what do kubelet and Prometheus notice, and what does it cost?

    python -m bench.pages [CONNECTIONS]

A signer with both listeners. In turn nobody, a crowd that says little, a crowd that does not read its page, and two
processes that ask for pages without end, at both ports and from 200 and more addresses of the loopback. Meanwhile a
prober and a scraper ask as they always do. Records bench/results/pages.md.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import markdown
from bench.report import RESULTS, environment
from tests.ports import free_port
from tests.signer_process import process

CROWD = 2000
ASKED = 100
HALF = b"GET /metrics HTTP/1.1\r\nX: "
WHOLE = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
# Seconds: what kubelet gives a probe, and Prometheus a scrape.
PATIENCE = 5.0
# In a process of its own: asks at both ports until it is ended, or for long.
FLOOD = """
import socket, sys, time
ports, first = [int(each) for each in sys.argv[1:3]], int(sys.argv[3])
until, number = time.monotonic() + 120, 0
while time.monotonic() < until:
    number += 1
    try:
        source = (f"127.0.{first}.{number % 100 + 1}", 0)
        with socket.create_connection(("127.0.0.1", ports[number % 2]), 1, source) as peer:
            peer.sendall(b"GET /%s HTTP/1.1\\r\\n\\r\\n" % (b"metrics" if number % 2 else b"readyz"))
            while peer.recv(65536):
                pass
    except OSError:
        continue
"""


@dataclass(frozen=True)
class Seen:
    """One load: milliseconds of answers, how many failed, and what the signer had."""

    load: str
    probes: Sequence[float]
    missed: int
    scrapes: Sequence[float]
    later: int
    threads: int
    resident: float
    descriptors: int


async def ask(port: int, path: str) -> tuple[int, float]:
    """The status, 0 for none, and milliseconds."""
    began = time.perf_counter()
    status = 0
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            answer = await reader.read(-1)
            writer.close()
            status = int(answer.split(b" ", 2)[1]) if answer else 0
    except (OSError, TimeoutError):
        pass
    return status, (time.perf_counter() - began) * 1000


async def crowd(ports: Sequence[int], count: int, said: bytes) -> list[asyncio.StreamWriter]:
    found = []
    for number in range(count):
        source = (f"127.{number % 200 + 1}.{number // 200}.9", 0)
        try:
            async with asyncio.timeout(PATIENCE):
                _, writer = await asyncio.open_connection("127.0.0.1", ports[number % 2], local_addr=source)
                writer.write(said)
                found.append(writer)
        except (OSError, TimeoutError):
            continue
    return found


@contextmanager
def flood(ports: Sequence[int]) -> Iterator[None]:
    with ExitStack() as stack:
        for first in (10, 11):
            line = [sys.executable, "-c", FLOOD, *map(str, ports), str(first)]
            running = stack.enter_context(subprocess.Popen(line))
            stack.callback(running.kill)
        yield


async def measured(load: str, pid: int, health: int, metrics: int) -> Seen:
    """Ask while the load is on."""
    probes, scrapes, missed, later = [], [], 0, 0
    for number in range(ASKED):
        status, took = await ask(health, "/healthz")
        probes.append(took)
        missed += status != 200
        if number % 10 == 0:
            status, took = await ask(metrics, "/metrics")
            later += status != 200
            scrapes.append(took)
        await asyncio.sleep(0.05)
    status_file = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    numbers = {line.split(":")[0]: line.split()[1] for line in status_file if len(line.split()) > 1}
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Seen(
        load, probes, missed, scrapes, later, int(numbers["Threads"]), int(numbers["VmRSS"]) / 1000, descriptors
    )


async def run(count: int) -> list[Seen]:
    health, metrics = free_port(), free_port()
    flags = ("--health-listen", f"127.0.0.1:{health}", "--metrics-listen", f"127.0.0.1:{metrics}")
    ports, found = (health, metrics), []
    with tempfile.TemporaryDirectory() as folder, process(Path(folder), 1, 1, free_port(), *flags) as (signer, _):
        found.append(await measured("nobody", signer.pid, health, metrics))
        for load, said in ((f"{count} that say little", HALF), (f"{count} that do not read", WHOLE)):
            peers = await crowd(ports, count, said)
            found.append(await measured(load, signer.pid, health, metrics))
            for each in peers:
                each.transport.abort()
        with flood(ports):
            found.append(await measured("two that ask without end", signer.pid, health, metrics))
    return found


def shown(seen: Seen) -> str:
    def two(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.3g} / {max(values):.3g}"

    cells = (
        *(seen.load, two(seen.probes), str(seen.missed), two(seen.scrapes), str(seen.later)),
        *(str(seen.threads), f"{seen.resident:.0f}", str(seen.descriptors)),
    )
    return markdown.row(cells)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("connections", nargs="?", type=int, default=CROWD, help=f"of each crowd (default: {CROWD})")
    count: int = parser.parse_args().connections
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    heads = (
        *("load", "probe p50 / max, ms", f"probes missed of {ASKED}", "scrape p50 / max, ms"),
        *(f"scrapes missed of {ASKED // 10}", "threads", "RSS, MB", "descriptors"),
    )
    lines = ["# Crowds at the ports of metrics and probes", "", facts, "", *__doc__.split("\n\n")[2:3], ""]
    lines += markdown.table(heads, map(shown, asyncio.run(run(count))))
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    (RESULTS / "pages.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    sys.exit(main())
