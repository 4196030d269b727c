"""Whether this process may mount what a volume is: tried, in a mount namespace that ends with the attempt."""

import ctypes
import errno
import os
import threading
from contextlib import suppress

from csi.errors import MountDenied
from csi.mount import Mounts
from csi.reach import Reach

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_CAP_SYS_ADMIN = 1 << 21
# What to do, for people.
MAY_MOUNT = (
    "run the agent as root with CAP_SYS_ADMIN, in a pod as a privileged container (the chart does so), and with an "
    "AppArmor or SELinux profile that allows tmpfs mounts"
)
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Mountable:
    """A Reach that asks `then` once a mount has been possible here."""

    def __init__(self, pods: str, mounts: Mounts, then: Reach) -> None:
        self._pods = pods
        self._mounts = mounts
        self._then = then
        self._possible = False

    def check(self) -> None:
        """Raise MountDenied where no volume can be made, and what `then` raises. Blocks."""
        self.check_mount()
        self._then.check()

    def check_mount(self) -> None:
        """Raise MountDenied; `then`, which may have to see kubelet first, is not asked."""
        if not self._possible:
            why = refusal(self._pods, self._mounts)
            if why:
                raise MountDenied(f"nothing can be mounted here ({why}), so no pod would get its volume: {MAY_MOUNT}")
            self._possible = True


def refusal(pods: str, mounts: Mounts) -> str:
    """Why nothing can be mounted on kubelet's directory of pods; empty where it can be, or where that cannot be tried.

    Where the directory is not there yet, the root is taken. Nothing is left of it, whatever happens to the process.
    """
    found: list[str] = []
    # Of a process's threads each can have mounts of its own, and they go with it.
    thread = threading.Thread(target=lambda: found.append(_tried(pods, mounts)), name="mount trial", daemon=True)
    thread.start()
    thread.join()
    return found[0] if found else "the attempt failed"


def _tried(pods: str, mounts: Mounts) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        # Mounts may be allowed where namespaces are not, as where the host's number of them is used up.
        return "" if _may_mount() else f"no CAP_SYS_ADMIN: {os.strerror(ctypes.get_errno())}"
    # Without this it would be seen wherever the mounts of this process are. In a changed root, which is no mount, it
    # cannot be had, and volumes can be mounted all the same.
    if libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
        return "" if _may_mount() else f"mounts cannot be made private: {os.strerror(ctypes.get_errno())}"
    opened = list[int]()
    try:
        directory = pods if os.path.isdir(pods) else "/"
        opened.append(os.open(directory, _DIR))
        mounts.attach(opened[0], mode=0o700, group=None)
        # What is mounted over / is found from there by no path of this thread.
        if directory == pods:
            opened.append(os.open(directory, _DIR))
            mounts.verify(opened[1], opened[0])
    except OSError as error:
        return error.strerror or errno.errorcode.get(error.errno or 0, "it failed")
    finally:
        for each in opened:
            os.close(each)
    return ""


def _may_mount() -> bool:
    return bool(capabilities() & _CAP_SYS_ADMIN)


def capabilities() -> int:
    """The effective capabilities of this thread, a bit each; all of them where the kernel does not say."""
    with suppress(OSError), open("/proc/thread-self/status", encoding="ascii") as file:
        return next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), -1)
    return -1
