"""Ports for servers under test."""

import fcntl
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

# Below those that connections get of the kernel (ip_local_port_range): each of these, at any local address, would be in
# the way of who listens at all addresses.
_FIRST, _LAST = 20_000, 29_999


def free_port() -> int:
    """One that was free just now at all addresses, and that nobody here is given for the next some thousand times.

    A server takes seconds until it has bound its port, and meanwhile tests of other processes ask for theirs: where
    each took one by chance, two of them took the same now and then. So all of a user go on from where the last one was,
    which a file says.
    """
    file = Path(tempfile.gettempdir()) / f"podsvid-tests-port-{os.geteuid()}"
    with suppress(FileNotFoundError), os.fdopen(os.open(file, os.O_RDWR), "r+b") as last:
        return _next(last.fileno())
    # Of two that begin, both have the file of one.
    with tempfile.NamedTemporaryFile(dir=file.parent) as made, suppress(FileExistsError):
        os.link(made.name, file)
    return free_port()


def _next(file: int) -> int:
    fcntl.flock(file, fcntl.LOCK_EX)
    found = os.pread(file, 16, 0)
    port = int(found) if found.isdigit() else _FIRST + secrets.randbelow(_LAST - _FIRST + 1)
    while True:
        port = port + 1 if _FIRST <= port < _LAST else _FIRST
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d" % port, 0)
            return port
