"""The mount calls: one tmpfs at kubelet's target path, made, verified and taken away.

Everything is reached through directory descriptors opened component by component without following symlinks, so a
path that changes underneath cannot lead a mount elsewhere. All calls block; keep them off the event loop.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from csi.errors import InvalidRequest, UndoFailed
from csi.files import clear, mount_id, opened
from csi.tmpfs import INODES, MS_NODEV, MS_NOEXEC, MS_NOSUID, SIZE, SOURCE

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
TMPFS_MAGIC = 0x01021994
# What mountinfo shows of a volume.
_OWN = (b"/", b"tmpfs", SOURCE.encode())
_MAX_STACKED = 16
# Kernels before 5.8 can skip a line of mountinfo while other mounts come and go.
_MOUNTINFO_READS = 3
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Mounts(Protocol):
    """How a directory becomes a volume's own file system."""

    def attach(self, directory: int, *, mode: int, group: int | None) -> None:
        """Mount over the open `directory`. Raises OSError."""
        ...

    def attached(self, directory: int, parent: int, own: Container[int] | None = None) -> bool:
        """Whether the open `directory` is such a mount: neither a plain directory of `parent` nor another's mount.

        `own` is what `own` answered just now; whoever asks about many of them reads all mounts once, not for each.
        """
        ...

    def own(self) -> Container[int] | None:
        """The ids of all such mounts; None where they have none."""
        ...

    def verify(self, directory: int, parent: int) -> None:
        """Raise OSError unless the open `directory` is safe to write secrets into."""
        ...

    def detach(self, parent: int, name: str) -> None:
        """Take away what is mounted at `name` of the open `parent`. Raises OSError."""
        ...


