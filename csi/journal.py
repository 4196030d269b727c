"""What lets a new process pick volumes up again: one small file a volume, never a key or a token in it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from csi.attributes import parse_attributes
from csi.errors import InvalidRequest
from csi.files import fill
from csi.model import PodRef, Volume
from csi.profile import PROFILES
from csi.request import check_target, check_volume_id

_VERSION = 2
# Bytes of the smallest page that a kernel has.
_PAGE = 4096
# chown(2) takes this one for "leave it".
_NO_GROUP = 2**32 - 1
_SUFFIX, _TEMPORARY, _DAMAGED = ".json", ".tmp", ".damaged"


@dataclass(frozen=True, slots=True)
class Entry:
    """A published volume, the serial (hex) of its SVID and the instant drawn for that SVID's renewal."""

    volume: Volume
    serial: str
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class Damaged:
    """A journal file that cannot be used, and why."""

    path: Path
    why: str


class Journal:
    """The entries below one directory, which lives as long as the mounts do (a tmpfs such as /run)."""

    def __init__(self, directory: Path, kubelet_root: str) -> None:
        self._directory = directory
        self._kubelet_root = kubelet_root
        # By a volume's id: of which volume its file tells, from where on of an SVID, and its size.
        self._written: dict[str, tuple[Volume, int, int]] = {}

    def record(self, entry: Entry) -> None:
        """Write `entry`, whole or not at all. Raises OSError."""
        volume = entry.volume
        changing = _changing(entry)
        if self._changed(volume, changing):
            return
        document = {
            "version": _VERSION,
            "volume_id": volume.id,
            "target": volume.target,
            "pod": {
                "namespace": volume.pod.namespace,
                "name": volume.pod.name,
                "uid": volume.pod.uid,
                "service_account": volume.pod.service_account,
            },
            "group": volume.group,
            "driver": volume.driver,
            "profile": volume.options.profile,
            "attributes": dict(volume.options.given),
        }
        path = self._path(volume.id)
        temporary = path.with_suffix(_TEMPORARY)
        same = json.dumps(document).encode().removesuffix(b"}")
        content = same + changing
        try:
            _write(temporary, content)
        except FileNotFoundError:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(temporary, content)
        os.replace(temporary, path)
        self._written[volume.id] = volume, len(same), len(content)

    def _changed(self, volume: Volume, changing: bytes) -> bool:
        """Whether the volume's file says so now by one write into it: most renewals change as many bytes as there are.

        They are of one page, so that no end of the process cuts that in two: it is whole or not at all, as a new file
        is in its place, which takes the kernel several times as long. Not for who reads at the same time, of whom there
        is none; and with the host's power the mounts are gone as well. Raises OSError.
        """
        known, begins, size = self._written.get(volume.id, (None, 0, 0))
        if known is not volume or begins + len(changing) != size or size > _PAGE:
            return False
        try:
            # Nobody is waited for: a pipe of that name has no reader.
            file = os.open(self._path(volume.id), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False  # gone: made anew
        try:
            # Another one than is known is replaced. Its size tells: a directory is root's alone, and one agent's by its
            # lock. Of a file of that very size that root wrote the beginning stays root's: the next process believes it
            # as it would any that root left there, or sets it aside where it is no entry (`entries`).
            return os.fstat(file).st_size == size and os.pwrite(file, changing, begins) == len(changing)
        finally:
            os.close(file)

    def forget(self, volume_id: str) -> None:
        """Remove the entry, and what a crash or damage left of it; none there is fine."""
        path = self._path(volume_id)
        self._written.pop(volume_id, None)
        for suffix in (_SUFFIX, _TEMPORARY, _DAMAGED):
            path.with_suffix(suffix).unlink(missing_ok=True)

    def entries(self) -> Iterator[Entry | Damaged]:
        """All entries, the unusable ones as Damaged and set aside so that they are reported once."""
        if not self._directory.is_dir():
            return
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                yield self._parse(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidRequest) as error:
                aside = path.with_suffix(_DAMAGED)
                os.replace(path, aside)
                yield Damaged(aside, f"{type(error).__name__}: {error}")

    def _parse(self, path: Path) -> Entry:
        content = path.read_bytes()
        document = json.loads(content.decode("utf-8"))
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']!r} is not {_VERSION}")
        check_volume_id(document["volume_id"])
        if path.stem != document["volume_id"]:
            raise ValueError("the file's name is not its volume id")
        renew_at = datetime.fromisoformat(document["renew_at"])
        if renew_at.tzinfo is None:
            raise ValueError("renew_at has no time zone")
        group = document["group"]
        if group is not None and not (type(group) is int and 0 <= group < _NO_GROUP):
            raise ValueError("group is no group id")
        pod = PodRef(**document["pod"])
        if not all(isinstance(each, str) for each in (pod.namespace, pod.name, pod.uid, pod.service_account)):
            raise ValueError("the pod's names are no texts")
        below = check_target(document["target"], self._kubelet_root)
        if below[0] != pod.uid:
            raise ValueError("the target is another pod's")
        volume = Volume(
            id=document["volume_id"],
            target=document["target"],
            below_pods=below,
            pod=pod,
            group=group,
            options=parse_attributes(document["attributes"], PROFILES[document["profile"]]),
            driver=str(document["driver"]),
        )
        entry = Entry(volume=volume, serial=str(document["serial"]), renew_at=renew_at)
        if content.endswith(changing := _changing(entry)):
            self._written[volume.id] = volume, len(content) - len(changing), len(content)
        return entry

    def _path(self, volume_id: str) -> Path:
        check_volume_id(volume_id)
        return self._directory / f"{volume_id}{_SUFFIX}"


def _changing(entry: Entry) -> bytes:
    """What a renewal changes: the end of the document."""
    said = {"serial": entry.serial, "renew_at": entry.renew_at.isoformat(timespec="microseconds")}
    return f", {json.dumps(said)[1:]}".encode()


def _write(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fill(file, content)
    finally:
        os.close(file)
