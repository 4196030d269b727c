"""Frames of a channel between two processes: four bytes of length, then a message in msgpack. The other end may be
somebody else's by now: what is longer than it may be is refused unread."""

from typing import Generic, TypeVar

import msgspec

LENGTH = 4
Message = TypeVar("Message")


class BadFrame(Exception):
    """What came is no message, too long, or not the other end's to say. Quotes nothing of it."""


class Frames(Generic[Message]):
    """Puts messages together from bytes. A message of more than `most` bytes, or of another kind, is refused."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[Message]", most: int) -> None:
        self._decoder = decoder
        self._most = most
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises BadFrame, after which nothing more may be fed."""
        self._rest += data
        found = []
        at = 0
        while len(self._rest) - at >= LENGTH:
            length = int.from_bytes(self._rest[at : at + LENGTH], "big")
            if length > self._most:
                raise BadFrame(f"a frame of {length} bytes, {self._most} are possible")
            end = at + LENGTH + length
            if len(self._rest) < end:
                break
            try:
                found.append(self._decoder.decode(self._rest[at + LENGTH : end]))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError) as error:
                # Its text could quote what came.
                raise BadFrame(f"a frame that is no message ({type(error).__name__})") from None
            at = end
        del self._rest[:at]
        return found
