"""Which agents have which trust bundle: those of this replica first hand, those of the others by a ConfigMap each."""

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runtime.clock import Clock
from signer.cluster.kube import KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.errors import Conflict, NotFound, Reason, Refused, SignerError
from signer.model import Agent

_log = logging.getLogger("podsvid.agents")
LABEL = "podsvid.io/agents-of"
# Seconds: how often what agents acknowledged is told to the other replicas, while it matters and otherwise.
WRITE_SECONDS = 2.0
IDLE_SECONDS = 300.0
# It matters while somebody waits for acknowledgements, and so long after an agent had something newer than any before.
LIVELY = timedelta(minutes=1)
# A replica that is gone leaves its ConfigMap behind; nobody counts by one that is older than this.
STALE = timedelta(minutes=15)
MAX_BYTES = 900_000
# A node has one agent with one stream, and for a while those that it lost and the signer still takes for open.
MAX_STREAMS = 16
# What an agent may say of its SVIDs: more would let one node fill the ConfigMap that the others' words go through.
MAX_AUTHORITIES = 64
_AUTHORITY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What one agent has: the newest sequence that all its workloads hold, and its SVIDs by authority."""

    sequence: int
    in_use: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Replica:
    identity: str
    written_at: datetime
    nodes: Mapping[str, Acknowledged]


class Agents:
    """The agents that watch this replica, and what is known of those of the others. Nothing is written per SVID."""

    def __init__(self, api: KubeApi, namespace: str, identity: str, clock: Clock) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._identity = identity
        self._name = _name(identity)
        self._clock = clock
        self._open: dict[int, str] = {}
        self._next = 0
        self._nodes: dict[str, Acknowledged] = {}
        self._newest = 0
        self._lively_until = clock.now()
        self._written: str | None = None
        self._written_at = clock.now()
        self._others: Mirror[_Replica] = Mirror(api, self._collection, _read_replica, clock, {"labelSelector": LABEL})
        # Whether somebody waits for acknowledgements: only then are they written at once.
        self.wanted = False

    @property
    def connected(self) -> int:
        """How many agents watch this replica."""
        return len(self._open)

    def connect(self, agent: Agent) -> int:
        """An agent's stream began; the handle is for `disconnect`. Raises Refused (BUSY)."""
        if sum(node == agent.node_name for node in self._open.values()) >= MAX_STREAMS:
            raise Refused(Reason.BUSY, f"node {agent.node_name} has {MAX_STREAMS} trust streams open already")
        self._next += 1
        self._open[self._next] = agent.node_name
        self._nodes.setdefault(agent.node_name, Acknowledged(0))
        return self._next

    def acknowledged(self, node: str, sequence: int, in_use: Mapping[str, int]) -> None:
        """What the agent of `node` said."""
        if node in self._nodes:
            named = [each for each in in_use.items() if _AUTHORITY_ID.fullmatch(each[0])]
            self._nodes[node] = Acknowledged(sequence, dict(named[:MAX_AUTHORITIES]))
            if sequence > self._newest:
                self._newest = sequence
                self._lively_until = self._clock.now() + LIVELY

    def disconnect(self, handle: int) -> None:
        """The stream ended. Its node is forgotten here unless a newer stream is open."""
        node = self._open.pop(handle)
        if node not in self._open.values():
            self._nodes.pop(node, None)

    def summary(self, sequence: int, live: frozenset[str]) -> tuple[frozenset[str], Mapping[str, int] | None]:
        """The live nodes that lack `sequence`, and how many SVIDs of each authority all of them hold.

        None instead of numbers while a node has said nothing.
        """
        known = self._known()
        waiting = frozenset(node for node in live if node not in known or known[node].sequence < sequence)
        if any(node not in known for node in live):
            return waiting, None
        totals: dict[str, int] = {}
        for node in live:
            for authority, count in known[node].in_use.items():
                totals[authority] = totals.get(authority, 0) + count
        return waiting, totals

    async def run(self) -> None:
        """Follow the other replicas and tell them what this one knows, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._others.run())
            group.create_task(self._tell())

    async def _tell(self) -> None:
        idle = 0.0
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            idle += WRITE_SECONDS
            lively = self.wanted or self._clock.now() < self._lively_until
            if not lively and idle < IDLE_SECONDS:
                continue
            idle = 0.0
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
        nodes = {node: [each.sequence, dict(each.in_use)] for node, each in sorted(self._nodes.items())}
        text = json.dumps(nodes, separators=(",", ":"))
        if len(text) > MAX_BYTES:
            _log.error("too many agents to pass on", extra={"agents": len(nodes)})
            return
        now = self._clock.now()
        # Unchanged it is still written now and then, where it says anything: the others count by nothing that is stale.
        fresh = not nodes or now - self._written_at < STALE / 2
        if text == self._written and not self.wanted and fresh:
            return
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self._name, "labels": {LABEL: self._identity[:63].rstrip("-.")}},
            "data": {
                "version": str(_VERSION),
                "identity": self._identity,
                "written_at": now.isoformat(),
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
        self._written, self._written_at = text, now

    async def _forget_stale(self) -> None:
        """Remove what replicas that are gone left behind."""
        for each in list(self._others.values.values()):
            if self._clock.now() - each.written_at > 4 * STALE and each.identity != self._identity:
                try:
                    await self._api.delete(f"{self._collection}/{_name(each.identity)}")
                except NotFound:
                    continue

    def _known(self) -> dict[str, Acknowledged]:
        known: dict[str, Acknowledged] = {}
        now = self._clock.now()
        for replica in self._others.values.values():
            if replica.identity == self._identity or now - replica.written_at > STALE:
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
        if data["version"] != str(_VERSION) or body["metadata"]["name"] != _name(str(data["identity"])):
            return None
        nodes = {
            str(node): Acknowledged(int(sequence), {str(key): int(count) for key, count in in_use.items()})
            for node, (sequence, in_use) in json.loads(data["nodes"]).items()
        }
        written_at = datetime.fromisoformat(data["written_at"])
        if written_at.tzinfo is None:
            return None
        return _Replica(str(data["identity"]), written_at, nodes)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
