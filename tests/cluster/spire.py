"""A SPIRE server and agent in pods of the test's cluster: nodes and workloads are known by Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.go_tools import Progress, missing
from tests.interop import tools
from tests.interop.suites import load

from .api import Object
from .cluster import Cluster
from .image import TEST_IMAGE
from .layout import NODE
from .waiting import wait_for

NAMESPACE = SERVER = "spire-server"
AGENT = "spire-agent"
# As its agents name it to the server.
CLUSTER = "demo"
_RBAC = "rbac.authorization.k8s.io"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_SERVER = """
server {{
  bind_address = "0.0.0.0"
  bind_port = "8081"
  trust_domain = "example.org"
  data_dir = "/run/spire/data"
  experimental {{ cache_reload_interval = "1s" }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/run/spire/data/db.sqlite3" }} }}
  NodeAttestor "k8s_psat" {{
    plugin_data {{ clusters = {{ "{cluster}" = {{ service_account_allow_list = ["{namespace}:{agent}"] }} }} }}
  }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "/run/spire/data/keys.json" }} }}
  {upstream}
}}
"""
_AGENT = """
agent {{
  data_dir = "/run/spire/data"
  server_address = "{server}.{namespace}.svc"
  server_port = "8081"
  socket_path = "/run/spire/agent-sockets/spire-agent.sock"
  trust_bundle_path = "/run/spire/config/root.crt"
  trust_domain = "example.org"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  NodeAttestor "k8s_psat" {{
    plugin_data {{ cluster = "{cluster}" token_path = "/var/run/secrets/tokens/spire-agent" }}
  }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "k8s" {{
    plugin_data {{
      node_name = "{node}"
      kubelet_secure_port = {port}
      kubelet_ca_path = "{account}/ca.crt"
      token_path = "{account}/token"
    }}
  }}
}}
"""


def lacking() -> str:
    """Why there is none, if there is none."""
    names = ", ".join(each.name for each in missing(load("spire").programs))
    return f"{names}: not built; python -m tests.interop build spire" if names else ""


def programs() -> Mapping[str, Path]:
    """SPIRE's, and a workload of go-spiffe's, where they are built."""
    return tools.paths(load("spire"))


def sockets(cluster: Cluster) -> Path:
    """The folder of the node that has the agent's socket."""
    return cluster.directory / "spire-agent-sockets"


@contextmanager
def spire(cluster: Cluster, root: str, upstream: str, progress: Progress) -> Iterator[None]:
    """It runs until left, below that root: `upstream` is the server's plug-in, which finds the Secret spire-upstream of
    its namespace in /run/spire/ca. The namespace is there, and goes with it."""
    names = {"namespace": NAMESPACE, "server": SERVER, "agent": AGENT, "cluster": CLUSTER, "node": NODE}
    kubelet = cluster.api.get(f"/api/v1/nodes/{NODE}")["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    files = {
        SERVER: {"server.conf": _SERVER.format(**names, upstream=upstream)},
        AGENT: {"agent.conf": _AGENT.format(**names, port=kubelet, account=_ACCOUNT), "root.crt": root},
    }
    maps = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}
        for name, data in files.items()
    ]
    cluster.api.apply([*maps, *_rights(), *_server(), _agent(cluster)])
    try:
        for name in (SERVER, AGENT):
            wait_for(name, lambda name=name: _ready(cluster, name), progress=progress)  # type: ignore[misc]
        yield
    finally:
        cluster.api.remove(f"/api/v1/namespaces/{NAMESPACE}")
        for kind in ("clusterrolebindings", "clusterroles"):
            for name in (SERVER, AGENT, f"{SERVER}-tokens"):
                cluster.api.remove(f"/apis/{_RBAC}/v1/{kind}/{name}")
        gone = f"/api/v1/namespaces/{NAMESPACE}"
        wait_for("SPIRE to be gone", lambda: cluster.api.find(gone) is None, progress=progress)


def _ready(cluster: Cluster, name: str) -> bool | str:
    pods = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3D{name}")["items"]
    for pod in pods:
        conditions = {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", [])}
        if conditions.get("Ready") == "True":
            return True
        return cluster.pods.describe(pod["metadata"]["name"], NAMESPACE)[-500:]
    return "no pod"


def _rights() -> list[Object]:
    """As SPIRE's documentation has them: the server asks whose a token is, the agent which pods kubelet runs."""
    rules = {
        SERVER: [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get"]}],
        AGENT: [{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]}],
    }
    found: list[Object] = []
    for name, each in rules.items():
        found += [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}},
            {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": each},
            _bound(name, name, name),
        ]
    return [*found, _bound(f"{SERVER}-tokens", "system:auth-delegator", SERVER)]


def _bound(name: str, role: str, account: str) -> Object:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    }


def _template(name: str, config: str, mounts: Mapping[str, tuple[str, Object]], more: Object) -> Object:
    """A pod of one of the two; `mounts` are paths and volumes beside the program, its configuration and its data."""
    program = programs()[name]
    volumes: dict[str, tuple[str, Object]] = {
        "programs": ("/programs", {"hostPath": {"path": str(program.parent)}}),
        "config": ("/run/spire/config", {"configMap": {"name": name}}),
        "data": ("/run/spire/data", {"emptyDir": {}}),
        **mounts,
    }
    socket = ["-socketPath", "/run/spire/agent-sockets/spire-agent.sock"] if name == AGENT else []
    container = {
        "name": name,
        "image": TEST_IMAGE,
        "imagePullPolicy": "Never",
        "command": [name, "run", "-config", f"/run/spire/config/{config}"],
        "env": [{"name": "PATH", "value": "/programs:/bin"}],
        "readinessProbe": {"exec": {"command": [name, "healthcheck", *socket]}, "periodSeconds": 1},
        "volumeMounts": [{"name": each, "mountPath": path} for each, (path, _) in volumes.items()],
    }
    spec = {
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": 2,
        "containers": [container],
        "volumes": [{"name": each, **volume} for each, (_, volume) in volumes.items()],
        **more,
    }
    return {"metadata": {"labels": {"app": name}}, "spec": spec}


def _server() -> list[Object]:
    meta = {"name": SERVER, "namespace": NAMESPACE}
    template = _template(
        SERVER, "server.conf", {"ca": ("/run/spire/ca", {"secret": {"secretName": "spire-upstream"}})}, {}
    )
    spec = {"serviceName": SERVER, "selector": {"matchLabels": {"app": SERVER}}, "template": template}
    service = {"selector": {"app": SERVER}, "ports": [{"port": 8081}]}
    return [
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
    ]


def _agent(cluster: Cluster) -> Object:
    token = {"path": AGENT, "audience": "spire-server", "expirationSeconds": 3600}
    host = {"path": str(sockets(cluster)), "type": "DirectoryOrCreate"}
    mounts: dict[str, tuple[str, Object]] = {
        "sockets": ("/run/spire/agent-sockets", {"hostPath": host}),
        "token": ("/var/run/secrets/tokens", {"projected": {"sources": [{"serviceAccountToken": token}]}}),
    }
    more = {"hostPID": True, "hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    template = _template(AGENT, "agent.conf", mounts, more)
    spec = {"selector": {"matchLabels": {"app": AGENT}}, "template": template}
    meta = {"name": AGENT, "namespace": NAMESPACE}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": spec}
