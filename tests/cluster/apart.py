"""Programs that build images, run so that nothing of them can stay on the host."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.go_tools import cache_root

from .host import run, which

# Where buildah keeps what no setting moves.
_UNASKED = (Path("/etc/cni/net.d"), Path("/var/lib/containers"))


def scratch() -> Path:
    """An empty folder; builders have a file system of their own there."""
    return cache_root() / "image-scratch"


def run_apart(command: Sequence[str]) -> str:
    """Run a builder of images so that nothing of it can stay, however it or its caller ends.

    Its mounts are in a namespace, and so are its processes, which the kernel ends with the first of them: that one is
    ended with the calling thread. Its temporary files are in memory. Raises ClusterError.
    """
    private = [scratch(), *_UNASKED]
    mounts = " && ".join(f"mount -t tmpfs -o mode=1777 builder {shlex.quote(str(each))}" for each in private)
    apart = [which("setpriv"), "--pdeathsig", "KILL", which("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
    apart += ["--mount-proc", "env", f"TMPDIR={scratch()}", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    # One at a time on a host: whoever removes a folder takes away what others have mounted there in their namespaces.
    with _alone():
        for folder in private:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            return run([*apart, *command])
        finally:
            _sweep()


@contextmanager
def _alone() -> Iterator[None]:
    # A folder that every host has: a lock file would be one more thing that stays.
    handle = os.open("/var/lib", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep() -> None:
    """Remove the empty folders that a builder was given on the host, a killed one's, too; none that is in use."""
    with _alone():
        _sweep()


def _sweep() -> None:
    for folder in (*_UNASKED, *(each.parent for each in _UNASKED)):
        with suppress(OSError):  # not there, or this host's own builder has put something in it
            folder.rmdir()
