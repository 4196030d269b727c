"""Builds the pinned Go programs that tests run, before pytest starts: into a cache outside the checkout.

A program is a package of a pinned module: a folder with go.mod and go.sum, and sources if it has any. The cache has a
folder for each state of such a manifest, so that another version of one module builds that module alone, and two
checkouts share what they have in common. What an interrupted build had finished is kept.

    python -m tests.go_tools build SUITE...   build what the suites need: tests/SUITE/programs.py lists it
    python -m tests.go_tools missing SUITE... name what a build would make
    python -m tests.go_tools path SUITE NAME  build one program of a suite, and print where it is
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

Progress = Callable[[str], None]

# Where Go's own archives install it; a root shell often lacks it in PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin"])
_POLL_SECONDS = 0.2
_REPORT_SECONDS = 30.0
_LOG_SHOWN = 3000


class BuildError(Exception):
    """A program could not be built. The text says which, and the compiler's last words."""


@dataclass(frozen=True)
class Program:
    """One Go program: a package of the module whose manifest is in a folder.

    `toolchain`: built with just that version of Go, which the one at hand fetches as a module.
    """

    name: str
    manifest_dir: Path
    package: str
    cgo: bool = False
    ldflags: str = ""
    tags: str = ""
    toolchain: str = ""


@dataclass
class _Build:
    """A compiler at work."""

    program: Program
    process: subprocess.Popen[bytes]
    scratch: Path
    started: float
    reported: float


@dataclass
class _Module:
    """What is still to be built of one manifest, in order. `lock` is held from the first build to the last."""

    waiting: list[Program]
    lock: IO[str] | None = None
    build: _Build | None = None
    told: bool = False


def cache_root() -> Path:
    """Where everything that tests build is kept: TESTS_CACHE, or a folder of the user's cache."""
    root = os.environ.get("TESTS_CACHE")
    if root is None:
        root = str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "podsvid")
    return Path(root)


def path_of(program: Program) -> Path:
    """Where a program is once it is built."""
    chosen = (program.toolchain,) if program.toolchain else ()
    options = repr((program.package, program.cgo, program.ldflags, program.tags, *chosen)).encode()
    return _module_dir(program.manifest_dir) / hashlib.sha256(options).hexdigest()[:8] / program.name


def missing(programs: Sequence[Program]) -> list[Program]:
    """Those that the cache does not have."""
    return [each for each in programs if not path_of(each).exists()]


def build(programs: Sequence[Program], progress: Progress) -> Mapping[str, Path]:
    """Build what the cache lacks, modules side by side; where each program is, by its name. Raises BuildError."""
    modules: dict[Path, _Module] = {}
    for each in missing(programs):
        modules.setdefault(_module_dir(each.manifest_dir), _Module([])).waiting.append(each)
    if modules:
        _build_all(modules, _go(), progress)
    return {each.name: path_of(each) for each in programs}


