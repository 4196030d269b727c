"""The stage before the first: a key whose certificate a CA elsewhere was, or is about to be, asked for.

It is stored before anything is sent, so that whoever leads next goes on with the same key and the same request.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from signer.authority.slots import OpenKey, instant, key_entry, nowhere, read_key
from signer.upstream.remote import MAX_HANDLE, CaRequest
from svid.authority import authority_request
from svid.keys import PrivateKey, PublicKey, algorithm_of, public_bytes
from svid.spiffeid import TrustDomain

_ID_DIGITS = 40


@dataclass(frozen=True)
class X509Request:
    """`at`: the name of the CA. `handle`: how that knows it; None while it may not have got it. `wished`: a person
    wants it, and not the time. Raises ValueError at construction when its parts do not belong together."""

    at: str
    key: PrivateKey = field(repr=False)
    csr: x509.CertificateSigningRequest
    lifetime: timedelta
    asked_at: datetime
    wished: bool = False
    handle: str | None = None

    def __post_init__(self) -> None:
        if _public(self.csr) != public_bytes(self.key.public_key()):
            raise ValueError("the request is not of its key")
        if self.handle is not None and not _is_handle(self.handle):
            raise ValueError("the request's handle is none")
        if self.lifetime <= timedelta(0):
            raise ValueError("the request's lifetime is none")

    @cached_property
    def id(self) -> str:
        """Names the key."""
        return hashlib.sha256(_public(self.csr)).hexdigest()[:_ID_DIGITS]

    @cached_property
    def authority_id(self) -> str:
        """What the authority's id will be, as most CAs make it: the key's SHA-1, RFC 5280 4.2.1.2 (1)."""
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest.hex()

    def to_ca(self, trust_domain: TrustDomain) -> CaRequest:
        """What the CA is given of it."""
        return CaRequest(self.id, self.csr, trust_domain, self.lifetime)

    def sent(self, handle: str) -> "X509Request":
        """The same, as the CA knows it by `handle`. Raises ValueError."""
        return replace(self, handle=handle)


def new_request(
    at: str, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime, *, wished: bool
) -> X509Request:
    """One of a new key, with which it is signed."""
    return X509Request(at, key, authority_request(trust_domain, key), lifetime, now, wished)


def request_entry(request: X509Request) -> dict[str, Any]:
    """Its entry in the stored state, with the private key, or where that is."""
    return {
        "at": request.at,
        **key_entry(request.key),
        "csr": request.csr.public_bytes(serialization.Encoding.PEM).decode(),
        "lifetime_seconds": request.lifetime.total_seconds(),
        "asked_at": request.asked_at.isoformat(),
        "wished": request.wished,
        "handle": request.handle,
    }


def read_request(each: dict[str, Any], open_key: OpenKey = nowhere) -> X509Request:
    """What `request_entry` wrote. Raises SvidError, and what comes of an entry that is none."""
    seconds = each["lifetime_seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError("not a lifetime")
    texts = each["at"], each["csr"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(each["handle"], str | None):
        raise TypeError("not a text")
    csr = x509.load_pem_x509_csr(each["csr"].encode())
    key = read_key(each, lambda: _key_of(csr), open_key)
    if key is None:
        raise KeyError("key")
    return X509Request(
        each["at"],
        key,
        csr,
        timedelta(seconds=seconds),
        instant(each["asked_at"]),
        bool(each["wished"]),
        each["handle"],
    )


def _key_of(csr: x509.CertificateSigningRequest) -> PublicKey:
    key = csr.public_key()
    algorithm_of(key)
    return cast(PublicKey, key)


def _public(csr: x509.CertificateSigningRequest) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return csr.public_key().public_bytes(serialization.Encoding.DER, spki)


def _is_handle(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return len(text) <= MAX_HANDLE
