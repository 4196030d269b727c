"""Clients that others wrote, each with an open stream, side by side through every way in which it can end.

What each is told is what docs/configuration.md says, line by line; and none has to be started anew.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podsvid.quickstart.errors import StandInError
from tests.conformance.foreign import FOREIGN, GRPC_JS, JAVA, RUST, SEARCH_PATH, Foreign, lacking, place_of
from tests.conformance.programs import PROGRAMS
from tests.go_tools import path_of
from tests.interop.rig import LOOK_SECONDS, Cluster, ended, registered
from tests.interop.suites import load
from tests.ports import free_port
from tests.signer_process import process
from tests.support import DEADLINE, IS_ROOT, ROOT, host

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root"),
    # One fixture has all of it, and ends each wait by itself.
    pytest.mark.timeout(400),
]
# Short, since an outage is waited for until an SVID has ended.
TTL = "15s"
HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "configuration.md"
ENDS = (
    "the agent stops",
    "the volume goes",
    "serving process killed",
    "agent killed",
    "SVID ended, outage",
    "refused, SVID ended",
)
UNAVAILABLE, PERMISSION_DENIED = "UNAVAILABLE", "PERMISSION_DENIED"


@dataclass(frozen=True)
class Kind:
    """A client as the docs name it, how it is started at a socket, and why it cannot be on this machine, if so."""

    name: str
    command: Callable[[Path], list[str]]
    absent: str = ""


def _foreign(name: str, client: Foreign) -> Kind:
    place = place_of(client)
    return Kind(name, lambda socket: [*client.command(place), f"unix:{socket}"], lacking(client))


def _spire_agent() -> Path:
    (program,) = [each for each in load("spire").programs if each.name == "spire-agent"]
    return path_of(program)


def _go_client() -> Path:
    (program,) = [each for each in PROGRAMS if each.name == "go-client"]
    return path_of(program)


PY = [sys.executable, str(HERE / "py_spiffe_client.py"), "follow"]
SPIRE = Kind(
    "`spire-agent api watch`",
    lambda socket: [str(_spire_agent()), "api", "watch", "-socketPath", str(socket)],
    "" if _spire_agent().exists() else "not built: python -m tests.interop build spire",
)
KINDS = (
    Kind("go-spiffe", lambda socket: [str(_go_client()), "follow", f"unix://{socket}"]),
    Kind("py-spiffe", lambda socket: [*PY, f"unix://{socket}"]),
    _foreign("java-spiffe", JAVA),
    _foreign("Rust `spiffe`", RUST),
    _foreign("grpc-js", GRPC_JS),
    SPIRE,
)


def upper(code: str) -> str:
    """A gRPC code as the specification writes it: Go has them as NotFound."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()


def is_status(word: str) -> bool:
    """Not the serial of an SVID."""
    return not re.fullmatch(r"[0-9a-fA-F]{8,}", word)


@dataclass
class Client:
    """One that runs. What it said of its stream in order, each the serial of an SVID or a status; and its `answers`."""

    kind: Kind
    socket: Path
    log: Path
    running: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)
    answers: list[dict[str, str]] = field(default_factory=list)

    async def listen(self) -> None:
        """Until it ends."""
        assert self.running.stdout is not None
        async for line in self.running.stdout:
            if self.kind is SPIRE:
                self._text(line.decode())
                continue
            said = json.loads(line)
            if "fetched" in said:
                self.answers.append(said)
            else:
                self.said.append(said["serial"] if "serial" in said else upper(said["ended"]))

    def _text(self, line: str) -> None:
        if found := re.search(r"code = (\w+)", line):
            self.said.append(upper(found.group(1)))
        elif found := re.search(r"SVID Valid Until:\s+(.*)", line):
            # It prints no serial; a renewal has another end.
            self.said.append(re.sub(r"\D", "", found.group(1)))

    async def ask(self) -> dict[str, str]:
        """A new call: what it `fetched`, a serial or a status, and the serial that the library's source `held`."""
        if self.kind is SPIRE:
            command = [str(_spire_agent()), "api", "fetch", "x509", "-socketPath", str(self.socket)]
            status, _, complaints = await ended(*command)
            if status == 0:
                return {"fetched": "0" * 8}
            found = re.search(r"code = (\w+)", complaints)
            return {"fetched": upper(found.group(1)) if found else complaints}
        before = len(self.answers)
        assert self.running.stdin is not None
        self.running.stdin.write(b"\n")
        await self.until("an answer to a new call", lambda: len(self.answers) > before)
        answer = self.answers[-1]
        return {**answer, "fetched": upper(answer["fetched"]) if is_status(answer["fetched"]) else answer["fetched"]}

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait until it holds; fails with `what` did not come."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    assert self.running.returncode is None, (
                        f"{self.kind.name} has ended: {self.log.read_text()[-2000:]}"
                    )
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            said = f"it said {self.said[-10:]}, {self.answers[-3:]}; {self.log.read_text()[-2000:]}"
            pytest.fail(f"{self.kind.name}: no {what} in {DEADLINE} s: {said}")


