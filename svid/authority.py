"""The authority that issues X.509-SVIDs: what is signed, with which profile, for how long (X509-SVID.md 2 to 4)."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Self, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from svid.bundle import TrustBundle
from svid.certificates import certificate_from_der, check_readable, extension, to_der
from svid.errors import InvalidKey, InvalidSvid, IssuanceRefused
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey, algorithm_of, public_bytes, public_key_of, signature_hash
from svid.leaves import Form, Leaf
from svid.profile import END_ENTITY, EXTENDED_USAGE, USAGE, USAGE_OF_RSA, key_usage, stated
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid, issued_by

# How far back starts are dated: whoever looks at a certificate at once may have a clock that is behind. Authorities by
# more than all that they sign, which does not begin before them.
BACKDATE, MAX_BACKDATE = timedelta(minutes=2), timedelta(minutes=10)
# RFC 1123 2.1: the last label is never a number, or the name could be taken for an IPv4 address.
_DNS = re.compile(
    r"(?=.{1,253}$)(?!(.*\.)?[0-9]+$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*",
    re.ASCII,
)
# X.520's ub-common-name. No character of it is written another way in RFC 4514, or in OpenSSL's /CN=….
MAX_COMMON_NAME = 64
_COMMON_NAME = re.compile(rf"[a-zA-Z0-9._@-]{{1,{MAX_COMMON_NAME}}}", re.ASCII)
_EMPTY = x509.Name([])
# For so long what was read of one leaf is good for the next ones of its kind.
PROVEN_FOR = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class _Proof:
    """A leaf was verified at that time as whoever gets it will. `form`: how the next are written here, if so."""

    at: datetime
    form: Form | None


@dataclass(frozen=True, slots=True)
class Issued:
    """A chain, leaf first without the root. `der`: the same as `to_der` has it, which would write each anew."""

    chain: tuple[x509.Certificate, ...]
    der: bytes


@dataclass(frozen=True)
class PublicAuthority:
    """What is left of an authority that signs no more: enough to trust what it signed, and no private key.

    Raises IssuanceRefused at construction when its parts do not belong together.
    """

    trust_domain: TrustDomain
    chain: tuple[x509.Certificate, ...]
    bundle: TrustBundle

    def __post_init__(self) -> None:
        _check_chain(self.trust_domain, self.chain, self.bundle)

    @cached_property
    def not_after(self) -> datetime:
        """When the first certificate above a leaf ends, the root in the bundle included."""
        return _chain_end(self.chain, self.bundle)


@dataclass(frozen=True)
class X509Authority:
    """Signs X.509-SVIDs of one trust domain.

    `chain` starts with the certificate of `private_key` and goes up, with or without the root; `bundle` is what
    verifiers hold. Raises IssuanceRefused at construction when these do not belong together.
    """

    trust_domain: TrustDomain
    chain: tuple[x509.Certificate, ...]
    private_key: PrivateKey = field(repr=False)
    bundle: TrustBundle
    subject: x509.Name = _EMPTY

    def __post_init__(self) -> None:
        _check_chain(self.trust_domain, self.chain, self.bundle)
        if public_bytes(public_key_of(self.chain[0])) != public_bytes(self.private_key.public_key()):
            raise IssuanceRefused("authority key does not match its certificate")

    @classmethod
    def create(cls, trust_domain: TrustDomain, *, algorithm: KeyAlgorithm, lifetime: timedelta, now: datetime) -> Self:
        """A new self-signed authority (its certificate carries the trust domain's SPIFFE ID, X 3.2).

        Raises IssuanceRefused when `lifetime` is not positive or ends after the year 9999.
        """
        return cls.self_signed(trust_domain, algorithm.generate(), lifetime=lifetime, now=now)

    @classmethod
    def self_signed(cls, trust_domain: TrustDomain, key: PrivateKey, *, lifetime: timedelta, now: datetime) -> Self:
        """As `create`, of a given key."""
        name, serial = _authority_name(trust_domain)
        builder = _ca_certificate(trust_domain, name, serial, key.public_key(), now - MAX_BACKDATE, _end(now, lifetime))
        certificate = builder.sign(key, signature_hash(key))
        return cls(trust_domain, (certificate,), key, TrustBundle(trust_domain, (certificate,), sequence=1))

    def issue_intermediate(self, key: PrivateKey, *, lifetime: timedelta, now: datetime) -> "X509Authority":
        """An authority below this one, of the same trust domain and roots; it ends with this one at the latest.

        Raises IssuanceRefused, also where the path length of this one's chain leaves no room.
        """
        for above, certificate in enumerate(self.chain):
            constraints = extension(certificate, x509.BasicConstraints)
            if constraints and constraints.value.path_length is not None and constraints.value.path_length <= above:
                raise IssuanceRefused(
                    "the path length of the authority above leaves no room for an intermediate; it needs 1 at least"
                )
        if self.not_after <= now:
            raise IssuanceRefused(f"the authority above expired at {self.not_after:%Y-%m-%dT%H:%M:%SZ}")
        name, serial = _authority_name(self.trust_domain)
        not_before = max(now - MAX_BACKDATE, self.chain[0].not_valid_before_utc)
        not_after = min(_end(now, lifetime), self.not_after)
        above_name = self.chain[0].subject
        builder = _ca_certificate(
            self.trust_domain, name, serial, key.public_key(), not_before, not_after, issuer=above_name
        )
        certificate = builder.add_extension(self._authority_key_identifier, critical=False).sign(
            self.private_key, signature_hash(self.private_key)
        )
        return X509Authority(self.trust_domain, (certificate, *self._intermediates), key, self.bundle)

    @cached_property
    def not_after(self) -> datetime:
        """When the first certificate above a leaf ends, the root in the bundle included."""
        return _chain_end(self.chain, self.bundle)

    @cached_property
    def above_ends(self) -> datetime | None:
        """When the first certificate above this authority's own ends; None where it is a root itself."""
        if issued_by(self.chain[0], self.chain[0]):
            return None
        ends = [certificate.not_valid_after_utc for certificate in self.chain[1:]]
        anchors = [anchor for anchor in self.bundle.x509_authorities if issued_by(self.chain[-1], anchor)]
        ends += [max(anchor.not_valid_after_utc for anchor in anchors)] if anchors else []
        return min(ends, default=None)

    @cached_property
    def public(self) -> PublicAuthority:
        """This authority without its private key."""
        return PublicAuthority(self.trust_domain, self.chain, self.bundle)

    @cached_property
    def _intermediates(self) -> tuple[x509.Certificate, ...]:
        """What goes along with a leaf: the chain up to, but without, what verifiers hold already."""
        found: list[x509.Certificate] = []
        for certificate in self.chain:
            if certificate in self.bundle.x509_authorities or issued_by(certificate, certificate):
                break
            found.append(certificate)
        return tuple(found)

    @cached_property
    def _intermediates_der(self) -> bytes:
        return to_der(self._intermediates)

    @cached_property
    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        found = extension(self.chain[0], x509.SubjectKeyIdentifier)
        if found is not None:
            return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private_key.public_key())

    @cached_property
    def _ecdsa(self) -> ec.ECDSA:
        """How its key signs, where it is one for that."""
        return ec.ECDSA(cast(hashes.HashAlgorithm, signature_hash(self.private_key)))

    @cached_property
    def _proofs(self) -> "dict[KeyAlgorithm, _Proof]":
        """The newest for each kind of key."""
        return {}

    def issue(
        self,
        public_key: PublicKey,
        spiffe_id: SpiffeId,
        *,
        ttl: timedelta,
        now: datetime,
        dns_names: Sequence[str] = (),
        common_name: str = "",
        backdate: timedelta = BACKDATE,
        verified_later: bool = False,
    ) -> tuple[x509.Certificate, ...]:
        """As `issued`, for who wants the certificates alone."""
        return self.issued(
            public_key,
            spiffe_id,
            ttl=ttl,
            now=now,
            dns_names=dns_names,
            common_name=common_name,
            backdate=backdate,
            verified_later=verified_later,
        ).chain

    def issued(
        self,
        public_key: PublicKey,
        spiffe_id: SpiffeId,
        *,
        ttl: timedelta,
        now: datetime,
        dns_names: Sequence[str] = (),
        common_name: str = "",
        backdate: timedelta = BACKDATE,
        verified_later: bool = False,
    ) -> Issued:
        """Sign a leaf for `public_key` and return its chain, leaf first, without the root.

        Its subject is `common_name`, else the authority's own `subject`, which is empty as a rule. It begins `backdate`
        ago, and never outlives the chain. `verified_later`: whoever gets it verifies it as this would before anybody
        else has it, so that not each is read again here, but the first of each second, and each with a `common_name`.
        Raises IssuanceRefused; InvalidKey for an unlisted key.
        """
        algorithm = algorithm_of(public_key)
        if spiffe_id.trust_domain != self.trust_domain:
            raise IssuanceRefused(f"{spiffe_id} is not of trust domain {self.trust_domain}")
        if not spiffe_id.path:
            raise IssuanceRefused("an SVID needs a SPIFFE ID with a path")
        if ttl <= timedelta(0):
            raise IssuanceRefused("lifetime must be positive")
        for name in dns_names:
            if not is_dns_name(name):
                raise IssuanceRefused(f"{name[:80]!r} is not a DNS name")
        if common_name and not is_common_name(common_name):
            raise IssuanceRefused(f"{common_name[:80]!r} is not a common name of {MAX_COMMON_NAME} plain characters")
        if self.not_after <= now:
            raise IssuanceRefused(f"authority expired at {self.not_after:%Y-%m-%dT%H:%M:%SZ}; it needs a new one")
        asked = Leaf(
            serial=x509.random_serial_number(),
            not_before=max(now - backdate, self.chain[0].not_valid_before_utc),
            not_after=now + min(ttl, self.not_after - now),
            key=public_bytes(public_key),
            uri=str(spiffe_id),
            dns_names=tuple(dict.fromkeys(dns_names)),
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]) if common_name else self.subject
        # One with a name of its own has no part in the others' proofs: what was read of another does not tell of its
        # subject, and their form would give its subject to them.
        proofs = {} if common_name else self._proofs
        proof = proofs.get(algorithm)
        # The others differ, for keys of one kind, in serial, times, key and names, which are checked above, and are
        # otherwise written by the same lines; what stands above them is this authority's. So what was read of one tells
        # of the next. `not_after` is looked at above. What signs is the library with a key that was compared with this
        # authority's certificate, or a key store, of which each signature is verified when it comes; should one be
        # wrong all the same, it goes no further than to whoever verifies it later, and for no longer than this.
        if verified_later and proof is not None and proof.at <= now < proof.at + PROVEN_FOR:
            # What cannot even be read as a certificate: the library writes it, as if nothing was proven.
            with suppress(ValueError):
                return self._signed(proof.form, public_key, asked, subject)
        # Whatever comes of it: one that is refused leaves nothing proven.
        proofs.pop(algorithm, None)
        found = self._signed(None, public_key, asked, subject)
        try:
            check_x509_svid(found.chain, self.bundle, now)
        except InvalidSvid as error:
            raise IssuanceRefused(f"the authority made an invalid SVID: {error}") from None
        # Others take longer to sign than to write.
        form = Form.of(found.chain[0], asked) if isinstance(self.private_key, ec.EllipticCurvePrivateKey) else None
        proofs[algorithm] = _Proof(now, form)
        return found

    def _signed(self, form: Form | None, public_key: PublicKey, asked: Leaf, subject: x509.Name) -> Issued:
        """By `form`, which has the authority's own subject, or by the library."""
        key = self.private_key
        if form is not None and isinstance(key, ec.EllipticCurvePrivateKey):
            to_be_signed = form.to_be_signed(asked)
            der = form.certificate(to_be_signed, key.sign(to_be_signed, self._ecdsa))
            return Issued((certificate_from_der(der), *self._intermediates), der + self._intermediates_der)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(asked.uri)]
        names += [x509.DNSName(name) for name in asked.dns_names]
        leaf = x509.CertificateBuilder(
            issuer_name=self.chain[0].subject,
            subject_name=subject,
            public_key=public_key,
            serial_number=asked.serial,
            not_valid_before=asked.not_before,
            not_valid_after=asked.not_after,
            # At once: each that is added alone copies the builder. That none is twice in it shows when it is read.
            extensions=[
                END_ENTITY,
                USAGE_OF_RSA if isinstance(public_key, rsa.RSAPublicKey) else USAGE,
                EXTENDED_USAGE,
                stated(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False),
                stated(self._authority_key_identifier, critical=False),
                stated(x509.SubjectAlternativeName(names), critical=not list(subject)),
            ],
        ).sign(key, signature_hash(key))
        return Issued((leaf, *self._intermediates), to_der([leaf]) + self._intermediates_der)


