"""The port itself: takes connections, counts and limits what comes in on them, and hands the bytes to grpc.

grpc takes every connection that comes, and holds a client to limits only once it has acknowledged them. So its servers
listen on Unix sockets, and each connection is passed through here: whom `Admission` refuses is closed before TLS, and
what is sent is limited before grpc sees it. What passes is TLS; it ends in grpc.
"""

import asyncio
import logging
import select
import socket
import time
from contextlib import suppress
from pathlib import Path

from runtime.bucket import Bucket
from runtime.listening import bound, reset
from runtime.seldom import Seldom
from signer.front.admission import Admission, Entry
from signer.front.aside import Aside
from signer.front.budget import (
    AGENT_READ,
    GREETING,
    GREETING_READS,
    GREETING_READS_A_SECOND,
    SETTINGS_SECONDS,
    SOCKET_BUFFER,
    YOUNG_PORTION,
)
from signer.front.hello import Hello
from signer.front.spread import Spread
from signer.front.sweeping import Sweeping
from signer.front.way import CHUNK, Way
from signer.front.young import Young
from signer.model import Sender, Standing

_log = logging.getLogger("podsvid.door")
BACKLOG = 1024
# Taken at one go, so that the calls of those who are in have their turn.
ACCEPTS = 16
# Seconds.
PAUSE = 0.1
COMPLAINT_SECONDS = 10.0
TURN = 0.02
# How grpc calls a client on a Unix socket whose own name is an abstract one.
_PEER = "unix-abstract:"


