"""The authorities of a cluster: what every replica signs and publishes by, as one value and as one JSON text.

An authority goes through stages: prepared (published, signs nothing), active (signs), old (trusted, signs no more), or
tainted (revoked, trusted only until its SVIDs are re-issued). X.509 and JWT authorities go their ways independently.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

from cryptography import x509

from signer.errors import StateDamaged
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem, extension, to_pem
from svid.errors import SvidError
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import JwtAlgorithm
from svid.keys import key_from_pem, key_to_pem
from svid.spiffeid import TrustDomain

_VERSION = 1
# Half of what the signer's API has room for: it goes on rising.
MAX_SEQUENCE = 2**63
_ADVICE = (
    "restore the Secret from a backup; or, if there is none, delete it and restart all signer pods: every workload "
    "must then get new SVIDs, and none trusts the old ones"
)
_Slot = TypeVar("_Slot", bound="X509Slot | JwtSlot")


class Stage(StrEnum):
    """Where an authority is in its life."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"
    TAINTED = "tainted"


@dataclass(frozen=True)
class X509Slot:
    """An X.509 authority. `authority.bundle` has only its own roots; `ends_at` is when it leaves the trust bundle."""

    stage: Stage
    authority: X509Authority
    prepared_at: datetime
    activated_at: datetime | None = None
    ends_at: datetime | None = None

    @cached_property
    def id(self) -> str:
        """The subject key identifier of the certificate that issues, in lower-case hex: the leaf's AKI."""
        return authority_id(self.authority)


@dataclass(frozen=True)
class JwtSlot:
    """A JWT authority."""

    stage: Stage
    key: JwtSigningKey
    prepared_at: datetime
    activated_at: datetime | None = None
    ends_at: datetime | None = None

    @property
    def id(self) -> str:
        """The key id."""
        return self.key.key_id


Slot: TypeAlias = X509Slot | JwtSlot


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


