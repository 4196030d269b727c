"""A memory cgroup around a process: version 1 or 2, whichever this machine has."""

import errno
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
NAME = "podsvid-bench"
REMOVAL_SECONDS = 10.0


class NoCgroup(Exception):
    """No group can be made here. Its text says why and what to do."""


@dataclass(frozen=True)
class Limited:
    """A group with a limit. `version` is 1 or 2."""

    folder: Path
    version: int

    def command(self, *command: str) -> list[str]:
        """What starts that command in the group; it is in it from its first page on."""
        return ["sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"', "sh", *command]

    def peak(self) -> int:
        """Bytes that all of it had at once, the kernel's own for its sockets too; 0 where the kernel does not tell."""
        return self._number("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    def used(self) -> int:
        """Bytes just now."""
        return self._number("memory.usage_in_bytes" if self.version == 1 else "memory.current")

    def killed(self) -> int:
        """Processes that the limit has ended."""
        text = (self.folder / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def _number(self, name: str) -> int:
        try:
            return int((self.folder / name).read_text())
        except FileNotFoundError:  # memory.peak is of Linux 5.19 and later
            return 0


@contextmanager
def limited(most: int, root: Path = ROOT) -> Iterator[Limited]:
    """A new group of `most` bytes without swap, until left; who is in it then is ended. Raises NoCgroup."""
    try:
        made = _made(root)
        _write(made.folder / ("memory.limit_in_bytes" if made.version == 1 else "memory.max"), str(most))
    except OSError as error:
        raise NoCgroup(
            f"no memory cgroup can be made below {root}: {error}; run as root, in a container with a writable "
            f"{root} (docker run --privileged --cgroupns=private)"
        ) from None
    for name, value in (("memory.swappiness", "0"), ("memory.swap.max", "0")):
        # A machine without swap has no file for it.
        with suppress(FileNotFoundError):
            _write(made.folder / name, value)
    try:
        yield made
    finally:
        _remove(made.folder)


def _made(root: Path) -> Limited:
    """Raises OSError, NoCgroup."""
    if (root / "memory" / "memory.limit_in_bytes").exists():
        above, version = root / "memory", 1
    elif "memory" in _read(root / "cgroup.controllers").split():
        if "memory" not in _read(root / "cgroup.subtree_control").split():
            _delegate(root)
        above, version = root, 2
    else:
        raise NoCgroup(f"this machine has no memory controller at {root}: neither version 1 nor 2")
    # Not by this process' number: groups outlive a container, in which the same numbers come again.
    return Limited(Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir=above)), version)


def _remove(folder: Path) -> None:
    """A group is busy until the kernel has taken its last process away, some time after that has ended."""
    end = time.monotonic() + REMOVAL_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                return
        else:
            return
        for each in _read(folder / "cgroup.procs").split():
            with suppress(ProcessLookupError):
                os.kill(int(each), signal.SIGKILL)
        time.sleep(0.05)


def _delegate(root: Path) -> None:
    """Let groups below have limits. Where the root is a container's, its processes must be in a leaf for that."""
    try:
        _write(root / "cgroup.subtree_control", "+memory")
    except OSError:
        leaf = root / f"{NAME}-others"
        leaf.mkdir(exist_ok=True)
        for each in _read(root / "cgroup.procs").split():
            with suppress(OSError):  # it has ended, or is the kernel's
                _write(leaf / "cgroup.procs", each)
        _write(root / "cgroup.subtree_control", "+memory")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _write(path: Path, value: str) -> None:
    # Never made: a cgroup's files are there or are not.
    with path.open("r+", encoding="ascii") as file:
        file.write(value)
