"""Which agents have which trust bundle: those of this replica first hand, those of the others by a ConfigMap each."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from runtime.clock import Clock
from runtime.pace import Pace
from runtime.seldom import Seldom
from signer.authority.state import MAX_SEQUENCE, AuthorityState, believable
from signer.cluster.kube import KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, plain
from signer.errors import Conflict, NotFound, Reason, Refused, SignerError
from signer.model import Agent

_log = logging.getLogger("podsvid.agents")
LABEL = "podsvid.io/agents-of"
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
# No clock is wrong by so much.
WRONG = 24 * 3600.0
MAX_BYTES = 900_000
# A node has one agent with one stream, and for a while those that it lost and the signer still takes for open.
MAX_STREAMS = 8
# What an agent may say of its SVIDs: more would let one node fill the ConfigMap that the others' words go through.
MAX_AUTHORITIES = 64
# SVIDs of one authority on one node: kubelet's usual limit is 110 pods, the highest in use below a thousand, and a pod
# has a handful of volumes. So many nodes with so many each still fit into the 32 bits that they are shown in.
MAX_SVIDS = 2**16 - 1
MAX_TOTAL = 2**32 - 1
DIGEST_BYTES = 32
_VERSION = 3
# With each authority's name at each node, and without digests too: what replicas from before write, while they are
# replaced one by one.
_NAMED_VERSION, _OLD_VERSION = 2, 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a signer waits for: that agents have this trust (`digest` in hex); whose SVIDs are counted."""

    sequence: int
    digest: str
    authorities: frozenset[str]

    @classmethod
    def of(cls, state: AuthorityState) -> "Wanted":
        """What `state` needs."""
        return cls(state.sequence, state.digest.hex(), frozenset(slot.id for slot in state.x509))


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What one agent has: the newest trust that all its workloads hold, and its SVIDs by authority.

    `digest` names that trust, in hex; empty from agents that do not say. `sequence` 0: nothing that can be believed.
    """

    sequence: int
    in_use: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""

    def has(self, wanted: Wanted) -> bool:
        """Whether that is the trust that is waited for: a higher number alone may be of another past."""
        if not self.digest:
            return self.sequence == wanted.sequence
        return self.sequence >= wanted.sequence and self.digest == wanted.digest


@dataclass(frozen=True, slots=True)
class _Replica:
    identity: str
    written_at: datetime
    nodes: Mapping[str, Acknowledged]


@dataclass(frozen=True, slots=True)
class _Seen:
    """When another replica's ConfigMap was seen to change, by this one's monotonic clock.

    What was there already has the `first_age` that both clocks make of it: one that is ahead of the time is as old.
    """

    replica: _Replica
    at: float
    first_age: float

    def age(self, now: float) -> float:
        return now - self.at + self.first_age

    def gone(self, now: float) -> bool:
        """Whether nobody writes it any more: that of one whose clock is wrong looks old, too."""
        return now - self.at > 4 * STALE or self.first_age > WRONG


class Agents:
    """The agents that watch this replica, and what is known of those of the others. Nothing is written per SVID."""

    def __init__(self, api: KubeApi, namespace: str, identity: str, clock: Clock) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._identity = identity
        self._name = _name(identity)
        self._clock = clock
        self._open: dict[int, str] = {}
        self._streams: Counter[str] = Counter()
        self._next = 0
        self._nodes: dict[str, Acknowledged] = {}
        self._newest = 0
        # What this replica's own state is: nothing else is waited for, and no other authority is counted.
        self._own = 0
        self._counted: frozenset[str] = frozenset()
        self._doubt = Seldom(LIVELY, clock.monotonic)
        self._lively_until = clock.monotonic()
        self._written: str | None = None
        self._written_at = clock.monotonic()
        self._seen: dict[str, _Seen] = {}
        self._others: Mirror[DataObject, _Replica] = Mirror(
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
        """The stream ended. Its node is forgotten here unless a newer stream is open."""
        node = self._open.pop(handle)
        self._streams[node] -= 1
        if not self._streams[node]:
            del self._streams[node]
            self._nodes.pop(node, None)

    def summary(self, wanted: Wanted, live: frozenset[str]) -> tuple[frozenset[str], Mapping[str, int] | None]:
        """The live nodes that lack that trust, and how many SVIDs of each authority all of them hold.

        None instead of numbers while a node has said nothing.
        """
        known = self._known()
        waiting = frozenset(node for node in live if node not in known or not known[node].has(wanted))
        if any(node not in known for node in live):
            return waiting, None
        totals: dict[str, int] = {}
        for node in live:
            for authority, count in known[node].in_use.items():
                if authority in wanted.authorities:
                    totals[authority] = min(totals.get(authority, 0) + count, MAX_TOTAL)
        return waiting, totals

    def newest(self, live: frozenset[str]) -> int:
        """The highest sequence that a live agent has, of those that can be believed; 0 without any."""
        now, known = self._clock.now(), self._known()
        # Nearly all have the same.
        found = {known[node].sequence for node in live if node in known}
        return max((each for each in found if believable(each, self._own, now)), default=0)

    def ahead(self, live: frozenset[str]) -> frozenset[str]:
        """The live nodes whose agents name, believably, a higher number than this replica has."""
        now, known = self._clock.now(), self._known()
        found = ((node, known[node].sequence) for node in live if node in known)
        return frozenset(node for node, each in found if each > self._own and believable(each, self._own, now))

    async def run(self) -> None:
        """Follow the other replicas and tell them what this one knows, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._others.run())
            group.create_task(self._tell())

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
        # Nearly all have the same trust, and SVIDs of the same authorities: what names these is written once.
        digests = _places({each.digest for each in self._nodes.values()})
        names = _places({name for each in self._nodes.values() for name in each.in_use})
        nodes = {
            node: [each.sequence, {names[name]: count for name, count in each.in_use.items()}, digests[each.digest]]
            for node, each in sorted(self._nodes.items())
        }
        told = {"digests": list(digests), "authorities": list(names), "nodes": nodes}
        text = json.dumps(told, separators=(",", ":"))
        if len(text) > MAX_BYTES:
            _log.error("too many agents to pass on", extra={"agents": len(nodes)})
            return
        # Unchanged it is still written now and then, where it says anything: the others count by nothing that is stale.
        fresh = not nodes or self._clock.monotonic() - self._written_at < STALE / 2
        if text == self._written and not self.wanted and fresh:
            return
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self._name, "labels": {LABEL: self._identity[:63].rstrip("-.")}},
            "data": {
                "version": str(_VERSION),
                "identity": self._identity,
                "written_at": self._clock.now().isoformat(),
                "nodes": text,
            },
        }
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
                    await self._api.delete(f"{self._collection}/{_name(each.identity)}")
                except NotFound:
                    continue

    def _read(self, found: DataObject) -> _Replica | None:
        # What this replica wrote itself is no news to it, and with thousands of nodes takes long to read.
        return None if found.metadata.name == self._name else _read_replica(plain(found))

    def _see(self, old: "_Replica | None", new: "_Replica | None") -> None:
        if new is not None:
            age = abs((self._clock.now() - new.written_at).total_seconds()) if old is None else 0.0
            self._seen[new.identity] = _Seen(new, self._clock.monotonic(), age)
        # One that was made anew is read before the one that it replaced is found to be gone.
        elif old is not None and self._seen[old.identity].replica is old:
            del self._seen[old.identity]

    def _known(self) -> dict[str, Acknowledged]:
        known: dict[str, Acknowledged] = {}
        now = self._clock.monotonic()
        for replica in self._others.values.values():
            if self._seen[replica.identity].age(now) > STALE:
                continue
            for node, each in replica.nodes.items():
                # An agent that moved is with two replicas for a moment: the higher number is the newer word.
                if node not in known or each.sequence > known[node].sequence:
                    known[node] = each
        known.update(self._nodes)
        return known


