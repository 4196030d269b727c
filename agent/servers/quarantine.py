"""Which pod's sockets are served where: with all others, in quarantine, or for a while nowhere. Values and rules only.

A weight is what a pod costs the process that serves it, see agent.servers.weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Self, TypeAlias

# Up to LIGHT a pod is not to blame for anything; from HEAVY on it stands out whatever the others do.
LIGHT: Final = 20.0
HEAVY: Final = 200.0
# A large part of all weight is one of so many.
PARTS: Final = 8
# Seconds in quarantine after which a pod without weight is innocent.
SHOWN: Final = 10.0
Weights: TypeAlias = Mapping[str, float]


class Place(StrEnum):
    """Who serves a pod's sockets: the process of all pods, the one for those that cost too much, or nobody."""

    SHARED = "shared"
    QUARANTINE = "quarantine"
    CLOSED = "closed"


class Why(StrEnum):
    """Why a pod's sockets are moved. The first three are what is wrong with the process that serves them."""

    MEMORY = "memory"
    CPU = "cpu"
    ENDED = "ended"
    INNOCENT = "innocent"
    QUIET = "quiet"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: without being heavy until a pod is served with all others again; closed the first time, and at most."""

    quiet: float = 600.0
    closed: float = 30.0
    most_closed: float = 600.0


@dataclass(frozen=True, slots=True)
class Move:
    """A pod's sockets are to be served there from now on."""

    pod: str
    to: Place
    why: Why


@dataclass(frozen=True, slots=True)
class Held:
    """A pod that is not with all others, and why. `since`: when it came, or was heavy last; `until`: closed until then;
    `closings`: how often it was closed since it left the others."""

    place: Place
    since: float
    until: float
    closings: int
    why: Why


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Where pods are that are not with all others. Each rule answers what holds afterwards, and what is to be moved."""

    times: Times = Times()
    held: Mapping[str, Held] = field(default_factory=lambda: MappingProxyType({}))

    def place(self, pod: str) -> Place:
        """Who serves it."""
        found = self.held.get(pod)
        return found.place if found else Place.SHARED

    def pods(self, place: Place) -> list[str]:
        """Those that are held there."""
        return [pod for pod, held in self.held.items() if held.place is place]

    def trouble(self, place: Place, why: Why, weights: Weights, now: float) -> tuple[Self, tuple[Move, ...]]:
        """The process there costs too much, or has ended, and this is what each pod cost it lately."""
        here = {pod: weight for pod, weight in weights.items() if self.place(pod) is place}
        if place is Place.QUARANTINE:
            return self._trouble_in_quarantine(why, here, now)
        total = sum(here.values())
        # What whoever has just left did there is still to be felt, and is nobody else's.
        floor = _floor(why, sum(weights.values()))
        heavy = {pod: weight for pod, weight in here.items() if weight >= floor}
        moves = [Move(pod, Place.QUARANTINE, why) for pod in suspects(heavy, total)]
        return self._after(moves, now), tuple(moves)

    def looked(self, weights: Weights, now: float) -> Self:
        """Nothing is wrong there; who is heavy all the same stays."""
        heavy = [
            pod
            for pod, held in self.held.items()
            if held.place is Place.QUARANTINE and weights.get(pod, 0.0) >= HEAVY and now > held.since
        ]
        if not heavy:
            return self
        return replace(self, held=self._with({pod: replace(self.held[pod], since=now) for pod in heavy}))

    def due(self, now: float) -> tuple[Self, tuple[Move, ...]]:
        """Whose time has come: who was closed is served again, in quarantine; who was quiet there goes back."""
        moves = [
            Move(pod, Place.QUARANTINE, Why.OVER) if held.place is Place.CLOSED else Move(pod, Place.SHARED, Why.QUIET)
            for pod, held in self.held.items()
            if self._ends(held) <= now
        ]
        return self._after(moves, now), tuple(moves)

    def next_due(self) -> float | None:
        """When `due` has something to do."""
        return min((self._ends(held) for held in self.held.values()), default=None)

    def _trouble_in_quarantine(self, why: Why, weights: Weights, now: float) -> tuple[Self, tuple[Move, ...]]:
        weighty = {pod: weight for pod, weight in weights.items() if weight > LIGHT}
        if not weighty:
            # Nobody is to blame: it was ended by somebody else.
            return self, ()
        present, total = self.pods(Place.QUARANTINE), sum(weighty.values())
        # Who has just come has not shown there what it costs.
        innocent = [pod for pod in present if pod not in weighty and now - self.held[pod].since >= SHOWN]
        moves = [Move(pod, Place.SHARED, Why.INNOCENT) for pod in innocent]
        floor = _floor(why, total)
        if len(weighty) == 1:
            # Who has it alone costs what it costs. With others, what they cost was a part of it until now.
            (pod,) = weighty
            if present == [pod] or weighty[pod] >= floor:
                moves.append(Move(pod, Place.CLOSED, why))
        else:
            found = suspects(weighty, total)
            heavy = [pod for pod in found if weighty[pod] >= floor]
            moves += [Move(pod, Place.CLOSED, why) for pod in heavy]
            if not heavy:
                moves += [Move(pod, Place.SHARED, Why.INNOCENT) for pod in weighty if pod not in found]
        return self._after(moves, now), tuple(moves)

    def _after(self, moves: list[Move], now: float) -> Self:
        if not moves:
            return self
        kept = dict(self.held)
        for move in moves:
            before = kept.pop(move.pod, None)
            closings = before.closings if before else 0
            # What it is there for; that time is over is no reason to be anywhere.
            why = before.why if before and move.why is Why.OVER else move.why
            if move.to is Place.QUARANTINE:
                kept[move.pod] = Held(move.to, now, 0.0, closings, why)
            elif move.to is Place.CLOSED:
                # The exponent is bounded: it comes back at most once in each of these times.
                seconds = min(self.times.closed * 2 ** min(closings, 32), self.times.most_closed)
                kept[move.pod] = Held(move.to, now, now + seconds, closings + 1, why)
        return replace(self, held=MappingProxyType(kept))

    def _ends(self, held: Held) -> float:
        return held.until if held.place is Place.CLOSED else held.since + self.times.quiet

    def _with(self, changed: Mapping[str, Held]) -> Mapping[str, Held]:
        return MappingProxyType({**self.held, **changed})


def _floor(why: Why, total: float) -> float:
    """From which weight on a pod stands out."""
    # Few calls can fill a memory: who has a large part of the weight is to blame for that, however little it is.
    return min(HEAVY, max(total / PARTS, LIGHT + 1)) if why is Why.MEMORY else HEAVY


def suspects(weights: Weights, total: float) -> list[str]:
    """The fewest of them, the heaviest first, that have at least half of `total`; all of them where they have less."""
    found: list[str] = []
    together = 0.0
    for pod, weight in sorted(weights.items(), key=lambda each: (-each[1], each[0])):
        if found and together >= total / 2:
            break
        found.append(pod)
        together += weight
    return found
