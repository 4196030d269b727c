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
# And the one in which SVIDs were renewed by the clock, so that nearly each came alone, by replicas with two workers.
ALONE = "2026-11-29-2c-scale-renewals.json"
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
# Bytes that a worker adds to a replica's limit: docs/signer.md.
OF_WORKER = 24 * MIB
# How much of its core a deciding process may be planned for, at rest and in a forced re-issue.
ROOM, FULL = 0.6, 0.9
# Hours that SVIDs may live, of which the least that leaves ROOM is advised; `reissue_rate` is, in such steps.
LIVES, RATE_STEP = (1, 2, 4, 8), 50
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


@dataclass(frozen=True, slots=True)
class Renewal:
    """Milliseconds of processor time of one that comes alone, where two workers serve: of each side of them."""

    decides: float
    serves: float

    @property
    def in_one(self) -> float:
        """Where there are no workers: both, which is at least what it takes."""
        return self.decides + self.serves


def renewal() -> Renewal:
    """From the run in which they came by the clock."""
    rows = {row["key"]: row["value"] for row in _read(ALONE)["rows"]}
    return Renewal(rows["renew_cpu"], rows["renew_workers_cpu"])


def _read(name: str) -> Any:
    return json.loads((ROOT / RESULTS / name).read_text(encoding="utf-8"))


def replicas(nodes: int) -> int:
    """So many that all agents are connected while one replica is away; two at least."""
    return max(2, math.ceil(nodes / AGENT_CONNECTIONS) + 1)


def mints(pods: int, hours: float = 1.0) -> float:
    """A second, of all replicas, by renewals of X.509-SVIDs alone that live so long."""
    return pods / (RENEWED * LIFE * hours)


def reissue(pods: int, rate: float = RATE, hours: float = 1.0) -> float:
    """Seconds over which a forced rotation renews all SVIDs."""
    return min(max(pods / rate, LEAST), MOST * hours)


def deciding(pods: int, serving: int, hours: float = 1.0, *, workers: bool = True) -> float:
    """Cores of the process that decides, of one of so many replicas that serve: what renewals and changes take."""
    each = renewal()
    changes = signer(ORDINARY).idle * pods / 1000 / 100
    return mints(pods, hours) / serving * (each.decides if workers else each.in_one) / 1000 + changes


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
            "signer: processor time of a renewal that comes alone",
            f"{renewal().decides:.1f} ms, and {renewal().serves:.1f} ms of workers",
            f"`{ALONE}`: two workers; with agents that come over from a lost replica",
        ),
        (
            "signer: processor time of a mint in a burst",
            f"{usual.mint:.1f} to {slow.mint:.1f} ms",
            f"`{ORDINARY}`, `{SLOW}`: where next to nothing else is done; in no formula",
        ),
        (
            "signer: the same with all that goes on beside it",
            f"{usual.beside:.1f} to {slow.beside:.1f} ms",
            "the same, at full size; in no formula",
        ),
        (
            "signer: at rest, each 1,000 pods",
            f"{usual.idle:.2f} to {slow.idle:.2f} % of a core",
            f"`{ORDINARY}`, `{SLOW}`: 1 % of pods change a minute",
        ),
    ]


