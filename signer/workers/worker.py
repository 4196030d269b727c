"""One worker, as seen from the signer: its process, its channel, and the calls that came by it."""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from runtime.bucket import Bucket
from runtime.distrusted import begun, put_down
from runtime.frames import BadFrame, Frames
from runtime.stderr import hand_on
from runtime.stopping import end
from runtime.tls import ONLY_TLS13
from signer.front import budget
from signer.workers import messages
from signer.workers.calls import FULL, Methods, RemoteCall
from signer.workers.channel import Channel
from signer.workers.confinement import LACKING

_Said = TypeVar("_Said")
_log = logging.getLogger("podsvid.workers")
# Calls of one worker, and of one of its connections: more than gRPC lets through.
CALLS = budget.TRUST_STREAMS + budget.MINTS + budget.PENDING
CALLS_OF_PEER = 2 * budget.STREAMS
# Calls that begin, a second and at once: beyond them nothing is read of the worker for a moment. One that is taken over
# needs no bytes of a connection for them, which are what bounds them else.
BEGINS, BEGINS_AT_ONCE = 2_000.0, 5_000.0
# Words about calls that are over, or of connections that are not there any more, a second and at once: each call may
# have some, as either end ends it.
STRAYS, STRAYS_AT_ONCE = 5_000.0, 20_000.0
# Seconds that a server may take to end beyond the grace of its calls, where the signer stops.
STOPS = 3.0
# Seconds that it gets to end by itself; between two signs of life; and for one: it may have to wait for a processor.
_END, BEAT, PATIENCE = 1.0, 5.0, 20.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Of each worker: where its sockets may be, bytes of data that it may have, and how it logs."""

    folder: Path
    memory: int
    log_format: str
    log_level: str


class Worker:
    """A process from its start to its end. `belongs`: whether a connection was handed to it. Belongs to one loop."""

    def __init__(
        self, methods: Methods, belongs: Callable[[str], bool], lacks: Callable[[Sequence[str]], None]
    ) -> None:
        self._methods = methods
        self._belongs = belongs
        self._lacks = lacks
        self._calls: dict[int, tuple[RemoteCall, asyncio.Task[None]]] = {}
        self._of_peers: defaultdict[str, set[int]] = defaultdict(set)
        self._newest = 0
        self._serving: dict[int, asyncio.Future[str]] = {}
        # Of each server that was told to end, those that have too.
        self._stopping: dict[int, asyncio.Future[None]] = {}
        self._why = ""
        self._over = asyncio.Event()
        self._alive = asyncio.Event()
        self._pinged = self._lacked = False
        self._begins = Bucket(BEGINS, BEGINS_AT_ONCE, asyncio.get_running_loop().time())
        self._strays = Bucket(STRAYS, STRAYS_AT_ONCE, asyncio.get_running_loop().time())
        frames = Frames(msgspec.msgpack.Decoder(messages.Report), messages.MAX_FRAME)
        self._channel: Channel[messages.Report] = Channel(frames, self.heard, self._ended)
        self.pid: int | None = None

    @property
    def over(self) -> bool:
        """Whether it serves nobody any more, though its process may be there for a moment."""
        return self._over.is_set()

    @property
    def calls(self) -> int:
        """How many are open."""
        return len(self._calls)

    async def run(self, settings: Settings, began: Callable[[], object]) -> str:
        """From start to end; how it ended. Raises OSError."""
        process, ours = await begun(
            "signer.workers.child",
            *(str(settings.folder), str(settings.memory), settings.log_format, settings.log_level),
            variables=_variables(),
        )
        assert process.stderr is not None
        handing_on = asyncio.get_running_loop().create_task(
            hand_on(process.stderr, self._wrote), name="worker's stderr"
        )
        try:
            self.pid = process.pid
            await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=ours)
            began()
            watching = asyncio.get_running_loop().create_task(self.watch(), name="worker's signs of life")
            try:
                await self._over.wait()
            finally:
                await end((watching,))
        finally:
            self._channel.close()
            how = await put_down(process, handing_on, _END)
            await end(task for _, task in self._calls.values())
        return self._why or how

    async def serve(self, order: messages.Serve) -> None:
        """Have it listen. Raises OSError where it cannot, or ends."""
        answer = self._serving[order.server] = asyncio.get_running_loop().create_future()
        try:
            await self._channel.send(order)
            why = await answer
        finally:
            self._serving.pop(order.server, None)
        if why:
            raise OSError(f"it cannot listen: {why}")

    async def stop(self, server: int, grace: float | None, beyond: float = PATIENCE) -> None:
        """Have that server end, and wait until it has, or the worker has: `beyond` its grace it is lost.

        Again for one that ends already: a shorter grace counts.
        """
        if self.over:
            return
        answer = self._stopping.get(server)
        if answer is None:
            answer = self._stopping[server] = asyncio.get_running_loop().create_future()
        elif answer.done():
            # It says so once: whoever asks again would wait until the worker is lost.
            return
        self._channel.post(messages.Stop(server, grace))
        try:
            async with asyncio.timeout((grace or 0.0) + beyond):
                # Another one may wait for it as well.
                await asyncio.shield(answer)
        except TimeoutError:
            self.lose("it does not stop in time")

    def left(self, peer: str) -> None:
        """The door has closed that connection: nobody waits for its calls, whatever the worker says."""
        for number in [*self._of_peers.get(peer, ())]:
            self._leave(peer, number)

    async def watch(self) -> None:
        """Ask for a sign of life now and then, and lose it where none comes."""
        while True:
            await asyncio.sleep(BEAT)
            self._alive.clear()
            self._pinged = True
            self._channel.post(messages.Ping())
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._alive.wait()
            except TimeoutError:
                self.lose("it gives no sign of life")
                return

    def lose(self, why: str) -> None:
        """It is to end."""
        self._why = self._why or why
        self._channel.close()
        self._over.set()

    def heard(self, report: messages.Report) -> None:
        """What it says. Raises BadFrame for what it may not say now."""
        match report:
            case messages.Begun():
                self._begin(report)
            case messages.Said() | messages.Taken() | messages.Left():
                self._follow(report)
            case messages.Serves(server, why):
                self._listens(server, why)
            case messages.Stopped(server):
                self._stopped(server)
            case messages.Pong():
                if not self._pinged:
                    raise BadFrame("a sign of life that nobody asked for")
                self._pinged = False
                self._alive.set()
            case messages.Lacking(what):
                if self._lacked or not all(each in LACKING for each in what):
                    raise BadFrame("that it lacks what there is not")
                self._lacked = True
                self._lacks(what)

    def _begin(self, begun: messages.Begun) -> None:
        if begun.call <= self._newest:
            raise BadFrame("a call's number again")
        self._newest = begun.call
        if not messages.fit(begun.headers):
            raise BadFrame("more headers than there can be")
        self._pace()
        handler = self._methods.get(begun.method)
        if handler is None:
            raise BadFrame("a call of a method that there is not")
        call = RemoteCall(begun, self._channel)
        # Its connection has just ended; or it speaks for another one's, which it may not; or says more than gRPC lets
        # callers say.
        foreign = not self._belongs(begun.peer)
        if foreign or len(self._calls) >= CALLS or len(self._of_peers.get(begun.peer, ())) >= CALLS_OF_PEER:
            self._stray()
            call.refuse(FULL)
            return
        task = asyncio.get_running_loop().create_task(call.handled(handler))
        self._calls[begun.call] = call, task
        self._of_peers[begun.peer].add(begun.call)
        task.add_done_callback(lambda _: self._forget(begun))

    def _pace(self) -> None:
        self._begins.spend()
        now = asyncio.get_running_loop().time()
        if self._begins.left(now) < 0.0:
            self._channel.rest(self._begins.wait(now))

    def _follow(self, report: messages.Said | messages.Taken | messages.Left) -> None:
        found = self._calls.get(report.call)
        if found is None:
            self._stray()
            return
        call, _ = found
        match report:
            case messages.Said(_, message):
                call.said(message)
            case messages.Taken():
                call.taken()
            case messages.Left():
                self._leave(call.peer(), report.call)

    def _leave(self, peer: str, number: int) -> None:
        """A call that was given up makes room for its connection's next at once: to end takes it a turn of the loop."""
        self._calls[number][1].cancel()
        self._make_room(peer, number)

    def _forget(self, begun: messages.Begun) -> None:
        del self._calls[begun.call]
        self._make_room(begun.peer, begun.call)

    def _make_room(self, peer: str, number: int) -> None:
        numbers = self._of_peers.get(peer)
        if numbers is not None:
            numbers.discard(number)
            if not numbers:
                del self._of_peers[peer]

    def _wrote(self, line: str, more: Mapping[str, int]) -> None:
        _log.warning("a worker wrote", extra={"line": line, "pid": self.pid, "said_by": "worker", **more})

    def _stray(self) -> None:
        if not self._strays.take(asyncio.get_running_loop().time()):
            raise BadFrame("too much of calls that are none")

    def _listens(self, server: int, why: str) -> None:
        found = self._serving.pop(server, None)
        if found is None:
            raise BadFrame("an answer to nothing")
        if not found.done():
            found.set_result(why)

    def _stopped(self, server: int) -> None:
        found = self._stopping.get(server)
        if found is None or found.done():
            raise BadFrame("an answer to nothing")
        found.set_result(None)

    def _ended(self, why: str) -> None:
        self._why = self._why or why
        self._over.set()
        for _, task in self._calls.values():
            task.cancel()
        for each in self._serving.values():
            if not each.done():
                each.set_result("it ended")
        for one in self._stopping.values():
            if not one.done():
                one.set_result(None)


def _variables() -> list[tuple[str, str]]:
    """Of the signer's own how many arenas there are, and how much gRPC says. It imports grpc at once: what keeps TLS
    1.2 from being spoken is there before."""
    kept = [(name, os.environ[name]) for name in ("MALLOC_ARENA_MAX", "GRPC_VERBOSITY") if name in os.environ]
    return [ONLY_TLS13, *kept]
