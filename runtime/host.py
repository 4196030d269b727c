"""What a host may lack for a daemon's settings: ports, directories, room, files. Looked at only; nothing is made."""

import ctypes
import errno
import fcntl
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runtime import listening
from runtime.aside import begun
from runtime.bounded import Unanswered
from runtime.extras import not_installed

_MEMORY = frozenset({0x01021994, 0x858458F6})  # tmpfs, ramfs
_LEAST_BYTES, _LEAST_FILES = 1024 * 1024, 16
# Seconds that a file system may take to answer.
SECONDS = 2.0
# The reason of what was not answered in time, and what may be why.
NO_ANSWER = "NO_ANSWER"
_HANGS = "is it on a file system that hangs, or a pipe?"
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that is missing: a stable reason, and what to do."""

    reason: str
    text: str


def port(shown: str, address: tuple[str, int] | None) -> Lack | None:
    """Whether a listener can have its address; `shown` is the setting with its value."""
    if address is None:
        return None
    try:
        for each in listening.bound(address):
            each.close()
    except OSError as error:
        reason = {
            errno.EADDRINUSE: "ADDRESS_IN_USE",
            errno.EADDRNOTAVAIL: "ADDRESS_NOT_HERE",
            errno.EACCES: "PERMISSION_DENIED",
        }.get(error.errno or 0, "ADDRESS_UNUSABLE")
        return Lack(reason, f"{shown}: {error.strerror}; choose another address")
    return None


def directory(shown: str, path: Path, seconds: float = SECONDS) -> Lack | None:
    """Whether files can be made below `path`, which is made itself where it is not there."""
    return looked(shown, lambda: _directory(shown, path), seconds)


def _directory(shown: str, path: Path) -> Lack | None:
    there = _nearest(path)
    if not os.path.isdir(there):
        return Lack("IN_THE_WAY", f"{shown}: {there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        return Lack("PERMISSION_DENIED", f"{shown}: {there} cannot be written by user {os.geteuid()}")
    room = os.statvfs(there)
    if room.f_bavail * room.f_frsize < _LEAST_BYTES or (room.f_files and room.f_favail < _LEAST_FILES):
        return Lack("NO_SPACE", f"{shown}: the file system of {there} is full")
    return None


def is_memory(path: Path) -> bool:
    """Whether a reboot empties the file system that `path`, or what is there of it, lies in."""
    there = _nearest(path)
    libc, answer = ctypes.CDLL(None, use_errno=True), (ctypes.c_long * 64)()
    return libc.statfs(os.fsencode(there), ctypes.byref(answer)) == 0 and answer[0] in _MEMORY


def _nearest(path: Path) -> Path:
    """What is there of it, as far as this user can see."""
    # Those of Path raise where a directory above may not be looked into, or a name is too long.
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path


def usable(shown: str, read: Callable[[], object], seconds: float = SECONDS, hint: str = _HANGS) -> Lack | None:
    """Whether `read` can use a file. What it raises says why, and by its `reason` which kind of trouble it is."""
    return looked(shown, lambda: _usable(shown, read), seconds, hint)


def looked(shown: str, look: Callable[[], Lack | None], seconds: float = SECONDS, hint: str = _HANGS) -> Lack | None:
    """What `look` finds, within that time; `hint` is what to look at where it does not."""
    try:
        return _answer(look, seconds)
    except Unanswered:
        return Lack(NO_ANSWER, f"{shown}: no answer within {seconds:g} s; {hint}")


def seen(look: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """What `look` says; no where it says nothing within that time."""
    with suppress(Unanswered):
        return _answer(look, seconds)
    return False


def _answer(look: Callable[[], _Found], seconds: float) -> _Found:
    """Raises Unanswered, and what `look` raises."""
    found = begun(look)
    if not wait([found], seconds).done:
        raise Unanswered
    return found.result()


def _usable(shown: str, read: Callable[[], object]) -> Lack | None:
    try:
        read()
    except OSError as error:
        reason = {errno.ENOENT: "NOT_FOUND", errno.EACCES: "PERMISSION_DENIED"}.get(error.errno or 0, "FILE_UNUSABLE")
        return Lack(reason, f"{shown}: it cannot be read: {error.strerror or error}")
    except Exception as error:
        # Only texts of this project: a library's may have a piece of the file.
        own = isinstance(getattr(type(error), "reason", None), str)
        return Lack(
            str(getattr(error, "reason", "")) if own else "FILE_UNUSABLE",
            f"{shown}: {error if own else 'it is not what belongs there'}",
        )
    return None


def tracing(shown: str, endpoint: str | None) -> Lack | None:
    """Whether what traces need is installed."""
    if endpoint is None:
        return None
    with suppress(ImportError):
        if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") and importlib.util.find_spec(
            "opentelemetry.sdk"
        ):
            return None
    return Lack("NOT_INSTALLED", f"{shown}: {not_installed('OpenTelemetry', 'tracing')}")


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file at `path`."""
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
