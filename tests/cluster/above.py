"""CAs above, for the test's cluster: cert-manager beside it, OpenBao in a pod of it; and the commands of a page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.api import KubeApi  # as that package has it: pytest calls what is here `cluster`
from tests.cluster.pki import ClusterAuthority, Pair
from tests.cluster.processes import Processes
from tests.go_tools import Progress, missing
from tests.interop import tools
from tests.interop.certmanager import CertManager, cert_manager
from tests.interop.suites import load

from .api import Object
from .cluster import Cluster
from .image import TEST_IMAGE
from .waiting import wait_for

NAME = "openbao"
_HOST, _PORT, _TOKEN = f"{NAME}.{NAME}.svc", 8443, "root"
_NAMESPACES = "/api/v1/namespaces"
_BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
# In dev mode it is open at once, and everybody in its pod reaches it; others by this listener.
_SETTINGS = f"""
listener "tcp" {{
  address = "0.0.0.0:{_PORT}"
  tls_cert_file = "/openbao/openbao.crt"
  tls_key_file = "/openbao/openbao.key"
}}
"""


def blocks(page: Path, heading: str) -> list[str]:
    """The indented blocks below a heading of a page, up to the next one of its rank, as they are to be typed."""
    rank = heading.partition(" ")[0]
    _, _, rest = page.read_text().partition(f"\n{heading}\n")
    assert rest, f"{page.name} has no {heading}"
    section = re.split(rf"^#{{1,{len(rank)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", f"{section}\n", re.MULTILINE)
    return ["".join(line[4:] or "\n" for line in block.splitlines(keepends=True)) for block in found]


@dataclass(frozen=True)
class Beside:
    """What starts cert-manager in the network of a cluster."""

    api: KubeApi
    kubeconfig: Path
    processes: Processes
    authority: ClusterAuthority


@contextmanager
def beside(cluster: Cluster) -> Iterator[CertManager]:
    """A cert-manager that approves what is asked of its own issuers, as one is after it was installed."""
    pki = cluster.layout.pki
    api = KubeApi(cluster.api.url, str(pki / "ca.crt"), Pair(pki / "admin.crt", pki / "admin.key"))
    authority = ClusterAuthority(cluster.directory / "cert-manager")
    at = Beside(api, cluster.kubeconfig, Processes(cluster.layout), authority)
    with cert_manager(at, tools.paths(load("cert-manager")), approve=True) as found:
        yield found
    cluster.api.remove(f"{_NAMESPACES}/cert-manager")


def without_cert_manager() -> str:
    """Why there is none, if there is none."""
    lacking = ", ".join(each.name for each in missing(load("cert-manager").programs))
    return f"{lacking}: not built; python -m tests.interop build cert-manager" if lacking else ""


@dataclass(frozen=True)
class OpenBao:
    """`programs` has `bao`, which talks to it with what `environment` has, as root; `ca` is of its server."""

    programs: Path
    ca: Path
    environment: Mapping[str, str] = field(repr=False)


@contextmanager
def openbao(cluster: Cluster, progress: Progress) -> Iterator[OpenBao]:
    """One in namespace openbao, at https://openbao.openbao.svc:8200, that may ask whose token it is given."""
    program = tools.get(load("openbao"), progress)["bao"]
    folder = cluster.directory / NAME
    authority = ClusterAuthority(folder)
    authority.issue(NAME, NAME, "", _HOST)
    (folder / "openbao.hcl").write_text(_SETTINGS)
    cluster.api.apply(_objects(program.parent, folder))
    try:
        wait_for("OpenBao", lambda: _ready(cluster), progress=progress)
        pod = cluster.pods.find(NAME, NAME)
        assert pod is not None
        address = f"https://{pod['status']['podIP']}:{_PORT}"
        environment = {"BAO_ADDR": address, "BAO_TLS_SERVER_NAME": _HOST, "BAO_CACERT": str(authority.ca_cert),
                       "BAO_TOKEN": _TOKEN}  # fmt: skip
        yield OpenBao(program.parent, authority.ca_cert, environment)
    finally:
        cluster.api.remove(f"{_BINDINGS}/{NAME}")
        cluster.api.remove(f"{_NAMESPACES}/{NAME}")
        wait_for("OpenBao to be gone", lambda: cluster.api.find(f"{_NAMESPACES}/{NAME}") is None, progress=progress)
        shutil.rmtree(folder)


def _ready(cluster: Cluster) -> bool | str:
    pod = cluster.pods.find(NAME, NAME) or {}
    conditions = {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" or cluster.pods.describe(NAME, NAME)[-300:]


def _objects(programs: Path, folder: Path) -> list[Object]:
    meta = {"name": NAME, "namespace": NAME}
    command = ["/programs/bao", "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={_TOKEN}"]
    mounts = {"programs": programs, "openbao": folder}
    container = {
        "name": "main",
        "image": TEST_IMAGE,
        "imagePullPolicy": "Never",
        "command": [*command, "-config=/openbao/openbao.hcl"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "readinessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": name, "mountPath": f"/{name}", "readOnly": True} for name in mounts],
    }
    spec = {
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": name, "hostPath": {"path": str(path)}} for name, path in mounts.items()],
    }
    # Docs: its account needs this ClusterRole, to ask the API server whether a token is good.
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"}
    ports = [{"port": 8200, "targetPort": _PORT}]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": NAME},
         "roleRef": role, "subjects": [{"kind": "ServiceAccount", **meta}]},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "labels": {"app": NAME}}, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": {"app": NAME}, "ports": ports}},
    ]  # fmt: skip
