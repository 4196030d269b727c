"""How much processor time this process's cgroups allow."""

from pathlib import Path

PROC, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def limit(proc: Path = PROC, root: Path = ROOT) -> float | None:
    """Cores, by the tightest of its cgroup and those around it that can be seen; None where none has a limit."""
    found = [_cores(each) for each in _groups(proc, root)]
    return min((each for each in found if each is not None), default=None)


def _groups(proc: Path, root: Path) -> list[Path]:
    """Of both versions, from the innermost on; in a container the root shows its own group."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        folder = top / path.strip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = top
        while True:
            found.append(folder)
            if folder == top:
                break
            folder = folder.parent
    return found


def _cores(folder: Path) -> float | None:
    try:
        quota, _, period = (folder / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    if not quota.isdecimal() or not period.isdecimal() or period == "0":
        return None
    return int(quota) / int(period)
