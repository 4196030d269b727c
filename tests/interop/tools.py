"""Gets a suite's programs: a wheel into the cache, by its hash; Go programs built there."""

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests import go_tools
from tests.go_tools import Progress

from .suites import Suite, SuiteError


def lacking(suite: Suite) -> str:
    """Why its programs would take long to get; empty when they are here, or come as a wheel."""
    absent = go_tools.missing(suite.programs)
    if not absent:
        return ""
    built = ", ".join(each.name for each in absent)
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
    if suite.places is not None:
        _install(suite, _wheel_dir(suite), progress)
    else:
        go_tools.build(suite.programs, progress)
    return paths(suite)


def _paths(suite: Suite) -> Mapping[str, Path]:
    if suite.places is not None:
        return {name: _wheel_dir(suite) / place for name, place in suite.places.items()}
    return {each.name: go_tools.path_of(each) for each in suite.programs}


def _wheel_dir(suite: Suite) -> Path:
    return go_tools.cache_root() / "wheels" / f"{suite.tool}-{suite.version}"


def _install(suite: Suite, folder: Path, progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        progress(f"installing {suite.tool} {suite.version}")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
            wanted, target = Path(scratch) / "requirements.txt", Path(scratch) / "target"
            hashes = " ".join(f"--hash=sha256:{each}" for each in suite.hashes)
            wanted.write_text(f"{suite.tool}=={suite.version} {hashes}\n")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "--require-hashes", "--target", str(target), "-r", str(wanted)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SuiteError(f"{suite.tool} {suite.version} could not be installed:\n{done.stderr[-2000:]}")
            target.rename(folder)
