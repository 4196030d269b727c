"""A mount namespace of the quickstart's own: however its processes end, no mount outlives them."""

import ctypes
import os
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000


def enter_private_mount_namespace(probe: Path) -> str | None:
    """Move this process into a mount namespace of its own, where it may mount.

    Returns why the host does not allow that; then the process is where it was. ``probe`` is a directory to try
    a mount on.
    """
    refusals = []
    # Tried in a child first: what unshare did cannot be taken back when a later step is refused, as on hosts
    # that hand out user namespaces but allow nothing in them.
    for flags in (_CLONE_NEWNS, _CLONE_NEWUSER | _CLONE_NEWNS):
        if flags == _CLONE_NEWNS and os.geteuid() != 0:
            continue
        refusal = _tried_in_a_child(flags, probe)
        if refusal is None:
            _unshare(flags)
            return None
        refusals.append(refusal)
    return f"this host allows no mounts here ({'; '.join(refusals)})"


def _tried_in_a_child(flags: int, probe: Path) -> str | None:
    """Why entering a namespace, or a tmpfs mount in it, is refused; None if it works."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _unshare(flags)
            _libc_call("mount", b"podsvid", os.fsencode(probe), b"tmpfs", ctypes.c_ulong(0), b"size=64k")
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        refusal = answer.read().decode(errors="replace")
    os.waitpid(child, 0)
    return refusal or None


def _unshare(flags: int) -> None:
    user, group = os.geteuid(), os.getegid()
    _libc_call("unshare", flags)
    if flags & _CLONE_NEWUSER:
        # The kernel takes a group mapping from an ordinary user only when setgroups is given up.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    # Slave, not private: nothing of ours reaches the host, and the host can still unmount what is its own.
    _libc_call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None)


def _libc_call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
