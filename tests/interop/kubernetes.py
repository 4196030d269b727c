"""An API server and its etcd on the loopback, without nodes: of those programs that the cluster's tests build."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import control_plane, kubeconfig
from tests.cluster.api import KubeApi
from tests.cluster.layout import Layout
from tests.cluster.pki import ClusterAuthority
from tests.cluster.pods import Pods
from tests.cluster.processes import Processes
from tests.cluster.waiting import say, wait_for
from tests.ports import free_port

# What differs from the cluster's: nobody is reached from elsewhere, and no node looks for the API server's address.
_ON_THE_LOOPBACK = ("--bind-address=127.0.0.1", "--endpoint-reconciler-type=none")


class Kubernetes:
    """What tests.cluster.cluster.Cluster is, as far as there is no node."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory)
        self.directory, self.logs = directory, self.layout.logs
        self.kubeconfig, self.audit_log = self.layout.kubeconfig, self.layout.audit_log
        for folder in (self.directory, self.logs):
            folder.mkdir(mode=0o700, parents=True)
        self.authority = ClusterAuthority(self.layout.pki)
        self.processes = Processes(self.layout)
        self._port = free_port()
        admin = self.authority.issue("admin", "admin", "system:masters")
        kubeconfig.write(self.kubeconfig, self.url, self.authority.ca_cert, admin)
        self.api = KubeApi(self.url, str(self.authority.ca_cert), admin)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def pods(self) -> Pods:
        return Pods(self.api, self.directory)

    def child_environment(self) -> dict[str, str]:
        """The environment for a process, without this project's settings."""
        return self.processes.environment()

    def start(self) -> None:
        """Start both, and wait until the API server answers. Raises ClusterError."""
        etcd, peer = free_port(), free_port()
        self.processes.start("etcd", control_plane.etcd(self.layout, self.authority, etcd, peer))
        command = control_plane.api_server(self.layout, self.authority, self._port, etcd)
        self.processes.start("kube-apiserver", [*command, *_ON_THE_LOOPBACK])
        wait_for("the API server", self.api.ready, progress=say, alive=self.processes.check)


@contextmanager
def kubernetes(directory: Path) -> Iterator[Kubernetes]:
    """One that answers, in a directory of its own."""
    found = Kubernetes(directory)
    try:
        found.start()
        yield found
    finally:
        found.processes.end(("certmanager", "kube-apiserver", "etcd"))
        shutil.rmtree(directory, ignore_errors=True)
