"""One authority: its stage, its key as long as it signs, and its entry in the stored state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from cryptography import x509

from signer.errors import StateDamaged
from signer.held_key import KeyRef, ref_of
from svid.authority import PublicAuthority, X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.certificates import certificates_from_pem, extension, to_pem
from svid.jws import JwtAlgorithm, JwtPrivateKey
from svid.jwtauthority import JwtSigningKey, public_from_pem, public_to_pem
from svid.keys import PrivateKey, PublicKey, key_from_pem, key_to_pem, public_key_of
from svid.spiffeid import TrustDomain

_Slot = TypeVar("_Slot", bound="X509Slot | JwtSlot")
KINDS = ("x509", "jwt")
# JWT keys that were checked already, by their PEM text: to check an RSA key takes some 30 ms, and holds everything up.
KnownKeys: TypeAlias = Mapping[str, JwtSigningKey]
NO_KEYS: KnownKeys = MappingProxyType({})
# What makes of a key's name the key, where it is in a key store. Raises StateDamaged.
OpenKey: TypeAlias = Callable[[KeyRef, PublicKey], PrivateKey]
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
        """Whether its private key is here, or can be asked for signatures."""
        return isinstance(self.authority, X509Authority)

    @property
    def private_key(self) -> PrivateKey | None:
        """What it signs with; None where it signs no more."""
        return self.authority.private_key if isinstance(self.authority, X509Authority) else None


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
        """Whether its private key is here, or can be asked for signatures."""
        return isinstance(self.key, JwtSigningKey)

    @property
    def private_key(self) -> JwtPrivateKey | None:
        """What it signs with; None where it signs no more."""
        return self.key.private_key if isinstance(self.key, JwtSigningKey) else None


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


def nowhere(ref: KeyRef, _: PublicKey) -> PrivateKey:
    """There is no key store. Raises StateDamaged."""
    raise StateDamaged(
        f"the authorities' keys are in a {ref.store[:20]!r} key store, and none is set here: set authority_key_uri as "
        "the other signers have it"
    )


def key_entry(key: PrivateKey) -> dict[str, Any]:
    """The key, or where it is: a key store gives none out."""
    ref = ref_of(key)
    if ref is None:
        return {"key": key_to_pem(key).decode()}
    return {"key_ref": {"store": ref.store, "name": ref.name}}


def read_key(each: dict[str, Any], public: Callable[[], PublicKey], open_key: OpenKey) -> PrivateKey | None:
    """What `key_entry` wrote, if it did. Raises SvidError, StateDamaged, and what comes of an entry that is none."""
    if "key" in each:
        return key_from_pem(each["key"].encode())
    return open_key(read_ref(each["key_ref"]), public()) if "key_ref" in each else None


def read_ref(each: dict[str, Any]) -> KeyRef:
    """Raises KeyError, TypeError."""
    if not isinstance(each["store"], str) or not isinstance(each["name"], str):
        raise TypeError("not a key's name")
    return KeyRef(each["store"], each["name"])


def x509_entry(slot: X509Slot) -> dict[str, Any]:
    """Its entry; with the private key, or where that is, if it signs or will."""
    entry: dict[str, Any] = {
        **_times(slot),
        "chain": to_pem(slot.authority.chain).decode(),
        "roots": to_pem(slot.authority.bundle.x509_authorities).decode(),
    }
    if isinstance(slot.authority, X509Authority):
        entry |= key_entry(slot.authority.private_key)
    return entry


def jwt_entry(slot: JwtSlot) -> dict[str, Any]:
    """Its entry; with the private key, or where that is, if it signs or will."""
    if isinstance(slot.key, JwtAuthority):
        # Verifiers by OpenID Connect are told with which algorithm a key signed.
        signed = {} if slot.key.algorithm is None else {"algorithm": slot.key.algorithm}
        return {**_times(slot), "public": public_to_pem(slot.key).decode(), **signed}
    entry = {**_times(slot), **key_entry(slot.key.private_key), "algorithm": slot.key.algorithm.value}
    return entry if "key" in entry else {**entry, "public": public_to_pem(slot.public).decode()}


def x509_slot(
    each: dict[str, Any], trust_domain: TrustDomain, open_key: OpenKey = nowhere, *, cut: bool = False
) -> X509Slot:
    """What `x509_entry` wrote; `cut`: a revoked one may have no root left. Raises SvidError, and what comes of an entry
    that is none."""
    chain = certificates_from_pem(each["chain"].encode())
    rootless = cut and each["roots"] == "" and each["stage"] == Stage.TAINTED
    roots = TrustBundle(trust_domain, () if rootless else certificates_from_pem(each["roots"].encode()))
    authority: X509Authority | PublicAuthority = PublicAuthority(trust_domain, chain, roots)
    key = read_key(each, lambda: public_key_of(chain[0]), open_key)
    if key is not None:
        authority = X509Authority(trust_domain, chain, key, roots)
    return _timed(each, lambda *times: X509Slot(Stage(each["stage"]), authority, *times))


def jwt_slot(each: dict[str, Any], known: KnownKeys = NO_KEYS, open_key: OpenKey = nowhere) -> JwtSlot:
    """What `jwt_entry` wrote. Raises SvidError, and what comes of an entry that is none."""
    key: JwtSigningKey | JwtAuthority
    if "key" in each:
        algorithm, found = JwtAlgorithm(each["algorithm"]), known.get(str(each["key"]))
        if found is None or found.algorithm is not algorithm:
            found = JwtSigningKey.from_pem(each["key"].encode(), algorithm)
        key = found
    elif "key_ref" in each:
        algorithm, public = JwtAlgorithm(each["algorithm"]), public_from_pem(each["public"].encode())
        private = read_key(each, lambda: public.public_key, open_key)
        if not isinstance(private, JwtPrivateKey):
            raise TypeError("no key that signs JWTs")
        key = JwtSigningKey.of(private, algorithm)
    else:
        signed = JwtAlgorithm(each["algorithm"]) if "algorithm" in each else None
        key = public_from_pem(each["public"].encode(), signed)
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
