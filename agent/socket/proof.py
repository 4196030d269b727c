"""Whether this gRPC shows the connections that it takes, which agent.socket.connections relies on: tried out.

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

from agent.socket.connections import MUTATOR, Connections, Mutator

# Seconds after which it has failed.
_MOST = 10
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
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


async def _tell() -> None:
    """End the process by whether a connection that gRPC takes is seen, and is what it is taken for."""
    connections = Connections()
    mutator = Mutator(connections)
    server = grpc.aio.server(options=((MUTATOR, mutator), ("grpc.so_reuseport", 0)))
    name = f"podsvid-{secrets.token_hex(16)}"
    server.add_insecure_port(f"unix-abstract:{name}")
    await server.start()
    reader, writer = await asyncio.open_unix_connection(f"\0{name}")
    writer.write(_PREFACE)
    # It answers what it has taken.
    await reader.readexactly(1)
    # Here: at the end of a loop gRPC may wait for its own thread, and that for the server.
    os._exit(_SHOWN if connections.held(str(writer.get_extra_info("peername"))) == 1 else _NOT_SHOWN)
