"""SPIFFE IDs and trust domain names (SPIFFE-ID.md sections 2.1 to 2.4).

Parsed by hand from the raw string: URL libraries strip and lower-case what the specification refuses.
"""

import re
from dataclasses import dataclass
from typing import Self

from svid.errors import InvalidSpiffeId

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255

_NAME = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)
# Segments that begin with no dot: whatever follows, they are none of dots.
_PLAIN_PATH = re.compile(r"(/[a-zA-Z0-9_-][a-zA-Z0-9._-]*)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """A trust domain name such as `example.org`; equal names are equal domains. Raises InvalidSpiffeId."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidSpiffeId("trust domain is missing")
        if not _NAME.fullmatch(self.name):
            raise InvalidSpiffeId(
                "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
            )
        if len(self.name) > MAX_TRUST_DOMAIN_BYTES:
            raise InvalidSpiffeId(f"trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A trust domain from its bare name. Raises InvalidSpiffeId."""
        return cls(text)

    @property
    def id(self) -> "SpiffeId":
        """The trust domain's own SPIFFE ID, which has no path."""
        return SpiffeId(self)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A SPIFFE ID; `path` is empty or starts with a slash. Raises InvalidSpiffeId."""

    trust_domain: TrustDomain
    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            return
        if not self.path.startswith("/"):
            raise InvalidSpiffeId("path must start with a slash")
        # Nearly all are plain at one look; the others are told what of them is wrong.
        if not _PLAIN_PATH.fullmatch(self.path):
            for segment in self.path[1:].split("/"):
                _check_segment(segment)
        if len(SCHEME) + len(self.trust_domain.name) + len(self.path) > MAX_ID_BYTES:
            raise InvalidSpiffeId(f"SPIFFE ID is longer than {MAX_ID_BYTES} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A SPIFFE ID from its URI. Raises InvalidSpiffeId."""
        if not text:
            raise InvalidSpiffeId("SPIFFE ID is empty")
        if len(text) > MAX_ID_BYTES:
            raise InvalidSpiffeId(f"SPIFFE ID is longer than {MAX_ID_BYTES} bytes")
        if not text.startswith(SCHEME):
            raise InvalidSpiffeId("scheme is missing or is not spiffe")
        name, slash, rest = text[len(SCHEME) :].partition("/")
        return cls(TrustDomain(name), slash + rest)

    @classmethod
    def from_segments(cls, trust_domain: TrustDomain, *segments: str) -> Self:
        """A SPIFFE ID whose path is exactly `segments`. Raises InvalidSpiffeId."""
        # The others are looked at as the path's own; this one would make two of them.
        for segment in segments:
            if "/" in segment:
                _check_segment(segment)
        return cls(trust_domain, "".join(f"/{segment}" for segment in segments))

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain.name}{self.path}"


def _check_segment(segment: str) -> None:
    if not segment:
        raise InvalidSpiffeId("path cannot contain empty segments or end with a slash")
    if segment in (".", ".."):
        raise InvalidSpiffeId("path cannot contain dot segments")
    if not _SEGMENT.fullmatch(segment):
        raise InvalidSpiffeId("path segment characters are limited to letters, numbers, dots, dashes, and underscores")
