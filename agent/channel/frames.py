"""Frames on a socket pair: four bytes of length, then a message. Bounded: what is longer is refused unread, and of what
waits to be sent one message at a time is bytes, or as many as are sent in one go."""

import array
import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias

import msgspec

from runtime.frames import LENGTH, BadFrame, Frames, Message

_CHUNK = 128 * 1024
# Messages of one read that are handled before others have their turn.
_AT_ONCE = 50
# Bytes that are sent before others have their turn.
_TURN = 1024 * 1024
# Bytes after which no more of several messages are sent in one go: some twenty snapshots, and less than a socket takes.
_GO = 64 * 1024
# Descriptors that may come with what is read at one go.
_DESCRIPTORS = 64
# In the place of one that the kernel had to drop.
_LOST = -1
_SPACE = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)


@dataclass(frozen=True, slots=True)
class One:
    """One of several messages that go at once: what makes it, and who is told why it could not be written. The others
    go without it."""

    make: Callable[[], msgspec.Struct]
    failed: Callable[[Exception], None]


# A message, or what makes it when its turn has come: nothing is kept of it before, and it is the newest then. Of
# several as many are made as are sent in one go.
Sent: TypeAlias = msgspec.Struct | Callable[[], msgspec.Struct | Iterator[One]]


@dataclass(slots=True)
class _Piece:
    """A message to be sent, with a descriptor of its own to go with it. `rest`: its bytes that are left, once there are
    any: the first one's only."""

    message: Sent
    rest: memoryview | None
    descriptor: int | None
    sent: asyncio.Future[None]

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def end(self, error: Exception | None) -> None:
        if self.sent.done():
            return  # the sender does not wait any more
        if error is None:
            self.sent.set_result(None)
        else:
            self.sent.set_exception(error)


