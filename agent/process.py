"""The agent as a process: the only one of its run directory, and without core files."""

import ctypes
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import AlreadyRunning

# In the run directory.
LOCK = "lock"
# mallopt(3): heaps of the C library; it makes one for each thread otherwise, eight for each core, and they stay.
_M_ARENA_MAX, _ARENAS = -8, 2


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """No other agent uses that directory while inside. Raises AlreadyRunning, OSError."""
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = run_dir / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(f"another podsvid agent uses {run_dir}; stop it or choose another run_dir") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)  # one that stopped meanwhile took its lock file away
    try:
        yield
    finally:
        os.close(descriptor)


def prepare() -> None:
    """What holds for this process and those that it starts."""
    # Keys are in this process's memory: no core file. Every volume holds a few descriptors.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    # Before there are threads. Another C library may not have it.
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
