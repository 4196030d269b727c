"""Kubernetes and all it stands on, as pinned Go modules. The manifests under ``tools/`` fix every version."""

from __future__ import annotations

from pathlib import Path

from tests.go_tools import Program, path_of

TOOLS = Path(__file__).parent / "tools"
EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
KUBERNETES_VERSION = "v1.35.4"
_CONTAINERD = "github.com/containerd/containerd/v2"
_CONTAINERD_VERSION = "v2.4.2"
_TAGS = "providerless,seccomp"
_STRIPPED = "-s -w"


def _stamp() -> str:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    # Without the stamp a component calls itself v0.0.0, and the API server then emulates version 0.0.
    stamp = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamp.items())


def _kubernetes(name: str) -> Program:
    package, flags = f"k8s.io/kubernetes/cmd/{name}", f"{_STRIPPED} {_stamp()}"
    return Program(name, TOOLS / "kubernetes", package, ldflags=flags, tags=_TAGS)


def _containerd(name: str) -> Program:
    flags = f"{_STRIPPED} -X {_CONTAINERD}/version.Version={_CONTAINERD_VERSION}"
    return Program(name, TOOLS / "containerd", f"{_CONTAINERD}/cmd/{name}", ldflags=flags, tags=_TAGS)


# The largest module first: what takes longest starts first.
PROGRAMS = (
    *map(_kubernetes, ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")),
    *map(_containerd, ("containerd", "containerd-shim-runc-v2", "ctr")),
    Program("coredns", TOOLS / "coredns", ".", ldflags=_STRIPPED),
    Program("helm", TOOLS / "helm", "helm.sh/helm/v4/cmd/helm", ldflags=_STRIPPED),
    # A module of its own: what the components' one asks for is not all that kubectl needs.
    Program("kubectl", TOOLS / "kubectl", ".", ldflags=f"{_STRIPPED} {_stamp()}"),
    Program("etcd", TOOLS / "etcd", "go.etcd.io/etcd/server/v3", ldflags=_STRIPPED),
    # runc enters namespaces before Go's runtime has started threads, in C.
    Program("runc", TOOLS / "runc", "github.com/opencontainers/runc", cgo=True, ldflags=_STRIPPED, tags=_TAGS),
    Program("workload-api-go", EXAMPLES / "workload-api-go", "."),
)
_BY_NAME = {program.name: program for program in PROGRAMS}


def program(name: str) -> Path:
    """Where a program is once it is built."""
    return path_of(_BY_NAME[name])
