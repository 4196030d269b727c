"""How many processes serve agents: the setting, and what it is where nobody says."""

from runtime.processors import limit

# More than these the one process that decides does not keep busy.
MOST = 8
HELP = (
    "processes that serve agents beside the one that decides; 1: that one serves them, too (default: the container's "
    f"CPU limit in whole cores, {MOST} at most; 1 without a limit)"
)


def usual(said: int | None) -> int:
    """What was said; else by the limit of this process's cgroup."""
    if said is not None:
        return said
    cores = limit()
    return 1 if cores is None else max(1, min(int(cores), MOST))
