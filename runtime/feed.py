"""One value with a version and any number of subscribers: each sees the newest state, never a queue of old ones."""

import asyncio
from typing import Generic, Protocol, TypeVar

Value = TypeVar("Value")
Seen = TypeVar("Seen", covariant=True)
# Subscribers that are woken in one turn of the event loop: others have theirs between, where there are thousands.
AT_ONCE = 64


class Followed(Protocol[Seen]):
    """A Feed, for who only follows it."""

    @property
    def current(self) -> Seen | None: ...

    @property
    def version(self) -> int: ...

    async def wait_beyond(self, version: int) -> int: ...


class Feed(Generic[Value]):
    """Holds the current value, None before the first one. Not thread-safe: it belongs to one event loop."""

    def __init__(self) -> None:
        self._value: Value | None = None
        self._version = 0
        self._waiting: dict[asyncio.Future[None], None] = {}

    @property
    def current(self) -> Value | None:
        return self._value

    @property
    def version(self) -> int:
        """Rises by one with each publish; 0 means there was none."""
        return self._version

    def publish(self, value: Value) -> None:
        """Replace the value and wake every subscriber, some at a time."""
        self._value = value
        self._version += 1
        waiting, self._waiting = list(self._waiting), {}
        _wake(waiting)

    async def wait_beyond(self, version: int) -> int:
        """Wait until the version is above `version`; return it."""
        while self._version <= version:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = None
            try:
                await waiter
            finally:
                self._waiting.pop(waiter, None)
        return self._version


def _wake(waiting: "list[asyncio.Future[None]]") -> None:
    now, later = waiting[:AT_ONCE], waiting[AT_ONCE:]
    for each in now:
        if not each.done():
            each.set_result(None)
    if later:
        later[0].get_loop().call_soon(_wake, later)
