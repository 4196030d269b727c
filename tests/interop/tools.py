"""Gets a suite's programs: a wheel, an archive or jars of Maven into the cache, by hash; Go programs built there."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import go_tools
from tests.go_tools import Progress

from .suites import Suite, SuiteError

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_COPY_JARS = f"{_COPY}-dependencies"


def lacking(suite: Suite) -> str:
    """Why its programs would take long to get; empty when they are here, or come as a wheel."""
    absent = [each.name for each in go_tools.missing(suite.programs)]
    if suite.kind in ("maven", "jars"):
        absent = [name for name, path in _paths(suite).items() if not path.exists()]
    if not absent:
        return ""
    built = ", ".join(absent)
    return (
        f"{built}: not in the cache; "
        f"python -m tests.interop build {suite.name} takes some {suite.build_minutes:g} minutes"
    )


def paths(suite: Suite) -> Mapping[str, Path]:
    """Where its programs are, if they are here. Raises SuiteError."""
    found = _paths(suite)
    absent = [name for name, path in found.items() if not path.exists()]
    if absent:
        raise SuiteError(f"{', '.join(absent)}: not here yet; run: python -m tests.interop build {suite.name}")
    return found


def get(suite: Suite, progress: Progress) -> Mapping[str, Path]:
    """Its programs, fetched or built where the cache lacks them. Raises SuiteError, go_tools.BuildError."""
    if suite.kind == "wheel":
        _install(suite, _folder(suite), progress, _unpack_wheel)
    elif suite.kind == "maven":
        _install(suite, _folder(suite), progress, _unpack_archive)
    elif suite.kind == "jars":
        _install(suite, _folder(suite), progress, _copy_jars)
    else:
        go_tools.build(suite.programs, progress)
    return paths(suite)


def _paths(suite: Suite) -> Mapping[str, Path]:
    if suite.places is not None:
        return {name: _folder(suite) / place for name, place in suite.places.items()}
    return {each.name: go_tools.path_of(each) for each in suite.programs}


def _folder(suite: Suite) -> Path:
    where = "wheels" if suite.kind == "wheel" else "archives"
    return go_tools.cache_root() / where / f"{suite.tool.rpartition(':')[2]}-{suite.version}"


def _install(suite: Suite, folder: Path, progress: Progress, unpack: Callable[[Suite, Path, Path], None]) -> None:
    """`unpack` gets a folder for itself, and one that becomes `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        progress(f"installing {suite.tool} {suite.version}")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
            target = Path(scratch) / "target"
            unpack(suite, Path(scratch), target)
            target.rename(folder)


def _unpack_wheel(suite: Suite, scratch: Path, target: Path) -> None:
    wanted = scratch / "requirements.txt"
    hashes = " ".join(f"--hash=sha256:{each}" for each in suite.hashes)
    wanted.write_text(f"{suite.tool}=={suite.version} {hashes}\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--target", str(target), "-r", str(wanted)]
    _ran(suite, command)


def _unpack_archive(suite: Suite, scratch: Path, target: Path) -> None:
    _needs_maven()
    copied = scratch / "copied"
    command = ["mvn", "-q", "-B", _COPY, f"-Dartifact={suite.tool}:{suite.version}:zip", f"-DoutputDirectory={copied}"]
    _ran(suite, command)
    (archive,) = copied.iterdir()
    with archive.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest not in suite.hashes:
        raise SuiteError(f"{archive.name} has SHA-256 {digest}, which its suite does not name")
    with zipfile.ZipFile(archive) as unpacked:
        unpacked.extractall(target)
    archive.unlink()
    for path in _paths(suite).values():
        # An archive's modes are not unpacked.
        (target / path.relative_to(_folder(suite))).chmod(0o755)


def _copy_jars(suite: Suite, scratch: Path, target: Path) -> None:
    _needs_maven()
    # Maven may write beside what it is told to read.
    pom = shutil.copy(suite.folder / "pom.xml", scratch)
    jars = target / "jars"
    _ran(suite, ["mvn", "-q", "-B", "-f", str(pom), _COPY_JARS, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"])
    digest = hashlib.sha256()
    for jar in sorted(jars.iterdir()):
        digest.update(f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n".encode())
    if digest.hexdigest() not in suite.hashes:
        raise SuiteError(f"the list of jars has SHA-256 {digest.hexdigest()}, which its suite does not name")


def _needs_maven() -> None:
    for program, package in (("mvn", "maven"), ("java", "default-jre-headless")):
        if shutil.which(program) is None:
            raise SuiteError(f"{program} is not in PATH: apt-get install {package}")


def _ran(suite: Suite, command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-2000:]
        raise SuiteError(f"{suite.tool} {suite.version} could not be installed:\n{said}")
