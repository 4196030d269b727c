"""Workers whose callers, or who themselves, mean harm: what it costs the others, and what the signer does."""

import asyncio
import fcntl
import json
import logging
import os
import signal
import ssl
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from signer.attestation.pods import AgentAddresses
from signer.authority.state import AuthorityState
from signer.front.admission import Admission
from signer.front.door import Door
from signer.front.server import AgentServer
from signer.metrics import Metrics
from signer.public.process import PublicProcess
from signer.workers import crew as crew_module
from signer.workers import messages
from signer.workers.chosen import memory
from signer.workers.crew import Crew
from signer.workers.worker import PATIENCE, Settings, Worker
from svid.dnsnames import SIGNER_NAME
from tests.node.test_workers import MINT, SAYS, Caller, how, workers
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import StepClock
from tests.unit.signer.test_lifecycle import done, life

HALF = timedelta(hours=13)


def number(value: int, bits: int) -> bytes:
    """As HPACK writes it."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = [most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


async def called_with(address: str, value: bytes) -> bytes:
    """What comes back of a call without a token whose header `x` is that."""
    host, _, port = address.rpartition(":")
    believing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    believing.check_hostname, believing.verify_mode = False, ssl.CERT_NONE
    believing.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=believing)
    headers = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": MINT.encode(),
        b":authority": SIGNER_NAME.encode(),
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"x": value,
    }
    block = b"".join(
        b"\x00" + number(len(name), 7) + name + number(len(each), 7) + each for name, each in headers.items()
    )
    first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(4, 1, 0, b"")
    writer.write(first + frame(1, 4, 1, block))
    found = b""
    # Its end, whether by trailers (END_STREAM) or the connection's.
    while True:
        try:
            head = await asyncio.wait_for(reader.readexactly(9), 10)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, OSError):
            break
        # Only what answers the call: how often the connection itself is spoken of is chance.
        found += payload if head[3] in (0, 1) else b""
        if (head[3] == 1 and head[4] & 1) or head[3] == 3:
            break
    writer.close()
    return found


@pytest.mark.parametrize("how_many", ["1", "2"])
def test_a_header_that_is_no_utf8_is_not_logged(tmp_path: Path, how_many: str) -> None:
    """In `authorization` it would be a token with one wrong byte."""
    with process(tmp_path, 1, 1, free_port(), "--workers", how_many) as (_, site):
        assert b"the call has no agent token" in asyncio.run(called_with(site["address"], b"Bearer secret\xff"))
    assert "secret" not in (tmp_path / "signer.log").read_text()


def test_no_header_of_a_stranger_ends_a_worker(tmp_path: Path) -> None:
    """gRPC hands on as Latin-1 what is no UTF-8, so that a value is twice as long on the channel."""

    async def play() -> None:
        with process(tmp_path, 4, 1, free_port(), "--workers", "2") as (running, site):
            before = workers(running.pid)
            answers = {await called_with(site["address"], b"\xff" * size) for size in (200, 4_200, 5_500)}
            assert [b"the call has no agent token" in each for each in answers] == [True]
            caller = Caller(site)
            assert how(await caller.mint(site["pods"][0], site["agents"][0]))[0] != grpc.StatusCode.UNAVAILABLE
            assert workers(running.pid) == before
            await caller.channel.close()
        assert "a worker ended" not in (tmp_path / "signer.log").read_text()

    asyncio.run(play())


@dataclass(frozen=True, slots=True)
class There:
    """A server of agents with workers, whose one method answers what was said."""

    server: AgentServer
    crew: Crew
    door: Door
    clock: StepClock
    state: AuthorityState
    metrics: Metrics
    address: str
    # Lets the calls that say "slow" end.
    may: asyncio.Event

    async def renew(self) -> None:
        self.clock.pass_by(hours=HALF.total_seconds() / 3600)
        await self.server.renew(self.state)

    def channel(self) -> grpc.aio.Channel:
        options = (("grpc.default_authority", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))
        roots = self.state.bundle.to_pem()
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(roots), options)

    @property
    def sockets(self) -> dict[str, set[str]]:
        """By a worker's letter, names of those that it listens at."""
        found: dict[str, set[str]] = {}
        for paths in self.crew._running.values():
            for path in paths.values():
                found.setdefault(path.parent.name, set()).add(path.name)
        return found

    @property
    def restarts(self) -> float | None:
        return self.metrics.registry.get_sample_value("podsvid_signer_worker_restarts_total")


