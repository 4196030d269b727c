"""One direction of a passage through the port: from one socket to another, as much as may pass."""

import asyncio
import socket
from typing import Protocol

# Bytes at one go.
CHUNK = 16 * 1024


class Passing(Protocol):
    """The connection that it is a direction of."""

    def more(self) -> int:
        """Bytes that may come beyond those that came; 0: not now, and `Way.again` is called in time."""

    def close(self) -> None:
        """End it. May be repeated."""


class Way:
    """One direction of a passage. `allowance`: bytes that may pass until `Passing.more` is asked; None: all."""

    def __init__(self, passage: Passing, source: socket.socket, sink: socket.socket, allowance: int | None) -> None:
        self._passage = passage
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._allowance = allowance
        self._waiting = b""
        self._paused = False

    def begin(self) -> None:
        self._loop.add_reader(self._source, self._readable)

    def again(self) -> None:
        """There may be more to allow."""
        if self._paused:
            self._paused = False
            self._go_on()

    def _readable(self) -> None:
        left = self._allowance
        try:
            found = self._source.recv(CHUNK if left is None else min(CHUNK, left))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            found = b""
        if not found:
            self._passage.close()
            return
        if left is not None:
            self._allowance = left = left - len(found)
        try:
            sent = self._sink.send(found)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._passage.close()
            return
        if sent < len(found):
            self._waiting = found[sent:]
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._writable)
        elif left == 0:
            self._loop.remove_reader(self._source)
            self._go_on()

    def _writable(self) -> None:
        try:
            sent = self._sink.send(self._waiting)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._passage.close()
            return
        self._waiting = self._waiting[sent:]
        if not self._waiting:
            self._loop.remove_writer(self._sink)
            self._go_on()

    def _go_on(self) -> None:
        """Read again, if there is something to allow. The reader is not set."""
        if self._allowance == 0:
            self._allowance = self._passage.more()
            if self._allowance == 0:
                self._paused = True
                return
        self._loop.add_reader(self._source, self._readable)
