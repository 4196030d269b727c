"""One value with a version and any number of subscribers: each sees the newest state, never a queue of old ones."""

import asyncio
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Feed(Generic[Value]):
    """Holds the current value, None before the first one. Not thread-safe: it belongs to one event loop."""

    def __init__(self) -> None:
        self._value: Value | None = None
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def current(self) -> Value | None:
        return self._value

    @property
    def version(self) -> int:
        """Rises by one with each publish; 0 means there was none."""
        return self._version

    def publish(self, value: Value) -> None:
        """Replace the value and wake every subscriber."""
        self._value = value
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_beyond(self, version: int) -> int:
        """Wait until the version is above `version`; return it."""
        while self._version <= version:
            await self._changed.wait()
        return self._version
