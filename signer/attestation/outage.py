"""Whether the API server is away, by the reviews that it did not answer: whose, so that nobody says so alone.

A review may hang because of its token: a webhook that verifies tokens of others, or an issuer somewhere, is slow. One
that the cluster signed is verified by the API server itself, and first.
"""

from collections import OrderedDict
from collections.abc import Callable

from runtime.clock import Clock
from runtime.newest import keep

# Tokens of so many nodes, signed by the cluster, were not answered, and nobody's was meanwhile: then it is away.
SEVERAL = 3
# Seconds. A token that was not answered is not asked about for so long, nor is what its node brings; nor any, while it
# is away.
PAUSE = 2.0
# Then one token finds out whether it is back, and the others go on without it for so long.
TRIAL = 7.0
# Where none of a known key comes, another one finds out.
NOBODY_CAME = 15.0
# Tokens and nodes that are remembered as not answered.
MAX_REMEMBERED = 10_000


class Outage:
    """What was not answered lately. Tokens are hashes, nodes are uids. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens: OrderedDict[bytes, float] = OrderedDict()
        self._nodes: OrderedDict[str, float] = OrderedDict()
        # Nodes since anything was answered.
        self._silent_to: set[str] = set()
        # Until when nobody asks; None: it is not away.
        self._away: float | None = None

    def leaves(self, token: bytes, node: str, signed: Callable[[], bool]) -> bool:
        """Whether not to ask about that token now, which the agent of `node` brings (empty: nobody proven does).

        `signed` says whether the cluster signed it; it is asked only where that counts.
        """
        now = self._clock.monotonic()
        if _lately(self._tokens.get(token), now) or (node and _lately(self._nodes.get(node), now)):
            return True
        if self._away is None:
            return False
        if now < self._away or not (now - self._away >= NOBODY_CAME or signed()):
            return True
        self._away = now + TRIAL
        return False

    def unanswered(self, token: bytes, node: str) -> None:
        """That token's review was not answered. `node`: of which the cluster signed it; empty where nobody can say."""
        now = self._clock.monotonic()
        keep(self._tokens, token, now, MAX_REMEMBERED)
        if not node:
            return
        keep(self._nodes, node, now, MAX_REMEMBERED)
        if len(self._silent_to) < SEVERAL:
            self._silent_to.add(node)
        if len(self._silent_to) >= SEVERAL:
            self._away = now + PAUSE

    def answered(self) -> None:
        """Any review was."""
        self._silent_to.clear()
        self._nodes.clear()
        self._away = None


def _lately(at: float | None, now: float) -> bool:
    return at is not None and now - at < PAUSE
