"""Where one cluster has its files: every path that it makes is named here, so that nothing of it is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIR = Path("/var/lib/podsvid-cluster")
# The API server reaches kubelet by the node's name, and kubelet listens on loopback only.
NODE = "localhost"
# Every process of a cluster carries this in its environment: a killed run's processes are known by it.
MARK = "SVIDCLUSTER_DIR"


@dataclass(frozen=True)
class Layout:
    """The paths of the cluster at a directory."""

    directory: Path = DEFAULT_DIR

    @property
    def logs(self) -> Path:
        """The components' logs, beside the rest: they are kept when a run has failed."""
        return self.directory.with_name(f"{self.directory.name}-logs")

    @property
    def kubelet_root(self) -> Path:
        return self.directory / "kubelet"

    @property
    def kubeconfig(self) -> Path:
        """An administrator's."""
        return self.directory / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.directory / "audit.log"

    @property
    def authentication(self) -> Path:
        """Whose JSON web tokens log in at the API server."""
        return self.directory / "authentication.yaml"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def containerd(self) -> Path:
        return self.directory / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd / "containerd.sock"

    @property
    def volume_plugins(self) -> Path:
        """Empty; who is not told makes such a folder in /usr."""
        return self.directory / "volume-plugins"

    @property
    def resolv_conf(self) -> Path:
        """Names as the cluster's pods see them, for a person who works by hand."""
        return self.directory / "resolv.conf"

    @property
    def enter(self) -> Path:
        """Runs a command inside of the cluster's network, for the same person."""
        return self.directory / "enter"

    @property
    def mounts(self) -> Path:
        """The mount namespace of its container runtime and kubelet, as `nsenter --mount=PATH` takes it."""
        return self.directory / "mounts" / "namespace"

    @property
    def network(self) -> Path:
        """The cluster's network, as `nsenter --net=PATH` takes it."""
        return Path(f"/run/{self.directory.name}.net")

    @property
    def lock(self) -> Path:
        return Path(f"/run/{self.directory.name}.lock")

    @property
    def agent_run_dir(self) -> Path:
        """The run directory of an agent that is installed in the cluster: a folder of the host."""
        return Path(f"/run/{self.directory.name}-agent")
