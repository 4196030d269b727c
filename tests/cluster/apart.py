"""Programs that build images, run so that nothing of them can stay on the host."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Sequence
from contextlib import suppress
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
    cache_root().mkdir(parents=True, exist_ok=True)
    mounts = " && ".join(f"mount -t tmpfs -o mode=1777 builder {shlex.quote(str(each))}" for each in private)
    apart = [which("setpriv"), "--pdeathsig", "KILL", which("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
    apart += ["--mount-proc", "env", f"TMPDIR={scratch()}", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    # One at a time: whoever removes a folder takes away what others have mounted there in their namespaces.
    with (cache_root() / "image-scratch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder in private:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            return run([*apart, *command])
        finally:
            sweep()


def sweep() -> None:
    """Remove the empty folders that a builder was given on the host; a killed one's, too."""
    for folder in (*_UNASKED, *(each.parent for each in _UNASKED)):
        with suppress(OSError):  # not there, or this host's own builder has put something in it
            folder.rmdir()
