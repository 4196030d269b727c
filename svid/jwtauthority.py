"""The keys that sign JWT-SVIDs: what is signed (JWT-SVID.md 2 and 3), and a key's life (Federation.md 4.1)."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from svid.bundle import JwtAuthority, JwtKey, jwk_members
from svid.errors import InvalidKey, IssuanceRefused
from svid.jws import JwtAlgorithm, JwtPrivateKey
from svid.jwtsvid import MAX_AUDIENCE_BYTES, MAX_AUDIENCES, MAX_TOKEN, JwtSvid
from svid.spiffeid import SpiffeId

# Verifiers' clocks differ: a key stays published a little beyond its last token's end.
SKEW = timedelta(minutes=5)
_VERSION = 1


def thumbprint(key: JwtKey) -> str:
    """The RFC 7638 thumbprint, by which podsvid's keys are named."""
    text = json.dumps(dict(sorted(jwk_members(key).items())), separators=(",", ":"))
    return _base64url(hashlib.sha256(text.encode()).digest())


def public_to_pem(authority: JwtAuthority) -> bytes:
    """The public key as PEM."""
    return authority.public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_from_pem(data: bytes, algorithm: JwtAlgorithm | None = None) -> JwtAuthority:
    """A PEM public key under its thumbprint. Raises InvalidKey, also where `algorithm` is none of it."""
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidKey("not a public key") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise InvalidKey("a JWT key is RSA or EC")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        raise InvalidKey("an RSA key needs 2048 bits")
    if algorithm is not None and not algorithm.fits(key):
        raise InvalidKey(f"the key is not one for {algorithm}")
    return JwtAuthority(thumbprint(key), key, algorithm.value if algorithm else None)


