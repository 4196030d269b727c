"""Other processes of this host, as the kernel shows them."""

from pathlib import Path

from runtime.terminal import printable


def command_of(pid: int) -> str:
    """The program's name; empty for one that is not seen from here or is gone."""
    if pid <= 0:
        return ""
    try:
        # Whatever runs in a pod chooses it.
        return printable(Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").removesuffix("\n"))
    except OSError:
        return ""