@dataclass
class Play:
    """All clients at one node, and what they were told: by client and end."""

    clients: Sequence[Client]
    told: dict[tuple[str, str], str] = field(default_factory=dict)

    async def each(self, does: Callable[[Client], Coroutine[None, None, None]]) -> None:
        """Side by side."""
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(does(client))

    def marks(self) -> Mapping[str, int]:
        """How much each has said."""
        return {client.kind.name: len(client.said) for client in self.clients}

    async def through(
        self,
        end: str,
        away: Callable[[], Awaitable[object]],
        back: Callable[[], Awaitable[object]] | None = None,
        call: str = UNAVAILABLE,
    ) -> None:
        """Streams end by `away`, a `call` with that status until `back`; then all have an SVID again by themselves."""
        marks = self.marks()

        def since(client: Client) -> list[str]:
            return client.said[marks[client.kind.name] :]

        def statuses(client: Client) -> list[str]:
            return [word for word in since(client) if is_status(word)]

        def again(client: Client) -> bool:
            ends = [at for at, word in enumerate(since(client)) if is_status(word)]
            return any(not is_status(word) for word in since(client)[ends[0] :])

        async def left(client: Client) -> None:
            await client.until(f"end of its stream, {end}", lambda: statuses(client))
            self.told[client.kind.name, end] = statuses(client)[0]
            if back is not None:
                assert (await client.ask())["fetched"] == call, (end, client.kind.name)

        async def came(client: Client) -> None:
            await client.until(f"SVID after this: {end}", lambda: again(client))
            # The first was of the stream that was open; the others found no server, or the same one.
            assert {*statuses(client)[1:]} <= {UNAVAILABLE, call}, (end, client.kind.name, client.said)

        await away()
        await self.each(left)
        if back is not None:
            await back()
        await self.each(came)

    async def outage(
        self, end: str, away: Callable[[], Awaitable[object]], back: Callable[[], Awaitable[object]]
    ) -> None:
        """Nothing renews SVIDs until `back`: streams stay open, and new calls are refused once the SVID has ended."""
        before = self.marks()
        await away()

        async def ended(client: Client) -> None:
            async with asyncio.timeout(DEADLINE):
                while not is_status(status := (await client.ask())["fetched"]):
                    await asyncio.sleep(LOOK_SECONDS)
            self.told[client.kind.name, end] = status

        await self.each(ended)
        during = self.marks()
        await back()

        async def renewed(client: Client) -> None:
            await client.until("renewal after an outage", lambda: len(client.said) > during[client.kind.name])
            since = client.said[before[client.kind.name] :]
            assert not any(map(is_status, since)), (client.kind.name, since)

        await self.each(renewed)

    async def same(self) -> None:
        """The library's own source has what a new call gets."""

        async def held(client: Client) -> None:
            async with asyncio.timeout(DEADLINE):
                while (answer := await client.ask()).get("held", answer["fetched"]) != answer["fetched"]:
                    await asyncio.sleep(LOOK_SECONDS)
            assert not is_status(answer["fetched"]), (client.kind.name, answer)

        await self.each(held)


@asynccontextmanager
async def started(kind: Kind, socket: Path, folder: Path) -> AsyncIterator[Client]:
    """That client, killed at the end."""
    log = folder / f"{re.sub(r'[^a-z]+', '-', kind.name.lower())}.log"
    with log.open("wb") as sink:
        running = await asyncio.create_subprocess_exec(
            *kind.command(socket),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if kind is SPIRE else sink,
            env={**os.environ, "PATH": SEARCH_PATH},
        )
    client = Client(kind, socket, log, running)
    listening = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()
        listening.cancel()


