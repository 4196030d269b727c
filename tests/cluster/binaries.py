"""What the cluster runs: packages of the distribution; Kubernetes and all it stands on from pinned Go modules.

The manifests under ``tools/`` fix every version. Built programs are kept outside the checkout, in a folder
named by the manifests' hash, so a change of version builds anew and two checkouts share one build.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]

TOOLS = Path(__file__).parent / "tools"
KUBERNETES_VERSION = "v1.35.4"
_CONTAINERD = "github.com/containerd/containerd/v2"
_CONTAINERD_VERSION = "v2.4.2"
# Where root's programs and Go live even if PATH does not say so.
SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/local/go/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"]
)
CNI_DIRS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))

# Program that shows a package is present -> Debian package.
_PACKAGES = {
    "gcc": "gcc",
    "pkg-config": "pkg-config",
    "busybox": "busybox-static",
    "openssl": "openssl",
    "mount": "mount",
    "findmnt": "util-linux",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
}


class ClusterError(Exception):
    """The cluster could not be built, started or taken down."""


@dataclass(frozen=True)
class _Program:
    name: str
    module: str
    package: str
    # runc enters namespaces before Go's runtime has started threads, in C.
    cgo: bool = False


_PROGRAMS = (
    _Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    *(
        _Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}")
        for name in ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
    ),
    _Program("coredns", "coredns", "."),
    _Program("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
    *(
        _Program(name, "containerd", f"{_CONTAINERD}/cmd/{name}")
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    ),
    _Program("runc", "runc", "github.com/opencontainers/runc", cgo=True),
)
_major, _minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
_STAMP = "k8s.io/component-base/version."
# Without the stamp a component calls itself v0.0.0, and the API server then emulates version 0.0.
_LDFLAGS = (
    f"-s -w -X {_STAMP}gitVersion={KUBERNETES_VERSION} -X {_STAMP}gitMajor={_major} -X {_STAMP}gitMinor={_minor}"
    f" -X {_CONTAINERD}/version.Version={_CONTAINERD_VERSION}"
)
_TAGS = "providerless,seccomp"


def which(name: str) -> str:
    """The path of a program; raises ClusterError if the host has none."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise ClusterError(f"{name} is not installed")
    return found


def cni_dir() -> Path:
    """The folder that holds the CNI plugins."""
    for folder in CNI_DIRS:
        if (folder / "loopback").exists():
            return folder
    raise ClusterError("no CNI plugins are installed")


def install_packages(progress: Progress) -> None:
    """Install the Debian packages that are missing. Needs root. Raises ClusterError if apt fails."""
    missing = {package for name, package in _PACKAGES.items() if shutil.which(name, path=SEARCH_PATH) is None}
    if not any((folder / "loopback").exists() for folder in CNI_DIRS):
        missing.add("containernetworking-plugins")
    if not Path("/usr/include/seccomp.h").exists():
        missing.add("libseccomp-dev")
    # The shell of the image must not need a C library: another busybox than Debian's static one may.
    if "busybox-static" not in missing and not _is_static(Path(which("busybox"))):
        missing.add("busybox-static")
    if not missing:
        return
    progress(f"installing packages: {' '.join(sorted(missing))}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *sorted(missing)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(command)} failed: {(done.stdout + done.stderr)[-2000:]}")


def _is_static(program: Path) -> bool:
    # The loader's own name appears in every dynamically linked program, in its interpreter header.
    return b"ld-linux" not in program.read_bytes()[:4096]


def cache_dir() -> Path:
    """Where the built programs of these manifests are kept."""
    root = os.environ.get("PODSVID_CACHE")
    if root is None:
        root = str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "podsvid")
    digest = hashlib.sha256(_LDFLAGS.encode())
    for module in sorted({program.module for program in _PROGRAMS}):
        for file in sorted((TOOLS / module).iterdir()):
            digest.update(file.read_bytes())
    return Path(root) / f"cluster-{digest.hexdigest()[:16]}"


def programs_dir() -> Path:
    """The folder that `build` leaves the programs of these manifests in."""
    return cache_dir() / "bin"


def build(progress: Progress) -> Path:
    """Build the programs that the cache lacks; the folder that holds them all.

    A program appears in the folder only when its build is whole. Raises ClusterError if a build fails.
    """
    programs = programs_dir()
    programs.mkdir(parents=True, exist_ok=True)
    with _locked(programs.with_name("lock"), progress):
        for number, program in enumerate(_PROGRAMS, 1):
            if not (programs / program.name).exists():
                _build_one(program, programs, progress, f"{program.name} ({number} of {len(_PROGRAMS)})")
    return programs


def _build_one(program: _Program, programs: Path, progress: Progress, label: str) -> None:
    progress(f"building {label}: minutes when nothing of it is cached")
    environment = {
        **os.environ,
        "PATH": SEARCH_PATH,
        "CGO_ENABLED": "1" if program.cgo else "0",
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
    }
    with tempfile.TemporaryDirectory(dir=programs.parent, prefix="build-") as scratch:
        output = Path(scratch) / program.name
        log = Path(scratch) / "log"
        command = [which("go"), "build", "-p", "2", "-trimpath", "-tags", _TAGS]
        command += ["-ldflags", _LDFLAGS, "-o", str(output), program.package]
        started = time.monotonic()
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=TOOLS / program.module,
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while True:
                    try:
                        code = process.wait(timeout=30)
                        break
                    except subprocess.TimeoutExpired:
                        progress(f"building {label}: {time.monotonic() - started:.0f} s")
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        if code != 0:
            raise ClusterError(f"building {program.name} failed:\n{log.read_text(errors='replace')[-3000:]}")
        output.replace(programs / program.name)
    progress(f"built {label} in {time.monotonic() - started:.0f} s")


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build holds the cache: waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
