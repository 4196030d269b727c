"""The authorities of a cluster: what every replica signs and publishes by, as one value and as one JSON text.

An authority goes through stages: prepared (published, signs nothing), active (signs), old (trusted, signs no more), or
tainted (revoked, trusted only until its SVIDs are re-issued). X.509 and JWT authorities go their ways independently.
Private keys are kept of those only that sign or will: no other key can be stolen from here. Before it is prepared, an
X.509 authority of a CA elsewhere is requested (request.py): there is a key, and no certificate yet.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from cryptography.x509 import Certificate

from signer.authority import versions
from signer.authority.anchors import UpstreamRoot, read_root, root_entry
from signer.authority.left_keys import LeftKey, left_entry, noted, read_left, refs
from signer.authority.request import X509Request, read_request, request_entry
from signer.authority.revoked import RevokedRoot, read_revoked, revoked_entry, roots_left
from signer.authority.slots import (
    KINDS,
    NO_KEYS,
    SIGNING,
    JwtSlot,
    KnownKeys,
    OpenKey,
    Slot,
    Stage,
    X509Slot,
    authority_id,
    instant,
    jwt_entry,
    jwt_slot,
    nowhere,
    read,
    written,
    x509_entry,
    x509_slot,
)
from signer.authority.versions import asks, damaged, version_of
from signer.errors import StateDamaged
from signer.held_key import KeyRef
from svid.authority import X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.errors import SvidError
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import TrustDomain

# Half of what the signer's API has room for: it goes on rising.
MAX_SEQUENCE = 2**63
# Milliseconds: how far above the time what others say of sequences is believed. Clocks of replicas differ, by a day at
# the very worst. Nothing is added to the signer's own number: who is answered by one above it could push it on from
# there, again and again, to where a signer that starts with an earlier Secret does not believe what all agents have.
SEQUENCE_SLACK = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Directive:
    """SVIDs of this X.509 authority are to be renewed between `start` and `end`, even if their own window is later."""

    authority_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, order=True)
class Goal:
    """A rotation that a person asked for; it survives the leader. `forced`: the present authority is compromised."""

    kind: str
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An authority that was there when everything in the Secret was declared stolen: it is never put in service again.

    `svids_end`: when the last SVID that a signer issued by it ends, at the latest; None while it signs and where it
    never did. `left_at`: when it left the trust bundle. `replaced`: it left because no agent held an SVID of it.
    `certified_until`: a CA above certified it, whose root may stay trusted; so may until then what a thief signs.
    """

    kind: str
    authority_id: str
    asked_at: datetime
    svids_end: datetime | None = None
    left_at: datetime | None = None
    replaced: bool = False
    certified_until: datetime | None = None