async def says(one: grpc.aio.Channel, word: bytes) -> bytes:
    return bytes(await one.unary_unary(SAYS, bytes, bytes)(word, timeout=20, wait_for_ready=True))


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not look():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def there(folder: Path, begin: datetime, state: AuthorityState) -> AsyncIterator[There]:
    async def echo(said: Any, context: Any) -> bytes:
        found: bytes = await anext(aiter(said))
        if found == b"for ever":
            await asyncio.Event().wait()
        if found == b"slow":
            await may.wait()
        return found

    may = asyncio.Event()

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {SAYS: grpc.stream_unary_rpc_method_handler(echo, None, None)}
    door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
    metrics, port, clock = Metrics(), free_port(), StepClock(begin)
    crew = Crew(2, methods, door.spread, memory(2), ("json", "info"), metrics)
    server = AgentServer(crew, door, ("127.0.0.1", port), folder / "run", clock)
    found = There(server, crew, door, clock, state, metrics, f"127.0.0.1:{port}", may)
    try:
        await server.renew(state)
        await server.open()
        # It goes on before both are there, where a process takes long to begin.
        await until(lambda: crew.serving == 2)
        yield found
    finally:
        await server.close(0)


def among(test: Callable[[There], Awaitable[None]]) -> None:
    begin = datetime.now(UTC) - HALF
    state = done(life().first(begin))

    async def run(folder: Path) -> None:
        async with there(folder, begin, state) as found:
            await test(found)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(asyncio.wait_for(run(Path(name)), 60))


def test_a_certificate_that_is_due_while_no_worker_is_there_is_that_of_those_who_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the signer, whose every change of trust waits for it, goes on within seconds."""
    monkeypatch.setattr(crew_module, "ALL", 0.5)

    async def test(found: There) -> None:
        with monkeypatch.context() as there_is_none:
            there_is_none.setattr(sys, "executable", "/bin/false")
            for worker in list(found.crew._running):
                worker.lose("the test")
            # At once, though their processes are there for a while yet.
            assert not found.server.serving
            assert found.server.lacks == "workers that serve agents (the log says how each ended)"
            begun = asyncio.get_running_loop().time()
            await found.renew()
            assert asyncio.get_running_loop().time() - begun < 5
            assert not found.server.serving
        await until(lambda: found.sockets == {"a": {"2"}, "b": {"2"}})
        channel = found.channel()
        assert await says(channel, b"there") == b"there"
        await channel.close()

    among(test)


def test_a_worker_that_cannot_listen_anew_keeps_what_it_has_until_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crew_module, "ALL", 0.5)
    monkeypatch.setattr(crew_module, "RETRY", 0.2)

    async def test(found: There) -> None:
        channels = [found.channel() for _ in range(2)]
        for each in channels:
            assert await says(each, b"1") == b"1"
        pids = {each.pid for each in found.crew._running}
        assert found.door.target
        ways = [found.door.target.parent / letter / "2" for letter in "ab"]
        for way in ways:
            way.mkdir()
        await found.renew()
        assert found.sockets == {"a": {"1"}, "b": {"1"}}
        # Nobody has the new one: who comes meanwhile gets the old one.
        channels.append(found.channel())
        for each in channels:
            assert await says(each, b"2") == b"2"
        ways[0].rmdir()
        await until(lambda: found.sockets == {"a": {"1", "2"}, "b": {"1"}})
        ways[1].rmdir()
        await until(lambda: found.sockets == {"a": {"1", "2"}, "b": {"1", "2"}})
        for each in channels:
            assert await says(each, b"3") == b"3"
            await each.close()
        assert {each.pid for each in found.crew._running} == pids
        assert not found.restarts

    among(test)
    assert "a worker does not listen with the newest certificate; trying again" in caplog.messages


def test_each_worker_may_listen_in_a_folder_of_its_own_alone() -> None:
    """In another's it would bind what that one is to listen at next, and have its connections."""

    async def test(found: There) -> None:
        assert found.door.target
        top = found.door.target.parent
        told = [Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")[5] for each in found.crew._running]
        assert sorted(told) == sorted(str(top / letter).encode() for letter in "ab")
        assert stat.S_IMODE((top / "a").stat().st_mode) == 0o700
        # What one leaves there its successor does not meet.
        (top / "a" / "2").mkdir()
        (first, *_) = [each for each, paths in found.crew._running.items() if paths[1].parent.name == "a"]
        assert first.pid
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: first not in found.crew._running and found.sockets.keys() == {"a", "b"})
        await found.renew()
        assert {letter: "2" in names for letter, names in found.sockets.items()} == {"a": True, "b": True}

    among(test)


