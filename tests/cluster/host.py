"""What this host must have before there can be a cluster: packages of the distribution, and where programs are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import go_tools
from tests.go_tools import Progress

# Where root's programs and Go live even if PATH does not say so.
SEARCH_PATH = os.pathsep.join([go_tools.SEARCH_PATH, "/usr/local/sbin", "/usr/sbin", "/sbin"])
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


def which(name: str) -> str:
    """The path of a program; raises ClusterError if the host has none."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise ClusterError(f"{name} is not installed")
    return found


def run(command: Sequence[str]) -> str:
    """Run a program to its end; what it printed. Raises ClusterError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": SEARCH_PATH})
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr).strip()[-3000:]}")
    return done.stdout


def cni_dir() -> Path:
    """The folder that holds the CNI plugins."""
    for folder in CNI_DIRS:
        if (folder / "loopback").exists():
            return folder
    raise ClusterError("no CNI plugins are installed")


def install_packages(progress: Progress) -> None:
    """Install the Debian packages that are missing. Raises ClusterError without root, or if apt fails."""
    if os.geteuid() != 0:
        raise ClusterError("the cluster needs root: it mounts, and runs containers")
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
    if shutil.which("apt-get") is None:
        raise ClusterError(f"install what Debian calls {' '.join(sorted(missing))}: this host has no apt-get to do it")
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
