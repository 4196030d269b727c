"""One authority: its stage, its key as long as it signs, and its entry in the stored state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from cryptography import x509

from svid.authority import PublicAuthority, X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.certificates import certificates_from_pem, extension, to_pem
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey, public_from_pem, public_to_pem
from svid.keys import key_from_pem, key_to_pem, public_key_of
from svid.spiffeid import TrustDomain

_Slot = TypeVar("_Slot", bound="X509Slot | JwtSlot")
KINDS = ("x509", "jwt")
# JWT keys that were checked already, by their PEM text: to check an RSA key takes some 30 ms, and holds everything up.
KnownKeys: TypeAlias = Mapping[str, JwtSigningKey]
NO_KEYS: KnownKeys = MappingProxyType({})
# Of a step that is for all kinds at once.
BOTH = "both"


class Stage(StrEnum):
    """Where an authority is in its life."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"
    TAINTED = "tainted"


SIGNING = (Stage.PREPARED, Stage.ACTIVE)


@dataclass(frozen=True)
class X509Slot:
    """An X.509 authority. `authority.bundle` has only its own roots; `ends_at` is when it leaves the trust bundle.

    One that signs no more is a `PublicAuthority`, whatever it is made with. `longest`: no SVID of it lives longer than
    that, which is recorded before one does; None where a signer of before recorded nothing.
    """

    stage: Stage
    authority: X509Authority | PublicAuthority
    prepared_at: datetime
    activated_at: datetime | None = None
    ends_at: datetime | None = None
    longest: timedelta | None = None

    def __post_init__(self) -> None:
        if self.stage not in SIGNING and isinstance(self.authority, X509Authority):
            object.__setattr__(self, "authority", self.authority.public)

    @cached_property
    def id(self) -> str:
        """The subject key identifier of the certificate that issues, in lower-case hex: the leaf's AKI."""
        return authority_id(self.authority)

    @property
    def signs(self) -> bool:
        """Whether its private key is here."""
        return isinstance(self.authority, X509Authority)


@dataclass(frozen=True)
class JwtSlot:
    """A JWT authority. One that signs no more is a public key, whatever it is made with; `longest` as above."""

    stage: Stage
    key: JwtSigningKey | JwtAuthority
    prepared_at: datetime
    activated_at: datetime | None = None
    ends_at: datetime | None = None
    longest: timedelta | None = None

    def __post_init__(self) -> None:
        if self.stage not in SIGNING:
            object.__setattr__(self, "key", self.public)

    @property
    def id(self) -> str:
        """The key id."""
        return self.key.key_id

    @property
    def public(self) -> JwtAuthority:
        """What verifiers hold."""
        return self.key.public if isinstance(self.key, JwtSigningKey) else self.key

    @property
    def signs(self) -> bool:
        """Whether its private key is here."""
        return isinstance(self.key, JwtSigningKey)


Slot: TypeAlias = X509Slot | JwtSlot


def authority_id(authority: X509Authority | PublicAuthority) -> str:
    """What the authority key identifier of its SVIDs says, in lower-case hex."""
    found = extension(authority.chain[0], x509.SubjectKeyIdentifier)
    key = found.value if found else x509.SubjectKeyIdentifier.from_public_key(public_key_of(authority.chain[0]))
    return key.digest.hex()


def _times(slot: Slot) -> dict[str, str | float | None]:
    return {
        "id": slot.id,
        "stage": slot.stage.value,
        "prepared_at": slot.prepared_at.isoformat(),
        "activated_at": written(slot.activated_at),
        "ends_at": written(slot.ends_at),
        "longest_seconds": None if slot.longest is None else slot.longest.total_seconds(),
    }


def x509_entry(slot: X509Slot) -> dict[str, str | float | None]:
    """Its entry; with the private key if it signs or will."""
    entry = {
        **_times(slot),
        "chain": to_pem(slot.authority.chain).decode(),
        "roots": to_pem(slot.authority.bundle.x509_authorities).decode(),
    }
    if isinstance(slot.authority, X509Authority):
        entry["key"] = key_to_pem(slot.authority.private_key).decode()
    return entry


def jwt_entry(slot: JwtSlot) -> dict[str, str | float | None]:
    """Its entry; with the private key if it signs or will."""
    if isinstance(slot.key, JwtAuthority):
        return {**_times(slot), "public": public_to_pem(slot.key).decode()}
    return {**_times(slot), "key": slot.key.to_pem().decode(), "algorithm": slot.key.algorithm.value}


def x509_slot(each: dict[str, Any], trust_domain: TrustDomain) -> X509Slot:
    """What `x509_entry` wrote. Raises SvidError, and what comes of an entry that is none."""
    chain = certificates_from_pem(each["chain"].encode())
    roots = TrustBundle(trust_domain, certificates_from_pem(each["roots"].encode()))
    authority: X509Authority | PublicAuthority = PublicAuthority(trust_domain, chain, roots)
    if "key" in each:
        authority = X509Authority(trust_domain, chain, key_from_pem(each["key"].encode()), roots)
    return _timed(each, lambda *times: X509Slot(Stage(each["stage"]), authority, *times))


def jwt_slot(each: dict[str, Any], known: KnownKeys = NO_KEYS) -> JwtSlot:
    """What `jwt_entry` wrote. Raises SvidError, and what comes of an entry that is none."""
    key: JwtSigningKey | JwtAuthority
    if "key" in each:
        algorithm, found = JwtAlgorithm(each["algorithm"]), known.get(str(each["key"]))
        if found is None or found.algorithm is not algorithm:
            found = JwtSigningKey.from_pem(each["key"].encode(), algorithm)
        key = found
    else:
        key = public_from_pem(each["public"].encode())
    return _timed(each, lambda *times: JwtSlot(Stage(each["stage"]), key, *times))


def _timed(each: dict[str, Any], make: Callable[..., _Slot]) -> _Slot:
    slot = make(
        instant(each["prepared_at"]),
        read(each["activated_at"]),
        read(each["ends_at"]),
        _longest(each.get("longest_seconds")),
    )
    if slot.id != each["id"]:
        raise ValueError("an authority's id does not fit its key")
    return slot


def _longest(seconds: Any) -> timedelta | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError("not a lifetime")
    return timedelta(seconds=seconds)


def written(at: datetime | None) -> str | None:
    """An instant for the text, if there is one."""
    return at.isoformat() if at else None


def read(text: Any) -> datetime | None:
    """What `written` wrote. Raises ValueError, TypeError."""
    return None if text is None else instant(text)


def instant(text: str) -> datetime:
    """An instant of the text, which says its time zone. Raises ValueError, TypeError."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("no time zone")
    return found.astimezone(UTC)
