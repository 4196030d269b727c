"""A worker and the signer joined by their channel, without a process: bytes go from one end to the other in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from signer.workers.calls import Methods
from signer.workers.channel import Channel
from signer.workers.child import Child
from signer.workers.worker import Worker


class Pipe(asyncio.Transport):
    """What one end writes comes at the other in a later turn of the loop."""

    def __init__(self, other: "Channel[Any]") -> None:
        super().__init__()
        self._other = other
        self.closed = False

    def write(self, data: Any) -> None:
        asyncio.get_running_loop().call_soon(self._come, bytes(data))

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._other.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""

    def pause_reading(self) -> None:
        """What comes is told all the same."""

    def resume_reading(self) -> None:
        """See pause_reading."""

    def _come(self, data: bytes) -> None:
        if not self.closed:
            self._other.data_received(data)


def joined(methods: Methods, belongs: Callable[[str], bool] = lambda peer: True) -> tuple[Child, Worker]:
    """A worker's own half, and the signer's."""
    child, worker = Child(()), Worker(methods, belongs, lambda names: None)
    child._channel.connection_made(Pipe(worker._channel))
    worker._channel.connection_made(Pipe(child._channel))
    return child, worker


async def only(answers: AsyncIterator[bytes]) -> bytes:
    """The one that there is."""
    (found,) = [each async for each in answers]
    return found
