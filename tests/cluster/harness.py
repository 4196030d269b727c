"""A real single-node Kubernetes cluster on this host: etcd, control plane, containerd, runc and kubelet.

Everything is in a network namespace of its own and keeps its files, mounts and cgroups under names of its own, so that
whatever is left by a run that was killed is found, and removed, by the next. Needs root.

    python -m tests.cluster.harness build      install packages, build the programs
    python -m tests.cluster.harness up         start a cluster and leave it running (reached through nsenter)
    python -m tests.cluster.harness run CMD…   start a cluster, run a command with KUBECONFIG, take it down
    python -m tests.cluster.harness down       take down whatever is left
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

import jwt
import yaml

from .api import ApiError, KubeApi, Object
from .binaries import SEARCH_PATH, ClusterError, Progress, build, cni_dir, install_packages, programs_dir
from .image import PAUSE_IMAGE, write_archive
from .network import NODE_ADDRESS, SERVICE_NETWORK, OwnNetwork, cni_configuration, corefile
from .pki import ClusterAuthority, Pair

DEFAULT_DIR = Path("/var/lib/podsvid-cluster")
# The API server reaches kubelet by the node's name, and kubelet listens on loopback only.
NODE = "localhost"

_CGROUP_ROOT = Path("/sys/fs/cgroup")
# Who asked for what, without bodies: tests count writes in it.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": ["system:serviceaccount:podsvid:podsvid-signer"]}, {"level": "None"}],
}
# Every process of a cluster carries this in its environment: a killed run's processes are known by it.
_MARK = "SVIDCLUSTER_DIR"
# A condition may come late on a machine that is busy with other things; waiting ends as soon as it holds.
PATIENCE_SECONDS = 300.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.5
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPORT_SECONDS = 10.0
_MNT_DETACH = 2
_SHIMS = "containerd/state/io.containerd.runtime.v2.task/*/*/bootstrap.json"
# Kubelet's two places that no setting moves. The second is also why there can be only one kubelet on a host.
_LEGACY_LOG_LINKS = Path("/var/log/containers")
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def say(message: str) -> None:
    """Progress for a person."""
    print(f"[cluster {time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def wait_for(
    what: str,
    ready: Callable[[], bool | str],
    *,
    progress: Progress,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Poll until `ready` is true. A string from `ready` is the state so far, which is reported.

    `alive` raises when waiting has become pointless. Raises ClusterError when patience is at its end.
    """
    started = time.monotonic()
    reported = started
    while True:
        state = ready()
        if state is True:
            return
        alive()
        now = time.monotonic()
        detail = f": {state}" if state else ""
        if now - started > PATIENCE_SECONDS:
            raise ClusterError(f"waited {PATIENCE_SECONDS:.0f} s in vain for {what}{detail}")
        if now - reported > _REPORT_SECONDS:
            reported = now
            progress(f"waiting for {what}, {now - started:.0f} s{detail}")
        time.sleep(_POLL_SECONDS)