@dataclass(frozen=True)
class JwtSigningKey:
    """A private key with its `kid`, the RFC 7638 thumbprint. Raises InvalidKey when algorithm and key do not fit."""

    key_id: str
    private_key: JwtPrivateKey = field(repr=False)
    algorithm: JwtAlgorithm

    def __post_init__(self) -> None:
        if not self.algorithm.fits(self.private_key.public_key()):
            raise InvalidKey(f"the key is not one for {self.algorithm}")

    @classmethod
    def create(cls, algorithm: JwtAlgorithm) -> Self:
        """A new key."""
        return cls.of(algorithm.generate(), algorithm)

    @classmethod
    def of(cls, key: JwtPrivateKey, algorithm: JwtAlgorithm) -> Self:
        """`key` under its thumbprint."""
        return cls(thumbprint(key.public_key()), key, algorithm)

    @classmethod
    def from_pem(cls, data: bytes, algorithm: JwtAlgorithm) -> Self:
        """From an unencrypted PEM private key. Raises InvalidKey."""
        try:
            key = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The library's text may quote its input, which here is a key.
            raise InvalidKey("not an unencrypted private key") from None
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise InvalidKey("a JWT key is RSA or EC")
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size < 2048:
            raise InvalidKey("an RSA key needs 2048 bits")
        return cls.of(key, algorithm)

    def to_pem(self) -> bytes:
        """Unencrypted PKCS#8 PEM."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @cached_property
    def public(self) -> JwtAuthority:
        """What a trust bundle publishes."""
        return JwtAuthority(self.key_id, self.private_key.public_key(), self.algorithm.value)

    def issue(
        self,
        spiffe_id: SpiffeId,
        audiences: Sequence[str],
        *,
        ttl: timedelta,
        now: datetime,
        issuer: str = "",
        jwt_id: str = "",
    ) -> JwtSvid:
        """Sign a JWT-SVID for all of `audiences`; whether the key may speak for its trust domain is the caller's care.

        Raises IssuanceRefused.
        """
        named = list(dict.fromkeys(audiences))
        if not named or "" in named:
            raise IssuanceRefused("a JWT-SVID needs an audience, none of them empty")
        if len(named) > MAX_AUDIENCES or any(len(each.encode()) > MAX_AUDIENCE_BYTES for each in named):
            raise IssuanceRefused(f"at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE_BYTES} bytes are possible")
        if not spiffe_id.path:
            raise IssuanceRefused("an SVID needs a SPIFFE ID with a path")
        issued_at = now.replace(microsecond=0)
        expires_at = (now + ttl).replace(microsecond=0)
        if expires_at <= now:
            raise IssuanceRefused("lifetime must be a second at least")
        claims: dict[str, Any] = {
            "sub": str(spiffe_id),
            "aud": named,
            "exp": int(expires_at.timestamp()),
            "iat": int(issued_at.timestamp()),
        }
        if issuer:
            claims["iss"] = issuer
        if jwt_id:
            claims["jti"] = jwt_id
        header = {"alg": self.algorithm.value, "kid": self.key_id, "typ": "JWT"}
        signed = ".".join(_base64url(json.dumps(each, separators=(",", ":")).encode()) for each in (header, claims))
        # Before it is signed, too: a key elsewhere is sent all of it.
        if len(signed) <= MAX_TOKEN:
            token = f"{signed}.{_base64url(self.algorithm.sign(signed.encode(), self.private_key))}"
            if len(token) <= MAX_TOKEN:
                return JwtSvid(spiffe_id, tuple(named), expires_at, issued_at, token, claims)
        raise IssuanceRefused("the token would be too long for verifiers")


@dataclass(frozen=True, slots=True)
class KeyringPolicy:
    """A key signs for `signing_period`, is published `lead` before it first does, and no token outlives `token_ttl`."""

    algorithm: JwtAlgorithm
    signing_period: timedelta
    lead: timedelta
    token_ttl: timedelta


@dataclass(frozen=True)
class RingKey:
    """A key and its life: it signs from `signs_from` until its successor does, and leaves the bundle at `ends_at`."""

    key: JwtSigningKey
    published_at: datetime
    signs_from: datetime
    ends_at: datetime | None = None


@dataclass(frozen=True)
class JwtKeyring:
    """Keys in the order in which they sign. `sequence` rises whenever what is published changes."""

    keys: tuple[RingKey, ...]
    # The longest that tokens were allowed to live: a shorter setting does not end those that are out.
    token_ttl: timedelta
    sequence: int

    @classmethod
    def create(cls, policy: KeyringPolicy, now: datetime) -> Self:
        """A ring of one key, which signs at once.

        The sequence begins with the time: above that of a ring that was lost, which some verifier may still hold.
        """
        key = RingKey(JwtSigningKey.create(policy.algorithm), now, now)
        return cls((key,), policy.token_ttl, max(1, int(now.timestamp())))

    @property
    def authorities(self) -> tuple[JwtAuthority, ...]:
        """What the trust bundle publishes now."""
        return tuple(each.key.public for each in self.keys)

    def active(self, now: datetime) -> JwtSigningKey:
        """The key that signs at `now`: the newest one that may, or else (a clock that went back) the oldest."""
        return self._active(now).key

    def _active(self, now: datetime) -> RingKey:
        return next((each for each in reversed(self.keys) if each.signs_from <= now), self.keys[0])

    def advance(self, policy: KeyringPolicy, now: datetime) -> "JwtKeyring":
        """The ring as it should be at `now`; itself when nothing is due."""
        keys = self.keys
        newest = keys[-1]
        wrong = newest.key.algorithm is not policy.algorithm
        if newest.signs_from <= now and (wrong or now >= newest.signs_from + policy.signing_period - policy.lead):
            # However late this is noticed, the lead is counted from the publishing.
            key = RingKey(JwtSigningKey.create(policy.algorithm), now, now + policy.lead)
            keys = (*keys, key)
        active = self._active(now)
        token_ttl = max(self.token_ttl, policy.token_ttl)
        keys = tuple(
            replace(each, ends_at=now + token_ttl + SKEW)
            if each.ends_at is None and each.signs_from < active.signs_from
            else each
            for each in keys
        )
        keys = tuple(each for each in keys if each.ends_at is None or each.ends_at > now)
        if (keys, token_ttl) == (self.keys, self.token_ttl):
            return self
        changed = [each.key.key_id for each in keys] != [each.key.key_id for each in self.keys]
        return JwtKeyring(keys, token_ttl, self.sequence + changed)

    def to_json(self) -> bytes:
        """Everything, private keys included."""
        document = {
            "version": _VERSION,
            "sequence": self.sequence,
            "token_ttl_seconds": self.token_ttl.total_seconds(),
            "keys": [
                {
                    "key": each.key.to_pem().decode(),
                    "algorithm": each.key.algorithm.value,
                    "published_at": each.published_at.isoformat(),
                    "signs_from": each.signs_from.isoformat(),
                    "ends_at": each.ends_at.isoformat() if each.ends_at else None,
                }
                for each in self.keys
            ],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `to_json` wrote. Raises InvalidKey, which quotes nothing of it."""
        try:
            document = json.loads(data.decode("utf-8"))
            if document["version"] != _VERSION or not document["keys"]:
                raise InvalidKey("not a keyring of this version, or an empty one")
            keys = tuple(
                RingKey(
                    JwtSigningKey.from_pem(each["key"].encode(), JwtAlgorithm(each["algorithm"])),
                    _instant(each["published_at"]),
                    _instant(each["signs_from"]),
                    _instant(each["ends_at"]) if each["ends_at"] is not None else None,
                )
                for each in document["keys"]
            )
            token_ttl = timedelta(seconds=document["token_ttl_seconds"])
            sequence = document["sequence"]
            if isinstance(sequence, bool) or not isinstance(sequence, int) or sequence < 1:
                raise InvalidKey("sequence is not a positive number")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidKey(f"not a JWT keyring ({type(error).__name__})") from None
        if list(keys) != sorted(keys, key=lambda each: each.signs_from):
            raise InvalidKey("the keys are not in the order in which they sign")
        return cls(keys, token_ttl, sequence)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("no time zone")
    return found