def _module_dir(manifest_dir: Path) -> Path:
    digest = hashlib.sha256()
    for file in sorted(path for path in manifest_dir.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(manifest_dir)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return cache_root() / "go" / f"{manifest_dir.name}-{digest.hexdigest()[:16]}"


def _go() -> str:
    found = shutil.which("go", path=SEARCH_PATH)
    if found is None:
        raise BuildError(
            "Go is neither in PATH nor in /usr/local/go/bin: unpack an archive from go.dev/dl, or install a package "
            "`golang` of 1.21 or newer, which fetches the version that is asked for by itself"
        )
    return found


def _build_all(modules: dict[Path, _Module], go: str, progress: Progress) -> None:
    # Downloads and links use one core each: a second module fills what the first leaves.
    side_by_side = max(2, (os.cpu_count() or 2) // 2)
    try:
        while modules:
            busy = sum(module.build is not None for module in modules.values())
            for folder, module in list(modules.items()):
                if module.build is not None:
                    _look(module, module.build, progress)
                elif module.waiting and busy < side_by_side and _locked(folder, module, progress):
                    module.build = _start(folder, module, go, progress)
                    busy += module.build is not None
                if module.build is None and not module.waiting:
                    _give_up(modules.pop(folder))
            time.sleep(_POLL_SECONDS)
    finally:
        for module in modules.values():
            _give_up(module)


def _locked(folder: Path, module: _Module, progress: Progress) -> bool:
    if module.lock is None:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            if not module.told:
                progress(f"another build is at {module.waiting[0].manifest_dir.name}: waiting for it")
                module.told = True
            return False
        module.lock = handle
        for left in folder.glob("build-*"):
            shutil.rmtree(left)
    return True


def _start(folder: Path, module: _Module, go: str, progress: Progress) -> _Build | None:
    program = module.waiting.pop(0)
    if path_of(program).exists():  # the build that had the lock before made it
        return None
    progress(f"building {program.name}: minutes when nothing of it is cached")
    scratch = folder / f"build-{program.name}"
    scratch.mkdir()
    command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(scratch / program.name)]
    command += ["-tags", program.tags, "-ldflags", program.ldflags, program.package]
    environment = {
        **os.environ,
        "PATH": SEARCH_PATH,
        "CGO_ENABLED": "1" if program.cgo else "0",
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
        **({"GOTOOLCHAIN": program.toolchain} if program.toolchain else {}),
    }
    with (scratch / "log").open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=program.manifest_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the compilers it starts can then be ended with it
        )
    now = time.monotonic()
    return _Build(program, process, scratch, now, now)


def _look(module: _Module, running: _Build, progress: Progress) -> None:
    code = running.process.poll()
    now = time.monotonic()
    name = running.program.name
    if code is None:
        if now - running.reported >= _REPORT_SECONDS:
            running.reported = now
            progress(f"building {name}: {now - running.started:.0f} s")
        return
    if code != 0:
        log = (running.scratch / "log").read_text(errors="replace")
        raise BuildError(f"building {name} failed:\n{log[-_LOG_SHOWN:]}")
    place = path_of(running.program)
    place.parent.mkdir(exist_ok=True)
    (running.scratch / name).replace(place)
    shutil.rmtree(running.scratch)
    module.build = None
    progress(f"built {name} in {now - running.started:.0f} s")


def _give_up(module: _Module) -> None:
    if module.build is not None:
        if module.build.process.poll() is None:
            os.killpg(module.build.process.pid, signal.SIGKILL)
            module.build.process.wait()
        shutil.rmtree(module.build.scratch)
        module.build = None
    if module.lock is not None:
        module.lock.close()
        module.lock = None


def programs_of(suite: str) -> Sequence[Program]:
    """What a suite lists in its `programs.py`."""
    found: Sequence[Program] = importlib.import_module(f"tests.{suite}.programs").PROGRAMS
    return found


def say(message: str) -> None:
    """Progress for a person."""
    print(f"[build {time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def status_of(work: Callable[[], object]) -> int:
    """The exit status of a command that builds: what is finished is kept, however it ends."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        work()
    except BuildError as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept")
        return 130
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="tests.go_tools", description="Builds the Go programs that tests run.")
    actions = parser.add_subparsers(dest="action", required=True)
    for action, does in (("build", "build what the suites need"), ("missing", "name what a build would make")):
        each = actions.add_parser(action, help=does)
        each.add_argument("suites", nargs="+", metavar="SUITE", help="conformance, cluster, interop")
    one = actions.add_parser("path", help="build one program of a suite, and print where it is")
    one.add_argument("suites", nargs=1, metavar="SUITE")
    one.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    programs = [program for suite in options.suites for program in programs_of(suite)]
    if options.action == "missing":
        print("\n".join(program.name for program in missing(programs)))
        return 0
    if options.action == "path":
        programs = [program for program in programs if program.name == options.name]
        if not programs:
            parser.error(f"{options.suites[0]} has no program {options.name}")

    def work() -> None:
        built = build(programs, say)
        if options.action == "path":
            print(built[options.name])

    return status_of(work)


if __name__ == "__main__":
    sys.exit(main())
