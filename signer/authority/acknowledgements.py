"""Which agents have which trust bundle: those of this replica first hand, those of the others by a ConfigMap each."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from runtime.clock import Clock
from runtime.giving_way import slices
from runtime.pace import Pace
from runtime.seldom import Seldom
from runtime.stopping import side_by_side
from signer.authority.passed_on import (
    DIGEST_BYTES,
    LABEL,
    MAX_AUTHORITIES,
    MAX_SVIDS,
    Acknowledged,
    Replica,
    Wanted,
    map_name,
    read_replica,
    words_text,
    written,
)
from signer.authority.state import believable
from signer.cluster.kube import KubeApi
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, plain
from signer.errors import Conflict, NotFound, Reason, Refused, SignerError
from signer.model import Agent

_log = logging.getLogger("podsvid.agents")
# Seconds: how often what agents acknowledged is told to the other replicas, while it matters and otherwise.
WRITE_SECONDS = 2.0
# Between two at most, however long one takes: a rotation waits for them.
PACE_SECONDS = 4.0
IDLE_SECONDS = 300.0
# It matters while somebody waits for acknowledgements, and so many seconds after an agent had something newer than any
# before.
LIVELY = 60.0
# A replica that is gone leaves its ConfigMap behind; nobody counts by one that is older than so many seconds.
STALE = 15 * 60.0
# An agent whose stream has ended, as streams do for their age and after a recovery, is soon back; so many seconds long
# it counts with its last word, unless it has said another one; as long again where the replica that heard it is gone.
# Were it taken for one that has nothing, a rotation would wait while any agent of thousands changes over. Of what it
# held the word is good for less: a root goes by that.
RETURN_SECONDS, RETURN_USES_SECONDS = 30.0, 10.0
# No clock is wrong by so much.
WRONG = 24 * 3600.0
MAX_BYTES = 900_000
# A node has one agent with one stream, and for a while those that it lost and the signer still takes for open.
MAX_STREAMS = 8
MAX_TOTAL = 2**32 - 1
# Nodes that are counted before others have their turns: half a millisecond or so.
NODES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class _Seen:
    """When another replica's ConfigMap was seen to change, by this one's monotonic clock.

    What was there already has the `first_age` that both clocks make of it: one that is ahead of the time is as old.
    """

    replica: Replica
    at: float
    first_age: float

    def age(self, now: float) -> float:
        return now - self.at + self.first_age

    def gone(self, now: float) -> bool:
        """Whether nobody writes it any more: that of one whose clock is wrong looks old, too."""
        return now - self.at > 4 * STALE or self.first_age > WRONG


@dataclass(slots=True)
class _Told:
    """Of some live nodes: which of them lack what is wanted, and what all of them hold, if that is known."""

    waiting: set[str] = field(default_factory=set)
    totals: dict[str, int] = field(default_factory=dict)
    complete: bool = True

    def count(
        self, nodes: Iterable[str], known: Mapping[str, Acknowledged], doubtful: Set[str], wanted: Wanted
    ) -> None:
        for node in nodes:
            word = known.get(node)
            if word is None or not word.has(wanted):
                self.waiting.add(node)
            if word is None or node in doubtful:
                self.complete = False
                continue
            for authority, count in word.in_use.items():
                if authority in wanted.authorities:
                    self.totals[authority] = min(self.totals.get(authority, 0) + count, MAX_TOTAL)

    @property
    def summary(self) -> tuple[frozenset[str], Mapping[str, int] | None]:
        return frozenset(self.waiting), self.totals if self.complete else None


class Agents:
    """The agents that watch this replica, and what is known of those of the others. Nothing is written per SVID."""

    def __init__(self, api: KubeApi, namespace: str, identity: str, clock: Clock) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._identity = identity
        self._name = map_name(identity)
        self._clock = clock
        self._open: dict[int, str] = {}
        self._streams: Counter[str] = Counter()
        self._next = 0
        self._nodes: dict[str, Acknowledged] = {}
        # The last words of those whose stream has ended, and when it did, in that order.
        self._left: dict[str, tuple[Acknowledged, float]] = {}
        self._newest = 0
        # What this replica's own state is: nothing else is waited for, and no other authority is counted.
        self._own = 0
        self._counted: frozenset[str] = frozenset()
        self._doubt = Seldom(LIVELY, clock.monotonic)
        self._lively_until = clock.monotonic()
        self._written: str | None = None
        self._written_at = clock.monotonic()
        self._seen: dict[str, _Seen] = {}
        self._others: Mirror[DataObject, Replica] = Mirror(
            api, self._collection, DataObject, self._read, clock, {"labelSelector": LABEL}, observe=self._see
        )
        # Whether somebody waits for acknowledgements: only then are they written at once.
        self.wanted = False

    @property
    def connected(self) -> int:
        """How many agents watch this replica."""
        return len(self._open)

    @property
    def unread(self) -> str:
        """Why it is not known what agents told the other replicas; empty when it is."""
        if not self._others.synced:
            return "what agents acknowledged to the other signers is not read yet"
        return "" if self._others.fresh else "what agents acknowledge to the other signers cannot be read now"

    def know(self, wanted: Wanted) -> None:
        """What there is to be acknowledged and held from now on."""
        self._own, self._counted = wanted.sequence, wanted.authorities

    def connect(self, agent: Agent) -> int:
        """An agent's stream began; the handle is for `disconnect`. Raises Refused (BUSY)."""
        if self._streams[agent.node_name] >= MAX_STREAMS:
            raise Refused(Reason.BUSY, f"node {agent.node_name} has {MAX_STREAMS} trust streams open already")
        self._next += 1
        self._open[self._next] = agent.node_name
        self._streams[agent.node_name] += 1
        self._nodes.setdefault(agent.node_name, Acknowledged(0))
        return self._next

    def acknowledged(self, node: str, sequence: int, in_use: Mapping[str, int], digest: bytes = b"") -> None:
        """What the agent of `node` said. What cannot be is not counted, and said once in a while."""
        if node not in self._nodes:
            return
        self._left.pop(node, None)
        if not believable(sequence, self._own, self._clock.now()) or len(digest) not in (0, DIGEST_BYTES):
            if self._doubt.due:
                _log.warning(
                    "an agent acknowledges what was never there; not counted",
                    extra={"node": node, "sequence": sequence},
                )
            sequence, digest = 0, b""
        self._nodes[node] = Acknowledged(sequence, self._known_uses(in_use), digest.hex())
        # Only what is waited for makes it lively: of other numbers an agent could make up a new one every moment.
        if self._newest < sequence <= self._own:
            self._newest = sequence
            self._lively_until = self._clock.monotonic() + LIVELY

    def _known_uses(self, in_use: Mapping[str, int]) -> Mapping[str, int]:
        known = [(name, min(count, MAX_SVIDS)) for name, count in in_use.items() if name in self._counted]
        return dict(known[:MAX_AUTHORITIES])

    def disconnect(self, handle: int) -> None:
        """The stream ended. Unless a newer one is open its node is forgotten here, its last word a little later."""
        node = self._open.pop(handle)
        self._streams[node] -= 1
        if not self._streams[node]:
            del self._streams[node]
            word = self._nodes.pop(node)
            # One that came and went without a word has said what it said before.
            if word.sequence:
                self._left[node] = word, self._clock.monotonic()
        self._forget_left()

    def _forget_left(self) -> None:
        for node, (_, at) in list(self._left.items()):
            if self._clock.monotonic() - at <= RETURN_SECONDS:
                break
            del self._left[node]

    def summary(self, wanted: Wanted, live: frozenset[str]) -> tuple[frozenset[str], Mapping[str, int] | None]:
        """The live nodes that lack that trust, and how many SVIDs of each authority all of them hold.

        None instead of numbers while a node has said nothing, or some time ago.
        """
        known, doubtful = self._known()
        told = _Told()
        told.count(live, known, doubtful, wanted)
        return told.summary

    async def look(self, wanted: Wanted, live: frozenset[str]) -> tuple[frozenset[str], Mapping[str, int] | None]:
        """As `summary`, of how it is when this begins; gives way meanwhile, as it is asked for every second."""
        known, doubtful = self._known()
        told = _Told()
        async for part in slices(live, NODES_AT_ONCE):
            told.count(part, known, doubtful, wanted)
        return told.summary

    async def ahead(self, live: frozenset[str]) -> Mapping[str, int]:
        """The live nodes whose agents name, believably, a higher number than this replica has, and which.

        Of how it is when this begins; gives way meanwhile.
        """
        own, now, (known, _) = self._own, self._clock.now(), self._known()
        found: dict[str, int] = {}
        async for part in slices(live, NODES_AT_ONCE):
            named = ((node, known[node].sequence) for node in part if node in known)
            found.update((node, each) for node, each in named if each > own and believable(each, own, now))
        return found

    async def run(self) -> None:
        """Follow the other replicas and tell them what this one knows, for ever."""
        await side_by_side(self._others.run(), self._tell())

    async def _tell(self) -> None:
        now = self._clock.monotonic
        pace, next_at = Pace(now, PACE_SECONDS), now() + IDLE_SECONDS
        while True:
            await pace.rest(WRITE_SECONDS)
            if not self.wanted and now() >= self._lively_until and now() < next_at:
                continue
            next_at = now() + IDLE_SECONDS
            try:
                await self.write()
                if not self.wanted:
                    await self._forget_stale()
            except SignerError as error:
                _log.warning(
                    "acknowledgements not passed on; trying again",
                    extra={"reason": error.reason, "error": str(error)},
                )

    async def write(self) -> None:
        """Write this replica's ConfigMap if it changed or gets old. Raises SignerError."""
        self._forget_left()
        left = {node: word for node, (word, _) in self._left.items()}
        # Who is back, and has not said anything yet.
        words = {node: word for node, word in self._nodes.items() if word.sequence or node not in left}
        text = await words_text(words, left)
        if len(text) > MAX_BYTES:
            _log.error("too many agents to pass on", extra={"agents": len(words) + len(left)})
            return
        # Unchanged it is still written now and then, where it says anything: the others count by nothing that is stale.
        fresh = not (words or left) or self._clock.monotonic() - self._written_at < STALE / 2
        if text == self._written and not self.wanted and fresh:
            return
        body = written(self._identity, text, self._clock.now())
        try:
            await self._api.replace(f"{self._collection}/{self._name}", body)
        except NotFound:
            try:
                await self._api.create(self._collection, body)
            except Conflict:
                return
        self._written, self._written_at = text, self._clock.monotonic()

    async def _forget_stale(self) -> None:
        """Remove what replicas that are gone left behind."""
        for each in list(self._others.values.values()):
            # Another one may have removed it while this one was at the one before.
            seen = self._seen.get(each.identity)
            if seen is not None and seen.gone(self._clock.monotonic()):
                try:
                    await self._api.delete(f"{self._collection}/{map_name(each.identity)}")
                except NotFound:
                    continue

    def _read(self, found: DataObject) -> Replica | None:
        # What this replica wrote itself is no news to it, and with thousands of nodes takes long to read.
        return None if found.metadata.name == self._name else read_replica(plain(found))

    def _see(self, old: "Replica | None", new: "Replica | None") -> None:
        if new is not None:
            age = abs((self._clock.now() - new.written_at).total_seconds()) if old is None else 0.0
            self._seen[new.identity] = _Seen(new, self._clock.monotonic(), age)
        # One that was made anew is read before the one that it replaced is found to be gone.
        elif old is not None and self._seen[old.identity].replica is old:
            del self._seen[old.identity]

    def _known(self) -> tuple[dict[str, Acknowledged], set[str]]:
        """What nodes' agents have, by their newest words, and those of them whose SVIDs nobody should count by that."""
        known: dict[str, Acknowledged] = {}
        left: dict[str, list[Acknowledged]] = {}
        now = self._clock.monotonic()
        for replica in self._others.values.values():
            age = self._seen[replica.identity].age(now)
            if age > STALE:
                continue
            for node, each in replica.nodes.items():
                # An agent that moved is with two replicas for a moment: the higher number is the newer word.
                if node not in known or each.sequence > known[node].sequence:
                    known[node] = each
            for node, each in replica.left.items() if age <= RETURN_SECONDS else ():
                left.setdefault(node, []).append(each)
        known.update(self._nodes)
        self._forget_left()
        doubtful = set()
        for node in self._left.keys() | left.keys():
            own, elsewhere = self._left.get(node), left.get(node, [])
            silent = own is not None and node in self._nodes
            # Who speaks elsewhere by now may be a process that was started anew, and have less.
            if node in known and not silent:
                continue
            # Of several last words nobody knows which was the last.
            known[node] = min([*elsewhere, *([own[0]] if own else [])], key=lambda each: each.sequence)
            if elsewhere or (own is not None and now - own[1] > RETURN_USES_SECONDS):
                doubtful.add(node)
        return known, doubtful