def _name(identity: str) -> str:
    return f"podsvid-agents-{identity}"[:253].rstrip("-.")


def _read_replica(body: Object) -> _Replica | None:
    data = body.get("data") or {}
    try:
        # A copy under another name would speak, and be removed, in the place of the replica that it names.
        if body["metadata"]["name"] != _name(str(data["identity"])):
            return None
        told = json.loads(data["nodes"])
        if data["version"] in (str(_VERSION), str(_NAMED_VERSION)):
            digests = [_digest(each) for each in told["digests"]]
            names = [str(each) for each in told["authorities"]] if data["version"] == str(_VERSION) else None
            nodes = {
                str(node): Acknowledged(_number(sequence, MAX_SEQUENCE), _uses(in_use, names), digests[_number(index)])
                for node, (sequence, in_use, index) in told["nodes"].items()
            }
        elif data["version"] == str(_OLD_VERSION):
            nodes = {
                str(node): Acknowledged(_number(sequence, MAX_SEQUENCE), _uses(in_use))
                for node, (sequence, in_use) in told.items()
            }
        else:
            return None
        written_at = datetime.fromisoformat(data["written_at"])
        if written_at.tzinfo is None:
            return None
        return _Replica(str(data["identity"]), written_at, nodes)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _places(those: set[str]) -> dict[str, int]:
    return {each: index for index, each in enumerate(sorted(those))}


def _uses(in_use: Mapping[str, Any], names: Sequence[str] | None = None) -> Mapping[str, int]:
    """By authority, whose place in `names` is what stands there; without any it is its name. Raises ValueError."""
    told = list(in_use.items())[:MAX_AUTHORITIES]
    found = [(str(key) if names is None else names[_number(int(key))], _number(count)) for key, count in told]
    return {name: min(count, MAX_SVIDS) for name, count in found}


def _digest(text: Any) -> str:
    found = str(text)
    if found and len(bytes.fromhex(found)) != DIGEST_BYTES:
        raise ValueError("not a digest")
    return found


def _number(value: Any, most: int = 2**32) -> int:
    """A count that is one. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError("not a number that can be")
    return value
