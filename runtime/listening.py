"""Listening sockets: IPv4, IPv6, and both at once; and who is at the other end, to be counted."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

# Bytes that the kernel may keep of a connection, received and sent; it doubles them.
Kept: TypeAlias = tuple[int, int] | None
Make = Callable[[socket.AddressFamily], socket.socket]
# What a kernel says that has no IPv6: at the socket, or where an address is wanted.
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL})
ANY = "::"
_ALL_IPV4 = "0.0.0.0"  # noqa: S104 - compared with, not bound
_LINGER = struct.pack("ii", 1, 0)
# RFC 6761: names of this host, without a question to anybody.
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


def bound(address: tuple[str, int], kept: Kept = None, make: Make | None = None) -> list[socket.socket]:
    """Sockets that are bound to a host's addresses, and do not listen yet.

    `::` is every address of the host, of both kinds; where the kernel has no IPv6 it is 0.0.0.0. A name has all of its
    addresses, with one port. Raises OSError.
    """
    host, port = address
    found: list[socket.socket] = []
    try:
        if host == ANY:
            found.append(_any(port, kept, make or _tcp))
        else:
            flags = socket.AI_PASSIVE
            for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags):
                taken = found[0].getsockname()[1] if found else port
                found.append(_bound(family, (str(where[0]), taken, *where[2:]), kept, make or _tcp))
    except BaseException:
        for each in found:
            each.close()
        raise
    return found


def exact(host: str) -> str:
    """An address in its one spelling: IPv4 also where IPv6 wraps it, without a zone. What is none stays as it is."""
    found = _address(host)
    return host if found is None else str(found)


def whose(host: str) -> str:
    """By whom an address is counted: the IPv4 address, also where IPv6 wraps it; the /64 of others.

    Whoever has one address of an IPv6 network has all of it. What is no address counts as it is.
    """
    found = _address(host)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return host if found is None else str(found)


def reset(taken: socket.socket) -> None:
    """Close without waiting for anything: nothing of it stays in the kernel."""
    with suppress(OSError):
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    taken.close()


def overlap(one: str, other: str) -> bool:
    """Whether two hosts to listen at have an address in common, as far as nobody has to be asked.

    A name's addresses are those of `localhost`, and of any other name it is taken that one of them is IPv4.
    """
    first, second = _addresses(one), _addresses(other)
    if ANY in (*first, *second) or first & second:
        return True
    return _ALL_IPV4 in first | second and all(any(":" not in each for each in found) for found in (first, second))


def _addresses(host: str) -> frozenset[str]:
    """The addresses that a host's spelling says; of a name only the name."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return _LOOPBACK
    try:
        # What a resolver takes for IPv4 as well: 127.1, 0, 0x7f000001.
        return frozenset({socket.inet_ntoa(socket.inet_aton(name))})
    except OSError:
        return frozenset({exact(name)})


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def _tcp(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM)


def _any(port: int, kept: Kept, make: Make) -> socket.socket:
    try:
        return _bound(socket.AF_INET6, ("::", port), kept, make, both=True)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _bound(socket.AF_INET, ("0.0.0.0", port), kept, make)  # noqa: S104 - that is what :: asks for


def _bound(
    family: socket.AddressFamily,
    where: tuple[object, ...],
    kept: tuple[int, int] | None,
    make: Make,
    *,
    both: bool = False,
) -> socket.socket:
    found = make(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kept is not None:
            # Before it listens: each connection has them from its first byte on.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kept[0])
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kept[1])
        if both:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        found.setblocking(False)
        found.bind(where)
    except OSError as error:
        found.close()
        raise OSError(error.errno, f"{shown(str(where[0]), where[1])} cannot be bound: {error.strerror}") from None
    return found


def shown(host: str, port: object) -> str:
    """HOST:PORT as people and programs write it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
