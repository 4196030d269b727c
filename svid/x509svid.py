"""X.509-SVIDs and the one validator for everything minted, read or received (X509-SVID.md sections 2 to 5)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from svid.bundle import TrustBundle
from svid.certificates import (
    certificates_from_der,
    certificates_from_pem,
    check_readable,
    extension,
    extensions,
    serial_of,
    to_der,
    to_pem,
)
from svid.errors import InvalidKey, InvalidSpiffeId, InvalidSvid
from svid.keys import PrivateKey, key_from_der, key_from_pem, key_to_der, key_to_pem, public_bytes, public_key_of
from svid.spiffeid import SpiffeId

_MAX_CHAIN = 10
# Name constraints are missing on purpose, see check_extensions.
_KNOWN_CRITICAL = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


@dataclass(frozen=True)
class X509Svid:
    """An X.509-SVID with its private key: `chain` is leaf first and holds no root; `hint` may be empty."""

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    private_key: PrivateKey = field(repr=False)
    hint: str = ""

    @classmethod
    def from_pem(cls, chain: bytes, key: bytes, hint: str = "", *, own: bool = False) -> Self:
        """From a PEM chain (leaf first) and a PEM PKCS#8 key; `own` as of keys. Raises InvalidSvid, InvalidKey."""
        try:
            certificates = certificates_from_pem(chain)
        except ValueError as error:
            raise InvalidSvid(f"not a PEM chain: {error}") from None
        return cls(spiffe_id_of(certificates[0]), certificates, key_from_pem(key, own=own), hint)

    @classmethod
    def from_der(cls, chain: bytes, key: bytes, hint: str = "", *, own: bool = False) -> Self:
        """From concatenated DER (leaf first) and a DER PKCS#8 key; `own` as of keys. Raises InvalidSvid, InvalidKey."""
        try:
            certificates = certificates_from_der(chain)
        except ValueError as error:
            raise InvalidSvid(f"not a DER chain: {error}") from None
        return cls(spiffe_id_of(certificates[0]), certificates, key_from_der(key, own=own), hint)

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def serial(self) -> str:
        """The leaf's serial number; see `svid.certificates.serial_of`."""
        return serial_of(self.leaf)

    @cached_property
    def authority_id(self) -> str:
        """The authority key identifier in lower-case hex; empty when the leaf has none."""
        found = extension(self.leaf, x509.AuthorityKeyIdentifier)
        return (found.value.key_identifier or b"").hex() if found else ""

    @property
    def not_before(self) -> datetime:
        return self.leaf.not_valid_before_utc

    @cached_property
    def not_after(self) -> datetime:
        # Kept, as gauges ask for it for ever: the library makes another one each time.
        return self.leaf.not_valid_after_utc

    def check(self, bundle: TrustBundle, now: datetime) -> None:
        """Refuse what no workload may be handed. Raises InvalidSvid."""
        found = check_x509_svid(self.chain, bundle, now)
        if found != self.spiffe_id:
            raise InvalidSvid(f"certificate is for {found}, not for {self.spiffe_id}")
        try:
            key = public_key_of(self.leaf)
        except InvalidKey as error:
            raise InvalidSvid(str(error)) from None
        if public_bytes(self.private_key.public_key()) != public_bytes(key):
            raise InvalidSvid("private key does not match the leaf certificate")

    def lean(self) -> Self:
        """The same without what the library keeps of certificates that were looked at: 5 KB, in all that they live."""
        found = replace(self, chain=certificates_from_der(self.chain_der()))
        # What is asked for as long as it lives, and would have them looked at again.
        vars(found).update(authority_id=self.authority_id, not_after=self.not_after)
        return found

    def chain_der(self) -> bytes:
        return to_der(self.chain)

    def chain_pem(self) -> bytes:
        return to_pem(self.chain)

    def key_der(self) -> bytes:
        return key_to_der(self.private_key)

    def key_pem(self) -> bytes:
        return key_to_pem(self.private_key)


