"""Steps on the files of an open directory, which is reached by no path; no symlink is followed. All block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

# To read a file, to make it empty, and to make one that is not there.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
EMPTY = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def opened(name: str, parent: int) -> Iterator[int]:
    """The directory `name` of `parent`, opened without following a symlink, closed afterwards. Raises OSError."""
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield directory
    finally:
        os.close(directory)


def weigh(parent: int, name: str, inode: int) -> tuple[int, list[str]]:
    """Bytes of what is in that directory beside other directories, itself included, and the names of those."""
    found, below = inode, list[str]()
    # Opened anew: whoever reads the same open directory at the same time would get the other half.
    with opened(name, parent) as directory:
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            else:
                seen = entry.stat(follow_symlinks=False)
                # A file of several generations is in each of them by its part.
                found += (inode + seen.st_blocks * 512) // seen.st_nlink
    return found, below


@contextmanager
def created(directory: int, name: str, content: bytes) -> Iterator[int]:
    """A new file that holds all of `content`, open for who may read it to be set. Raises OSError."""
    with FileIO(os.open(name, _CREATE, 0o600, dir_fd=directory), "wb") as file:
        rest = memoryview(content)
        while rest:
            # Of what does not fit any more write(2) takes a part, and complains at the next call only.
            rest = rest[file.write(rest) :]
        yield file.fileno()


def read(directory: int, name: str) -> bytes:
    """What is in the file `name` of `directory`. Raises OSError."""
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read()


def whole(file: int) -> bytes:
    """What is in an open file."""
    return os.pread(file, os.fstat(file).st_size, 0)
