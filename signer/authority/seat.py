"""By what a task beside the leader's steps knows the state and changes it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from signer.authority.lifecycle import Step
from signer.authority.state import AuthorityState
from signer.authority.store import Stored
from signer.errors import SignerError

Load: TypeAlias = Callable[[], Awaitable[Stored]]
Swap: TypeAlias = Callable[[Stored, AuthorityState, Step], Awaitable[bool]]
Look: TypeAlias = Callable[[AuthorityState, Load, Swap, Callable[[], bool]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Seat:
    """`known`: the newest state that this replica has seen. `load`, `swap`: what is stored, and another in its place.

    `pause`: seconds from one look to the next.
    """

    known: Callable[[], AuthorityState | None]
    load: Load
    swap: Swap
    leading: Callable[[], bool]
    pause: float

    async def hold(self, look: Look, rest: Callable[[], None], not_stored: Callable[[SignerError], None]) -> None:
        """Look again and again while this replica leads, for ever; `rest`: another one does, and what was is over."""
        while True:
            state = self.known()
            if state is not None and self.leading():
                try:
                    await look(state, self.load, self.swap, self.leading)
                except SignerError as error:
                    not_stored(error)
            else:
                rest()
            await asyncio.sleep(self.pause)
