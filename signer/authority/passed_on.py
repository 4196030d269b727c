"""How replicas tell each other what agents acknowledged: a ConfigMap of each, written by one and read by the others."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import msgspec

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


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**32)]


class _OldWord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Of one node, as it stands in a ConfigMap."""

    sequence: Annotated[int, msgspec.Meta(ge=0)]
    in_use: dict[str, _Count]


class _Word(_OldWord, frozen=True, gc=False, array_like=True):
    """With the place of the digest."""

    digest: _Count


class _Told(msgspec.Struct, frozen=True):
    """What `words_text` makes."""

    digests: tuple[str, ...]
    nodes: dict[str, msgspec.Raw]
    authorities: tuple[str, ...] | None = None
    left: dict[str, msgspec.Raw] = {}


_TOLD, _OLD_TOLD = msgspec.json.Decoder(_Told), msgspec.json.Decoder(dict[str, msgspec.Raw])
_WORD, _OLD_WORD = msgspec.json.Decoder(_Word), msgspec.json.Decoder(_OldWord)


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
        if data["version"] in (str(_VERSION), str(_NAMED_VERSION)):
            told = _TOLD.decode(data["nodes"])
            digests = [_digest(each) for each in told.digests]
            names = None
            if data["version"] == str(_VERSION):
                if told.authorities is None:
                    return None
                names = {str(place): name for place, name in enumerate(told.authorities)}

            def word(text: bytes) -> Acknowledged:
                found = _WORD.decode(text)
                return Acknowledged(_sequence(found), _uses(found.in_use, names), digests[found.digest])

            nodes, left = _words(told.nodes, word), _words(told.left, word)
        elif data["version"] == str(_OLD_VERSION):
            nodes, left = _words(_OLD_TOLD.decode(data["nodes"]), _old_word), {}
        else:
            return None
        written_at = datetime.fromisoformat(data["written_at"])
        if written_at.tzinfo is None:
            return None
        return Replica(str(data["identity"]), written_at, nodes, left)
    except (msgspec.MsgspecError, KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _words(told: Mapping[str, msgspec.Raw], read: Callable[[bytes], Acknowledged]) -> dict[str, Acknowledged]:
    # Nearly all have the same trust and a few dozen SVIDs: what many say is read, and kept, once.
    known: dict[bytes, Acknowledged] = {}
    found = {}
    for node, raw in told.items():
        text = bytes(raw)
        if text not in known:
            known[text] = read(text)
        found[node] = known[text]
    return found


def _old_word(text: bytes) -> Acknowledged:
    found = _OLD_WORD.decode(text)
    return Acknowledged(_sequence(found), _uses(found.in_use, None))


def _places(those: set[str]) -> dict[str, int]:
    return {each: index for index, each in enumerate(sorted(those))}


def _uses(in_use: Mapping[str, int], names: Mapping[str, str] | None) -> Mapping[str, int]:
    """By authority, whose place in `names` is what stands there; without any it is its name."""
    told = list(in_use.items())[:MAX_AUTHORITIES]
    return {key if names is None else names[key]: min(count, MAX_SVIDS) for key, count in told}


def _sequence(word: _OldWord) -> int:
    if word.sequence > MAX_SEQUENCE:
        raise ValueError("not a number that can be")
    return word.sequence


def _digest(text: str) -> str:
    if text and len(bytes.fromhex(text)) != DIGEST_BYTES:
        raise ValueError("not a digest")
    return text
