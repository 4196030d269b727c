"""What a cluster may leave on its host: found by the names that only it uses, and removed.

A run that was killed has no say in what it leaves, so nothing here depends on what that run remembered.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests import go_tools
from tests.go_tools import Progress
from tests.mounted import mount_lines

from . import apart, cgroups, places
from .host import ClusterError
from .layout import MARK, Layout

_STOP_SECONDS = 20.0
_MNT_DETACH = 2
# Where programs put what nobody told them to put elsewhere, and by which names it is known there.
_WATCHED = tuple(map(Path, ("/run", "/etc", "/opt", "/var/lib", "/var/log", "/var/tmp", "/usr/libexec")))
_OF_CONTAINERS = re.compile("podsvid|contain|kube|cni|runc|buildah|libpod|xtables|netns|etcd|coredns")


def remove(layout: Layout, progress: Progress) -> None:
    """Remove every trace of a cluster: processes, mounts, cgroups, files; its logs stay.

    Raises ClusterError, naming what is left, if something cannot be removed.
    """
    directory = layout.directory
    _kill_all(directory)
    for folder in (directory, layout.agent_run_dir):
        remove_mounts(folder)
    cgroups.remove(directory)
    apart.sweep()
    places.remove()
    for folder in (directory, layout.agent_run_dir):
        if folder.exists():
            progress(f"removing {folder}")
            shutil.rmtree(folder)


def remove_mounts(directory: Path) -> None:
    """Take down what is mounted at and below a folder. Raises ClusterError if something stays."""
    for mount in reversed(mounts_below(directory)):
        _unmount(mount)
    left = mounts_below(directory)
    if left:
        # Removing the files now could remove what a mount holds.
        raise ClusterError(f"still mounted: {', '.join(map(str, left))}")


def mounts_below(directory: Path, mountinfo: str | None = None) -> list[Path]:
    """The mounts at and below a folder, in the order in which they were made."""
    found = []
    for line in mount_lines() if mountinfo is None else mountinfo.rstrip("\n").split("\n"):
        # The kernel writes blanks and backslashes of a path as octal escapes, and the bytes of other letters as they
        # are.
        path = Path(os.fsdecode(os.fsencode(line.split(" ")[4]).decode("unicode_escape").encode("latin-1")))
        if path == directory or directory in path.parents:
            found.append(path)
    return found


def traces(layout: Layout) -> set[str]:
    """What is there now of all that a cluster or the building of its images may make on a host."""
    found = {str(place) for place in (layout.directory, *places.PLACES) if os.path.lexists(place)}
    for folder in (*places.PLACES, *_WATCHED):
        if folder.is_dir():
            every = folder in places.PLACES
            found |= {str(path) for path in folder.iterdir() if every or _OF_CONTAINERS.search(path.name)}
    found |= {str(group) for group in cgroups.of(layout.directory) if group.exists()}
    for folder in (layout.directory, layout.agent_run_dir, layout.network, go_tools.cache_root()):
        found |= {f"mount {path}" for path in mounts_below(folder)}
    return found | {f"process {process}" for process in _marked_processes(layout.directory)}


def _kill_all(directory: Path) -> None:
    """Kill the cluster's processes and containers, and wait until they are gone."""
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        found = set(_marked_processes(directory)) | set(cgroups.processes(directory))
        if not found:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"processes that do not end: {sorted(found)}")
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            # Our own children stay as zombies until they are waited for.
            with suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)
        time.sleep(0.1)


def _marked_processes(directory: Path) -> Iterable[int]:
    mark = f"{MARK}={directory}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # A zombie's environment is empty, so what is already dead is not found again.
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(path)
    # A mount that is still in use is taken out of the tree; it goes when its last user does.
    if libc.umount2(target, 0) != 0:
        libc.umount2(target, _MNT_DETACH)
