"""What is measured of each side, whichever it is: a node with identities, and who serves them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.peers.asking import Lane

PEER, EMBEDDED, SIGNER = "SPIRE", "podsvid embedded", "podsvid by a signer"
SIDES = (PEER, EMBEDDED, SIGNER)

T = TypeVar("T")


def turns(number: int, sides: Sequence[T]) -> Sequence[T]:
    """The sides in the order of that round: another begins in each, as who comes first finds another machine."""
    at = number % len(sides)
    return [*sides[at:], *sides[:at]]


@dataclass(frozen=True)
class Side:
    """`lanes` has one for each identity; `agent` names the agent's processes, the one with the keys first, and
    `servers` all that serve: the agent's, and those of the server or signer behind it."""

    name: str
    lanes: Sequence[Lane]
    agent: Callable[[], list[int]]
    servers: Callable[[], list[int]]
