"""The connections of pods' sockets: how many, and how much of what was sent on them may stay unread.

What a peer does not read is memory of the kernel that counts as this process's, until the peer reads it or goes, also
after this end was closed. gRPC has no setting for it; its socket mutator sees each connection before gRPC uses it.
"""

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

# gRPC's argument, and struct grpc_mutate_socket_info's number for a connection that was taken.
MUTATOR: Final = "grpc.socket_mutator"
_TAKEN = 2
# Of one pod, whatever its volumes are, and of all: open, or closed with something unread.
POD, ALL = 256, 3072
# Bytes of the kernel at most for each: the smallest send buffer, and one more message of half of it in its own page.
UNREAD: Final = 10 * 1024
# Looked at with each new one. ALL / LOOKS < POD - 64: what a pod has left is seen before it keeps that pod out.
_LOOKS = 17
# And whenever somebody asks what is open.
_SOME = 256
_SMALLEST = 1
_SIOCOUTQ, _SIOCINQ = 0x5411, 0x541B
_Mutate = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_int, ctypes.c_void_p)
_MutateInfo = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(ctypes.c_int * 2), ctypes.c_void_p)
_Compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_Destroy = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Holder:
    """One socket, whose connections count as its pod's. `taken` so far, refused ones too; `open` as far as is known;
    `busy`: how often one was seen with something to be read."""

    __slots__ = ("busy", "open", "pod", "taken")

    def __init__(self, pod: str) -> None:
        self.pod = pod
        self.taken = self.open = self.busy = 0


@dataclass(frozen=True, slots=True)
class _Held:
    """`own`: a descriptor of it that gRPC does not close; `theirs`: gRPC's, for as long as `inode` is behind it."""

    holder: Holder
    own: int
    theirs: int
    inode: int

    def is_open(self) -> bool:
        """Whether gRPC has not closed it."""
        with suppress(OSError):
            return os.fstat(self.theirs).st_ino == self.inode
        return False

    def is_over(self) -> bool:
        """Whether gRPC has closed it and nothing is unread."""
        return not self.is_open() and unread(self.own) == 0


class Connections:
    """The books of them. Threads of gRPC call `taken`."""

    def __init__(self, pod: int = POD, most: int = ALL) -> None:
        self._pod = pod
        self._most = most
        self._holders: dict[str, Holder] = {}
        self._held: deque[_Held] = deque()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, address: str, holder: Holder) -> None:
        """What is taken at this address from now on is the holder's."""
        self._holders[address] = holder

    def end(self, address: str) -> None:
        """Nothing more is taken there."""
        self._holders.pop(address, None)

    def held(self, pod: str) -> int:
        """How many are the pod's."""
        return self._counts[pod]

    def taken(self, descriptor: int) -> None:
        """A connection that was just taken; it is shut where there are too many. Raises OSError."""
        entered = False
        with _borrowed(descriptor) as each:
            try:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALLEST)
                address = str(each.getsockname())
                entered = self._enter(self._holders.get(address) or Holder(address), descriptor)
            finally:
                if not entered:
                    # It takes no descriptor: there may be none left.
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def _enter(self, holder: Holder, descriptor: int) -> bool:
        """Whether there was room for it in the books. Raises OSError."""
        with self._lock:
            holder.taken += 1
            self._look(_LOOKS)
            if self._counts[holder.pod] >= self._pod or len(self._held) >= self._most:
                return False
            self._held.append(_Held(holder, os.dup(descriptor), descriptor, os.fstat(descriptor).st_ino))
            self._counts[holder.pod] += 1
            holder.open += 1
            return True

    def allow(self, most: int) -> None:
        """So many of all pods from now on."""
        self._most = most

    def shut(self, pod: str) -> None:
        """End all of the pod's: what it has not read yet is the last that it gets."""
        with self._lock:
            for held in self._held:
                if held.holder.pod == pod:
                    with _borrowed(held.own) as each, suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def look(self) -> None:
        """Let go of some that are over, where no new ones come."""
        with self._lock:
            self._look(_SOME)

    def unheard(self) -> frozenset["_Held"]:
        """Those with something to be read. A connection that keeps this process busy has that always."""
        with self._lock:
            return frozenset(held for held in self._held if held.is_open() and unheard(held.own) > 0)

    def count_busy(self, before: frozenset["_Held"]) -> None:
        """Count those of them that have it still, or again."""
        for held in before & self.unheard():
            held.holder.busy += 1

    def _look(self, number: int) -> None:
        """Let go of those that are over, of the ones that were looked at the longest ago."""
        for _ in range(min(number, len(self._held))):
            held = self._held.popleft()
            if held.is_over():
                os.close(held.own)
                held.holder.open -= 1
                self._counts[held.holder.pod] -= 1
                if not self._counts[held.holder.pod]:
                    del self._counts[held.holder.pod]
            else:
                self._held.append(held)


class _Table(ctypes.Structure):
    """struct grpc_socket_mutator_vtable."""

    _fields_ = (("mutate", _Mutate), ("compare", _Compare), ("destroy", _Destroy), ("mutate_info", _MutateInfo))


class _Struct(ctypes.Structure):
    """struct grpc_socket_mutator."""

    _fields_ = (("table", ctypes.POINTER(_Table)), ("references", ctypes.c_ssize_t))


class Mutator:
    """What gRPC takes as its argument `MUTATOR`: hands what it takes to `connections`. Must outlive its servers."""

    def __init__(self, connections: Connections) -> None:
        def mutate(info: "ctypes._Pointer[ctypes.Array[ctypes.c_int]]", _: object) -> bool:
            descriptor, usage = info.contents
            if usage == _TAKEN:
                # A refusal would end the listening: what could not be entered was shut.
                with suppress(OSError):
                    connections.taken(descriptor)
            return True

        self._table = _Table(
            _Mutate(lambda descriptor, this: True),
            _Compare(lambda one, other: (one or 0) - (other or 0) and 1),
            _Destroy(lambda this: None),
            _MutateInfo(mutate),
        )
        # The first reference is this object's: gRPC never destroys it.
        self._struct = _Struct(ctypes.pointer(self._table), 1)

    def __int__(self) -> int:
        return ctypes.addressof(self._struct)


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


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that stays open."""
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()
