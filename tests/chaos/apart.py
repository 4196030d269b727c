"""Faults while a pod that costs too much is moved to a process apart, closed there, and comes back.

The agent is one that moves pods early (tests.early_quarantine): else it would take minutes, and half a core.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta

import grpc.aio

from tests.chaos.world import BOUND, World
from tests.support import DRIVER, ROOT, first

MOVED = "a pod's sockets are moved"
# Seconds that a flood has for each step: on a machine that is busy it may not stand out.
STEP = 20.0
ATTACKERS = 2


async def kill_apart(world: World) -> None:
    """Each process in turn, while a pod is moved, closed for what it does, and comes back."""
    (bad,) = world.pick(1)
    async with _nothing_minted_early(world):
        with _flooding(world, bad) as moves:
            for to in ("quarantine", "closed"):
                await moves.until(to)
                await _killed(world, bad)
        # It has stopped.
        for to in ("quarantine", "shared"):
            await moves.until(to)
            await _killed(world, bad)


async def kill_agent_apart(world: World) -> None:
    """The agent, while a pod is on its way or closed; the next one knows nothing of that, and the flood goes on."""
    (bad,) = world.pick(1)
    async with _nothing_minted_early(world):
        with _flooding(world, bad) as moves:
            await moves.until(world.rng.choice(["quarantine", "closed"]))
            await asyncio.sleep(world.rng.uniform(0.0, 0.5))
            world.kill_agent()
            began = time.monotonic()
            world.start_agent()
            await _back(world, bad, "agent", began)
            await world.kubelet.wait_registered(DRIVER, timeout=BOUND)


async def kill_waiting(world: World) -> None:
    """The process that comes next, alone or with the one that serves."""
    async with _nothing_minted_early(world):
        for _ in range(3):
            both = world.rng.random() < 0.5
            began = time.monotonic()
            shared, _, waiting = _processes(world)
            for each in (*waiting, *(shared if both else ())):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            await _back(world, "", "two processes" if both else "waiting process", began)
            await asyncio.sleep(world.rng.uniform(0.0, 2.0))


class _Moves:
    """Where a pod's sockets are moved, in the agent's log from now on."""

    def __init__(self, world: World, pod: str) -> None:
        self._world = world
        self._pod = pod
        self._log = world.host.log
        self._at = self._log.stat().st_size

    async def until(self, to: str) -> None:
        """It is moved there, or has been for so long that it will not be."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STEP):
                while to not in self._new():
                    await asyncio.sleep(0.05)
                self._world.moves[to] += 1

    def _new(self) -> list[str]:
        with self._log.open("rb") as file:
            file.seek(self._at)
            lines = file.read().split(b"\n")
        # The last is not whole yet.
        self._at += sum(len(line) + 1 for line in lines[:-1])
        events = [json.loads(line) for line in lines[:-1] if line.startswith(b"{") and MOVED.encode() in line]
        return [each["to"] for each in events if each["pod"].endswith(f"/{self._pod}")]


@contextmanager
def _flooding(world: World, name: str) -> Iterator[_Moves]:
    """While others call without end on the pod's socket."""
    moves = _Moves(world, name)
    command = [sys.executable, "-m", "bench.attacks", "--seconds", "120", "calls", str(world.link(name) / "socket")]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(ATTACKERS)]
    try:
        yield moves
    finally:
        for each in processes:
            each.kill()
            each.wait()


async def _killed(world: World, bad: str) -> None:
    """One of the processes, whichever there is; how long others' sockets are away for it."""
    kinds = ("process of all", "process apart", "waiting process")
    found = [(what, pid) for what, pids in zip(kinds, _processes(world), strict=True) for pid in pids]
    if not found:
        return
    # The one apart is seldom there.
    ((what, pid),) = world.rng.choices(found, [4 if what == "process apart" else 1 for what, _ in found])
    await asyncio.sleep(world.rng.uniform(0.0, 0.2))
    began = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    await _back(world, bad, what, began)


def _processes(world: World) -> tuple[list[int], list[int], list[int]]:
    """The process that serves all, the one for those apart, and the one that waits, as far as there are these."""
    agent, *others = world.host.processes()
    apart: list[int] = []
    rest: list[int] = []
    for each in others:
        with suppress(ProcessLookupError):
            (apart if _gives_way(agent, each) > 5 else rest).append(each)
    # In the order of their start: who waits is younger than who serves.
    return rest[:1], apart, rest[1:]


def _gives_way(agent: int, process: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, process) - os.getpriority(os.PRIO_PROCESS, agent)


async def _back(world: World, bad: str, what: str, began: float) -> None:
    """Wait until a pod's socket answers that has done nothing."""
    name = world.rng.choice([each for each in sorted(world.running) if each != bad])
    async with asyncio.timeout(BOUND):
        while True:
            with suppress(grpc.aio.AioRpcError, TimeoutError):
                await asyncio.wait_for(first(world.link(name) / "socket"), 5)
                break
            await asyncio.sleep(0.02)
    world.back.setdefault(what, []).append(time.monotonic() - began)


@asynccontextmanager
async def _nothing_minted_early(world: World) -> AsyncIterator[None]:
    """Inside, no volume gets another SVID before its renewal is due."""
    watching = asyncio.create_task(_watch(world))
    try:
        yield
    finally:
        if watching.done():
            watching.result()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(world: World) -> None:
    seen: dict[str, tuple[str, datetime]] = {}
    while True:
        now = world.now()
        for path in (world.run_dir / "journal").glob("*.json"):
            try:
                entry = json.loads(path.read_bytes())
                found = str(entry["serial"]), datetime.fromisoformat(entry["renew_at"])
            except FileNotFoundError:
                continue
            before = seen.get(path.name)
            seen[path.name] = found
            # The journal has whole seconds, and was read a moment later than it was written.
            if before and before[0] != found[0] and now < before[1] - timedelta(seconds=1):
                world.streams.wrong.append(f"{path.name} was renewed at {now}, due at {before[1]}")
        await asyncio.sleep(0.1)
