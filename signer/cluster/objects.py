"""What the signer keeps of the objects that it lists and watches: these fields are read, all others are passed over.

A pod's author chooses how large a pod is. What is not declared here is skipped where it stands, without becoming an
object of Python: `msgspec` reads what it is told to and nothing else.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, TypeVar

import msgspec

_Same = TypeVar("_Same")

# Kubernetes bounds a label (317 and 63 characters), not how many an object has.
MAX_LABELS = 128
MAX_LABEL_CHARACTERS = 16 * 1024
# Labels by which a Service selects, and their characters together.
MAX_SELECTOR, MAX_SELECTOR_CHARACTERS = 16, 2048


class Metadata(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of any object. Annotations are not kept: they may have 256 KiB."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    generation: int | None = None
    labels: dict[str, str] | None = None


class Item(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What all objects have. `partial`: nothing else is wanted, so that the API server sends nothing else."""

    partial: ClassVar[bool] = False
    metadata: Metadata = Metadata()


class Named(Item, frozen=True, gc=False):
    """An object of which only the metadata is wanted."""

    partial: ClassVar[bool] = True


class PodAnnotations(msgspec.Struct, frozen=True, gc=False):
    """Whether a pod is a static one; UNSET is not there, and any value counts."""

    mirror: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="kubernetes.io/config.mirror", default=msgspec.UNSET)


class PodMetadata(Metadata, frozen=True, gc=False, rename="camel"):
    """With the one annotation that is looked at, and how long its end may take, in seconds."""

    deletion_grace_period_seconds: int | None = None
    annotations: PodAnnotations | None = None


