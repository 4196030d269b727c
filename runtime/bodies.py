"""What an HTTP server that nobody has to trust is asked, and answers: read whole, and never more than was said."""

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Takes as long to load as everything else.
    import aiohttp
    from aiohttp.abc import AbstractResolver

_MAX_HEADERS = 32 * 1024


class TooLong(Exception):
    """There is more; the connection is closed."""


def session(context: ssl.SSLContext, resolver: "AbstractResolver", connect_seconds: float) -> "aiohttp.ClientSession":
    """To ask one such server: no proxy, cookies or netrc of the environment, and what comes is not unpacked."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=1, force_close=True, resolver=resolver),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds),
        max_line_size=_MAX_HEADERS,
        max_field_size=_MAX_HEADERS,
        trust_env=False,
        auto_decompress=False,
    )


async def whole(response: "aiohttp.ClientResponse", most: int) -> bytearray:
    """All of a body, up to `most` bytes, which are not more because it was packed. Raises TooLong."""
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > most:
            response.close()
            raise TooLong
    return data
