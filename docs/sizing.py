"""What podsvid takes by what it serves: slopes of results in the repository, and what they come to on paper."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from signer.front.budget import AGENT_CONNECTIONS, FOR_PEERS, OF_AGENT

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "bench/results"
# The runs that figures are of: an agent by volumes, a signer at its largest on an ordinary and on a slow day.
AGENT, ORDINARY, SLOW = "2026-11-29-2c.json", "2026-11-27-2c-scale-all.json", "2026-11-28-2c-scale-slow.json"
# What those two runs of a signer had (`python -m bench.scale`).
AGENTS, PODS = 5_000, 150_000
# Of a volume in memory, three generations of its files: bench/results/volumes.md.
FILES = 90 * 1024
# Renewals are drawn between two fifths and half of an SVID's life, so each comes after this part of it in the mean.
RENEWED = 0.45
LIFE = 3600.0
# SVIDs a second: the signer's `reissue_rate` and `forced_reissue_over`, and half of the longest life.
RATE, LEAST, MOST = 300.0, 90.0, LIFE / 2
MB, MIB = 1e6, 1024.0 * 1024.0
# What of a mint that comes in a call of its own is the deciding process's, and the workers' of a replica that has two:
# by the medians of docs/decisions.md, 9. Bytes that a worker adds to a replica's limit: docs/signer.md.
DECIDES, SERVES, OF_WORKER = 0.695 / 1.035, 0.335 / 1.035, 24 * MIB
# How much of its core a deciding process may be planned for in a forced re-issue.
FULL = 0.9
# What a Kubernetes cluster of these sizes is taken to have.
NODES, PODS_OF_NODE = (100, 1_000, 5_000, 15_000), 30


@dataclass(frozen=True, slots=True)
class Agent:
    """MB of processes by volumes: `empty`, for each of the first `bend` volumes, and for each beyond."""

    empty: float
    first: float
    bend: int
    beyond: float

    def memory(self, volumes: int) -> float:
        """MB, with the volumes' files and a stream of each pod."""
        below = min(volumes, self.bend)
        return self.empty + self.first * below + self.beyond * (volumes - below) + volumes * FILES / MB


@dataclass(frozen=True, slots=True)
class Signer:
    """Of one replica, by agents that are connected to it and pods of the cluster.

    MB: `empty`, `agent`, `pod`; `peak` is how many times that much the run took at most, in a re-issue of all SVIDs and
    the rotation after it. Milliseconds of processor time: `mint` where next to nothing goes on beside it, as `idle`
    comes on top; `beside` with what went on at full size. `idle`: percent of a core for each thousand pods, of which
    1 % change a minute.
    """

    empty: float
    agent: float
    pod: float
    peak: float
    mint: float
    beside: float
    idle: float

    def memory(self, agents: int, pods: int) -> float:
        """MB at rest."""
        return self.empty + self.agent * agents + self.pod * pods


def agent() -> Agent:
    """From the newest run of `python -m bench`."""
    rows = {row["what"]: row for row in _read(AGENT)["rows"]}
    empty, bend, full = (
        median(rows[f"PSS of agent and server, {volumes} volumes, a stream each"]["values"])
        for volumes in (0, 110, 500)
    )
    return Agent(empty, (bend - empty) / 110, 110, (full - bend) / 390)


def signer(name: str) -> Signer:
    """From a run of `python -m bench.scale` with AGENTS and PODS."""
    rows = {row["key"]: row for row in _read(name)["rows"]}
    rest, of_agent = rows["rss_steady"], OF_AGENT / MB
    # The slow run takes what goes on beside off `mint_cpu`; the older measure is the one that both have.
    cpu = rows.get("mint_cpu_all", rows["mint_cpu"])
    known = rest["value"] - rest["empty"] - of_agent * AGENTS
    return Signer(
        empty=rest["empty"],
        agent=of_agent,
        pod=known / PODS,
        peak=rows["rss_peak"]["value"] / rest["value"],
        mint=cpu["empty"],
        beside=cpu["value"],
        idle=rows["background"]["value"] / (PODS / 1000),
    )


def _read(name: str) -> Any:
    return json.loads((ROOT / RESULTS / name).read_text(encoding="utf-8"))


def replicas(nodes: int) -> int:
    """So many that all agents are connected while one replica is away; two at least."""
    return max(2, math.ceil(nodes / AGENT_CONNECTIONS) + 1)


