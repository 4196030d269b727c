"""Pods that run wild against their own sockets: what do the others notice?

    python -m bench.hostile

As root, on a machine with a memory cgroup that can be written; twenty minutes. For each kind of attack twice: an agent
in a group of the chart's memory limit, with 40 pods; the first of them is attacked (the first ten in two rows) by two
processes, or kubelet is by one what a namespace's pods want of it (bench/storms.py). Quiet comes before it, a floor
after it: processes that attack nobody and burn the CPU time that the attackers burnt, since here no cgroup keeps a pod
from the cores that all share; for the fork bomb, as many processes that do nothing. Meanwhile the thirty pods that are
never attacked connect and fetch their first SVID, new pods start, and SVIDs come due. Under 2,500 volumes the agent is
killed and started in each of the three. Records bench/results/hostile.md.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc.aio

from agent.budget import LIMIT as MEMORY
from bench import markdown
from bench.attacks import ATTACKERS, KINDS
from bench.limited import Limited
from bench.report import RESULTS, Row, environment, record_values
from bench.storms import Child, Done
from bench.volumes import PATIENCE, a_node
from podsvid.quickstart.errors import DriverNotRegistered, PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from tests.support import VOLUME, Host, first, pod

# Of all pods, those that are attacked in the last rows.
PODS, MANY = 40, 10
TTL = "10s"
# What one namespace's pods want of kubelet, as bench/storms.py names it, and how many volumes. Those live as long as
# the shortest that a pod may wish for by default.
STORMS: Mapping[str, tuple[str, int]] = {
    "rsa-4096, one pod": ("rsa", 100),
    "rsa-4096 and keystores": ("rsa-keystores", 100),
    "volumes": ("many", 2500),
}
FLAGS = ("--x509-max-ttl", "1m")
# Those under which the agent is killed.
KILLED = ("volumes",)
MB = 1e6
LOADS = ("quiet", "floor", "attack")
# Of publishes and renewals there are some dozens: no 99th percentile.
OF_FETCHES, OF_OTHERS = ("p50", "p95", "p99", "max"), ("p50", "p95", "max")
WHAT = {
    "fetch": "another pod connects and has its first SVID",
    "publish": "NodePublishVolume of a new pod",
    "late": "an SVID is in its files after it was due",
    "back": "another pod has an SVID again after the agent was killed",
    "publish again": "a new pod's NodePublishVolume has succeeded after the agent was killed",
    "late again": "an SVID is in its files after it was due, the agent killed meanwhile",
}
# A run that takes longer hangs.
LIMIT = 2400.0
# What a client waits before it asks again.
AGAIN = 1.0
MOVED = "a pod's sockets are moved"
ENDED = "the process that serves pods' sockets ended; it is started again"


@dataclass(frozen=True)
class Effect:
    """What was done in so many seconds, and how often it was put off; `busy`: seconds of CPU of all who did it."""

    done: int
    put_off: int
    seconds: float
    busy: float


@dataclass
class Seen:
    """What one kind of attack did: milliseconds by what and load, how many calls failed under attack, bytes of the
    whole group at most, processes killed by its limit, how often the process of all pods' sockets ended, where those
    that were attacked and others were moved, and what was done to them."""

    kind: str
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    memory: int = 0
    killed: int = 0
    ended: int = 0
    offenders: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    effects: list[Effect] = field(default_factory=list)

    def add(self, what: str, load: str, milliseconds: float) -> None:
        self.values.setdefault((what, load), []).append(milliseconds)

    def total(self, what: str) -> float:
        """Of all effects."""
        return float(sum(getattr(each, what) for each in self.effects))

    def failure(self, what: str, load: str) -> None:
        """A call of a pod that is never attacked failed."""
        assert load == "attack", f"a {what} failed without an attack"
        self.failed[what] += 1


class Attacking(Protocol):
    """What is under way beside what is measured."""

    async def ended(self) -> Effect: ...


class Storming:
    """One process that has kubelet do what a namespace wants. Implements Attacking."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._done: asyncio.Task[Done] = child.begin()

    async def ended(self) -> Effect:
        found = await self._done
        await self._child.end()
        return Effect(found.made, found.put_off, found.seconds, found.share * found.seconds)