@dataclass(frozen=True)
class AuthorityState:
    """All authorities of one trust domain. `sequence` rises with every change. Raises StateDamaged at construction.

    `request`: what a CA elsewhere is asked for. Without any X.509 authority the state is unborn: it is stored while the
    first one is asked for, and nobody signs or publishes by it. `roots`: those that the CA above names. `left`: keys in
    a key store that nothing here names any more. `revoked`: roots that were declared stolen, or were and are not any
    more.
    """

    trust_domain: TrustDomain
    sequence: int
    x509: tuple[X509Slot, ...]
    jwt: tuple[JwtSlot, ...] = ()
    directives: tuple[Directive, ...] = ()
    goals: frozenset[Goal] = field(default_factory=frozenset)
    abandoned: tuple[Abandoned, ...] = ()
    request: X509Request | None = None
    roots: tuple[UpstreamRoot, ...] = ()
    left: tuple[LeftKey, ...] = ()
    revoked: tuple[RevokedRoot, ...] = ()
    # It was read from a text that has more, or less, than one that is written today: the leader writes it anew.
    outdated: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        _check_slots("X.509", self.x509, needed=self.request is None)
        _check_slots("JWT", self.jwt, needed=False)
        for kind in KINDS:
            self._check_abandoned(kind)
        if self.request is not None and self.find("x509", Stage.PREPARED) is not None:
            raise damaged("it has a prepared X.509 authority and asks for another")
        if len({each.certificate for each in self.roots}) != len(self.roots):
            raise damaged("it has a root of the CA above twice")
        if len({each.key for each in self.revoked}) != len(self.revoked):
            raise damaged("it has a revoked root twice")
        if any(slot.authority.trust_domain != self.trust_domain for slot in self.x509):
            raise damaged(f"an authority is not of trust domain {self.trust_domain}")

    @property
    def unborn(self) -> bool:
        """Whether the first X.509 authority is only asked for."""
        return not self.x509

    @cached_property
    def bundle(self) -> TrustBundle:
        """What verifiers hold: roots and keys of every stage."""
        roots = [*self._own_roots, *(each.certificate for each in self.roots)]
        keys = tuple(slot.public for slot in self.jwt)
        return TrustBundle(self.trust_domain, tuple(dict.fromkeys(roots)), keys, sequence=self.sequence)

    @property
    def _own_roots(self) -> list[Certificate]:
        return [root for slot in self.x509 for root in slot.authority.bundle.x509_authorities]

    @cached_property
    def digest(self) -> bytes:
        """Names what the bundle trusts, without its number."""
        return self.bundle.digest()

    def dated(self, now: datetime) -> "AuthorityState":
        """The same with a sequence that is not below the time: each step is written so.

        When an older state is restored, its next step is above every number that agents got from what came after it. In
        milliseconds no series of steps overtakes the time, and 2^63 of them are far away.
        """
        return replace(self, sequence=max(self.sequence, sequence_at(now)))

    @cached_property
    def active_x509(self) -> X509Authority:
        """What X.509-SVIDs are signed with."""
        found = next(slot.authority for slot in self.x509 if slot.stage is Stage.ACTIVE)
        assert isinstance(found, X509Authority)
        return found

    @cached_property
    def _active(self) -> dict[str, Slot | None]:
        # Found once: each mint asks for it three times.
        return {kind: next((slot for slot in self.slots(kind) if slot.stage is Stage.ACTIVE), None) for kind in KINDS}

    @property
    def active_x509_id(self) -> str:
        """The active authority's id."""
        return authority_id(self.active_x509)

    @cached_property
    def active_jwt(self) -> JwtSigningKey | None:
        """What JWT-SVIDs are signed with; None when there are none."""
        found = next((slot.key for slot in self.jwt if slot.stage is Stage.ACTIVE), None)
        assert not isinstance(found, JwtAuthority)
        return found

    @cached_property
    def key_refs(self) -> frozenset[KeyRef]:
        """The keys in a key store that its authorities sign with, or will, or are requested with."""
        return refs(self.private_keys)

    @property
    def private_keys(self) -> Sequence[object]:
        """Those of its authorities, None of one that signs no more, and of its request."""
        request = [] if self.request is None else [self.request.key]
        return [*(slot.private_key for kind in KINDS for slot in self.slots(kind)), *request]

    def noting(self, before: "AuthorityState", now: datetime) -> "AuthorityState":
        """The same, where it follows `before`, with those of its keys that nothing names any more."""
        left = noted(self.left, before.key_refs, self.key_refs, now)
        return self if left == self.left else replace(self, left=left)

    @cached_property
    def revoked_keys(self) -> frozenset[str]:
        """The keys of roots that must not be trusted."""
        return frozenset(each.key for each in self.revoked if each.in_force)

    @cached_property
    def condemned(self) -> bool:
        """Whether the active X.509 authority leads to no root but revoked ones."""
        if not self.revoked_keys or self.unborn:
            return False
        return not roots_left(self.active_x509, self.bundle.x509_authorities, self.revoked_keys)

    def forced(self, kind: str) -> bool:
        """Whether the active authority of a kind is to be replaced in minutes: it, or its root, was stolen."""
        return Goal(kind, True) in self.goals or (kind == "x509" and self.condemned)

    def wanted(self, kind: str) -> bool:
        """Whether another authority of a kind is wanted before its time."""
        return self.forced(kind) or Goal(kind) in self.goals

    def abandoned_ids(self, kind: str) -> frozenset[str]:
        """The authorities of a kind that must never be put in service again."""
        return frozenset(each.authority_id for each in self.abandoned if each.kind == kind)

    def longest(self, kind: str) -> timedelta | None:
        """No SVID of the active authority lives longer; None where that was not recorded, or nothing is active."""
        active = self.find(kind, Stage.ACTIVE)
        return active.longest if active is not None else None

    def slots(self, kind: str) -> tuple[Slot, ...]:
        """The authorities of a kind: x509 or jwt."""
        return self.x509 if kind == "x509" else self.jwt

    def find(self, kind: str, stage: Stage) -> Slot | None:
        """The first authority of that kind and stage."""
        if stage is Stage.ACTIVE:
            return self._active[kind]
        return next((slot for slot in self.slots(kind) if slot.stage is stage), None)

    def _check_abandoned(self, kind: str) -> None:
        abandoned = self.abandoned_ids(kind)
        for slot in self.slots(kind):
            leaving = slot.stage is Stage.TAINTED or (slot.stage is Stage.ACTIVE and Goal(kind, True) in self.goals)
            if slot.id in abandoned and not leaving:
                raise damaged(f"a {kind} authority that was abandoned is {slot.stage}")

    def to_json(self) -> bytes:
        """Everything, with the private keys of those that sign or will."""
        plain = not self.abandoned and all(slot.signs for kind in KINDS for slot in self.slots(kind))
        document: dict[str, Any] = {
            "version": versions.PLAIN if plain else versions.LEAN,
            "trust_domain": self.trust_domain.name,
            "sequence": self.sequence,
            "x509": [x509_entry(slot) for slot in self.x509],
            "jwt": [jwt_entry(slot) for slot in self.jwt],
            "directives": [
                {"authority_id": each.authority_id, "start": each.start.isoformat(), "end": each.end.isoformat()}
                for each in self.directives
            ],
            "goals": [{"kind": goal.kind, "forced": goal.forced} for goal in sorted(self.goals)],
            "abandoned": [abandoned_entry(each) for each in self.abandoned],
        }
        if self.request is not None:
            document |= {"version": versions.REQUEST, "request": request_entry(self.request)}
        if self.roots:
            document["roots"] = [root_entry(each) for each in self.roots]
            if not {each.certificate for each in self.roots} <= set(self._own_roots):
                document["version"] = versions.ROOTS
        if self.key_refs or self.left:
            document |= {"version": versions.KEYS, "left_keys": [left_entry(each) for each in self.left]}
        if self.revoked:
            document["revoked"] = [revoked_entry(each) for each in self.revoked]
        if self.revoked_keys or any(not slot.authority.bundle.x509_authorities for slot in self.x509):
            document["version"] = versions.REVOKED
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(
        cls, data: bytes, trust_domain: TrustDomain, known: KnownKeys = NO_KEYS, open_key: OpenKey = nowhere
    ) -> "AuthorityState":
        """What `to_json` wrote. Raises StateDamaged, which quotes nothing of it and says what to do."""
        try:
            document = json.loads(data.decode("utf-8"))
            version = version_of(document["version"])
            if document["trust_domain"] != trust_domain.name:
                raise StateDamaged(
                    f"the authorities are those of another trust domain than {trust_domain}; set trust_domain back, or "
                    "choose another state_secret"
                )
            sequence = document["sequence"]
            if isinstance(sequence, bool) or not isinstance(sequence, int) or not 1 <= sequence <= MAX_SEQUENCE:
                raise damaged("sequence is not a positive number that agents can be told")
            goals = frozenset(Goal(_kind(each["kind"]), bool(each["forced"])) for each in document["goals"])
            abandoned = _all_abandoned(document, version)
            return cls(
                trust_domain,
                sequence,
                tuple(x509_slot(each, trust_domain, open_key, cut="revoked" in document) for each in document["x509"]),
                tuple(jwt_slot(each, known, open_key) for each in document["jwt"]),
                tuple(
                    Directive(str(each["authority_id"]), instant(each["start"]), instant(each["end"]))
                    for each in document["directives"]
                ),
                goals,
                abandoned,
                read_request(document["request"], open_key) if asks(document, version) else None,
                tuple(read_root(each, trust_domain) for each in document.get("roots", [])),
                tuple(read_left(each) for each in document.get("left_keys", [])),
                tuple(read_revoked(each) for each in document.get("revoked", [])),
                outdated=_is_outdated(document, goals, abandoned),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise damaged(f"it is not what a signer wrote ({type(error).__name__})") from None
        except SvidError as error:
            raise damaged(f"{error.reason}: {error}") from None


def sequence_at(now: datetime) -> int:
    """The sequence of a step at that time: milliseconds since 1970."""
    return max(1, int(now.timestamp() * 1000))


def believable(sequence: int, own: int, now: datetime) -> bool:
    """Whether there can have been a state of that sequence, for a signer whose newest is `own`."""
    return 0 <= sequence <= max(own, sequence_at(now) + SEQUENCE_SLACK)


def _check_slots(what: str, slots: Sequence[Slot], *, needed: bool) -> None:
    stages = [slot.stage for slot in slots]
    if (slots or needed) and stages.count(Stage.ACTIVE) != 1:
        raise damaged(f"it has {stages.count(Stage.ACTIVE)} active {what} authorities, not one")
    if stages.count(Stage.PREPARED) > 1:
        raise damaged(f"it has more than one prepared {what} authority")
    if len({slot.id for slot in slots}) != len(slots):
        raise damaged(f"it has a {what} authority twice")
    if any(slot.stage in SIGNING and not slot.signs for slot in slots):
        raise damaged(f"it has no key of a {what} authority that is to sign")


def _is_outdated(document: dict[str, Any], goals: frozenset[Goal], abandoned: Sequence[Abandoned]) -> bool:
    """Whether it has keys of what signs no more, or says not how long SVIDs live or what is abandoned."""
    kept = any("key" in each and Stage(each["stage"]) not in SIGNING for kind in KINDS for each in document[kind])
    known = {each.authority_id for each in abandoned}
    vague = any(
        Goal(kind, True) in goals and Stage(each["stage"]) is Stage.ACTIVE and each["id"] not in known
        for kind in KINDS
        for each in document[kind]
    )
    active = [each for kind in KINDS for each in document[kind] if Stage(each["stage"]) is Stage.ACTIVE]
    return kept or vague or any(each.get("longest_seconds") is None for each in active)


def abandoned_entry(each: Abandoned) -> dict[str, Any]:
    """Its entry, wherever it is written."""
    return {
        "kind": each.kind,
        "id": each.authority_id,
        "asked_at": each.asked_at.isoformat(),
        "svids_end": written(each.svids_end),
        "left_at": written(each.left_at),
        "replaced": each.replaced,
        "certified_until": written(each.certified_until),
    }


def _all_abandoned(document: dict[str, Any], version: int) -> tuple[Abandoned, ...]:
    entries = document["abandoned"] if version != versions.PLAIN else document.get("abandoned", [])
    return tuple(read_abandoned(each) for each in entries)


def read_abandoned(each: dict[str, Any]) -> Abandoned:
    """What `abandoned_entry` wrote. Raises ValueError, KeyError, TypeError, and what comes of an entry that is none."""
    return Abandoned(
        _kind(each["kind"]),
        _text(each["id"]),
        instant(each["asked_at"]),
        read(each["svids_end"]),
        read(each["left_at"]),
        bool(each["replaced"]),
        read(each["certified_until"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _kind(text: object) -> str:
    if text not in KINDS:
        raise ValueError("unknown kind")
    return str(text)
