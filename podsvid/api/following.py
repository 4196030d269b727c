"""Every state of a workload's X.509-SVIDs, for ever, over one connection after the other."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from agent.errors import WorkloadApiError
from podsvid.api.answers import X509State
from podsvid.api.errors import NotServed, RequestRefused, UnusableAnswer
from podsvid.api.workload_client import WorkloadApiClient
from runtime.clock import Clock


class Random(Protocol):
    """The one method of random.Random that jitter needs."""

    def uniform(self, a: float, b: float) -> float: ...


class Backoff:
    """How long to wait before the next attempt: seconds, doubling from `first` to `most`, the upper half random."""

    def __init__(self, random: Random, first: float = 0.5, most: float = 20.0) -> None:
        self._random = random
        self._first = self._next = first
        self._most = most

    def reset(self) -> None:
        """Start over after a success."""
        self._next = self._first

    def draw(self) -> float:
        """The seconds to wait now."""
        wait, self._next = self._next, min(self._next * 2, self._most)
        return self._random.uniform(wait / 2, wait)


async def follow_x509(
    target: str,
    clock: Clock,
    backoff: Backoff,
    report: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[X509State, None]:
    """Every valid state that the server sends, for ever, over one connection after the other.

    `report` is told of trouble. Raises RequestRefused and NotServed, which no other attempt would mend.
    """
    while True:
        reason = f"{target} ended the stream"
        try:
            async with WorkloadApiClient(target, clock) as client, aclosing(client.x509_answers()) as answers:
                async for data in answers:
                    try:
                        state = client.parse_x509(data)
                    except UnusableAnswer as error:
                        report(f"{error}; waiting for a better one")
                        continue
                    backoff.reset()
                    yield state
        except (RequestRefused, NotServed):
            raise
        except WorkloadApiError as error:
            reason = str(error)
        wait = backoff.draw()
        report(f"{reason}; trying again in {wait:.1f} s")
        await sleep(wait)
