"""Pods that run wild against their own sockets: what do the others notice?

    python -m bench.hostile

A real agent with 20 pods; the first of them is attacked (the first ten in the last two rows) by two processes. Each
kind of attack takes turns, in the same run, with quiet and with a floor: processes that attack nobody and burn the CPU
time that the attackers burnt, since here no cgroup keeps a pod from the cores that all share; for the fork bomb, as
many processes that do nothing. Meanwhile other pods connect and fetch their first SVID, new volumes are published, and
SVIDs come due. Records bench/results/hostile.md.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import grpc.aio

from bench.attacks import ATTACKERS, KINDS
from bench.report import RESULTS, Row, environment, record_values
from podsvid.quickstart.kubelet import StandInKubelet
from tests.support import VOLUME, Host, first, node, pod

PODS, MANY = 20, 10
TTL = "10s"
MB = 1e6
LOADS = ("quiet", "floor", "attack")
WHAT = {
    "fetch": "another pod connects and has its first SVID",
    "publish": "NodePublishVolume of a new pod",
    "late": "an SVID is in its files after it was due",
}
# A run that takes longer hangs.
LIMIT = 1800.0


@dataclass
class Seen:
    """What one kind of attack did: milliseconds by what and load, bytes and counts of the agent, the attackers' own."""

    kind: str
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    resident: list[float] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0
    descriptors: int = 0
    done: int = 0
    seconds: float = 0.0
    busy: list[float] = field(default_factory=list)

    def add(self, what: str, load: str, milliseconds: float) -> None:
        self.values.setdefault((what, load), []).append(milliseconds)


class Attackers:
    """Two processes of one kind, and the CPU time that they took."""

    def __init__(self, kind: str, seconds: float, sockets: Iterable[Path], *options: str) -> None:
        command = [sys.executable, "-m", "bench.attacks", "--seconds", str(seconds), *options, kind]
        command += map(str, sockets)
        self._processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(ATTACKERS)]
        for each in self._processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "attacking\n", f"{kind} did not begin"

    async def ended(self) -> tuple[int, float]:
        """What they did, and seconds of CPU each took on average."""
        done, busy = 0, 0.0
        for each in self._processes:
            assert each.stdout is not None
            output = await asyncio.to_thread(each.stdout.read)
            _, status, usage = await asyncio.to_thread(os.wait4, each.pid, 0)
            each.returncode = os.waitstatus_to_exitcode(status)
            assert each.returncode == 0, "an attacker failed"
            done += int(output or 0)
            busy += usage.ru_utime + usage.ru_stime
        return done, busy / len(self._processes)


class Hostile:
    """The agent, its pods, and what is measured of them while some are attacked."""

    def __init__(self, here: Host, kubelet: StandInKubelet, rng: random.Random, seconds: float) -> None:
        self._here = here
        self._kubelet = kubelet
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

    async def attack(self, kind: str, rounds: int, sockets: int = 1) -> Seen:
        """Quiet, attack and floor in turn, `rounds` times."""
        seen = Seen(kind if sockets == 1 else f"{kind}, {sockets} pods")
        seen.before = self.status("VmRSS") * 1024
        attacked = self._sockets[:sockets]
        for _ in range(rounds):
            await self._measured(seen, "quiet", None)
            attackers = Attackers(kind, self._seconds, attacked)
            await self._measured(seen, "attack", attackers)
            await self._measured(seen, "floor", self._floor(kind, seen))
            await self._recovered(attacked)
        seen.after = self.status("VmRSS") * 1024
        return seen

    def _floor(self, kind: str, seen: Seen) -> Attackers:
        """The CPU time of the last attack, or as many processes as it made, aimed at nobody."""
        if kind == "forks":
            rate = max(seen.done / seen.seconds / ATTACKERS, 1)
            return Attackers("idle-forks", self._seconds, (), "--rate", f"{rate:.1f}")
        return Attackers("burn", self._seconds, (), "--share", f"{seen.busy[-1] / self._seconds:.3f}")

    async def _measured(self, seen: Seen, load: str, attackers: Attackers | None) -> None:
        until = time.monotonic() + self._seconds
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._fetch(seen, load, until),
                self._publish(seen, load, until),
                self._late(seen, load, until),
            )
        ]
        watching = asyncio.create_task(self._watch(seen)) if load == "attack" else None
        await asyncio.gather(*tasks)
        if watching is not None:
            watching.cancel()
        if attackers is not None:
            done, busy = await attackers.ended()
            if load == "attack":
                seen.done += done
                seen.seconds += self._seconds
                seen.busy.append(busy)

    async def _fetch(self, seen: Seen, load: str, until: float) -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            await first(self._rng.choice(self._sockets[MANY:]))
            seen.add("fetch", load, (time.perf_counter() - started) * 1e3)
            await asyncio.sleep(0.01)

    async def _publish(self, seen: Seen, load: str, until: float) -> None:
        while time.monotonic() < until:
            each = pod(f"new{self._published}", "new")
            self._published += 1
            started = time.perf_counter()
            await self._kubelet.publish(each, VOLUME)
            seen.add("publish", load, (time.perf_counter() - started) * 1e3)
            await self._kubelet.unpublish(each, VOLUME)
            await asyncio.sleep(0.1)

    async def _late(self, seen: Seen, load: str, until: float) -> None:
        """From the instant that the journal says until the rename that the kernel's clock says."""
        planned: dict[Path, tuple[str, float]] = {}
        while time.monotonic() < until:
            due = self._due()
            for target in self._targets[MANY:]:
                now = os.readlink(target / "..data")
                known = planned.get(target)
                if known is not None and known[0] != now:
                    seen.add("late", load, (os.lstat(target / "..data").st_mtime - known[1]) * 1e3)
                planned[target] = (now, due[str(target)])
            await asyncio.sleep(0.05)

    def _due(self) -> dict[str, float]:
        found = {}
        for path in (self._here.base / "r" / "journal").glob("*.json"):
            with suppress(FileNotFoundError):  # a pod that goes
                entry = json.loads(path.read_text(encoding="utf-8"))
                found[entry["target"]] = datetime.fromisoformat(entry["renew_at"]).timestamp()
        return found

    async def _watch(self, seen: Seen) -> None:
        assert self._here.process is not None
        while True:
            seen.resident.append(self.status("VmRSS") * 1024)
            with suppress(FileNotFoundError, ProcessLookupError):
                open_now = sum(len(os.listdir(f"/proc/{each}/fd")) for each in self._here.processes())
                seen.descriptors = max(seen.descriptors, open_now)
            await asyncio.sleep(0.1)

    async def _recovered(self, sockets: Iterable[Path]) -> None:
        """The attacked sockets answer again: what is measured next is not what was left of this."""
        async with asyncio.timeout(60):
            for socket in sockets:
                while True:
                    try:
                        await first(socket)
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.1)

    def status(self, name: str) -> int:
        """A line of /proc/PID/status, of the agent and the process that serves sockets together."""
        found = 0
        for process in self._here.processes():
            with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
                lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
                found += next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
        return found


