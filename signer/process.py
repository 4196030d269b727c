"""The signer's process, before anything is in it: what it may open, and what of its memory others see."""

import os
import resource

from runtime.child import keep_within


def prepare() -> None:
    """Keys are in this process's memory: for no core file, nor for what serves strangers as the same user."""
    keep_within()
    # Three for each connection.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
