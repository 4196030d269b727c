"""A small model of SPIRE with spire-controller-manager: which IDs a pod gets by which objects. And their making."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from signer.model import LivePod

DOMAIN = "example.org"
CLUSTER = "prod"
IGNORED = ("kube-system", "kube-public", "spire-system")
# What Go's templates make of an action for a pod; None: its execution fails, or what it makes is no part of an ID.
Render = Callable[[LivePod], str | None]


def _label(key: str) -> Render:
    return lambda pod: pod.labels.get(key, "")


def _dotted(key: str) -> Render:
    return lambda pod: pod.labels.get(key, "<no value>")


ACTIONS: Mapping[str, Render] = {
    "{{ .PodMeta.Namespace }}": lambda pod: pod.namespace,
    "{{.PodMeta.Name}}": lambda pod: pod.name,
    "{{ .PodMeta.UID }}": lambda pod: pod.uid,
    "{{- .PodSpec.ServiceAccountName -}}": lambda pod: pod.service_account,
    "{{ .PodSpec.NodeName }}": lambda pod: pod.node_name,
    "{{ .NodeMeta.Name }}": lambda pod: pod.node_name,
    '{{ index .PodMeta.Labels "app" }}': _label("app"),
    "{{ index .PodMeta.Labels `example.org/team` }}": _label("example.org/team"),
    "{{ .PodMeta.Labels.app }}": _dotted("app"),
    "{{ .TrustDomain }}": lambda pod: DOMAIN,
    "{{ .ClusterName }}": lambda pod: CLUSTER,
    '{{ index .PodMeta.Annotations "a" }}': lambda pod: "a",
    "{{ .PodSpec.Hostname | printf `%s` }}": lambda pod: "host",
}
_ID = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+", re.ASCII)


_DNS = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)


@dataclass(frozen=True)
class Node:
    """Where pods are."""

    name: str
    agent: str
    pool: str


NODES = {"node-a": Node("node-a", f"/spire/agent/k8s_psat/{CLUSTER}/a", "x"), "node-b": Node("node-b", "/b", "y")}


def rendered(parts: Sequence[str], pod: LivePod) -> str | None:
    """What a template of texts and ACTIONS makes."""
    found = [ACTIONS[each](pod) if each in ACTIONS else each for each in parts]
    return None if None in found else "".join(each or "" for each in found)


def selectors_of(pod: LivePod, namespace_labels: Mapping[str, str]) -> set[str]:
    """What SPIRE's agent finds of every container of a pod."""
    return {
        f"k8s:ns:{pod.namespace}",
        f"k8s:sa:{pod.service_account}",
        f"k8s:node-name:{pod.node_name}",
        f"k8s:pod-uid:{pod.uid}",
        f"k8s:pod-name:{pod.name}",
        *(f"k8s:pod-label:{key}:{value}" for key, value in pod.labels.items()),
        *(f"k8s:ns-label:{key}:{value}" for key, value in namespace_labels.items()),
    }


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """As Kubernetes' label selectors do."""
    for key, value in ((selector or {}).get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in (selector or {}).get("matchExpressions") or ():
        value, values = labels.get(each["key"]), each.get("values", [])
        held = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not held[each["operator"]]:
            return False
    return True


def of_spiffeid(spec: Mapping[str, Any], parts: Mapping[str, Any], pod: LivePod, labels: Mapping[str, str]) -> bool:
    """Whether the controller makes an entry for the pod of a ClusterSPIFFEID, whose templates' `parts` are known."""
    if any(re.search(each, pod.namespace) for each in IGNORED):
        return False
    if not selects(spec.get("namespaceSelector"), labels) or not selects(spec.get("podSelector"), pod.labels):
        return False
    if any(rendered(each, pod) is None for each in parts["dns"]):
        return False
    made = rendered(parts["id"], pod)
    return made is not None and _ID.fullmatch(made) is not None and made.startswith(f"spiffe://{DOMAIN}/")


def ids_of(
    spiffeids: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    entries: Sequence[Mapping[str, Any]],
    pod: LivePod,
    labels: Mapping[str, str],
) -> set[str]:
    """All IDs that every container of the pod gets: of ClusterSPIFFEIDs with their parts, and of entries."""
    found = set[str]()
    mine = selectors_of(pod, labels)
    # The controller has no class, so those of a class are not its own.
    own = [(spec, parts) for spec, parts in spiffeids if not spec.get("className")]
    masked = any(of_spiffeid(spec, parts, pod, labels) and not spec.get("fallback") for spec, parts in own)
    for spec, parts in own:
        if (spec.get("fallback") and masked) or not of_spiffeid(spec, parts, pod, labels):
            continue
        wanted = {rendered(each, pod) for each in parts["selectors"]}
        # The server takes no entry with a name that is none: it is not there, yet no fallback is in its place.
        names = [str(rendered(each, pod)) for each in parts["dns"]]
        if wanted <= mine and all(map(_DNS.fullmatch, names)):
            found.add(str(rendered(parts["id"], pod)))
    for each in entries:
        wanted = {f"{one['type']}:{one['value']}" for one in each["selectors"]}
        parent = each["parent_id"]["path"]
        if wanted and wanted <= mine and parent in _parents(entries, pod) and not int(each.get("expires_at", 0)):
            found.add(f"spiffe://{each['spiffe_id']['trust_domain']}{each['spiffe_id']['path']}")
    return found


def _parents(entries: Sequence[Mapping[str, Any]], pod: LivePod) -> set[str]:
    """IDs that the agent of the pod's node may have entries of: its own, and those of aliases that it is."""
    node = NODES[pod.node_name]
    its = {f"k8s_psat:cluster:{CLUSTER}", f"k8s_psat:agent_node_label:pool:{node.pool}", "k8s_psat:agent_ns:spire"}
    found = {node.agent}
    for each in entries:
        wanted = {f"{one['type']}:{one['value']}" for one in each["selectors"]}
        if each["parent_id"]["path"] == "/spire/server" and wanted <= its:
            found.add(each["spiffe_id"]["path"])
    return found


def entry(name: str, path: str, parent: str, *selectors: str, **more: Any) -> dict[str, Any]:
    """As `spire-server entry show -output json` has it (SPIRE 1.15)."""
    return {
        "id": name,
        "spiffe_id": {"trust_domain": DOMAIN, "path": path},
        "parent_id": {"trust_domain": DOMAIN, "path": parent},
        "selectors": [dict(zip(("type", "value"), each.split(":", 1), strict=True)) for each in selectors],
        "x509_svid_ttl": 0,
        "federates_with": [],
        "admin": False,
        "downstream": False,
        "expires_at": "0",
        "dns_names": [],
        "revision_number": "0",
        "store_svid": False,
        "jwt_svid_ttl": 0,
        "hint": "",
        "created_at": "1764000000",
    } | more


def kubernetes(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of spire-controller-manager's."""
    return {"apiVersion": "spire.spiffe.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