@dataclass(frozen=True)
class AuthorityState:
    """All authorities of one trust domain. `sequence` rises with every change. Raises StateDamaged at construction."""

    trust_domain: TrustDomain
    sequence: int
    x509: tuple[X509Slot, ...]
    jwt: tuple[JwtSlot, ...] = ()
    directives: tuple[Directive, ...] = ()
    goals: frozenset[Goal] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        _check_slots("X.509", self.x509, needed=True)
        _check_slots("JWT", self.jwt, needed=False)
        if any(slot.authority.trust_domain != self.trust_domain for slot in self.x509):
            raise _damaged(f"an authority is not of trust domain {self.trust_domain}")

    @cached_property
    def bundle(self) -> TrustBundle:
        """What verifiers hold: roots and keys of every stage."""
        roots = [root for slot in self.x509 for root in slot.authority.bundle.x509_authorities]
        keys = tuple(slot.key.public for slot in self.jwt)
        return TrustBundle(self.trust_domain, tuple(dict.fromkeys(roots)), keys, sequence=self.sequence)

    @cached_property
    def active_x509(self) -> X509Authority:
        """What X.509-SVIDs are signed with."""
        return next(slot.authority for slot in self.x509 if slot.stage is Stage.ACTIVE)

    @property
    def active_x509_id(self) -> str:
        """The active authority's id."""
        return authority_id(self.active_x509)

    @cached_property
    def active_jwt(self) -> JwtSigningKey | None:
        """What JWT-SVIDs are signed with; None when there are none."""
        return next((slot.key for slot in self.jwt if slot.stage is Stage.ACTIVE), None)

    def slots(self, kind: str) -> tuple[Slot, ...]:
        """The authorities of a kind: x509 or jwt."""
        return self.x509 if kind == "x509" else self.jwt

    def find(self, kind: str, stage: Stage) -> Slot | None:
        """The first authority of that kind and stage."""
        return next((slot for slot in self.slots(kind) if slot.stage is stage), None)

    def to_json(self) -> bytes:
        """Everything, private keys included."""
        document = {
            "version": _VERSION,
            "trust_domain": self.trust_domain.name,
            "sequence": self.sequence,
            "x509": [
                {
                    **_times(slot),
                    "key": key_to_pem(slot.authority.private_key).decode(),
                    "chain": to_pem(slot.authority.chain).decode(),
                    "roots": to_pem(slot.authority.bundle.x509_authorities).decode(),
                }
                for slot in self.x509
            ],
            "jwt": [
                {**_times(slot), "key": slot.key.to_pem().decode(), "algorithm": slot.key.algorithm.value}
                for slot in self.jwt
            ],
            "directives": [
                {"authority_id": each.authority_id, "start": each.start.isoformat(), "end": each.end.isoformat()}
                for each in self.directives
            ],
            "goals": [{"kind": goal.kind, "forced": goal.forced} for goal in sorted(self.goals)],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, trust_domain: TrustDomain) -> "AuthorityState":
        """What `to_json` wrote. Raises StateDamaged, which quotes nothing of it and says what to do."""
        try:
            document = json.loads(data.decode("utf-8"))
            if document["version"] != _VERSION:
                raise _damaged(f"it is of version {document['version']!r}, this signer knows {_VERSION}")
            if document["trust_domain"] != trust_domain.name:
                raise StateDamaged(
                    f"the authorities are those of another trust domain than {trust_domain}; set trust_domain back, or "
                    "choose another state_secret"
                )
            sequence = document["sequence"]
            if isinstance(sequence, bool) or not isinstance(sequence, int) or not 1 <= sequence <= MAX_SEQUENCE:
                raise _damaged("sequence is not a positive number that agents can be told")
            return cls(
                trust_domain,
                sequence,
                tuple(_x509_slot(each, trust_domain) for each in document["x509"]),
                tuple(_jwt_slot(each) for each in document["jwt"]),
                tuple(
                    Directive(str(each["authority_id"]), _instant(each["start"]), _instant(each["end"]))
                    for each in document["directives"]
                ),
                frozenset(Goal(_kind(each["kind"]), bool(each["forced"])) for each in document["goals"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise _damaged(f"it is not what a signer wrote ({type(error).__name__})") from None
        except SvidError as error:
            raise _damaged(f"{error.reason}: {error}") from None


def authority_id(authority: X509Authority) -> str:
    """What the authority key identifier of its SVIDs says, in lower-case hex."""
    found = extension(authority.chain[0], x509.SubjectKeyIdentifier)
    key = found.value if found else x509.SubjectKeyIdentifier.from_public_key(authority.private_key.public_key())
    return key.digest.hex()


def _check_slots(what: str, slots: Sequence[Slot], *, needed: bool) -> None:
    stages = [slot.stage for slot in slots]
    if (slots or needed) and stages.count(Stage.ACTIVE) != 1:
        raise _damaged(f"it has {stages.count(Stage.ACTIVE)} active {what} authorities, not one")
    if stages.count(Stage.PREPARED) > 1:
        raise _damaged(f"it has more than one prepared {what} authority")
    if len({slot.id for slot in slots}) != len(slots):
        raise _damaged(f"it has a {what} authority twice")


def _damaged(why: str) -> StateDamaged:
    return StateDamaged(f"the stored authorities cannot be used: {why}; {_ADVICE}")


def _times(slot: Slot) -> dict[str, str | None]:
    return {
        "id": slot.id,
        "stage": slot.stage.value,
        "prepared_at": slot.prepared_at.isoformat(),
        "activated_at": slot.activated_at.isoformat() if slot.activated_at else None,
        "ends_at": slot.ends_at.isoformat() if slot.ends_at else None,
    }


def _x509_slot(each: dict[str, Any], trust_domain: TrustDomain) -> X509Slot:
    chain = certificates_from_pem(each["chain"].encode())
    roots = TrustBundle(trust_domain, certificates_from_pem(each["roots"].encode()))
    authority = X509Authority(trust_domain, chain, key_from_pem(each["key"].encode()), roots)
    return _timed(each, lambda *times: X509Slot(Stage(each["stage"]), authority, *times))


def _jwt_slot(each: dict[str, Any]) -> JwtSlot:
    key = JwtSigningKey.from_pem(each["key"].encode(), JwtAlgorithm(each["algorithm"]))
    return _timed(each, lambda *times: JwtSlot(Stage(each["stage"]), key, *times))


def _timed(each: dict[str, Any], make: Callable[..., _Slot]) -> _Slot:
    slot = make(
        _instant(each["prepared_at"]),
        _instant(each["activated_at"]) if each["activated_at"] is not None else None,
        _instant(each["ends_at"]) if each["ends_at"] is not None else None,
    )
    if slot.id != each["id"]:
        raise ValueError("an authority's id does not fit its key")
    return slot


def _kind(text: object) -> str:
    if text not in ("x509", "jwt"):
        raise ValueError("unknown kind")
    return str(text)


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("no time zone")
    return found.astimezone(UTC)