def spiffe_id_of(certificate: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID of a leaf: its only URI SAN, with a path (X 2, 3.1, 5.2). Raises InvalidSvid."""
    try:
        names = extension(certificate, x509.SubjectAlternativeName)
    except ValueError as error:
        raise InvalidSvid(f"certificate extensions cannot be parsed: {error}") from None
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        raise InvalidSvid(f"certificate has {len(uris)} URI SANs; an X.509-SVID has exactly one")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise InvalidSvid(f"URI SAN is not a SPIFFE ID: {error}") from None
    if not spiffe_id.path:
        raise InvalidSvid("leaf SPIFFE ID has no path")
    return spiffe_id


def leaf_spiffe_id(leaf: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID of what is a leaf by X509-SVID.md sections 2 to 5; who signed it is not looked at.

    Raises InvalidSvid.
    """
    spiffe_id = spiffe_id_of(leaf)
    try:
        check_readable(leaf)
        _check_leaf(leaf)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidSvid(f"certificate cannot be parsed: {error}") from None
    return spiffe_id


def check_x509_svid(chain: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime) -> SpiffeId:
    """Validate `chain` (leaf first) against the bundle of its own trust domain at `now` (aware).

    RFC 5280 path validation as far as SVIDs use it: names, signatures, validity, CA and key usage bits, path
    length; plus X509-SVID.md section 5. Raises InvalidSvid.
    """
    if not chain:
        raise InvalidSvid("chain is empty")
    leaf = chain[0]
    spiffe_id = spiffe_id_of(leaf)
    if spiffe_id.trust_domain != bundle.trust_domain:
        raise InvalidSvid(f"{spiffe_id} is not of trust domain {bundle.trust_domain}")
    try:
        _check_leaf(leaf)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidSvid(f"certificate cannot be parsed: {error}") from None
    check_path(chain, bundle, now)
    return spiffe_id


def check_path(chain: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime) -> None:
    """Validate it as far as SVIDs use it (RFC 5280), whoever the leaf is: of issuers not what they are for. Raises
    InvalidSvid."""
    if len(chain) > _MAX_CHAIN:
        raise InvalidSvid(f"chain is longer than {_MAX_CHAIN} certificates")
    try:
        _check_path(chain, bundle, now)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError: how the library answers a distinguished name of an impossible type.
        raise InvalidSvid(f"certificate cannot be parsed: {error}") from None


def _check_leaf(leaf: x509.Certificate) -> None:
    constraints = extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        raise InvalidSvid("leaf is a CA certificate")
    usage = extension(leaf, x509.KeyUsage)
    if usage is None or not usage.critical:
        raise InvalidSvid("leaf has no critical key usage extension")
    if not usage.value.digital_signature:
        raise InvalidSvid("leaf key usage lacks digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise InvalidSvid("leaf key usage has keyCertSign or cRLSign")
    extended = extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(
        extended.value
    ):
        raise InvalidSvid("leaf extended key usage lacks serverAuth or clientAuth")
    names = extension(leaf, x509.SubjectAlternativeName)
    if not list(leaf.subject) and names is not None and not names.critical:
        raise InvalidSvid("leaf has an empty subject but its SAN extension is not critical")


def _check_path(chain: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime) -> None:
    for certificate in chain:
        _check_validity(certificate, now)
        check_extensions(certificate)
    refusal: InvalidSvid | None = None
    below = 0
    for depth, certificate in enumerate(chain):
        for anchor in bundle.x509_authorities:
            if not issued_by(certificate, anchor):
                continue
            # A renewed root has the name and key of the old one, so an expired anchor is not the last word.
            try:
                _check_validity(anchor, now)
                check_issuer(anchor, below=below)
            except InvalidSvid as error:
                refusal = refusal or error
            else:
                return
        if depth + 1 == len(chain):
            break
        issuer = chain[depth + 1]
        if not issued_by(certificate, issuer):
            raise refusal or InvalidSvid(f"certificate {depth} of the chain is not signed by the next one")
        check_issuer(issuer, below=below)
        if issuer.issuer != issuer.subject:  # self-issued ones do not count (RFC 5280 4.2.1.9)
            below += 1
    raise refusal or InvalidSvid(f"chain does not lead to an authority of trust domain {bundle.trust_domain}")


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise InvalidSvid(f"certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if now > certificate.not_valid_after_utc:
        raise InvalidSvid(f"certificate expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def check_extensions(certificate: x509.Certificate) -> None:
    """Raise InvalidSvid where it has what this validator would pass over."""
    for found in extensions(certificate):
        # They are not evaluated here (X 4.2 makes them optional), so passing them over would widen what a CA may sign.
        if isinstance(found.value, x509.NameConstraints):
            raise InvalidSvid("certificate has name constraints, which are not supported")
        if found.critical and not isinstance(found.value, _KNOWN_CRITICAL):
            raise InvalidSvid(f"certificate has unknown critical extension {found.oid.dotted_string}")


def check_issuer(issuer: x509.Certificate, *, below: int) -> None:
    """Raise InvalidSvid unless it may sign the certificate under it.

    `below`: how many CA certificates, self-issued ones aside, stand between the issuer and the leaf.
    """
    constraints = extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        raise InvalidSvid("signing certificate is not a CA certificate")
    if constraints.value.path_length is not None and below > constraints.value.path_length:
        raise InvalidSvid("chain is longer than the path length of a signing certificate")
    usage = extension(issuer, x509.KeyUsage)
    if usage is None or not usage.value.key_cert_sign:
        raise InvalidSvid("signing certificate lacks keyCertSign")


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` has the name and the key that `certificate` is signed with; nothing else is looked at."""
    try:
        if certificate.issuer != issuer.subject:
            return False
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True
