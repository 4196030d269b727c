"""Trial before service: an authority signs SVIDs that verify under its own roots, or a sentence says why it cannot.

Name constraints are refused, those of a root too, also where they permit just this trust domain: the validator here
does not evaluate them (X509-SVID.md 4.2 leaves that open), others do, each its own kinds of names. What one peer
verifies and another does not must not come to light with the first pod.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from svid.authority import PublicAuthority, X509Authority
from svid.certificates import extension
from svid.errors import InvalidSvid, IssuanceRefused
from svid.keys import KeyAlgorithm, PublicKey
from svid.spiffeid import SpiffeId
from svid.x509svid import check_extensions, check_issuer, issued_by

# The lifetime of an SVID that is signed to see whether it verifies, and thrown away.
_PROBE = timedelta(minutes=1)
_RSA_EXPONENT = 65537
_SCHEME = "spiffe://"


def accept(
    authority: X509Authority,
    now: datetime,
    *,
    least: timedelta = timedelta(0),
    others: Iterable[X509Authority | PublicAuthority] = (),
) -> None:
    """Raise IssuanceRefused unless it can serve from `now` on, for `least` or longer.

    `others` are the trust domain's authorities beside it, from which verifiers must be able to tell it.
    """
    anchors = _anchors(authority)
    for certificate in dict.fromkeys((*authority.chain, *anchors)):
        try:
            check_extensions(certificate)
            _check_usages(certificate)
            _check_uris(certificate, authority)
        except (InvalidSvid, ValueError) as error:
            raise IssuanceRefused(f"{_named(certificate)}: {error}") from None
    _check_order(authority)
    _check_names(authority, others)
    probe = SpiffeId.parse(f"spiffe://{authority.trust_domain}/probe")
    for algorithm in KeyAlgorithm:
        try:
            key = _throwaway(algorithm)
        except UnsupportedAlgorithm:
            continue  # no pod can have one either
        authority.issue(key, probe, ttl=_PROBE, now=now)
    if authority.not_after < now + least:
        raise IssuanceRefused(
            f"it ends at {authority.not_after:%Y-%m-%dT%H:%M:%SZ}, before {now + least:%Y-%m-%dT%H:%M:%SZ}: the CA "
            "above or its root is about to end, or gives less time than SVIDs need; renew it, or shorten x509_ttl"
        )


def chain_begins(authority: X509Authority) -> datetime:
    """When the last certificate of its chain becomes valid."""
    return max(certificate.not_valid_before_utc for certificate in authority.chain)


def leads_to(authority: X509Authority | PublicAuthority, roots: Iterable[x509.Certificate]) -> bool:
    """Whether one of `roots` signed, or is, a certificate of its chain."""
    return bool(_signers(authority, roots))


def check_root(root: x509.Certificate, authorities: Iterable[X509Authority | PublicAuthority]) -> None:
    """Raise IssuanceRefused where a verifier that takes it for the root of one of these would refuse what it signs.

    A root may be renewed with the name and the key that it has: of several that fit each verifier takes another one.
    """
    for authority in authorities:
        below = 0
        for certificate in authority.chain:
            below += certificate.issuer != certificate.subject
            if not issued_by(certificate, root):
                continue
            try:
                check_extensions(root)
                check_issuer(root, below=below)
                _check_usages(root)
                _check_uris(root, authority)
            except (InvalidSvid, ValueError) as error:
                raise IssuanceRefused(f"{_named(root)}: {error}") from None


def _anchors(authority: X509Authority) -> tuple[x509.Certificate, ...]:
    return _signers(authority, authority.bundle.x509_authorities)


def _signers(
    authority: X509Authority | PublicAuthority, roots: Iterable[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    return tuple(root for root in roots if any(each == root or issued_by(each, root) for each in authority.chain))


def _check_usages(certificate: x509.Certificate) -> None:
    usages = extension(certificate, x509.ExtendedKeyUsage)
    if usages is None or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages.value:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(usages.value):
        raise InvalidSvid(
            "its extended key usage lacks serverAuth or clientAuth, which many verifiers then refuse below"
        )


def _check_uris(certificate: x509.Certificate, authority: X509Authority | PublicAuthority) -> None:
    """A CA above may have any URI but another SPIFFE ID; what issues has none, or the trust domain's."""
    names = extension(certificate, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    strict = certificate == authority.chain[0]
    wrong = [
        uri for uri in uris if uri != str(authority.trust_domain.id) and (strict or uri.lower().startswith(_SCHEME))
    ]
    if wrong:
        raise InvalidSvid(f"it is the CA of {', '.join(wrong)[:256]}, not of {authority.trust_domain.id}")


def _check_order(authority: X509Authority) -> None:
    roots = authority.bundle.x509_authorities
    for below, above in zip(authority.chain, authority.chain[1:], strict=False):
        if any(issued_by(below, root) for root in roots):
            return
        if not issued_by(below, above):
            raise IssuanceRefused(
                f"{_named(below)} is followed by {_named(above)}, which did not sign it: the chain lacks an "
                "intermediate, or is not in order"
            )


def _check_names(authority: X509Authority, others: Iterable[X509Authority | PublicAuthority]) -> None:
    issuing = authority.chain[0]
    if not list(issuing.subject):
        raise IssuanceRefused("the issuing certificate has no subject, so nothing can be traced to it")
    if issuing.subject == issuing.issuer and not issued_by(issuing, issuing):
        raise IssuanceRefused(f"{_named(issuing)} has the name of the CA that signed it: verifiers mistake them")
    for other in others:
        if other.chain[0].subject == issuing.subject and other.chain[0].public_key() != issuing.public_key():
            raise IssuanceRefused(f"{_named(issuing)} has the name of another authority: verifiers mistake them")


def _named(certificate: x509.Certificate) -> str:
    return f"certificate {certificate.subject.rfc4514_string()[:256] or 'without a subject'}"


def _throwaway(algorithm: KeyAlgorithm) -> PublicKey:
    if algorithm.slow:
        # Nothing is ever signed with it: a number of that size will do, and costs no time.
        bits = int(algorithm.value.removeprefix("rsa-"))
        return rsa.RSAPublicNumbers(_RSA_EXPONENT, (1 << (bits - 1)) | 1).public_key()
    return algorithm.generate().public_key()
