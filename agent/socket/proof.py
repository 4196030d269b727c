"""Whether this gRPC shows the connections that it takes, and takes those that it is given: tried out, since
agent.socket.connections and agent.socket.gate rely on it.

In a process of its own, before anything is served: where gRPC's structures are others, it may crash. Nobody else can
connect to it.
"""

import asyncio
import ctypes
import os
import secrets
import signal
from dataclasses import dataclass

import grpc.aio

from agent.socket.connections import MUTATOR, Connections, Holder, Mutator
from agent.socket.gate import IGNORED, Gate

# Seconds after which it has failed.
_MOST = 10
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_ACKNOWLEDGED, _SETTINGS = b"\0\0\0\4\1\0\0\0\0", 4
# Exit codes.
_SHOWN, _NOT_SHOWN, _UNTRIED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Trial:
    """One that is under way, by its process id."""

    pid: int

    def passed(self) -> bool:
        """Wait for it. True as well where the host gives it no place that is its own."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status) in (_SHOWN, _UNTRIED)


def begin() -> Trial:
    """To be called while there is one thread and gRPC was not used. Raises OSError."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Trial(pid)
    code = _NOT_SHOWN
    try:
        signal.alarm(_MOST)
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent or not _alone(libc):
            code = _UNTRIED
        else:
            asyncio.run(_tell())
    finally:
        # Whatever it was, nothing else happens in this process.
        os._exit(code)


def _alone(libc: ctypes.CDLL) -> bool:
    """Have a network of its own, in which nobody else can connect to names that are no paths."""
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


@dataclass(slots=True)
class _Watched:
    """How often gRPC showed a connection. Implements agent.socket.connections.Takes."""

    gate: Gate
    shown: int = 0

    def taken(self, descriptor: int) -> None:
        self.shown += 1
        self.gate.taken(descriptor)


async def _tell() -> None:
    """End the process by whether a connection that gRPC takes is seen, and is what it is taken for: it can be exchanged
    for another one, on which gRPC says what was said already."""
    connections = Connections()
    watched = _Watched(Gate(connections))
    mutator = Mutator(watched)
    server = grpc.aio.server(options=((MUTATOR, mutator), ("grpc.so_reuseport", 0)))
    name = f"\0podsvid-{secrets.token_hex(16)}"
    door = watched.gate.door(name, Holder("tried"), 1)
    server.add_insecure_port(f"unix-abstract:{door.inner}")
    await server.start()
    # It says its settings on what it has taken.
    await door.open(0)
    if not watched.shown:
        # Here: at the end of a loop gRPC may wait for its own thread, and that for the server.
        os._exit(_NOT_SHOWN)
    reader, writer = await asyncio.open_unix_connection(name)
    writer.write(_PREFACE + _ACKNOWLEDGED)
    said = await _frame(reader)
    kind, again = await _frame(reader)
    exchanged = said[0] == _SETTINGS and kind == IGNORED and again[9:] == said[1]
    os._exit(_SHOWN if exchanged and connections.held("tried") == 1 else _NOT_SHOWN)


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Its kind and content."""
    head = await reader.readexactly(9)
    return head[3], await reader.readexactly(int.from_bytes(head[:3], "big"))
