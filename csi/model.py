"""The values that carry a pod's volume from kubelet's request to the files: made once, never changed."""

from dataclasses import dataclass, field
from datetime import datetime

from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm


@dataclass(frozen=True, slots=True)
class PodRef:
    """The pod that mounts the volume, as kubelet names it (podInfoOnMount)."""

    namespace: str
    name: str
    uid: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PodToken:
    """The pod-bound service account tokens from kubelet, as the JSON text it sent; never printed."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Volume:
    """One published volume: everything a publish call decides about it, secrets left out.

    `target` is kubelet's target_path, `below_pods` the same as components below `<kubelet-root>/pods`, checked.
    `group` is the pod's fsGroup (a gid) or None.
    """

    id: str
    target: str
    below_pods: tuple[str, ...]
    pod: PodRef
    group: int | None
    key_algorithm: KeyAlgorithm


@dataclass(frozen=True, slots=True)
class Issued:
    """An identity just minted and the instant drawn for its renewal (aware UTC)."""

    identity: WorkloadIdentity
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class Condition:
    """A volume's health in CSI's words."""

    abnormal: bool
    message: str
