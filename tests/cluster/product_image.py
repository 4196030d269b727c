"""podsvid's own image, built as deploy/image says, on a Debian base that is made here: nothing is pulled."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .binaries import SEARCH_PATH, ClusterError, Progress, cache_dir, which
from .harness import Cluster

ROOT = Path(__file__).parents[2]
BASE = "localhost/debian-python:1"
EXAMPLES_BASE = "localhost/debian-examples:1"
EXAMPLES = "localhost/podsvid-examples:1"
_SUITE = "bookworm"
_PACKAGES = {
    BASE: ("python3", "python3-venv", "ca-certificates"),
    EXAMPLES_BASE: ("python3", "python3-venv", "ca-certificates", "nginx-light", "openssl"),
}
_BASE_FILE = """\
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
_HOST_FILES = ("/etc/ssl/certs", "/etc/pip.conf")


def build(source: Path, tag: str, progress: Progress) -> str:
    """Build the image of the checkout at `source`; its name. Layers that did not change are taken from earlier builds.

    Raises ClusterError with the build's last words.
    """
    _build_base(BASE, progress)
    name = f"localhost/podsvid:{tag}"
    started = time.monotonic()
    progress(f"building {name}")
    command = [*_build_command(), "--build-arg", f"BASE={BASE}"]
    command += ["--ignorefile", str(source / "deploy" / "image" / "Containerfile.dockerignore")]
    command += ["--tag", name, "--file", str(source / "deploy" / "image" / "Containerfile"), str(source)]
    _buildah(command)
    progress(f"built {name} in {time.monotonic() - started:.0f} s")
    return name


def build_examples(context: Path, progress: Progress) -> str:
    """One image with the programs of all examples: nginx, Envoy, a Python and a Go workload. `context` is scratch."""
    _build_base(EXAMPLES_BASE, progress)
    progress("building the examples' image")
    examples = ROOT / "deploy" / "examples"
    shutil.copyfile(examples / "workload-api-python" / "main.py", context / "main.py")
    wanted = re.findall(r"spiffe==\S+", (examples / "workload-api-python" / "Containerfile").read_text())
    envoy = importlib.util.find_spec("envoy")
    assert envoy is not None
    assert envoy.submodule_search_locations
    shutil.copyfile(Path(next(iter(envoy.submodule_search_locations))) / "_bin" / "envoy", context / "envoy")
    go = {**os.environ, "PATH": SEARCH_PATH, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    command = [which("go"), "build", "-trimpath", "-o", str(context / "workload-api-go"), "."]
    done = subprocess.run(
        command, cwd=examples / "workload-api-go", env=go, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"workload-api-go does not build:\n{done.stderr[-3000:]}")
    (context / "Containerfile").write_text(
        f"""\
FROM {EXAMPLES_BASE}
RUN python3 -m venv /app && /app/bin/pip install -q --no-cache-dir {" ".join(wanted)}
COPY main.py workload-api-go /app/
COPY --chmod=755 envoy /usr/local/bin/envoy
"""
    )
    _buildah([*_build_command(), "--tag", EXAMPLES, str(context)])
    return EXAMPLES


def load(cluster: Cluster, names: Iterable[str]) -> None:
    """Give the cluster's container runtime these images."""
    for name in names:
        archive = cluster.directory / "image.tar"
        _buildah(["push", "-q", name, f"docker-archive:{archive}:{name}"])
        cluster.load_images(archive)
        archive.unlink()


def unpacked(name: str, inside: str) -> tuple[int, list[str]]:
    """The bytes of all files below a folder of the image, and the names of all programs in the image."""
    container = _buildah(["from", name]).strip()
    try:
        root = Path(_buildah(["mount", container]).strip())
        try:
            files = [
                path for path in (root / inside.lstrip("/")).rglob("*") if path.is_file() and not path.is_symlink()
            ]
            folders = (root / each for each in ("usr/bin", "usr/local/bin", inside.lstrip("/") + "/bin"))
            programs = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
            return sum(path.stat().st_size for path in files), programs
        finally:
            _buildah(["umount", container])
    finally:
        _buildah(["rm", container])


def checkout(revision: str, folder: Path) -> bool:
    """The project as it was at a revision; False where this checkout does not have it, or it has no image."""
    archive = folder / "source.tar"
    done = subprocess.run(["git", "archive", "-o", str(archive), revision], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        return False
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    return (folder / "deploy" / "image" / "Containerfile").exists()


def _build_command() -> list[str]:
    # A host may need files of its own to reach its package index; the image gets none of them.
    mounts = [flag for each in _HOST_FILES if Path(each).exists() for flag in ("--volume", f"{each}:{each}:ro")]
    return ["build", "-q", "--isolation", "chroot", "--network", "host", "--layers", "--timestamp", "0", *mounts]


def _build_base(name: str, progress: Progress) -> None:
    if _exists(name):
        return
    home = cache_dir().parent / "image-base"
    home.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(repr((_SUITE, _PACKAGES[name])).encode()).hexdigest()[:16]
    archive = home / f"{content}.tar"
    if not archive.exists():
        progress(f"making a Debian {_SUITE} base with {', '.join(_PACKAGES[name])}")
        part = archive.with_suffix(".part.tar")
        command = [which("mmdebstrap"), "--quiet", "--mode=root", "--variant=minbase"]
        command += [f"--include={','.join(_PACKAGES[name])}", _SUITE, str(part)]
        _run([*command, *_package_sources()])
        part.replace(archive)
    context = home / "context"
    context.mkdir(exist_ok=True)
    (context / "Containerfile").write_text(_BASE_FILE)
    shutil.copyfile(archive, context / "base.tar")
    _buildah(["build", "-q", "--isolation", "chroot", "--timestamp", "0", "--tag", name, str(context)])
    (context / "base.tar").unlink()


def _package_sources() -> list[str]:
    """Where this host gets its packages, if it is of the suite."""
    folder = Path("/etc/apt/sources.list.d")
    lists = [Path("/etc/apt/sources.list"), *folder.glob("*.list"), *folder.glob("*.sources")]
    return [str(each) for each in lists if each.exists() and _SUITE in each.read_text()][:1]


def _exists(name: str) -> bool:
    done = subprocess.run(_command(["inspect", "--type", "image", name]), capture_output=True, check=False)
    return done.returncode == 0


def _command(arguments: Sequence[str]) -> list[str]:
    store = cache_dir().parent / "image-store"
    where = ["--root", str(store), "--runroot", "/run/podsvid-image-store"]
    return [which("buildah"), *where, "--storage-driver", "overlay", *arguments]


def _buildah(arguments: Sequence[str]) -> str:
    return _run(_command(arguments))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, env={**os.environ, "PATH": SEARCH_PATH}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