class Cluster:
    """One cluster, from `start` to `stop`; as a context manager also through SIGINT and SIGTERM."""

    def __init__(self, directory: Path = DEFAULT_DIR, progress: Progress = say) -> None:
        self.directory = directory
        self.logs = directory.with_name(f"{directory.name}-logs")
        self.kubelet_root = directory / "kubelet"
        self.kubeconfig = directory / "admin.kubeconfig"
        self.audit_log = directory / "audit.log"
        self._progress = progress
        self._network = OwnNetwork(directory.name)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: IO[str] | None = None
        self._handlers: dict[int, object] = {}
        self._api: KubeApi | None = None

    @property
    def api(self) -> KubeApi:
        """An administrator's connection. Raises ClusterError before `start`."""
        if self._api is None:
            raise ClusterError("the cluster is not started")
        return self._api

    def child_environment(self) -> dict[str, str]:
        """The environment for a process that must not outlive the cluster; without this project's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PODSVID_")}
        return {**kept, "PATH": SEARCH_PATH, _MARK: str(self.directory)}

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
            if self._lock is not None:  # without it, what is there is another run's
                self.stop(keep_logs=failed)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    def start(self) -> None:
        """Start everything and wait until the node is ready. Raises ClusterError."""
        if os.geteuid() != 0:
            raise ClusterError("the cluster needs root: it mounts, and runs containers")
        install_packages(self._progress)
        programs = build(self._progress)
        self._take_lock()
        _remove_leftovers(self.directory, self._progress)
        if _kubelet_runs():
            raise ClusterError("a kubelet is running on this host: a second one would take over its device plugins")
        started = time.monotonic()
        for folder in (self.directory, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o755)  # a pod's own user reads through /proc/PID/root
        for log in self.logs.iterdir():
            log.unlink()
        self._network.enter()
        authority = ClusterAuthority(self.directory / "pki")
        self._start_containerd(programs)
        self._start_control_plane(programs, authority)
        self._start_network(programs, authority)
        self._start_kubelet(programs, authority)
        wait_for(
            "the default service account",
            lambda: self.api.find("/api/v1/namespaces/default/serviceaccounts/default") is not None,
            progress=self._progress,
            alive=self._check_processes,
        )
        self._progress(f"node ready {time.monotonic() - started:.0f} s after the start; logs in {self.logs}")

    def stop(self, *, keep_logs: bool = False) -> None:
        """Take everything down; idempotent. Raises ClusterError if something cannot be removed."""
        self._progress("taking the cluster down")
        for name in ("kubelet", "kube-scheduler", "kube-controller-manager"):
            process = self._processes.pop(name, None)
            if process is not None:
                _end(process)
        try:
            _remove_leftovers(self.directory, self._progress)
        finally:
            for process in self._processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_STOP_SECONDS)
            self._processes.clear()
            self._network.leave()
            self._api = None
            if keep_logs:
                self._progress(f"the components' logs are kept in {self.logs}")
            else:
                shutil.rmtree(self.logs, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def detach(self) -> None:
        """Give the cluster up: it stays when this object is left. Its network is at `/run/NAME.net`, for nsenter."""
        self._processes.clear()
        self._network.forget()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Stop a component (SIGSTOP) while inside: it neither answers nor refuses."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    @contextmanager
    def killed(self, name: str) -> Iterator[None]:
        """Kill a component (kill -9) and start it again when left, as a node's supervisor does."""
        process = self._processes[name]
        process.kill()
        process.wait()
        try:
            yield
        finally:
            self._spawn(name, [str(argument) for argument in process.args])  # type: ignore[union-attr]

    def ready(self) -> bool | str:
        """Whether the API server answers and the node is ready; else what is missing."""
        try:
            answers = self._api_ready()
            return self._node_ready() if answers is True else answers or "the API server does not answer"
        except (ApiError, OSError) as error:
            return str(error)

    def service_account_kubeconfig(self, name: str, namespace: str) -> Path:
        """A kubeconfig with a token of that service account, good for an hour and bound to nothing."""
        token = self.api.token(name, namespace)
        path = self.directory / f"{namespace}-{name}.kubeconfig"
        path.touch(mode=0o600)
        document = yaml.safe_load(self.kubeconfig.read_text())
        document["users"][0]["user"] = {"token": token}
        path.write_text(yaml.safe_dump(document))
        return path

    def expired_token(self, account: str, namespace: str, audience: str, pod: Object) -> str:
        """A token as the API server would have made it two hours ago, with its key; it makes none that ends so soon."""
        fresh = self.api.token(account, namespace, audience, pod)
        claims = jwt.decode(fresh, options={"verify_signature": False})
        for name in ("iat", "nbf", "exp"):
            claims[name] -= 7200
        headers = {"kid": jwt.get_unverified_header(fresh)["kid"]}
        key = (self.directory / "pki" / "service-accounts.key").read_text()
        return jwt.encode(claims, key, algorithm="ES256", headers=headers)

    def create_pod(self, body: Object, namespace: str = "default") -> Object:
        """Create a pod; what the API server made of it. Raises ApiError."""
        return self.api.create(f"/api/v1/namespaces/{namespace}/pods", body)

    def pod(self, name: str, namespace: str = "default") -> Object | None:
        """A pod, or None if there is none of the name."""
        return self.api.find(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def delete_pod(self, name: str, namespace: str = "default") -> None:
        """Ask for a pod's deletion with its own grace period."""
        self.api.delete(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def pod_log(self, name: str, namespace: str = "default") -> str:
        """What the pod's container has printed so far; empty while there is no container."""
        try:
            return self.api.text(f"/api/v1/namespaces/{namespace}/pods/{name}/log")
        except ApiError as error:
            if error.status in (400, 404):
                return ""
            raise

    def describe_pod(self, name: str, namespace: str = "default") -> str:
        """A pod's status, events and log: what a failed test shows."""
        pod = self.pod(name, namespace) or {}
        events = self.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        lines = [json.dumps(pod.get("status", {}))]
        lines += [
            f"{event.get('reason')}: {event.get('message')}"
            for event in events
            if event["involvedObject"].get("name") == name
        ]
        return "\n".join([*lines, self.pod_log(name, namespace)])

    def pod_process(self, name: str, namespace: str = "default") -> int:
        """The host's id of the first process in a running pod's first container. Raises ClusterError."""
        pod = self.pod(name, namespace) or {}
        for status in pod.get("status", {}).get("containerStatuses", []):
            container = str(status.get("containerID", "")).rpartition("/")[2]
            for group in self._cgroups():
                for folder in group.rglob(container) if container else ():
                    for line in (folder / "cgroup.procs").read_text().split():
                        return int(line)
        raise ClusterError(f"pod {name} has no running container")

    def _cgroups(self) -> list[Path]:
        return _cgroups_of(self.directory)

    def _take_lock(self) -> None:
        lock = Path(f"/run/{self.directory.name}.lock").open("w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ClusterError(f"another run is using the cluster at {self.directory}") from None
        self._lock = lock

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=self.child_environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C must reach this process only: the order of ending matters.
                start_new_session=True,
            )

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                log = (self.logs / f"{name}.log").read_text(errors="replace")
                raise ClusterError(f"{name} ended with {code}:\n{log[-3000:]}")

    def _wait(self, what: str, ready: Callable[[], bool | str]) -> None:
        wait_for(what, ready, progress=self._progress, alive=self._check_processes)

    def _start_containerd(self, programs: Path) -> None:
        home = self.directory / "containerd"
        networks = home / "cni"
        networks.mkdir(parents=True)
        (networks / "10-pods.conflist").write_text(cni_configuration(home / "addresses"))
        config = home / "config.toml"
        config.write_text(
            f"""\
version = 4
root = "{home}/root"
state = "{home}/state"
imports = []
disabled_plugins = [
  "io.containerd.image-verifier.v1.bindir",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.server.v1.grpc"]
  address = "{self._containerd_socket}"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "{self._containerd_socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{cni_dir()}"]
    conf_dir = "{networks}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    # The host may have another containerd's first in its path.
    runtime_path = "{programs / "containerd-shim-runc-v2"}"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{programs / "runc"}"
      Root = "{home}/runc"
      SystemdCgroup = false
"""
        )
        self._spawn("containerd", [str(programs / "containerd"), "--config", str(config)])
        self._wait("containerd", lambda: _succeeds([*self._ctr, "version"]))
        archive = home / "images.tar"
        write_archive(archive)
        self.load_images(archive)
        archive.unlink()

    def load_images(self, archive: Path) -> None:
        """Give the container runtime the images of an archive. Raises ClusterError."""
        done = subprocess.run(
            [*self._ctr, "images", "import", str(archive)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ClusterError(f"importing {archive.name} failed: {done.stderr[-2000:]}")

    @property
    def _ctr(self) -> list[str]:
        return [str(programs_dir() / "ctr"), "--address", str(self._containerd_socket), "--namespace", "k8s.io"]

    @property
    def _containerd_socket(self) -> Path:
        return self.directory / "containerd" / "containerd.sock"

    def _start_control_plane(self, programs: Path, authority: ClusterAuthority) -> None:
        etcd_port, peer_port, api_port, manager_port, scheduler_port = _free_ports(5)
        etcd = f"https://127.0.0.1:{etcd_port}"
        etcd_pair = authority.issue("etcd", "etcd")
        self._spawn(
            "etcd",
            [
                str(programs / "etcd"),
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
                f"--initial-cluster=default=http://127.0.0.1:{peer_port}",
                "--client-cert-auth=true",
                f"--trusted-ca-file={authority.ca_cert}",
                f"--cert-file={etcd_pair.cert}",
                f"--key-file={etcd_pair.key}",
                # The data does not outlive the run, so it need not reach the disk.
                "--unsafe-no-fsync=true",
            ],
        )
        server = authority.issue("apiserver", "kube-apiserver")
        to_kubelet = authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters")
        tokens = authority.signing_key()
        audit_policy = self.directory / "audit-policy.yaml"
        audit_policy.write_text(yaml.safe_dump(_AUDIT_POLICY))
        self._spawn(
            "kube-apiserver",
            [
                str(programs / "kube-apiserver"),
                f"--etcd-servers={etcd}",
                f"--etcd-cafile={authority.ca_cert}",
                f"--etcd-certfile={etcd_pair.cert}",
                f"--etcd-keyfile={etcd_pair.key}",
                "--bind-address=0.0.0.0",
                f"--advertise-address={NODE_ADDRESS}",
                f"--secure-port={api_port}",
                f"--cert-dir={self.directory / 'apiserver'}",
                f"--tls-cert-file={server.cert}",
                f"--tls-private-key-file={server.key}",
                f"--client-ca-file={authority.ca_cert}",
                f"--kubelet-certificate-authority={authority.ca_cert}",
                f"--kubelet-client-certificate={to_kubelet.cert}",
                f"--kubelet-client-key={to_kubelet.key}",
                "--kubelet-preferred-address-types=Hostname",
                "--allow-privileged=true",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction,ServiceAccount",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={tokens}",
                f"--service-account-signing-key-file={tokens}",
                f"--service-cluster-ip-range={SERVICE_NETWORK}",
                f"--audit-policy-file={audit_policy}",
                f"--audit-log-path={self.audit_log}",
                "--audit-log-mode=blocking-strict",
                "--audit-log-maxsize=1024",
            ],
        )
        url = f"https://127.0.0.1:{api_port}"
        admin = authority.issue("admin", "admin", "system:masters")
        self.kubeconfig.touch(mode=0o600)
        _write_kubeconfig(self.kubeconfig, url, authority.ca_cert, admin)
        self._api = KubeApi(url, str(authority.ca_cert), admin)
        self._wait("the API server", self._api_ready)
        self._progress(f"the API server answers: {self.api.get('/version')['gitVersion']}")
        for name, user, port, flags in (
            (
                "kube-controller-manager",
                "system:kube-controller-manager",
                manager_port,
                [
                    f"--root-ca-file={authority.ca_cert}",
                    f"--service-account-private-key-file={tokens}",
                    "--use-service-account-credentials=true",
                ],
            ),
            ("kube-scheduler", "system:kube-scheduler", scheduler_port, []),
        ):
            pair = authority.issue(name, user)
            config = self._component_kubeconfig(name, url, authority, pair)
            self._spawn(
                name,
                [
                    str(programs / name),
                    f"--kubeconfig={config}",
                    f"--authentication-kubeconfig={config}",
                    f"--authorization-kubeconfig={config}",
                    "--bind-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--tls-cert-file={pair.cert}",
                    f"--tls-private-key-file={pair.key}",
                    "--leader-elect=false",
                    *flags,
                ],
            )

    def _component_kubeconfig(self, name: str, url: str, authority: ClusterAuthority, pair: Pair) -> Path:
        path = self.directory / "pki" / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        _write_kubeconfig(path, url, authority.ca_cert, pair)
        return path

    def _api_ready(self) -> bool | str:
        try:
            return self.api.text("/readyz") == "ok"
        except ApiError as error:
            return f"not ready ({error.status})"
        except OSError:
            return False

    def _start_network(self, programs: Path, authority: ClusterAuthority) -> None:
        """Services: their addresses by kube-proxy, their names by CoreDNS."""
        proxy = self.directory / "kube-proxy.yaml"
        health_port, metrics_port = _free_ports(2)
        pair = authority.issue("kube-proxy", "system:kube-proxy")
        proxy.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                    "kind": "KubeProxyConfiguration",
                    "mode": "iptables",
                    "clientConnection": {
                        "kubeconfig": str(self._component_kubeconfig("kube-proxy", self.api.url, authority, pair))
                    },
                    "hostnameOverride": NODE,
                    "healthzBindAddress": f"127.0.0.1:{health_port}",
                    "metricsBindAddress": f"127.0.0.1:{metrics_port}",
                    # Pods of one bridge answer each other past the translation otherwise.
                    "iptables": {"masqueradeAll": True, "localhostNodePorts": False},
                    # The host's table is not this cluster's to size.
                    "conntrack": {
                        "maxPerCore": 0,
                        "min": 0,
                        "tcpCloseWaitTimeout": "0s",
                        "tcpEstablishedTimeout": "0s",
                    },
                }
            )
        )
        self._spawn("kube-proxy", [str(programs / "kube-proxy"), f"--config={proxy}"])
        dns = authority.issue("coredns", "coredns", "system:masters")
        names = self.directory / "Corefile"
        names.write_text(corefile(self._component_kubeconfig("coredns", self.api.url, authority, dns)))
        self._spawn("coredns", [str(programs / "coredns"), "-conf", str(names)])

    def _start_kubelet(self, programs: Path, authority: ClusterAuthority) -> None:
        self.kubelet_root.mkdir()
        # Mounts that the agent makes below must reach the containers' mount namespaces, and the host's own
        # root may be private.
        _run(["mount", "--bind", str(self.kubelet_root), str(self.kubelet_root)])
        _run(["mount", "--make-rshared", str(self.kubelet_root)])
        for group in self._cgroups():
            group.mkdir(exist_ok=True)
            _inherit_cpuset(group)
        port, health_port = _free_ports(2)
        pair = authority.issue("kubelet", f"system:node:{NODE}", "system:nodes")
        kubeconfig = self._component_kubeconfig("kubelet", self.api.url, authority, pair)
        config = self.directory / "kubelet.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "address": "127.0.0.1",
                    "port": port,
                    "healthzPort": health_port,
                    "authentication": {
                        "anonymous": {"enabled": False},
                        "webhook": {"enabled": True},
                        "x509": {"clientCAFile": str(authority.ca_cert)},
                    },
                    "authorization": {"mode": "Webhook"},
                    "tlsCertFile": str(pair.cert),
                    "tlsPrivateKeyFile": str(pair.key),
                    "containerRuntimeEndpoint": f"unix://{self._containerd_socket}",
                    "clusterDNS": [NODE_ADDRESS],
                    "clusterDomain": "cluster.local",
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{self.directory.name}",
                    "enforceNodeAllocatable": ["pods"],
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "makeIPTablesUtilChains": False,
                    "podLogsDir": str(self.directory / "pod-logs"),
                    "volumePluginDir": str(self.directory / "volume-plugins"),
                    # Kubelet looks at each pod, and calls NodePublishVolume again, this often.
                    "syncFrequency": "10s",
                    # A developer's disk may be fuller than a node's; no pod here is worth evicting.
                    "evictionHard": {
                        "imagefs.available": "0%",
                        "nodefs.available": "0%",
                        "nodefs.inodesFree": "0%",
                    },
                    "imageGCHighThresholdPercent": 100,
                }
            )
        )
        self._spawn(
            "kubelet",
            [
                str(programs / "kubelet"),
                f"--config={config}",
                f"--kubeconfig={kubeconfig}",
                f"--root-dir={self.kubelet_root}",
                f"--cert-dir={self.directory / 'pki'}",
                f"--hostname-override={NODE}",
                f"--node-ip={NODE_ADDRESS}",
            ],
        )
        self._wait("the node to be ready", self._node_ready)

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


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": SEARCH_PATH})
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    # All at once, so that no two are the same.
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def _write_kubeconfig(path: Path, url: str, ca_cert: Path, client: Pair) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "podsvid",
                "clusters": [{"name": "podsvid", "cluster": {"server": url, "certificate-authority": str(ca_cert)}}],
                "users": [
                    {
                        "name": "podsvid",
                        "user": {"client-certificate": str(client.cert), "client-key": str(client.key)},
                    }
                ],
                "contexts": [{"name": "podsvid", "context": {"cluster": "podsvid", "user": "podsvid"}}],
            }
        )
    )


