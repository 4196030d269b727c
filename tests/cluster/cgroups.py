"""The cluster's cgroups: kubelet makes its pods' below them, so whoever is in one belongs to the cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .host import ClusterError

_ROOT = Path("/sys/fs/cgroup")
_PATIENCE_SECONDS = 20.0


def of(directory: Path) -> list[Path]:
    """The cluster's cgroup in each hierarchy: one with cgroup v2, one for each controller with v1."""
    if (_ROOT / "cgroup.procs").exists():
        return [_ROOT / directory.name]
    return [
        found / directory.name
        for found in sorted(_ROOT.iterdir())
        # A controller may also be there by a second name that is a link, as cpu -> cpu,cpuacct.
        if not found.is_symlink() and (found / "cgroup.procs").exists()
    ]


def make(directory: Path) -> None:
    """Make them."""
    for group in of(directory):
        group.mkdir(exist_ok=True)
        _inherit_cpuset(group)


def processes(directory: Path) -> Iterator[int]:
    """Who is in them, and in what is below."""
    for group in of(directory):
        # Those whose last process has just been killed are removed meanwhile, which this walk passes over.
        for folder, _, _ in os.walk(group):
            with suppress(OSError):
                yield from (int(line) for line in (Path(folder) / "cgroup.procs").read_text().split())


def remove(directory: Path) -> None:
    """Remove them. Raises ClusterError if one is still in use."""
    for group in of(directory):
        if group.exists():
            _remove(group)


def _inherit_cpuset(group: Path) -> None:
    # A new v1 cpuset group has no CPU and no memory node, and refuses every process until it is given some.
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists() and not (group / "cgroup.controllers").exists():
            (group / name).write_text((group.parent / name).read_text())


def _remove(group: Path) -> None:
    folders = [group, *(path for path in group.rglob("*") if path.is_dir())]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        while folder.exists():
            try:
                folder.rmdir()
            except OSError as error:
                # A killed process leaves its group a moment after its death.
                if time.monotonic() > deadline:
                    raise ClusterError(f"the cgroup {folder} cannot be removed: {error}") from None
                time.sleep(0.1)
