"""Trust bundles: a trust domain's authorities, as PEM, DER and SPIFFE JWKS (Trust_Domain_and_Bundle.md section 4)."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Self, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from svid.certificates import (
    certificate_from_der,
    certificates_from_der,
    certificates_from_pem,
    check_readable,
    extension,
    is_ml_dsa,
    to_der,
    to_pem,
)
from svid.errors import InvalidBundle, InvalidKey
from svid.keys import KeyAlgorithm, algorithm_of
from svid.spiffeid import TrustDomain
from svid.strictjson import strictly

MAX_JWKS_BYTES = 4 * 1024 * 1024
# RFC 7518 3.3 asks for 2048 bits; above 16384 a signature check costs seconds.
_RSA_BITS = range(2048, 16384 + 1)
_SHOWN = 80
_MAX_KEY_ID = 1024
_NUMBERS = frozenset({"n", "e", "x", "y", "pub"})
_KEY_TYPES = frozenset({"RSA", "EC", "OKP", "AKP"})
# Of a document with a key of kind AKP (ML-DSA, RFC 9964) among its keys go-jose (go-spiffe, SPIRE, gRPC for Go) and
# gRPC's C core take nothing at all. Such authorities stand beside the keys, as DER in base64, where nobody else looks.
_BESIDE = "podsvid_x509_authorities"
_PEM_LABEL = re.compile(rb"-----BEGIN ([^-\r\n]*)-----")
# Told of each authority that cannot be used and is left out: which it is, and why.
LeftOut: TypeAlias = Callable[[str], object]
JwtKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_JWT_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_CURVES_BY_NAME: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


@dataclass(frozen=True, slots=True)
class JwtAuthority:
    """A public key that signs JWT-SVIDs, and its `kid`; `algorithm`: with which one, where that is known."""

    key_id: str
    public_key: JwtKey
    algorithm: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TrustBundle:
    """What authenticates SVIDs of one trust domain.

    `x509_authorities` are CA certificates, those with ML-DSA keys last; `sequence` only rises (TDB 4.1.1),
    `refresh_hint` says how often to look for a newer one. An empty bundle is a valid state and authenticates nothing
    (TDB 4.1.3).
    """

    trust_domain: TrustDomain
    x509_authorities: tuple[x509.Certificate, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    sequence: int | None = None
    refresh_hint: timedelta | None = None

    def __post_init__(self) -> None:
        for certificate in self.x509_authorities:
            _check_authority(certificate)
        ordered = tuple(sorted(dict.fromkeys(self.x509_authorities), key=is_ml_dsa))
        if ordered != self.x509_authorities:
            object.__setattr__(self, "x509_authorities", ordered)

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain, data: bytes, left_out: LeftOut | None = None) -> Self:
        """A bundle of the CA certificates in a PEM text. Raises InvalidBundle, also for an empty one.

        A block that is no certificate is refused: in a file that is handed around it is most likely a key. So is one
        that cannot be an authority, unless `left_out` is told of those.
        """
        if set(_PEM_LABEL.findall(data)) - {b"CERTIFICATE"}:
            raise InvalidBundle("not a PEM trust bundle: it has a block that is not a CERTIFICATE")
        try:
            found = certificates_from_pem(data)
        except ValueError as error:
            raise InvalidBundle(f"not a PEM trust bundle: {error}") from None
        return cls(trust_domain, found if left_out is None else tuple(_usable(found, left_out)))

    @classmethod
    def from_der(cls, trust_domain: TrustDomain, data: bytes) -> Self:
        """A bundle of concatenated DER CA certificates. Raises InvalidBundle, also for an empty one."""
        try:
            return cls(trust_domain, certificates_from_der(data))
        except ValueError as error:
            raise InvalidBundle(f"not a DER trust bundle: {error}") from None

    @classmethod
    def from_jwks(
        cls, trust_domain: TrustDomain, data: bytes, left_out: LeftOut = lambda why: None, most: int | None = None
    ) -> Self:
        """A bundle from a SPIFFE JWKS: entries of unknown use or type are ignored, the document itself is strict.

        `left_out` is told of entries that should be authorities and cannot be. `most`: entries that it may have, of
        whatever kind. Raises InvalidBundle.
        """
        if len(data) > MAX_JWKS_BYTES:
            raise InvalidBundle(f"trust bundle is longer than {MAX_JWKS_BYTES} bytes")
        try:
            document = strictly(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidBundle(f"not a JWKS document: {error}") from None
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise InvalidBundle("not a JWKS document: `keys` must be an array")
        beside = document.get(_BESIDE)
        others = beside if isinstance(beside, list) else []
        if most is not None and len(document["keys"]) + len(others) > most:
            raise InvalidBundle(f"trust bundle has more than {most} entries")
        authorities: list[x509.Certificate] = []
        jwt: list[JwtAuthority] = []
        for entry in document["keys"]:
            if not isinstance(entry, dict) or not _is_known_key_type(entry):
                continue
            if entry.get("use") == "x509-svid":
                authorities.extend(_x509_entry(entry, left_out))
            elif entry.get("use") == "jwt-svid":
                jwt.extend(_jwt_entry(entry, left_out))
        for each in others:
            authorities.extend(_x509_entry({"x5c": [each]}, left_out))
        hint = _integer(document, "spiffe_refresh_hint")
        return cls(
            trust_domain,
            tuple(authorities),
            tuple(jwt),
            sequence=_integer(document, "spiffe_sequence"),
            refresh_hint=timedelta(seconds=hint) if hint is not None and 0 <= hint < 2**31 else None,
        )

    def digest(self) -> bytes:
        """SHA-256 that names what this bundle trusts, whatever order, sequence and format it came in.

        Over parts, each behind its length in eight bytes: the trust domain's name; then, each kind sorted, `x` with the
        DER of an X.509 authority, and `j` with key id, NUL and SubjectPublicKeyInfo of a JWT authority.
        """
        x509_parts = sorted(b"x" + _der(each) for each in self.x509_authorities)
        jwt_parts = sorted(
            b"j" + each.key_id.encode() + b"\0" + _spki(each.public_key) for each in self.jwt_authorities
        )
        found = hashlib.sha256()
        for part in (self.trust_domain.name.encode(), *x509_parts, *jwt_parts):
            found.update(len(part).to_bytes(8, "big") + part)
        return found.digest()

    @property
    def public_keys(self) -> frozenset[bytes]:
        """Of all authorities of both kinds, as DER SubjectPublicKeyInfo."""
        certified = (each.public_key() for each in self.x509_authorities)
        return frozenset(
            each.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            for each in (*certified, *(each.public_key for each in self.jwt_authorities))
        )

    # What each writes is kept: all volumes of a node, and their streams, have one bundle.

    def to_pem(self) -> bytes:
        """The X.509 authorities as concatenated PEM."""
        return self._pem

    @cached_property
    def _pem(self) -> bytes:
        return to_pem(self.x509_authorities)

    def to_der(self) -> bytes:
        """The X.509 authorities as concatenated DER."""
        return self._as_der

    @cached_property
    def _as_der(self) -> bytes:
        return to_der(self.x509_authorities)

    def to_jwks(self) -> bytes:
        """The SPIFFE JWKS: X509-SVID.md 6.1 and JWT-SVID.md 6.1 say which members an entry has.

        X.509 authorities with ML-DSA keys stand in a member of their own, which `from_jwks` reads.
        """
        return self._jwks

    @cached_property
    def _jwks(self) -> bytes:
        keys: list[dict[str, Any]] = [
            {"use": "x509-svid", **_x509_key_members(certificate), "x5c": [_b64(_der(certificate))]}
            for certificate in self.x509_authorities
            if not is_ml_dsa(certificate)
        ]
        keys += [{"use": "jwt-svid", "kid": key.key_id, **jwk_members(key.public_key)} for key in self.jwt_authorities]
        document: dict[str, Any] = {"keys": keys}
        beside = [_b64(_der(certificate)) for certificate in self.x509_authorities if is_ml_dsa(certificate)]
        if beside:
            document[_BESIDE] = beside
        if self.sequence is not None:
            document["spiffe_sequence"] = self.sequence
        if self.refresh_hint is not None:
            document["spiffe_refresh_hint"] = int(self.refresh_hint.total_seconds())
        return json.dumps(document, indent=1).encode() + b"\n"

    def to_jwt_jwks(self) -> bytes:
        """The JWT authorities alone, as a JWK Set for any JWT library (Workload API 6.2.2).

        Without `use`, which some libraries filter on, and with one key for each `kid`, of which some read only one.
        """
        keys = {key.key_id: {"kid": key.key_id, **jwk_members(key.public_key)} for key in self.jwt_authorities}
        return json.dumps({"keys": list(keys.values())}).encode()


def _check_authority(certificate: x509.Certificate) -> None:
    try:
        check_readable(certificate)
        constraints = extension(certificate, x509.BasicConstraints)
    except ValueError as error:
        raise InvalidBundle(f"X.509 authority cannot be parsed: {error}") from None
    if constraints is None or not constraints.value.ca:
        raise InvalidBundle("X.509 authority is not a CA certificate (basicConstraints CA is not true)")
    # One whose key nobody can read could be neither verified with nor written as JWKS later.
    _x509_key_members(certificate)


def _is_known_key_type(entry: dict[str, Any]) -> bool:
    kind = entry.get("kty")  # unknown ones make the whole entry void, whatever else is in it (TDB 4.2.1)
    return isinstance(kind, str) and kind in _KEY_TYPES


def _usable(certificates: Iterable[x509.Certificate], left_out: LeftOut) -> Iterator[x509.Certificate]:
    for certificate in certificates:
        try:
            _check_authority(certificate)
        except InvalidBundle as error:
            left_out(f"{error}: SHA-256 {hashlib.sha256(_der(certificate)).hexdigest()}")
        else:
            yield certificate


def _x509_entry(entry: dict[str, Any], left_out: LeftOut) -> Iterator[x509.Certificate]:
    x5c = entry.get("x5c")
    if not isinstance(x5c, list) or not x5c or not isinstance(x5c[0], str):
        left_out("X.509 authority without a certificate (x5c)")
        return
    try:
        certificate = certificate_from_der(base64.b64decode(x5c[0], validate=True))
    except (ValueError, binascii.Error):
        left_out("X.509 authority cannot be parsed")
        return
    for authority in _usable([certificate], left_out):
        if _contradicts(entry, authority):
            digest = hashlib.sha256(_der(authority)).hexdigest()
            left_out(f"X.509 authority's entry shows another key than its certificate has: SHA-256 {digest}")
        else:
            yield authority


def _contradicts(entry: dict[str, Any], certificate: x509.Certificate) -> bool:
    """Whether members that an entry has are not those of its certificate's key (RFC 7517 4.7): who goes by one trusts
    another key than who goes by the other."""
    known = _x509_key_members(certificate)
    try:
        # A number may be written with zeros before it.
        return any(
            _number(entry[name]) != _number(value) if name in _NUMBERS else entry[name] != value
            for name, value in known.items()
            if name in entry
        )
    except (ValueError, binascii.Error):
        return True


def _jwt_entry(entry: dict[str, Any], left_out: LeftOut) -> list[JwtAuthority]:
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or not key_id:
        left_out("JWT key without a key id (kid)")
        return []
    # JSON can write half a character, which no UTF-8 has: it could be neither hashed nor published.
    if len(key_id) > _MAX_KEY_ID or any("\ud800" <= each <= "\udfff" for each in key_id):
        left_out(f"JWT key whose key id is longer than {_MAX_KEY_ID} characters, or no text: kid {key_id[:_SHOWN]!a}")
        return []
    found = _jwt_key(key_id, entry)
    if not found:
        left_out(f"JWT key is of no kind that signs JWT-SVIDs: kid {key_id[:_SHOWN]!a}")
    return found


def _jwt_key(key_id: str, entry: dict[str, Any]) -> list[JwtAuthority]:
    try:
        if entry["kty"] == "RSA":
            numbers = rsa.RSAPublicNumbers(_number(entry["e"]), _number(entry["n"]))
            if numbers.n.bit_length() not in _RSA_BITS:
                return []
            key: JwtKey = numbers.public_key()
        elif entry["kty"] == "EC" and entry["crv"] in _CURVES_BY_NAME:
            curve = _CURVES_BY_NAME[entry["crv"]]
            key = ec.EllipticCurvePublicNumbers(_number(entry["x"]), _number(entry["y"]), curve).public_key()
        else:
            return []
    except (KeyError, TypeError, ValueError, UnsupportedAlgorithm, binascii.Error):
        return []
    return [JwtAuthority(key_id, key)]


def _x509_key_members(certificate: x509.Certificate) -> dict[str, str]:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidBundle(f"X.509 authority: {error}") from None
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return jwk_members(key)
    try:
        algorithm = algorithm_of(key)
    except InvalidKey as error:
        raise InvalidBundle(f"X.509 authority: {error}") from None
    raw = _raw(key)
    if algorithm is KeyAlgorithm.ED25519:
        return {"kty": "OKP", "crv": "Ed25519", "x": _b64url(raw)}
    return {"kty": "AKP", "alg": algorithm.value.upper(), "pub": _b64url(raw)}


def jwk_members(key: JwtKey) -> dict[str, str]:
    """The members that RFC 7518 section 6 gives a public key, `kty` among them. Raises InvalidBundle."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _b64url(_bytes(numbers.n)), "e": _b64url(_bytes(numbers.e))}
    curve = _JWT_CURVES.get(key.curve.name)
    if curve is None:
        raise InvalidBundle(f"curve {key.curve.name} has no place in a trust bundle")
    size = (key.key_size + 7) // 8
    point = key.public_numbers()
    return {
        "kty": "EC",
        "crv": curve,
        "x": _b64url(point.x.to_bytes(size, "big")),
        "y": _b64url(point.y.to_bytes(size, "big")),
    }


def _raw(key: Any) -> bytes:
    raw: bytes = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return raw


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _spki(key: JwtKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _number(text: object) -> int:
    if not isinstance(text, str):
        raise ValueError("not a base64url number")
    return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True), "big")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _integer(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