def _cgroups_of(directory: Path) -> list[Path]:
    """The cluster's cgroup in each hierarchy: one with cgroup v2, one for each controller with v1."""
    if (_CGROUP_ROOT / "cgroup.procs").exists():
        return [_CGROUP_ROOT / directory.name]
    return [
        found / directory.name
        for found in sorted(_CGROUP_ROOT.iterdir())
        # A controller may also be there by a second name that is a link, as cpu -> cpu,cpuacct.
        if not found.is_symlink() and (found / "cgroup.procs").exists()
    ]


def _inherit_cpuset(group: Path) -> None:
    # A new v1 cpuset group has no CPU and no memory node, and refuses every process until it is given some.
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists() and not (group / "cgroup.controllers").exists():
            (group / name).write_text((group.parent / name).read_text())


def _remove_leftovers(directory: Path, progress: Progress) -> None:
    """Remove every trace of a cluster at `directory`: processes, mounts, cgroups, files.

    Raises ClusterError, naming what is left, if something cannot be removed.
    """
    shim_sockets = list(_shim_sockets(directory))
    _kill_all(directory)
    for mount in reversed(_mounts_below(directory)):
        _unmount(mount)
    left = _mounts_below(directory)
    if left:
        # Removing the files now could remove what a mount holds.
        raise ClusterError(f"still mounted: {', '.join(map(str, left))}")
    for group in _cgroups_of(directory):
        _remove_cgroup(group)
    for path in shim_sockets:
        path.unlink(missing_ok=True)
    if _LEGACY_LOG_LINKS.is_dir():
        for link in _LEGACY_LOG_LINKS.iterdir():
            if link.is_symlink() and str(link.readlink()).startswith(f"{directory}/"):
                link.unlink()
    if directory.exists():
        if not _kubelet_runs():
            (_DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
            with suppress(OSError):  # not there, or holding what is not ours
                _DEVICE_PLUGINS.rmdir()
                _DEVICE_PLUGINS.parent.rmdir()
        shutil.rmtree(directory)


def _shim_sockets(directory: Path) -> Iterator[Path]:
    """Where the shims listen: in a folder that all containerds of a host share."""
    for file in directory.glob(_SHIMS):
        with suppress(ValueError):  # half written when its run was killed
            yield Path(json.loads(file.read_text())["address"].removeprefix("unix://"))


def _kubelet_runs() -> bool:
    for entry in Path("/proc").glob("[0-9]*/exe"):
        with suppress(OSError):  # ended by now, or dead and not yet waited for: without a program
            if entry.readlink().name == "kubelet":
                return True
    return False


def _kill_all(directory: Path) -> None:
    """Kill the cluster's processes and containers, and wait until they are gone."""
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        found = set(_marked_processes(directory)) | set(_contained_processes(directory))
        if not found:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"processes that do not end: {sorted(found)}")
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            # Our own children stay as zombies until they are waited for.
            with suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)
        time.sleep(0.1)


