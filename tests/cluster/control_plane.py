"""etcd, the API server, the controllers and the scheduler: how each is started."""

from __future__ import annotations

from pathlib import Path

import yaml

from . import kubeconfig
from .layout import Layout
from .network import NODE_ADDRESS, SERVICE_NETWORK
from .pki import ClusterAuthority
from .programs import program

# Which of podsvid's accounts asked for what, without bodies: tests count writes in it, and look who may too much. The
# last one is a person's that looks on (test_console.py).
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "users": [
                f"system:serviceaccount:podsvid:podsvid-{each}"
                for each in ("signer", "agent", "uninstall-guard", "looks-on")
            ],
        },
        {"level": "None"},
    ],
}


# Who logs in by JSON web tokens is named by tests, which write over the file: the API server reads it again.
_AUTHENTICATION = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": []}

# What pods' certificates need of the API server, the controllers and kubelet; off by default in this version.
GATES = {"PodCertificateRequest": True, "ClusterTrustBundle": True, "ClusterTrustBundleProjection": True}


def certificates() -> list[str]:
    """Flags of an API server that has PodCertificateRequests and ClusterTrustBundles."""
    resources = ",".join(
        f"certificates.k8s.io/v1beta1/{each}=true" for each in ("podcertificaterequests", "clustertrustbundles")
    )
    return [f"--feature-gates={_gates()}", f"--runtime-config={resources}"]


def _gates() -> str:
    return ",".join(f"{name}={str(on).lower()}" for name, on in GATES.items())


def etcd(layout: Layout, authority: ClusterAuthority, port: int, peer_port: int) -> list[str]:
    """The command that starts etcd for clients of the authority."""
    url, peer = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    pair = authority.issue("etcd", "etcd")
    return [
        str(program("etcd")),
        f"--data-dir={layout.directory / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--client-cert-auth=true",
        f"--trusted-ca-file={authority.ca_cert}",
        f"--cert-file={pair.cert}",
        f"--key-file={pair.key}",
        # The data does not outlive the run, so it need not reach the disk.
        "--unsafe-no-fsync=true",
    ]


def api_server(layout: Layout, authority: ClusterAuthority, port: int, etcd_port: int) -> list[str]:
    """The command that starts the API server. Writes the audit log's policy, and that no issuer's tokens log in."""
    to_etcd = authority.issue("apiserver-etcd", "kube-apiserver-etcd")
    server = authority.issue("apiserver", "kube-apiserver")
    to_kubelet = authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters")
    policy = layout.directory / "audit-policy.yaml"
    policy.write_text(yaml.safe_dump(_AUDIT_POLICY))
    layout.authentication.write_text(yaml.safe_dump(_AUTHENTICATION))
    return [
        str(program("kube-apiserver")),
        f"--etcd-servers=https://127.0.0.1:{etcd_port}",
        f"--etcd-cafile={authority.ca_cert}",
        f"--etcd-certfile={to_etcd.cert}",
        f"--etcd-keyfile={to_etcd.key}",
        "--bind-address=0.0.0.0",
        f"--advertise-address={NODE_ADDRESS}",
        f"--secure-port={port}",
        f"--cert-dir={layout.directory / 'apiserver'}",
        f"--tls-cert-file={server.cert}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={authority.ca_cert}",
        f"--kubelet-certificate-authority={authority.ca_cert}",
        f"--kubelet-client-certificate={to_kubelet.cert}",
        f"--kubelet-client-key={to_kubelet.key}",
        "--kubelet-preferred-address-types=Hostname",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        f"--authentication-config={layout.authentication}",
        "--enable-admission-plugins=NodeRestriction,ServiceAccount",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={authority.tokens_key}",
        f"--service-account-signing-key-file={authority.tokens_key}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-mode=blocking-strict",
        "--audit-log-maxsize=1024",
        *certificates(),
    ]


def controllers(layout: Layout, authority: ClusterAuthority, url: str, port: int) -> list[str]:
    """The command that starts the controllers."""
    return [
        *_client("kube-controller-manager", layout, authority, url, port),
        f"--root-ca-file={authority.ca_cert}",
        f"--service-account-private-key-file={authority.tokens_key}",
        "--use-service-account-credentials=true",
        f"--flex-volume-plugin-dir={layout.volume_plugins}",
        # It takes requests away that nobody decides.
        f"--feature-gates={_gates()}",
    ]


def scheduler(layout: Layout, authority: ClusterAuthority, url: str, port: int) -> list[str]:
    """The command that starts the scheduler."""
    return _client("kube-scheduler", layout, authority, url, port)


def _client(name: str, layout: Layout, authority: ClusterAuthority, url: str, port: int) -> list[str]:
    pair = authority.issue(name, f"system:{name}")
    config = component_kubeconfig(layout, authority, url, name, f"system:{name}")
    return [
        str(program(name)),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={pair.cert}",
        f"--tls-private-key-file={pair.key}",
        "--leader-elect=false",
    ]


def component_kubeconfig(
    layout: Layout, authority: ClusterAuthority, url: str, name: str, user: str, group: str = ""
) -> Path:
    """A component's kubeconfig, with a certificate of its own for that user."""
    path = layout.pki / f"{name}.kubeconfig"
    kubeconfig.write(path, url, authority.ca_cert, authority.issue(f"{name}-client", user, group))
    return path