async def play(kinds: Sequence[Kind]) -> Mapping[tuple[str, str], str]:
    """Everything, on one node whose agent mints through a signer; what was told."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pv", dir="/tmp")))
        signer, port = stack.enter_context(ExitStack()), free_port()

        def signs(pods: int) -> dict[str, Any]:
            flags = ("--x509-ttl", TTL, "--x509-min-ttl", TTL)
            return signer.enter_context(process(folder, pods, 1, port, *flags))[1]

        async def signs_for_all() -> None:
            signer.close()
            signs(len(kinds))

        async def signs_for_nobody() -> None:
            signer.close()
            signs(0)

        async def signs_no_more() -> None:
            signer.close()

        site = signs(len(kinds))
        here = stack.enter_context(host())
        (folder / "token").write_text(site["agents"][0])
        flags = ["--authority", "signer", "--signer-address", site["address"], "--signer-bundle", site["bundle"]]
        flags += ["--agent-token-file", str(folder / "token")]

        here.start(*flags)
        kubelet = await stack.enter_async_context(registered(here))
        cluster = Cluster(here, kubelet, folder, site)

        pods = [cluster.pod(number) for number in range(len(kinds))]

        async def serves() -> None:
            here.start(*flags)
            # As kubelet does again and again: only then has a new agent the pods' tokens.
            async with asyncio.timeout(DEADLINE):
                for pod in pods:
                    while not await republished(*pod):
                        await asyncio.sleep(LOOK_SECONDS)

        async def republished(*pod: Any) -> bool:
            with suppress(StandInError):
                await kubelet.republish(*pod)
                return True
            return False

        async def published() -> list[Path]:
            return [await kubelet.publish_until(*pod) for pod in pods]

        async def unpublished() -> None:
            for pod in pods:
                await kubelet.unpublish(*pod)

        at = [here.short(target) / "socket" for target in await published()]
        clients = [
            await stack.enter_async_context(started(kind, socket, folder))
            for kind, socket in zip(kinds, at, strict=True)
        ]
        show = Play(clients)
        await show.each(lambda client: client.until("first SVID", lambda: client.said))

        async def killed() -> None:
            os.kill(here.processes()[1], signal.SIGKILL)

        await show.through("serving process killed", killed)
        await show.through("the agent stops", lambda: asyncio.to_thread(here.stop), serves)
        await show.through("agent killed", lambda: asyncio.to_thread(here.kill), serves)
        await show.outage("SVID ended, outage", signs_no_more, signs_for_all)
        await show.through("refused, SVID ended", signs_for_nobody, signs_for_all, PERMISSION_DENIED)
        await show.through("the volume goes", unpublished, published)
        await show.same()
        return show.told


@pytest.fixture(scope="module")
def told(go_tools: Mapping[str, Path]) -> Mapping[tuple[str, str], str]:
    """What all clients on this machine were told. Building them is no test's business."""
    unbuilt = ", ".join(each.name for each in FOREIGN if not lacking(each) and not place_of(each).exists())
    if unbuilt:
        pytest.fail(f"not built yet: {unbuilt}; run python -m tests.conformance.foreign", pytrace=False)
    found = asyncio.run(play([kind for kind in KINDS if not kind.absent]))
    for (client, end), status in sorted(found.items()):
        print(f"{client}: {end}: {status}")
    return found


def documented() -> Mapping[str, tuple[str, ...]]:
    """The table of docs/configuration.md, a line for each client."""
    text = PAGE.read_text(encoding="utf-8")
    _, found, table = text.partition(f"\n| | {' | '.join(ENDS)} |\n")
    assert found, f"{PAGE} has no table of {ENDS}"
    rows = [line.strip("|").split("|") for line in table.partition("\n\n")[0].splitlines()[1:]]
    return {name.strip(): tuple(cell.strip() for cell in cells) for name, *cells in rows}


def test_the_page_has_a_line_for_each_client() -> None:
    assert set(documented()) == {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.strip("`"))
def test_each_client_is_told_what_the_page_says_and_goes_on(kind: Kind, told: Mapping[tuple[str, str], str]) -> None:
    if kind.absent:
        pytest.skip(kind.absent)
    assert tuple(told[kind.name, end] for end in ENDS) == documented()[kind.name]
