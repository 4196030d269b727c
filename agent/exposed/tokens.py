"""JWT-SVIDs for pods, asked of the agent; one that it says may be handed out again is kept for so long."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.channel.frames import Wire
from agent.channel.messages import NoToken, Token, Wanted
from agent.errors import AuthorityRefused, AuthorityUnavailable
from runtime.clock import Clock
from svid.errors import SvidError
from svid.jwtsvid import JwtSvid, parse_jwt_svid_unverified
from svid.spiffeid import SpiffeId

# Of one volume: so many, and none that is longer (its audiences make it so). The agent keeps more: it is asked again.
KEPT, MOST_BYTES = 8, 2048
_Key: TypeAlias = tuple[SpiffeId, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Given:
    """A JWT-SVID that the agent gave. `until`: Unix time until which it may be handed out again."""

    svid: JwtSvid
    until: float


@dataclass(frozen=True, slots=True)
class _Asked:
    volume: int
    key: _Key
    answer: asyncio.Future[Given]


class Tokens:
    """Asks, and hands the answers to those who wait for them. Belongs to one event loop."""

    def __init__(self, wire: Wire[Any], clock: Clock) -> None:
        self._wire = wire
        self._clock = clock
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Asked] = {}
        # Of open volumes.
        self._kept: dict[int, OrderedDict[_Key, Given]] = {}

    def of(self, volume: int) -> "TokensOfVolume":
        """The JWT-SVIDs of one volume's pod; until it is `closed`."""
        self._kept[volume] = OrderedDict()
        return TokensOfVolume(self, volume)

    def forget(self, volume: int) -> None:
        """Hand none out again that came before this."""
        if volume in self._kept:
            self._kept[volume].clear()

    def closed(self, volume: int) -> None:
        """Nobody asks any more."""
        self._kept.pop(volume, None)

    def answered(self, answer: Token | NoToken) -> None:
        """One of the answers; nobody may wait for it any more."""
        asked = self._waiting.get(answer.request)
        if asked is None or asked.answer.done():
            return
        if isinstance(answer, NoToken):
            refusal = AuthorityRefused if answer.refused else AuthorityUnavailable
            asked.answer.set_exception(refusal(answer.why))
            return
        try:
            given = Given(parse_jwt_svid_unverified(answer.token), answer.until)
        except SvidError as error:
            asked.answer.set_exception(AuthorityUnavailable(f"the agent answered with no JWT-SVID: {error}"))
            return
        # Here and not where it is awaited: what is to be forgotten next is kept by then.
        self._keep(asked, given)
        asked.answer.set_result(given)

    async def get(self, volume: int, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Given:
        """One that may be handed out again, or else what the agent answers.

        Raises AuthorityUnavailable, AuthorityRefused, OSError.
        """
        key = (spiffe_id, tuple(sorted(set(audiences))))
        kept = self._kept.get(volume)
        given = kept.get(key) if kept else None
        if given is not None and self._clock.now().timestamp() < given.until:
            return given
        number = next(self._numbers)
        asked = _Asked(volume, key, asyncio.get_running_loop().create_future())
        self._waiting[number] = asked
        try:
            # The call may be cancelled at any time, what is sent is sent whole.
            sending = asyncio.ensure_future(self._wire.send(Wanted(number, volume, str(spiffe_id), key[1])))
            await asyncio.shield(sending)
            return await asked.answer
        finally:
            del self._waiting[number]

    def _keep(self, asked: _Asked, given: Given) -> None:
        kept = self._kept.get(asked.volume)
        if kept is None or given.until <= 0 or len(given.svid.token) > MOST_BYTES:
            return
        kept[asked.key] = given
        kept.move_to_end(asked.key)
        if len(kept) > KEPT:
            kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class TokensOfVolume:
    """agent.socket's JwtSource."""

    tokens: Tokens
    volume: int

    async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Given:
        """One that is valid. Raises AuthorityUnavailable, AuthorityRefused, OSError."""
        return await self.tokens.get(self.volume, spiffe_id, audiences)
