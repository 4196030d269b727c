"""The relay before gRPC, with a real gRPC behind it: who gets through, what gRPC gets of it, and who never does."""

import array
import asyncio
import errno
import os
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.socket import closing, early, refusals, relay
from agent.socket.accounts import Account, Accounts, Limits
from agent.socket.closing import Closers
from agent.socket.connections import SMALLEST, Connections, Holder, unread
from agent.socket.endpoint import Endpoint
from agent.socket.narrow import narrow
from agent.socket.relay import Relay
from bench.attacks import (
    DATA,
    END_HEADERS,
    FETCH,
    HEADERS,
    LARGE,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    headers,
    large,
    message,
    split,
)
from tests.node.test_endpoint import DEADLINE, GOOD, Counts, Methods, Served, code_of, until

ACK = frame(SETTINGS, 1, 0)
BEGUN = PREFACE + frame(SETTINGS, 0, 0)
CALL = b"/SpiffeWorkloadAPI/Call"


def call(stream: int, content: bytes) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, headers(CALL)) + message(stream, content)


class Heard(Methods):
    """And answers with as much as it is asked for."""

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.seen.append(request)
        return b"n" * int(request) if request.isdigit() else request


@dataclass
class Relayed:
    at: Served
    connections: Connections
    relay: Relay
    account: Account
    path: Path

    def left(self) -> int:
        """How many count as the pod's, after another look at what is over."""
        self.connections.look()
        return self.connections.held("pod")

    def nothing_held(self) -> bool:
        return self.left() == 0

    async def raw(self) -> "Raw":
        return Raw(*await asyncio.open_unix_connection(self.path))

    async def is_served(self) -> None:
        async with self.at.channel() as channel:
            ask = channel.unary_unary("/SpiffeWorkloadAPI/Call")
            assert await ask(b"x", metadata=GOOD, wait_for_ready=True) == b"x"


class Raw:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.writer.get_extra_info("socket").dup()
        return found

    async def frame(self) -> tuple[int, int, bytes]:
        """Kind, flags and content of the next one."""
        head = await self.reader.readexactly(9)
        return head[3], head[4], await self.reader.readexactly(int.from_bytes(head[:3], "big"))

    async def closed(self) -> bytes:
        """What was said until the end."""
        with suppress(ConnectionError):
            return await self.reader.read()
        return b""


