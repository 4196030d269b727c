"""`podsvid api` as a process, against a Workload API on a real socket."""

import asyncio
import contextlib
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.fake_workload_api import FakeWorkloadApi, Refusal, authority
from tests.shapes import described
from tests.support import ROOT

OTHERS = authority("other.example")
# Where a process is waited for; far more than it takes.
DEADLINE = 60.0


@dataclass(frozen=True)
class Ended:
    code: int | None
    out: str
    err: str
    command: str

    @property
    def document(self) -> Any:
        return described(self.command, self.out)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("SPIFFE_ENDPOINT_SOCKET", "PODSVID_DIR")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


async def start(*arguments: str, **more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "podsvid", "api", *arguments),
        env=environment(**more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def podsvid(*arguments: str, stdin: str = "", **more: str) -> Ended:
    """Run `podsvid api …` to its end; `more` are environment variables."""
    process = await start(*arguments, **more)
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate(stdin.encode())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert "Traceback" not in err.decode()
    assert "PRIVATE" not in out.decode() + err.decode()
    named = arguments[: 1 if arguments[:1] == ("watch",) else 2]
    return Ended(process.returncode, out.decode(), err.decode(), " ".join(("api", *named)))


class Watching:
    """A running `podsvid api watch`, with what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.err)),
        ]

    @property
    def serials(self) -> list[str]:
        return [described("api watch", line)["svids"][0]["serial"] for line in self.out]

    def said(self, text: str) -> bool:
        return any(text in line for line in self.err)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._readers)
            code = await self.process.wait()
        assert not self.said("Traceback"), self.err
        return code

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode().rstrip("\n"))


@contextlib.asynccontextmanager
async def watching(*arguments: str, **more: str) -> AsyncIterator[Watching]:
    process = await start("watch", *arguments, **more)
    found = Watching(process)
    try:
        yield found
    except BaseException:
        print("\n".join(found.err[-20:]), file=sys.stderr)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def with_server(
    base: Path, test: Callable[[FakeWorkloadApi], Awaitable[None]], *, missing: tuple[str, ...] = ()
) -> None:
    """Run `test` beside a server that has an SVID and the own bundle."""

    async def run() -> None:
        async with FakeWorkloadApi(base / "socket", missing=missing) as server:
            server.rotate()
            server.publish_bundles()
            await test(server)

    asyncio.run(run())


def refuse(code: grpc.StatusCode, details: str = "as the test wants") -> Callable[[], None]:
    def before() -> None:
        raise Refusal(code, details)

    return before


def modes(directory: Path) -> dict[str, int]:
    """What a reader finds by name, links followed."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir() if path.name[:2] != ".."}


CHECK = """#!/bin/sh
# One run: read the chain, say so, wait where the test wants it, then read the rest: all of it has to fit, however slow
# the machine is and whatever has ended meanwhile.
cd "$PODSVID_DIR" || exit 9
echo "$PODSVID_DIR"
serial=$(openssl x509 -in svid.0.pem -noout -serial) || exit 9
echo "begin $serial" >> "$1"
if [ -n "$2" ]; then read -r _ < "$2"; fi
chain=$(openssl x509 -in svid.0.pem -noout -pubkey) && key=$(openssl pkey -in svid.0.key -pubout) || exit 9
if [ "$serial" = "$(openssl x509 -in svid.0.pem -noout -serial)" ] && [ "$chain" = "$key" ] &&
    openssl verify -x509_strict -no_check_time -CAfile bundle.0.pem -untrusted svid.0.pem svid.0.pem > /dev/null 2>&1
then echo "ok $serial" >> "$1"
else echo "TORN $serial" >> "$1"
fi
"""


class Runs:
    """The command that --exec is to run, and what it has noted."""

    def __init__(self, base: Path) -> None:
        self._log = base / "log"
        self._log.touch()
        self._script = base / "check"
        self._script.write_text(CHECK)
        self._script.chmod(0o755)

    def command(self, fifo: Path | None = None) -> tuple[str, ...]:
        return (str(self._script), str(self._log), str(fifo or ""))

    def serials(self, what: str) -> list[str]:
        """Of the runs that noted `what`, in order."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        return [line[1].removeprefix("serial=").lower() for line in lines if line[0] == what]