class TmpfsMounts:
    """Mounts by mount(2) and umount2(2)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._selinux = os.path.exists("/sys/fs/selinux/enforce")

    def attach(self, directory: int, *, mode: int, group: int | None) -> None:
        options = [f"size={SIZE}", f"nr_inodes={INODES}", f"mode={mode:o}"]
        if group is not None:
            options.append(f"gid={group}")
        if self._selinux:
            # Sockets get no type of their own on tmpfs: only a mount-wide context lets containers connect.
            options.append('context="system_u:object_r:container_file_t:s0"')
        try:
            self._mount(directory, [*options, "noswap"])
        except OSError as error:
            # Kernels before 6.4 and user namespaces refuse noswap.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            self._mount(directory, options)

    def attached(self, directory: int, parent: int, own: Container[int] | None = None) -> bool:
        mounted = mount_id(directory)
        if mounted == mount_id(parent):
            return False
        return (own is not None and mounted in own) or _mounted(mounted) == _OWN

    def own(self) -> Container[int] | None:
        return {number for number, shown in _mounts() if shown == _OWN}

    def _is_tmpfs(self, directory: int) -> bool:
        answer = (ctypes.c_long * 64)()
        if self._libc.fstatfs(directory, ctypes.byref(answer)) != 0:
            raise _os_error("fstatfs")
        return bool(answer[0] == TMPFS_MAGIC)

    def verify(self, directory: int, parent: int) -> None:
        if mount_id(directory) == mount_id(parent) or not self._is_tmpfs(directory):
            raise OSError(errno.EIO, "the tmpfs did not appear at the target path")

    def detach(self, parent: int, name: str) -> None:
        path = f"/proc/self/fd/{parent}/{name}".encode()
        if self._libc.umount2(path, UMOUNT_NOFOLLOW) == 0:
            return
        if ctypes.get_errno() != errno.EBUSY:
            raise _os_error("umount2")
        # Somebody still looks into it: what is secret goes now, the empty mount when they leave. Of what is not ours
        # nothing is touched: another driver may show every pod of the node the same directory.
        with opened(name, parent) as directory:
            if self.attached(directory, parent):
                clear(directory)
        if self._libc.umount2(path, UMOUNT_NOFOLLOW | MNT_DETACH) != 0:
            raise _os_error("umount2")

    def _mount(self, directory: int, options: list[str]) -> None:
        target, data = f"/proc/self/fd/{directory}".encode(), ",".join(options).encode()
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        if self._libc.mount(SOURCE.encode(), target, b"tmpfs", ctypes.c_ulong(flags), data) != 0:
            raise _os_error("mount")


class PlainDirectories:
    """Volumes without mounts: `podsvid quickstart` on hosts that allow a user no mount at all. Never on a node."""

    def attach(self, directory: int, *, mode: int, group: int | None) -> None:
        os.fchmod(directory, mode)
        if group is not None:
            os.fchown(directory, -1, group)

    def attached(self, directory: int, parent: int, own: Container[int] | None = None) -> bool:
        return bool(os.listdir(directory))

    def own(self) -> Container[int] | None:
        return None

    def verify(self, directory: int, parent: int) -> None:
        return

    def detach(self, parent: int, name: str) -> None:
        with opened(name, parent) as directory:
            clear(directory)


@dataclass(frozen=True, slots=True)
class Mounted:
    """An open mounted target, and whether this call made the mount or found it there."""

    descriptor: int
    made: bool


class Targets:
    """The target directories below `<kubelet-root>/pods`, each named by its components."""

    def __init__(self, kubelet_root: str, mounts: Mounts) -> None:
        self._pods = os.path.join(os.path.realpath(kubelet_root), "pods")
        self._mounts = mounts

    def mount(self, below: tuple[str, ...], *, mode: int, group: int | None) -> Mounted:
        """Make the target, mount on it, verify the mount, and return it as an open directory.

        A mount of ours that is already there is kept: a running container sees only that one. Another's, as of a driver
        that had this name before, is mounted over: what is written must not get into it. Raises OSError and, for a
        parent that is a symlink, InvalidRequest; nothing that this call made is left then, or it raises UndoFailed.
        """
        made = created = False
        try:
            with self._parent(below) as parent:
                with suppress(FileExistsError):
                    os.mkdir(below[-1], 0o750, dir_fd=parent)
                    created = True
                with _refusing_links(below), opened(below[-1], parent) as directory:
                    if not self._mounts.attached(directory, parent):
                        self._mounts.attach(directory, mode=mode, group=group)
                        made = True
                return Mounted(self._verified(below, parent, mode, group), made)
        except BaseException:
            if made or created:
                try:
                    self.remove(below)
                except OSError as error:
                    raise UndoFailed(f"a failed mount could not be undone: {error.strerror or error}") from error
            raise

    def _verified(self, below: tuple[str, ...], parent: int, mode: int, group: int | None) -> int:
        mounted = os.open(below[-1], _DIR, dir_fd=parent)
        try:
            self._mounts.verify(mounted, parent)
            if group is not None:
                os.fchown(mounted, -1, group)
            # After the group: changing it takes the setgid bit away.
            if stat.S_IMODE(os.fstat(mounted).st_mode) != mode:
                os.fchmod(mounted, mode)
        except BaseException:
            os.close(mounted)
            raise
        return mounted

    def own(self) -> Container[int] | None:
        """For `find` of many targets: what is mounted just now."""
        return self._mounts.own()

    def find(self, below: tuple[str, ...], own: Container[int] | None = None) -> int | None:
        """The mounted target as an open directory, or None where nothing is mounted.

        Raises OSError where that cannot be told, as without descriptors or memory: it is no answer then.
        """
        try:
            with self._parent(below) as parent:
                with _refusing_links(below):
                    directory = os.open(below[-1], _DIR, dir_fd=parent)
                try:
                    if self._mounts.attached(directory, parent, own):
                        return directory
                except BaseException:
                    os.close(directory)
                    raise
                os.close(directory)
        except (FileNotFoundError, InvalidRequest):
            return None
        return None

    def is_at(self, directory: int, below: tuple[str, ...]) -> bool:
        """Whether the open `directory` is still what one finds at the target, or that cannot be told.

        A pod that runs loses what it has by a no.
        """
        try:
            with self._parent(below) as parent, _refusing_links(below), opened(below[-1], parent) as found:
                return os.path.sameopenfile(directory, found)
        except (FileNotFoundError, InvalidRequest):
            return False
        except OSError:
            return True

    def remove(self, below: tuple[str, ...]) -> None:
        """Unmount all that is stacked at the target and remove it. Nothing there is fine. Raises OSError."""
        try:
            with self._parent(below) as parent:
                self._remove(parent, below[-1])
        except (FileNotFoundError, NotADirectoryError):
            return

    def _remove(self, parent: int, name: str) -> None:
        for _ in range(_MAX_STACKED):
            kind = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(kind.st_mode):
                os.unlink(name, dir_fd=parent)
                return
            with opened(name, parent) as directory:
                # Whatever is mounted here has to go, but only the plain directory below all mounts is emptied.
                mounted = mount_id(directory) != mount_id(parent) or self._mounts.attached(directory, parent)
                # Written while nothing was mounted; kubelet could never remove it.
                if not mounted and not clear(directory):
                    raise OSError(errno.EBUSY, "something is mounted below the target path")
            if not mounted:
                os.rmdir(name, dir_fd=parent)
                return
            self._mounts.detach(parent, name)
        raise OSError(errno.EBUSY, f"more than {_MAX_STACKED} mounts are stacked at the target path")

    @contextmanager
    def _parent(self, below: tuple[str, ...]) -> Iterator[int]:
        with _refusing_links(below):
            current = os.open(self._pods, _DIR)
        try:
            for part in below[:-1]:
                with _refusing_links(below):
                    following = os.open(part, _DIR, dir_fd=current)
                os.close(current)
                current = following
            yield current
        finally:
            os.close(current)


@contextmanager
def _refusing_links(below: tuple[str, ...]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise InvalidRequest(
                f"target_path leads through a symlink or a file at pods/{'/'.join(below)!r}; refusing to follow it"
            ) from None
        raise


def _mounted(mount: int) -> tuple[bytes, bytes, bytes] | None:
    """What a mount of this namespace shows: the directory of its file system, the file system's type and its source."""
    for _ in range(_MOUNTINFO_READS):
        for number, shown in _mounts(mount):
            if number == mount:
                return shown
    return None


def _mounts(only: int | None = None) -> Iterator[tuple[int, tuple[bytes, bytes, bytes]]]:
    """The mounts of this namespace by their number, or only one of them."""
    # Not as text, which has more line ends than the kernel escapes: kubelet mounts a volume's subPath below the pods'
    # directory, and a pod's author may have a carriage return in it.
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            number, _, rest = line.partition(b" ")
            if only is None or int(number) == only:
                fields = rest.split(b" ")
                kind = fields.index(b"-") + 1
                yield int(number), (fields[2], fields[kind], fields[kind + 1])


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