class Attackers:
    """Two processes of one kind, and the CPU time that they took. Implements Attacking."""

    def __init__(self, kind: str, seconds: float, sockets: Iterable[Path], *options: str) -> None:
        command = [sys.executable, "-m", "bench.attacks", "--seconds", str(seconds), *options, kind]
        command += map(str, sockets)
        self._seconds = seconds
        self._processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(ATTACKERS)]
        for each in self._processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "attacking\n", f"{kind} did not begin"

    async def ended(self) -> Effect:
        done, busy = 0, 0.0
        for each in self._processes:
            assert each.stdout is not None
            output = await asyncio.to_thread(each.stdout.read)
            _, status, usage = await asyncio.to_thread(os.wait4, each.pid, 0)
            each.returncode = os.waitstatus_to_exitcode(status)
            assert each.returncode == 0, "an attacker failed"
            done += int(output or 0)
            busy += usage.ru_utime + usage.ru_stime
        return Effect(done, 0, self._seconds, busy)


class Hostile:
    """The agent, its pods, and what is measured of them while some are attacked. `again` kills and starts the agent."""

    def __init__(
        self, here: Host, kubelet: StandInKubelet, again: Callable[[], None], rng: random.Random, seconds: float
    ) -> None:
        self._here = here
        self._kubelet = kubelet
        self._again = again
        self._rng = rng
        self._seconds = seconds
        self._targets: list[Path] = []
        self._sockets: list[Path] = []
        self._published = 0

    async def begin(self) -> None:
        """The pods that run on the node."""
        for number in range(PODS):
            target = await self._kubelet.publish(pod(f"p{number}", f"sa{number}"), VOLUME)
            self._targets.append(target)
            self._sockets.append(self._here.short(target) / "socket")
        for socket in self._sockets:
            await first(socket)

    async def attack(self, seen: Seen, kind: str, sockets: int) -> None:
        """Quiet, attack and floor in turn."""
        killed = kind in KILLED
        await self._measured(seen, "quiet", None, killed)
        await self._measured(seen, "attack", await self._attacking(seen, kind, sockets), killed)
        await self._measured(seen, "floor", self._floor(kind, seen), killed)
        offenders = {f"default/p{number}" for number in range(sockets)}
        for event in self._here.events():
            if event["event"] == MOVED:
                (seen.offenders if event["pod"] in offenders else seen.others)[event["to"]] += 1
            seen.ended += event["event"] == ENDED and event["which"] == "shared"

    async def _attacking(self, seen: Seen, kind: str, sockets: int) -> Attacking:
        if kind not in STORMS:
            return Attackers(kind, self._seconds, self._sockets[:sockets])
        storm, many = STORMS[kind]
        # Kubelet goes on with what is put off when the agent is started again.
        seconds = self._seconds * (2 if kind in KILLED else 1)
        return Storming(await Child.ready(storm, self._here.kubelet_root, many, seconds))

    def _floor(self, kind: str, seen: Seen) -> Attacking:
        """The CPU time of the last attack, or as many processes as it made, aimed at nobody."""
        if kind == "forks":
            rate = max(seen.total("done") / seen.total("seconds") / ATTACKERS, 1)
            return Attackers("idle-forks", self._seconds, (), "--rate", f"{rate:.1f}")
        last = seen.effects[-1]
        share = last.busy / last.seconds / ATTACKERS
        return Attackers("burn", self._seconds, (), "--share", f"{share:.3f}")

    async def _measured(self, seen: Seen, load: str, attacking: Attacking | None, killed: bool) -> None:
        await self._while(self._seconds, seen, load)
        if killed:
            await self._killed(seen, load)
        if attacking is not None:
            effect = await attacking.ended()
            if load == "attack":
                seen.effects.append(effect)

    async def _while(self, seconds: float, seen: Seen, load: str) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(
            self._fetch(seen, load, until), self._publish(seen, load, until), self._late(seen, "late", load, until)
        )

    async def _killed(self, seen: Seen, load: str) -> None:
        """The agent is killed and started: when is everybody served again?"""
        self._again()
        began = time.perf_counter()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(
                self._back(seen, load, began),
                self._publish_again(seen, load, began),
                self._late(seen, "late again", load, time.monotonic() + self._seconds),
            )

    async def _back(self, seen: Seen, load: str, began: float) -> None:
        waiting = list(self._sockets[MANY:])
        while waiting:
            for socket in list(waiting):
                with suppress(grpc.aio.AioRpcError):
                    await first(socket)
                    seen.add("back", load, (time.perf_counter() - began) * 1e3)
                    waiting.remove(socket)
            await asyncio.sleep(0.02)

    async def _publish_again(self, seen: Seen, load: str, began: float) -> None:
        each = pod(f"new{self._published}", "new")
        self._published += 1
        while True:
            try:
                await self._kubelet.publish(each, VOLUME)
            except (PublishFailed, DriverNotRegistered):
                await asyncio.sleep(0.05)
            else:
                break
        seen.add("publish again", load, (time.perf_counter() - began) * 1e3)
        await self._kubelet.unpublish(each, VOLUME)

    async def _fetch(self, seen: Seen, load: str, until: float) -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                await first(self._rng.choice(self._sockets[MANY:]))
            except grpc.aio.AioRpcError:
                seen.failure("fetch", load)
                await asyncio.sleep(AGAIN)
                continue
            seen.add("fetch", load, (time.perf_counter() - started) * 1e3)
            await asyncio.sleep(0.01)

    async def _publish(self, seen: Seen, load: str, until: float) -> None:
        while time.monotonic() < until:
            each = pod(f"new{self._published}", "new")
            self._published += 1
            started = time.perf_counter()
            try:
                await self._kubelet.publish(each, VOLUME)
            except PublishFailed:
                seen.failure("publish", load)
                await asyncio.sleep(AGAIN)
                continue
            seen.add("publish", load, (time.perf_counter() - started) * 1e3)
            await self._kubelet.unpublish(each, VOLUME)
            await asyncio.sleep(0.1)

    async def _late(self, seen: Seen, what: str, load: str, until: float) -> None:
        """From the instant that the journal says until the rename that the kernel's clock says."""
        planned: dict[Path, tuple[str, float]] = {}
        while time.monotonic() < until:
            due = self._due()
            for target in self._targets[MANY:]:
                now = os.readlink(target / "..data")
                known = planned.get(target)
                if known is not None and known[0] != now:
                    seen.add(what, load, (os.lstat(target / "..data").st_mtime - known[1]) * 1e3)
                planned[target] = (now, due[str(target)])
            await asyncio.sleep(0.05)

    def _due(self) -> dict[str, float]:
        found = {}
        for path in (self._here.base / "r" / "journal").glob("*.json"):
            with suppress(FileNotFoundError):  # a pod that goes
                entry = json.loads(path.read_text(encoding="utf-8"))
                found[entry["target"]] = datetime.fromisoformat(entry["renew_at"]).timestamp()
        return found


