"""Who is connected to a socket of this process, as the kernel knows it (SO_PEERCRED)."""

import os
import socket
import stat
import struct
from contextlib import suppress

_CREDENTIALS = struct.Struct("iII")
# The kernel gives out the lowest number that is free: behind so many that are not open there are no others.
_GAP = 4096


def credentials_of(address: str) -> list[tuple[int, int, int]]:
    """User, group and process of the connections that this process took on the Unix socket which it bound at `address`.

    As they were when each connected; the process is 0 for one outside of this PID namespace. Looks at every descriptor
    of the process, which takes milliseconds, and needs no /proc for that.
    """
    found: dict[int, tuple[int, int, int]] = {}
    number = missing = 0
    while missing < _GAP:
        descriptor, number = number, number + 1
        missing += 1
        # Others come and go while this looks.
        with suppress(OSError):
            status = os.fstat(descriptor)
            missing = 0
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as each:
                if each.family != socket.AF_UNIX or each.getsockname() != address or _listens(each):
                    continue
                pid, uid, gid = _CREDENTIALS.unpack(
                    each.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
            # More than one descriptor may be of one connection.
            found[status.st_ino] = (uid, gid, max(pid, 0))
    return sorted(found.values())


def _listens(each: socket.socket) -> bool:
    return bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
