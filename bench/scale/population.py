"""The cluster that is pretended: every process derives the same pods, policies, Services and tokens from its size."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from csi.model import PodRef
from signer.cluster.kube import Object
from signer.policy.policy import CLUSTER, GROUP, NAMESPACED
from tests.signer_rig import AUDIENCE, DRIVER

TRUST_DOMAIN = "example.org"
NAMESPACE, AGENT = "podsvid", "podsvid-agent"
CREATED = "2030-01-01T00:00:00Z"
KEY_ID = "cluster"
# Seconds: nobody brings newer ones.
TOKEN_LIFE = 86_400
APPS, ACCOUNTS = 8, 4
# Every so many pods one is a Job's: it mounts nothing, and is gone after a while.
JOB_EVERY = 50
# Every so many policies one is for the whole cluster, and one takes the names of Services.
CLUSTER_EVERY, SERVICES_EVERY = 40, 3
# What a pod's object has beside what anybody reads: about as long as a small pod's.
_CONTAINER: Object = {
    "image": "registry.example.org/team/app:1.2.3",
    "imagePullPolicy": "IfNotPresent",
    "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
    "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
    "env": [{"name": f"SETTING_{number}", "value": "a value of some length"} for number in range(10)],
    "volumeMounts": [{"mountPath": "/var/run/identity", "name": "identity", "readOnly": True}],
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_SPEC: Object = {
    "dnsPolicy": "ClusterFirst",
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
    "tolerations": [
        {"effect": "NoExecute", "key": f"node.kubernetes.io/{what}", "operator": "Exists", "tolerationSeconds": 300}
        for what in ("not-ready", "unreachable")
    ],
}
_FIELDS = [
    {
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": {f"f:label-{number}": {} for number in range(12)}}},
        "manager": "kube-controller-manager",
        "operation": "Update",
        "time": CREATED,
    }
]
_CONDITIONS = [
    {"type": kind, "status": "True", "lastTransitionTime": CREATED}
    for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
]


@dataclass(frozen=True, slots=True)
class Cluster:
    """How much there is of everything. Pods include one of an agent on each node."""

    nodes: int
    pods: int
    policies: int
    services: int
    namespaces: int

    def mounted(self, node: int) -> Sequence[int]:
        """The pods of a node that have an identity, without its agent's."""
        return [each for each in range(self.nodes + node, self.pods, self.nodes) if not self.is_job(each)]

    def is_job(self, pod: int) -> bool:
        """Whether that pod is a Job's."""
        # Not those of some nodes only.
        return pod >= self.nodes and (pod + pod // self.nodes) % JOB_EVERY == JOB_EVERY - 1

    def reference(self, pod: int) -> PodRef:
        """Namespace, name, uid and account of a pod; a Job's as it is first."""
        uid = f"{pod:08x}-0000-4000-8000-000000000000"
        if pod < self.nodes:
            return PodRef(NAMESPACE, f"agent-{pod}", uid, AGENT)
        # Times a prime: neither the pods of a node nor those of an app are all of one namespace.
        namespace = f"team-{pod * 7919 // 8 % self.namespaces}"
        return PodRef(namespace, f"app-{self._app(pod)}-{pod}", uid, f"account-{pod % ACCOUNTS}")

    def node(self, pod: int) -> int:
        """Where a pod runs."""
        return pod % self.nodes

    @staticmethod
    def address(node: int) -> str:
        """What a node's agent connects from: all of 127/8 is this host's."""
        return f"127.{1 + node // 50_000}.{node // 200 % 250}.{1 + node % 200}"

    def objects(self) -> Iterator[tuple[str, Object]]:
        """Everything, each with its path."""
        for name in (NAMESPACE, *(f"team-{number}" for number in range(self.namespaces))):
            labels = {"kubernetes.io/metadata.name": name, "team": name}
            yield f"/api/v1/namespaces/{name}", {"metadata": {"name": name, "labels": labels}}
        for number in range(self.policies):
            yield self._policy(number)
        for number in range(self.services):
            yield self._service(number)
        for number in range(self.pods):
            yield self.pod(number)

    def pod(self, number: int, revision: int = 0) -> tuple[str, Object]:
        """A pod's path and object; each revision has other labels."""
        named = self.reference(number)
        volume: Object = {"name": "identity", "emptyDir": {}}
        if number >= self.nodes and not self.is_job(number):
            volume = {"name": "identity", "csi": {"driver": DRIVER, "readOnly": True}}
        app = f"app-{self._app(number)}"
        labels = {"app": app, "pod-template-hash": f"{number % 997:x}", "revision": str(revision), "tier": "backend"}
        body: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": named.name,
                "namespace": named.namespace,
                "uid": named.uid,
                "labels": labels,
                "managedFields": _FIELDS,
            },
            "spec": {
                **_SPEC,
                "nodeName": f"node-{self.node(number)}",
                "serviceAccountName": named.service_account,
                "containers": [{"name": "app", **_CONTAINER}],
                "volumes": [volume],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": _CONDITIONS},
        }
        if number < self.nodes:
            body["status"]["podIPs"] = [{"ip": self.address(number)}]
        return f"/api/v1/namespaces/{named.namespace}/pods/{named.name}", body

    def _app(self, pod: int) -> int:
        return pod // 7 % APPS

    def _policy(self, number: int) -> tuple[str, Object]:
        namespace, app = f"team-{number % self.namespaces}", f"app-{number // self.namespaces % APPS}"
        name = f"policy-{number}"
        # Else who is matched by two is a conflict, which is not what is measured here.
        spec: Object = {"podSelector": {"matchLabels": {"app": app}}, "priority": number % 10}
        if number % CLUSTER_EVERY == 0:
            spec["namespaceSelector"] = {"matchLabels": {"team": namespace}}
            spec["spiffeIDTemplate"] = "/cluster/{namespace}/{service_account}"
            return f"{GROUP}/{CLUSTER}/{name}", {"metadata": {"name": name}, "spec": spec}
        spec["dnsNamesFromServices"] = number % SERVICES_EVERY == 0
        metadata = {"name": name, "namespace": namespace}
        return f"{GROUP}/namespaces/{namespace}/{NAMESPACED}/{name}", {"metadata": metadata, "spec": spec}

    def _service(self, number: int) -> tuple[str, Object]:
        namespace, name = f"team-{number % self.namespaces}", f"service-{number // self.namespaces}"
        spec = {"selector": {"app": f"app-{number // self.namespaces}"}, "ports": [{"port": 80}], "type": "ClusterIP"}
        return f"/api/v1/namespaces/{namespace}/services/{name}", {"metadata": {"name": name}, "spec": spec}


class Tokens:
    """Service account tokens, signed with the cluster's key; made once in a file that all processes read."""

    def __init__(self, key_file: Path) -> None:
        key = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._ends = int(time.time()) + TOKEN_LIFE

    @staticmethod
    def write_key(key_file: Path) -> None:
        """Make the cluster's key."""
        key = ec.generate_private_key(ec.SECP256R1())
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def keys(self) -> Object:
        """What the API server publishes of it."""
        found = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**found, "kid": KEY_ID, "alg": "ES256", "use": "sig"}]}

    def of(self, cluster: Cluster, pod: int) -> str:
        """The token of a pod; an agent's is that of its pod."""
        named, node = cluster.reference(pod), f"node-{cluster.node(pod)}"
        claims = {
            "sub": f"system:serviceaccount:{named.namespace}:{named.service_account}",
            "aud": [AUDIENCE],
            "exp": self._ends,
            "kubernetes.io": {
                "namespace": named.namespace,
                "serviceaccount": {"name": named.service_account, "uid": f"sa-{named.service_account}"},
                "pod": {"name": named.name, "uid": named.uid},
                "node": {"name": node, "uid": f"uid-{node}"},
            },
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": KEY_ID})
