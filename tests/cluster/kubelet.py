"""kubelet: its root and its settings."""

from __future__ import annotations

import yaml

from . import cgroups
from .control_plane import GATES, component_kubeconfig
from .host import run, which
from .layout import NODE, Layout
from .network import NODE_ADDRESS
from .pki import ClusterAuthority
from .programs import program


def make_root(layout: Layout) -> None:
    """kubelet's root, and the cgroups of its pods. Raises ClusterError."""
    layout.kubelet_root.mkdir()
    # Mounts that the agent makes below must reach the containers' mount namespaces, and the host's own root may be
    # private.
    run([which("mount"), "--bind", str(layout.kubelet_root), str(layout.kubelet_root)])
    run([which("mount"), "--make-rshared", str(layout.kubelet_root)])
    cgroups.make(layout.directory)


# Seconds. Kubernetes has a minute; tests would wait for that.
SYNC = 10


def configure(
    layout: Layout, authority: ClusterAuthority, url: str, port: int, health_port: int, sync: int = SYNC
) -> list[str]:
    """Write its settings; the command that starts it. It looks at each pod about every `sync` seconds."""
    pair = authority.issue("kubelet", f"system:node:{NODE}", "system:nodes")
    config = component_kubeconfig(layout, authority, url, "kubelet", f"system:node:{NODE}", "system:nodes")
    path = layout.directory / "kubelet.yaml"
    settings = {
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
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.directory.name}",
        "enforceNodeAllocatable": ["pods"],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(layout.directory / "pod-logs"),
        "volumePluginDir": str(layout.volume_plugins),
        # Kubelet looks at each pod, and calls NodePublishVolume again, this often.
        "syncFrequency": f"{sync}s",
        # A developer's disk may be fuller than a node's; no pod here is worth evicting.
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "featureGates": GATES,
    }
    path.write_text(yaml.safe_dump(settings))
    return [
        str(program("kubelet")),
        f"--config={path}",
        f"--kubeconfig={config}",
        f"--root-dir={layout.kubelet_root}",
        f"--cert-dir={layout.pki}",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_ADDRESS}",
    ]
