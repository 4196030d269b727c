"""`python -m signer.public.child CHANNEL NAME=FD,FD…`: serves strangers what it is told to, until its channel ends.

It has the listening sockets, the listeners' certificates and what is shown, and nothing else of the signer.
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from email.utils import formatdate

from runtime import listening
from runtime.child import harden
from runtime.crowd import Crowd
from signer.public import tls
from signer.public.answers import Answers
from signer.public.confinement import confine
from signer.public.limits import BACKLOG, BURST, BY_ADDRESS, CONNECTIONS, DEADLINE, LEAVE, RATE
from signer.public.shown import HEAD_BYTES, MAX_FRAME, Pair, Shown, decode, framed
from signer.public.talk import Stage, Talk

# Seconds between two reports, when there is something to say.
REPORTED = 1.0
_BUFFER = 16 * 1024


class _Door:
    """One listener: its crowd, and what it answers by now."""

    def __init__(self, name: str, counts: "Counter[str]") -> None:
        self.name = name
        self.crowd = Crowd["_Connection"](CONNECTIONS, BY_ADDRESS, RATE, BURST)
        self._counts = counts
        self._talk: tuple[ssl.SSLContext, Answers] | None = None

    def show(self, pair: Pair, answers: Answers) -> None:
        """A pair that is none leaves the one before, and other listeners theirs."""
        context = None if self._talk is None else self._talk[0]
        with contextlib.suppress(OSError, ValueError):
            context = tls.context(pair)
        if context is not None:
            self._talk = context, answers

    def talk(self) -> Talk | None:
        """For a new connection; None while there is no certificate."""
        if self._talk is None:
            return None
        context, answers = self._talk
        return Talk(context, answers, lambda: formatdate(usegmt=True))

    def answered(self, status: int) -> None:
        self._counts[f"{self.name} answered {status}"] += 1

    def refused(self, why: str) -> None:
        self._counts[f"{self.name} refused {why}"] += 1


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, door: _Door) -> None:
        self._door = door
        self._buffer = bytearray(_BUFFER)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._talk: Talk | None = None
        self._left = 0
        self.address = ""

    @property
    def stage(self) -> Stage:
        return Stage.ASKING if self._talk is None else self._talk.stage

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        self.address = listening.whose(str(peer[0])) if peer else ""
        loop = asyncio.get_running_loop()
        # Before it takes anybody's place: who comes too often pushes nobody out.
        if not self._door.crowd.may(self.address, loop.time()):
            self.end("rate")
            return
        self._talk = self._door.talk()
        if self._talk is None:
            self.end("certificate")
            return
        self._timer = loop.call_later(DEADLINE, self.end, "deadline")
        self._door.crowd.enter(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        talk, transport = self._talk, self._transport
        if talk is None or transport is None or transport.is_closing():
            return
        if talk.over:
            # Read, so that the answer is not lost to a reset, and thrown away.
            self._left += nbytes
            if self._left > _BUFFER:
                self.end("leave")
            return
        out = talk.receive(bytes(self._buffer[:nbytes]))
        if out:
            transport.write(out)
        if talk.over:
            if talk.refused:
                self._door.refused(talk.refused)
            if talk.answered is not None:
                self._door.answered(talk.answered)
            transport.write_eof()
            if transport.get_write_buffer_size() == 0:
                self._leave_soon()

    def resume_writing(self) -> None:
        if self._talk is not None and self._talk.over:
            self._leave_soon()

    def eof_received(self) -> bool:
        # What is on its way still goes out.
        return self._talk is not None and self._talk.over

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._door.crowd.leave(self)

    def end(self, why: str) -> None:
        """Cut it off, and count why; who only did not take leave after a whole answer harmed nobody."""
        if self._transport is not None and not self._transport.is_closing():
            if why != "leave" or self._transport.get_write_buffer_size():
                self._door.refused(why)
            self._transport.abort()
        self._door.crowd.leave(self)

    def _leave_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LEAVE, self.end, "leave")


class _Child:
    def __init__(self, sockets: dict[str, list[socket.socket]], lacking: Sequence[str]) -> None:
        self._sockets = sockets
        self._lacking = lacking
        self._counts: Counter[str] = Counter()
        self._doors = {name: _Door(name, self._counts) for name in sockets}

    async def run(self, channel: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=channel)
        if self._lacking:
            writer.write(framed(json.dumps({"lacking": list(self._lacking)}).encode()))
        reporting: asyncio.Task[None] | None = None
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    size = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
                    if size > MAX_FRAME:
                        return
                    self._show(decode(await reader.readexactly(size)))
                    writer.write(framed(json.dumps({"shown": True}).encode()))
                    if reporting is None:
                        # Nobody is taken in before there is something to answer.
                        await self._listen()
                        reporting = asyncio.create_task(self._report(writer))
        finally:
            if reporting is not None:
                reporting.cancel()

    def _show(self, shown: Shown) -> None:
        for name, each in shown.items():
            if each.pair is not None:
                self._doors[name].show(each.pair, Answers(each.pages))

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for name, sockets in self._sockets.items():
            door = self._doors[name]
            for each in sockets:
                await loop.create_server(lambda door=door: _Connection(door), sock=each, backlog=BACKLOG)  # type: ignore[misc]

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(REPORTED)
            if self._counts:
                said = dict(self._counts)
                self._counts.clear()
                writer.write(framed(json.dumps({"counts": said}).encode()))
                await writer.drain()


def _sockets(arguments: Iterable[str]) -> dict[str, list[socket.socket]]:
    found = {}
    for each in arguments:
        name, _, numbers = each.partition("=")
        found[name] = [socket.socket(fileno=int(number)) for number in numbers.split(",")]
    return found


def main() -> None:
    """Serve until the other end is gone."""
    channel, *listeners = sys.argv[1:]
    harden()
    # Agents come first.
    with contextlib.suppress(OSError):
        os.nice(10)
    sockets, own = _sockets(listeners), socket.socket(fileno=int(channel))
    lacking = confine()
    asyncio.run(_Child(sockets, lacking).run(own))


if __name__ == "__main__":
    main()
