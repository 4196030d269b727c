"""A root of the CA above that was declared stolen, as the state keeps it: told by its key, in whatever certificate."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from signer.authority.slots import instant, read, written
from svid.authority import PublicAuthority, X509Authority
from svid.certificates import extension
from svid.errors import SvidError
from svid.keys import public_bytes, public_key_of
from svid.x509svid import issued_by

# So many are kept; each is a certificate of another key that somebody trusted for a whole trust domain.
MAX_REVOKED = 64
# Before everything that anybody said.
EVER = datetime.min.replace(tzinfo=UTC)
_HASH_DIGITS, _MAX_TEXT = 64, 256


@dataclass(frozen=True, slots=True)
class RevokedRoot:
    """`key`: the SHA-256 of its SubjectPublicKeyInfo, by which it is told. `id`: that of the certificate that a person
    named, `key_id` what that certificate calls its key, in lower-case hex. `taken_back_at`: it may be trusted again.

    One that was taken back is kept, so that a copy which does not know of it yet is not taken for the later word.
    """

    key: str
    id: str
    key_id: str
    subject: str
    asked_at: datetime
    taken_back_at: datetime | None = None

    @property
    def in_force(self) -> bool:
        """Whether its key must not be trusted."""
        return self.taken_back_at is None

    @property
    def said_at(self) -> datetime:
        """When a person said so, or the opposite."""
        return self.taken_back_at or self.asked_at


def revoked_root(certificate: x509.Certificate, now: datetime) -> RevokedRoot:
    """Its revocation. Raises SvidError, ValueError of one whose key cannot be read."""
    return RevokedRoot(
        key_of(certificate),
        certificate.fingerprint(hashes.SHA256()).hex(),
        key_id_of(certificate),
        certificate.subject.rfc4514_string()[:_MAX_TEXT],
        now,
    )


def key_of(certificate: x509.Certificate) -> str:
    """Names a certificate's key. Raises SvidError."""
    return hashlib.sha256(public_bytes(public_key_of(certificate))).hexdigest()


def is_revoked(certificate: x509.Certificate, keys: Collection[str]) -> bool:
    """Whether its key is one of these. One that cannot be read is no verifier's."""
    try:
        return bool(keys) and key_of(certificate) in keys
    except SvidError:
        return False


def key_id_of(certificate: x509.Certificate) -> str:
    """The subject key identifier, or what it would be, in lower-case hex. Raises SvidError, ValueError."""
    found = extension(certificate, x509.SubjectKeyIdentifier)
    value = found.value if found else x509.SubjectKeyIdentifier.from_public_key(public_key_of(certificate))
    return value.digest.hex()


def roots_left(
    authority: X509Authority | PublicAuthority, roots: Iterable[x509.Certificate], revoked: Collection[str]
) -> tuple[x509.Certificate, ...]:
    """Those of `roots` that the authority leads to by no certificate of a key that was revoked."""
    return tuple(root for root in dict.fromkeys(roots) if _leads_past(authority, root, revoked))


def _leads_past(authority: X509Authority | PublicAuthority, root: x509.Certificate, revoked: Collection[str]) -> bool:
    if is_revoked(root, revoked):
        return False
    for certificate in authority.chain:
        # What was stolen may stand between, signed by another root: who has that key makes what verifies below it.
        if is_revoked(certificate, revoked):
            return False
        if certificate == root or issued_by(certificate, root):
            return True
    return False


def joined(*copies: Iterable[RevokedRoot]) -> tuple[RevokedRoot, ...]:
    """What any of them says; of one root what was said last."""
    found: dict[str, RevokedRoot] = {}
    for each in (each for copy in copies for each in copy):
        known = found.get(each.key)
        if known is None or known.said_at < each.said_at:
            found[each.key] = each
    return tuple(found.values())


def revoked_entry(each: RevokedRoot) -> dict[str, Any]:
    """Its entry, wherever it is written."""
    return {
        "key": each.key,
        "id": each.id,
        "key_id": each.key_id,
        "subject": each.subject,
        "asked_at": each.asked_at.isoformat(),
        "taken_back_at": written(each.taken_back_at),
    }


def read_revoked(each: Mapping[str, Any]) -> RevokedRoot:
    """What `revoked_entry` wrote. Raises ValueError, KeyError, TypeError, and what comes of an entry that is none."""
    texts = [each[name] for name in ("key", "id", "key_id", "subject")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("not a text")
    key, certificate, key_id, subject = texts
    if any(len(bytes.fromhex(text)) * 2 != _HASH_DIGITS for text in (key, certificate)) or len(subject) > _MAX_TEXT:
        raise ValueError("not a revoked root")
    return RevokedRoot(key, certificate, key_id, subject, instant(each["asked_at"]), read(each["taken_back_at"]))