def relayed(main: Callable[[Relayed], Awaitable[Any]], limits: Limits | None = None) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            counts, methods = Counts(), Heard()
            connections = Connections(Closers(), counts.call_refused)
            found = Relay(connections)
            accounts = Accounts(limits or Limits(), connections.shut, time.monotonic)
            account, path = accounts.begin(1, "pod"), Path(base, "socket")
            endpoint = Endpoint([methods.handlers("SpiffeWorkloadAPI")], account, counts, found)
            await endpoint.open(str(path))
            try:
                async with asyncio.timeout(DEADLINE):
                    await main(
                        Relayed(Served(path, methods, counts, endpoint, account), connections, found, account, path)
                    )
            finally:
                await endpoint.close()
            assert not path.exists()

    asyncio.run(run())


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not know how to refuse descriptors (before Linux 6.16)."""
    monkeypatch.setattr(closing, "_SO_PASSRIGHTS", 9999)


def test_settings_and_their_acknowledgement_go_through_as_they_are() -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        kind, flags, settings = await raw.frame()
        assert (kind, flags) == (SETTINGS, 0)
        said = dict(struct.iter_unpack(">HI", settings))
        assert said[3] == Limits().calls
        assert said[6] >= 16 * 1024
        raw.writer.write(BEGUN + ACK + call(1, b"asked"))
        await until(lambda: here.at.methods.seen == [b"asked"])
        raw.writer.write(frame(PING, 0, 0, b"12345678"))
        while (await raw.frame())[:2] != (PING, 1):
            pass
        raw.writer.close()
        await until(here.nothing_held)

    relayed(main)


def test_what_is_said_before_the_acknowledgement_is_served_in_whatever_parts_it_comes() -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        for byte in BEGUN:
            raw.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        raw.writer.write(call(1, b"early"))
        await until(lambda: here.at.methods.seen == [b"early"])
        raw.writer.write(ACK + call(3, b"late"))
        await until(lambda: here.at.methods.seen == [b"early", b"late"])
        raw.writer.close()

    relayed(main)


@pytest.mark.parametrize("most", [16_000, 64])
@pytest.mark.parametrize("after", [b"", frame(SETTINGS, 1, 1), frame(SETTINGS, 3, 0), frame(SETTINGS, 1, 0, b"123456")])
def test_headers_without_an_acknowledgement_are_bounded(most: int, after: bytes) -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        sent = 0
        block = split(1, headers(FETCH, *large(LARGE)), most)
        raw.writer.write(BEGUN + after)
        with suppress(ConnectionError):
            while sent < len(block):
                raw.writer.write(block[sent : sent + 65_536])
                sent += 65_536
                await raw.writer.drain()
        await raw.closed()
        assert sent < len(block) // 4
        await until(here.nothing_held)
        await here.is_served()

    relayed(main)


def test_whoever_has_acknowledged_is_held_to_the_limits() -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        raw.writer.write(BEGUN + ACK + split(1, headers(CALL, *large(400_000))))
        with suppress(ConnectionError):
            await raw.writer.drain()
        refused = b""
        while b"metadata" not in refused:
            refused = (await raw.frame())[2]
        raw.writer.close()
        assert here.at.counts.taken == []

    relayed(main)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1", PREFACE + ACK, BEGUN + frame(9, 4, 1)])
def test_who_speaks_something_else_is_closed_at_once(said: bytes) -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        raw.writer.write(said)
        await raw.closed()
        await until(here.nothing_held)
        assert here.at.counts.refused == [refusals.FIRST]

    relayed(main)


def test_what_all_say_early_has_a_bound_and_a_first_call_is_always_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "Budget", lambda: early.Budget(pod=1 << 20, most=40_000))

    async def main(here: Relayed) -> None:
        refused: list[bool] = []
        charge = here.relay._budget.charge

        def charging(pod: str, before: int, cost: int) -> bool:
            found = charge(pod, before, cost)
            refused.append(not found)
            return found

        monkeypatch.setattr(here.relay._budget, "charge", charging)
        one, two = await here.raw(), await here.raw()
        much = BEGUN + call(1, b"x") + 3 * frame(DATA, 0, 3, b"n" * 16_000)
        one.writer.write(much[:30_000])
        await until(lambda: here.at.methods.seen == [b"x"])
        two.writer.write(much[:30_000])
        await until(lambda: any(refused))
        # At once, and not when its time is over.
        assert len(door_of(here).pairs) == 1
        await two.closed()
        assert here.at.counts.refused == [refusals.FIRST_OF_ALL]
        three = await here.raw()
        three.writer.write(BEGUN + call(1, b"y"))
        await until(lambda: b"y" in here.at.methods.seen)
        # Who has gone makes room.
        one.writer.close()
        four = await here.raw()
        await until(lambda: here.account.weight().open_connections == 2)
        four.writer.write(much[:30_000])
        await until(lambda: here.at.methods.seen.count(b"x") >= 2)
        for raw in (three, four):
            raw.writer.close()

    relayed(main)


def test_who_says_nothing_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PATIENCE", 0.2)

    async def main(here: Relayed) -> None:
        silent, slow = await here.raw(), await here.raw()
        slow.writer.write(BEGUN)
        stays = await here.raw()
        stays.writer.write(BEGUN + ACK)
        # Before gRPC would do it, after ten seconds.
        async with asyncio.timeout(8):
            await silent.closed()
            await slow.closed()
        assert here.at.counts.refused == [refusals.LATE] * 2
        stays.writer.write(call(1, b"still there"))
        await until(lambda: here.at.methods.seen == [b"still there"])
        stays.writer.close()
        await until(here.nothing_held)

    relayed(main)


def test_so_many_are_open_at_once_and_the_others_are_closed() -> None:
    async def main(here: Relayed) -> None:
        held = [await here.raw() for _ in range(3)]
        for raw in held:
            await raw.frame()
        late = await here.raw()
        assert await late.closed() == b""
        # One that has acknowledged counts as before, and one that goes makes room.
        held[0].writer.write(BEGUN + ACK)
        await held[0].frame()
        late = await here.raw()
        assert await late.closed() == b""
        held[1].writer.close()
        await until(lambda: here.account.weight().open_connections == 2)
        again = await here.raw()
        assert (await again.frame())[0] == SETTINGS
        assert here.account.weight().connections == 6
        assert here.at.counts.refused == [refusals.OF_SOCKET] * 2
        for raw in (*held, again):
            raw.writer.close()

    relayed(main, Limits(connections=3))


def test_a_pods_connections_end_with_the_others_and_with_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        await raw.frame()
        here.connections.shut("pod")
        await raw.closed()
        other = await here.raw()
        await other.frame()
        closing = asyncio.ensure_future(here.at.endpoint.close())
        await other.closed()
        await closing
        await until(here.nothing_held)

    relayed(main)


def test_urgent_bytes_are_bytes_like_others() -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        unknown = frame(0xEB, 0, 0, b"urgent")
        with raw.socket as sending:
            sending.send(BEGUN + unknown[:-1])
            sending.send(unknown[-1:], socket.MSG_OOB)
            sending.send(unknown[:-3])
            sending.send(unknown[-3:-2], socket.MSG_OOB)
            sending.send(unknown[-2:] + ACK + call(1, b"urgent"))
        await until(lambda: here.at.methods.seen == [b"urgent"])
        raw.writer.close()

    relayed(main)


def test_a_client_that_says_no_more_is_answered_and_gone() -> None:
    async def main(here: Relayed) -> None:
        raw = await here.raw()
        raw.writer.write(BEGUN + ACK)
        await raw.frame()
        raw.writer.write_eof()
        await raw.closed()
        await until(here.nothing_held)

    relayed(main)


@pytest.mark.parametrize("size", [20, 300_000], ids=["at-once", "in-parts"])
def test_what_grpc_said_last_is_heard_by_one_who_speaks_meanwhile(size: int) -> None:
    """Why a call or a connection ended is what a client shows, or comes back for."""
    last = bytes(range(256)) * (size // 256 + 1)

    async def main(here: Relayed) -> None:
        door = here.relay.door(f"{here.path}2", Holder("pod"), 8)
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
            listening.bind(door.address)
            listening.listen()
            for each in (listening, client):
                each.setblocking(False)
            door.open()
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, f"{here.path}2")
            await loop.sock_sendall(client, BEGUN + ACK)
            inner, _ = await loop.sock_accept(listening)
            with inner:
                heard = b""
                while len(heard) < len(BEGUN + ACK):
                    heard += await loop.sock_recv(inner, 4096)
                # The relay, which waits for the loop, sees this first, and that nobody is there any more.
                client.send(ACK)
                sent = inner.send(last)
            answer = b""
            while part := await loop.sock_recv(client, 4096):
                answer += part
            assert answer == last[:sent]
            await until(here.nothing_held)
        door.shut()
        door.end()

    relayed(main)


def test_an_answer_of_megabytes_comes_whole_to_one_who_reads_slowly() -> None:
    size = 3_000_000

    async def main(here: Relayed) -> None:
        raw = await here.raw()
        window = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 30))
        raw.writer.write(PREFACE + window + ACK + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))
        raw.writer.write(call(1, b"%d" % size))
        got = 0
        while got < size + 5:
            kind, _, content = await raw.frame()
            got += len(content) if kind == DATA else 0
            # Others are served meanwhile.
            if got and not len(here.at.methods.seen) > 1:
                await here.is_served()
        assert got == size + 5
        raw.writer.close()
        await until(here.nothing_held)

    relayed(main)


def test_what_is_not_read_stays_small_on_its_whole_way() -> None:
    """Answers to pings: some in the kernel on the way to the pod, some on the way from gRPC, some here between."""

    async def main(here: Relayed) -> None:
        raw = await here.raw()
        reading: Any = raw.writer.transport
        reading.pause_reading()
        raw.writer.write(BEGUN + ACK)
        (pair,) = await paired(here)
        sent = 0
        with raw.socket as sending, suppress(BlockingIOError):
            sending.setblocking(False)
            # Until nobody takes any more; the sender has what is not taken.
            for _ in range(200):
                with suppress(BlockingIOError):
                    sent += sending.send(frame(PING, 0, 0, b"12345678") * 100)
                await asyncio.sleep(0.01)
        assert pair.pod.pending
        assert pair.is_narrow
        assert len(pair.pod.pending) <= relay._CHUNK
        assert unread(pair.pod.descriptor) <= 10 * 1024
        assert unread(pair.grpc.descriptor) <= 10 * 1024
        await here.is_served()
        raw.writer.close()
        await until(here.nothing_held)

    relayed(main)


async def paired(here: Relayed) -> list[Any]:
    await until(lambda: bool(here.relay._ends))
    return list({end.pair: None for end in here.relay._ends.values()})


def test_only_grpcs_ends_are_narrowed() -> None:
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base, socket.socket(socket.AF_UNIX) as listening:
        name = f"\0{base}".encode()
        listening.bind(name)
        listening.listen()
        with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as other:
            ours.connect(name)
            taken, _ = listening.accept()
            usual = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            with taken:
                narrow({name}, {ours.fileno()}, SMALLEST)
                sizes = [each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (taken, ours, other)]
            assert sizes == [sizes[0], usual, usual]
            assert sizes[0] < 10_000


def test_of_headers_that_are_not_whole_grpc_gets_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[bytes] = []
    real = Relay._pass

    def spy(self: Relay, to: Any, data: memoryview) -> None:
        if to is to.pair.grpc:
            passed.append(bytes(data))
        real(self, to, data)

    monkeypatch.setattr(Relay, "_pass", spy)

    async def main(here: Relayed) -> None:
        raw = await here.raw()
        begun = call(1, b"x")
        raw.writer.write(BEGUN + begun[:-1])
        await raw.writer.drain()
        await until(lambda: bool(passed))
        await asyncio.sleep(0.1)
        # The message's frame is not whole; the call's headers are.
        assert b"".join(passed) == BEGUN + frame(HEADERS, END_HEADERS, 1, headers(CALL))
        raw.writer.write(begun[-1:] + ACK)
        await until(lambda: b"".join(passed) == BEGUN + begun + ACK)
        raw.writer.close()

    relayed(main)


def test_behind_a_hole_that_a_pod_made_they_are_narrowed_too() -> None:
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base, socket.socket(socket.AF_UNIX) as listening:
        name = f"\0{base}".encode()
        listening.bind(name)
        listening.listen()
        with ExitStack() as filled:
            for _ in range(600):
                filled.callback(os.close, os.dup(0))
            ours = socket.socket(socket.AF_UNIX)
            ours.connect(name)
            taken, _ = listening.accept()
        with ours, taken:
            narrow({name}, {ours.fileno()}, SMALLEST)
            assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 10_000


def test_who_would_be_refused_and_kept_waits_in_the_kernel_while_too_many_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(here: Relayed) -> None:
        monkeypatch.setattr(relay, "WAITING", 2)
        monkeypatch.setattr(Connections, "is_full", lambda books, pod: True)
        closers = here.connections.closers
        monkeypatch.setattr(closers, "_most", 0)
        for _ in range(2):
            ours, theirs = socket.socketpair()
            theirs.close()
            closers.close(ours)
        before = here.account.connections.taken
        raw = await here.raw()
        await asyncio.sleep(0.2)
        assert here.account.connections.taken == before
        monkeypatch.setattr(closers, "_most", 1)
        closers.go_on()
        await until(lambda: here.account.connections.taken > before)
        raw.writer.close()

    relayed(main)


def lingering() -> tuple[socket.socket, list[socket.socket]]:
    """A connection whoever closes which last waits for an hour; and what keeps it so."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    linger = socket.create_connection(listening.getsockname())
    linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    peer, _ = listening.accept()
    linger.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            linger.send(b"unread" * 10_000)
    return linger, [listening, peer]


