"""The door's look, ten times a second, at who is too slow or comes too often; where there is nobody it waits."""

import asyncio
from collections.abc import Awaitable, Callable

from runtime.memory import trimmer
from signer.front.admission import Admission
from signer.front.aside import Aside
from signer.front.budget import GREETING_SECONDS

# Seconds.
SWEEP = 0.1
# Memory is looked after each so many sweeps at most, if so many connections came meanwhile. For as long it is waited
# where there is nobody.
SWEEPS, MANY = 30, 50


class Sweeping:
    """`accept` takes some of those that are aside. Belongs to one event loop."""

    def __init__(
        self,
        admission: Admission,
        aside: Aside,
        accept: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._admission = admission
        self._aside = aside
        self._accept = accept
        self._sleep = sleep
        # Those that were let in.
        self.came = 0
        # Somebody came, or was turned away.
        self._stirred = asyncio.Event()

    def comes(self) -> None:
        """To be told of each connection that is taken, before it is let in or turned away."""
        self._stirred.set()

    def enters(self) -> None:
        """To be told of each that is let in."""
        self.came += 1

    async def run(self) -> None:
        """For ever."""
        trim, since, sweeps = trimmer(), 0, 0
        while True:
            for _ in range(SWEEPS):
                await self._sleep(SWEEP)
                self._admission.overdue(GREETING_SECONDS)
                self._aside.look(self._admission.floods())
                self._accept()
                sweeps += 1
                if self._quiet:
                    break
            if sweeps >= SWEEPS:
                # Where many came and went the allocator is left with holes.
                if self.came - since > MANY:
                    await asyncio.to_thread(trim)
                sweeps, since = 0, self.came
            if self._quiet:
                # To look for nobody took a fifth of what a signer takes whom nobody asks.
                try:
                    async with asyncio.timeout(SWEEPS * SWEEP):
                        await self._stirred.wait()
                except TimeoutError:
                    sweeps = SWEEPS
            self._stirred.clear()

    @property
    def _quiet(self) -> bool:
        return not self._stirred.is_set() and not self._admission.strangers and not self._aside.count
