"""All that is read of a cluster, once: each part is there, is absent, or could not be had and says why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from podsvid.authority import DEFAULT_SOCKET
from podsvid.by_kubeconfig import NOT_FOUND, NotTold
from podsvid.doctor import objects
from podsvid.waiting import GaveUp, Waiting
from signer.errors import SignerError

_Kind = TypeVar("_Kind")
_Item = TypeVar("_Item")
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
# Of ClusterTrustBundles, newest first.
_BUNDLES = tuple(
    f"/apis/certificates.k8s.io/{version}/clustertrustbundles" for version in ("v1", "v1beta1", "v1alpha1")
)
_OURS = "app.kubernetes.io/managed-by=podsvid"


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
    drivers: tuple[objects.Driver, ...] | None = None
    csi_nodes: tuple[objects.CsiNode, ...] | None = None
    nodes: tuple[objects.Node, ...] | None = None
    leases: tuple[objects.Lease, ...] | None = None
    heard: datetime | None = None
    kinds: frozenset[str] | None = None
    admission: bool | None = None
    policies: tuple[objects.Declared, ...] | None = None
    federations: tuple[objects.Declared, ...] | None = None
    config_maps: tuple[objects.ConfigMap, ...] | None = None
    trust_bundles: tuple[objects.ClusterTrustBundle, ...] | None = None
    authority: dict[str, Any] | None = None
    published: dict[str, Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)


def look(cluster: Cluster, waiting: Waiting) -> Seen:
    """Raises SignerError and GaveUp where not even the API server answers."""
    seen = Seen(cluster.podsvid_namespace)
    host = f"the API server {cluster.host}"
    # Everybody may read it: who cannot has no API server, or no credentials.
    seen.version = waiting.ask(host, lambda: cluster.read("/version", {}, objects.Version)).git_version

    def part(title: str, work: Callable[[], _Item], who: str = host) -> _Item | None:
        try:
            return waiting.ask(who, work)
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
    seen.config_maps = some("published ConfigMaps", "/api/v1/configmaps", objects.ConfigMap, {"labelSelector": _OURS})
    for path in _BUNDLES:
        title = "ClusterTrustBundles"
        seen.trust_bundles = some(title, path, objects.ClusterTrustBundle, {"labelSelector": _OURS})
        if seen.trust_bundles is not None or title in seen.missing:
            break
    if seen.signers is not None or "the signers' Deployment" in seen.missing:
        show = ["show", "--socket", DEFAULT_SOCKET, "--output", "json"]
        signer = part("a signer", cluster.signer)
        if signer is not None:
            who = f"pod {signer}"
            seen.authority = part("the authorities", lambda: _said(cluster, signer, ["authority", *show]), who)
            seen.published = part("the signer's bundle", lambda: _said(cluster, signer, ["bundle", *show]), who)
    return seen


def _items(cluster: Cluster, path: str, query: Mapping[str, str], kind: type[_Item]) -> tuple[_Item, ...]:
    raw = cluster.read(path, query, _List).items
    try:
        return tuple(msgspec.json.decode(each, type=kind) for each in raw)
    except msgspec.DecodeError as error:
        raise NotTold(f"{path} has what is no such object: {error}") from None


class _List(msgspec.Struct, frozen=True):
    items: tuple[msgspec.Raw, ...]


def _admission(cluster: Cluster, part: Callable[..., Any], seen: Seen) -> None:
    title, names = "admission policies", ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
    paths = [f"{_ADMISSION}/{name}/podsvid-signer" for name in names]
    found = [part(title, lambda path=path: cluster.read(path, {}, _Anything)) for path in paths]
    if title not in seen.missing:
        seen.admission = all(each is not None for each in found)


class _Anything(msgspec.Struct, frozen=True):
    kind: str = ""


def _said(cluster: Cluster, pod: str, command: list[str]) -> dict[str, Any]:
    found = cluster.run(pod, "signer", ["podsvid", *command])
    if not isinstance(found, dict):
        raise NotTold(f"pod {pod} answered {' '.join(command[:2])} with something else")
    return found


def _when(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (TypeError, ValueError):
        return None
