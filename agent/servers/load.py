"""What an exposed process takes of the node, as the kernel says, and when that is too much."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.servers.quarantine import Why

# Seconds of a look at the processor's time at least; the share of a core that is too much, for so many seconds.
LOOK: Final = 1.0
SHARE: Final = 0.5
SECONDS: Final = 3.0
# Too much as well, where it is kept waiting: its own work and that wait together are all of a core.
KEPT_WAITING: Final = 0.125
# Of its memory: too much; and so much more than that, the next time.
PART: Final = 0.6
MORE: Final = 1.1
# States of a thread that runs, waits for a processor, or waits for a disk; see proc_pid_stat(5).
_AWAKE = ("R", "D")
_TICKS = os.sysconf("SC_CLK_TCK")
_MEMORY = re.compile(r"^VmData:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of processor time since it began, and bytes of memory as its limit counts them; `waited`: seconds that
    those of its threads that it has now were ready and had no processor."""

    cpu: float
    memory: float
    waited: float = 0.0


def usage(pid: int) -> Usage:
    """Of a process. Raises OSError where there is none."""
    cpu = _cpu(pid)
    memory = _MEMORY.search(Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace"))
    # An ended one has no memory.
    return Usage(cpu, int(memory[1]) * 1024 if memory else 0, _waited(pid))


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of processor time since it began; whether it does something, or would if it had a processor or a disk."""

    cpu: float
    awake: bool


def effort(pid: int) -> Effort | None:
    """Of a process; None where nothing can be said."""
    try:
        return Effort(_cpu(pid), any(_is_awake(task) for task in _tasks(pid)))
    except OSError:
        return None


def _tasks(pid: int) -> Iterator[Path]:
    return Path(f"/proc/{pid}/task").iterdir()


def _waited(pid: int) -> float:
    """0 where the kernel does not tell (proc.rst, schedstat's second number)."""
    found = 0
    for task in _tasks(pid):
        with suppress(OSError):  # one that has ended
            found += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return found / 1e9


def _is_awake(task: Path) -> bool:
    with suppress(OSError):  # it has ended
        return _stat(task)[0] in _AWAKE
    return False


def _cpu(pid: int) -> float:
    # User and system time are fields 14 and 15, and the state is the third.
    stat = _stat(Path(f"/proc/{pid}"))
    return (int(stat[11]) + int(stat[12])) / _TICKS


def _stat(process: Path) -> list[str]:
    """What /proc says, from the state on. Raises OSError."""
    # The command's name, in which anything could be, is in the last parentheses.
    return (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


class Watch:
    """Over one process's life. `memory`: bytes that it may have; `share`: of a core, what is too much; `kept_waiting`:
    what is where it gets no more of the core that it wants."""

    def __init__(self, memory: int, share: float = SHARE, kept_waiting: float = KEPT_WAITING) -> None:
        self._memory = memory
        self._share = share
        self._kept_waiting = kept_waiting
        self._mark: tuple[float, Usage] | None = None
        self._hot = 0.0
        self._level = 0.0
        self._latest = 0.0
        # Whether it is worth looking again soon; whether its memory was too much at the last look.
        self.suspicious = self.full = False

    def look(self, usage: Usage, now: float) -> Why | None:
        """What is wrong now. `now`: seconds that only rise."""
        much = PART * self._memory
        self._latest = usage.memory
        hot = self._heat(usage, now)
        # What was done something about, and is not given back, is as it is.
        self.full = usage.memory >= max(much, self._level + 1)
        self.suspicious = hot or self.full
        if usage.memory < 0.8 * much:
            self._level = 0.0
        if usage.memory >= max(much, MORE * self._level):
            return Why.MEMORY
        return Why.CPU if self._hot >= SECONDS else None

    def acted(self) -> None:
        """Something was done about it: it has some time to be felt, and what was taken comes back slowly or never."""
        self._hot = 0.0
        self._level = self._latest if self._latest >= PART * self._memory else 0.0

    def _heat(self, usage: Usage, now: float) -> bool:
        """Whether it took too much of a core at the last look that was long enough."""
        if self._mark is None:
            self._mark = (now, usage)
            return False
        seconds = now - self._mark[0]
        if seconds >= LOOK:
            took = (usage.cpu - self._mark[1].cpu) / seconds
            wanted = took + (usage.waited - self._mark[1].waited) / seconds
            hot = took >= self._share or (took >= self._kept_waiting and wanted >= 1.0)
            self._hot = self._hot + seconds if hot else 0.0
            self._mark = (now, usage)
        return self._hot > 0
