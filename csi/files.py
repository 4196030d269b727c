"""Steps on the files of an open directory, which is reached by no path; no symlink is followed. All block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY

# To read a file, to write to it, and to make one that is not there.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Bytes of /proc/PID/fdinfo/FD that are read: the mount's id is in the third line of the first hundred.
_FDINFO = 4096
# Directories in one another that are looked into: whoever makes more of them keeps them until the unmount.
DEPTH = 32


@contextmanager
def opened(name: str, parent: int) -> Iterator[int]:
    """The directory `name` of `parent`, opened without following a symlink, closed afterwards. Raises OSError."""
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield directory
    finally:
        os.close(directory)


def weigh(parent: int, name: str, inode: int, lasting: frozenset[str] = frozenset()) -> tuple[int, int, list[str]]:
    """Bytes of what is in that directory beside other directories, itself included; how many of them are of files with
    such `lasting` names; and the names of those directories."""
    found, lasts, below = inode, 0, list[str]()
    # Opened anew: whoever reads the same open directory at the same time would get the other half.
    with opened(name, parent) as directory:
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            elif entry.is_symlink():
                # Ours take no page, and most of what is there are links: they are not looked at.
                found += inode
            else:
                seen = entry.stat(follow_symlinks=False)
                # A file of several generations is in each of them by its part.
                part = (inode + seen.st_blocks * 512) // seen.st_nlink
                found += part
                lasts += part if entry.name in lasting else 0
    return found, lasts, below


def created(directory: int, name: str, content: bytes) -> int:
    """A new file that holds all of `content`, open to have set who reads it; the caller's to close.

    Raises OSError. Not as a file of Python's, which asks about each twice before it writes.
    """
    file = os.open(name, _CREATE, 0o600, dir_fd=directory)
    try:
        fill(file, content)
    except BaseException:
        os.close(file)
        raise
    return file


def settle(file: int, mode: int, owner: int = -1, group: int = -1) -> None:
    """Have it read by whom it is for, and close it. Raises OSError."""
    try:
        # Before the mode, which is for them: until then nobody else can open it.
        if (owner, group) != (-1, -1):
            os.fchown(file, owner, group)
        os.fchmod(file, mode)
    finally:
        os.close(file)


def fill(file: int, content: bytes) -> None:
    """Write all of it to an open file. Raises OSError."""
    rest = memoryview(content)
    while rest:
        # Of what does not fit any more write(2) takes a part, and complains at the next call only.
        rest = rest[os.write(file, rest) :]


def read(directory: int, name: str) -> bytes:
    """What is in the file `name` of `directory`. Raises OSError."""
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read()


def mount_id(file: int) -> int:
    """The id of the mount that an open file lies in: unlike device numbers it tells bind mounts apart."""
    # As a file of Python's it would be three times as many system calls.
    info = os.open(f"/proc/self/fdinfo/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(info, _FDINFO).splitlines()
    finally:
        os.close(info)
    return next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id:"))


def clear(directory: int, *, wiped: bool = False, kept: frozenset[str] = frozenset(), depth: int = DEPTH) -> bool:
    """Remove what is in the open `directory`; False if something is mounted in there, which is left as it is.

    `wiped`: files are empty for who has them open, but those called as in `kept`. Raises OSError.
    """
    device, whole = os.fstat(directory).st_dev if wiped else 0, True
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            whole = remove(entry.name, directory, wiped=wiped, kept=kept, depth=depth - 1) and whole
            continue
        if wiped and entry.name not in kept and entry.is_file(follow_symlinks=False):
            # Before it goes: what an end of the process leaves in between has a name, and the next sweep finds it.
            _wipe(entry, directory, device)
        whole = _unlinked(entry.name, directory) and whole
    return whole


def remove(
    name: str, parent: int, *, wiped: bool = True, kept: frozenset[str] = frozenset(), depth: int = DEPTH
) -> bool:
    """The same of the directory `name` of `parent`, and of itself. Raises OSError."""
    with opened(name, parent) as directory:
        if not depth or mount_id(directory) != mount_id(parent):
            return False
        whole = clear(directory, wiped=wiped, kept=kept, depth=depth)
    if whole:
        os.rmdir(name, dir_fd=parent)
    return whole


def _wipe(entry: os.DirEntry[str], directory: int, device: int) -> None:
    """Have the file of that `entry` be empty for who has it open, but not what somebody mounted in its place."""
    file = os.open(entry.name, _WRITE, dir_fd=directory)
    try:
        # A directory lists the file below a mount, and what is opened is the one above. That takes one call; to ask in
        # which mount it lies takes three.
        found = os.fstat(file)
        if (found.st_dev, found.st_ino) == (device, entry.inode()):
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _unlinked(name: str, directory: int) -> bool:
    """Whether it could be removed: not while something is mounted on it. Raises OSError."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        return False
    return True


def whole(file: int) -> bytes:
    """What is in an open file."""
    return os.pread(file, os.fstat(file).st_size, 0)