async def run(kinds: Sequence[tuple[str, int]], rounds: int, seconds: float) -> list[Seen]:
    """One after the other, in one agent. Raises TimeoutError."""
    found = []
    async with asyncio.timeout(LIMIT), node(ttl=TTL) as (here, kubelet):
        hostile = Hostile(here, kubelet, random.Random(1), seconds)
        await hostile.begin()
        for kind, sockets in kinds:
            found.append(await hostile.attack(kind, rounds, sockets))
            print(line(found[-1]), file=sys.stderr, flush=True)
    return found


def rows(seen: Seen) -> dict[tuple[str, str], Row]:
    """Its latencies by what and load."""
    return {
        (what, load): Row(f"{seen.kind}: {WHAT[what]}, {load}", "ms", tuple(values))
        for (what, load), values in seen.values.items()
    }


def line(seen: Seen) -> str:
    """A line of the table: quiet / floor / attack in each cell of latencies."""
    by = rows(seen)

    def cell(what: str, statistic: str) -> str:
        found = [by[what, load].statistic(statistic) if (what, load) in by else None for load in LOADS]
        return " / ".join("-" if value is None else f"{value:.3g}" for value in found)

    cells = [seen.kind, f"{seen.done / seen.seconds:.0f}", f"{sum(seen.busy) / seen.seconds * ATTACKERS:.2f}"]
    cells += [cell("fetch", "p50"), cell("fetch", "p99"), cell("publish", "p50"), cell("late", "p50")]
    resident = (seen.before, max(seen.resident), seen.after)
    cells += [" / ".join(f"{value / MB:.0f}" for value in resident), str(seen.descriptors)]
    return "| " + " | ".join(cells) + " |"


def report(found: Sequence[Seen], about: Mapping[str, str]) -> str:
    """What is recorded."""
    headings: tuple[str, ...] = (
        "attack",
        "done, 1/s",
        "cores used by it",
        "fetch p50, ms",
        "fetch p99, ms",
        "publish p50, ms",
    )
    headings += ("due to written p50, ms", "agent's RSS before / peak / after, MB", "descriptors, peak")
    lines = ["# Pods that run wild", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [
        f"`python -m bench.hostile`: {PODS} pods, SVIDs of {TTL}; what is done to one of them is in bench/attacks.py.",
        "Latencies are of other pods: quiet / floor / attack, in turn; the floor burns the attackers' CPU time and",
        "attacks nobody (for forks: it makes as many processes, which do nothing).",
        "",
    ]
    lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *map(line, found), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each once, for a second; records nothing")
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of them, with commas between")
    arguments = parser.parse_args()
    about = environment()
    kinds = [(kind, 1) for kind in arguments.kinds.split(",")]
    kinds += [(kind, MANY) for kind in ("connections", "calls") if (kind, 1) in kinds]
    found = asyncio.run(run(kinds, 1 if arguments.quick else 3, 1.0 if arguments.quick else 4.0))
    text = report(found, about)
    print(text)
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "hostile.md").write_text(text, encoding="utf-8")
        record_values([row for seen in found for row in rows(seen).values()], about, "-hostile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