def test_nobody_is_told_to_serve_anew_while_the_signer_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    real = Worker.serve

    async def serve(self: Worker, order: messages.Serve) -> None:
        told.append(order.server)
        await real(self, order)

    monkeypatch.setattr(Worker, "serve", serve)

    async def test(found: There) -> None:
        await found.renew()

    among(test)
    assert sorted(told) == [1, 1, 2, 2]


def test_calls_of_a_connection_that_the_door_has_closed_are_over_whatever_its_worker_says() -> None:
    async def test(found: There) -> None:
        channel = found.channel()
        calling = asyncio.ensure_future(says(channel, b"for ever"))
        (one, other) = found.crew._running
        await until(lambda: one.calls + other.calls == 1)
        worker = one if one.calls else other
        assert worker.pid
        # It says no more.
        os.kill(worker.pid, signal.SIGSTOP)
        for each in list(found.door._passages.values()):
            each.close()
        # Long before it is lost for giving no sign of life.
        async with asyncio.timeout(PATIENCE / 2):
            await until(lambda: worker.calls == 0)
        calling.cancel()
        await channel.close()
        os.kill(worker.pid, signal.SIGCONT)

    among(test)


def test_a_server_that_ended_while_workers_were_told_of_it_is_ended_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "ALL", 0.5)
    stopped: list[int] = []
    may, listening = asyncio.Event(), list[Worker]()
    serve, stop = Worker.serve, Worker.stop

    async def late(self: Worker, order: messages.Serve) -> None:
        await serve(self, order)
        if order.server == 2:
            listening.append(self)
            await may.wait()

    async def noted(self: Worker, server: int, grace: float | None, beyond: float = PATIENCE) -> None:
        await stop(self, server, grace, beyond)
        stopped.append(server)

    monkeypatch.setattr(Worker, "serve", late)
    monkeypatch.setattr(Worker, "stop", noted)

    async def test(found: There) -> None:
        await found.renew()
        assert found.crew.newest
        # One that is told only afterwards is told nothing.
        await until(lambda: len(listening) == 2)
        await found.crew.newest.stop(0)
        may.set()
        await until(lambda: stopped == [2, 2])
        assert found.sockets == {"a": {"1"}, "b": {"1"}}

    among(test)


def test_calls_of_a_server_that_retires_get_their_time_when_the_signer_stops() -> None:
    """Also in its last half hour, when it takes no more; and no more than they need, where one worker has none."""

    async def test(found: There) -> None:
        channel = found.channel()
        calling = asyncio.ensure_future(says(channel, b"slow"))
        await until(lambda: sum(each.calls for each in found.crew._running) == 1)
        await found.renew()
        (retiring,) = found.server._retiring.values()
        ending = asyncio.ensure_future(retiring.stop(1800))
        await until(lambda: any(each.done() for one in found.crew._running for each in one._stopping.values()))
        assert found.sockets == {"a": {"2"}, "b": {"2"}}
        ending.cancel()
        closing = asyncio.ensure_future(found.server.close(20))
        await until(lambda: not found.door._listening)
        found.may.set()
        assert await calling == b"slow"
        async with asyncio.timeout(10):
            await closing
        await channel.close()

    among(test)