def _marked_processes(directory: Path) -> Iterable[int]:
    mark = f"{_MARK}={directory}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # A zombie's environment is empty, so what is already dead is not found again.
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _contained_processes(directory: Path) -> Iterable[int]:
    for group in _cgroups_of(directory):
        for file in group.rglob("cgroup.procs"):
            with suppress(OSError):
                yield from (int(line) for line in file.read_text().split())


def _mounts_below(directory: Path) -> list[Path]:
    """The mounts at and below a folder, in the order in which they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # The kernel writes blanks and backslashes of a path as octal escapes.
        path = Path(line.split()[4].encode().decode("unicode_escape"))
        if path == directory or directory in path.parents:
            found.append(path)
    return found


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(path)
    # A mount that is still in use is taken out of the tree; it goes when its last user does.
    if libc.umount2(target, 0) != 0:
        libc.umount2(target, _MNT_DETACH)


def _remove_cgroup(group: Path) -> None:
    if not group.exists():
        return
    folders = [group, *(path for path in group.rglob("*") if path.is_dir())]
    deadline = time.monotonic() + _STOP_SECONDS
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        while folder.exists():
            try:
                folder.rmdir()
            except OSError as error:
                # A killed process leaves its group a moment after its death.
                if time.monotonic() > deadline:
                    raise ClusterError(f"the cgroup {folder} cannot be removed: {error}") from None
                time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="tests.cluster.harness", description="A real single-node cluster.")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="where the cluster keeps its files")
    parser.add_argument("action", choices=["build", "up", "run", "down"])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for run: what to run with KUBECONFIG set")
    options = parser.parse_args(arguments)
    cluster = Cluster(options.dir)
    try:
        if options.action == "build":
            install_packages(say)
            say(f"programs in {build(say)}")
        elif options.action == "up":
            with cluster:
                cluster.detach()
            print(f"export KUBECONFIG={cluster.kubeconfig}")
            print(f"nsenter --net=/run/{options.dir.name}.net COMMAND")
        elif options.action == "run":
            with cluster:
                environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
                return subprocess.run(options.command, env=environment, check=False).returncode
        else:
            cluster.stop()
    except ClusterError as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
