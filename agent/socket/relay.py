"""The relay before gRPC: a pod's connections are accepted here, and their bytes copied to gRPC and back.

gRPC holds a client to its limits from the acknowledgement of its settings on, and keeps whatever headers come before:
16 MB for each stream. Until then what the client says is read for what it would become (`early`) before gRPC gets it;
afterwards it is only copied. What was read is what gRPC gets, byte for byte.

gRPC accepts at an abstract name that nobody can know, in a network where nobody else is.
"""

import asyncio
import secrets
import select
import socket
from contextlib import suppress
from typing import Final

from agent.socket import refusals
from agent.socket.closing import WAITING, brings_descriptors, close_listener
from agent.socket.connections import SMALLEST, Connections, Held, Holder
from agent.socket.early import Budget, Early, Verdict
from agent.socket.listener import connected, listening_at, remove
from agent.socket.narrow import narrow

# Seconds until the acknowledgement; and until what a socket has said last is read, when it is closed.
PATIENCE: Final = 10.0
# Seconds until connections are accepted again where that failed, as there were no descriptors; and where there were as
# many as may be: who makes them without end waits, and nobody is kept busy by refusing them.
AGAIN, FULL = 0.2, 0.02
# Connections whose pods do not read what gRPC says, of which it may still have 213 KB in the kernel for each; and the
# seconds in which it may.
WIDE, NARROWING = 64, 0.2
# Bytes that are read at once, and may have to wait here until the other end takes them: about what it takes at once.
_CHUNK = 4 * 1024
# Connections that one turn of the event loop accepts from a pod's socket, and how many it serves: others have theirs
# between.
_ACCEPTED, _SERVED = 4, 16
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class _End:
    """One of a connection's two. `pending`: what it is to be sent as soon as it takes it, while the other end is not
    read; `watched`: the events that are waited for."""

    __slots__ = ("descriptor", "over", "pair", "pending", "socket", "watched")

    def __init__(self, connection: socket.socket, pair: "_Pair") -> None:
        self.socket = connection
        self.descriptor = connection.fileno()
        self.pair = pair
        self.pending = b""
        self.watched = 0
        # Whether nothing more comes from there.
        self.over = False


class _Pair:
    """A pod's connection, and the one to gRPC. `early`: until the settings are acknowledged; `cost`: as it was charged;
    `due`: when it is to be over or acknowledged; `is_narrow`: what gRPC has on its way is bounded."""

    __slots__ = ("cost", "door", "due", "early", "grpc", "held", "is_narrow", "pod")

    def __init__(self, door: "Door", held: Held, inner: socket.socket, due: float) -> None:
        self.door = door
        self.held = held
        self.early: Early | None = Early()
        self.cost = 0
        self.due = due
        self.is_narrow = False
        self.pod = _End(held.connection, self)
        self.grpc = _End(inner, self)