def _check_chain(trust_domain: TrustDomain, chain: Sequence[x509.Certificate], bundle: TrustBundle) -> None:
    if not chain:
        raise IssuanceRefused("authority has no certificate")
    try:
        for certificate in chain:
            check_readable(certificate)
        public_key_of(chain[0])
    except ValueError as error:
        raise IssuanceRefused(f"certificate of the chain cannot be parsed: {error}") from None
    except InvalidKey as error:
        raise IssuanceRefused(f"authority key: {error}") from None
    constraints = extension(chain[0], x509.BasicConstraints)
    usage = extension(chain[0], x509.KeyUsage)
    if constraints is None or not constraints.value.ca or usage is None or not usage.value.key_cert_sign:
        raise IssuanceRefused("authority certificate is not a CA certificate with keyCertSign")
    if bundle.trust_domain != trust_domain:
        raise IssuanceRefused(f"authority bundle is of {bundle.trust_domain}, not {trust_domain}")


def _chain_end(chain: Sequence[x509.Certificate], bundle: TrustBundle) -> datetime:
    ends = [certificate.not_valid_after_utc for certificate in chain]
    anchors = [anchor for anchor in bundle.x509_authorities if issued_by(chain[-1], anchor)]
    if anchors:  # of a root and its renewal the later one counts: either verifies the chain
        ends.append(max(anchor.not_valid_after_utc for anchor in anchors))
    return min(ends)


