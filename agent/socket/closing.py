"""How a pod's connection is closed, so that it takes the process no time: whatever a pod may have left in it.

A pod can send descriptors along (SCM_RIGHTS), of a TCP connection that lingers for example: whoever closes that last
waits for as long as the pod chose. They are never received here. Who closes a connection in which some wait closes
them, so that is done in threads; from Linux 6.16 on no such thing can be sent (SO_PASSRIGHTS).
"""

import asyncio
import errno
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

# Threads that may be closing something at once. What waits for them keeps its descriptor, and counts as its pod's.
THREADS: Final = 4
# Listeners' connections that were never accepted and wait for a thread; beyond them their listener waits as a whole.
WAITING: Final = 256
_SO_PASSRIGHTS = 83
_CHUNK = 16 * 1024
# More than a sender without privileges can have on its way.
_CHUNKS = 64
_log = logging.getLogger("podsvid.exposed")


def without_descriptors(listening: socket.socket) -> bool:
    """Have the kernel refuse descriptors on what is accepted there; whether it does."""
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        return True
    return False


def brings_descriptors(connection: socket.socket, buffer: bytearray) -> tuple[int, bool]:
    """How many bytes can be read, and whether descriptors come with them. Raises OSError; BlockingIOError: nothing."""
    # Without room for them the kernel says that there are some, and keeps them.
    count, _, flags, _ = connection.recvmsg_into([buffer], 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return count, bool(flags & socket.MSG_CTRUNC)


def emptied(connection: socket.socket) -> bool:
    """End a connection both ways, and take what was left in it; False: something is left, and closing it may last."""
    buffer = bytearray(_CHUNK)
    with suppress(OSError):
        # An urgent byte would be passed over by the look, and descriptors with it, and be closed all the same.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    # Nothing can be sent to it any more, by whoever has its other end.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    for _ in range(_CHUNKS):
        try:
            count, brings = brings_descriptors(connection, buffer)
            if brings:
                return False
            if not count:
                return True
            connection.recv_into(buffer, count)
        except ConnectionError:
            # Its peer went without having read everything: that is said once.
            continue
        except OSError:
            return False
    return False


class Closers:
    """Close what may take long, in threads that nobody waits for. Belongs to one event loop."""

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._busy = 0
        self._loop = asyncio.get_running_loop()
        self._due: deque[tuple[socket.socket, Callable[[], None]]] = deque()
        self._told = False

    @property
    def waiting(self) -> int:
        """How many are not begun with."""
        return len(self._due)

    def close(self, what: socket.socket, closed: Callable[[], None] = lambda: None) -> None:
        """Begin with it when there is a thread; `closed` is called then."""
        self._due.append((what, closed))
        if not self._told:
            self._told = True
            _log.warning(
                "what a pod left in its connection may take long to close: that is done aside, and nobody waits"
            )
        self.go_on()

    def go_on(self) -> None:
        """Begin with what is due."""
        while self._due and self._busy < self._most:
            what, closed = self._due.popleft()
            try:
                threading.Thread(target=self._work, args=(what, closed), name="close", daemon=True).start()
            except RuntimeError:
                # None can be started now: with the next one.
                self._due.appendleft((what, closed))
                return
            self._busy += 1

    def _work(self, what: socket.socket, closed: Callable[[], None]) -> None:
        with suppress(OSError):
            what.close()
        # The loop may have ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._done, closed)

    def _done(self, closed: Callable[[], None]) -> None:
        self._busy -= 1
        closed()
        self.go_on()


def close_listener(listening: socket.socket, closers: Closers) -> None:
    """Close it and whatever waits to be accepted there."""
    with suppress(OSError):
        # Nobody connects any more; who has can still be accepted.
        listening.shutdown(socket.SHUT_RD)
    while closers.waiting < WAITING:
        try:
            connection, _ = listening.accept()
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno == errno.EINVAL:
                listening.close()
            else:
                closers.close(listening)
            return
        if emptied(connection):
            connection.close()
        else:
            closers.close(connection)
    closers.close(listening)