class Relay:
    """For all sockets of one process. Belongs to one event loop."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._look)
        self._ends: dict[int, _End] = {}
        self._doors: dict[int, Door] = {}
        self._buffer = bytearray(_CHUNK)
        self._view = memoryview(self._buffer)
        self._budget = Budget()
        # Those with a time that they may not last longer than, the one that began first first.
        self._timed: dict[_Pair, None] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._wide: set[_Pair] = set()
        self._narrowing: asyncio.TimerHandle | None = None

    def door(self, address: str, holder: Holder, most: int) -> "Door":
        """Listen at a Unix socket's path, for `most` connections at once. Raises OSError."""
        listening, is_guarded = listening_at(address)
        return Door(self, listening, holder, most, is_guarded=is_guarded)

    def listen(self, descriptor: int, door: "Door", *, on: bool) -> None:
        """Whether somebody who connects to the door is noticed."""
        if on:
            self._doors[descriptor] = door
            self._epoll.register(descriptor, _IN)
        elif self._doors.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def begin(self, door: "Door", connection: socket.socket, holder: Holder) -> bool:
        """One more connection; whether there was room for it. It is closed where not. Raises OSError."""
        held = self.connections.enter(connection, holder)
        if held is None:
            return False
        try:
            # An urgent byte is one like the others: what is waited for can be read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            connection.setblocking(False)
            inner = connected(door.address)
        except OSError:
            self.connections.leave(held)
            raise
        pair = _Pair(door, held, inner, self._loop.time() + PATIENCE)
        door.pairs[pair] = None
        try:
            for end in (pair.pod, pair.grpc):
                self._ends[end.descriptor] = end
                self._watch(end, _IN)
        except OSError:
            self.drop(pair)
            raise
        self._time(pair)
        # Most have said something by now.
        self._heard(pair.pod)
        return True

    def finish(self, pair: _Pair) -> None:
        """gRPC has said its last: the pod may read it, for a while."""
        pair.due = self._loop.time() + PATIENCE
        self._timed.pop(pair, None)
        self._time(pair)

    def drop(self, pair: _Pair, why: str = "") -> None:
        """Close both of its ends. `why`: what it is refused for, if it is."""
        if pair not in pair.door.pairs:
            return
        if why:
            self.connections.refused(why)
        del pair.door.pairs[pair]
        for end in (pair.pod, pair.grpc):
            self._watch(end, 0)
            self._ends.pop(end.descriptor, None)
        self._acknowledged(pair)
        self._timed.pop(pair, None)
        self._wide.discard(pair)
        pair.grpc.socket.close()
        self.connections.leave(pair.held)

    def _look(self) -> None:
        for descriptor, events in self._epoll.poll(0, _SERVED):
            end = self._ends.get(descriptor)
            if end is None:
                door = self._doors.get(descriptor)
                if door is not None:
                    door.accept()
                continue
            if events & (_OUT | _GONE) and end.pending:
                # Also when its peer has gone: sending says so.
                self._flush(end)
            if events & ~_OUT and end.watched & _IN:
                self._heard(end)

    def _heard(self, end: _End) -> None:
        pair = end.pair
        most = _CHUNK
        try:
            if end is pair.pod and not pair.door.is_guarded:
                most, brings = brings_descriptors(end.socket, self._buffer)
                if brings:
                    self.drop(pair, refusals.DESCRIPTORS)
                    return
            # No more than was looked at. What its sender has changed since then is changed here, too.
            count = end.socket.recv_into(self._buffer, most) if most else 0
        except BlockingIOError:
            return
        except OSError:
            self.drop(pair)
            return
        if not count:
            self._ended(end)
            return
        data = self._view[:count]
        if end is pair.grpc:
            self._pass(pair.pod, data)
        elif pair.early is None:
            self._pass(pair.grpc, data)
        else:
            self._heard_early(pair, pair.early, bytes(data))

    def _heard_early(self, pair: _Pair, early: Early, data: bytes) -> None:
        why_not = self._why_not(pair, early, data)
        if why_not:
            self.drop(pair, why_not)
        elif early.clear:
            self._pass(pair.grpc, memoryview(early.clear))

    def _why_not(self, pair: _Pair, early: Early, data: bytes) -> str:
        verdict = early.feed(data)
        if verdict is Verdict.ACKNOWLEDGED:
            self._acknowledged(pair)
            self._timed.pop(pair, None)
        if verdict is not Verdict.MORE:
            return "" if verdict is Verdict.ACKNOWLEDGED else refusals.FIRST
        before, pair.cost = pair.cost, early.cost
        return "" if self._budget.charge(pair.held.holder.pod, before, pair.cost) else refusals.FIRST_OF_ALL

    def _acknowledged(self, pair: _Pair) -> None:
        """It costs nothing early any more."""
        pair.early = None
        self._budget.charge(pair.held.holder.pod, pair.cost, 0)
        pair.cost = 0

    def _pass(self, to: _End, data: memoryview) -> None:
        try:
            sent = to.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._left(to)
            return
        if sent < len(data):
            to.pending = bytes(data[sent:])
            other = self._other(to)
            self._watch(to, to.watched | _OUT)
            self._watch(other, other.watched & ~_IN)
            if to is to.pair.pod and not to.pair.is_narrow:
                self._widen(to.pair)

    def _flush(self, end: _End) -> None:
        try:
            sent = end.socket.send(end.pending)
        except BlockingIOError:
            return
        except OSError:
            self._left(end)
            return
        end.pending = end.pending[sent:]
        if end.pending:
            return
        other = self._other(end)
        self._watch(end, end.watched & ~_OUT)
        if not other.over:
            self._watch(other, other.watched | _IN)
        elif other is end.pair.grpc:
            self.drop(end.pair)

    def _left(self, end: _End) -> None:
        """It takes nothing any more. What gRPC said before, why it went say, the pod gets still, whatever that says."""
        pair = end.pair
        if end is pair.pod:
            self.drop(pair)
            return
        end.pending = b""
        self._watch(end, end.watched & ~_OUT)
        self._watch(pair.pod, pair.pod.watched & ~_IN)
        self.finish(pair)

    def _ended(self, end: _End) -> None:
        """Nothing more comes from there."""
        pair = end.pair
        end.over = True
        if end is pair.grpc and not pair.pod.pending:
            self.drop(pair)
            return
        self._watch(end, end.watched & ~_IN)
        if end is pair.pod:
            with suppress(OSError):
                pair.grpc.socket.shutdown(socket.SHUT_WR)

    def _other(self, end: _End) -> _End:
        return end.pair.grpc if end is end.pair.pod else end.pair.pod

    def _watch(self, end: _End, events: int) -> None:
        """An end of which nothing is waited for is not watched at all: its hanging up would be said without end."""
        before = end.watched
        if before and events:
            if before != events:
                self._epoll.modify(end.descriptor, events)
        elif events:
            self._epoll.register(end.descriptor, events)
        elif before:
            self._epoll.unregister(end.descriptor)
        end.watched = events

    def _time(self, pair: _Pair) -> None:
        self._timed[pair] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(PATIENCE, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._loop.time()
        while self._timed:
            pair = next(iter(self._timed))
            if pair.due > now:
                self._sweeping = self._loop.call_at(pair.due, self._sweep)
                return
            del self._timed[pair]
            self.drop(pair, refusals.LATE if pair.early is not None else "")

    def _widen(self, pair: _Pair) -> None:
        """A pod does not read, and gRPC may write on."""
        self._wide.add(pair)
        if len(self._wide) >= WIDE:
            self._narrow()
        elif self._narrowing is None:
            self._narrowing = self._loop.call_later(NARROWING, self._narrow)

    def _narrow(self) -> None:
        if self._narrowing is not None:
            self._narrowing.cancel()
            self._narrowing = None
        narrow({pair.door.address for pair in self._wide}, self._ends, SMALLEST)
        for pair in self._wide:
            pair.is_narrow = True
        self._wide.clear()


class Door:
    """One pod's socket, which listens. gRPC is to accept at the abstract name `inner` before it is opened."""

    def __init__(self, relay: Relay, listening: socket.socket, holder: Holder, most: int, *, is_guarded: bool) -> None:
        self.inner = f"podsvid-{secrets.token_hex(16)}"
        self.address = b"\0" + self.inner.encode("ascii")
        self.pairs: dict[_Pair, None] = {}
        # Whether no descriptors can be sent along.
        self.is_guarded = is_guarded
        self._relay = relay
        self._listening = listening
        self._path: str = listening.getsockname()
        self._holder = holder
        self._most = most
        self._resting: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Take connections from now on."""
        self._resting = None
        self._relay.listen(self._listening.fileno(), self, on=True)

    def shut(self) -> None:
        """Take no more."""
        if self._resting is not None:
            self._resting.cancel()
        self._relay.listen(self._listening.fileno(), self, on=False)
        close_listener(self._listening, self._relay.connections.closers)
        remove(self._path)

    def end(self) -> None:
        """After `shut`, when gRPC has said its last on all of them."""
        for pair in list(self.pairs):
            self._relay.finish(pair)

    def accept(self) -> None:
        """Somebody connects."""
        for _ in range(_ACCEPTED):
            if self._would_be_kept():
                self._rest(FULL)
                return
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:
                self._rest(AGAIN)
                return
            if not self._take(connection):
                self._rest(FULL)
                return
            self._relay.connections.tidy()

    def _would_be_kept(self) -> bool:
        """Whether the next one would be refused, and could then wait for a thread, as too many do: not accepted it has
        none of this process's descriptors."""
        books = self._relay.connections
        full = len(self.pairs) >= self._most or books.is_full(self._holder.pod)
        return full and books.closers.waiting >= WAITING

    def _take(self, connection: socket.socket) -> bool:
        """Whether there was room for it."""
        if len(self.pairs) >= self._most:
            self._holder.taken += 1
            self._relay.connections.refuse(connection, refusals.OF_SOCKET)
            return False
        try:
            return self._relay.begin(self, connection, self._holder)
        except OSError:
            return False

    def _rest(self, seconds: float) -> None:
        """Whoever connects waits meanwhile."""
        self._relay.connections.tidy()
        self._relay.listen(self._listening.fileno(), self, on=False)
        self._resting = self._loop.call_later(seconds, self.open)