def formulas() -> str:
    """With the slopes in their places."""
    of_agent, usual, slow, each = agent(), signer(ORDINARY), signer(SLOW), renewal()
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
        f"    processor      = mints a second of that replica x {each.in_one:.1f} ms"
        f" + {usual.idle:.2f} to {slow.idle:.2f} % of a core x pods / 1,000\n"
        f"    with workers   : {each.decides:.1f} ms of these are of the process that decides,"
        f" {each.serves:.1f} ms of its workers\n\n"
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
    usual = signer(ORDINARY)
    rows: list[tuple[str, ...]] = []
    for nodes in NODES:
        pods, number = nodes * PODS_OF_NODE, replicas(nodes)
        rest = usual.memory(min(nodes, AGENT_CONNECTIONS), pods)
        limit = (rest * usual.peak * MB + FOR_PEERS) / MIB
        cores = [deciding(pods, number - 1, workers=workers) for workers in (False, True)]
        rows.append(
            (
                f"{nodes:,}",
                f"{pods:,}",
                f"{number}",
                f"{rest:.0f} MB",
                f"{rest * usual.peak:.0f} MB",
                f"{max(1024, math.ceil(limit / 256) * 256)}Mi",
                f"{mints(pods):.1f}",
                f"{cores[0]:.2f}; {cores[1]:.2f}",
                f"{math.ceil(reissue(pods) / 60)} min",
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Advice:
    """What to give a cluster's signers. `cores`: of a process that decides, while one replica is away."""

    replicas: int
    hours: int
    rate: int
    limit: int
    cores: float


def advice(nodes: int) -> Advice:
    """The least life of SVIDs that leaves ROOM, and the most of a forced re-issue up to FULL; two workers each.

    Raises ValueError where no life leaves room: pods that change take of each replica, so more of them do not help.
    """
    pods, number = nodes * PODS_OF_NODE, replicas(nodes)
    hours = next((each for each in LIVES if deciding(pods, number - 1, each) <= ROOM), None)
    if hours is None:
        least = deciding(pods, number - 1, LIVES[-1])
        raise ValueError(
            f"{nodes:,} nodes: with SVIDs of {LIVES[-1]} hours a process that decides still uses {least:.2f} of its"
            f" core, which is more than {ROOM}; there is nothing to advise"
        )
    # What ROOM leaves up to FULL is more than one step of the rate, of one replica already.
    rate = min(int(left(pods, number - 1, hours) // RATE_STEP) * RATE_STEP, int(RATE))
    return Advice(number, hours, rate, _limit(pods, 2), deciding(pods, number - 1, hours))


def left(pods: int, serving: int, hours: float) -> float:
    """Mints a second that all replicas have room for beside renewals, each up to FULL of its core."""
    return serving * (FULL - deciding(pods, serving, hours)) / (renewal().decides / 1000)


def _limit(pods: int, workers: int) -> int:
    """MiB of a replica that has its most agents, in steps of 256."""
    one = signer(ORDINARY)
    found = (one.memory(AGENT_CONNECTIONS, pods) * one.peak * MB + FOR_PEERS + workers * OF_WORKER) / MIB
    return math.ceil(found / 256) * 256


def advised(nodes: int = NODES[-1]) -> str:
    """The advice in words, with what stands against its neighbours."""
    pods, found = nodes * PODS_OF_NODE, advice(nodes)
    serving = found.replicas - 1
    shorter = [f"{deciding(pods, serving, each):.2f} of {each} h" for each in LIVES if each < found.hours]
    changes = signer(ORDINARY).idle * pods / 1000 / 100
    hourly = math.ceil(mints(pods) * renewal().decides / 1000 / (ROOM - changes)) + 1
    forced = deciding(pods, serving, found.hours) + RATE / serving * renewal().decides / 1000
    minutes = reissue(pods, found.rate, found.hours) / 60
    return (
        f"\n**{found.replicas} signers with two workers each, SVIDs of {found.hours} hours, `reissue_rate`"
        f" {found.rate}**: `signer.replicas={found.replicas}`, `ttl.x509={found.hours}h`,\n"
        f"a limit of {found.limit}Mi and two cores for each. While one of them is away, a process that decides uses"
        f" {found.cores:.2f} of its core;\n"
        f"with shorter lives it would be more than {ROOM} ({', '.join(shorter)}). More signers in place of longer"
        " lives do not take\n"
        f"away the {changes:.2f} that pods that change take of each: SVIDs of an hour would need {hourly}. A forced"
        " re-issue of all SVIDs is then asked\n"
        f"to take {minutes:.0f} minutes; at {RATE:.0f} a second it would need {forced:.2f} of that core.\n\n"
    )


def on_paper(nodes: int = NODES[-1]) -> list[tuple[str, ...]]:
    """What a replica of a cluster of that size needs while one is away: each step, by an hour's life and as advised."""
    one, each, pods, number = signer(ORDINARY), renewal(), nodes * PODS_OF_NODE, replicas(nodes)
    there, lives = number - 1, (1, advice(nodes).hours)
    rest, changes = one.memory(AGENT_CONNECTIONS, pods), one.idle * pods / 1000 / 100
    rates = [mints(pods, hours) / there for hours in lives]
    cores = [deciding(pods, there, hours) for hours in lives]

    def row(what: str, how: str, *values: str) -> tuple[str, ...]:
        return (what, how, *(values if len(values) == len(lives) else values * len(lives)))

    return [
        row("replicas", f"{nodes:,} / {AGENT_CONNECTIONS:,}, rounded up, and one more", f"{number}"),
        row(
            "memory at rest",
            f"{one.empty:.0f} MB + {one.agent:.3f} MB x {AGENT_CONNECTIONS:,} + {one.pod * 1000:.2f} KB x {pods:,}",
            f"{rest:.0f} MB",
        ),
        row(
            "limit, in steps of 256Mi",
            f"{one.peak:.2f} x {rest:.0f} MB + {FOR_PEERS / MIB:.0f} MiB, and {OF_WORKER / MIB:.0f} MiB a worker",
            f"{_limit(pods, 2)}Mi",
        ),
        row("renewals a second", f"{pods:,} / ({RENEWED} x life) / {there}", *(f"{rate:.1f}" for rate in rates)),
        row(
            "cores for these, deciding",
            f"x {each.decides:.1f} ms",
            *(f"{rate * each.decides / 1000:.2f}" for rate in rates),
        ),
        row(
            "cores for these, both workers",
            f"x {each.serves:.1f} ms",
            *(f"{rate * each.serves / 1000:.2f}" for rate in rates),
        ),
        row(
            "cores for pods that change",
            f"{one.idle:.3f} % x {pods / 1000:.0f}; of each replica, however many there are",
            f"{changes:.2f}",
        ),
        row("cores, deciding, in all", "the sum", *(f"{all_of:.2f}" for all_of in cores)),
        row(
            f"the same in a forced re-issue at {RATE:.0f} a second",
            f"{RATE:.0f} / {there} x {each.decides:.1f} ms more",
            *(f"{all_of + RATE / there * each.decides / 1000:.2f}" for all_of in cores),
        ),
        row(
            f"mints a second beside renewals, of all, up to {FULL} of a core",
            f"{there} x ({FULL} - all cores, deciding) / {each.decides:.1f} ms",
            *(f"{left(pods, there, hours):.0f}" for hours in lives),
        ),
    ]
