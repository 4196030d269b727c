"""The gate before gRPC: it gets a connection once its client has acknowledged the settings, and not before.

gRPC holds a client to its limits from then on, and keeps whatever headers come before: 16 MB for each stream. So the
settings are said here, as gRPC would; what the client sends stays in the kernel until the acknowledgement is among it;
then gRPC gets the connection, and says its settings once more, as the content of a frame that clients have to ignore
(RFC 9113, 5.5). No byte passes through Python but those that are looked at.

gRPC takes no connection that somebody else has: it accepts one from here, in a network where nobody else is, and the
descriptor is exchanged before gRPC has used it (its socket mutator is called then).
"""

import asyncio
import errno
import os
import secrets
import select
import socket
import stat
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from agent.socket.connections import Connections, Held, Holder, borrowed
from agent.socket.early import Early, Verdict

# Seconds until the acknowledgement; and of gRPC's own settings, at the start.
PATIENCE, LEARNING = 10.0, 10.0
# Seconds until connections are accepted again where that failed, as there were no descriptors; and where there were as
# many as may be: who makes them without end waits, and nobody is kept busy by refusing them.
AGAIN, FULL = 0.2, 0.02
# A kind of frame that nobody has a meaning for.
IGNORED: Final = 0xEB
_SETTINGS = 4
# Where the next look at unread bytes begins: Python has no name for it.
_SO_PEEK_OFF = 42
_BACKLOG = 4096
_PEEKED = 16 * 1024
# Connections that one turn of the event loop accepts from a pod's socket, or looks at: others have theirs between.
_AT_ONCE = 4
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


@dataclass(eq=False, slots=True)
class _Young:
    """A connection whose client has acknowledged nothing yet. `since`: of the loop's clock."""

    connection: socket.socket
    held: Held
    door: "Door"
    since: float
    early: Early = field(default_factory=Early)


