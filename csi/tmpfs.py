"""What the kernel does to a volume that is mounted: its size, and a directory of it that has nothing above."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 2, 4, 8, 32
SOURCE = "podsvid"
# Bytes at first, and for almost all volumes for ever: what is written in them is some 50 KiB. It has to be more where
# many roots are trusted: `size_for`. Only what is written is used.
SIZE, INODES = 4 * 1024 * 1024, 256
PAGE = os.sysconf("SC_PAGE_SIZE")
# open_tree(2) has one number on all machines.
_OPEN_TREE, _CLONE, _CLOEXEC, _EMPTY_PATH = 428, 1, os.O_CLOEXEC, 0x1000


def pages(content: bytes) -> int:
    """Bytes that a file with this takes."""
    return -(-len(content) // PAGE) * PAGE


def size_for(generation: int, kept: int) -> int:
    """Bytes of a volume in which so many generations of files of that size are kept while another one is written."""
    needed = generation * (kept + 1)
    return max(SIZE, -(-needed // SIZE) * SIZE)


def resize(directory: int, size: int) -> None:
    """Have the tmpfs that is mounted at the open `directory` take so many bytes. Raises OSError.

    The kernel makes none smaller than what is in it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    target, flags = f"/proc/self/fd/{directory}".encode(), MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC
    number = 0
    # It has to be said again whether it is kept out of swap, which cannot be changed.
    for options in (f"size={size},noswap", f"size={size}"):
        if libc.mount(SOURCE.encode(), target, b"tmpfs", ctypes.c_ulong(flags), options.encode()) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.EPERM):
            break
    raise OSError(number, f"remount: {os.strerror(number)}")


@contextmanager
def rooted(directory: int, close: Callable[[int], object] = os.close) -> Iterator[int]:
    """The same directory in a mount of its own that is nowhere: its parent is itself. Raises OSError.

    Only kernels before 5.2 cannot; there it is the directory as it is. `close` gets the descriptor, and may do it
    later: the kernel takes a mount away then, and waits for all processors, 100 ms where they have much to do.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _CLONE | _CLOEXEC | _EMPTY_PATH
    found = libc.syscall(_OPEN_TREE, ctypes.c_int(directory), b"", ctypes.c_uint(flags))
    if found < 0:
        number = ctypes.get_errno()
        if number != errno.ENOSYS:
            raise OSError(number, os.strerror(number))
        yield directory
        return
    try:
        yield found
    finally:
        close(found)
