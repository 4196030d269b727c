"""Where processes run, and what they take: cores, CPU time, memory."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Servers on the one core, whoever asks on the other.
SERVERS, CLIENTS = 0, 1
MIB = 2**20


def on(*cores: int) -> Callable[..., list[str]]:
    """What makes a command one that runs on those cores, all it starts too."""
    return lambda *command: ["taskset", "-c", ",".join(map(str, cores)), *command]


def move(processes: Iterable[int], *cores: int) -> None:
    """Have all their threads run on those cores from now on."""
    for task in _tasks(processes):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def family(process: int) -> list[int]:
    """A process and all that it started, and these."""
    found = [process]
    for each in found:
        for task in _tasks([each]):
            with suppress(OSError):
                found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def cpu(processes: Sequence[int]) -> float:
    """Seconds of CPU time of their threads so far: by nanoseconds, as ticks are too coarse for a rotation."""
    total = 0
    for task in _tasks(processes):
        with suppress(OSError):
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


@dataclass(frozen=True)
class Memory:
    """MiB: what processes have together, with what they share counted once, and the part that is in no file."""

    resident: float
    anonymous: float


def memory(processes: Sequence[int]) -> Memory:
    """Of all of them now. Raises OSError."""
    kib = {"Pss": 0, "Anonymous": 0}
    for each in processes:
        for line in Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in kib:
                kib[name] += int(value.split()[0])
    return Memory(kib["Pss"] / 1024, kib["Anonymous"] / 1024)


def _tasks(processes: Iterable[int]) -> list[Path]:
    found: list[Path] = []
    for each in processes:
        with suppress(OSError):
            found += Path(f"/proc/{each}/task").iterdir()
    return found
