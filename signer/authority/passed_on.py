"""How replicas tell each other what agents acknowledged: a ConfigMap of each, written by one and read by the others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from runtime.giving_way import slices
from signer.authority.state import MAX_SEQUENCE, AuthorityState
from signer.cluster.kube import Object

LABEL = "podsvid.io/agents-of"
# What an agent may say of its SVIDs: more would let one node fill the ConfigMap that the others' words go through.
MAX_AUTHORITIES = 64
# SVIDs of one authority on one node: kubelet's usual limit is 110 pods, the highest in use below a thousand, and a pod
# has a handful of volumes. So many nodes with so many each still fit into the 32 bits that they are shown in.
MAX_SVIDS = 2**16 - 1
DIGEST_BYTES = 32
# Nodes whose words are written before others have their turns.
NODES_AT_ONCE = 128
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
class Replica:
    """What another replica's ConfigMap says; `left`: of agents whose stream had ended a moment before."""

    identity: str
    written_at: datetime
    nodes: Mapping[str, Acknowledged]
    left: Mapping[str, Acknowledged] = field(default_factory=dict)


def map_name(identity: str) -> str:
    """The name of a replica's ConfigMap."""
    return f"podsvid-agents-{identity}"[:253].rstrip("-.")


async def words_text(words: Mapping[str, Acknowledged], left: Mapping[str, Acknowledged]) -> str:
    """What agents said, by node, as it stands in a ConfigMap; `left`: those whose stream has ended a moment ago.

    Gives way: there are thousands, and it is written every few seconds while a rotation waits for them.
    """
    # Nearly all have the same trust, and SVIDs of the same authorities: what names these is written once.
    every = [*words.values(), *left.values()]
    digests = _places({each.digest for each in every})
    names = _places({name for each in every for name in each.in_use})

    async def told(those: Mapping[str, Acknowledged]) -> str:
        parts = []
        async for nodes in slices(sorted(those), NODES_AT_ONCE):
            found = {
                node: [
                    those[node].sequence,
                    {names[name]: count for name, count in those[node].in_use.items()},
                    digests[those[node].digest],
                ]
                for node in nodes
            }
            parts.append(_json(found)[1:-1])
        return f"{{{','.join(parts)}}}"

    text = f'"digests":{_json(list(digests))},"authorities":{_json(list(names))},"nodes":{await told(words)}'
    # Replicas from before do not read it, and wait for these.
    return f'{{{text},"left":{await told(left)}}}' if left else f"{{{text}}}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def written(identity: str, text: str, now: datetime) -> Object:
    """The ConfigMap of the replica of that identity, with what `words_text` made."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": map_name(identity), "labels": {LABEL: identity[:63].rstrip("-.")}},
        "data": {
            "version": str(_VERSION),
            "identity": identity,
            "written_at": now.isoformat(),
            "nodes": text,
        },
    }


def read_replica(body: Object) -> Replica | None:
    """What such a ConfigMap says; None for one that no replica writes."""
    data = body.get("data") or {}
    try:
        # A copy under another name would speak, and be removed, in the place of the replica that it names.
        if body["metadata"]["name"] != map_name(str(data["identity"])):
            return None
        told = json.loads(data["nodes"])
        if data["version"] in (str(_VERSION), str(_NAMED_VERSION)):
            digests = [_digest(each) for each in told["digests"]]
            names = [str(each) for each in told["authorities"]] if data["version"] == str(_VERSION) else None
            nodes, left = (_words(each, digests, names) for each in (told["nodes"], told.get("left", {})))
        elif data["version"] == str(_OLD_VERSION):
            nodes = {
                str(node): Acknowledged(_number(sequence, MAX_SEQUENCE), _uses(in_use))
                for node, (sequence, in_use) in told.items()
            }
            left = {}
        else:
            return None
        written_at = datetime.fromisoformat(data["written_at"])
        if written_at.tzinfo is None:
            return None
        return Replica(str(data["identity"]), written_at, nodes, left)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _words(told: Mapping[str, Any], digests: Sequence[str], names: Sequence[str] | None) -> dict[str, Acknowledged]:
    """Raises ValueError and what a wrong type raises."""
    return {
        str(node): Acknowledged(_number(sequence, MAX_SEQUENCE), _uses(in_use, names), digests[_number(index)])
        for node, (sequence, in_use, index) in told.items()
    }


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
