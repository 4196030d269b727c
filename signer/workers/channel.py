"""One end of the channel between the signer and a worker."""

import asyncio
from collections.abc import Callable
from typing import Generic, cast

import msgspec

from runtime.frames import LENGTH, BadFrame, Frames, Message

# Bytes that wait to be sent before whoever has more waits, and of small ones that do not wait while the other end takes
# none: no more of them are kept, as nothing else would end their growing.
HIGH = 1024 * 1024
MOST = 4 * HIGH


class Channel(asyncio.Protocol, Generic[Message]):
    """Says each message that comes to `heard`, and once to `ended` why nothing comes any more; empty where it closed.

    What is sent in one turn of the loop goes in one write. `high`: bytes that wait before whoever has more waits.
    """

    def __init__(
        self,
        frames: Frames[Message],
        heard: Callable[[Message], None],
        ended: Callable[[str], None],
        high: int = HIGH,
    ) -> None:
        self._frames = frames
        self._high = high
        self._resting: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._heard = heard
        self._ended = ended
        self._encoder = msgspec.msgpack.Encoder()
        self._transport: asyncio.Transport | None = None
        self._out = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._turn = asyncio.Lock()
        self._why = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._high)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for each in self._frames.feed(data):
                self._heard(each)
        except BadFrame as error:
            self._why = f"it sent {error}"
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._room.set()
        if self._resting is not None:
            self._resting.cancel()
        self._ended(self._why)

    def post(self, message: msgspec.Struct) -> None:
        """Send it, whatever waits: for what is small. Nothing where the other end is gone; where it takes nothing it is
        given up."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        begin = len(self._out)
        self._out += bytes(LENGTH)
        self._out += self._encoder.encode(message)
        self._out[begin : begin + LENGTH] = (len(self._out) - begin - LENGTH).to_bytes(LENGTH, "big")
        if not self._room.is_set() and len(self._out) > MOST:
            self._why = self._why or "it takes nothing of what it is told"
            self.close()
        elif len(self._out) > HIGH:
            self._flush()

    async def send(self, message: msgspec.Struct) -> None:
        """The same, once there is room for it: one after another, as each may be large."""
        if self._room.is_set() and not self._turn.locked():
            self.post(message)
            return
        async with self._turn:
            await self.room()
            self.post(message)

    async def room(self) -> None:
        """Wait until something can be sent."""
        # What others sent meanwhile may have filled it again.
        while not self._room.is_set():
            await self._room.wait()

    def rest(self, seconds: float) -> None:
        """Read nothing for so long from now."""
        loop = asyncio.get_running_loop()
        self._until = loop.time() + seconds
        if self._transport is None or self._transport.is_closing() or self._resting is not None:
            return
        self._transport.pause_reading()
        self._resting = loop.call_at(self._until, self._go_on)

    def _go_on(self) -> None:
        loop, self._resting = asyncio.get_running_loop(), None
        if loop.time() < self._until:
            # It was said again meanwhile.
            self._resting = loop.call_at(self._until, self._go_on)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Nothing more is heard. May be repeated."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._transport is None or self._transport.is_closing():
            self._out.clear()
        elif self._out and self._room.is_set():
            out, self._out = self._out, bytearray()
            self._transport.write(bytes(out))
