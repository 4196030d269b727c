"""The directory that a run has for itself: locked, short enough for sockets, and cleared."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podsvid.quickstart.failure import QuickstartError

DRIVER: Final = "csi.podsvid.io"
_LOCK: Final = "quickstart.lock"
_LOG: Final = "agent.log"
_PREFIX: Final = "pv-"

# A socket address holds 107 bytes. The longest path that a socket is bound to below the directory:
_LONGEST_SOCKET: Final = f"/kubelet/plugins_registry/{DRIVER}-{'0' * 8}-reg.sock"
_SOCKET_ADDRESS: Final = 107
# How long a new run waits for the processes of a killed one to go: they die by signal, but not at once.
_LOCK_TIMEOUT: Final = 3.0


@dataclass(frozen=True)
class Place:
    """The directory that a run has for itself; ``lock`` is the descriptor that says so."""

    root: Path
    lock: int

    @property
    def kubelet(self) -> Path:
        return self.root / "kubelet"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / _LOG

    def log_tail(self, lines: int = 20) -> str:
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join([f"--- the end of {self.log}", *text.splitlines()[-lines:]])

    def clear(self) -> None:
        """Remove all but the authority, the log and the lock: what one run leaves means nothing to the next."""
        for link in self.root.glob("pod-*"):
            if link.is_symlink():
                link.unlink()
        for directory in (self.kubelet, self.run):
            if directory.exists():
                shutil.rmtree(directory)


@contextlib.contextmanager
def directory(wanted: Path | None) -> Iterator[Place]:
    """The directory to run in: locked, and clean. A temporary one is removed at the end."""
    if wanted is None:
        _remove_leftovers()
        root = _temporary_directory()
    else:
        root = Path(os.path.realpath(wanted))
        _refuse_long_path(root)
    with _held(root) as place:
        for directory in (place.kubelet, place.state, place.run):
            directory.mkdir(mode=0o700, exist_ok=True)
        try:
            yield place
        finally:
            place.clear()
            if wanted is None:
                shutil.rmtree(root)


@contextlib.contextmanager
def _held(root: Path) -> Iterator[Place]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _LOCK).exists() and any(root.iterdir()):
            # It will be cleared: better ask than clear somebody's home.
            raise QuickstartError(f"{root} is not empty and was not made by quickstart; choose another --dir")
        lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QuickstartError(f"cannot use {root}: {error.strerror}") from error
    try:
        if not _locked(lock, _LOCK_TIMEOUT):
            raise QuickstartError(f"another quickstart runs in {root}; choose another --dir")
        place = Place(root, lock)
        place.clear()
        yield place
    finally:
        os.close(lock)


def _locked(descriptor: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _temporary_directory() -> Path:
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 - mkdtemp makes it private
        root = Path(os.path.realpath(parent))
        if _fits(root / f"{_PREFIX}00000000"):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    raise QuickstartError(f"{tempfile.gettempdir()} is too long a path for sockets; choose a short --dir")


def _remove_leftovers() -> None:
    """Remove the temporary directories of runs that were killed: they hold an authority's key."""
    for root in Path(os.path.realpath(tempfile.gettempdir())).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(root / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                status = os.fstat(lock)
                # A minute: a run that has just made its directory may not have locked it yet.
                ours = status.st_uid == os.geteuid() and stat.S_ISREG(status.st_mode)
                if ours and time.time() - status.st_mtime > 60 and _locked(lock, 0):
                    shutil.rmtree(root)
            finally:
                os.close(lock)


def _fits(root: Path) -> bool:
    return len(os.fsencode(root)) + len(_LONGEST_SOCKET) <= _SOCKET_ADDRESS


def _refuse_long_path(root: Path) -> None:
    if not _fits(root):
        most = _SOCKET_ADDRESS - len(_LONGEST_SOCKET)
        raise QuickstartError(
            f"{root} is too long: the paths of Unix sockets in it would exceed {_SOCKET_ADDRESS} bytes; "
            f"choose a --dir of at most {most} bytes"
        )
