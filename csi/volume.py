"""The inside of a mounted volume: files replaced as one, and a place for the socket.

Written the way kubelet writes Secrets: a new timestamped directory, one rename of `..data`, stable links beside it.
A reader that opens `..data` once and reads through that handle never sees a key that does not fit its chain.
"""

import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from csi import layout, state
from csi.files import READ, clear, created, opened, read, remove, settle, weigh, whole
from csi.model import Contents, Volume, Weight
from csi.pb import csi_pb2
from csi.tmpfs import INODES, pages, resize, rooted, size_for
from svid.bundle import TrustBundle

_DATA = "..data"
# Where a socket is bound before it is the volume's.
_PLACE = "..socket"
# At most, where one write follows another: who began to read has some seconds, after which whoever sweeps takes all but
# the present one.
GENERATIONS_KEPT = 3


@dataclass(frozen=True, slots=True)
class Modes:
    """Who may read: `group` members where the pod has an fsGroup, else whoever can reach the volume."""

    directory: int
    file: int
    socket: int


def modes(group: int | None) -> Modes:
    """The modes of DESIGN.md: 02750/0440/0660 with an fsGroup, 0755/0444/0666 without."""
    return Modes(0o755, 0o444, 0o666) if group is None else Modes(0o2750, 0o440, 0o660)


