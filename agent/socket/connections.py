"""The books of pods' connections: how many, what was sent and is not read yet, and who keeps this process busy.

What a peer does not read is memory of the kernel that counts as this process's, until the peer reads it or goes, also
after this end was closed: so its descriptor is kept until then.
"""

import fcntl
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from agent.socket import refusals
from agent.socket.closing import Closers, emptied

# Of one pod, whatever its volumes are, and of all: open, or closed with something unread.
POD, ALL = 256, 3072
# Bytes of the kernel at most for each: the smallest send buffer, and one more message of half of it in its own page.
UNREAD: Final = 10 * 1024
SMALLEST: Final = 1
# Of those that were closed, so many are looked at with each new one: what a pod has left is seen before it keeps that
# pod out.
_LOOKS = 17
# And whenever somebody asks what is open.
_SOME = 256
_SIOCOUTQ, _SIOCINQ = 0x5411, 0x541B


class Holder:
    """One socket, whose connections count as its pod's. `taken` so far, refused ones too; `open` as far as is known;
    `busy`: how often one was seen with something to be read."""

    __slots__ = ("busy", "open", "pod", "taken")

    def __init__(self, pod: str) -> None:
        self.pod = pod
        self.taken = self.open = self.busy = 0


@dataclass(eq=False, slots=True)
class Held:
    """A pod's connection that is in the books."""

    holder: Holder
    connection: socket.socket


class Connections:
    """The books of them. Belongs to one event loop, in which `closers` are; `refused` is told of each that is closed
    because of what it is, and why (agent.socket.refusals)."""

    def __init__(self, closers: Closers, refused: Callable[[str], None], pod: int = POD, most: int = ALL) -> None:
        self.closers = closers
        self.refused = refused
        self._pod = pod
        self._most = most
        # Those in use; those that were closed here, the one that was looked at the longest ago first; and how many of
        # each pod are one or the other.
        self._open: dict[Held, None] = {}
        self._left: deque[Held] = deque()
        self._counts: Counter[str] = Counter()
        self._all = 0

    def held(self, pod: str) -> int:
        """How many are the pod's."""
        return self._counts[pod]

    def is_full(self, pod: str) -> bool:
        """Whether one more of the pod's would be refused."""
        return self._counts[pod] >= self._pod or self._all >= self._most

    def enter(self, connection: socket.socket, holder: Holder) -> Held | None:
        """One that was just accepted; None where there are too many: it was closed. Raises OSError."""
        holder.taken += 1
        if self.is_full(holder.pod):
            of_pod = self._counts[holder.pod] >= self._pod
            self.refuse(connection, refusals.OF_POD if of_pod else refusals.OF_ALL)
            return None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALLEST)
        held = Held(holder, connection)
        self._open[held] = None
        self._counts[holder.pod] += 1
        self._all += 1
        holder.open += 1
        return held

    def refuse(self, connection: socket.socket, why: str) -> None:
        """Close one that is in no books."""
        self.refused(why)
        if emptied(connection):
            connection.close()
        else:
            self.closers.close(connection)

    def leave(self, held: Held) -> None:
        """It is in use no longer: what its peer has not read yet is the last that it gets, and counts until then."""
        del self._open[held]
        if emptied(held.connection):
            self._left.appendleft(held)
            self._look(1)
        else:
            self.closers.close(held.connection, lambda: self._over(held))

    def allow(self, most: int) -> None:
        """So many of all pods from now on."""
        self._most = most

    def shut(self, pod: str) -> None:
        """End all of the pod's: what it has not read yet is the last that it gets."""
        for held in self._open:
            if held.holder.pod == pod:
                with suppress(OSError):
                    held.connection.shutdown(socket.SHUT_RDWR)

    def tidy(self) -> None:
        """Let go of some that are over, as each new one has it done."""
        self._look(_LOOKS)

    def look(self) -> None:
        """Let go of some that are over, where no new ones come."""
        self.closers.go_on()
        self._look(_SOME)

    def unheard(self) -> frozenset[Held]:
        """Those with something to be read. A connection that keeps this process busy has that always."""
        return frozenset(held for held in self._open if unheard(held.connection.fileno()) > 0)

    def count_busy(self, before: frozenset[Held]) -> None:
        """Count those of them that have it still, or again."""
        for held in before & self.unheard():
            held.holder.busy += 1

    def _look(self, number: int) -> None:
        """Let go of those that are over, of the ones that were looked at the longest ago."""
        for _ in range(min(number, len(self._left))):
            held = self._left.popleft()
            if unread(held.connection.fileno()):
                self._left.append(held)
            else:
                held.connection.close()
                self._over(held)

    def _over(self, held: Held) -> None:
        held.holder.open -= 1
        self._all -= 1
        self._counts[held.holder.pod] -= 1
        if not self._counts[held.holder.pod]:
            del self._counts[held.holder.pod]


def unread(descriptor: int) -> int:
    """Bytes of the kernel for what the other end has not read. Raises OSError."""
    found: int = struct.unpack("i", fcntl.ioctl(descriptor, _SIOCOUTQ, b"\0" * 4))[0]
    return found


def unheard(descriptor: int) -> int:
    """Bytes of the other end that this process has not read; 0 where that cannot be said."""
    with suppress(OSError):
        found: int = struct.unpack("i", fcntl.ioctl(descriptor, _SIOCINQ, b"\0" * 4))[0]
        return found
    return 0
