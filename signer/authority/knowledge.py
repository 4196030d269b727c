"""What a replica knows of agents and what they hold, and whether it knows enough to count on an absence."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from runtime.clock import Clock
from signer.authority.acknowledgements import Agents
from signer.authority.passed_on import Wanted
from signer.authority.state import AuthorityState

# How long agents get at most to find a replica that has started, or leads since a moment ago: an agent waits up to a
# minute between two attempts.
SETTLE = timedelta(seconds=60)
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Acks:
    """`waiting`: nodes of live agents that lack the present trust. `in_use`: SVIDs held, by X.509 authority; None
    while not every live agent has said so. `unknown`: why neither is known; nothing is done by an absence then.
    `untimely`: why nobody can say how late it is; nothing is done by itself then."""

    waiting: frozenset[str]
    in_use: Mapping[str, int] | None
    unknown: str = ""
    untimely: str = ""

    @property
    def all_have_it(self) -> bool:
        """Whether it is known that no live agent lacks the present trust."""
        return not self.unknown and not self.waiting

    def unused(self, authority_id: str) -> bool:
        """Whether it is known that no live agent holds an SVID of that authority, nor will get one."""
        return self.all_have_it and self.in_use is not None and not self.in_use.get(authority_id)

    @property
    def lacking(self) -> str:
        """Those that wait, for people."""
        shown = ", ".join(sorted(self.waiting)[:_NAMED])
        more = f" and {len(self.waiting) - _NAMED} more" if len(self.waiting) > _NAMED else ""
        return f"{len(self.waiting)} agents ({shown}{more})"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where knowledge comes from.

    `live_nodes`: nodes with a living agent, as far as pods were read. `pods_unread`: why they are not known as they are
    now; empty when they are. `published`: the sequence of the bundle in the cluster, 0 without one; raises SignerError.
    `untimely`: why the time of day is not to be believed; empty when it is.
    """

    live_nodes: Callable[[], frozenset[str]]
    pods_unread: Callable[[], str]
    published: Callable[[], Awaitable[int]]
    untimely: Callable[[], str] = lambda: ""


class Knowledge:
    """Puts together what agents said and which agents there are; it waits no longer than `patience` for their word."""

    def __init__(self, agents: Agents, sources: Sources, patience: timedelta, clock: Clock) -> None:
        self._agents = agents
        self._sources = sources
        self._clock = clock
        self._settle = min(SETTLE, patience).total_seconds()
        self._since = clock.monotonic()
        self._leads = False
        # How many lacked the present trust at the last look.
        self.lacking = 0

    @property
    def live_nodes(self) -> frozenset[str]:
        """As far as pods were read."""
        return self._sources.live_nodes()

    def know(self, state: AuthorityState) -> None:
        """What there is to be acknowledged from now on: nothing else of what agents say counts."""
        self._agents.know(Wanted.of(state))

    def leads(self, leading: bool) -> None:
        """To be told again and again: agents of the leader before have to find another replica first."""
        if leading and not self._leads:
            self._since = self._clock.monotonic()
        self._leads = leading
        if not leading:
            # Nobody looks meanwhile, and the next time that this replica leads it is another number.
            self.lacking = 0

    def acks(self, state: AuthorityState) -> Acks:
        """Who lacks the state's trust, and how many SVIDs of each authority are held."""
        return self._acks(*self._agents.summary(Wanted.of(state), self.live_nodes))

    async def look(self, state: AuthorityState) -> Acks:
        """As `acks`, a moment ago: it gives way meanwhile. What is done by it is decided by `acks` again."""
        unread = self._unread
        found = self._acks(*await self._agents.look(Wanted.of(state), self.live_nodes))
        self.lacking = len(found.waiting)
        return replace(found, unknown=unread or found.unknown)

    @property
    def _unread(self) -> str:
        return self._sources.pods_unread() or self._agents.unread

    def _acks(self, waiting: frozenset[str], in_use: Mapping[str, int] | None) -> Acks:
        unknown = self._unread
        left = self._since + self._settle - self._clock.monotonic()
        if not unknown and (waiting or in_use is None) and left > 0:
            until = self._clock.now() + timedelta(seconds=left)
            unknown = (
                f"agents have until {until:%Y-%m-%dT%H:%M:%SZ} to tell this replica, which has just started or begun "
                "to lead"
            )
        return Acks(waiting, in_use, unknown, self._sources.untimely())
