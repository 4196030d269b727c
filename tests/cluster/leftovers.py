"""What a cluster may leave on its host: found by the names that only it uses, and removed.

A run that was killed has no say in what it leaves, so nothing here depends on what that run remembered.
"""

from __future__ import annotations

import ctypes
import json
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

from . import apart, cgroups, kubelet
from .host import ClusterError
from .layout import MARK, Layout

_STOP_SECONDS = 20.0
_MNT_DETACH = 2
_SHIMS = "containerd/state/io.containerd.runtime.v2.task/*/*/bootstrap.json"
# Where all containerds of a host have their shims listen.
_SHIM_SOCKETS = Path("/run/containerd/s")
# Where containerd keeps what it was told of pods' networks, for as long as there are some.
_NETWORKS = Path("/var/lib/cni/results")
# Folders that the components make on a host that has none, where others may put things, too.
_SHARED = (
    _SHIM_SOCKETS,
    _SHIM_SOCKETS.parent,
    kubelet.LOG_LINKS,
    kubelet.DEVICE_PLUGINS,
    kubelet.DEVICE_PLUGINS.parent,
    _NETWORKS,
    _NETWORKS.parent,
)
# Where programs put what nobody told them to put elsewhere, and by which names it is known there.
_WATCHED = tuple(map(Path, ("/run", "/etc", "/opt", "/var/lib", "/var/log", "/var/tmp", "/usr/libexec")))
_OF_CONTAINERS = re.compile("podsvid|contain|kube|cni|runc|buildah|libpod|xtables|netns|etcd|coredns")


def remove(layout: Layout, progress: Progress) -> None:
    """Remove every trace of a cluster: processes, mounts, cgroups, files; its logs stay.

    Raises ClusterError, naming what is left, if something cannot be removed.
    """
    directory = layout.directory
    shim_sockets = _shim_sockets(directory)
    _kill_all(directory)
    for folder in (directory, layout.agent_run_dir):
        remove_mounts(folder)
    cgroups.remove(directory)
    apart.sweep()
    for path in shim_sockets:
        path.unlink(missing_ok=True)
    if kubelet.LOG_LINKS.is_dir():
        for link in kubelet.LOG_LINKS.iterdir():
            if link.is_symlink() and str(link.readlink()).startswith(f"{directory}/"):
                link.unlink()
    if directory.exists() and not kubelet.runs():
        (kubelet.DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
        for folder in _SHARED:
            with suppress(OSError):  # not there, or holding what is not ours
                folder.rmdir()
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
    found = {str(place) for place in (layout.directory, *_SHARED) if os.path.lexists(place)}
    for folder in (*_SHARED, *_WATCHED):
        if folder.is_dir():
            found |= {str(path) for path in folder.iterdir() if folder in _SHARED or _OF_CONTAINERS.search(path.name)}
    found |= {str(group) for group in cgroups.of(layout.directory) if group.exists()}
    for folder in (layout.directory, layout.agent_run_dir, layout.network, go_tools.cache_root()):
        found |= {f"mount {path}" for path in mounts_below(folder)}
    return found | {f"process {process}" for process in _marked_processes(layout.directory)}


def _shim_sockets(directory: Path) -> set[Path]:
    """Where the cluster's shims listen, as they wrote it down; and where those do that containerd has lost."""
    found = set()
    for file in directory.glob(_SHIMS):
        with suppress(ValueError):  # half written when its run was killed
            found.add(Path(json.loads(file.read_text())["address"].removeprefix("unix://")))
    for process in _marked_processes(directory):
        with suppress(OSError):  # ended by now
            found |= {path for path in listening(Path("/proc") / str(process)) if path.parent == _SHIM_SOCKETS}
    return found


def listening(process: Path) -> set[Path]:
    """The Unix sockets of a process, by its folder in /proc."""
    held = set()
    for each in (process / "fd").iterdir():
        with suppress(OSError):  # closed by now
            held.add(os.readlink(each))
    lines = [line.split() for line in (process / "net" / "unix").read_text().splitlines()[1:]]
    # The kernel's columns end with the inode and, where the socket has one, its path.
    return {Path(line[7]) for line in lines if len(line) > 7 and f"socket:[{line[6]}]" in held}


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
