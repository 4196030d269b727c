"""A root of the CA above, as the state keeps it apart from the authorities: trusted whether or not one leads to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from signer.authority.slots import SIGNING, X509Slot, instant, read, written
from svid.acceptance import leads_to
from svid.authority import PublicAuthority, X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem, to_pem
from svid.spiffeid import TrustDomain


@dataclass(frozen=True)
class UpstreamRoot:
    """`since`: when the CA was first seen to name it. `ends_at`: when it leaves, as the CA names it no more."""

    certificate: x509.Certificate
    since: datetime
    ends_at: datetime | None = None

    @cached_property
    def id(self) -> str:
        """The certificate's SHA-256, in lower-case hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def root_entry(root: UpstreamRoot) -> dict[str, Any]:
    """Its entry in the stored state."""
    return {
        "certificate": to_pem([root.certificate]).decode(),
        "since": root.since.isoformat(),
        "ends_at": written(root.ends_at),
    }


def read_root(each: Mapping[str, Any], trust_domain: TrustDomain) -> UpstreamRoot:
    """What `root_entry` wrote. Raises SvidError, and what comes of an entry that is none."""
    (certificate,) = certificates_from_pem(each["certificate"].encode())
    # Here, and not when somebody asks for the trust bundle: one that has no place there is damage.
    TrustBundle(trust_domain, (certificate,))
    return UpstreamRoot(certificate, instant(each["since"]), read(each["ends_at"]))


def parted(
    slots: Iterable[X509Slot], known: Iterable[UpstreamRoot], now: datetime
) -> tuple[tuple[X509Slot, ...], tuple[UpstreamRoot, ...]]:
    """The same trust, where no authority that signs keeps a root that it does not lead to.

    It would be trusted for as long as the authority, however soon the CA above names it no more.
    """
    roots = {each.certificate: each for each in known}
    after = []
    for slot in slots:
        own, others = _own(slot)
        for certificate in others:
            roots.setdefault(certificate, UpstreamRoot(certificate, now))
        after.append(slot if not others else _with(slot, own))
    return tuple(after), tuple(roots.values())


def _own(slot: X509Slot) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
    """Its roots: those that it leads to, and others. Of one that leads to none all are its own."""
    held = slot.authority.bundle.x509_authorities
    own = tuple(each for each in held if leads_to(slot.authority, [each]))
    if slot.stage not in SIGNING or not own:
        return held, ()
    return own, tuple(each for each in held if each not in own)


def _with(slot: X509Slot, roots: tuple[x509.Certificate, ...]) -> X509Slot:
    authority: X509Authority | PublicAuthority = slot.authority
    return replace(slot, authority=replace(authority, bundle=replace(authority.bundle, x509_authorities=roots)))
