"""Looks at the heap while connections are young, and closes those of a pod that fills it faster than the agent looks.

gRPC holds a client to its limits from when it has acknowledged them, and closes who has not after ten seconds. Until
then it keeps whatever headers come: they can fill this process within a tenth of a second, and its end is everybody's.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from runtime.bucket import Bucket
from runtime.seldom import Seldom

_log = logging.getLogger("podsvid.exposed")
# Bytes by which the heap may grow at once, and a second; many streams that are opened again take some ten MB a second.
AT_ONCE, RATE = 24 << 20, 16 << 20
# Bytes that a pod has sent and nobody has read, from which on it is what fills the heap: whoever sends more than can be
# read has a whole buffer of the kernel waiting on each connection, and a request has 64 KiB. Who makes its own buffers
# small is not found so; then the process ends for it, and it is set apart.
WAITING: Final = 96 << 10
# Seconds from one look to the next, and while the heap grows; of its time a look takes so much at most.
CALM, GROWING = 0.01, 0.002
SHARE: Final = 0.2
# Seconds after which a connection is closed that has acknowledged nothing (agent/socket/endpoint.py), and some more.
YOUNG: Final = 12.0
# Why connections are closed here, as it is counted; seconds from one line of the log to the next.
FILLING: Final = "memory at once"
SELDOM = 10.0


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap() -> Callable[[], int] | None:
    """What says how many bytes of the heap are in use; None where the C library does not (glibc before 2.33)."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    found.restype, found.argtypes = _Mallinfo, ()

    def used() -> int:
        info = found()
        return int(info.uordblks + info.hblkhd)

    return used


class Crowd(Protocol):
    """The connections: `came` is set with each new one."""

    came: threading.Event

    def shut_filling(self, least: int) -> list[str]: ...


class Filling:
    """`used`: bytes of the heap; `closed` is called, in this thread, when a pod's connections were closed; `now`:
    seconds of a clock that only rises, `spent`: of processor time of this thread."""

    def __init__(
        self,
        connections: Crowd,
        used: Callable[[], int],
        closed: Callable[[], object],
        now: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._connections = connections
        self._used = used
        self._closed = closed
        self._now = now
        self._spent = spent
        self._last = used()
        self._room = Bucket(RATE, AT_ONCE, now())
        self._complaint = Seldom(SELDOM, now)

    def start(self) -> None:
        """Look from now on, in a thread of its own: the event loop may be busy with what it looks for."""
        threading.Thread(target=self._run, name="heap while connections are young", daemon=True).start()

    def look(self) -> float:
        """Look once; answers in how many seconds to look again."""
        before = self._spent()
        used = self._used()
        grown, self._last = used - self._last, used
        self._room.give(-grown)
        left = self._room.left(self._now())
        if left < 0:
            self._close()
        took = self._spent() - before
        return max(GROWING if grown > 0 or left < 0 else CALM, took / SHARE)

    def _close(self) -> None:
        for pod in self._connections.shut_filling(WAITING):
            self._closed()
            if self._complaint.due:
                _log.warning(
                    "a pod's connections are closed: what it sends fills the memory of the process that serves it",
                    extra={"pod_uid": pod},
                )

    def _run(self) -> None:
        came = self._connections.came
        until = 0.0
        while True:
            if self._now() >= until:
                came.wait()
            if came.is_set():
                came.clear()
                until = self._now() + YOUNG
            time.sleep(self.look())
