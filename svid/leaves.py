"""How leaves of one authority are written: as bytes that the library's own differ from in nothing.

The library puts each certificate together anew, from objects, which takes three times what signing it does. All but
serial, times, key and names is the same in all leaves of an authority for one kind of key: it is taken from one that
the library wrote, and only those are written here (X.690 DER, RFC 5280 4.1 and 4.2.1).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cryptography import x509

# Tags of DER (X.690 8), and those of a SubjectAltName's names (RFC 5280 4.2.1.6).
_SEQUENCE, _INTEGER, _BITS, _OCTETS, _EXTENSIONS = 0x30, 0x02, 0x03, 0x04, 0xA3
_DNS, _URI = 0x82, 0x86
# From then on a time is written with four digits of the year (RFC 5280 4.1.2.5).
_LONG_YEARS = 2050
# A SubjectKeyIdentifier, which is not critical, up to the twenty bytes of its hash.
_KEY_ID = bytes.fromhex("301d0603551d0e04160414")


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one leaf has of its own. `key` is a DER SubjectPublicKeyInfo; `uri` and `dns_names` are ASCII."""

    serial: int
    not_before: datetime
    not_after: datetime
    key: bytes
    uri: str
    dns_names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Form:
    """What the leaves have in common, as DER: what stands before, between and behind what each has of its own."""

    version: bytes
    algorithm: bytes
    issuer: bytes
    subject: bytes
    before_key_id: bytes
    before_names: bytes
    # The SubjectAltName's OID, and whether it is critical.
    names: bytes

    @classmethod
    def of(cls, certificate: x509.Certificate, leaf: Leaf) -> Self | None:
        """That of a certificate that the library wrote for `leaf`; None where this would have written another one."""
        to_be_signed = certificate.tbs_certificate_bytes
        try:
            version, _, algorithm, issuer, _, subject, _, extensions = _parts(_content(to_be_signed))
            all_extensions = _content(_content(extensions))
            *_, last = _parts(all_extensions)
            before_key_id, key_id, rest = all_extensions.partition(_key_id(leaf.key))
            names = b"".join(_parts(_content(last))[:-1])
        except (ValueError, IndexError):
            return None
        form = cls(
            version, algorithm, issuer, subject, before_key_id, rest.removesuffix(last) if key_id else b"", names
        )
        return form if form.to_be_signed(leaf) == to_be_signed else None

    def to_be_signed(self, leaf: Leaf) -> bytes:
        """The TBSCertificate, which is what an authority signs."""
        serial = leaf.serial.to_bytes(leaf.serial.bit_length() // 8 + 1, "big")
        names = _element(_URI, leaf.uri.encode("ascii"))
        for each in leaf.dns_names:
            names += _element(_DNS, each.encode("ascii"))
        last = _element(_SEQUENCE, self.names + _element(_OCTETS, _element(_SEQUENCE, names)))
        extensions = self.before_key_id + _key_id(leaf.key) + self.before_names + last
        return _element(
            _SEQUENCE,
            self.version
            + _element(_INTEGER, serial)
            + self.algorithm
            + self.issuer
            + _element(_SEQUENCE, _time(leaf.not_before) + _time(leaf.not_after))
            + self.subject
            + leaf.key
            + _element(_EXTENSIONS, _element(_SEQUENCE, extensions)),
        )

    def certificate(self, to_be_signed: bytes, signature: bytes) -> bytes:
        """What was signed, with its signature."""
        return _element(_SEQUENCE, to_be_signed + self.algorithm + _element(_BITS, b"\0" + signature))


def _key_id(key: bytes) -> bytes:
    """The SubjectKeyIdentifier, whole: RFC 5280 4.2.1.2 (1). No signature hangs on this hash."""
    return _KEY_ID + hashlib.sha1(_key_bits(key), usedforsecurity=False).digest()


def _key_bits(key: bytes) -> bytes:
    # What stands behind the algorithm. The first byte of a bit string says how many of its last bits are none.
    header, _ = _header(key)
    bits = header + sum(_header(key[header:]))
    return key[bits + _header(key[bits:])[0] + 1 :]


def _time(at: datetime) -> bytes:
    at = at.astimezone(UTC)
    year = at.year
    # The library's formats take five times as long. With tag and length, which are always the same.
    if year < _LONG_YEARS:
        return b"\x17\x0d%02d%02d%02d%02d%02d%02dZ" % (
            year % 100,
            at.month,
            at.day,
            at.hour,
            at.minute,
            at.second,
        )
    return b"\x18\x0f%04d%02d%02d%02d%02d%02dZ" % (year, at.month, at.day, at.hour, at.minute, at.second)


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    # In one go each; a leaf has thirteen of them, and nearly all are of these two kinds.
    if size < 0x80:
        return b"%c%c%b" % (tag, size, content)
    if 0x100 <= size < 0x10000:
        return b"%c\x82%c%c%b" % (tag, size >> 8, size & 0xFF, content)
    width = (size.bit_length() + 7) // 8
    return bytes((tag, 0x80 | width)) + size.to_bytes(width, "big") + content


def _header(element: bytes) -> tuple[int, int]:
    """How long the header of an element that the library wrote is, and its content."""
    first = element[1]
    if first < 0x80:
        return 2, first
    width = first & 0x7F
    return 2 + width, int.from_bytes(element[2 : 2 + width], "big")


def _content(element: bytes) -> bytes:
    header, size = _header(element)
    return element[header : header + size]


def _parts(content: bytes) -> list[bytes]:
    """The elements that stand one behind the other."""
    found = []
    while content:
        size = sum(_header(content))
        found.append(content[:size])
        content = content[size:]
    return found