class Wire(Generic[Message]):
    """One end of the channel, which owns `end`. What is `received` is what `decoder` takes. Belongs to one event loop.

    Descriptors that come are kept where `descriptors` says so, first come first; else the kernel drops them.
    """

    def __init__(
        self,
        end: socket.socket,
        decoder: msgspec.msgpack.Decoder[Message],
        most: int,
        *,
        descriptors: bool = False,
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._frames: Frames[Message] = Frames(decoder, most)
        self._encoder = msgspec.msgpack.Encoder()
        self._takes = descriptors
        self._came: deque[int] = deque()
        # Of `end`, while somebody waits until it can be read.
        self._watched: int | None = None
        self._waiting: deque[_Piece] = deque()
        # Bytes that the kernel has taken so far.
        self.taken = 0

    @property
    def held(self) -> int:
        """Bytes that wait."""
        first = self._waiting[0].rest if self._waiting else None
        return len(first) if first is not None else 0

    async def send(self, message: Sent, descriptor: int | None = None) -> None:
        """Send it, after those before it; returns when the kernel has it. Raises OSError.

        It is sent whole, whether the caller waits for that or is cancelled.
        """
        waiting = self.post(message, descriptor)
        if waiting is not None:
            await waiting

    def post(self, message: Sent, descriptor: int | None = None) -> "asyncio.Future[None] | None":
        """As `send`, for who waits otherwise: until this is done, or not at all where it is None. Raises OSError."""
        rest: memoryview | None = None
        if not self._waiting:
            rest, descriptor = self._write(self._encoded(message), descriptor)
            if not rest:
                return None
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()
        kept = None if descriptor is None else os.dup(descriptor)
        self._waiting.append(_Piece(message, rest, kept, sent))
        if len(self._waiting) == 1:
            loop.add_writer(self._end, self._flush)
        return sent

    async def received(self) -> AsyncGenerator[Message, None]:
        """Each message that comes, until the other end is closed. Raises BadFrame, OSError."""
        while True:
            try:
                data = self._read()
            except BlockingIOError:
                await self._readable()
                continue
            if not data:
                return
            for number, message in enumerate(self._frames.feed(data), 1):
                yield message
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            # Whatever the other end sends, others have their turn.
            await asyncio.sleep(0)

    def descriptor(self) -> int:
        """The oldest descriptor that came; the caller's to close. Raises OSError where this process could have no more,
        BadFrame when none was sent."""
        if not self._came:
            raise BadFrame("a descriptor is missing")
        found = self._came.popleft()
        if found == _LOST:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return found

    def close(self) -> None:
        """Close this end, and what came and was not taken. Whoever still sends is told."""
        self._give_up(ConnectionResetError("the channel is closed"))
        self._unwatch()
        self._end.close()
        while self._came:
            if (each := self._came.popleft()) != _LOST:
                os.close(each)

    def _encoded(self, message: Sent) -> memoryview:
        made = message if isinstance(message, msgspec.Struct) else message()
        # In one piece: a large one is not copied for the sake of its length.
        frames = bytearray()
        if isinstance(made, msgspec.Struct):
            self._add(frames, made)
            return memoryview(frames)
        for each in made:
            before = len(frames)
            try:
                self._add(frames, each.make())
            except Exception as error:
                del frames[before:]
                each.failed(error)
            if len(frames) >= _GO:
                break
        return memoryview(frames)

    def _add(self, frames: bytearray, message: msgspec.Struct) -> None:
        begins = len(frames) + LENGTH
        frames += bytes(LENGTH)
        self._encoder.encode_into(message, frames, begins)
        frames[begins - LENGTH : begins] = (len(frames) - begins).to_bytes(LENGTH, "big")

    def _write(self, rest: memoryview, descriptor: int | None) -> tuple[memoryview, int | None]:
        """What could not be written now of both. Raises OSError."""
        try:
            while rest:
                if descriptor is None:
                    sent = self._end.send(rest)
                else:
                    sent = socket.send_fds(self._end, [rest], [descriptor])
                    descriptor = None
                self.taken += sent
                rest = rest[sent:]
        except BlockingIOError:
            pass
        return rest, descriptor

    def _flush(self) -> None:
        turn = self.taken + _TURN
        try:
            while self._waiting:
                if self.taken >= turn:
                    return
                piece = self._waiting[0]
                try:
                    rest = self._encoded(piece.message) if piece.rest is None else piece.rest
                except Exception as error:
                    # Nothing of it was sent: it is its sender's affair, and no other's.
                    self._waiting.popleft()
                    piece.close()
                    piece.end(error)
                    continue
                piece.rest, left = self._write(rest, piece.descriptor)
                if left is None:
                    piece.close()
                if piece.rest:
                    return
                self._waiting.popleft()
                piece.end(None)
        except OSError as error:
            self._give_up(error)
        else:
            asyncio.get_running_loop().remove_writer(self._end)

    def _give_up(self, error: OSError) -> None:
        if self._waiting:
            asyncio.get_running_loop().remove_writer(self._end)
        while self._waiting:
            piece = self._waiting.popleft()
            piece.close()
            piece.end(error)

    def _read(self) -> bytes:
        if not self._takes:
            return self._end.recv(_CHUNK)
        data, ancillary, flags, _ = self._end.recvmsg(_CHUNK, _SPACE, socket.MSG_CMSG_CLOEXEC)
        if flags & socket.MSG_CTRUNC and not ancillary:
            # The kernel hands over what came with one message at a time: it is this one's.
            self._came.append(_LOST)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                each = array.array("i")
                each.frombytes(content[: len(content) - len(content) % each.itemsize])
                self._came.extend(each)
        return data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        able: asyncio.Future[None] = loop.create_future()
        # By its number: for what it does not know yet the loop makes a text of a socket, which asks the kernel four
        # times.
        self._watched = self._end.fileno()
        loop.add_reader(self._watched, lambda: None if able.done() else able.set_result(None))
        try:
            await able
        finally:
            self._unwatch()

    def _unwatch(self) -> None:
        """While the number is this end's: whoever has it after a close keeps what it waits for."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None
