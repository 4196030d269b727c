"""What readers outside have of an issuer's two documents, beside what the trust domain publishes.

The documents come from whoever answers: a cache, an old web server, somebody else.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from svid.errors import SvidError

# Of a document outside; podsvid's own have some hundred bytes for each key.
MAX_DOCUMENT = 512 * 1024
# Some verifiers refuse a set with more.
MAX_KEYS = 100
_MAX_TEXT = 2048
_MAX_SECONDS = 2**31 - 1
# The members that make a key (RFC 7638), by its type.
_MADE_OF: Mapping[str, tuple[str, ...]] = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_NAMES = frozenset({"crv"})
_MAX_AGE = re.compile(r"(?:^|,)\s*(?:s-maxage|max-age)\s*=\s*\"?([0-9]{1,20})\"?\s*(?=,|$)", re.ASCII | re.IGNORECASE)
_NOT_KEPT = re.compile(r"(?:^|,)\s*no-(?:store|cache)\s*(?=,|$)", re.ASCII | re.IGNORECASE)


class UnreadableDocument(SvidError):
    """What was read is not what a verifier could use."""

    reason = "DOCUMENT_UNREADABLE"


class Standing(Enum):
    """What a key outside is to the trust domain."""

    PUBLISHED = "published"
    ABANDONED = "abandoned"
    # Any more, or never.
    NOT_PUBLISHED = "not published"
    # It has the id of a key of the trust domain, and is another one.
    ANOTHER = "another key"


_WORST = (Standing.ABANDONED, Standing.ANOTHER, Standing.NOT_PUBLISHED, Standing.PUBLISHED)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a discovery document leads to."""

    issuer: str
    jwks_uri: str


@dataclass(frozen=True, slots=True)
class ReadKey:
    """A key of a JWK Set. `made_of`: what makes it, the same however it is written; empty where that is not known."""

    id: str
    made_of: tuple[str | bytes, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is outside, the worst first, and the ids of published keys that are not."""

    keys: tuple[tuple[str, Standing], ...]
    missing: tuple[str, ...]


def discovery_of(document: bytes) -> Discovery:
    """As a verifier reads it. Raises UnreadableDocument."""
    found = _object(document)
    issuer, jwks_uri = found.get("issuer"), found.get("jwks_uri")
    for name, value in (("issuer", issuer), ("jwks_uri", jwks_uri)):
        if not isinstance(value, str) or not value or len(value) > _MAX_TEXT:
            raise UnreadableDocument(f"it has no {name} of at most {_MAX_TEXT} characters")
    return Discovery(str(issuer), str(jwks_uri))


def keys_of(document: bytes) -> tuple[ReadKey, ...]:
    """As a verifier reads them; a key of a kind that is not known is one as well. Raises UnreadableDocument."""
    entries = _object(document).get("keys")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise UnreadableDocument("it has no `keys`, a list of objects")
    if len(entries) > MAX_KEYS:
        raise UnreadableDocument(f"it has more than {MAX_KEYS} keys")
    return tuple(_key(each) for each in entries)


def compared(outside: Collection[ReadKey], own: Collection[ReadKey], abandoned: Collection[str]) -> Comparison:
    """`own`: what the trust domain publishes. `abandoned`: ids of keys that were declared stolen."""
    published = {each.id: each for each in own}

    def standing(key: ReadKey) -> Standing:
        ours = published.get(key.id)
        if ours is not None and (not key.made_of or key.made_of != ours.made_of):
            return Standing.ANOTHER
        if key.id in abandoned:
            return Standing.ABANDONED
        return Standing.PUBLISHED if ours is not None else Standing.NOT_PUBLISHED

    keys = tuple(sorted(((each.id, standing(each)) for each in outside), key=lambda found: _WORST.index(found[1])))
    there = {each.id for each in outside if published.get(each.id) == each}
    return Comparison(keys, tuple(each.id for each in own if each.id not in there))


def kept_for(cache_control: str) -> int | None:
    """For how many seconds readers may keep an answer (RFC 9111 5.2.2); None where it does not say."""
    if _NOT_KEPT.search(cache_control):
        return 0
    # A cache between may go by another number than the verifier: the greater one counts.
    said = [each for each in map(_seconds, _MAX_AGE.findall(cache_control)) if each is not None]
    return max(said, default=None)


def age_of(age: str) -> int:
    """For how many seconds caches had it already (RFC 9111 5.1); one that makes no sense is none."""
    return _seconds(age.strip()) or 0


def _seconds(text: str) -> int | None:
    return min(int(text), _MAX_SECONDS) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _object(document: bytes) -> dict[str, Any]:
    if len(document) > MAX_DOCUMENT:
        raise UnreadableDocument(f"it is longer than {MAX_DOCUMENT >> 10} KiB")
    try:
        found = json.loads(document.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UnreadableDocument("it is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise UnreadableDocument("it is no JSON object")
    return found


def _key(entry: dict[str, Any]) -> ReadKey:
    key_id, kind = entry.get("kid"), entry.get("kty")
    named = key_id if isinstance(key_id, str) and len(key_id) <= _MAX_TEXT else ""
    names = _MADE_OF.get(kind, ()) if isinstance(kind, str) else ()
    try:
        made_of = (str(kind), *(_part(name, entry[name]) for name in names)) if names else ()
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        made_of = ()
    return ReadKey(named, made_of)


def _part(name: str, value: str) -> str | bytes:
    # A number may be written with zeros before it, and with padding.
    padded = value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4)
    return value if name in _NAMES else base64.b64decode(padded, b"-_", validate=True).lstrip(b"\0")
