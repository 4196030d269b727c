"""What volumes cost a node's agent, and how one starts under those that a dead one left.

    python -m bench.volumes

As root, on a machine with a memory cgroup of either version that can be written; some minutes. Each agent is in a group
of its own with the chart's limit, and kubelet is the stand-in. Records bench/results/volumes.md.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.budget import LIMIT
from bench.limited import Limited, limited
from bench.report import RESULTS, environment
from csi.room import INODE, KIB, MIB, MOUNT
from podsvid.quickstart.errors import DriverNotRegistered, PublishFailed, UnpublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.support import ROOT, VOLUME, Host, host, pod

AUDIENCES = ",".join(f"f{number}={'a' * 200}-{number}" for number in range(8))
KINDS: Mapping[str, Mapping[str, str]] = {
    "socket only": {"layout": "socket"},
    "usual files": {},
    "ML-DSA-87": {"keyAlgorithm": "ml-dsa-87"},
    "RSA-4096 and keystores": {"keyAlgorithm": "rsa-4096", "keystores": "pkcs12"},
    "eight JWT-SVIDs": {"jwt-audiences": AUDIENCES},
    "all of it": {"keyAlgorithm": "rsa-4096", "keystores": "pkcs12", "jwt-audiences": AUDIENCES},
}
# Keystores and tokens, though keys that are made quickly: what a pod that wants to fill the node would ask for.
LARGE = PodVolume(name="spiffe", attributes={"keystores": "pkcs12", "jwt-audiences": AUDIENCES})
UNBOUND = ("--volumes", "9999", "--pod-volumes", "9999", "--volumes-memory", "99999")
# Seconds that an agent may take to start under anything.
PATIENCE = 120.0


@asynccontextmanager
async def a_node(
    *flags: str, limit: int = LIMIT, ttl: str = "1h"
) -> AsyncIterator[tuple[Host, StandInKubelet, Limited]]:
    """A node whose agent has so much memory."""
    with limited(limit) as group, host() as here:
        here.start(*flags, ttl=ttl, within=group.command)
        async with StandInKubelet(here.kubelet_root, registry_interval=0.01) as kubelet:
            await kubelet.wait_registered()
            yield here, kubelet, group


@dataclass(frozen=True)
class Weight:
    """A volume of a kind: bytes of its files and how many inodes, after each of the first renewals."""

    kind: str
    pages: tuple[int, ...]
    inodes: tuple[int, ...]

    @property
    def whole(self) -> int:
        return MOUNT + self.pages[-1] + self.inodes[-1] * INODE

    def line(self) -> str:
        pages = " / ".join(f"{each / KIB:.0f}" for each in self.pages)
        return f"| {self.kind} | {pages} | {self.inodes[-1]} | {self.whole / KIB:.0f} |"


async def weights() -> list[Weight]:
    """Of each kind, with one, two and three generations of its files."""
    found = []
    async with a_node() as (here, kubelet, _):
        for kind, attributes in KINDS.items():
            wanted = pod(kind.lower().replace(" ", "-"))
            target = await kubelet.publish(wanted, PodVolume(name="spiffe", attributes=attributes))
            pages, inodes = [_pages(target)], [_inodes(target)]
            for _ in range(2):
                await asyncio.to_thread(_rotate, here, wanted)
                pages.append(_pages(target))
                inodes.append(_inodes(target))
            found.append(Weight(kind, tuple(pages), tuple(inodes)))
    return found


def _pages(target: Path) -> int:
    found = os.statvfs(target)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _inodes(target: Path) -> int:
    found = os.statvfs(target)
    return found.f_files - found.f_ffree


def _rotate(here: Host, wanted: Pod) -> None:
    command = [sys.executable, "-m", "podsvid", "node", "rotate", f"{wanted.namespace}/{wanted.name}"]
    environment = {**os.environ, "PODSVID_RUN_DIR": str(here.base / "r")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Filled:
    """How many volumes a node took before it refused, and the memory then."""

    how: str
    volumes: int
    refusal: str
    used: int
    peak: int
    killed: int

    def line(self) -> str:
        cells = (self.how, self.volumes, self.refusal, f"{self.used / MIB:.0f}", f"{self.peak / MIB:.0f}", self.killed)
        return "| " + " | ".join(map(str, cells)) + " |"


async def fill(how: str, volume: PodVolume, *, one_pod: bool, most: int, renewed: bool = False) -> Filled:
    """Publish until it is refused, with `renewed` until what is there has been renewed twice."""
    ttl = ("--x509-ttl", "1m") if renewed else ()
    async with a_node(*ttl) as (_, kubelet, group):
        greedy, refusal, count = pod("greedy"), "none", 0
        samples: list[int] = []
        watching = asyncio.create_task(_watch(group, samples))
        for number in range(most):
            wanted = greedy if one_pod else pod(f"p{number}", f"sa{number}")
            try:
                await kubelet.publish(wanted, PodVolume(name=f"v{number}", attributes=volume.attributes))
                count += 1
            except PublishFailed as failed:
                refusal = next(name for name in ("POD_FULL", "NODE_FULL", "?") if name in str(failed) or name == "?")
                break
        # Until each was renewed twice.
        await asyncio.sleep(65.0 if renewed else 0.1)
        watching.cancel()
        return Filled(how, count, refusal, _used(group), max(samples), group.killed())


@dataclass(frozen=True)
class Started:
    """An agent's start under what another left: bytes when that was killed, what stayed, and the most of the start."""

    how: str
    volumes: int
    before: int
    left: int
    limit: int
    peak: int
    resting: int
    unpublished: float
    served: float | None
    killed: int

    def line(self) -> str:
        numbers = (self.limit, self.before, self.left, self.peak, self.resting)
        cells = [self.how, str(self.volumes), *(f"{each / MIB:.0f}" for each in numbers)]
        served = "-" if self.served is None else f"{self.served:.1f}"
        cells += [f"{self.unpublished:.1f}", served, str(self.killed)]
        return "| " + " | ".join(cells) + " |"