async def run(kinds: Sequence[tuple[str, int]], rounds: int, seconds: float) -> list[Seen]:
    """One after the other, each time with another agent: who was set apart before is not. Raises TimeoutError."""
    found = []
    rng = random.Random(1)
    async with asyncio.timeout(LIMIT):
        for kind, sockets in kinds:
            seen = Seen(kind if sockets == 1 else f"{kind}, {sockets} pods")
            for _ in range(rounds):
                async with a_node(*FLAGS, ttl=TTL, limit=MEMORY) as (here, kubelet, group):

                    def again(here: Host = here, group: Limited = group) -> None:
                        here.kill()
                        here.start(*FLAGS, ttl=TTL, within=group.command)

                    hostile = Hostile(here, kubelet, again, rng, seconds)
                    await hostile.begin()
                    await hostile.attack(seen, kind, sockets)
                    seen.memory = max(seen.memory, group.peak())
                    seen.killed += group.killed()
            found.append(seen)
            print(line(seen), file=sys.stderr, flush=True)
    return found


def rows(seen: Seen) -> dict[tuple[str, str], Row]:
    """Its latencies by what and load."""
    return {
        (what, load): Row(f"{seen.kind}: {WHAT[what]}, {load}", "ms", tuple(values))
        for (what, load), values in seen.values.items()
    }


def latencies(by: Mapping[tuple[str, str], Row], what: str, statistic: str) -> str:
    """A cell: quiet / floor / attack."""
    found = [by[what, load].statistic(statistic) if (what, load) in by else None for load in LOADS]
    return " / ".join("-" if value is None else f"{value:.3g}" for value in found)


def counts(seen: Seen, what: str) -> str:
    """A cell of how many there are of it: quiet / floor / attack."""
    return " / ".join(str(len(seen.values.get((what, load), ()))) for load in LOADS)


