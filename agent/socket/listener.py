"""The sockets that the relay makes: those at which pods connect, and those to gRPC."""

import os
import socket
import stat
from contextlib import suppress
from typing import Final

from agent.socket.closing import without_descriptors
from agent.socket.connections import SMALLEST

# Connections that wait to be accepted; they are what has to be closed together when a socket goes.
BACKLOG: Final = 512


def listening_at(address: str) -> tuple[socket.socket, bool]:
    """A Unix socket that listens at a path, in the place of one that was left there, and whether nobody can send
    descriptors to it. Raises OSError."""
    remove(address)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        is_guarded = without_descriptors(listening)
        listening.bind(address)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening, is_guarded


def connected(address: bytes) -> socket.socket:
    """Raises OSError."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # As long as gRPC reads nothing, little waits for it.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALLEST)
        found.connect(address)
    except BaseException:
        found.close()
        raise
    return found


def remove(path: str) -> None:
    """A socket's name, if there is one."""
    with suppress(OSError, ValueError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
