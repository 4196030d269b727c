"""Which roots of a CA above may be trusted, wherever they come from: how many, of which keys, for which verifiers."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.authority.anchors import UpstreamRoot
from signer.authority.revoked import is_revoked, roots_left
from signer.authority.slots import SIGNING, X509Slot
from signer.authority.state import AuthorityState
from signer.errors import CertificateRefused, RootsRefused
from svid.acceptance import check_root
from svid.authority import PublicAuthority, X509Authority
from svid.bundle import TrustBundle
from svid.certificates import check_readable, extension
from svid.errors import SvidError
from svid.keys import public_key_of

# Nobody trusts that many CAs on purpose; every pod gets all of them, and the authorities' Secret has to hold them.
MAX_ROOTS, MAX_BYTES = 64, 128 * 1024
_MAX_TEXT = 500


def check_number(certificates: Sequence[x509.Certificate]) -> None:
    """Raise RootsRefused where they are more than are trusted at once."""
    size = sum(len(each.public_bytes(Encoding.DER)) for each in certificates)
    if len(certificates) > MAX_ROOTS or size > MAX_BYTES:
        raise RootsRefused(
            f"{len(certificates)} certificates of {size} bytes, with those that are to leave, are more than the "
            f"{MAX_ROOTS} of {MAX_BYTES} that are trusted at once"
        )


def sorted_out(
    state: AuthorityState,
    certificates: Iterable[x509.Certificate],
    trusted: Collection[x509.Certificate],
    now: datetime,
) -> tuple[list[x509.Certificate], list[str]]:
    """Those that can be trusted now, and why others cannot; one that is not valid yet, or no more, is not missed.

    `trusted`: those that are already, which no verifier of today refuses.
    """
    named: list[x509.Certificate] = []
    odd: list[str] = []
    for each in dict.fromkeys(certificates):
        try:
            check_readable(each)
            if is_stolen(state, each):
                raise ValueError("its key was declared stolen")
            if is_revoked(each, state.revoked_keys):
                raise ValueError(
                    "it was revoked; take it out of the CA above (where it is not stolen: podsvid authority "
                    "trust-upstream)"
                )
            if each not in trusted:
                _check_root(state, each)
        except (SvidError, ValueError) as error:
            odd.append(f"{_subject(each)} is left out: {str(error)[:_MAX_TEXT]}")
        else:
            if each.not_valid_before_utc <= now <= each.not_valid_after_utc:
                named.append(each)
    return named, odd


def is_stolen(state: AuthorityState, certificate: x509.Certificate) -> bool:
    """Whether it is that of an authority that was declared stolen; by its key, as its extension is its maker's."""
    named = extension(certificate, x509.SubjectKeyIdentifier)
    own = x509.SubjectKeyIdentifier.from_public_key(public_key_of(certificate))
    ids = {own.digest.hex(), named.value.digest.hex() if named is not None else ""}
    return not ids.isdisjoint(state.abandoned_ids("x509"))


def parted(state: AuthorityState, before: AuthorityState | None, now: datetime) -> AuthorityState:
    """The same trust, where no authority that signs keeps a root that it does not lead to.

    It would be trusted for as long as the authority, however soon the CA above names it no more. What would not be
    taken of what the CA above names (`before` has what was) is not trusted with an authority either. Raises
    CertificateRefused where they become too many, or a new one leads to no root but revoked ones.
    """
    trusted = frozenset(before.bundle.x509_authorities) if before is not None else frozenset()
    known = {slot.id for slot in before.x509} if before is not None else set()
    roots = {each.certificate: each for each in state.roots}
    slots = []
    for slot in state.x509:
        if slot.id not in known:
            check_not_revoked(slot.authority, state.revoked_keys)
        own, others = _own(slot, state.revoked_keys)
        for certificate in sorted_out(state, others, trusted, now)[0]:
            roots.setdefault(certificate, UpstreamRoot(certificate, now))
        slots.append(slot if not others else with_roots(slot, own))
    if len(roots) > len(state.roots):
        try:
            check_number(list(roots))
        except RootsRefused as error:
            raise CertificateRefused(f"the new authority cannot be used: {error}") from None
    return replace(state, x509=tuple(slots), roots=tuple(roots.values()))


def check_not_revoked(authority: X509Authority | PublicAuthority, revoked: Collection[str]) -> None:
    """Raise CertificateRefused where all that it leads to was declared stolen."""
    if not roots_left(authority, authority.bundle.x509_authorities, revoked):
        raise CertificateRefused(
            "the new authority leads to no root but one that was revoked (podsvid authority revoke-upstream): have the "
            "CA above certify below another root; then podsvid authority prepare asks it at once"
        )


def with_roots(slot: X509Slot, roots: tuple[x509.Certificate, ...]) -> X509Slot:
    """The same, with these as its own."""
    authority: X509Authority | PublicAuthority = slot.authority
    return replace(slot, authority=replace(authority, bundle=replace(authority.bundle, x509_authorities=roots)))


def _own(slot: X509Slot, revoked: Collection[str]) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
    """Its roots: those that it leads to, and others. Of one that leads to none all are its own."""
    held = slot.authority.bundle.x509_authorities
    own = roots_left(slot.authority, held, revoked) or roots_left(slot.authority, held, ())
    if slot.stage not in SIGNING or not own:
        return held, ()
    return own, tuple(each for each in held if each not in own)


def _check_root(state: AuthorityState, certificate: x509.Certificate) -> None:
    TrustBundle(state.trust_domain, (certificate,))
    usage = extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.value.key_cert_sign:
        raise ValueError("it must not sign certificates, so it is no CA's")
    check_root(certificate, [slot.authority for slot in state.x509])


def _subject(certificate: x509.Certificate) -> str:
    try:
        return f"certificate {certificate.subject.rfc4514_string()[:256] or 'without a subject'}"
    except (ValueError, TypeError):
        return "a certificate"