def is_dns_name(name: str) -> bool:
    """Whether `name` may stand in a certificate: lower case, no wildcard, no trailing dot, no IPv4 look-alike."""
    return _DNS.fullmatch(name) is not None


def is_common_name(text: str) -> bool:
    """Whether `text` may be a leaf's common name: as long as X.520 has it, and the same in every notation of a name."""
    return _COMMON_NAME.fullmatch(text) is not None


def _end(now: datetime, lifetime: timedelta) -> datetime:
    if lifetime <= timedelta(0):
        raise IssuanceRefused("lifetime must be positive")
    try:
        return now + lifetime
    except OverflowError:
        raise IssuanceRefused("lifetime is too long for a certificate") from None


def authority_request(trust_domain: TrustDomain, key: PrivateKey) -> x509.CertificateSigningRequest:
    """What a CA elsewhere is asked for: the name and the SPIFFE ID that an authority has here. The rest is the CA's."""
    name, _ = _authority_name(trust_domain)
    own = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))])
    builder = x509.CertificateSigningRequestBuilder(name).add_extension(own, critical=False)
    return builder.sign(key, signature_hash(key))


def _authority_name(trust_domain: TrustDomain) -> tuple[x509.Name, int]:
    """Two authorities of one trust domain must differ in name, or verifiers confuse their signatures."""
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "podsvid"),
            x509.NameAttribute(NameOID.COMMON_NAME, trust_domain.name[:64]),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:x}"),
        ]
    )
    return name, serial


def _ca_certificate(
    trust_domain: TrustDomain,
    name: x509.Name,
    serial: int,
    public_key: PublicKey,
    not_before: datetime,
    not_after: datetime,
    *,
    issuer: x509.Name | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(
            issuer_name=issuer or name,
            subject_name=name,
            public_key=public_key,
            serial_number=serial,
            not_valid_before=not_before,
            not_valid_after=not_after,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))]), critical=False
        )
    )
