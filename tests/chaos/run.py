"""A run: a world, a plan, one fault after another."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.plan import Fault
from tests.chaos.world import Embedded, Signer, Source, Violated, World
from tests.early_quarantine import plant
from tests.ports import free_port
from tests.support import ROOT, Host, host

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What came of a run. Recovery is from a fault's end until all was well, in seconds; `back`: by what was killed,
    from its end until a socket of another pod answered; `moves`: how often a pod was moved, and where."""

    kinds: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    reads: int = 0
    messages: int = 0
    republish_failures: int = 0
    back: dict[str, list[float]] = field(default_factory=dict)
    moves: Counter[str] = field(default_factory=Counter)


def source(kind: str, base: Path, rng: random.Random) -> Source:
    """`embedded`, `signer`, or `workers`: a signer that has two of them."""
    if kind == "embedded":
        return Embedded()
    return Signer(base, free_port(), rng, 600, *(("--workers", "2") if kind == "workers" else ()))


async def run(
    kind: str, faults: Sequence[Fault], pods: int, say: Say, *, patient: bool = False, every: int = 10
) -> Outcome:
    """All faults in one world. Raises Violated, which names the fault."""
    outcome = Outcome()
    started = time.monotonic()
    with host() as here:
        folder = here.base / "signer"
        folder.mkdir()
        plant(here.base / "planted", quiet=6.0, closed=2.0, most_closed=8.0)
        here.environment = {"PYTHONPATH": f"{here.base / 'planted'}{os.pathsep}{ROOT}"}
        world = World(here, source(kind, folder, random.Random(0)), random.Random(0), pods, patient=patient)
        fault: Fault | None = None
        try:
            await world.start()
            for fault in faults:
                world.rng = random.Random(fault.seed)
                await FAULTS[fault.kind](world)
                await world.settle(str(fault))
                took = world.recoveries[-1][1]
                outcome.kinds.setdefault(fault.kind, []).append(took)
                if fault.number % every == every - 1:
                    say(f"{kind}: {fault.number + 1} of {len(faults)} faults, {time.monotonic() - started:.0f} s")
            await world.empty()
        except Exception as error:
            _keep_logs(here, say)
            raise Violated(f"{kind}, fault {fault}, seed {fault.seed if fault else None}: {error!r}") from error
        finally:
            await world.stop()
            outcome.seconds = time.monotonic() - started
            outcome.messages = world.streams.messages
            outcome.republish_failures = world.republish_failures
            outcome.back, outcome.moves = world.back, world.moves
            count = here.base / "findings.count"
            outcome.reads = int(count.read_text() or 0) if count.exists() else 0
    return outcome


def _keep_logs(here: Host, say: Say) -> None:
    say("\n".join(here.log.read_text(encoding="utf-8").splitlines()[-30:]))


def play(kind: str, faults: Sequence[Fault], pods: int, say: Say, *, patient: bool = False, every: int = 10) -> Outcome:
    """As `run`, in an event loop of its own."""
    return asyncio.run(run(kind, faults, pods, say, patient=patient, every=every))
