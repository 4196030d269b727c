"""The folders of the host that no setting of kubelet's or containerd's moves: each cluster has empty ones of its own.

Both run in a mount namespace for that, as otherwise a second cluster on the host would take over the first one's device
plugins and its shims' sockets. kubelet's root is shared with the host all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.mounted import mount_lines

from .host import run, which
from .layout import Layout

# Where containerds have their shims listen, and keep what they were told of pods' networks; kubelet's device plugins,
# and its links to pods' logs.
PLACES = tuple(map(Path, ("/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")))
# A host may share its own mounts with every namespace: what is mounted over these is not for it.
_MAKE = """\
for place in "$@"; do
  mkdir -p "$place"
  mount --make-slave "$(findmnt -n -o TARGET -T "$place")"
  mount -t tmpfs -o mode=755 places "$place"
done
"""


def make(layout: Layout, places: Iterable[Path] = PLACES) -> None:
    """The namespace, which stays until what is mounted below the cluster's directory is taken down.

    What the cluster shares with the host is mounted before. Raises ClusterError.
    """
    folder = layout.mounts.parent
    folder.mkdir()
    # The kernel pins a mount namespace only where no other one gets to see it.
    run([which("mount"), "--bind", str(folder), str(folder)])
    run([which("mount"), "--make-private", str(folder)])
    layout.mounts.touch()
    command = [which("unshare"), f"--mount={layout.mounts}", "--propagation", "unchanged", "sh", "-euc", _MAKE, "sh"]
    run([*command, *map(str, places)])


def inside(layout: Layout, command: Iterable[str]) -> list[str]:
    """The command that runs another one in the namespace."""
    return [which("nsenter"), f"--mount={layout.mounts}", *command]


def remove(places: Iterable[Path] = PLACES) -> None:
    """Remove the empty folders that were made on the host, where no other cluster has mounted something over them."""
    used = _mounted_anywhere()
    for place in places:
        # The kernel would take away what is mounted there in another namespace.
        if place not in used:
            with suppress(OSError):  # not there, or holding what is not ours
                place.rmdir()


def _mounted_anywhere() -> set[Path]:
    """Where any process sees a mount, in whichever namespace it is."""
    seen: set[str] = set()
    found: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended by now
            namespace = os.readlink(process / "ns" / "mnt")
            if namespace not in seen:
                found |= {Path(line.split(" ")[4]) for line in mount_lines(process.name)}
                seen.add(namespace)
    return found
