"""Who may hold a connection to a replica: how many, of whom, and how long before an agent has proven itself on it.

Only bookkeeping, without sockets: `Door` asks before it takes a connection and does what is said here.
"""

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from signer.front.budget import AGENT_CONNECTIONS, NODE_CONNECTIONS, STRANGERS

# Addresses whose rate is remembered.
MAX_ADDRESSES = 20_000
# Calls that a connection may have refused for their token before it is closed: an agent reads its own anew at each.
MAX_STRIKES = 4
# Seconds that a stranger has for itself where there are more than places: agents prove themselves in a moment.
HOLD_SECONDS = 1.0


class Guest(Protocol):
    """A connection, as far as it is counted."""

    def close(self) -> None:
        """End it now. It is not left from here: `left` is told by whoever calls."""


@dataclass(eq=False, slots=True)
class Entry:
    """One connection's place in the books. `node` is empty until an agent has proven itself on it."""

    guest: Guest
    address: str
    since: float
    node: str = ""
    strikes: int = 0


@dataclass(slots=True)
class _Address:
    tokens: float
    counted_at: float
    strangers: "OrderedDict[Entry, None]" = field(default_factory=OrderedDict)


class Admission:
    """Counts connections. `rate`: new ones a second that one address gets, twice as many at once.

    `refused` is told the kind of each that is turned away or ended. Times are seconds of `now`, which only grows.
    """

    def __init__(
        self,
        rate: int,
        refused: Callable[[str], None],
        now: Callable[[], float],
        *,
        strangers: int = STRANGERS,
        agents: int = AGENT_CONNECTIONS,
        of_node: int = NODE_CONNECTIONS,
    ) -> None:
        self._rate = float(rate)
        self._refused = refused
        self._now = now
        self._most_strangers = strangers
        # Half of them for one address at most: two attackers and an agent behind a third leave it room.
        self._of_address = max(1, min(rate, strangers // 2))
        self._most_agents = agents
        self._of_node = of_node
        self._strangers: OrderedDict[Entry, None] = OrderedDict()
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._nodes: dict[str, deque[Entry]] = {}
        # Those of nodes that have more than one.
        self._spare: dict[str, deque[Entry]] = {}
        self._agents = 0

    @property
    def strangers(self) -> int:
        """Connections on which no agent has proven itself."""
        return len(self._strangers)

    @property
    def agents(self) -> int:
        """Connections of proven agents."""
        return self._agents

    @property
    def full(self) -> bool:
        """Whether a new one had better wait where it is: all places are taken, each by another address, just now."""
        if len(self._strangers) < self._most_strangers:
            return False
        found = self._least_welcome()
        return len(self._addresses[found.address].strangers) == 1 and self._now() - found.since < HOLD_SECONDS

    def enter(self, guest: Guest, host: str) -> Entry | None:
        """A place for a new connection; None: it is to be closed. Another one may be closed for it."""
        name = group(host)
        address = self._address(name)
        if address.tokens < 1.0:
            self._refused("address")
            return None
        address.tokens -= 1.0
        if len(address.strangers) >= self._of_address:
            # The oldest: agents prove themselves in a moment, and may share an address with who does not.
            self._end(next(iter(address.strangers)), "address")
        elif len(self._strangers) >= self._most_strangers:
            self._end(self._least_welcome(), "strangers")
        entry = Entry(guest, name, self._now())
        self._strangers[entry] = address.strangers[entry] = None
        return entry

    def proven(self, entry: Entry, node: str) -> bool:
        """The agent of `node` has proven itself on it; False when there is no place for one more agent."""
        if entry.node or entry not in self._strangers:
            return True
        if self._agents >= self._most_agents:
            # At a new root agents have two for a while: the older one goes, and its stream is opened on the newer.
            spare = next((each[0] for each in self._spare.values()), None)
            if spare is None:
                self._refused("agents")
                return False
            self._end(spare, "agents")
        self._forget_stranger(entry)
        entry.node = node
        of_node = self._nodes.setdefault(node, deque())
        of_node.append(entry)
        self._agents += 1
        if len(of_node) > self._of_node:
            self._end(of_node[0], "node")
        if len(of_node) > 1:
            self._spare.setdefault(node, of_node)
        return True

    def strike(self, entry: Entry) -> None:
        """A call on it had no good token."""
        entry.strikes += 1
        if entry.strikes >= MAX_STRIKES and not entry.node:
            self._end(entry, "unauthenticated")

    def left(self, entry: Entry) -> None:
        """The connection is gone; may be told twice."""
        if entry.node:
            of_node = self._nodes.get(entry.node)
            if of_node is not None and entry in of_node:
                of_node.remove(entry)
                self._agents -= 1
                if len(of_node) < 2:
                    self._spare.pop(entry.node, None)
                if not of_node:
                    del self._nodes[entry.node]
        elif entry in self._strangers:
            self._forget_stranger(entry)

    def overdue(self, seconds: float) -> None:
        """Close those on which nobody has proven to be an agent within so long."""
        before = self._now() - seconds
        while self._strangers:
            oldest = next(iter(self._strangers))
            if oldest.since > before:
                return
            self._end(oldest, "silent")

    def _least_welcome(self) -> Entry:
        """The oldest of the address that has most of them; so an agent that comes alone is not the first to go."""
        return max(self._strangers, key=lambda each: len(self._addresses[each.address].strangers))

    def _end(self, entry: Entry, kind: str) -> None:
        self.left(entry)
        self._refused(kind)
        entry.guest.close()

    def _forget_stranger(self, entry: Entry) -> None:
        del self._strangers[entry]
        address = self._addresses.get(entry.address)
        if address is not None:
            address.strangers.pop(entry, None)

    def _address(self, name: str) -> _Address:
        now = self._now()
        found = self._addresses.get(name)
        if found is None:
            found = self._addresses[name] = _Address(2 * self._rate, now)
        found.tokens = min(2 * self._rate, found.tokens + (now - found.counted_at) * self._rate)
        found.counted_at = now
        self._addresses.move_to_end(name)
        if len(self._addresses) > MAX_ADDRESSES:
            # The one that was quiet for longest.
            idle = next((key for key, each in self._addresses.items() if not each.strangers and key != name), None)
            if idle is not None:
                del self._addresses[idle]
        return found


def group(host: str) -> str:
    """What is counted as one address: an IPv4 address however it is written, and an IPv6 network of 64 bits."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
