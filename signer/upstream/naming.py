"""Addresses of names, looked up in a thread of which the process' end does not wait: a resolver may take a minute."""

import socket
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from runtime.bounded import Bounded, Unanswered


class Names(AbstractResolver):
    """As aiohttp wants it; it raises OSError."""

    def __init__(self, looks: Bounded) -> None:
        self._looks = looks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        try:
            found = await self._looks.do(look)
        except Unanswered:
            raise TimeoutError("its name is not found in time") from None
        return [
            ResolveResult(
                hostname=host, host=str(to[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, to in found
        ]

    async def close(self) -> None:
        return None