class VolumeAttributes(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What a pod's author asks for that policy may refuse."""

    key_algorithm: str | None = None
    dns_names: str | None = None


class InlineDriver(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The `csi` of a volume."""

    driver: str | None = None
    volume_attributes: VolumeAttributes | None = None


class PodCertificateSource(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a projected volume: which signer's certificate kubelet asks for, for how long it may live, and what its author
    asks for that policy may refuse."""

    signer_name: str | None = None
    max_expiration_seconds: int | None = None
    key_type: str | None = None
    user_annotations: dict[str, str] | None = None


class ProjectedSource(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One of a projected volume's sources; of most kinds nothing is kept."""

    pod_certificate: PodCertificateSource | None = None


class Projected(msgspec.Struct, frozen=True, gc=False):
    """The `projected` of a volume."""

    sources: list[ProjectedSource] | None = None


class Volume(msgspec.Struct, frozen=True, gc=False):
    """A pod's volume."""

    name: str | None = None
    csi: InlineDriver | None = None
    projected: Projected | None = None


class VolumeMount(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Where a container has a volume."""

    name: str | None = None
    sub_path: str | None = None
    sub_path_expr: str | None = None


class Container(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a pod. `restart_policy`: of those that run before the others, and Always where they go on."""

    name: str | None = None
    restart_policy: str | None = None
    volume_mounts: list[VolumeMount] | None = None


class PodSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a pod."""

    node_name: str | None = None
    service_account_name: str | None = None
    volumes: list[Volume] | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class Address(msgspec.Struct, frozen=True, gc=False):
    """Of a pod or its host."""

    ip: str | None = None


class PodState(msgspec.Struct, frozen=True, gc=False):
    """The `status` of a pod."""

    phase: str | None = None
    pod_ips: list[Address] | None = msgspec.field(name="podIPs", default=None)
    host_ips: list[Address] | None = msgspec.field(name="hostIPs", default=None)


class Pod(Item, frozen=True, gc=False):
    """Of a pod."""

    metadata: PodMetadata = PodMetadata()
    spec: PodSpec | None = None
    status: PodState | None = None


class PolicyObject(Item, frozen=True, gc=False):
    """A WorkloadIdentity or ClusterWorkloadIdentity. Its `spec` is text yet: its reader knows what it may hold."""

    spec: msgspec.Raw = msgspec.Raw(b"{}")


class PolicyRank(msgspec.Struct, frozen=True, gc=False):
    """Of a policy's `spec` what says where it stands among others; of any type, as its reader holds them to theirs."""

    deny: Any = None
    priority: Any = None


class FederationState(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of the `status` of a FederatedTrustDomain what is read again."""

    fetched_at: str | None = None


class FederatedTrustDomainObject(Item, frozen=True, gc=False):
    """A FederatedTrustDomain. Its `spec` is text yet: its reader knows what it may hold."""

    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: FederationState | None = None


class ServiceSpec(msgspec.Struct, frozen=True, gc=False):
    """Of a Service."""

    type: str | None = None
    selector: dict[str, str] | None = None


class ServiceObject(Item, frozen=True, gc=False):
    """A Service."""

    spec: ServiceSpec | None = None


class DataObject(Item, frozen=True, gc=False, rename="camel"):
    """A ConfigMap, or a Secret: then the values are base64."""

    data: dict[str, str] | None = None
    binary_data: dict[str, msgspec.Raw] | None = None


class TrustBundleSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a ClusterTrustBundle."""

    trust_bundle: str | None = None


class TrustBundleObject(Item, frozen=True, gc=False):
    """A ClusterTrustBundle."""

    spec: TrustBundleSpec | None = None


class NodeSpec(msgspec.Struct, frozen=True, gc=False):
    """Of a node. Taints whole, as they are written back with each other."""

    taints: list[dict[str, Any]] | None = None


class Node(Item, frozen=True, gc=False):
    """A node."""

    spec: NodeSpec | None = None


class NodeDriver(msgspec.Struct, frozen=True, gc=False):
    """A driver that kubelet knows on a node."""

    name: str | None = None


class CsiNodeSpec(msgspec.Struct, frozen=True, gc=False):
    """Of a CSINode."""

    drivers: list[NodeDriver] | None = None


class CsiNode(Item, frozen=True, gc=False):
    """A CSINode: which drivers kubelet knows on the node of that name."""

    spec: CsiNodeSpec | None = None


class IssuerRef(msgspec.Struct, frozen=True, gc=False):
    """Which of cert-manager's issuers a request is for; what is left out is a default of cert-manager's."""

    name: str | None = None
    kind: str | None = None
    group: str | None = None


class CertificateRequestSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a CertificateRequest. `request`: PEM in base64."""

    request: str | None = None
    issuer_ref: IssuerRef | None = None
    is_ca: bool | None = msgspec.field(name="isCA", default=None)


class CertificateRequest(Item, frozen=True, gc=False):
    """Of cert-manager. Its `status` is text yet: an issuer wrote it, and its reader knows what it may hold."""

    spec: CertificateRequestSpec | None = None
    status: msgspec.Raw = msgspec.Raw(b"{}")


class PodCertificateRequestSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a PodCertificateRequest. Its key is base64 of DER: in v1 of a certificate request, before that of the key."""

    pod_name: str | None = None
    pod_uid: str | None = msgspec.field(name="podUID", default=None)
    service_account_name: str | None = None
    service_account_uid: str | None = msgspec.field(name="serviceAccountUID", default=None)
    node_name: str | None = None
    max_expiration_seconds: int | None = None
    stub_request: str | None = msgspec.field(name="stubPKCS10Request", default=None)
    public_key: str | None = msgspec.field(name="pkixPublicKey", default=None)
    proof_of_possession: str | None = None
    unverified_user_annotations: dict[str, str] | None = None


class ConditionType(msgspec.Struct, frozen=True, gc=False):
    """Of a condition that it is there."""

    type: str | None = None


class PodCertificateRequestState(msgspec.Struct, frozen=True, gc=False):
    """The `status` of a PodCertificateRequest: with any condition it is decided."""

    conditions: list[ConditionType] | None = None


class PodCertificateRequestObject(Item, frozen=True, gc=False):
    """A PodCertificateRequest."""

    spec: PodCertificateRequestSpec | None = None
    status: PodCertificateRequestState | None = None


def plain(each: DataObject) -> dict[str, Any]:
    """A ConfigMap or Secret as the JSON object that it was, without what is not kept."""
    name, version = each.metadata.name, each.metadata.resource_version
    return {"metadata": {"name": name, "resourceVersion": version}, "data": each.data}


def instant(text: str | None) -> datetime | None:
    """A time that the API server wrote; None for what is none, or cannot be compared with others."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def few_labels(labels: Mapping[str, str]) -> bool:
    """Whether they are so few and short that they can be kept for every object of a kind."""
    return _few(labels, MAX_LABELS, MAX_LABEL_CHARACTERS)


def few_selected(labels: Mapping[str, str]) -> bool:
    """The same of the labels by which a Service selects, of which there is less need."""
    return _few(labels, MAX_SELECTOR, MAX_SELECTOR_CHARACTERS)


def _few(labels: Mapping[str, str], most: int, characters: int) -> bool:
    return len(labels) <= most and sum(map(len, labels)) + sum(map(len, labels.values())) <= characters


class Texts:
    """Gives back the first one of equal texts, or of what is made of texts: most labels are those of others, too.

    Holds `most` and then begins anew.

    `sys.intern` would hold what nobody has any more until the process ends, on Python 3.12.
    """

    def __init__(self, most: int = 16 * 1024) -> None:
        self._most = most
        self._found: dict[Any, Any] = {}

    def same(self, text: _Same) -> _Same:
        """The text itself, as it was given first."""
        if len(self._found) >= self._most:
            self._found.clear()
        found: _Same = self._found.setdefault(text, text)
        return found
