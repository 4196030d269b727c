"""The client that both sides are asked with: what it is to do, on which cores it runs, what it said."""

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.machine import CLIENTS, on
from tests.support import HEADER

WORKLOAD_API = "/SpiffeWorkloadAPI"
FETCH = f"{WORKLOAD_API}/FetchX509SVID"
# No call of this bench takes longer.
PATIENCE = 120.0


class AskingFailed(Exception):
    """The client could not do what it was told. Its text is what it complained of."""


@dataclass(frozen=True)
class Lane:
    """A connection, as whom it is opened, and what is asked on it. `tls`: files Roots, Cert and Key, and Name."""

    address: str
    requests: Sequence[bytes] = (b"",)
    group: int = 0
    metadata: Mapping[str, str] = field(default_factory=lambda: dict(HEADER))
    tls: Mapping[str, str] | None = None

    def plan(self) -> dict[str, object]:
        return {
            "Address": self.address,
            "Gid": self.group,
            "TLS": self.tls,
            "Metadata": dict(self.metadata),
            "Requests": [base64.b64encode(each).decode() for each in self.requests],
        }


@dataclass(frozen=True)
class Answered:
    """Seconds of all of it, milliseconds of each request, and the answers where they were to be kept."""

    seconds: float
    milliseconds: tuple[float, ...]
    answers: tuple[bytes, ...] = ()

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.milliseconds) / self.seconds


@dataclass(frozen=True)
class Told:
    """When the first and the last of all streams were told, in a burst in which each was: seconds since 1970."""

    first: float
    last: float


class Client:
    """The program, and a folder for its plans."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._numbers = itertools.count()

    async def call(
        self,
        method: str,
        lanes: Sequence[Lane],
        parallel: int = 1,
        *,
        connect: bool = False,
        keep: bool = False,
        settle: float = 0.0,
        cores: Sequence[int] = (CLIENTS,),
    ) -> Answered:
        """Ask all requests of all lanes, so many at once; see the client's `plan`. Raises AskingFailed."""
        process = await self._start(
            "call",
            {"Method": method, "Parallel": parallel, "Connect": connect, "Keep": keep, "Settle": settle},
            lanes,
            cores,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                out, complaints = await process.communicate()
        except TimeoutError:
            raise AskingFailed(f"{method}: not answered within {PATIENCE:g} s") from None
        finally:
            await _end(process)
        if process.returncode != 0:
            raise AskingFailed(f"{method}: {complaints.decode(errors='replace').strip()}")
        said = json.loads(out)
        answers = tuple(base64.b64decode(each) for each in said["answers"])
        return Answered(said["seconds"], tuple(said["ms"]), answers)

    @asynccontextmanager
    async def streams(self, lanes: Sequence[Lane]) -> "AsyncIterator[Streams]":
        """A stream of X.509-SVIDs for each lane, all told once, until left. Raises AskingFailed."""
        process = await self._start("streams", {"Method": FETCH}, lanes, (CLIENTS,))
        try:
            found = Streams(process)
            try:
                async with asyncio.timeout(PATIENCE):
                    await found.line()
            except TimeoutError:
                raise AskingFailed(f"{len(lanes)} streams: not all opened within {PATIENCE:g} s") from None
            yield found
        finally:
            await _end(process)

    async def _start(
        self, verb: str, plan: Mapping[str, object], lanes: Sequence[Lane], cores: Sequence[int]
    ) -> asyncio.subprocess.Process:
        file = self._folder / f"plan-{next(self._numbers)}.json"
        file.write_text(json.dumps({**plan, "Lanes": [each.plan() for each in lanes]}), encoding="ascii")
        pipe = asyncio.subprocess.PIPE
        command = on(*cores)(str(self._program), verb, str(file))
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, limit=MOST_SAID)


# An answer of the client is one line, with all answers in it.
MOST_SAID = 256 * 2**20


class Streams:
    """Open ones."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, float]:
        """What the client says next. Raises AskingFailed."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        text = await self._process.stdout.readline()
        if not text:
            raise AskingFailed(f"streams: {(await self._process.stderr.read()).decode(errors='replace').strip()}")
        found: dict[str, float] = json.loads(text)
        return found

    async def told(self) -> Told:
        """The next burst in which all were told. Raises AskingFailed."""
        said = await self.line()
        return Told(said["first"], said["last"])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
