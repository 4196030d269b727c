"""What a worker gives up before it has read anything of anybody's.

It is the signer's user in the signer's container: by a path it could read the token by which the signer asks the API
server, and with that the authorities' Secret.
"""

import ctypes
import os
import resource
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runtime import confining

# What a host may not let it give up, as it says so.
NO_FILES, NO_CALLS = "no files", "system calls"
LACKING = (NO_FILES, NO_CALLS)
_PACKAGES = ("runtime", "signer", "svid", "google", "msgspec")
# The kernel ends it before the signer where the container has no more memory.
_OOM_SCORE = "500"


def ends_first() -> None:
    """The kernel takes it where the container has no more memory, and not the signer.

    To be called before nobody may look into it any more: that takes its own files of the kernel's from it, too.
    """
    # Where one may not even raise it all are alike.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def confine(folder: str, memory: int) -> tuple[str, ...]:
    """Give up files but those of the program, sockets but those below `folder`, other processes, and more than `memory`
    bytes of data; answers what the host does not let it.

    To be called while it has one thread, and all that it needs is loaded. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # OpenSSL reads its settings when it is first used.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    os.umask(0o077)
    with suppress(OSError, AttributeError):
        confining.shrink_stacks(libc)
    confining.no_new_privileges(libc)
    steps: tuple[tuple[str, Callable[[], bool]], ...] = (
        (NO_FILES, lambda: _files(libc, folder)),
        (NO_CALLS, lambda: _calls(libc)),
    )
    return tuple(name for name, step in steps if not _taken(step))


def _taken(step: Callable[[], bool]) -> bool:
    try:
        return step()
    except OSError:
        # A kernel without it, or whoever started the container forbids it.
        return False


def _files(libc: ctypes.CDLL, folder: str) -> bool:
    made = confining.ruleset(libc, confining.program_paths(_PACKAGES), binds_sockets=False, binds_below=folder)
    if made is None:
        return False
    confining.restrict(libc, made)
    return True


def _calls(libc: ctypes.CDLL) -> bool:
    confining.refuse_calls(libc)
    return True
