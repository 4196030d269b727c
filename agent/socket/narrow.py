"""gRPC's ends of the inner connections: what it has on its way there is made little.

gRPC has no setting for how much the kernel holds of what it sent. It is this process that has its descriptors, though,
and they are known by the name at which gRPC accepted them.
"""

import socket
from collections.abc import Collection, Set
from contextlib import suppress

# The kernel gives out the lowest number that is free: behind so many that are not open, and behind all of our own,
# there are no others. Before ours there can be a hole: a pod closes what it opened.
_GAP = 512


def narrow(names: Set[bytes], own: Collection[int], size: int) -> None:
    """Give every socket of this process that was accepted at one of these names a send buffer of `size`; none of `own`
    is one of them."""
    number = missing = 0
    highest = max(own, default=0)
    while missing < _GAP or number <= highest:
        descriptor, number = number, number + 1
        if descriptor in own:
            missing = 0
            continue
        missing += 1
        # Others come and go while this looks; what is no socket is none.
        with suppress(OSError):
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
            try:
                missing = 0
                if found.getsockname() in names:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            finally:
                found.detach()
