"""The values that carry a pod's volume from kubelet's request to the files: made once, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from svid.identity import WorkloadIdentity
from svid.jwtsvid import JwtSvid
from svid.keys import KeyAlgorithm
from svid.renewal import RenewalWindow


@dataclass(frozen=True, slots=True)
class PodRef:
    """The pod that mounts the volume, as kubelet names it (podInfoOnMount)."""

    namespace: str
    name: str
    uid: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def trace_facts(self) -> dict[str, str]:
        """The pod by OpenTelemetry's names for it."""
        return {"k8s.namespace.name": self.namespace, "k8s.pod.name": self.name, "k8s.pod.uid": self.uid}


@dataclass(frozen=True, slots=True)
class PodToken:
    """The pod-bound service account tokens from kubelet, as the JSON text it sent; never printed."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwtFile:
    """A JWT-SVID for all of `audiences`, which are in order, to be kept as a file of that name in the volume."""

    name: str
    audiences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """What a pod's author chose through volumeAttributes; nothing in it decides who the pod is.

    `profile` is the driver's. `given` holds the attributes as they were written, so that the journal can keep them and
    read them again.
    """

    given: tuple[tuple[str, str], ...] = ()
    profile: str = "podsvid"
    layout: str = "spiffe"
    key_algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256
    ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()
    jwt_files: tuple[JwtFile, ...] = ()
    # Role of a file in the layout to the name that it has instead of the layout's.
    file_names: tuple[tuple[str, str], ...] = ()
    file_mode: int | None = None
    key_mode: int | None = None
    owner: int | None = None
    group: int | None = None
    keystores: str = "none"
    keystore_password: str | None = field(default=None, repr=False)

    @property
    def ttl_text(self) -> str:
        """`ttl` as the pod's author wrote it; empty without one."""
        return dict(self.given).get("ttl", "")

    @property
    def has_keystores(self) -> bool:
        """Whether there are PKCS#12 stores; deriving their keys takes milliseconds, too long for an event loop."""
        return self.keystores == "pkcs12" or self.layout == "keystore"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a volume's files are made of: the identity, and the JWT-SVIDs by the name of their file."""

    identity: WorkloadIdentity
    jwt_svids: Mapping[str, JwtSvid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Volume:
    """One published volume: everything a publish call decides about it, secrets left out.

    `target` is kubelet's target_path, `below_pods` the same as components below `<kubelet-root>/pods`, checked.
    `group` is the gid that owns it or None, `driver` the CSI driver name that it was published through.
    """

    id: str
    target: str
    below_pods: tuple[str, ...]
    pod: PodRef
    group: int | None
    options: VolumeOptions = VolumeOptions()
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Issued:
    """What was just minted for a volume and the instant drawn for the renewal of its SVIDs (aware UTC).

    `notice` says which of the pod author's wishes the authority did not grant; empty when it granted all. `window` is
    what that instant was drawn in, where it is known. `policy`: which one gave the identity, for people.
    """

    contents: Contents
    renew_at: datetime
    notice: str = ""
    window: RenewalWindow | None = None
    policy: str = ""

    @property
    def identity(self) -> WorkloadIdentity:
        return self.contents.identity


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes of memory that a volume takes `now`, and once it is `grown`: with as many generations as are kept."""

    now: int
    grown: int


@dataclass(frozen=True, slots=True)
class Condition:
    """A volume's health in CSI's words."""

    abnormal: bool
    message: str
