"""A small HTTP/1.1 server on a thread of its own, for pages that peers nobody vouches for may ask for.

Everything that a peer decides has a bound: connections in all and by address, bytes of a head, seconds of a connection,
pages a second. One request a connection.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus

from runtime import listening
from runtime.crowd import Crowd
from runtime.stopping import end

_log = logging.getLogger("podsvid.http")
# What a head ends with.
_END = b"\r\n\r\n"
TEXT = "text/plain; charset=utf-8"
# Connections that the kernel keeps until they are taken.
BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers get. Their product is what they can cost: see `budget`."""

    connections: int
    # Of one IPv4 address, or of one IPv6 /64.
    by_address: int
    # Bytes of a request's head.
    head: int
    # Seconds from the first packet to the last, and for the peer to take leave after an answer.
    deadline: float
    leave: float
    # Bytes that the kernel may keep of a connection, each way.
    received: int
    sent: int
    # Pages a second, and at once; more are told to come back later. One address gets a SHARE of it.
    rate: float = math.inf
    burst: float = math.inf

    def budget(self, page: int) -> int:
        """Bytes that all connections cost at most where a page has `page`; the kernel doubles what it is told."""
        return self.connections * (self.head + 2 * (self.received + self.sent) + page + _OBJECTS)


# Bytes of a connection's objects: transport, protocol, timer, selector's entry.
_OBJECTS = 8 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    body: bytes
    content_type: str = TEXT


# A page gets the request's Accept header.
Page = Callable[[str], Awaitable[Answer]]
# Told why a connection was ended early or a page refused: crowded, address, deadline, head, request, rate, leave.
Refused = Callable[[str], None]


class _Stage(IntEnum):
    """How far a connection is; who is at the lowest makes place first."""

    READING = 0
    LEAVING = 1
    ASKING = 2


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, server: "_Server") -> None:
        self._server = server
        self._limits = server.limits
        self._buffer = bytearray(self._limits.head)
        self._filled = 0
        self._wasted = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.stage = _Stage.READING
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Told of every byte that waits: an answer is over when none does.
        transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        self.address = listening.whose(str(peer[0])) if peer else ""
        self._timer = asyncio.get_running_loop().call_later(self._limits.deadline, self.end, "deadline")
        self._server.crowd.enter(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.stage is not _Stage.READING:
            # What comes after the head is read, so that the answer is not lost to a reset, and thrown away.
            self._wasted += nbytes
            if self._wasted > 2 * self._limits.head:
                self.end("leave")
            return
        new = max(self._filled - len(_END), 0)
        self._filled += nbytes
        end = self._buffer.find(_END, new, self._filled)
        if end < 0:
            if self._filled == len(self._buffer):
                self.refuse("head", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        head, self._filled = bytes(self._buffer[:end]), 0
        self.stage = _Stage.ASKING
        self._server.take(self, head)

    def eof_received(self) -> bool:
        # One that has asked may close its half.
        return self.stage is _Stage.ASKING

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.crowd.leave(self)

    def refuse(self, why: str, status: HTTPStatus) -> None:
        """Answer what is wrong, and count it."""
        self._server.refused(why)
        self.answer(Answer(status, f"{status.phrase}\n".encode()))

    def answer(self, answer: Answer) -> None:
        """Send it, and wait a moment for the peer to take leave. Nothing when the peer is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self.stage, self._filled = _Stage.LEAVING, 0
        extra = "Allow: GET\r\n" if answer.status == HTTPStatus.NOT_IMPLEMENTED else ""
        extra += "Retry-After: 1\r\n" if answer.status == HTTPStatus.TOO_MANY_REQUESTS else ""
        head = (
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n{extra}\r\n"
        )
        transport.write(head.encode("latin-1") + answer.body)
        transport.write_eof()
        if transport.get_write_buffer_size() == 0:
            self._leave_soon()

    def resume_writing(self) -> None:
        self._leave_soon()

    def _leave_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._limits.leave, self.end, "leave")

    def end(self, why: str) -> None:
        """Cut it off, and count why; who only did not take leave after a whole answer harmed nobody."""
        if self._transport is not None and not self._transport.is_closing():
            if why != "leave" or self._transport.get_write_buffer_size():
                self._server.refused(why)
            self._transport.abort()
        # Its place is free now, not when the loop comes round to it.
        self._server.crowd.leave(self)


class _Server:
    """The connections of one listener. Belongs to the loop of its thread."""

    def __init__(self, pages: Mapping[str, Page], limits: Limits, refused: Refused) -> None:
        self.limits = limits
        self.refused = refused
        self._pages = pages
        self.crowd = Crowd[_Connection](limits.connections, limits.by_address, limits.rate, limits.burst)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, connection: _Connection, head: bytes) -> None:
        """Answer a request."""
        asked = parse(head)
        if asked is None:
            connection.refuse("request", HTTPStatus.BAD_REQUEST)
            return
        method, path, accept = asked.method, asked.target, asked.field("accept")
        if method != "GET":
            connection.refuse("request", HTTPStatus.NOT_IMPLEMENTED)
        elif not self.crowd.may(connection.address, asyncio.get_running_loop().time()):
            connection.refuse("rate", HTTPStatus.TOO_MANY_REQUESTS)
        elif path not in self._pages:
            connection.answer(Answer(404, f"try {' or '.join(sorted(self._pages))}\n".encode()))
        else:
            task = asyncio.ensure_future(self._answer(connection, path, accept))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cut everybody off."""
        for each in self.crowd.guests:
            each.end("leave")
        await end(self._tasks)

    async def _answer(self, connection: _Connection, path: str, accept: str) -> None:
        try:
            answer = await self._pages[path](accept)
        except Exception:
            _log.exception("page not made", extra={"path": path})
            answer = Answer(500, b"the log says why\n")
        connection.answer(answer)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's head. `fields`: by their names in lower case, in their order."""

    method: str
    target: str
    version: str
    fields: tuple[tuple[str, str], ...]

    def field(self, name: str) -> str:
        """The last of that name; empty where there is none."""
        return next((value for each, value in reversed(self.fields) if each == name), "")


def parse(head: bytes) -> Asked | None:
    """A head without its end; None when it is none."""
    try:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError:
        return None
    if version not in ("HTTP/1.1", "HTTP/1.0") or not method.isalpha() or not target.isprintable():
        return None
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name.strip() != name:
            return None
        fields.append((name.lower(), value.strip()))
    return Asked(method, target, version, tuple(fields))


@contextmanager
def serving(
    address: tuple[str, int],
    pages: Mapping[str, Page],
    limits: Limits,
    refused: Refused = lambda why: None,
    name: str = "http",
) -> Iterator[tuple[str, int]]:
    """Serve `pages` by their paths while inside, on a thread and a loop of its own; yields the bound address.

    `refused` is called on that thread. Raises OSError when the address cannot be bound.
    """
    sockets = listening.bound(address, (limits.received, limits.sent))
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        server = _Server(pages, limits, refused)
        listeners = [
            await loop.create_server(lambda: _Connection(server), sock=each, backlog=BACKLOG) for each in sockets
        ]
        try:
            await stopping.wait()
        finally:
            for listener in listeners:
                listener.close()
            await server.close()

    host, port = sockets[0].getsockname()[:2]
    # The kernel takes connections from here on, so that nobody is refused who comes at once.
    for each in sockets:
        each.listen(BACKLOG)
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name=name, daemon=True)
    thread.start()
    try:
        yield str(host), int(port)
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
