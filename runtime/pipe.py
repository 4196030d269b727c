"""Bytes between two connections: for TLS that is made beside the library in use."""

import asyncio
from contextlib import suppress


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> None:
    """Until one side ends, `most` bytes at once; a side that reads slowly holds up the other."""
    with suppress(OSError):
        while data := await reader.read(most):
            writer.write(data)
            await writer.drain()
