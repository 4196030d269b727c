"""What the process that serves strangers gives up before it has read anything of theirs.

It is the signer's user in the signer's container: by a path it could read the token by which the signer asks the API
server, and with that the authorities' Secret.
"""

import ctypes
import ssl
from collections.abc import Callable

from runtime import confining

# What a host may not let it give up, as it says so.
NO_FILES, NO_CALLS = "no files", "system calls"
# Of a certificate in memory, which Python loads from a file only.
_NEEDED = frozenset({"memfd_create"})
_PACKAGES = ("runtime", "signer", "svid")


def confine() -> tuple[str, ...]:
    """Give up files but those of the program, connections, other processes; answers what the host does not let it.

    To be called while it has one thread, and all that it needs is loaded: directories are not listed any more, by which
    modules are found. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # OpenSSL reads its settings when it is first used.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    confining.no_new_privileges(libc)
    steps: tuple[tuple[str, Callable[[ctypes.CDLL], bool]], ...] = ((NO_FILES, _files), (NO_CALLS, _calls))
    return tuple(name for name, step in steps if not _taken(step, libc))


def _taken(step: Callable[[ctypes.CDLL], bool], libc: ctypes.CDLL) -> bool:
    try:
        return step(libc)
    except OSError:
        # A kernel without it, or whoever started the container forbids it.
        return False


def _files(libc: ctypes.CDLL) -> bool:
    made = confining.ruleset(libc, confining.program_paths(_PACKAGES), binds_sockets=False)
    if made is None:
        return False
    confining.restrict(libc, made)
    return True


def _calls(libc: ctypes.CDLL) -> bool:
    confining.refuse_calls(libc, needed=_NEEDED)
    return True
