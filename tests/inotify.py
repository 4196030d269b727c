"""Watches of single files, as programs that follow their certificate by itself have them."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODIFY, ATTRIB, DELETE_SELF, MOVE_SELF = 0x2, 0x4, 0x400, 0x800
_MOVED, _CREATE, _DELETE = 0x40 | 0x80, 0x100, 0x200
# What libraries ask the kernel for, none of them with IN_DONT_FOLLOW: the watch is on what the link leads to.
MASKS = {
    # fsnotify 1.10.1, backend_inotify.go, AddWith: all of its operations; controller-runtime's certwatcher adds
    # tls.crt and tls.key so.
    "fsnotify": _CREATE | MODIFY | _DELETE | DELETE_SELF | _MOVED | MOVE_SELF | ATTRIB,
    # For inotifywait -e, as in reload scripts of nginx and HAProxy.
    "delete_self": DELETE_SELF,
    "attrib": ATTRIB,
    "modify": MODIFY,
}
_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """The file that is behind a path now; `again` for the one that is there later."""

    def __init__(self, path: Path, mask: int) -> None:
        self._path, self._mask = path, mask
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._add()

    def fileno(self) -> int:
        return int(self._fd)

    def events(self) -> int:
        """What happened to it since the last call: the events' bits together. Whoever is told looks again."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return 0
        found, at = 0, 0
        while at < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, at)
            found |= mask & self._mask
            at += _HEADER.size + length
        if found:
            self._add()
        return found

    def close(self) -> None:
        os.close(self._fd)

    def _add(self) -> None:
        if _libc.inotify_add_watch(self._fd, bytes(self._path), self._mask) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@contextmanager
def watching(path: Path, mask: int) -> Iterator[Watch]:
    """A watch that ends."""
    watch = Watch(path, mask)
    try:
        yield watch
    finally:
        watch.close()
