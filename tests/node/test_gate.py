"""The gate before gRPC, with a real gRPC behind it: who gets through, what they see, and who never does."""

import asyncio
import errno
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.socket import early, gate
from agent.socket.accounts import Account, Accounts, Limits
from agent.socket.connections import Connections, Held, Mutator
from agent.socket.endpoint import Endpoint
from agent.socket.gate import IGNORED, Gate
from bench.attacks import (
    END_HEADERS,
    FETCH,
    HEADERS,
    LARGE,
    PING,
    PREFACE,
    SETTINGS,
    frame,
    headers,
    large,
    message,
    split,
)
from tests.node.test_endpoint import DEADLINE, GOOD, Counts, Methods, Served, code_of, until

ACK = frame(SETTINGS, 1, 0)
BEGUN = PREFACE + frame(SETTINGS, 0, 0)


class Watched(Connections):
    """Knows which connections gRPC got."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[int] = []

    def adopted(self, held: Held, descriptor: int) -> None:
        super().adopted(held, descriptor)
        self.handed.append(descriptor)


@dataclass
class Gated:
    at: Served
    connections: Watched
    gate: Gate
    account: Account
    path: Path

    def nothing_held(self) -> bool:
        """After another look at some of what was."""
        self.connections.look()
        return self.connections.held("pod") == 0

    async def raw(self) -> "Raw":
        return Raw(*await asyncio.open_unix_connection(self.path))


class Raw:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self) -> tuple[int, int, bytes]:
        """Kind, flags and content of the next one."""
        head = await self.reader.readexactly(9)
        return head[3], head[4], await self.reader.readexactly(int.from_bytes(head[:3], "big"))

    async def closed(self) -> bytes:
        """What was said until the end."""
        with suppress(ConnectionError):
            return await self.reader.read()
        return b""


def gated(main: Callable[[Gated], Awaitable[Any]], limits: Limits | None = None) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            connections, counts, methods = Watched(), Counts(), Methods()
            found = Gate(connections)
            mutator = Mutator(found)
            accounts = Accounts(limits or Limits(), connections.shut, time.monotonic)
            account, path = accounts.begin(1, "pod"), Path(base, "socket")
            endpoint = Endpoint([methods.handlers("SpiffeWorkloadAPI")], account, counts, mutator, found)
            await endpoint.open(str(path))
            try:
                async with asyncio.timeout(DEADLINE):
                    await main(
                        Gated(Served(path, methods, counts, endpoint, account), connections, found, account, path)
                    )
            finally:
                await endpoint.close()
            assert not path.exists()

    asyncio.run(run())


def test_a_client_hears_the_settings_once_and_acknowledges_them_once() -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        kind, flags, settings = await raw.frame()
        assert (kind, flags) == (SETTINGS, 0)
        said = dict(struct.iter_unpack(">HI", settings))
        assert said[3] == Limits().calls
        assert said[6] >= 16 * 1024
        assert here.connections.handed == []
        raw.writer.write(BEGUN + ACK)
        # gRPC's own, as the content of a frame without a meaning.
        kind, _, ignored = await raw.frame()
        assert (kind, ignored) == (
            IGNORED,
            len(settings).to_bytes(3, "big") + bytes([SETTINGS, 0, 0, 0, 0, 0]) + settings,
        )
        assert (await raw.frame())[:2] == (SETTINGS, 1)
        assert len(here.connections.handed) == 1
        raw.writer.write(frame(HEADERS, END_HEADERS, 1, headers(b"/SpiffeWorkloadAPI/Call")) + message(1, b"asked"))
        await until(lambda: here.at.methods.seen == [b"asked"])
        # More of them would be one too many.
        raw.writer.write(frame(PING, 0, 0, b"12345678"))
        while (await raw.frame())[:2] != (PING, 1):
            pass
        raw.writer.close()

    gated(main)


def test_what_was_said_before_the_acknowledgement_is_served() -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        call = frame(HEADERS, END_HEADERS, 1, headers(b"/SpiffeWorkloadAPI/Call")) + message(1, b"early")
        for byte in BEGUN:
            raw.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        raw.writer.write(call)
        await raw.frame()
        assert here.at.methods.seen == []
        raw.writer.write(ACK)
        await until(lambda: here.at.methods.seen == [b"early"])
        raw.writer.close()

    gated(main)


@pytest.mark.parametrize("most", [16_000, 64])
def test_headers_without_an_acknowledgement_never_come_to_grpc(most: int) -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        sent = 0
        block = split(1, headers(FETCH, *large(LARGE)), most)
        raw.writer.write(BEGUN)
        with suppress(ConnectionError):
            while sent < len(block):
                raw.writer.write(block[sent : sent + 65_536])
                sent += 65_536
                await raw.writer.drain()
        await raw.closed()
        assert sent < len(block) // 4
        assert here.connections.handed == []
        async with here.at.channel() as channel:
            assert await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"

    gated(main)


def test_whoever_has_acknowledged_is_held_to_the_limits() -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        raw.writer.write(BEGUN + ACK + split(1, headers(b"/SpiffeWorkloadAPI/Call", *large(400_000))))
        with suppress(ConnectionError):
            await raw.writer.drain()
        refused = b""
        while b"metadata" not in refused:
            refused = (await raw.frame())[2]
        raw.writer.close()
        assert here.at.counts.taken == []

    gated(main)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1", PREFACE + ACK, BEGUN + frame(9, 4, 1)])
def test_who_speaks_something_else_is_closed_and_not_known_to_grpc(said: bytes) -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        raw.writer.write(said)
        await raw.closed()
        assert here.connections.handed == []

    gated(main)


def test_who_says_nothing_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PATIENCE", 0.2)

    async def main(here: Gated) -> None:
        silent, slow = await here.raw(), await here.raw()
        slow.writer.write(BEGUN)
        await silent.closed()
        await slow.closed()
        assert here.connections.handed == []
        await until(here.nothing_held)

    gated(main)


def test_so_many_are_open_at_once_and_the_others_are_closed() -> None:
    async def main(here: Gated) -> None:
        waiting = [await here.raw() for _ in range(3)]
        for raw in waiting:
            await raw.frame()
        late = await here.raw()
        assert await late.closed() == b""
        # One that gets through counts as before, and one that goes makes room.
        waiting[0].writer.write(BEGUN + ACK)
        await waiting[0].frame()
        late = await here.raw()
        assert await late.closed() == b""
        waiting[1].writer.close()
        await until(lambda: len(here.gate._young) == 1)
        again = await here.raw()
        assert (await again.frame())[0] == SETTINGS
        waiting[0].writer.close()
        await until(lambda: not any(each.is_open() for each in here.connections._held if each.theirs is not None))
        last = await here.raw()
        assert (await last.frame())[0] == SETTINGS
        for raw in (*waiting, again, last):
            raw.writer.close()

    gated(main, Limits(connections=3))


def test_a_pods_connections_that_wait_end_with_the_others_and_with_the_socket() -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        await raw.frame()
        here.connections.shut("pod")
        await raw.closed()
        other = await here.raw()
        await other.frame()
        closing = asyncio.ensure_future(here.at.endpoint.close())
        await other.closed()
        await closing

    gated(main)


def test_an_urgent_byte_is_to_grpc_what_it_was_at_the_gate() -> None:
    """The kernel shows it to who looks, and leaves it out for who reads: what follows would be one byte off there, no
    acknowledgement, and without bound."""

    async def main(here: Gated) -> None:
        raw = await here.raw()
        unknown = frame(0xEB, 0, 0, b"urgent")
        with raw.writer.get_extra_info("socket").dup() as sending:
            sending.send(BEGUN + unknown[:-1])
            sending.send(unknown[-1:], socket.MSG_OOB)
            sending.send(unknown[:-3])
            sending.send(unknown[-3:-2], socket.MSG_OOB)
            sending.send(unknown[-2:] + ACK)
            call = frame(HEADERS, END_HEADERS, 1, headers(b"/SpiffeWorkloadAPI/Call")) + message(1, b"urgent")
            sending.send(call)
        await until(lambda: here.at.methods.seen == [b"urgent"])
        raw.writer.close()

    gated(main)


def test_who_cannot_be_handed_over_is_closed_and_the_next_one_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect
    failures = [errno.EAGAIN, errno.EMFILE]

    def failing(self: socket.socket, address: Any) -> None:
        if isinstance(address, bytes) and failures:
            raise OSError(failures.pop(), "no")
        connect(self, address)

    async def main(here: Gated) -> None:
        monkeypatch.setattr(socket.socket, "connect", failing)
        for _ in range(2):
            raw = await here.raw()
            raw.writer.write(BEGUN + ACK)
            await raw.closed()
        assert here.connections.handed == []
        async with here.at.channel() as channel:
            assert await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"
        await until(here.nothing_held)

    gated(main)


def test_without_descriptors_connections_wait_until_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.socket.accept
    failures = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE]

    def accept(self: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "no")
        return taken(self)

    async def main(here: Gated) -> None:
        monkeypatch.setattr(socket.socket, "accept", accept)
        raw = await here.raw()
        assert (await raw.frame())[0] == SETTINGS
        raw.writer.close()

    gated(main)


def test_many_clients_that_come_and_go_leave_nothing() -> None:
    async def main(here: Gated) -> None:
        async def ask() -> None:
            for _ in range(10):
                async with here.at.channel() as channel:
                    found = await code_of(channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD))
                    assert found[0] is grpc.StatusCode.OK

        await asyncio.gather(*(ask() for _ in range(20)))
        assert len(here.connections.handed) == 200
        # What is over is seen by looks, a number of them at a time.
        await until(here.nothing_held)
        assert here.gate._young == {}

    gated(main)


def test_a_first_look_takes_no_more_than_may_be_said_early() -> None:
    async def main(here: Gated) -> None:
        raw = await here.raw()
        raw.writer.write(BEGUN + b"".join(frame(0, 0, 1, b"n" * 16_000) for _ in range(early.BYTES // 16_000 + 2)))
        await raw.closed()
        assert here.connections.handed == []

    gated(main)