class VolumeDirectory:
    """An open, mounted volume. Owns the descriptor until `close`. Its calls block on the file system."""

    def __init__(self, descriptor: int, volume: Volume, kept: Callable[[], int] = lambda: GENERATIONS_KEPT) -> None:
        self._fd = descriptor
        # How many generations of files are kept just now.
        self._kept = kept
        self._target = volume.target
        self._group = volume.group
        self._options = volume.options
        self._modes = modes(volume.group)
        # The same over the volume's life: a program that read it once opens the next keystore with it.
        self._password = volume.options.keystore_password or ""
        # What the trust store says.
        self._trust: TrustBundle | None = None
        # At most: what an earlier process left is not counted. Who prunes looks; a write does so where there may be one
        # too many.
        self._generations = INODES
        # Keystores are written in a thread: what is written there is nobody's to prune.
        self._writing = threading.Lock()

    @property
    def descriptor(self) -> int:
        return self._fd

    def write(self, contents: Contents, now: datetime) -> None:
        """Replace the files with those of `contents`, all at once.

        Raises OSError or SvidError and leaves the old ones as they were then.
        """
        if self._options.has_keystores and not self._password:
            self._password = secrets.token_urlsafe(24)
        files = layout.render(self._options, contents, self._password)
        kept = state.dump(state.State(contents, self._password))
        stamp = f"..{now.astimezone(UTC):%Y_%m_%d_%H_%M_%S}.{secrets.token_hex(4)}"
        with self._writing:
            self._make_room(pages(kept) + sum(pages(file.content) for file in files.values()))
            self._replace(stamp, contents.identity.bundle, files, kept)

    def _replace(self, stamp: str, trust: TrustBundle, files: Mapping[str, layout.File], kept: bytes) -> None:
        os.mkdir(stamp, 0o700, dir_fd=self._fd)
        # Whatever becomes of it.
        self._generations += 1
        try:
            self._fill(stamp, files, kept, self._trust == trust)
            self._switch(stamp)
        except BaseException:
            with suppress(OSError):
                remove(stamp, self._fd, kept=layout.lasting(self._options))
            raise
        self._trust = trust
        for name in files:
            self._link(name, f"{_DATA}/{name}")
        for name in layout.SOCKET_LINKS:
            self._link(name, layout.SOCKET)
        # One that cannot go is the next sweep's, and no reason to say that nothing was written.
        with suppress(OSError):
            if self._generations > self._kept():
                self._prune(stamp, self._kept())

    def read(self) -> Contents:
        """What an earlier process wrote. Raises OSError, SvidError."""
        directory = os.open(_DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            found = state.load(read(directory, state.NAME))
        finally:
            os.close(directory)
        self._password = self._password or found.password
        self._trust = found.contents.identity.bundle
        return found.contents

    def holds(self, contents: Contents) -> bool:
        """Whether every file is there as `contents` makes it; of a keystore, which differs each time, that it is."""
        files = layout.render(replace(self._options, keystores="none"), contents, self._password)
        try:
            directory = os.open(_DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return False
        try:
            present = set(os.listdir(directory))
            return present >= set(layout.file_names(self._options)) - {layout.SOCKET, *layout.SOCKET_LINKS} and all(
                read(directory, name) == file.content
                for name, file in files.items()
                if name not in layout.KEYSTORE_FILES
            )
        except OSError:
            return False
        finally:
            os.close(directory)

    def written_at(self) -> datetime | None:
        """When the files were replaced last; None where there are none."""
        try:
            return datetime.fromtimestamp(os.stat(_DATA, dir_fd=self._fd, follow_symlinks=False).st_mtime, UTC)
        except OSError:
            return None

    def in_place(self) -> bool:
        """Whether this is what a pod that starts now would get: nobody unmounted or covered it behind podsvid."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._target, follow_symlinks=False))
        except OSError:
            return False

    def file_names(self) -> list[str]:
        """The files and links that a pod sees."""
        return sorted(name for name in os.listdir(self._fd) if not name.startswith(".."))

    def prepare_socket(self) -> None:
        """Take away a socket that an ended process left."""
        with suppress(FileNotFoundError):
            os.unlink(layout.SOCKET, dir_fd=self._fd)

    @contextmanager
    def socket_place(self, owner: int | None, close: Callable[[int], object] = os.close) -> Iterator[int]:
        """An empty open directory in the volume, to bind in, that only `owner` can use; None is this process's user.

        No pod can reach it, and it is gone afterwards with all that is in it. What is handed to another user has
        nothing above it, whoever gets it in the end, and is closed by `close`, which may take its time. Raises OSError.
        """
        try:
            os.mkdir(_PLACE, 0o700, dir_fd=self._fd)
        except FileExistsError:
            self._clear_place()
            os.mkdir(_PLACE, 0o700, dir_fd=self._fd)
        try:
            place = os.open(_PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                if owner is not None:
                    os.fchown(place, owner, owner)
                # A group's directory hands its group and setgid bit down.
                os.fchmod(place, 0o700)
                if owner is None:
                    yield place
                else:
                    with rooted(place, close) as alone:
                        yield alone
            finally:
                os.close(place)
        finally:
            self._clear_place()

    def take_socket(self, name: str) -> None:
        """Make what was bound as `name` in the place the volume's socket, instead of one that is there.

        Whoever could bind there could leave anything there. Raises OSError for what is no socket.
        """
        path = f"{_PLACE}/{name}"
        if not self._is_socket(path):
            raise OSError(errno.EINVAL, "no socket was bound")
        os.rename(path, layout.SOCKET, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        # Where it is now nobody else can replace it.
        if not self.has_socket():
            os.unlink(layout.SOCKET, dir_fd=self._fd)
            raise OSError(errno.EINVAL, "no socket was bound")
        self.open_socket()

    def open_socket(self) -> None:
        """Give the bound socket its owner, mode and group: connect(2) needs write permission on it."""
        owner = os.geteuid(), os.getegid() if self._group is None else self._group
        found = os.stat(layout.SOCKET, dir_fd=self._fd, follow_symlinks=False)
        if (found.st_uid, found.st_gid) != owner:
            os.chown(layout.SOCKET, *owner, dir_fd=self._fd)
        os.chmod(layout.SOCKET, self._modes.socket, dir_fd=self._fd)

    def has_socket(self) -> bool:
        """Whether a socket is there."""
        return self._is_socket(layout.SOCKET)

    def usage(self) -> list[csi_pb2.VolumeUsage]:
        """Bytes and inodes of the volume's own file system."""
        found = os.fstatvfs(self._fd)
        size, free = found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize
        return [
            csi_pb2.VolumeUsage(unit=csi_pb2.VolumeUsage.BYTES, total=size, available=free, used=size - free),
            csi_pb2.VolumeUsage(
                unit=csi_pb2.VolumeUsage.INODES,
                total=found.f_files,
                available=found.f_ffree,
                used=found.f_files - found.f_ffree,
            ),
        ]

    def weight(self, mount: int, inode: int) -> Weight:
        """What it takes of memory, where the kernel takes so many bytes for a mount and an inode. Raises OSError."""
        own, _, below = weigh(self._fd, ".", inode)
        lasting = layout.lasting(self._options)
        held = [weigh(self._fd, name, inode, lasting)[:2] for name in below]
        now = mount + max(own + sum(found for found, _ in held), self._used(inode))
        # What lasts is one file of all generations, also while there is only one of them.
        anew = max((found - lasts for found, lasts in held), default=0) * GENERATIONS_KEPT
        return Weight(now, max(now, mount + own + anew + sum(lasts for _, lasts in held)))

    def prune(self) -> bool:
        """Remove older files at once, also those that a slow reader may still hold; False while others are written.

        Raises OSError where one of them cannot go, or it cannot be told which is the present one.
        """
        if not self._writing.acquire(blocking=False):
            return False
        try:
            self._prune(os.readlink(_DATA, dir_fd=self._fd), kept=1)
        finally:
            self._writing.release()
        return True

    def empty(self) -> None:
        """Take away what is in it, before it is unmounted for good; what cannot be goes with the mount.

        Whoever has anything of it open, or a socket that was bound here, keeps the file system for as long as it lives:
        with the pod's keys, and as memory of the agent.
        """
        with suppress(OSError), opened(".", self._fd) as inside:
            clear(inside, wiped=True)

    def close(self) -> None:
        """Let go of the directory, so that it can be unmounted. Idempotent."""
        # Its number may be another volume's next: who comes too late is told that there is no such descriptor.
        closing, self._fd = self._fd, -1
        if closing >= 0:
            os.close(closing)

    def is_kept_full(self) -> bool:
        """Whether most of its inodes have no name any more, so that nothing fits: a pod has open what was removed."""
        try:
            found = os.fstatvfs(self._fd)
            named = 1 + sum(len(folders) + len(files) for _, folders, files, _ in os.fwalk(dir_fd=self._fd))
        except OSError:
            return False
        return found.f_files == INODES and found.f_files - found.f_ffree - named > INODES // 2

    def _used(self, inode: int) -> int:
        """Bytes of its own file system, those included that have no name any more and are open in a pod."""
        found = os.fstatvfs(self._fd)
        if found.f_files != INODES:
            return 0  # a directory of another one
        return (found.f_blocks - found.f_bfree) * found.f_frsize + (found.f_files - found.f_ffree) * inode

    def _is_socket(self, path: str) -> bool:
        try:
            return stat.S_ISSOCK(os.stat(path, dir_fd=self._fd, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def _clear_place(self) -> None:
        try:
            os.rmdir(_PLACE, dir_fd=self._fd)
        except OSError:
            # Whoever could bind in it left something.
            remove(_PLACE, self._fd)

    def _fill(self, stamp: str, files: Mapping[str, layout.File], kept: bytes, same_trust: bool) -> None:
        options = self._options
        public, secret = (self._modes.file if mode is None else mode for mode in (options.file_mode, options.key_mode))
        owner = -1 if options.owner is None else options.owner
        group = -1 if self._group is None else self._group
        with opened(stamp, self._fd) as directory:
            settle(created(directory, state.NAME, kept), 0o400)
            for name, content in files.items():
                file = self._made(directory, name, content, same_trust)
                settle(file, secret if content.secret else public, owner, group)
            if group != -1:
                os.fchown(directory, -1, group)
            os.fchmod(directory, self._modes.directory)

    def _made(self, directory: int, name: str, file: layout.File, same_trust: bool) -> int:
        """The file, open for who may read it to be set, the caller's to close: the present one again where that says
        the same.

        Then it takes no more memory, and who has a mount of it alone (subPath) goes on having what is current.
        """
        found = self._linked(directory, name) if file.lasting else None
        if found is not None:
            try:
                # A trust store is never the same twice.
                if (name == layout.TRUSTSTORE and same_trust) or whole(found) == file.content:
                    return found
            except BaseException:
                os.close(found)
                raise
            os.close(found)
            os.unlink(name, dir_fd=directory)
        return created(directory, name, file.content)

    def _linked(self, directory: int, name: str) -> int | None:
        try:
            os.link(f"{_DATA}/{name}", name, src_dir_fd=self._fd, dst_dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None
        try:
            return os.open(name, READ, dir_fd=directory)
        except OSError:
            os.unlink(name, dir_fd=directory)
            return None

    def _make_room(self, generation: int) -> None:
        """Have files of so many bytes fit: the file system follows what is in it, and older files give way.

        What does not help is told by the write that does not fit.
        """
        found = os.fstatvfs(self._fd)
        if found.f_files != INODES:
            return  # a directory of another one
        size = size_for(generation, GENERATIONS_KEPT)
        if size != found.f_blocks * found.f_frsize:
            with suppress(OSError):
                resize(self._fd, size)
                found = os.fstatvfs(self._fd)
        if generation > found.f_bfree * found.f_frsize:
            with suppress(OSError):
                self._prune(os.readlink(_DATA, dir_fd=self._fd), kept=1)

    def _switch(self, stamp: str) -> None:
        temporary = f"{_DATA}_tmp"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self._fd)
        os.symlink(stamp, temporary, dir_fd=self._fd)
        os.rename(temporary, _DATA, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _link(self, name: str, target: str) -> None:
        try:
            if os.readlink(name, dir_fd=self._fd) == target:
                return
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError:
            os.unlink(name, dir_fd=self._fd)
        os.symlink(target, name, dir_fd=self._fd)

    def _prune(self, current: str, kept: int) -> None:
        self._generations = INODES
        stamps = [
            (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
            for entry in os.scandir(self._fd)
            if entry.name.startswith("..2") and entry.name != current and entry.is_dir(follow_symlinks=False)
        ]
        failed: OSError | None = None
        for _, name in sorted(stamps, reverse=True)[kept - 1 :]:
            # A pod that opened all and closed none would keep them, in memory that is the agent's, until the volume is
            # full. What most renewals do not change is left to it: a program may have a mount of that alone (subPath).
            try:
                if not remove(name, self._fd, kept=layout.lasting(self._options)):
                    failed = OSError(errno.EBUSY, "something is mounted in them")
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed
        self._generations = kept
