"""A cluster in which nothing is wrong with podsvid, for `podsvid doctor`, and ways to break it."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from podsvid.by_kubeconfig import NotTold
from podsvid.doctor import rules
from podsvid.doctor.finding import Finding
from podsvid.doctor.looking import look
from podsvid.doctor.rules import findings
from podsvid.waiting import Waiting

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
DATE = "Sun, 29 Nov 2026 12:00:00 GMT"
APPS = "/apis/apps/v1/namespaces/podsvid"
PODS = "/api/v1/namespaces/podsvid/pods"
EVENTS = "/api/v1/namespaces/podsvid/events"
AGENTS, SIGNERS = f"{APPS}/daemonsets/podsvid-agent", f"{APPS}/deployments/podsvid-signer"
DRIVERS, CSI_NODES = "/apis/storage.k8s.io/v1/csidrivers", "/apis/storage.k8s.io/v1/csinodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
OWN = "/apis/podsvid.io/v1alpha1"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
PEM, OTHER = (f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n" for text in ("AAAA", "BBBB"))
TRUST_BUNDLES = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles"

Objects = dict[str, Any]
_Kind = TypeVar("_Kind")


def at(**ago: float) -> str:
    return f"{NOW - timedelta(**ago):%Y-%m-%dT%H:%M:%SZ}"


def pod(component: str, node: str) -> Objects:
    return {
        "metadata": {
            "name": f"podsvid-{component}-{node}",
            "namespace": "podsvid",
            "labels": {"app.kubernetes.io/component": component},
        },
        "spec": {"nodeName": node, "containers": [{"name": component, "image": "podsvid:1"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def named(name: str, **more: Any) -> Objects:
    return {"metadata": {"name": name}, **more}


def jwks(*keys: str, sequence: int) -> str:
    return json.dumps({"keys": [{"use": "jwt-svid", "kid": each} for each in keys], "spiffe_sequence": sequence})


def healthy() -> Objects:
    mounts = [{"mountPath": "/var/lib/kubelet/pods", "mountPropagation": "Bidirectional"}]
    agent = {"name": "agent", "image": "podsvid:1", "volumeMounts": mounts}
    driver = {
        "attachRequired": False,
        "podInfoOnMount": True,
        "requiresRepublish": True,
        "tokenRequests": [{"audience": "a"}],
        "volumeLifecycleModes": ["Ephemeral"],
    }
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    in_use = {"podsMatched": 3, "conditions": [{"type": "Ready", "status": "True", "message": "fine"}]}
    bundle = {"ca.crt": PEM, "bundle.json": jwks("a", sequence=4)}
    labels = {"podsvid.io/trust-domain": "example.org", "app.kubernetes.io/managed-by": "podsvid"}
    token = {"serviceAccountToken": {"audience": "a"}}
    volumes = [
        {"name": "token", "projected": {"sources": [token]}},
        {"name": "bundle", "configMap": {"name": "podsvid-bundle"}},
    ]
    authority = {
        "kind": "KIND_X509",
        "id": "a1",
        "stage": "active",
        "prepared_at": at(days=2),
        "activated_at": at(days=1),
        "not_after": at(days=-8),
    }
    return {
        "/version": {"gitVersion": f"v1.{rules.TRIED}.4"},
        AGENTS: named(
            "podsvid-agent",
            spec={"template": {"spec": {"containers": [agent], "volumes": volumes}}},
            status={"desiredNumberScheduled": 2, "numberReady": 2},
        ),
        SIGNERS: named("podsvid-signer", spec={"replicas": 2}, status={"readyReplicas": 2}),
        PODS: [pod("agent", "n1"), pod("agent", "n2"), pod("signer", "n1"), pod("signer", "n2")],
        DRIVERS: [named("csi.podsvid.io", spec=driver)],
        CSI_NODES: [named(node, spec={"drivers": [{"name": "csi.podsvid.io"}]}) for node in ("n1", "n2")],
        "/api/v1/nodes": [named(node, spec={}, status=ready) for node in ("n1", "n2")],
        LEASES: [named(node, spec={"renewTime": "2026-11-29T11:59:55.123456Z"}) for node in ("n1", "n2")],
        OWN: {"resources": [{"name": each} for each in rules.DEFINED]},
        f"{ADMISSION}/validatingadmissionpolicies/podsvid-signer": {"kind": "ValidatingAdmissionPolicy"},
        f"{ADMISSION}/validatingadmissionpolicybindings/podsvid-signer": {"spec": {"validationActions": ["Deny"]}},
        f"{OWN}/clusterworkloadidentities": [named("all", status=in_use)],
        f"{OWN}/workloadidentities": [],
        f"{OWN}/federatedtrustdomains": [named("partner", status=in_use)],
        "/api/v1/configmaps": [
            {"metadata": {"name": "podsvid-bundle", "namespace": "shop", "labels": labels}, "data": bundle},
            {"metadata": {"name": "podsvid-bundle", "namespace": "podsvid", "labels": labels}, "data": dict(bundle)},
            {"metadata": {"name": "podsvid-agents-x", "namespace": "podsvid"}, "data": {"agents": "{}"}},
        ],
        TRUST_BUNDLES: [named("podsvid.io:spiffe:example.org", spec={"trustBundle": PEM})],
        "authority": {"trust_domain": "example.org", "sequence": "4", "agents": 2, "authorities": [authority]},
        "bundle": {"trust_domain": "example.org", "pem": PEM, "spiffe": jwks("a", sequence=3)},
    }


class FakeCluster:
    """Implements looking.Cluster: objects by path, lists as lists; what is an exception is raised."""

    podsvid_namespace = "podsvid"
    host = "https://there:6443"

    def __init__(self, objects: Objects, dated: str = DATE) -> None:
        self.objects = objects
        self.dated = dated
        self.ran: list[tuple[str, str, list[str]]] = []

    def read(self, path: str, query: Mapping[str, str], kind: type[_Kind]) -> _Kind:
        found = self.objects.get(path)
        if isinstance(found, Exception):
            raise found
        if found is None:
            absent = NotTold(f"{path} is not there")
            absent.status = 404
            raise absent
        if isinstance(found, list):
            _, by_name, name = query.get("fieldSelector", "").partition("metadata.name=")
            found = {"items": [each for each in found if not by_name or each["metadata"]["name"] == name]}
        return msgspec.json.decode(json.dumps(found).encode(), type=kind)

    def signer(self) -> str:
        return "signer-1"

    def run(self, pod: str, container: str, command: list[str]) -> Any:
        self.ran.append((pod, container, command))
        found = self.objects.get(f"{command[1]} of {pod}") or self.objects[command[1]]
        if isinstance(found, Exception):
            raise found
        return found


def seen(objects: Objects, now: datetime = NOW) -> list[Finding]:
    cluster: Any = FakeCluster(objects)
    return findings(look(cluster, Waiting(30.0)), now)


def change(path: str, *keys: str | int, to: Any) -> Callable[[Objects], None]:
    """Sets what is there."""

    def changed(objects: Objects) -> None:
        place: Any = objects
        for key in (path, *keys)[:-1]:
            place = place[key]
        place[(path, *keys)[-1]] = to

    return changed


def gone(path: str) -> Callable[[Objects], None]:
    return lambda objects: objects.pop(path)