class Door:
    """Listens and passes on to `target`, the newest of grpc's Unix sockets.

    `rate` and `burst`: bytes that one agent's connection brings in a second, and at once; `greeting`: before it is
    known. Belongs to one event loop.
    """

    def __init__(self, admission: Admission, rate: int, burst: int, greeting: int = GREETING) -> None:
        self._admission = admission
        self._rate = rate
        self._burst = burst
        self._passages: dict[str, Passage] = {}
        self._waiting: set[Passage] = set()
        self._turn: asyncio.TimerHandle | None = None
        self._complaint = Seldom(COMPLAINT_SECONDS, time.monotonic)
        self._listening: list[socket.socket] = []
        self._sweeping: asyncio.Task[None] | None = None
        self.target: Path | None = None
        self.spread = Spread()
        self.greeting = greeting
        self.young = Young()
        self.aside = Aside(time.monotonic)
        self._sweep = Sweeping(admission, self.aside, self._accept_aside)

    def bind(self, host: str, port: int) -> None:
        """Take the address, at which nobody is let in yet. Raises OSError."""
        self._listening += bound((host, port), (SOCKET_BUFFER, SOCKET_BUFFER))

    def open(self) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.aside.listen(self._listening, BACKLOG)
        for each in self._listening:
            loop.add_reader(each, self._accept, each)
        self._sweeping = loop.create_task(self._sweep.run(), name="door")

    def close(self) -> None:
        """Take no more; those that are in stay until they end, or grpc ends them."""
        loop = asyncio.get_running_loop()
        for each in self._listening:
            loop.remove_reader(each)
            each.close()
        self._listening.clear()
        self.aside.close()

    async def end(self) -> None:
        """Close everything that is left."""
        self.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeping
        for passage in [*self._passages.values(), *self._waiting]:
            passage.close()
        if self._turn is not None:
            self._turn.cancel()

    def proven(self, peer: str, node: str) -> bool:
        """The agent of `node` has proven itself on the connection that grpc calls `peer`; False: there is no room."""
        passage = self._passages.get(peer)
        if passage is None or passage.entry.node:
            return True
        if not self._admission.proven(passage.entry, node):
            return False
        passage.trust(self._rate, self._burst)
        return True

    def strike(self, peer: str) -> None:
        """A call on that connection had no good token."""
        passage = self._passages.get(peer)
        if passage is not None:
            self._admission.strike(passage.entry)

    def sender(self, peer: str) -> Sender:
        """Who is at the other end of that connection: a node's agent, or only an address."""
        passage = self._passages.get(peer)
        entry = None if passage is None else passage.entry
        if entry is not None and entry.node:
            return Sender(Standing.AGENT, entry.node)
        return Sender(Standing.STRANGER, "" if entry is None else entry.address)

    def used(self, peer: str, size: int) -> None:
        """So many bytes that came on that connection were a mint that is answered: nothing of them is held any more."""
        passage = self._passages.get(peer)
        if passage is not None:
            passage.used(size)

    def rest(self, peer: str, seconds: float) -> None:
        """Read nothing of that connection for so long."""
        passage = self._passages.get(peer)
        if passage is not None:
            passage.rest(seconds)

    def left(self, passage: "Passage") -> None:
        """It is closed."""
        self._passages.pop(passage.peer, None)
        self.spread.left(passage.peer)
        self._waiting.discard(passage)
        self._admission.left(passage.entry)
        self._next()

    def spoke(self, passage: "Passage") -> None:
        """It said its first words."""
        self._admission.spoke(passage.entry)
        self._next()

    def passed(self, passage: "Passage", *, whole: bool) -> None:
        """Something of its first words has gone to grpc; or all of them."""
        self._admission.passed(passage.entry, whole=whole)

    def answered(self, passage: "Passage") -> None:
        """grpc has an answer to what it said."""
        self._admission.answered(passage.entry)
        self._next()

    def begin(self, passage: "Passage") -> None:
        """Pass it on; or end it."""
        self._waiting.discard(passage)
        try:
            passage.open(inside := self.spread.choose(self.target))
        except OSError as error:
            if self._complaint.due:
                _log.error("a connection cannot be passed on", extra={"error": str(error)})
            passage.close()
            return
        self._passages[passage.peer] = passage
        self.spread.entered(passage.peer, inside)

    def _next(self) -> None:
        """Where somebody waits for a place, look again soon."""
        if self._turn is None and self._admission.ready:
            self._turn = asyncio.get_running_loop().call_later(TURN, self._give_places)

    def _give_places(self) -> None:
        self._turn = None
        self._admission.go_on()
        self._next()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                outside, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors are left, mostly; the queue waits, and those that are silent go meanwhile.
                if self._complaint.due:
                    _log.error("a connection cannot be taken", extra={"error": str(error)})
                self._rest(listening)
                return
            self._take(outside, str(address[0]))

    def _rest(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(PAUSE, self._again, listening)

    def _again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept_aside(self) -> None:
        """A few of those who come far too often; the others wait, or are dropped."""
        for each in self.aside.sockets:
            with suppress(OSError):
                for _ in range(ACCEPTS):
                    outside, address = each.accept()
                    if not self._take(outside, str(address[0])):
                        self.aside.turned_away(str(address[0]))

    def _take(self, outside: socket.socket, host: str) -> bool:
        self._sweep.comes()
        passage = Passage(self, outside)
        if (entry := self._admission.enter(passage, host)) is None:
            reset(outside)
            return False
        self._sweep.enters()
        passage.entry = entry
        self._waiting.add(passage)
        passage.wait()
        return True


class Passage:
    """One connection: what comes from outside goes in, what comes from inside goes out."""

    entry: Entry

    def __init__(self, door: Door, outside: socket.socket) -> None:
        self._door = door
        self._sockets = [outside]
        self._inwards: Way | None = None
        self._outwards: Way | None = None
        self._hello = Hello()
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        # Bytes; none before it is trusted.
        self._credit: Bucket | None = None
        self._borrowed = 0
        self._growing = False
        self._timers: list[asyncio.TimerHandle] = []
        self.closed = False
        self.peer = ""

    def wait(self) -> None:
        """Until something comes, which is not read."""
        self._sockets[0].setblocking(False)
        self._loop.add_reader(self._sockets[0].fileno(), self._spoken)

    def _spoken(self) -> None:
        outside = self._sockets[0]
        try:
            found = outside.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            found = b""
        if not found:
            self.close()
            return
        self._loop.remove_reader(outside)
        self._door.spoke(self)

    def is_there(self) -> bool:
        """See `Guest`."""
        looking = select.poll()
        looking.register(self._sockets[0], select.POLLRDHUP)
        return not looking.poll(0)

    def begin(self) -> None:
        """See `Guest`."""
        self._door.begin(self)

    def open(self, target: Path) -> None:
        """Connect inwards. Raises OSError."""
        inside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sockets.append(inside)
        outside = self._sockets[0]
        outside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        # The kernel gives it a name, by which grpc's calls tell whose they are.
        inside.bind("")
        # grpc's time to have its limits acknowledged begins now.
        self._since = self._loop.time()
        self.peer = _PEER + inside.getsockname()[1:].decode("ascii")
        inside.connect(str(target))
        reads = Bucket(GREETING_READS_A_SECOND, GREETING_READS, self._since)
        self._inwards = Way(self, outside, inside, self._door.greeting, reads, self._heard)
        self._outwards = Way(self, inside, outside, heard=self._answered)
        self._inwards.begin()
        self._outwards.begin()

    def _heard(self, piece: bytes) -> None:
        self._hello.feed(piece)
        self._door.passed(self, whole=self._hello.whole)
        if self._hello.whole and self._inwards is not None:
            self._inwards.heard = None

    def _answered(self, _: bytes) -> None:
        if self._inwards is not None:
            self._inwards.heard = None
        self._door.answered(self)

    def trust(self, rate: int, burst: int) -> None:
        """From now on `rate` bytes a second may come in, `burst` at once."""
        now = self._loop.time()
        self._credit = Bucket(rate, burst, now)
        if self._inwards is not None:
            self._inwards.reads = Bucket(rate / AGENT_READ, burst / AGENT_READ, now)
        if self._outwards is not None:
            self._outwards.heard = None
        self._again()

    def rest(self, seconds: float) -> None:
        """Bring in nothing for so long."""
        if self._inwards is not None:
            self._inwards.rest(seconds)

    def close(self) -> None:
        """End it. May be repeated."""
        if self.closed:
            return
        self.closed = True
        for each in self._sockets:
            # By its number, as in `wait` and in `Way`.
            self._loop.remove_reader(each.fileno())
            self._loop.remove_writer(each.fileno())
            each.close()
        # What ends with it ends at once, and not when the collector looks for what refers to itself.
        self._inwards = self._outwards = None
        for timer in self._timers:
            timer.cancel()
        self._give_back()
        self._door.left(self)

    def more(self) -> int:
        """Bytes that may come in beyond those that came; 0: not now, and `Way.again` is called in time."""
        if self.closed or self._credit is None:
            return 0
        now = self._loop.time()
        found = min(int(self._credit.left(now)), CHUNK)
        grown = self._since + SETTINGS_SECONDS
        if now < grown and found:
            if not self._growing:
                self._growing = True
                self._timers.append(self._loop.call_at(grown, self._give_back))
            found = self._door.young.borrow(self.entry.node, min(found, YOUNG_PORTION))
            self._borrowed += found
        self._credit.spend(found)
        if not found:
            self._timers[:] = [each for each in self._timers if each.when() > now]
            self._timers.append(self._loop.call_at(now + PAUSE, self._again))
        return found

    def _again(self) -> None:
        if self._inwards is not None:
            self._inwards.again()

    def used(self, size: int) -> None:
        """See `Door.used`."""
        self._give_back(size)
        self._again()

    def _give_back(self, most: int | None = None) -> None:
        given = self._borrowed if most is None else min(most, self._borrowed)
        self._borrowed -= given
        self._door.young.give_back(self.entry.node, given)