def line_of_storm(seen: Seen) -> str:
    """A line of the table of what kubelet was asked for."""
    cell = partial(latencies, rows(seen))
    cells = [seen.kind, f"{seen.total('done'):.0f}", f"{seen.total('put_off'):.0f}"]
    cells += [cell("back", "p50"), cell("back", "max"), cell("publish again", "max")]
    cells += [cell("late again", "p50"), cell("late again", "max")]
    return markdown.row(cells)


def line(seen: Seen) -> str:
    """A line of the table: quiet / floor / attack in each cell of latencies."""
    cell = partial(latencies, rows(seen))

    def counted(found: Counter[str]) -> str:
        return ", ".join(f"{to} {number}" for to, number in sorted(found.items())) or "-"

    def failed(what: str) -> str:
        return f"{seen.failed[what]} of {len(seen.values.get((what, 'attack'), ())) + seen.failed[what]}"

    cells = [seen.kind, f"{seen.total('done') / seen.total('seconds'):.0f}"]
    cells.append(f"{seen.total('busy') / seen.total('seconds'):.2f}")
    cells += [failed("fetch"), *(cell("fetch", each) for each in OF_FETCHES)]
    cells += [failed("publish"), *(cell("publish", each) for each in OF_OTHERS)]
    cells += [counts(seen, "late"), *(cell("late", each) for each in OF_OTHERS)]
    cells += [
        f"{seen.memory / MB:.0f}",
        str(seen.killed),
        str(seen.ended),
        counted(seen.offenders),
        counted(seen.others),
    ]
    return markdown.row(cells)


def report(found: Sequence[Seen], about: Mapping[str, str]) -> str:
    """What is recorded."""
    headings = ["attack", "done, 1/s", "cores used by it"]
    headings += ["fetches failed", *(f"fetch {each}, ms" for each in OF_FETCHES)]
    headings += ["publishes failed", *(f"publish {each}, ms" for each in OF_OTHERS)]
    headings += ["due, renewed", *(f"due to written {each}, ms" for each in OF_OTHERS)]
    headings += ["memory at most, MB", "killed by the limit", "shared process ended"]
    headings += ["attacked moved to", "others moved to"]
    lines = ["# Pods that run wild", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [
        f"`python -m bench.hostile`: {PODS} pods, SVIDs of {TTL}; what is done to one of them is in bench/attacks.py.",
        f"Latencies are of the {PODS - MANY} pods that are never attacked: quiet / floor / attack, in turn; the floor",
        "burns the attackers' CPU time and attacks nobody (for forks: it makes as many processes, which do nothing).",
        "Failed are calls under the attack. Of fewer than 100 values there is no 99th percentile, of fewer than 20 no",
        "95th; what the slowest took is max. Memory is the whole group's, the kernel's own too, of",
        f"the chart's limit of {MEMORY / MB:.0f} MB.",
        "",
    ]
    lines += [*markdown.table(headings, map(line, found)), ""]
    storms = [each for each in found if each.kind in STORMS]
    if storms:
        lines += ["## What one namespace wants of kubelet", ""]
        lines += [
            "There a process has kubelet publish volumes of one namespace, each living a minute, and ask again as",
            "kubelet does: `rsa-4096, one pod` 100 of one pod; `rsa-4096 and keystores` of 100 pods; `volumes` 2,500",
            "of 100 pods, 500 calls at a time. Under those the agent is killed (-9) and started again, as in quiet",
            "and floor, while kubelet goes on asking. From the new process's start until each of the 30 pods has an",
            "SVID again (the first time that it is asked, one pod after the other), and until a new pod's publish",
            "has succeeded; and from an instant of renewal until it is in its files, that start in between.",
            "",
        ]
        again = ("served again p50, ms", "most", "publish again, ms", "due to written p50, ms", "most")
        lines += [*markdown.table(("attack", "volumes made", "put off", *again), map(line_of_storm, storms)), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each once, for a second; records nothing")
    parser.add_argument("--kinds", default=";".join([*KINDS, *STORMS]), help="some of them, with semicolons between")
    arguments = parser.parse_args()
    about = environment()
    kinds = [(kind, 1) for kind in arguments.kinds.split(";")]
    kinds += [(kind, MANY) for kind in ("connections", "calls") if (kind, 1) in kinds]
    found = asyncio.run(run(kinds, 1 if arguments.quick else 2, 1.0 if arguments.quick else 7.0))
    text = report(found, about)
    print(text)
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "hostile.md").write_text(text, encoding="utf-8")
        record_values([row for seen in found for row in rows(seen).values()], about, "-hostile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