def test_no_worker_is_begun_while_the_signer_stops() -> None:
    """Neither for one that ends meanwhile, nor by a renewal, whether it is under way or comes later."""

    async def test(found: There) -> None:
        keeping = list(found.crew._keeping)
        shown, may = asyncio.Event(), asyncio.Event()
        show = found.crew.show

        async def held(generation: crew_module.Generation) -> None:
            shown.set()
            await may.wait()
            await show(generation)

        found.crew.show = held  # type: ignore[method-assign]
        renewing = asyncio.ensure_future(found.renew())
        await shown.wait()
        found.crew.closing()
        for worker in list(found.crew._running):
            worker.lose("the test")
        await asyncio.wait(keeping)
        assert not found.restarts
        await found.server.close(0)
        may.set()
        await renewing
        await found.renew()
        await show(found.crew.server(()))
        assert found.crew._keeping == []
        assert found.server._retiring == {}
        assert found.crew._running == {}

    among(test)


FORGED = {"logger": "podsvid.audit", "event": "mint allowed"}


@contextmanager
def taken_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever program is started writes a forged line, and would have its starter's own lines be lost."""
    program = folder / "python"
    flags = "import fcntl, os; fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_NONBLOCK)"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(FORGED)}' >&2\nexec {sys.executable} -c '{flags}'\n")
    program.chmod(0o755)
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(program))
            yield
        assert not fcntl.fcntl(2, fcntl.F_GETFL) & os.O_NONBLOCK
    finally:
        os.dup2(kept, 2)
        for each in (kept, writing):
            os.close(each)
    with os.fdopen(reading, "rb") as shared:
        assert b"mint allowed" not in shared.read()


def test_what_a_worker_writes_is_a_line_of_a_worker_and_no_line_of_the_audit_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> str:
        worker = Worker({}, lambda peer: False, lambda names: None)
        return await worker.run(Settings(tmp_path, memory(2), "json", "info"), lambda: None)

    with caplog.at_level(logging.WARNING), taken_over(tmp_path, monkeypatch):
        assert asyncio.run(run()) == "exit code 0"
    (line,) = [vars(each) for each in caplog.records if each.getMessage() == "a worker wrote"]
    assert (line["said_by"], json.loads(line["line"]), line["name"]) == ("worker", FORGED, "podsvid.workers")


def test_what_the_process_of_the_public_listeners_writes_is_a_line_of_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    public = PublicProcess({}, lambda *count: None)
    with caplog.at_level(logging.WARNING), taken_over(tmp_path, monkeypatch):
        assert asyncio.run(public._once()) == "exit code 0"
    (line,) = [vars(each) for each in caplog.records if each.getMessage().endswith("public listeners wrote")]
    assert (line["said_by"], json.loads(line["line"]), line["name"]) == ("public", FORGED, "podsvid.public")


async def a_worker(folder: Path) -> object:
    worker = Worker({}, lambda peer: False, lambda names: None)
    return await worker.run(Settings(folder, memory(2), "json", "info"), lambda: None)


async def the_public_one(folder: Path) -> object:
    return await PublicProcess({}, lambda *count: None)._once()


@pytest.mark.parametrize(("begin", "more"), [(a_worker, {"GRPC_SSL_CIPHER_SUITES"}), (the_public_one, set())])
def test_a_worker_has_nothing_of_the_signers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], Awaitable[object]], more: set[str]
) -> None:
    """Nor has the process of the public listeners. There may be a token, or a cloud's key."""
    program, found = tmp_path / "python", tmp_path / "found"
    program.write_text(f"#!/bin/sh\nenv > {found}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def run() -> None:
        await begin(tmp_path)

    asyncio.run(run())
    # The last ones are the shell's own.
    names = {line.partition("=")[0] for line in found.read_text().splitlines()} - {"PWD", "OLDPWD", "SHLVL", "_"}
    ours = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LC_ALL"} | more
    assert names - {"MALLOC_ARENA_MAX", "GRPC_VERBOSITY"} == ours
