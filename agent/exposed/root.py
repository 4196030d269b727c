"""A root directory with nothing in it but what the program reads, in a mount namespace of its own.

Whoever takes this process over finds no path to a socket, a volume, another process or a place to leave anything in, on
kernels without Landlock too. No copy of the agent's mounts stays: one would keep each volume alive.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
# Of what a path is on already: no devices, no programs, no times of reading. The same bits in statvfs and mount.
_KEPT = 4 | 8 | 1024 | 2048
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# Of folders and links only; and a place that every host has, and that is of no use afterwards.
_OPTIONS, _PLACE = b"mode=0755,size=64k,nr_inodes=512", "/proc"
_MOST_LINKS = 40

Call = Callable[..., int]


def enter(libc: ctypes.CDLL, call: Call, paths: Sequence[str]) -> None:
    """Have `paths`, read-only, and nothing else below the root. `call` raises OSError where the kernel refuses.

    Raises OSError; the process then has the mounts that it had, or else Stranded.
    """
    pivot = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if pivot is None:
        raise OSError(None, "the system calls of this machine are not known")
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        call(libc.unshare, _CLONE_NEWNS)
        # The user of later passes through these folders.
        mask = os.umask(0o022)
        try:
            _build(libc, call, paths, pivot)
        except OSError as error:
            try:
                call(libc.setns, before, _CLONE_NEWNS)
            except OSError:
                raise Stranded(str(error)) from None
            raise
        finally:
            os.umask(mask)
    finally:
        os.close(before)


class Stranded(Exception):
    """The process is between two roots, with a copy of all mounts: it must not go on."""


def _build(libc: ctypes.CDLL, call: Call, paths: Sequence[str], pivot: int) -> None:
    def mount(source: str, target: str, kind: str, flags: int, options: bytes | None = None) -> None:
        call(libc.mount, source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options)

    # Before anything is mounted or taken away here: else the agent's own, and the host's, would follow.
    mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    mount("podsvid-root", _PLACE, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, _OPTIONS)
    for link, to in sorted(set(_links(paths))):
        os.makedirs(_PLACE + os.path.dirname(link), mode=0o755, exist_ok=True)
        os.symlink(to, _PLACE + link)
    for path in _outermost(paths):
        target = _PLACE + path
        if os.path.isdir(path):
            os.makedirs(target, mode=0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        mount(path, target, "none", _MS_BIND)
        flags = os.statvfs(path).f_flag & _KEPT | _MS_RDONLY | _MS_NOSUID
        mount("none", target, "none", _MS_REMOUNT | _MS_BIND | flags)
    os.chdir(_PLACE)
    # The old root is put over the new one, and taken away from there.
    call(libc.syscall, pivot, b".", b".")
    call(libc.umount2, b".", _MNT_DETACH)
    os.chdir("/")
    mount("none", "/", "none", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _outermost(paths: Sequence[str]) -> list[str]:
    """The real paths, without those below another."""
    found: list[str] = []
    for path in sorted({os.path.realpath(each) for each in paths}):
        if not any(path == each or path.startswith(f"{each}/") for each in found):
            found.append(path)
    return found


def _links(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The symbolic links on the way to the paths, and where they lead."""
    for path in paths:
        for _ in range(_MOST_LINKS):
            link = next((each for each in _prefixes(path) if os.path.islink(each)), None)
            if link is None:
                break
            to = os.readlink(link)
            yield link, to
            path = os.path.normpath(os.path.join(os.path.dirname(link), to) + path[len(link) :])


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split("/")
    for length in range(2, len(parts) + 1):
        yield "/".join(parts[:length])
