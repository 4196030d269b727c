"""What lets a new process pick volumes up again: one small file a volume, never a key or a token in it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path

from csi.attributes import parse_attributes
from csi.errors import InvalidRequest
from csi.files import fill
from csi.model import PodRef, Volume
from csi.profile import PROFILES
from csi.request import check_target, check_volume_id

_VERSION = 2
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

    def record(self, entry: Entry) -> None:
        """Write `entry`, whole or not at all. Raises OSError."""
        volume = entry.volume
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
            "serial": entry.serial,
            "renew_at": entry.renew_at.isoformat(),
        }
        path = self._path(volume.id)
        temporary = path.with_suffix(_TEMPORARY)
        content = json.dumps(document).encode()
        try:
            _write(temporary, content)
        except FileNotFoundError:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(temporary, content)
        os.replace(temporary, path)

    def forget(self, volume_id: str) -> None:
        """Remove the entry, and what a crash or damage left of it; none there is fine."""
        path = self._path(volume_id)
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
        document = json.loads(path.read_text(encoding="utf-8"))
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
        return Entry(volume=volume, serial=str(document["serial"]), renew_at=renew_at)

    def _path(self, volume_id: str) -> Path:
        check_volume_id(volume_id)
        return self._directory / f"{volume_id}{_SUFFIX}"


def _write(path: Path, content: bytes) -> None:
    with FileIO(path, "w") as file:
        fill(file, content)
