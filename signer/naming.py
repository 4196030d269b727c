"""Addresses of names, looked up in a thread of which the process' end does not wait: a resolver may take a minute."""

import socket
from functools import partial
from typing import Any, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

from runtime.bounded import Bounded, Unanswered

# As the resolver has it: family, kind, protocol, canonical name, address.
_Found: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class Names(AbstractResolver):
    """As aiohttp wants it; it raises OSError."""

    def __init__(self, looks: Bounded) -> None:
        self._looks = looks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=str(to[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, to in await _found(self._looks, host, port, family)
        ]

    async def close(self) -> None:
        return None


async def addresses(looks: Bounded, host: str, port: int) -> list[tuple[str, int]]:
    """Of a name, each with the port. Raises OSError."""
    return [(str(to[0]), port) for *_, to in await _found(looks, host, port, socket.AF_UNSPEC)]


async def _found(looks: Bounded, host: str, port: int, family: int) -> list[_Found]:
    look = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    try:
        return list(await looks.do(look))
    except Unanswered:
        raise TimeoutError("its name is not found in time") from None
