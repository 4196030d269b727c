"""All that is read of a cluster, once: each part is there, is absent, or could not be had and says why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from podsvid.by_kubeconfig import NOT_FOUND, NotTold
from podsvid.doctor import answers, objects
from podsvid.waiting import GaveUp, Waiting, say
from signer.errors import SignerError

_Kind = TypeVar("_Kind")
_Item = TypeVar("_Item")
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
# Of ClusterTrustBundles, newest first.
_BUNDLES = tuple(
    f"/apis/certificates.k8s.io/{version}/clustertrustbundles" for version in ("v1", "v1beta1", "v1alpha1")
)
_OURS = "app.kubernetes.io/managed-by=podsvid"
_BUNDLE = "podsvid-bundle"
# Seconds for one part, of those that there are for all: what hangs leaves the others their time.
SHARE = 15.0


class Cluster(Protocol):
    """What of a KubeconfigCluster is needed; every method raises SignerError."""

    podsvid_namespace: str
    dated: str

    @property
    def host(self) -> str: ...

    def read(self, path: str, query: Mapping[str, str], kind: type[_Kind]) -> _Kind: ...

    def signer(self) -> str: ...

    def run(self, pod: str, container: str, command: list[str]) -> Any: ...


@dataclass
class Seen:
    """What there is. None: it is absent, or, where `missing` has the part's name and why, it could not be had.

    `heard`: when each node's lease came, by the API server's clock.
    """

    namespace: str
    version: str | None = None
    agents: objects.Workload | None = None
    signers: objects.Workload | None = None
    pods: tuple[objects.Pod, ...] | None = None
    # What kubelet could not mount, asked for only where a pod is being made.
    unmounted: tuple[objects.Event, ...] | None = None
    drivers: tuple[objects.Driver, ...] | None = None
    csi_nodes: tuple[objects.CsiNode, ...] | None = None
    nodes: tuple[objects.Node, ...] | None = None
    leases: tuple[objects.Lease, ...] | None = None
    heard: datetime | None = None
    kinds: frozenset[str] | None = None
    # What is wrong with it; empty: nothing.
    admission: str | None = None
    policies: tuple[objects.Declared, ...] | None = None
    federations: tuple[objects.Declared, ...] | None = None
    # Of the bundle's name only, in every namespace.
    bundle_name: str = _BUNDLE
    config_maps: tuple[objects.ConfigMap, ...] | None = None
    trust_bundles: tuple[objects.ClusterTrustBundle, ...] | None = None
    authority: answers.Status | None = None
    published: answers.Bundle | None = None
    missing: dict[str, str] = field(default_factory=dict)


def look(cluster: Cluster, waiting: Waiting) -> Seen:
    """Raises SignerError and GaveUp where not even the API server answers."""
    seen = Seen(cluster.podsvid_namespace)
    host = f"the API server {cluster.host}"
    # Everybody may read it: who cannot has no API server, or no credentials.
    seen.version = waiting.ask(host, lambda: cluster.read("/version", {}, objects.Version)).git_version

    told: set[str] = set()

    def part(title: str, work: Callable[[], _Item], who: str = host) -> _Item | None:
        def tell(text: str) -> None:
            if who not in told:
                told.add(who)
                say(text)

        try:
            return Waiting(min(waiting.left(), SHARE), tell, longer="").ask(who, work)
        except (SignerError, GaveUp) as error:
            if getattr(error, "status", 0) != NOT_FOUND:
                seen.missing[title] = str(error)
            return None

    def one(title: str, path: str, kind: type[_Item]) -> _Item | None:
        return part(title, lambda: cluster.read(path, {}, kind))

    def some(
        title: str, path: str, kind: type[_Item], query: Mapping[str, str] | None = None
    ) -> tuple[_Item, ...] | None:
        return part(title, lambda: _items(cluster, path, query or {}, kind))

    namespace = quote(seen.namespace)
    apps = f"/apis/apps/v1/namespaces/{namespace}"
    seen.agents = one("the agents' DaemonSet", f"{apps}/daemonsets/podsvid-agent", objects.Workload)
    seen.signers = one("the signers' Deployment", f"{apps}/deployments/podsvid-signer", objects.Workload)
    ours = {"labelSelector": "app.kubernetes.io/name=podsvid"}
    seen.pods = some("podsvid's pods", f"/api/v1/namespaces/{namespace}/pods", objects.Pod, ours)
    if any(each.mounting for each in seen.pods or ()):
        failed = {"fieldSelector": "involvedObject.kind=Pod,reason=FailedMount"}
        events = f"/api/v1/namespaces/{namespace}/events"
        seen.unmounted = some("events of podsvid's pods", events, objects.Event, failed)
    seen.drivers = some("CSIDriver objects", "/apis/storage.k8s.io/v1/csidrivers", objects.Driver, ours)
    seen.csi_nodes = some("CSINode objects", "/apis/storage.k8s.io/v1/csinodes", objects.CsiNode)
    seen.nodes = some("nodes", "/api/v1/nodes", objects.Node)
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    seen.leases = some("nodes' leases", leases, objects.Lease)
    seen.heard = _when(cluster.dated)
    group = one("podsvid's custom resources", "/apis/podsvid.io/v1alpha1", objects.Group)
    if "podsvid's custom resources" not in seen.missing:
        seen.kinds = frozenset(each.name for each in (group.resources if group else ()))
    _admission(cluster, part, seen)
    for title, names in (("policies", ("clusterworkloadidentities", "workloadidentities")),
                         ("federations", ("federatedtrustdomains",))):  # fmt: skip
        found = [some(title, f"/apis/podsvid.io/v1alpha1/{name}", objects.Declared) for name in names]
        if title not in seen.missing:
            setattr(seen, title, tuple(each for part_of in found for each in part_of or ()))
    seen.bundle_name = _bundle_name(seen.agents)
    # By the name, and whoever made them: another's of that name is in the bundle's place.
    named = {"fieldSelector": f"metadata.name={seen.bundle_name}"}
    seen.config_maps = some("published ConfigMaps", "/api/v1/configmaps", objects.ConfigMap, named)
    for path in _BUNDLES:
        title = "ClusterTrustBundles"
        seen.trust_bundles = some(title, path, objects.ClusterTrustBundle, {"labelSelector": _OURS})
        if seen.trust_bundles is not None or title in seen.missing:
            break
    if seen.signers is not None or "the signers' Deployment" in seen.missing:
        signer = part("a signer", cluster.signer)
        if signer is not None:
            _ask(cluster, part, seen, signer)
    return seen


def _items(cluster: Cluster, path: str, query: Mapping[str, str], kind: type[_Item]) -> tuple[_Item, ...]:
    raw = cluster.read(path, query, _List).items
    try:
        return tuple(msgspec.json.decode(each, type=kind) for each in raw)
    except msgspec.DecodeError as error:
        raise NotTold(f"{path} has what is no such object: {error}") from None


class _List(msgspec.Struct, frozen=True):
    items: tuple[msgspec.Raw, ...]


def _ask(cluster: Cluster, part: Callable[..., Any], seen: Seen, signer: str) -> None:
    """What a signer says, and beside it the one that leads: only that one knows what the CA above said."""
    # Without --socket, by which signers of other versions are found, too.
    show = ["show", "--output", "json"]

    def said(pod: str, what: str, kind: type[_Item]) -> Callable[[], _Item]:
        return lambda: _said(cluster, pod, [what, *show], kind)

    seen.authority = part("the authorities", said(signer, "authority", answers.Status), f"pod {signer}")
    leader = seen.authority.leader if seen.authority else ""
    if leader != signer and any(each.metadata.name == leader and each.ready for each in seen.pods or ()):
        title = "the authorities, of the signer that leads"
        led = part(title, said(leader, "authority", answers.Status), f"pod {leader}")
        seen.authority = led or seen.authority
    seen.published = part("the signer's bundle", said(signer, "bundle", answers.Bundle), f"pod {signer}")


def _bundle_name(agents: objects.Workload | None) -> str:
    """Of the ConfigMap that agents begin with."""
    volumes = (agents.spec.template.spec.volumes if agents else None) or ()
    return next((each.config_map.name for each in volumes if each.name == "bundle" and each.config_map), _BUNDLE)


def _admission(cluster: Cluster, part: Callable[..., Any], seen: Seen) -> None:
    title, wrong = "admission policies", []
    for name in ("podsvid-signer", "podsvid-pod-certificates", "podsvid-trust-domain"):
        paths = [
            f"{_ADMISSION}/{each}/{name}"
            for each in ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
        ]
        policy, binding = (part(title, lambda path=path: cluster.read(path, {}, objects.Binding)) for path in paths)
        if title in seen.missing:
            return
        # The others belong to what may be switched off.
        if (policy is None or binding is None) and (name == "podsvid-signer" or policy is not binding):
            wrong.append(f"ValidatingAdmissionPolicy {name} or its binding is not there")
        elif binding is not None and "Deny" not in (binding.spec.validation_actions or ()):
            wrong.append(f"ValidatingAdmissionPolicyBinding {name} is without Deny: it refuses nothing")
    seen.admission = "; ".join(wrong)


def _said(cluster: Cluster, pod: str, command: list[str], kind: type[_Item]) -> _Item:
    found = cluster.run(pod, "signer", ["podsvid", *command])
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise NotTold(f"pod {pod} answered {' '.join(command[:2])} with something else: {error}") from None


def _when(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (TypeError, ValueError):
        return None
