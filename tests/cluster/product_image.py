"""podsvid's own image, built as deploy/image says, on a Debian base that is made here: nothing is pulled."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import re
import shutil
import subprocess
import tarfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.go_tools import Progress, cache_root

from .apart import run_apart, scratch
from .cluster import Cluster
from .host import which
from .programs import program

ROOT = Path(__file__).parents[2]
BASE = "localhost/debian-python:1"
EXAMPLES_BASE = "localhost/debian-examples:2"
EXAMPLES = "localhost/podsvid-examples:1"
MORE = "localhost/podsvid-more:1"
_WRITTEN_BASE = "docker.io/library/python:3.13-slim-bookworm@sha256:…"
_SUITE = "bookworm"
_PACKAGES = {
    BASE: ("python3", "python3-venv", "ca-certificates"),
    EXAMPLES_BASE: ("python3", "python3-venv", "ca-certificates", "nginx-light", "openssl", "curl"),
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
    command = ["--build-arg", f"BASE={BASE}"]
    command += ["--ignorefile", str(source / "deploy" / "image" / "Containerfile.dockerignore")]
    command += ["--tag", name, "--file", str(source / "deploy" / "image" / "Containerfile"), str(source)]
    _build(command)
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
    shutil.copyfile(program("workload-api-go"), context / "workload-api-go")
    (context / "Containerfile").write_text(
        f"""\
FROM {EXAMPLES_BASE}
RUN python3 -m venv /app && /app/bin/pip install -q --no-cache-dir {" ".join(wanted)}
COPY main.py /app/
COPY --chmod=755 workload-api-go /app/
COPY --chmod=755 envoy /usr/local/bin/envoy
"""
    )
    _build(["--tag", EXAMPLES, str(context)])
    return EXAMPLES


def build_more(image: str, context: Path, progress: Progress) -> str:
    """An image on top of that one, as the documentation's lines say, with an empty library. `context` is scratch."""
    progress(f"building on top of {image}")
    section = (ROOT / "docs" / "pkcs11.md").read_text().partition("\n### An image with more libraries\n")[2]
    lines = textwrap.dedent("\n".join(re.findall(r"^ {4}.*$", section.partition("\n### ")[0], re.MULTILINE)))
    for written, here in (("registry.example/podsvid:0.1.0", image), (_WRITTEN_BASE, BASE)):
        assert lines.count(written) == 1, lines
        lines = lines.replace(written, here)
    (context / "Containerfile").write_text(lines + "\n")
    (context / "libpkcs11.so").touch()
    _build(["--tag", MORE, str(context)])
    return MORE


def load(cluster: Cluster, names: Iterable[str]) -> None:
    """Give the cluster's container runtime these images."""
    for name in names:
        archive = cluster.directory / "image.tar"
        _buildah(["push", "-q", name, f"docker-archive:{archive}:{name}"])
        cluster.load_images(archive)
        archive.unlink()


def unpacked(name: str) -> tuple[int, list[str]]:
    """The bytes that the image's files take on a disk of blocks of 4 KiB, and the paths of all its files."""
    with _store_alone():
        container = _buildah(["from", name]).strip()
        # Looked at from where it is mounted: nobody else sees that mount.
        look = 'cd "$("$@" mount "$0")" && find . -type f -printf "%s %P\\n"'
        lines = run_apart(["sh", "-euc", look, container, *_buildah_command()]).splitlines()
        _buildah(["rm", container])
    found = [line.partition(" ") for line in lines]
    return sum(-(-int(size) // 4096) * 4096 for size, _, _ in found), [path for _, _, path in found]


def run_in(name: str, program: str) -> str:
    """What a program of Python's prints in the image, without anything that a runtime would mount."""
    with _store_alone():
        container = _buildah(["from", name]).strip()
        script = 'program=$1; container=$2; shift 2; exec chroot "$("$@" mount "$container")" python -c "$program"'
        path = "PATH=/opt/podsvid/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        text = run_apart(["env", path, "sh", "-euc", script, "sh", program, container, *_buildah_command()])
        _buildah(["rm", container])
    return text


def compiled_at_start(name: str, modules: str) -> tuple[int, list[str]]:
    """How many modules the image's podsvid loads with these, and the files of those without byte code that counts."""
    with _store_alone():
        container = _buildah(["from", name]).strip()
        script = """
            modules=$1; container=$2; shift 2
            exec env PYTHONDONTWRITEBYTECODE=1 \
              chroot "$("$@" mount "$container")" /opt/podsvid/bin/python -v -c "import $modules" 2>&1
        """
        text = run_apart(["sh", "-euc", script, "sh", modules, container, *_buildah_command()])
        _buildah(["rm", container])
    found = re.findall(r"^# code object from '?(.+?)'?$", text, re.MULTILINE)
    return len(found), [each for each in found if not each.endswith(".pyc")]


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


def _build(arguments: Sequence[str]) -> None:
    # A host may need files of its own to reach its package index; the image gets none of them.
    mounts = [flag for each in _HOST_FILES if Path(each).exists() for flag in ("--volume", f"{each}:{each}:ro")]
    settings = ["-q", "--isolation", "chroot", "--network", "host", "--layers", "--timestamp", "0", *mounts]
    with _store_alone():
        _buildah(["build", *settings, *arguments])


@contextmanager
def _store_alone() -> Iterator[None]:
    """The images' store, with no container in it that a killed run left half built."""
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / "image-store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _buildah(["rm", "--all"])
        yield


def _build_base(name: str, progress: Progress) -> None:
    if _exists(name):
        return
    home = cache_root() / "image-base"
    home.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(repr((_SUITE, _PACKAGES[name])).encode()).hexdigest()[:16]
    archive = home / f"{content}.tar"
    if not archive.exists():
        progress(f"making a Debian {_SUITE} base with {', '.join(_PACKAGES[name])}")
        part = archive.with_suffix(".part.tar")
        command = [which("mmdebstrap"), "--quiet", "--mode=root", "--variant=minbase"]
        command += [f"--include={','.join(_PACKAGES[name])}", _SUITE, str(part)]
        run_apart([*command, *_package_sources()])
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
    return name in _buildah(["images", "--format", "{{.Name}}:{{.Tag}}"]).split()


def _buildah(arguments: Sequence[str]) -> str:
    return run_apart([*_buildah_command(), *arguments])


def _buildah_command() -> list[str]:
    where = ["--root", str(cache_root() / "image-store"), "--runroot", f"{scratch()}/run"]
    return [which("buildah"), *where, "--storage-driver", "overlay"]
