"""An older Secret that was put back: how it is noticed, and how often a state is published anew because of it.

Each step's sequence is at least the time in milliseconds. So a number above the signer's own, in the cluster or with an
agent, is of a state that the Secret does not hold any more: agents would refuse all that this signer publishes. It is
published anew above that number. One such publishing is above all that there was before it; who still names a higher
one has a wrong clock or lies, and is listened to less and less often. What one agent alone says is answered by a higher
number, as it would follow nothing else, and proves nothing: it can make up any.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from runtime.clock import Clock
from signer.authority.slots import KINDS, JwtSlot, Stage, X509Slot
from signer.authority.state import AuthorityState, believable

_log = logging.getLogger("podsvid.authority")
FIRST_PAUSE, MAX_PAUSE = timedelta(minutes=1), timedelta(hours=1)
# How long an agent that alone names a higher number waits for an answer: others may be about to say so, too.
OTHERS = timedelta(seconds=30)
# Agents that say the same on so many nodes are believed: one that was taken over cannot make it up.
WITNESSES = 2
# How long people are told of it.
NOTED = timedelta(hours=24)
_Slot = TypeVar("_Slot", X509Slot, JwtSlot)


@dataclass(frozen=True, slots=True)
class Shown:
    """Who knows of a higher number: agents of these nodes; the bundle that is published `in_the_cluster`."""

    nodes: frozenset[str]
    in_the_cluster: bool = False

    @property
    def proven(self) -> bool:
        """Whether more than one agent's word says so."""
        return self.in_the_cluster or len(self.nodes) >= WITNESSES


class Published:
    """The sequence of the trust bundle in the cluster: a Secret that is below it is not the newest that there was."""

    def __init__(self, read: Callable[[], Awaitable[int]], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._sequence: int | None = None

    @property
    def known(self) -> bool:
        """Whether it could be read."""
        return self._sequence is not None

    async def read(self) -> None:
        """Know it as it is now. Raises SignerError."""
        self._sequence = await self._read()

    def beside(self, state: AuthorityState) -> int:
        """It, for who has this state; 0 where it is not known, or cannot be."""
        found = self._sequence or 0
        return found if believable(found, state.sequence, self._clock.now()) else 0

    def newer_than(self, state: AuthorityState) -> bool:
        """Whether there was a newer state."""
        return state.sequence < self.beside(state)


class Rollbacks:
    """What this replica has done about them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times = 0
        # Prepared authorities whose time began anew, and those for which it is about to.
        self._begun: frozenset[str] = frozenset()
        self._beginning: frozenset[str] = frozenset()
        # By the monotonic clock.
        self._named_at: float | None = None
        self._last: float | None = None
        self._note: tuple[float, str] | None = None

    @property
    def due(self) -> bool:
        """Whether a higher number may be answered now."""
        if self._last is None:
            return True
        pause: timedelta = min(FIRST_PAUSE * 2 ** min(self._times - 1, 10), MAX_PAUSE)
        return self._clock.monotonic() - self._last >= pause.total_seconds()

    def nobody(self) -> None:
        """Nobody names a higher number now."""
        self._named_at = None

    def waits(self, shown: Shown, live: frozenset[str]) -> bool:
        """Whether others may be about to say the same, and are to be waited for."""
        now = self._clock.monotonic()
        if self._named_at is None:
            self._named_at = now
        return not shown.proven and bool(live - shown.nodes) and now - self._named_at < OTHERS.total_seconds()

    @property
    def note(self) -> str:
        """The last one, for people; empty when there was none or it is long ago."""
        if self._note is None or self._clock.monotonic() - self._note[0] > NOTED.total_seconds():
            return ""
        return self._note[1]

    def above(self, state: AuthorityState, number: int, *, proven: bool) -> AuthorityState:
        """The same authorities above `number`, and above the time.

        Where a restore is proven nobody knows how long SVIDs live that were issued since the backup was saved: as long
        as they may. What waits for agents begins its time anew, once: it was measured before that.
        """
        now = self._clock.now()
        return replace(self._doubted(state, now) if proven else state, sequence=max(state.sequence, number) + 1).dated(
            now
        )

    def _doubted(self, state: AuthorityState, now: datetime) -> AuthorityState:
        state = replace(
            state,
            x509=tuple(_unrecorded(slot) for slot in state.x509),
            jwt=tuple(_unrecorded(slot) for slot in state.jwt),
        )
        # Another older Secret has others than the one before.
        found = (state.find(kind, Stage.PREPARED) for kind in KINDS)
        prepared = {slot.id for slot in found if slot is not None}
        self._beginning = frozenset(prepared - self._begun)
        return replace(
            state,
            x509=tuple(_begun(slot, now) if slot.id in self._beginning else slot for slot in state.x509),
            jwt=tuple(_begun(slot, now) if slot.id in self._beginning else slot for slot in state.jwt),
        )

    def done(self, before: int, number: int, after: int, shown: Shown) -> None:
        """It was published anew. What is in the cluster was not restored with it, as far as can be told."""
        now = self._clock.now()
        self._times += 1
        self._last = self._clock.monotonic()
        if not shown.proven:
            text = (
                f"at {now:%Y-%m-%dT%H:%M:%SZ}: node {', '.join(shown.nodes)} alone named sequence {number}, above the "
                f"Secret's {before}; published again as {after}; its agent lies, or it alone knows that an older "
                "Secret was restored, with the ConfigMaps"
            )
            self._note = (self._clock.monotonic(), text)
            return
        self._begun |= self._beginning
        self._noted(
            f"sequence {number} was known in the cluster, the Secret had {before}, an older one; published again as "
            f"{after}; "
            + (
                "what was abandoned since it was saved stays so, by ConfigMap …-abandoned; was that restored as well, "
                "force a rotation again"
                if shown.in_the_cluster
                else "agents know more than the ConfigMaps, which were restored as well: if an authority was "
                "compromised since, force a rotation again"
            )
        )

    def abandoned_again(self, told: str) -> None:
        """An older Secret had in service what was abandoned."""
        self._noted(f"the Secret had {told} in service, which was abandoned; it was taken out of service again")

    def written_back(self, found: int, known: int) -> None:
        """An older Secret was replaced by what this replica knew."""
        self._noted(f"the Secret was replaced by an older one (sequence {found}); the newer one ({known}) was put back")

    def _noted(self, text: str) -> None:
        now = self._clock.now()
        self._note = (self._clock.monotonic(), f"rollback at {now:%Y-%m-%dT%H:%M:%SZ}: {text}")


def say(sequence: int, known: int, shown: Shown) -> None:
    """For the log: the Secret has that sequence, and a higher one is known."""
    if shown.proven:
        _log.error(
            "an older Secret was restored: the cluster knows a newer trust bundle; published anew, above it",
            extra={"sequence": sequence, "known": known, "in_the_cluster": shown.in_the_cluster},
        )
    else:
        _log.warning(
            "one agent names a newer trust bundle than there is; published anew, above it",
            extra={"sequence": sequence, "known": known, "node": ", ".join(shown.nodes)},
        )


def _unrecorded(slot: _Slot) -> _Slot:
    return replace(slot, longest=None) if slot.stage is Stage.ACTIVE else slot


def _begun(slot: _Slot, now: datetime) -> _Slot:
    return replace(slot, prepared_at=now)
