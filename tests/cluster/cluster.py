"""A real single-node Kubernetes cluster on this host: etcd, control plane, containerd, runc and kubelet.

Everything is in a network namespace of its own and keeps its files, mounts and cgroups under names of its own, so that
whatever is left by a run that was killed is found, and removed, by the next. Needs root.
"""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType

from tests import go_tools
from tests.go_tools import Progress

from . import containerd, control_plane, kubeconfig, kubelet, leftovers, places, services
from .api import ApiError, KubeApi
from .host import ClusterError, install_packages
from .image import write_archive
from .layout import DEFAULT_DIR, NODE, Layout
from .lock import Lock
from .network import OwnNetwork
from .pki import ClusterAuthority
from .pods import Pods
from .processes import Processes
from .programs import PROGRAMS
from .waiting import say, wait_for

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cluster:
    """One cluster, from `start` to `stop`; as a context manager also through SIGINT and SIGTERM."""

    def __init__(self, directory: Path = DEFAULT_DIR, progress: Progress = say, sync: int = kubelet.SYNC) -> None:
        self.layout = Layout(directory)
        self.directory = directory
        self.logs = self.layout.logs
        self.kubelet_root = self.layout.kubelet_root
        self.kubeconfig = self.layout.kubeconfig
        self.audit_log = self.layout.audit_log
        self._progress = progress
        self._sync = sync
        self._network = OwnNetwork(self.layout.network)
        self._processes = Processes(self.layout)
        self._lock = Lock(self.layout.lock)
        self._handlers: dict[int, object] = {}
        self._api: KubeApi | None = None

    @property
    def api(self) -> KubeApi:
        """An administrator's connection. Raises ClusterError before `start`."""
        if self._api is None:
            raise ClusterError("the cluster is not started")
        return self._api

    @property
    def pods(self) -> Pods:
        """Its pods. Raises ClusterError before `start`."""
        return Pods(self.api, self.directory)

    def child_environment(self) -> dict[str, str]:
        """The environment for a process that must not outlive the cluster; without this project's settings."""
        return self._processes.environment()

    def __enter__(self) -> Cluster:
        self._handlers = {number: signal.signal(number, _interrupt) for number in _ENDING}
        try:
            self.start()
        except BaseException:
            self._leave(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(failed=kind is not None)

    def _leave(self, *, failed: bool) -> None:
        # A second signal must not leave half of the mounts behind.
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        try:
            if self._lock.held:  # without it, what is there is another run's
                self.stop(keep_logs=failed)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    def start(self) -> None:
        """Start everything and wait until the node is ready. Raises ClusterError, BuildError."""
        install_packages(self._progress)
        go_tools.build(PROGRAMS, self._progress)
        self._lock.take()
        leftovers.remove(self.layout, self._progress)
        started = time.monotonic()
        for folder in (self.directory, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o755)  # a pod's own user reads through /proc/PID/root
        for log in self.logs.iterdir():
            log.unlink()
        self._network.enter()
        authority = ClusterAuthority(self.layout.pki)
        kubelet.make_root(self.layout)
        places.make(self.layout)
        self._start_containerd()
        ports = _free_ports(9)
        url = self._start_control_plane(authority, ports[:5])
        self._processes.start("kube-proxy", services.proxy(self.layout, authority, url, *ports[5:7]))
        self._processes.start("coredns", services.names(self.layout, authority, url))
        command = kubelet.configure(self.layout, authority, url, ports[7], ports[8], self._sync)
        self._processes.start("kubelet", places.inside(self.layout, command))
        self._wait("the node to be ready", self._node_ready)
        self._wait(
            "the default service account",
            lambda: self.api.find("/api/v1/namespaces/default/serviceaccounts/default") is not None,
        )
        self._progress(f"node ready {time.monotonic() - started:.0f} s after the start; logs in {self.logs}")

    def stop(self, *, keep_logs: bool = False) -> None:
        """Take everything down; idempotent. Raises ClusterError if another run has it, or something stays."""
        self._lock.take()
        self._progress("taking the cluster down")
        self._processes.end(("kubelet", "kube-scheduler", "kube-controller-manager"))
        try:
            leftovers.remove(self.layout, self._progress)
        finally:
            self._processes.forget(dead=True)
            self._network.leave()
            self._api = None
            if keep_logs:
                self._progress(f"the components' logs are kept in {self.logs}")
            else:
                shutil.rmtree(self.logs, ignore_errors=True)
            self._lock.release()

    def detach(self) -> None:
        """Give the cluster up: it stays when this object is left, with its network, until somebody takes it down."""
        self._processes.forget(dead=False)
        self._network.forget()
        self._lock.release()

    def paused(self, name: str) -> AbstractContextManager[None]:
        """Stop a component (SIGSTOP) while inside: it neither answers nor refuses."""
        return self._processes.paused(name)

    def killed(self, name: str) -> AbstractContextManager[None]:
        """Kill a component (kill -9) and start it again when left, as a node's supervisor does."""
        return self._processes.killed(name)

    def load_images(self, archive: Path) -> None:
        """Give the container runtime the images of an archive. Raises ClusterError."""
        containerd.load_images(self.layout, archive)

    def ready(self) -> bool | str:
        """Whether the API server answers and the node is ready; else what is missing."""
        try:
            answers = self.api.ready()
            return self._node_ready() if answers is True else answers or "the API server does not answer"
        except (ApiError, OSError) as error:
            return str(error)

    def _wait(self, what: str, ready: Callable[[], bool | str]) -> None:
        wait_for(what, ready, progress=self._progress, alive=self._processes.check)

    def _start_containerd(self) -> None:
        self._processes.start("containerd", places.inside(self.layout, containerd.configure(self.layout)))
        self._wait("containerd", lambda: containerd.answers(self.layout))
        archive = self.layout.containerd / "images.tar"
        write_archive(archive)
        self.load_images(archive)
        archive.unlink()

    def _start_control_plane(self, authority: ClusterAuthority, ports: Sequence[int]) -> str:
        """The API server's URL, once it answers."""
        etcd_port, peer_port, api_port, manager_port, scheduler_port = ports
        self._processes.start("etcd", control_plane.etcd(self.layout, authority, etcd_port, peer_port))
        self._processes.start("kube-apiserver", control_plane.api_server(self.layout, authority, api_port, etcd_port))
        url = f"https://127.0.0.1:{api_port}"
        admin = authority.issue("admin", "admin", "system:masters")
        kubeconfig.write(self.kubeconfig, url, authority.ca_cert, admin)
        self._api = KubeApi(url, str(authority.ca_cert), admin)
        self._wait("the API server", self.api.ready)
        self._progress(f"the API server answers: {self.api.get('/version')['gitVersion']}")
        controllers = control_plane.controllers(self.layout, authority, url, manager_port)
        self._processes.start("kube-controller-manager", controllers)
        self._processes.start("kube-scheduler", control_plane.scheduler(self.layout, authority, url, scheduler_port))
        return url

    def _node_ready(self) -> bool | str:
        node = self.api.find(f"/api/v1/nodes/{NODE}")
        if node is None:
            return "not registered"
        for condition in node.get("status", {}).get("conditions", []):
            if condition["type"] == "Ready":
                return True if condition["status"] == "True" else str(condition.get("message", ""))
        return "registered"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def _free_ports(count: int) -> list[int]:
    # All at once, so that no two are the same: each is free until its component listens, which takes it a second.
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
