"""Ports for servers under test."""

import secrets
import socket
from contextlib import suppress

# Below those that connections get of the kernel (ip_local_port_range): each of these, at any local address, would be in
# the way of who listens at all addresses.
_FIRST, _LAST = 20_000, 29_999


def free_port() -> int:
    """One that was free just now at all addresses."""
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST + 1)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
