"""Services: their addresses by kube-proxy, their names by CoreDNS."""

from __future__ import annotations

import yaml

from .control_plane import component_kubeconfig
from .layout import NODE, Layout
from .network import corefile
from .pki import ClusterAuthority
from .programs import program


def proxy(layout: Layout, authority: ClusterAuthority, url: str, health_port: int, metrics_port: int) -> list[str]:
    """Write kube-proxy's settings; the command that starts it."""
    path = layout.directory / "kube-proxy.yaml"
    config = component_kubeconfig(layout, authority, url, "kube-proxy", "system:kube-proxy")
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(config)},
        "hostnameOverride": NODE,
        "healthzBindAddress": f"127.0.0.1:{health_port}",
        "metricsBindAddress": f"127.0.0.1:{metrics_port}",
        # Pods of one bridge answer each other past the translation otherwise.
        "iptables": {"masqueradeAll": True, "localhostNodePorts": False},
        # The host's table is not this cluster's to size.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
    }
    path.write_text(yaml.safe_dump(settings))
    return [str(program("kube-proxy")), f"--config={path}"]


def names(layout: Layout, authority: ClusterAuthority, url: str) -> list[str]:
    """Write CoreDNS' settings; the command that starts it."""
    path = layout.directory / "Corefile"
    path.write_text(corefile(component_kubeconfig(layout, authority, url, "coredns", "coredns", "system:masters")))
    return [str(program("coredns")), "-conf", str(path)]
