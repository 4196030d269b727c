"""JWT-SVIDs for pods, asked of the agent."""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.channel.frames import Wire
from agent.channel.messages import NoToken, Token, Wanted
from agent.errors import AuthorityRefused, AuthorityUnavailable
from svid.errors import SvidError
from svid.jwtsvid import JwtSvid, parse_jwt_svid_unverified
from svid.spiffeid import SpiffeId


@dataclass(frozen=True, slots=True)
class Given:
    """A JWT-SVID that the agent gave."""

    svid: JwtSvid


class Tokens:
    """Asks, and hands the answers to those who wait for them."""

    def __init__(self, wire: Wire[Any]) -> None:
        self._wire = wire
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Token | NoToken]] = {}

    def of(self, volume: int) -> "TokensOfVolume":
        """The JWT-SVIDs of one volume's pod."""
        return TokensOfVolume(self, volume)

    def answered(self, answer: Token | NoToken) -> None:
        """One of the answers; nobody may wait for it any more."""
        waiting = self._waiting.get(answer.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def ask(self, volume: int, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Token | NoToken:
        """Ask the agent. Raises OSError."""
        number = next(self._numbers)
        waiting: asyncio.Future[Token | NoToken] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            # The call may be cancelled at any time, what is sent is sent whole.
            sending = asyncio.ensure_future(self._wire.send(Wanted(number, volume, str(spiffe_id), tuple(audiences))))
            await asyncio.shield(sending)
            return await waiting
        finally:
            del self._waiting[number]


class TokensOfVolume:
    """agent.socket's JwtSource."""

    def __init__(self, tokens: Tokens, volume: int) -> None:
        self._tokens = tokens
        self._volume = volume

    async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Given:
        """One that is valid. Raises AuthorityUnavailable, AuthorityRefused."""
        answer = await self._tokens.ask(self._volume, spiffe_id, audiences)
        if isinstance(answer, NoToken):
            raise AuthorityRefused(answer.why) if answer.refused else AuthorityUnavailable(answer.why)
        try:
            return Given(parse_jwt_svid_unverified(answer.token))
        except SvidError as error:
            raise AuthorityUnavailable(f"the agent answered with no JWT-SVID: {error}") from None
