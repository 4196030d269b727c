"""How long pods' sockets are away when a process of an agent is killed: python -m bench.back [--times N].

An agent with its own authority and 20 volumes; each kind of kill so many times in turn, when all is as before. A
socket is asked every 20 ms from the kill on, until it answers with an SVID; the agent is started again at once, as
kubelet does for a container that has not ended often. Prints a table for bench/results/chaos.md; root, as it mounts.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import grpc.aio

from bench.peers.ours import Node, embedded
from bench.report import environment
from tests.support import DEADLINE, DRIVER, svid_stream

VOLUMES, TIMES = 20, 10
ASKED_EVERY, ANSWER_SECONDS = 0.02, 5.0
KINDS = ("agent", "process of all", "process of all and the one that waits")


async def answered(socket: Path) -> None:
    """Return when it answers with an SVID."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(grpc.aio.AioRpcError, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS), svid_stream(socket) as stream:
                    await anext(aiter(stream))
                    return
            await asyncio.sleep(ASKED_EVERY)


async def complete(node: Node) -> None:
    """Return when the agent has the process that serves and the one that waits, and one socket answers."""
    async with asyncio.timeout(DEADLINE):
        while len(node.here.processes()) < 3:
            await asyncio.sleep(ASKED_EVERY)
    await answered(node.sockets[0])


async def killed(node: Node, kind: str) -> float:
    """Seconds from the kill until a socket answers."""
    _, *served = node.here.processes()
    began = time.monotonic()
    if kind == "agent":
        node.here.kill()
        node.here.start(*node.flags)
    else:
        for each in served[: 1 if kind == "process of all" else 2]:
            os.kill(each, signal.SIGKILL)
    await answered(node.sockets[-1])
    took = time.monotonic() - began
    if kind == "agent":
        await node.kubelet.wait_registered(DRIVER)
    await complete(node)
    return took


async def measured(times: int) -> Mapping[str, Sequence[float]]:
    """Seconds, by what was killed."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with embedded(VOLUMES) as node:
        await complete(node)
        for _ in range(times):
            for kind in KINDS:
                found[kind].append(await killed(node, kind))
    return found


def table(found: Mapping[str, Sequence[float]]) -> str:
    """As Markdown."""
    lines = ["| killed | times | a pod's socket answers after, p50 | at most |", "|---|---|---|---|"]
    for kind, seconds in found.items():
        lines.append(f"| {kind} | {len(seconds)} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.back", description=__doc__)
    parser.add_argument("--times", type=int, default=TIMES, metavar="N")
    given, about = parser.parse_args(), environment()
    found = asyncio.run(measured(given.times))
    print(", ".join(f"{key} {each}" for key, each in about.items()), "", table(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
