"""What an HTTP server answers, read whole, and never more of it than was said."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Takes as long to load as everything else.
    import aiohttp


class TooLong(Exception):
    """There is more; the connection is closed."""


async def whole(response: "aiohttp.ClientResponse", most: int) -> bytearray:
    """All of a body, up to `most` bytes, which are not more because it was packed. Raises TooLong."""
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > most:
            response.close()
            raise TooLong
    return data