def mints(pods: int) -> float:
    """A second, of all replicas, by renewals of X.509-SVIDs alone."""
    return pods / (RENEWED * LIFE)


def reissue(pods: int) -> float:
    """Seconds over which a forced rotation renews all SVIDs."""
    return min(max(pods / RATE, LEAST), MOST)


def slopes() -> list[tuple[str, ...]]:
    """What the formulas are made of, and where it was measured."""
    of_agent, usual, slow = agent(), signer(ORDINARY), signer(SLOW)
    return [
        ("agent: processes, no volume", f"{of_agent.empty:.0f} MB", f"`{AGENT}`, PSS"),
        (
            f"agent: each of the first {of_agent.bend} volumes with a stream",
            f"{of_agent.first:.2f} MB",
            f"`{AGENT}`, PSS",
        ),
        ("agent: each volume beyond", f"{of_agent.beyond:.3f} MB", f"`{AGENT}`, PSS at {of_agent.bend} and 500"),
        ("agent: files of a volume", f"{FILES / MB:.3f} MB", "`volumes.md`, three generations"),
        ("signer: empty", f"{usual.empty:.0f} MB", f"`{ORDINARY}`"),
        ("signer: each agent that is connected", f"{usual.agent:.3f} MB", "`scale.md`; `signer/front/budget.py`"),
        ("signer: each pod of the cluster", f"{usual.pod * 1000:.1f} KB", f"`{ORDINARY}`: the rest of its memory"),
        (
            "signer: in a re-issue of all SVIDs and the rotation after it",
            f"{usual.peak:.2f} times",
            f"`{ORDINARY}`: peak by rest",
        ),
        (
            "signer: processor time of a mint",
            f"{usual.mint:.1f} to {slow.mint:.1f} ms",
            f"`{ORDINARY}`, `{SLOW}`: where next to nothing else is done",
        ),
        (
            "signer: the same with all that goes on beside it",
            f"{usual.beside:.1f} to {slow.beside:.1f} ms",
            "the same, at full size; in no formula, which has the next row on top",
        ),
        (
            "signer: at rest, each 1,000 pods",
            f"{usual.idle:.2f} to {slow.idle:.2f} % of a core",
            f"`{ORDINARY}`, `{SLOW}`: 1 % of pods change a minute",
        ),
    ]


def formulas() -> str:
    """With the slopes in their places."""
    of_agent, usual, slow = agent(), signer(ORDINARY), signer(SLOW)
    files = FILES / MB
    return (
        "\nOf an agent, by its volumes:\n\n"
        f"    memory = {of_agent.empty:.0f} MB + {of_agent.first:.2f} MB x volumes up to {of_agent.bend}"
        f" + {of_agent.beyond:.3f} MB x volumes beyond + {files:.3f} MB x all volumes\n\n"
        "Of a signer:\n\n"
        f"    memory at rest = {usual.empty:.0f} MB + {usual.agent:.3f} MB x agents connected to that replica"
        f" + {usual.pod * 1000:.1f} KB x pods of the cluster\n"
        f"    limit          = {usual.peak:.2f} x memory at rest + {FOR_PEERS / MIB:.0f} MiB"
        " (what peers can make a replica hold)\n"
        f"    mints a second = pods / ({RENEWED} x lifetime of an SVID in seconds), of all replicas together\n"
        f"    processor      = mints a second of that replica x {usual.mint:.1f} to {slow.mint:.1f} ms"
        f" + {usual.idle:.2f} to {slow.idle:.2f} % of a core x pods / 1,000\n\n"
    )


def of_volumes(numbers: Iterable[int] = (10, 30, 110, 250, 500)) -> list[tuple[str, ...]]:
    """Of one agent."""
    found = agent()
    return [(f"{each}", f"{found.memory(each):.0f} MB") for each in numbers]


def at_work() -> list[tuple[str, ...]]:
    """Times of an agent with a stream of each pod, from the same run as its memory."""
    rows = {row["what"]: row["values"] for row in _read(AGENT)["rows"]}
    idle = [
        (
            f"processor at rest, {number} volumes",
            f"{median(rows[f'idle CPU, {number} volumes, a stream each']):.1f} % of a core",
        )
        for number in (0, 110, 500)
    ]
    written = rows["500 SVIDs due at once, a stream each, until all are written"]
    return [
        *idle,
        ("500 SVIDs due at once, until all are written", f"{min(written):.2f} to {max(written):.2f} s"),
        ("a volume, one after the other", f"{median(rows['NodePublishVolume, one after the other']):.0f} ms"),
    ]


