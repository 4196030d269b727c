"""A process of its own for what may hang, crash or leak: one question, one answer, each in a frame over a socket."""

import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Protocol

# Bytes of a question or an answer: names of keys, or certificates, some hundred at most.
MAX_FRAME = 1024 * 1024
_HEAD = struct.Struct(">I")
_END_SECONDS = 1.0
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Gone(Exception):
    """The process ended; the text says how."""


class Late(Exception):
    """It did not answer in time."""


class Child(Protocol):
    """Answers one question at a time. After Gone or Late it is of no use."""

    def ask(self, message: bytes, seconds: float) -> bytes:
        """Raises Gone, Late."""
        ...

    def end(self) -> None:
        """Have it, and what it began, end at once."""
        ...


class ChildProcess:
    """Implements Child: `python -m MODULE`. Raises OSError at construction. It ends with the thread that makes it."""

    def __init__(self, module: str) -> None:
        self._ours, its = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a module of ours
                [sys.executable, "-P", "-m", module],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                process_group=0,
            )
        except BaseException:
            self._ours.close()
            raise
        finally:
            its.close()

    def ask(self, message: bytes, seconds: float) -> bytes:
        until = time.monotonic() + seconds
        try:
            self._ours.settimeout(seconds)
            self._ours.sendall(_HEAD.pack(len(message)) + message)
            (size,) = _HEAD.unpack(self._read(_HEAD.size, until))
            if size > MAX_FRAME:
                raise Gone("said too much")
            return self._read(size, until)
        except TimeoutError:
            raise Late from None
        except OSError:
            raise Gone(self._how()) from None

    def end(self) -> None:
        self._ours.close()
        # What it began, and itself also where it has left its group.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        # In a driver it may not even end by that; whoever comes next gets another process.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def _read(self, size: int, until: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._ours.settimeout(left)
            more = self._ours.recv(size - len(found))
            if not more:
                raise Gone(self._how())
            found += more
        return bytes(found)

    def _how(self) -> str:
        try:
            return f"ended (status {self._process.wait(_END_SECONDS)})"
        except subprocess.TimeoutExpired:
            return "says nothing more"


def read_frame(connection: socket.socket) -> bytes | None:
    """In that process: the next question; None at their end."""
    head = connection.recv(_HEAD.size, socket.MSG_WAITALL)
    if len(head) < _HEAD.size:
        return None
    (size,) = _HEAD.unpack(head)
    found = connection.recv(size, socket.MSG_WAITALL) if size <= MAX_FRAME else b""
    return found if len(found) == size and size <= MAX_FRAME else None


def write_frame(connection: socket.socket, message: bytes) -> None:
    """In that process: an answer. Raises OSError."""
    connection.sendall(_HEAD.pack(len(message)) + message)


def harden() -> None:
    """In that process: keep what is in it in it, and end with the thread that began it. Raises OSError."""
    keep_within()
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def keep_within() -> None:
    """In a process with keys or credentials: keep them in it. Raises OSError."""
    # No core, in no file and for no program of the host's, and nobody of the same user looks into it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(what: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(what, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
