"""What is measured of each side, whichever it is: a node with identities, and who serves them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.peers.asking import Lane

PEER, EMBEDDED, SIGNER = "SPIRE", "podsvid embedded", "podsvid by a signer"
SIDES = (PEER, EMBEDDED, SIGNER)


@dataclass(frozen=True)
class Side:
    """`lanes` has one for each identity; `agent` names the agent's processes, the one with the keys first, and
    `servers` all that serve: the agent's, and those of the server or signer behind it."""

    name: str
    lanes: Sequence[Lane]
    agent: Callable[[], list[int]]
    servers: Callable[[], list[int]]
