"""Waiting for what a cluster does in its own time, and telling a person about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.go_tools import Progress

from .host import ClusterError

# A condition may come late on a machine that is busy with other things; waiting ends as soon as it holds.
PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 10.0


def say(message: str) -> None:
    """Progress for a person."""
    print(f"[cluster {time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def wait_for(
    what: str,
    ready: Callable[[], bool | str],
    *,
    progress: Progress,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Poll until `ready` is true. A string from `ready` is the state so far, which is reported.

    `alive` raises when waiting has become pointless. Raises ClusterError when patience is at its end.
    """
    started = time.monotonic()
    reported = started
    while True:
        state = ready()
        if state is True:
            return
        alive()
        now = time.monotonic()
        detail = f": {state}" if state else ""
        if now - started > PATIENCE_SECONDS:
            raise ClusterError(f"waited {PATIENCE_SECONDS:.0f} s in vain for {what}{detail}")
        if now - reported > _REPORT_SECONDS:
            reported = now
            progress(f"waiting for {what}, {now - started:.0f} s{detail}")
        time.sleep(_POLL_SECONDS)
