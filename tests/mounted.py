"""What the kernel says is mounted, as tests read it."""

import os
from pathlib import Path


def mount_lines(process: int | str = "self") -> list[str]:
    """The lines of a process' mountinfo, oldest mount first; the fields of one are parted by single blanks."""
    # All mounts of a host are there, those of other tests too. The kernel escapes blanks and line ends of a path and
    # nothing else: what else Python takes for either, or for no UTF-8, may stand in it.
    return os.fsdecode(Path(f"/proc/{process}/mountinfo").read_bytes()).rstrip("\n").split("\n")


def mount_points(process: int | str = "self") -> list[str]:
    """Where something is mounted for a process, as its lines have it."""
    return [line.split(" ")[4] for line in mount_lines(process)]
