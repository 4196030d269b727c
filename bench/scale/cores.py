"""The machine's cores: how long a program waited for one, and one for the signers alone while the rest is shared.

Signer, API server and agents are on one machine here, as they are nowhere else: what of a tail is their doing is to be
told from what is the signer's.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROC = Path("/proc")


def waited(pid: int, proc: Path = PROC) -> float:
    """Seconds that a program's first thread, which is its event loop's, could have run so far and had no core."""
    try:
        fields = (proc / str(pid) / "task" / str(pid) / "schedstat").read_text().split()
    except OSError:
        return 0.0  # a kernel that does not count it
    return int(fields[1]) / 1e9


@contextmanager
def apart(
    first: Sequence[int],
    others: Sequence[int],
    cores: Collection[int] | None = None,
    keep: Callable[[int, Collection[int]], None] = os.sched_setaffinity,
    proc: Path = PROC,
) -> Iterator[bool]:
    """Keep the programs `first` to one core and `others` to the rest, over the block; False where there is but one."""
    every = os.sched_getaffinity(0) if cores is None else frozenset(cores)
    if len(every) < 2:
        yield False
        return
    own = frozenset({min(every)})
    try:
        for pids, those in ((first, own), (others, every - own)):
            _keep(pids, those, keep, proc)
        yield True
    finally:
        _keep([*first, *others], every, keep, proc)


def _keep(
    pids: Sequence[int], cores: Collection[int], keep: Callable[[int, Collection[int]], None], proc: Path
) -> None:
    for pid in pids:
        with suppress(OSError):
            for thread in (proc / str(pid) / "task").iterdir():
                # It may have ended meanwhile.
                with suppress(OSError):
                    keep(int(thread.name), cores)
