"""The cluster's network: a namespace of its own, so that nothing of it is seen or left on the host.

The calling thread moves into it, and with it whatever is started from there: tests reach the cluster's loopback
because it is theirs, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
from pathlib import Path

from .host import ClusterError, run, which

BRIDGE = "pods"
# The node's address, on the bridge.
NODE_ADDRESS = "10.244.0.1"
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
API_ADDRESS = "10.96.0.1"

_HERE = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000


class OwnNetwork:
    """A network namespace that the calling thread is in from `enter` to `leave`. Both on the same thread."""

    def __init__(self, path: Path) -> None:
        # While it is mounted there, `nsenter --net=PATH` reaches it from outside.
        self.path = path
        self._before: int | None = None

    def enter(self) -> None:
        """Make the namespace, with its loopback and the pods' bridge. Raises ClusterError."""
        self.remove()
        self._before = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise ClusterError(f"no network namespace of its own: {os.strerror(ctypes.get_errno())}")
        self.path.touch()
        run([which("mount"), "--bind", f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net", str(self.path)])
        for command in (
            "link set lo up",
            f"link add {BRIDGE} type bridge",
            f"addr add {NODE_ADDRESS}/{POD_NETWORK.partition('/')[2]} dev {BRIDGE}",
            f"link set {BRIDGE} up",
            # kubelet and the API server want a route that is the default, though nothing is behind it.
            f"route add default dev {BRIDGE}",
        ):
            run([which("ip"), *command.split()])
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def leave(self) -> None:
        """Go back to where `enter` was called, and give the namespace up."""
        if self._before is not None:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(self._before, _CLONE_NEWNET) != 0:
                raise ClusterError(f"cannot go back to the network: {os.strerror(ctypes.get_errno())}")
            os.close(self._before)
            self._before = None
        self.remove()

    def forget(self) -> None:
        """Go back, but leave the namespace to the cluster that runs in it."""
        kept, self.path = self.path, Path("/nonexistent")
        self.leave()
        self.path = kept

    def remove(self) -> None:
        """Remove what a killed run left."""
        if self.path.exists():
            subprocess.run([which("umount"), str(self.path)], capture_output=True, check=False)
            self.path.unlink()


def cni_configuration(state: Path) -> str:
    """Bridge for the pods; addresses are kept below `state`."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(state),
            "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.244.0.10"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "portmap"}]})


def corefile(kubeconfig: Path) -> str:
    """CoreDNS for the names of Services, on the node's address."""
    return f"""\
cluster.local:53 {{
    bind {NODE_ADDRESS}
    errors
    ready {NODE_ADDRESS}:8181
    kubernetes {{
        kubeconfig {kubeconfig}
        pods disabled
    }}
}}
"""