def send_with(sending: socket.socket, data: bytes, *descriptors: int) -> None:
    sending.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


@pytest.mark.parametrize("where", ["first", "in the middle", "at the end", "never accepted"])
def test_a_descriptor_that_lingers_costs_nobody_but_its_sender(where: str, old_kernel: None) -> None:
    async def main(here: Relayed) -> None:
        linger, kept = lingering()
        raw = await here.raw()
        with raw.socket as sending:
            if where == "first":
                send_with(sending, BEGUN + ACK, linger.fileno())
            elif where == "in the middle":
                sending.send(BEGUN + ACK + call(1, b"asked"))
                await until(lambda: here.at.methods.seen == [b"asked"])
                send_with(sending, call(3, b"never"), linger.fileno())
            elif where == "at the end":
                # Refused for what comes first, with the descriptor unread.
                sending.send(b"GET / HTTP/1.1\r\n\r\n")
                with suppress(OSError):
                    send_with(sending, b"x", linger.fileno())
            else:
                # Its connection waits while the socket is closed.
                here.relay.listen(listening_of(here), door_of(here), on=False)
                end = socket.socket(socket.AF_UNIX)
                end.connect(str(here.path))
                send_with(end, b"x", linger.fileno())
                linger.close()
                await here.at.endpoint.close()
                await until(lambda: here.connections.closers._busy == 1)
                end.close()
        linger.close()
        if where != "never accepted":
            await raw.closed()
            await here.is_served()
        assert b"never" not in here.at.methods.seen
        # What its peer had not taken is taken: whoever waits goes on.
        for each in kept:
            each.close()
        raw.writer.close()
        await until(lambda: here.nothing_held() and here.connections.closers._busy == 0)

    relayed(main)


