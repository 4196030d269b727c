"""Who is connected to a volume's socket, as the kernel knows it (SO_PEERCRED)."""

import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.terminal import printable

_CREDENTIALS = struct.Struct("iII")
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Peer:
    """One connection's other end when it connected. `pid` is 0 for a process outside of this PID namespace."""

    uid: int
    gid: int
    pid: int
    command: str


def peers_of(address: str) -> list[Peer]:
    """The connections that this process took on the Unix socket which it bound at `address`.

    Looks at every descriptor of the process: for a person who asks, not for a call's path.
    """
    found = []
    for name in os.listdir(_DESCRIPTORS):
        # Others come and go while this looks.
        with suppress(OSError):
            descriptor = int(name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as each:
                if each.family != socket.AF_UNIX or each.getsockname() != address or _listens(each):
                    continue
                pid, uid, gid = _CREDENTIALS.unpack(
                    each.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
            found.append(Peer(uid, gid, pid, _command(pid)))
    return sorted(found, key=lambda peer: (peer.uid, peer.pid))


def _listens(each: socket.socket) -> bool:
    return bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _command(pid: int) -> str:
    """The program's name; empty for one that is not seen from here or is gone."""
    if pid <= 0:
        return ""
    try:
        # Whatever runs in a pod chooses it.
        return printable(Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").removesuffix("\n"))
    except OSError:
        return ""
