"""The network between an agent and its signer: a TCP relay that can be slow, lossy, silent or cut."""

import asyncio
import contextlib
import random
from enum import StrEnum


class Mode(StrEnum):
    """`stalled`: connections are taken and nothing arrives. `lossy`: each piece may end its connection."""

    WHOLE = "whole"
    SLOW = "slow"
    LOSSY = "lossy"
    STALLED = "stalled"
    CUT = "cut"


class Link:
    """Listens on the loopback and relays to `port`."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self._to = port
        self._rng = rng
        self._mode = Mode.WHOLE
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._end_connections()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def become(self, mode: Mode) -> None:
        """From now on, for open connections too; cutting ends them."""
        self._mode = mode
        if mode is Mode.STALLED:
            self._whole.clear()
        else:
            self._whole.set()
        if mode is Mode.CUT:
            self._end_connections()

    def _end_connections(self) -> None:
        for each in self._relays:
            each.cancel()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            if self._mode is Mode.CUT:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            try:
                ways = [asyncio.create_task(self._pass(*way)) for way in ((reader, back), (there, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # either side went, or the link was cut: both are what this is for
        finally:
            writer.transport.abort()
            self._relays.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._whole.wait()
                if self._mode is Mode.SLOW:
                    await asyncio.sleep(self._rng.uniform(0.05, 0.5))
                if self._mode is Mode.LOSSY and self._rng.random() < 0.1:
                    return
                writer.write(data)
                await writer.drain()
