"""This process's memory: what its cgroups hold and allow, and giving back what is free."""

import ctypes
import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_PAGES = Path("/proc/self/statm")
# Version 1 says "no limit" by a number that no machine has.
_UNLIMITED = 1 << 60
_CHUNK = 16 * 1024
# The group of a pod, as kubelet calls it; those around it are all pods' of the node.
_POD = re.compile(r"(^|-)pod[0-9a-f]{8}[-_][0-9a-f]{4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of the cgroup in which least is left: `limit`, and `used` of it without what the kernel would drop itself.

    `anonymous` is the processes' own part in the innermost group, without files of any kind.
    """

    limit: int
    used: int
    anonymous: int

    @property
    def left(self) -> int:
        return self.limit - self.used


def trimmer() -> Callable[[], object]:
    """What gives free memory back to the system: a process that freed much after an attack would stay as large.

    It takes milliseconds, without the interpreter's lock. Nothing on a C library that cannot.
    """
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(_PAGES.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def own_memory(proc: Path = PROC, root: Path = ROOT) -> MemoryUse | None:
    """Of this process's cgroup and those around it that can be seen, the tightest; None without any limit.

    A container's own group is made anew with it, and what its dead predecessor left in tmpfs counts in the pod's.
    """
    try:
        found = _own(_read(proc), root)
    except OSError:
        return None
    if found is None:
        return None
    folder, top, read = found
    tightest: MemoryUse | None = None
    anonymous: int | None = None
    for each in _upwards(folder, top):
        use = read(each, anonymous is None)
        if use is None:
            continue
        anonymous = use.anonymous if anonymous is None else anonymous
        if use.limit < _UNLIMITED and (tightest is None or use.left < tightest.left):
            tightest = use
    return None if tightest is None else MemoryUse(tightest.limit, tightest.used, anonymous or 0)


def _own(text: str, root: Path) -> tuple[Path, Path, Callable[[Path, bool], MemoryUse | None]] | None:
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return _below(root / "memory", path), root / "memory", _version_1
    for number, controllers, path in lines:
        if number == "0" and not controllers:
            return _below(root, path), root, _version_2
    return None


def _below(top: Path, path: str) -> Path:
    """In a container `top` may show its own group, whatever the host calls it."""
    folder = top / path.strip("/")
    return folder if ".." not in folder.parts and folder.is_dir() else top


def _upwards(folder: Path, top: Path) -> Iterator[Path]:
    while True:
        yield folder
        if folder == top or _POD.search(folder.name):
            return
        folder = folder.parent


def _version_2(folder: Path, innermost: bool) -> MemoryUse | None:
    """None where nothing can be told, or is asked for: of a group around that has no limit."""
    try:
        limit = _read(folder / "memory.max").strip()
        if limit == "max" and not innermost:
            return None
        used = int(_read(folder / "memory.current"))
        parts = _parts(folder)
    except OSError:  # the root has none of these
        return None
    dropped = sum(parts.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    return MemoryUse(_UNLIMITED if limit == "max" else int(limit), max(used - dropped, 0), parts.get("anon", 0))


def _version_1(folder: Path, innermost: bool) -> MemoryUse | None:
    try:
        limit = int(_read(folder / "memory.limit_in_bytes"))
        if limit >= _UNLIMITED and not innermost:
            return None
        used = int(_read(folder / "memory.usage_in_bytes"))
        parts = _parts(folder)
    except OSError:
        return None
    dropped = sum(parts.get(name, 0) for name in ("total_inactive_file", "total_active_file"))
    return MemoryUse(min(limit, _UNLIMITED), max(used - dropped, 0), parts.get("total_rss", 0))


def _parts(folder: Path) -> dict[str, int]:
    lines = _read(folder / "memory.stat").splitlines()
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def _read(path: Path) -> str:
    """What the kernel says there. Raises OSError."""
    # As a file of Python's it would be three times as many system calls, and this is read again and again.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = bytearray()
        while part := os.read(file, _CHUNK):
            found += part
    finally:
        os.close(file)
    return found.decode("ascii")