async def starts(how: str, volume: PodVolume, number: int, *, spare: int | None = None, wait: float = 0.0) -> Started:
    """Kill an agent with so many volumes and start another; with `spare`, with so much memory beside what is left."""
    flags = (*UNBOUND, *(("--x509-ttl", "1m") if wait else ()))
    async with a_node(*flags, limit=4 * LIMIT) as (here, kubelet, group):
        pods = [pod(f"p{each}", f"sa{each}") for each in range(number)]
        for each in pods:
            await kubelet.publish(each, volume)
        await asyncio.sleep(wait)
        before = _used(group)
        here.kill()
        left = _used(group)
        limit = LIMIT if spare is None else left + spare
        (group.folder / ("memory.limit_in_bytes" if group.version == 1 else "memory.max")).write_text(str(limit))
        began, logged = time.perf_counter(), here.log.stat().st_size
        here.start(*flags, within=group.command)
        samples: list[int] = []
        watching = asyncio.create_task(_watch(group, samples))
        async with asyncio.timeout(PATIENCE):
            unpublished = await _unpublished(kubelet, pods[number // 2], volume) - began
            served = await _all_picked_up(here, logged, number - 1)
        await asyncio.sleep(2.0)
        resting = _used(group)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        waiting = served is None
        return Started(
            f"{how}{', most wait for memory' if waiting else ''}",
            number,
            before,
            left,
            limit,
            max(samples),
            resting,
            unpublished,
            None if served is None else served - began,
            group.killed(),
        )


def _used(group: Limited) -> int:
    """Bytes that the kernel cannot drop by itself."""
    parts = dict(line.split() for line in (group.folder / "memory.stat").read_text().splitlines())
    prefix = "total_" if group.version == 1 else ""
    return group.used() - sum(int(parts[f"{prefix}{name}"]) for name in ("inactive_file", "active_file"))


async def _watch(group: Limited, samples: list[int]) -> None:
    while True:
        samples.append(_used(group))
        await asyncio.sleep(0.01)


async def _unpublished(kubelet: StandInKubelet, wanted: Pod, volume: PodVolume) -> float:
    """When kubelet could take that pod's volume away; it tries again and again."""
    while True:
        try:
            await kubelet.unpublish(wanted, volume)
        except (DriverNotRegistered, UnpublishFailed):
            await asyncio.sleep(0.01)
        else:
            return time.perf_counter()


async def _all_picked_up(here: Host, logged: int, number: int) -> float | None:
    """When so many were picked up, by the log beyond `logged` bytes; None when the agent says that they wait."""
    while True:
        text = here.log.read_bytes()[logged:]
        if b"wait for memory" in text:
            return None
        if text.count(b'"event": "volume picked up"') >= number:
            return time.perf_counter()
        await asyncio.sleep(0.02)


WEIGHTS = "| what it has | KiB of files, with 1 / 2 / 3 generations | inodes | weighs, KiB |"
FILLED = "| what comes | volumes | then | MiB used | at most | killed |"
STARTED = (
    "| left by | volumes | limit, MiB | used before | left by the dead | start at most | at rest | "
    "an unpublish, s | all picked up, s | killed |"
)


def report(
    about: Mapping[str, str], weighed: Sequence[Weight], filled: Sequence[Filled], started: Sequence[Started]
) -> str:
    """What is recorded."""
    lines = ["# Volumes of a node", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [
        "`python -m bench.volumes`. MiB are the whole cgroup's without what the kernel would drop (files of disks),"
    ]
    lines += [f"the process that serves sockets included; the chart's limit is {LIMIT // MIB} MiB."]
    lines += ["", "## What one weighs", ""]
    lines += [*_rows(WEIGHTS, [each.line() for each in weighed]), "", "## A node that is filled", ""]
    lines += [*_rows(FILLED, [each.line() for each in filled]), "", "## A start under what a dead agent left", ""]
    lines += ["The first agent has no bounds. Times are from the start of the second one's process.", ""]
    return "\n".join([*lines, *_rows(STARTED, [each.line() for each in started]), ""])


def _rows(heading: str, rows: Sequence[str]) -> list[str]:
    return [heading, "|" + "---|" * (heading.count("|") - 1), *rows]


async def run(scale: float) -> tuple[list[Weight], list[Filled], list[Started]]:
    """All measurements, one after the other."""

    def count(number: int) -> int:
        return max(10, int(number * scale))

    weighed = await weights()
    filled = [
        await fill("one pod's volumes", VOLUME, one_pod=True, most=count(2500)),
        await fill("pods with a volume each", VOLUME, one_pod=False, most=count(2500)),
        await fill("pods with a large one each, renewed twice", LARGE, one_pod=False, most=count(2500), renewed=True),
    ]
    started = [await starts("an agent with usual volumes", VOLUME, count(each)) for each in (110, 1000, 2500)]
    started.append(
        await starts("one with large ones, each renewed", LARGE, count(1500), spare=100 * MIB, wait=65.0 * scale)
    )
    return weighed, filled, started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.volumes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the volumes; records nothing")
    arguments = parser.parse_args()
    about = environment()
    text = report(about, *asyncio.run(run(0.05 if arguments.quick else 1.0)))
    print(text)
    if not arguments.quick:
        (RESULTS / "volumes.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
