"""One workload's JWT-SVIDs: minted when first asked for, kept until half of their life, renewed when asked again."""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from agent.authority.protocol import MintedJwt
from agent.errors import AuthorityUnavailable
from runtime.clock import Clock
from runtime.newest import keep
from runtime.stopping import end
from svid.jwtsvid import JwtSvid
from svid.spiffeid import SpiffeId

_log = logging.getLogger("podsvid.jwt")
# A workload talks to a few audiences; one that asks for ever new ones pays with its own cache.
KEPT = 64
# During an outage each caller would wait for its own failure: look again only this often.
RETRY = timedelta(seconds=5)
# The third says whether it is for a file.
Mint: TypeAlias = Callable[[SpiffeId, tuple[str, ...], bool], Awaitable[MintedJwt]]
_Key: TypeAlias = tuple[SpiffeId, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class KeptJwt:
    """A JWT-SVID and the instant drawn, once, for its renewal. One that is not `reusable` is for who asked only."""

    svid: JwtSvid
    renew_at: datetime
    reusable: bool = True


class JwtSvids:
    """The newest JWT-SVID for each identity and set of audiences, in memory only. Belongs to one event loop."""

    def __init__(self, mint: Mint, clock: Clock, rng: random.Random) -> None:
        self._mint = mint
        self._clock = clock
        self._rng = rng
        self._kept: OrderedDict[_Key, KeptJwt] = OrderedDict()
        self._minting: dict[tuple[_Key, bool], asyncio.Task[KeptJwt]] = {}

    async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str], *, for_file: bool = False) -> KeptJwt:
        """One that is not past its renewal, or during an outage of the authority one that is still valid.

        One `for_file` never waits for what the pod itself asked for: others' renewals would wait with it.
        Raises AuthorityUnavailable, AuthorityRefused.
        """
        key = (spiffe_id, tuple(sorted(set(audiences))))
        kept = self._kept.get(key)
        if kept is not None and self._clock.now() < kept.renew_at:
            self._kept.move_to_end(key)
            return kept
        task = self._minting.get((key, for_file))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._renew(key, for_file), name="mint JWT-SVID")
            self._minting[key, for_file] = task
            task.add_done_callback(lambda done: self._minted((key, for_file), done))
        # A caller that goes away must not take the token from the others that wait for it.
        return await asyncio.shield(task)

    def adopt(self, spiffe_id: SpiffeId, audiences: Iterable[str], kept: KeptJwt) -> None:
        """Keep one that an earlier process got."""
        keep(self._kept, (spiffe_id, tuple(sorted(set(audiences)))), kept, KEPT)

    def forget(self) -> None:
        """Drop them all: the trust bundle no longer verifies what it did."""
        self._kept.clear()

    async def close(self) -> None:
        """Nothing runs when this returns."""
        await end(self._minting.values())
        self._kept.clear()

    async def _renew(self, key: _Key, for_file: bool) -> KeptJwt:
        try:
            minted = await self._mint(*key, for_file)
        except AuthorityUnavailable as error:
            kept = self._kept.get(key)
            now = self._clock.now()
            if kept is None or kept.svid.expires_at <= now:
                raise
            _log.warning(
                "JWT-SVID could not be renewed; the valid one stays in use",
                extra={"spiffe_id": str(key[0]), "error": str(error), "not_after": kept.svid.expires_at.isoformat()},
            )
            later = KeptJwt(kept.svid, min(now + RETRY, kept.svid.expires_at))
            keep(self._kept, key, later, KEPT)
            return later
        fresh = KeptJwt(minted.svid, minted.renewal.draw(self._rng), minted.reusable)
        if minted.reusable:
            keep(self._kept, key, fresh, KEPT)
        return fresh

    def _minted(self, key: tuple[_Key, bool], task: asyncio.Task[KeptJwt]) -> None:
        self._minting.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, though every caller may have gone
