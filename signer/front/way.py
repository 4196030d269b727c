"""One direction of a passage through the port: from one socket to another, as much as may pass."""

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from runtime.bucket import Bucket

# Bytes at one go.
CHUNK = 16 * 1024
# Seconds that one waits who comes in so many pieces that each would cost a turn of the loop: some come together then.
GATHER = 0.05


class Passing(Protocol):
    """The connection that it is a direction of."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        ...

    def more(self) -> int:
        """Bytes that may come beyond those that came; 0: not now, and `Way.again` is called in time."""

    def close(self) -> None:
        """End it. May be repeated."""


class Way:
    """One direction of a passage. `allowance`: bytes that may pass until `Passing.more` is asked; None: all.

    `reads`: how often may be read from `source`; None: at any time. `heard`, as long as it is set, is told what came.

    Sockets are known to the loop by their numbers: one that it does not know it writes down, by four system calls.
    """

    def __init__(
        self,
        passage: Passing,
        source: socket.socket,
        sink: socket.socket,
        allowance: int | None = None,
        reads: Bucket | None = None,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self._passage = passage
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._allowance = allowance
        self.reads = reads
        self.heard = heard
        self._waiting = b""
        self._paused = False
        self._rests_until = 0.0

    def begin(self) -> None:
        self._loop.add_reader(self._source.fileno(), self._readable)

    def again(self) -> None:
        """There may be more to allow."""
        if self._paused:
            self._paused = False
            self._go_on()

    def rest(self, seconds: float) -> None:
        """Nothing is read for so long."""
        self._rests_until = max(self._rests_until, self._loop.time() + seconds)

    def _readable(self) -> None:
        now = self._loop.time()
        wait = self._rests_until - now
        if wait <= 0.0 and self.reads is not None and not self.reads.take(now):
            wait = GATHER
        if wait > 0.0:
            self._loop.remove_reader(self._source.fileno())
            self._loop.call_later(wait, self._gathered)
            return
        self._pass_on()

    def _gathered(self) -> None:
        if not self._passage.closed:
            self._loop.add_reader(self._source.fileno(), self._readable)
            if self._loop.time() >= self._rests_until:
                self._pass_on()

    def _pass_on(self) -> None:
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
        if self.heard is not None:
            self.heard(found)
        try:
            sent = self._sink.send(found)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._passage.close()
            return
        if sent < len(found):
            self._waiting = found[sent:]
            self._loop.remove_reader(self._source.fileno())
            self._loop.add_writer(self._sink.fileno(), self._writable)
        elif left == 0:
            self._allowance = self._passage.more()
            if self._allowance == 0:
                self._loop.remove_reader(self._source.fileno())
                self._paused = True

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
            self._loop.remove_writer(self._sink.fileno())
            self._go_on()

    def _go_on(self) -> None:
        """Read again, if there is something to allow. The reader is not set."""
        if self._allowance == 0:
            self._allowance = self._passage.more()
            if self._allowance == 0:
                self._paused = True
                return
        self._loop.add_reader(self._source.fileno(), self._readable)