def of_clusters() -> list[tuple[str, ...]]:
    """Of whole clusters, with an SVID of an hour for each pod."""
    usual, slow = signer(ORDINARY), signer(SLOW)
    rows: list[tuple[str, ...]] = []
    for nodes in NODES:
        pods, number = nodes * PODS_OF_NODE, replicas(nodes)
        rest = usual.memory(min(nodes, AGENT_CONNECTIONS), pods)
        limit = (rest * usual.peak * MB + FOR_PEERS) / MIB
        each = mints(pods) / (number - 1)
        cores = [(each * one.mint / 10 + one.idle * pods / 1000) / 100 for one in (usual, slow)]
        rows.append(
            (
                f"{nodes:,}",
                f"{pods:,}",
                f"{number}",
                f"{rest:.0f} MB",
                f"{rest * usual.peak:.0f} MB",
                f"{max(1024, math.ceil(limit / 256) * 256)}Mi",
                f"{mints(pods):.1f}",
                f"{cores[0]:.2f} to {cores[1]:.2f}",
                f"{math.ceil(reissue(pods) / 60)} min",
            )
        )
    return rows


def on_paper(nodes: int = NODES[-1]) -> list[tuple[str, ...]]:
    """What a replica of a cluster of that size needs while one is away: each step, without workers and with two."""
    one, pods, number = signer(ORDINARY), nodes * PODS_OF_NODE, replicas(nodes)
    there = number - 1
    rest = one.memory(AGENT_CONNECTIONS, pods)
    limits = [(rest * one.peak * MB + FOR_PEERS + workers * OF_WORKER) / MIB for workers in (0, 2)]
    each = mints(pods) / there
    minting = [each * one.mint / 1000 * part for part in (1.0, DECIDES)]
    serving, idle = each * one.mint / 1000 * SERVES, one.idle * pods / 1000 / 100
    forced = [RATE / there * one.mint / 1000 * part for part in (1.0, DECIDES)]
    left = [
        there * (FULL - idle - mine) / (one.mint / 1000 * part)
        for mine, part in zip(minting, (1, DECIDES), strict=True)
    ]
    return [
        ("replicas", f"{nodes:,} / {AGENT_CONNECTIONS:,}, rounded up, and one more", f"{number}", f"{number}"),
        (
            "memory at rest",
            f"{one.empty:.0f} MB + {one.agent:.3f} MB x {AGENT_CONNECTIONS:,} + {one.pod * 1000:.2f} KB x {pods:,}",
            f"{rest:.0f} MB",
            f"{rest:.0f} MB",
        ),
        (
            "limit, in steps of 256Mi",
            f"{one.peak:.2f} x {rest:.0f} MB + {FOR_PEERS / MIB:.0f} MiB, and {OF_WORKER / MIB:.0f} MiB a worker",
            *(f"{math.ceil(limit / 256) * 256}Mi" for limit in limits),
        ),
        ("renewals a second", f"{pods:,} / ({RENEWED} x {LIFE:.0f} s) / {there}", f"{each:.1f}", f"{each:.1f}"),
        (
            "cores for these, deciding",
            f"{each:.1f} x {one.mint:.2f} ms; x {DECIDES:.2f} where workers serve",
            *(f"{mine:.2f}" for mine in minting),
        ),
        ("cores for these, both workers", f"{each:.1f} x {one.mint:.2f} ms x {SERVES:.2f}", "0", f"{serving:.2f}"),
        (
            "cores for pods that change",
            f"{one.idle:.3f} % x {pods / 1000:.0f}; of each replica, however many there are",
            f"{idle:.2f}",
            f"{idle:.2f}",
        ),
        ("cores, deciding, in all", "the sum", *(f"{mine + idle:.2f}" for mine in minting)),
        (
            f"the same in a forced re-issue at {RATE:.0f} a second",
            f"{RATE:.0f} / {there} x {one.mint:.2f} ms more; x {DECIDES:.2f}",
            *(f"{mine + idle + more:.2f}" for mine, more in zip(minting, forced, strict=True)),
        ),
        (
            f"mints a second beside renewals, of all, up to {FULL} of a core",
            f"{there} x ({FULL} - all cores, deciding) / a mint's share",
            *(f"{rate:.0f}" for rate in left),
        ),
    ]