def door_of(here: Relayed) -> Any:
    (found,) = here.relay._doors.values()
    return found


def listening_of(here: Relayed) -> int:
    (found,) = here.relay._doors
    return found


def test_where_all_threads_wait_others_are_served_and_their_connections_closed(
    old_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(here: Relayed) -> None:
        lingers = [lingering() for _ in range(closing.THREADS + 2)]
        raws = [await here.raw() for _ in lingers]
        for raw, (linger, _) in zip(raws, lingers, strict=True):
            with raw.socket as sending:
                send_with(sending, BEGUN, linger.fileno())
            linger.close()
            await raw.closed()
            raw.writer.close()
        assert here.at.counts.refused == [refusals.DESCRIPTORS] * len(lingers)
        closers = here.connections.closers
        assert (closers._busy, closers.waiting) == (closing.THREADS, 2)
        # They count as their pod's.
        assert here.connections.held("pod") == len(lingers)
        for _ in range(3):
            await here.is_served()
        await until(lambda: here.left() == len(lingers))
        for _, kept in lingers:
            for each in kept:
                each.close()
        await until(here.nothing_held)

    relayed(main)


def test_descriptors_are_not_let_in_where_the_kernel_can_refuse_them() -> None:
    async def main(here: Relayed) -> None:
        door = door_of(here)
        if not door.is_guarded:
            pytest.skip("before Linux 6.16")
        raw = await here.raw()
        with raw.socket as sending, pytest.raises(PermissionError):
            send_with(sending, BEGUN, 0)
        raw.writer.write(BEGUN + ACK + call(1, b"asked"))
        await until(lambda: here.at.methods.seen == [b"asked"])
        raw.writer.close()

    relayed(main)


@pytest.mark.usefixtures("old_kernel")
def test_what_is_changed_after_it_was_looked_at_is_taken_as_grpc_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a page that its sender writes to while they wait (sendfile, splice): an acknowledgement is none then."""
    looked = closing.brings_descriptors

    async def main(here: Relayed) -> None:
        raw = await here.raw()
        with tempfile.TemporaryFile() as page:
            page.write(BEGUN + ACK)
            page.flush()
            changed: list[bytes] = []

            def changing(connection: socket.socket, buffer: bytearray) -> tuple[int, bool]:
                found = looked(connection, buffer)
                if not changed:
                    changed.append(bytes(buffer[: found[0]]))
                    os.pwrite(page.fileno(), frame(SETTINGS, 0, 0), len(BEGUN))
                return found

            monkeypatch.setattr(relay, "brings_descriptors", changing)
            with raw.socket as sending:
                os.sendfile(sending.fileno(), page.fileno(), 0, len(BEGUN + ACK))
            await until(lambda: changed == [BEGUN + ACK])
            block = split(1, headers(FETCH, *large(LARGE)))
            sent = 0
            with suppress(ConnectionError):
                while sent < len(block):
                    raw.writer.write(block[sent : sent + 65_536])
                    sent += 65_536
                    await raw.writer.drain()
            await raw.closed()
            assert sent < len(block) // 4
        await until(here.nothing_held)
        await here.is_served()

    relayed(main)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE])
def test_who_cannot_be_passed_on_is_closed_and_the_next_one_gets_through(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    connect = socket.socket.connect
    failures = [number, number]

    def failing(self: socket.socket, address: Any) -> None:
        if isinstance(address, bytes) and failures:
            raise OSError(failures.pop(), "no")
        connect(self, address)

    async def main(here: Relayed) -> None:
        monkeypatch.setattr(socket.socket, "connect", failing)
        for _ in range(2):
            raw = await here.raw()
            raw.writer.write(BEGUN + ACK)
            await raw.closed()
        await here.is_served()
        await until(here.nothing_held)

    relayed(main)


def test_without_descriptors_connections_wait_until_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.socket.accept
    failures = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE]

    def accept(self: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "no")
        return taken(self)

    async def main(here: Relayed) -> None:
        monkeypatch.setattr(socket.socket, "accept", accept)
        raw = await here.raw()
        assert (await raw.frame())[0] == SETTINGS
        raw.writer.close()

    relayed(main)


def test_many_clients_that_come_and_go_leave_nothing() -> None:
    async def main(here: Relayed) -> None:
        async def ask() -> None:
            for _ in range(10):
                async with here.at.channel() as channel:
                    found = await code_of(channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD))
                    assert found[0] is grpc.StatusCode.OK

        before = len(os.listdir("/proc/self/fd"))
        await asyncio.gather(*(ask() for _ in range(20)))
        await until(here.nothing_held)
        assert here.relay._ends == {}
        assert here.relay._timed == {}
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    relayed(main)