class Gate:
    """For all sockets of one process. Belongs to one event loop; threads of gRPC call `taken`."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._look)
        self._young: dict[int, _Young] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        # Those that gRPC accepts next, by the name at which it does; all at one name are alike to it.
        self._due: dict[bytes, deque[Held]] = {}
        # What servers say first, by how many calls they allow: the rest of the settings is the same for all.
        self._greetings: dict[int, bytes] = {}

    def door(self, address: str, holder: Holder, most: int) -> "Door":
        """Listen at a Unix socket's path, for `most` connections at once. Raises OSError."""
        # An abstract name that nobody can know.
        inner = f"podsvid-{secrets.token_hex(16)}"
        door = Door(self, _listening(address), inner, holder, most)
        self._due[door.address] = deque()
        return door

    async def greeting(self, address: bytes, calls: int) -> bytes:
        """What the server that accepts there and allows so many calls says first on a connection, and a head for a
        frame that has the same as its content. Raises OSError, TimeoutError."""
        if calls not in self._greetings:
            async with asyncio.timeout(LEARNING):
                self._greetings[calls] = await self._learn(address)
        return self._greetings[calls]

    def taken(self, descriptor: int) -> None:
        """gRPC accepted a connection: it is exchanged for one that is due. Raises OSError."""
        with borrowed(descriptor) as each:
            due = self._due.get(each.getsockname())
        if due is None:
            self.connections.taken(descriptor)
            return
        # Where nothing is due it is the one by which the settings are learnt, or its client has given up.
        with suppress(IndexError):
            self.connections.adopted(due.popleft(), descriptor)

    def add(self, door: "Door", connection: socket.socket, held: Held) -> None:
        """One more young connection. Raises OSError."""
        # An urgent byte is left out of what is looked at, or not, and is read by gRPC all the same, or not, whatever
        # follows it: read as any other, both see the same.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        connection.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        self._epoll.register(held.own, _EVENTS)
        young = self._young[held.own] = _Young(connection, held, door, self._loop.time())
        door.young += 1
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(PATIENCE / 2, self._sweep)
        # Most of them have said something by now.
        self._heard(young)

    def forget(self, door: "Door") -> None:
        """Give up whatever came in there and is not gRPC's."""
        for young in [each for each in self._young.values() if each.door is door]:
            self._drop(young)
        due = self._due.pop(door.address)
        with suppress(IndexError):
            while True:
                # One by one: gRPC may take one meanwhile.
                self.connections.give_up(due.popleft())

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _AT_ONCE):
            young = self._young.get(descriptor)
            if young is not None:
                self._heard(young)

    def _heard(self, young: _Young) -> None:
        verdict = Verdict.MORE
        try:
            while verdict is Verdict.MORE:
                data = young.connection.recv(_PEEKED, socket.MSG_PEEK)
                verdict = young.early.feed(data) if data else Verdict.REFUSED
        except BlockingIOError:
            return
        except OSError:
            verdict = Verdict.REFUSED
        if verdict is Verdict.REFUSED:
            self._drop(young)
            return
        self._leave(young)
        young.door.passed(young.held)
        self._hand(young.door.address, young.held)

    def _hand(self, address: bytes, held: Held) -> None:
        """Have gRPC take it."""
        due = self._due[address]
        due.append(held)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as called:
                called.connect(address)
        except OSError:
            # One is too many: this one, unless gRPC took it when it accepted another.
            with suppress(IndexError):
                self.connections.give_up(due.pop())

    def _leave(self, young: _Young) -> None:
        self._epoll.unregister(young.held.own)
        del self._young[young.held.own]
        young.connection.detach()
        young.door.young -= 1

    def _drop(self, young: _Young) -> None:
        self._leave(young)
        self.connections.give_up(young.held)

    def _sweep(self) -> None:
        self._sweeping = None
        late = self._loop.time() - PATIENCE
        for young in [each for each in self._young.values() if each.since <= late]:
            self._drop(young)
        if self._young:
            self._sweeping = self._loop.call_later(PATIENCE / 10, self._sweep)

    async def _learn(self, address: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as called:
            called.connect(address)
            said = b""
            while len(said) < 9 or len(said) < 9 + int.from_bytes(said[:3], "big"):
                more = await self._loop.sock_recv(called, 1024)
                if not more:
                    raise ConnectionResetError(errno.ECONNRESET, "gRPC says nothing")
                said += more
        length = 9 + int.from_bytes(said[:3], "big")
        if said[3:9] != bytes([_SETTINGS, 0, 0, 0, 0, 0]):
            raise OSError(errno.EPROTO, "gRPC begins with something else than its settings")
        return said[:length] + length.to_bytes(3, "big") + bytes([IGNORED, 0, 0, 0, 0, 0])


class Door:
    """One pod's socket, which listens; its connections go through the gate. gRPC is to accept at the abstract name
    `inner` before it is opened."""

    def __init__(self, gate: Gate, listening: socket.socket, inner: str, holder: Holder, most: int) -> None:
        self.inner = inner
        self.address = b"\0" + inner.encode("ascii")
        # Connections that are at the gate.
        self.young = 0
        self._gate = gate
        self._listening = listening
        self._path: str = listening.getsockname()
        self._holder = holder
        self._most = most
        self._greeting = b""
        # Those that gRPC has, as far as is known.
        self._passed: list[Held] = []
        self._loop = asyncio.get_running_loop()
        self._resting: asyncio.TimerHandle | None = None

    async def open(self, calls: int) -> None:
        """Take connections from now on, for a server that allows so many calls. Raises OSError, TimeoutError."""
        self._greeting = await self._gate.greeting(self.address, calls)
        self._begin()

    def close(self) -> None:
        """No more, and none that gRPC does not have."""
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        _remove(self._path)
        self._gate.forget(self)

    def passed(self, held: Held) -> None:
        """One that was young is gRPC's."""
        self._passed.append(held)

    def _begin(self) -> None:
        self._resting = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:
                self._rest(AGAIN)
                return
            had_room = self._take(connection)
            self._gate.connections.tidy()
            if not had_room:
                self._rest(FULL)
                return

    def _rest(self, seconds: float) -> None:
        """Whoever connects waits meanwhile."""
        self._loop.remove_reader(self._listening.fileno())
        self._resting = self._loop.call_later(seconds, self._begin)

    def _has_room(self) -> bool:
        if self.young + len(self._passed) >= self._most:
            # A look at each: only where there seem to be too many.
            self._passed = [each for each in self._passed if each.is_open()]
        return self.young + len(self._passed) < self._most

    def _take(self, connection: socket.socket) -> bool:
        """Whether there was room for it."""
        held = None
        try:
            connection.setblocking(False)
            if self._has_room():
                held = self._gate.connections.young(connection, self._holder)
            if held is not None:
                connection.send(self._greeting)
                self._gate.add(self, connection, held)
                return True
        except OSError:
            if held is not None:
                connection.detach()
                self._gate.connections.give_up(held)
        connection.close()
        return held is not None


def _listening(address: str) -> socket.socket:
    """A Unix socket that listens at a path, in the place of one that was left there. Raises OSError."""
    _remove(address)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove(path: str) -> None:
    """A socket's name, if there is one."""
    with suppress(OSError, ValueError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
