"""Pods and volumes as far as a CSI driver hears of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True)
class Pod:
    """A pod as far as a CSI driver hears of it."""

    namespace: str
    name: str
    uid: str
    service_account: str = "default"


@dataclass(frozen=True)
class PodVolume:
    """One ``volumes[].csi`` of a pod's specification, with what the kubelet adds to it.

    ``tokens`` is audience -> {"token": ..., "expirationTimestamp": ...}; ``fs_group`` is the pod's fsGroup;
    ``secrets`` stands for the Secret that ``nodePublishSecretRef`` names.
    """

    name: str = "spiffe"
    attributes: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = True
    fs_group: int | None = None
    tokens: Mapping[str, Mapping[str, str]] | None = field(default=None, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    fs_type: str = ""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            raise ValueError(f"a volume's name is one path segment, not {self.name!r}")


class VolumeState(StrEnum):
    """What the kubelet remembers of a volume; a volume that it forgot has none."""

    MOUNTED = "mounted"
    UNCERTAIN = "uncertain"


def volume_id_of(pod_uid: str, volume_name: str) -> str:
    """The volume id that the kubelet makes for an inline volume: 68 characters, never shared between pods."""
    return "csi-" + hashlib.sha256((pod_uid + volume_name).encode()).hexdigest()
