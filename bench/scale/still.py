"""What a signer takes of a core for pods that do not change: python -m bench.scale.still [--pods N,…] [--seconds N].

A signer for each size, and one for a cluster that is next to empty, each with its API server in a process of its own
and without agents; all are there at once and are measured over the same seconds, so that what the machine does
meanwhile is the same for all. Prints the table that is in bench/results/scale.md.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report import environment
from bench.scale.children import Site, raise_limits
from bench.scale.population import Cluster, Tokens

PODS, SECONDS, ROUNDS = (10_000, 50_000), 60.0, 3
# After a signer is ready: what a start leaves to do is done.
SETTLED_SECONDS, START_SECONDS = 30.0, 300.0
# % of a core for each 1,000 pods.
GOAL = 0.2
EMPTY = Cluster(8, 16, 0, 0, 1)


def sized(pods: int) -> Cluster:
    """So many pods, 30 on a node, and of all else as much as bench.scale has with them."""
    nodes = max(pods // 30, 2)
    return Cluster(nodes, pods, 2 * nodes // 5, 4 * nodes, max(nodes // 10, 1))


async def measured(pods: Sequence[int], seconds: float, rounds: int, folder: Path) -> Mapping[int, Sequence[float]]:
    """% of a core, by size, a round each; 0 is the empty cluster. Raises NotMeasured."""
    raise_limits(0)
    Tokens.write_key(folder / "cluster.key")
    sites = {0: Site("empty", EMPTY, folder)} | {each: Site(f"still-{each}", sized(each), folder) for each in pods}
    found: dict[int, list[float]] = {each: [] for each in sites}
    try:
        for site in sites.values():
            await site.start_api(START_SECONDS)
            await site.start_signer(START_SECONDS)
        await asyncio.sleep(SETTLED_SECONDS)
        for _ in range(rounds):
            used, begun = {each: sum(site.used()) for each, site in sites.items()}, time.monotonic()
            await asyncio.sleep(seconds)
            for each, site in sites.items():
                found[each].append((sum(site.used()) - used[each]) / (time.monotonic() - begun) * 100)
    finally:
        for site in sites.values():
            site.stop()
    return found


def table(found: Mapping[int, Sequence[float]]) -> str:
    """As Markdown: medians of the rounds, with the least and the most."""
    empty = statistics.median(found[0])
    heads = ("pods that do not change", "% of a core", "beyond the empty cluster, each 1,000 pods",
             "all of it, each 1,000 pods", "goal", "")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for pods, shares in found.items():
        middle = statistics.median(shares)
        cells = [f"{pods:,}" if pods else "next to none", f"{middle:.2f} ({min(shares):.2f} to {max(shares):.2f})"]
        if pods:
            each = [(middle - empty) / pods * 1000, middle / pods * 1000]
            cells += [f"{each[0]:.4f}", f"{each[1]:.4f}", f"under {GOAL:g}", "met" if each[1] < GOAL else "missed"]
        else:
            cells += ["-", "-", "-", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale.still", description=__doc__)
    parser.add_argument("--pods", type=lambda text: tuple(map(int, text.split(","))), default=PODS, metavar="N,…")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="N")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    given, about = parser.parse_args(), environment()
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        found = asyncio.run(measured(given.pods, given.seconds, given.rounds, Path(folder)))
    print(", ".join(f"{key} {value}" for key, value in about.items()), "", table(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
