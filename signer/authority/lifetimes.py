"""How long SVIDs live, recorded before they do: an authority stays trusted after it for as long, and no longer."""

import asyncio
import logging
from datetime import timedelta

from runtime.clock import Clock
from signer.authority.rotation import Rotation
from signer.errors import SignerError

_log = logging.getLogger("podsvid.authority")
# Seconds that a mint waits for the record, which is needed a handful of times in an authority's life.
PATIENCE = 2.0
# Seconds. After a failure nobody waits again for so long: SVIDs live as long as is recorded meanwhile.
PAUSE = 5.0


class Lifetimes:
    """Implements minting's `Promises` by the stored state: one writer at a time, and nobody waits for long."""

    def __init__(self, rotation: Rotation, clock: Clock) -> None:
        self._rotation = rotation
        self._clock = clock
        self._turn = asyncio.Lock()
        self._failed_at: float | None = None

    async def promise(self, kind: str, ttl: timedelta) -> None:
        """See to it that the active authority may issue what lives as long as `ttl`, if that is possible now."""
        if self._recorded(kind, ttl) or self._pausing():
            return
        try:
            async with asyncio.timeout(PATIENCE), self._turn:
                if not self._recorded(kind, ttl):
                    await self._rotation.promise(kind, ttl)
        except (SignerError, TimeoutError) as error:
            self._failed_at = self._clock.monotonic()
            _log.warning(
                "a longer lifetime could not be recorded; SVIDs are shorter meanwhile",
                extra={"kind": kind, "seconds": ttl.total_seconds(), "error": str(error) or "no answer in time"},
            )

    def _recorded(self, kind: str, ttl: timedelta) -> bool:
        state = self._rotation.state
        longest = state.longest(kind) if state is not None else None
        return longest is None or ttl <= longest

    def _pausing(self) -> bool:
        return self._failed_at is not None and self._clock.monotonic() - self._failed_at < PAUSE
