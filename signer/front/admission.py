"""Who may hold a connection to a replica: how many, of whom, and how long before an agent has proven itself on it.

Only bookkeeping, without sockets: `Door` asks before it takes a connection and does what is said here.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from runtime.bucket import Bucket
from runtime.listening import exact, whose
from signer.front.answering import Answering
from signer.front.budget import AGENT_CONNECTIONS, NODE_CONNECTIONS, STRANGERS, WAITING
from signer.front.crowds import Crowds, Numbers
from signer.front.origins import Origins

# Addresses whose rate is remembered.
MAX_ADDRESSES = 20_000
# Calls that a connection may have refused for their token before it is closed: an agent reads its own anew at each.
MAX_STRIKES = 4
# Seconds that a stranger has for itself where there are more than places: agents prove themselves in a moment. One
# from an agent's address has longer: where a replica lacks processor time, or all agents come at once, that moment is
# longer, and who is sent away in the middle of it comes again: then nobody would ever be done.
HOLD_SECONDS, KNOWN_HOLD_SECONDS = 0.5, 4.0
# Seconds after which who had to wait for others is sent away when its turn comes: agents give up after ten, all told,
# and who gets its place a moment before that is work for nothing. Where all come at once each would be that, for ever.
WAIT_SECONDS = 5.0
# Strangers from unknown addresses that may come to nothing, a second and at once: TLS and calls of headers alone take
# up to 11 ms of a core each. Who proves to be an agent does not count.
VAIN, VAIN_AT_ONCE = 10.0, 96.0
# The same of one known address, twice its rate at once: who comes to nothing more often waits with unknown ones, as
# pods may share it with their node's agent.
KNOWN_VAIN, KNOWN_VAIN_AT_ONCE = 1 / 6, 10
# An address that is turned away as often as this times its rate in a second is no agent's that tries again too soon.
FLOOD_TIMES, FLOOD_SECONDS = 4, 1.0
# Unknown addresses may come as often as this times the rate of one, all together: who is closed costs a moment, who
# waits several. While they come more often, one that is turned away for it three times in a second floods, or half as
# often as its rate allows: many addresses, each within its rate, would take the time of all.
CROWD_TIMES, CROWD_TURNS = 40, 3


class Places(Protocol):
    """Where agents run."""

    def __contains__(self, address: object) -> bool:
        """Whether one runs at that address."""

    def within(self, network: str) -> Collection[str]:
        """The addresses at which one runs in that IPv6 network, which it has in common with other pods of its node."""


class Guest(Protocol):
    """A connection, as far as it is counted."""

    def is_there(self) -> bool:
        """Whether its peer has not left meanwhile."""
        ...

    def begin(self) -> None:
        """It has a place: what it says may be listened to."""

    def close(self) -> None:
        """End it now. It is not left from here: `left` is told by whoever calls."""


@dataclass(eq=False, slots=True)
class Entry:
    """One connection's place in the books. `node` is empty until an agent has proven itself on it.

    `since` is when it came, `begun` when it got its place, `heard` when it was answered last, or got its place; it paid
    if its coming in vain would count; it queues if there was no place for it when it spoke.
    """

    guest: Guest
    address: str
    since: float
    node: str = ""
    strikes: int = 0
    begun: float = 0.0
    heard: float = 0.0
    paid: bool = False
    queues: bool = False


@dataclass(eq=False, slots=True)
class _Address:
    name: str
    comes: Bucket
    vain: Bucket
    # Its connections, the oldest first: all that have not proven to be an agent's, those that wait, those of them that
    # spoke and do not go first, and those that have places.
    all: "OrderedDict[Entry, None]" = field(default_factory=OrderedDict)
    waiting: "OrderedDict[Entry, None]" = field(default_factory=OrderedDict)
    ready: "OrderedDict[Entry, None]" = field(default_factory=OrderedDict)
    placed: "OrderedDict[Entry, None]" = field(default_factory=OrderedDict)


class Admission:
    """Counts connections. `rate`: new ones a second that one address gets, twice as many at once.

    A new one waits until it speaks and there is a place among the strangers; it leaves that place as an agent's, or
    ended. Those from addresses that agents came from before, or are in `expected` (where the API server says that
    agents run), go first; then those of whose address there are fewest. `refused` is told the kind of each that is
    turned away or ended. `lenient`: who is proven may go on with bad tokens. Times are seconds of a growing `now`.
    """

    def __init__(
        self,
        rate: int,
        refused: Callable[[str], None],
        now: Callable[[], float],
        *,
        expected: Places,
        strangers: int = STRANGERS,
        waiting: int = WAITING,
        agents: int = AGENT_CONNECTIONS,
        of_node: int = NODE_CONNECTIONS,
        lenient: bool = True,
    ) -> None:
        self._rate = float(rate)
        self._refused = refused
        self._now = now
        self._expected = expected
        self._origins = Origins(expected)
        self._most_strangers = strangers
        self._most_waiting = waiting
        # What its rate gives it at once: who raises that says that many share an address.
        self._of_address = max(1, min(2 * rate, waiting))
        self._most_agents = agents
        self._of_node = of_node
        self._lenient = lenient
        self._waiting: OrderedDict[Entry, None] = OrderedDict()
        # Of the waiting those that spoke and go first; the others stand with their addresses.
        self._known_ready: OrderedDict[Entry, None] = OrderedDict()
        # Those that have places, by `heard`.
        self._strangers: OrderedDict[Entry, None] = OrderedDict()
        self._answering: Answering[Entry] = Answering(strangers, now)
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        # Addresses by how many they have of those that wait, of those that have places, and of those that spoke.
        self._crowds: Crowds[_Address] = Crowds(lambda each: each.name in self._origins)
        self._placed: Crowds[_Address] = Crowds(lambda each: each.name in self._origins)
        self._rare: Numbers[_Address] = Numbers()
        self._vain = Bucket(VAIN, VAIN_AT_ONCE, now())
        self._crowd = Bucket(CROWD_TIMES * rate, max(CROWD_TIMES * rate, 2 * waiting), now())
        # How often an address was turned away since then, as counts for its rate's sake.
        self._turned: dict[str, float] = {}
        self._crowding = FLOOD_TIMES * rate / max(CROWD_TURNS, rate / 2)
        self._turned_since = now()
        self._nodes: dict[str, deque[Entry]] = {}
        # Those of nodes that have more than one.
        self._spare: dict[str, deque[Entry]] = {}
        self._agents = 0

    @property
    def strangers(self) -> int:
        """Connections on which no agent has proven itself: those that wait, and those that are listened to."""
        return len(self._waiting) + len(self._strangers)

    @property
    def agents(self) -> int:
        """Connections of proven agents."""
        return self._agents

    def floods(self) -> Mapping[str, Collection[str]]:
        """The addresses that were turned away for their rate far too often in this second, each with those of agents in
        its network, which are counted by themselves. Each is told once."""
        found = [address for address, count in self._turned.items() if count >= FLOOD_TIMES * self._rate]
        for each in found:
            del self._turned[each]
        if self._now() - self._turned_since >= FLOOD_SECONDS:
            self._turned, self._turned_since = {}, self._now()
        return {each: self._expected.within(each) for each in found}

    def enter(self, guest: Guest, host: str) -> Entry | None:
        """Let a new connection wait; None: it is to be closed. Another one may be closed for it."""
        # Pods of an agent's node may be in its IPv6 network: it is not counted with them, nor they with it.
        name = exact(host)
        name = name if name in self._expected else whose(host)
        address, now = self._address(name), self._now()
        if not address.comes.take(now):
            self._turn_away(name, "address", 1.0)
            return None
        if name not in self._origins and not self._crowd.take(now):
            self._turn_away(name, "strangers", self._crowding)
            return None
        if len(address.all) >= self._of_address:
            # The oldest: agents prove themselves in a moment, and may share an address with who does not. Where many
            # come from it, of those that wait: who has a place is nearly done, and nobody would ever be.
            those = address.waiting if len(address.waiting) > len(address.placed) else address.all
            self._end(next(iter(those)), "address")
        if len(self._waiting) >= self._most_waiting:
            found = self._crowds.least_welcome()
            if found is None or (found.name in self._origins and len(found.all) <= len(address.all) + 1):
                # Where agents wait for their turn the next one comes again later: else those who are nearly there go.
                self._refused("strangers")
                return None
            # Its oldest; and an agent that comes alone is not the first to go.
            self._end(next(iter(found.waiting)), "strangers")
        entry = Entry(guest, name, now)
        self._waiting[entry] = address.all[entry] = address.waiting[entry] = None
        self._count(address)
        return entry

    def _turn_away(self, name: str, kind: str, counts: float) -> None:
        self._refused(kind)
        self._turned[name] = self._turned.get(name, 0.0) + counts

    def spoke(self, entry: Entry) -> None:
        """It said something: it gets a place when there is one."""
        if entry in self._waiting:
            address = self._addresses[entry.address]
            first = entry.address in self._origins and address.vain.left(self._now()) >= 1.0
            (self._known_ready if first else address.ready)[entry] = None
            self._count(address)
            self.go_on()
            entry.queues = entry in self._waiting and self._is_full

    @property
    def ready(self) -> bool:
        """Whether somebody spoke who waits for a place."""
        return bool(self._known_ready) or self._rare.fewest() is not None

    def go_on(self) -> None:
        """Give out the places that there are."""
        while self.ready:
            known = bool(self._known_ready)
            if not known and self._vain.left(self._now()) < 1.0:
                return
            entry = next(iter(self._known_ready)) if known else self._rarest()
            given_up = None
            if entry.queues and self._now() - entry.since > WAIT_SECONDS:
                self._end(entry, "strangers")
                continue
            if self._is_full:
                given_up = self._gives_way(entry, known)
                if given_up is None:
                    return
            if not entry.guest.is_there():
                self._end(entry, "strangers")
                continue
            if given_up is not None:
                self._end(given_up, "strangers")
            self._forget_waiting(entry)
            address = self._addresses[entry.address]
            entry.begun = entry.heard = self._now()
            entry.paid = not known
            (address.vain if known else self._vain).spend()
            self._strangers[entry] = address.placed[entry] = None
            self._count(address)
            self._answering.begin(entry)
            entry.guest.begin()

    def passed(self, entry: Entry, *, whole: bool) -> None:
        """Something of its first words has gone to who answers them; or all of them."""
        self._answering.passed(entry, whole=whole)

    def answered(self, entry: Entry) -> None:
        """It was, for the first time or again. From an agent's address it has its time anew: both take some of it."""
        self._answering.answered(entry)
        if entry in self._strangers and entry.address in self._origins:
            entry.heard = self._now()
            self._strangers.move_to_end(entry)

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
        self._forget_stranger(entry, proven=True)
        (self._vain if entry.paid else self._addresses[entry.address].vain).give(1.0)
        self._origins.remember(entry.address, node)
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
        if entry.strikes >= MAX_STRIKES and not (entry.node and self._lenient):
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
        elif entry in self._waiting:
            self._forget_waiting(entry)
            address = self._addresses[entry.address]
            del address.all[entry]
            self._count(address)

    def overdue(self, seconds: float) -> None:
        """Close those who had no place, or had one and have not proven to be an agent, for so long."""
        before = self._now() - seconds
        waited = [each for each in self._waiting if each.since <= before]
        for entry in (*waited, *(each for each in self._strangers if each.begun <= before)):
            self._end(entry, "silent")

    @property
    def _is_full(self) -> bool:
        return len(self._strangers) >= self._most_strangers or self._answering.full

    def _gives_way(self, newcomer: Entry, known: bool) -> Entry | None:
        """Who leaves its place to that one, where it is full: who had its time, or has more than its share."""
        if self._answering.full:
            # It would not be answered sooner; and what was done for those who are there would be for nothing.
            if not known:
                return None
            unknown = (each for each in self._strangers if each.address not in self._origins)
            return next((each for each in unknown if each in self._answering), None)
        found = self._placed.least_welcome()
        if found is not None:
            less, more = len(self._addresses[newcomer.address].placed), len(found.placed)
            stranger = found.name not in self._origins
            if (known and stranger) or ((known or stranger) and more > less + 1):
                return next(iter(found.placed))
        return self._had_its_time()

    def _had_its_time(self) -> Entry | None:
        """The one that did first."""
        now = self._now()
        for each in self._strangers:
            had = now - each.heard
            if had < HOLD_SECONDS:
                return None
            if had >= KNOWN_HOLD_SECONDS or each.address not in self._origins:
                return each
        return None

    def _rarest(self) -> Entry:
        """Of the strangers that spoke one of an address that has fewest: so one that comes alone goes first."""
        found = self._rare.fewest()
        assert found is not None
        return next(iter(found.ready))

    def _count(self, address: _Address) -> None:
        """Something of it has changed."""
        self._crowds.put(address, len(address.all) if address.waiting else 0)
        self._placed.put(address, len(address.placed))
        self._rare.put(address, len(address.all) if address.ready else 0)

    def _end(self, entry: Entry, kind: str) -> None:
        self.left(entry)
        self._refused(kind)
        entry.guest.close()

    def _forget_waiting(self, entry: Entry) -> None:
        del self._waiting[entry]
        self._known_ready.pop(entry, None)
        address = self._addresses[entry.address]
        del address.waiting[entry]
        address.ready.pop(entry, None)

    def _forget_stranger(self, entry: Entry, *, proven: bool = False) -> None:
        del self._strangers[entry]
        self._answering.left(entry, proven=proven)
        address = self._addresses[entry.address]
        del address.all[entry], address.placed[entry]
        self._count(address)

    def _address(self, name: str) -> _Address:
        found = self._addresses.get(name)
        if found is None:
            now, at_once = self._now(), 2 * self._rate
            vain = Bucket(KNOWN_VAIN, max(KNOWN_VAIN_AT_ONCE, at_once), now)
            found = self._addresses[name] = _Address(name, Bucket(self._rate, at_once, now), vain)
        self._addresses.move_to_end(name)
        if len(self._addresses) > MAX_ADDRESSES:
            # The one that was quiet for longest. Those with connections, few of all, are put behind it two at a time.
            for _ in range(2):
                oldest = next(iter(self._addresses))
                if not self._addresses[oldest].all:
                    del self._addresses[oldest]
                    break
                self._addresses.move_to_end(oldest)
        return found
