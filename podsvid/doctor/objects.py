"""What is kept of the objects that are looked at."""

from datetime import datetime
from typing import Final

import msgspec

from podsvid.kept import Condition, Metadata

# Kubelet's words for a container whose volumes, image or init containers are awaited.
_MAKING: Final = frozenset({"ContainerCreating", "PodInitializing"})


class Version(msgspec.Struct, frozen=True, rename="camel"):
    """/version."""

    git_version: str


class Waiting(msgspec.Struct, frozen=True, rename="camel"):
    reason: str = ""
    message: str = ""


class State(msgspec.Struct, frozen=True, rename="camel"):
    waiting: Waiting | None = None
    terminated: Waiting | None = None


class ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    ready: bool = False
    restart_count: int = 0
    state: State = State()
    last_state: State = State()


class Mount(msgspec.Struct, frozen=True, rename="camel"):
    mount_path: str
    mount_propagation: str = ""


class Container(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    image: str = ""
    volume_mounts: tuple[Mount, ...] | None = None


class Token(msgspec.Struct, frozen=True, rename="camel"):
    audience: str = ""


class Source(msgspec.Struct, frozen=True, rename="camel"):
    service_account_token: Token | None = None


class Projected(msgspec.Struct, frozen=True, rename="camel"):
    sources: tuple[Source, ...] | None = None


class Named(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""


class Volume(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    config_map: Named | None = None
    projected: Projected | None = None


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    containers: tuple[Container, ...] = ()
    node_name: str = ""
    volumes: tuple[Volume, ...] | None = None


class Said(msgspec.Struct, frozen=True, rename="camel"):
    """A condition with its words."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    conditions: tuple[Said, ...] | None = None
    container_statuses: tuple[ContainerStatus, ...] | None = None


class Labelled(msgspec.Struct, frozen=True, rename="camel"):
    """Metadata with the labels."""

    name: str
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: datetime | None = None

    @property
    def instance(self) -> str:
        """Which installation made it."""
        return (self.labels or {}).get("app.kubernetes.io/instance", "")

    @property
    def version(self) -> str:
        """Of podsvid, as the chart wrote it."""
        return (self.labels or {}).get("app.kubernetes.io/version", "")


class Pod(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Labelled
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def component(self) -> str:
        return (self.metadata.labels or {}).get("app.kubernetes.io/component", "")

    @property
    def ready(self) -> bool:
        return any(each.type == "Ready" and each.status == "True" for each in self.status.conditions or ())

    @property
    def mounting(self) -> bool:
        """Whether kubelet makes it ready to start: why that does not end only its events say."""
        waiting = (each.state.waiting for each in self.status.container_statuses or ())
        return any(each is not None and each.reason in _MAKING for each in waiting)


class Event(msgspec.Struct, frozen=True, rename="camel"):
    """What kubelet says of a pod, by its name."""

    involved_object: Named = Named()
    message: str = ""
    last_timestamp: datetime | None = None


class Template(msgspec.Struct, frozen=True, rename="camel"):
    spec: PodSpec = PodSpec()


class WorkloadSpec(msgspec.Struct, frozen=True, rename="camel"):
    template: Template = Template()
    replicas: int | None = None


class WorkloadStatus(msgspec.Struct, frozen=True, rename="camel"):
    # Of a DaemonSet, and of a Deployment.
    desired_number_scheduled: int = 0
    number_ready: int = 0
    ready_replicas: int = 0
    updated_number_scheduled: int | None = None
    conditions: tuple[Said, ...] | None = None


class Workload(msgspec.Struct, frozen=True, rename="camel"):
    """A DaemonSet or a Deployment."""

    metadata: Labelled
    spec: WorkloadSpec = WorkloadSpec()
    status: WorkloadStatus = WorkloadStatus()


class DriverSpec(msgspec.Struct, frozen=True, rename="camel"):
    attach_required: bool = True
    pod_info_on_mount: bool = False
    requires_republish: bool = False
    token_requests: tuple[Token, ...] | None = None
    volume_lifecycle_modes: tuple[str, ...] | None = None


class Driver(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Labelled
    spec: DriverSpec = DriverSpec()


class Registered(msgspec.Struct, frozen=True, rename="camel"):
    name: str


class CsiNodeSpec(msgspec.Struct, frozen=True, rename="camel"):
    drivers: tuple[Registered, ...] | None = None


class CsiNode(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    spec: CsiNodeSpec = CsiNodeSpec()


class Taint(msgspec.Struct, frozen=True, rename="camel"):
    key: str


class NodeSpec(msgspec.Struct, frozen=True, rename="camel"):
    taints: tuple[Taint, ...] | None = None


class NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    conditions: tuple[Condition, ...] | None = None


class Node(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def ready(self) -> bool:
        return any(each.type == "Ready" and each.status == "True" for each in self.status.conditions or ())


class LeaseSpec(msgspec.Struct, frozen=True, rename="camel"):
    renew_time: datetime | None = None


class Lease(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    spec: LeaseSpec = LeaseSpec()


class Resource(msgspec.Struct, frozen=True, rename="camel"):
    name: str


class Group(msgspec.Struct, frozen=True, rename="camel"):
    """What a group of the API has."""

    resources: tuple[Resource, ...] = ()


class PolicyStatus(msgspec.Struct, frozen=True, rename="camel"):
    pods_matched: int | None = None
    conditions: tuple[Said, ...] | None = None


class Declared(msgspec.Struct, frozen=True, rename="camel"):
    """A policy or a FederatedTrustDomain."""

    metadata: Metadata
    status: PolicyStatus | None = None

    @property
    def named(self) -> str:
        return "/".join(filter(None, (self.metadata.namespace, self.metadata.name)))

    def condition(self, name: str) -> Said | None:
        return next((each for each in (self.status and self.status.conditions) or () if each.type == name), None)


class ConfigMap(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Labelled
    data: dict[str, str] | None = None


class BundleSpec(msgspec.Struct, frozen=True, rename="camel"):
    trust_bundle: str = ""


class ClusterTrustBundle(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    spec: BundleSpec = BundleSpec()


class BindingSpec(msgspec.Struct, frozen=True, rename="camel"):
    validation_actions: tuple[str, ...] | None = None


class Binding(msgspec.Struct, frozen=True, rename="camel"):
    """Of a ValidatingAdmissionPolicy; the policy itself is one that has none of it."""

    spec: BindingSpec = BindingSpec()
