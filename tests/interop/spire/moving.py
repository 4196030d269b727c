"""Workloads that shake hands without a pause while one after another is moved from one Workload API to another."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.rig import LOOK_SECONDS, as_group
from tests.interop.spire.workload import Told
from tests.support import DEADLINE, ROOT

# Bytes of a line: of many failures it is long, and has to be read all the same.
_LINE = 2**24
# SPIRE's agent tells them apart by their group.
GROUPS = 31_000


class Failed(Exception):
    """A workload has ended. The text is what it complained of."""


@dataclass
class Running:
    """One process of a workload."""

    process: asyncio.subprocess.Process
    told: Told = field(default_factory=Told)
    following: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Read what it tells, from now on."""
        self.following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.told = Told(**json.loads(line))

    async def quiet(self) -> None:
        """Have it call nobody any more; it answers until `end`."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"stop\n")
        await self.until(lambda: self.told.stopped)

    async def end(self) -> None:
        """When it is quiet."""
        assert self.process.stdin is not None
        assert self.following is not None
        self.process.stdin.close()
        await asyncio.wait_for(self.process.wait(), DEADLINE)
        await self.following

    async def rounds(self, more: int) -> None:
        """Wait until it has made so many whole ones from now on. Raises Failed, TimeoutError."""
        # The one that it is in began before.
        wanted = self.told.rounds + more + 1
        await self.until(lambda: self.told.rounds >= wanted)

    async def until(self, true: Callable[[], object]) -> None:
        """Look at what it tells until that holds. Raises Failed, TimeoutError."""
        async with asyncio.timeout(DEADLINE):
            while not true():
                if self.process.returncode is not None:
                    assert self.process.stderr is not None
                    raise Failed((await self.process.stderr.read()).decode()[-2000:])
                await asyncio.sleep(LOOK_SECONDS)


@dataclass
class Fleet:
    """All of them, by number. `made` and `failed` are of those that have ended, too."""

    folder: Path
    running: dict[int, Running] = field(default_factory=dict)
    past: list[Told] = field(default_factory=list)
    _started: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def own(self) -> Path:
        """A folder for each, with what it has been told."""
        return self.folder / "own"

    @property
    def made(self) -> int:
        """Handshakes, each counted by who called."""
        return sum(each.made for each in self._all())

    @property
    def failed(self) -> list[str]:
        """What was said of each that failed, by either side."""
        return [text for each in self._all() for text in each.failed]

    @property
    def authorities(self) -> list[str]:
        """Who signed for each of those that run now, last."""
        return [each.told.authorities[-1] for _, each in sorted(self.running.items())]

    async def move(self, number: int, socket: Path | str) -> None:
        """As a rolling update does: one more at `socket`; when all have called that, the other ends."""
        new = await self._start(number, socket)
        old = self.running.get(number)
        await new.rounds(1)
        self.running[number] = new
        await self.shake()
        if old is not None:
            await old.quiet()
            await old.end()
            self.past.append(old.told)

    async def shake(self) -> None:
        """Wait until each has called all others anew."""
        await asyncio.gather(*(each.rounds(1) for each in self.running.values()))

    async def end(self) -> None:
        """All of them; nobody calls one that has ended."""
        running = list(self.running.values())
        for each in running:
            await each.quiet()
        for each in running:
            await each.end()

    async def until(self, true: Callable[[], object]) -> None:
        """Look until that holds. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE):
            while not true():
                await asyncio.sleep(LOOK_SECONDS)

    async def kill(self) -> None:
        """Whatever runs still."""
        for each in self._started:
            with suppress(ProcessLookupError):
                each.kill()
            await each.wait()

    def _all(self) -> list[Told]:
        return [*self.past, *(each.told for each in self.running.values())]

    async def _start(self, number: int, socket: Path | str) -> Running:
        names, own = self.folder / "names", self.own / f"{number}-{len(self._started)}"
        names.mkdir(exist_ok=True)
        own.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.interop.spire.workload", f"account-{number}"]
        process = await asyncio.create_subprocess_exec(
            *as_group(GROUPS + number, *command, str(socket), str(names), str(own)),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=_LINE,
        )
        found = Running(process)
        found.begin()
        self._started.append(process)
        return found


@asynccontextmanager
async def fleet(folder: Path, number: int, socket: Callable[[int], Path | str]) -> AsyncIterator[Fleet]:
    """So many, each at its socket, that shake hands until left; all that they tell is complete then."""
    found = Fleet(folder)
    try:
        for each in range(number):
            await found.move(each, socket(each))
        yield found
        await found.end()
    finally:
        await found.kill()
