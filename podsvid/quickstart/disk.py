"""What the kubelet keeps on disk for its volumes, and the mounts below."""

import ctypes
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from podsvid.quickstart.errors import StandInError, VolumeLeftBehind

_VOLUME_DATA: Final = "vol_data.json"
_MNT_DETACH: Final = 2


class VolumeDirectories:
    """The volumes' directories below the pods' one."""

    def __init__(self, pods_dir: Path) -> None:
        self._pods_dir = pods_dir

    def make(self, volume_id: str, target: Path, driver: str, node_id: str) -> None:
        """The volume's directory, and in it the file by which a later kubelet knows it."""
        parent = target.parent
        make_private_dirs(*(d for d in reversed(parent.parents) if d.is_relative_to(self._pods_dir)), parent)
        data = {
            "attachmentID": "",
            "driverName": driver,
            "nodeName": node_id,
            "specVolID": parent.name,
            "volumeHandle": volume_id,
            "volumeLifecycleMode": "Ephemeral",
        }
        # A directory without this file would be one that nobody ever unpublishes: make it before the call.
        (parent / _VOLUME_DATA).write_text(json.dumps(data))

    def found(self) -> Iterator[tuple[str, str, Path]]:
        """What an earlier kubelet left: volume id, driver and target."""
        for path in sorted(self._pods_dir.glob(f"*/volumes/kubernetes.io~csi/*/{_VOLUME_DATA}")):
            try:
                data = json.loads(path.read_text())
                volume_id, driver = data["volumeHandle"], data["driverName"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: the kubelet logs it and leaves the directory alone
            yield volume_id, driver, path.parent / "mount"

    def remove(self, target: Path) -> None:
        """Remove target, vol_data.json and their directory, unless the target is a mount point still."""
        if Path(os.path.realpath(target)) in mount_points_below(target):
            raise VolumeLeftBehind(f"{target} is still a mount point")
        try:
            with suppress(FileNotFoundError):
                target.rmdir()
            with suppress(FileNotFoundError):
                (target.parent / _VOLUME_DATA).unlink()
            with suppress(FileNotFoundError):
                target.parent.rmdir()
        except OSError as error:
            raise VolumeLeftBehind(f"{error.filename}: {error.strerror}") from error

    def remove_pod(self, target: Path) -> None:
        """Remove the pod's directory, where nothing is in it any more."""
        # .../<uid>/volumes/kubernetes.io~csi/<name>/mount; other volumes of the pod keep what they stand in.
        for directory in list(target.parents)[1:4]:
            with suppress(OSError):
                directory.rmdir()


def make_private_dirs(*directories: Path) -> None:
    """Make what is missing, with the kubelet's own mode."""
    for directory in directories:
        with suppress(FileExistsError):
            directory.mkdir(parents=True)
            directory.chmod(0o750)  # whatever the umask is: the kubelet's own mode


def mount_points_below(directory: Path) -> tuple[Path, ...]:
    """The mount points at or below a directory in this process' mount namespace, in the order of mounting.

    Read from mountinfo: comparing device numbers would miss a bind mount from the same filesystem.
    """
    root = os.path.realpath(directory)
    # A path on Linux is bytes, other people's mounts are listed here too, and a line ends as the kernel says only.
    table = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n")
    points = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in table)
    return tuple(Path(point) for point in points if point == root or point.startswith(root.rstrip("/") + "/"))


def unmount(mount_point: Path) -> None:
    """Take a mount out of the tree. Raises StandInError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mount_point), _MNT_DETACH) != 0:
        errno = ctypes.get_errno()
        raise StandInError(f"unmount {mount_point}: {os.strerror(errno)}")
