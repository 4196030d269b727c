"""Google's Certificate Authority Service as the CA above: it answers in the call itself, and knows a request again.

Its library asks, in a process of its own, with the credentials that it finds by itself: the identity that the cluster
gives the pod's service account.
"""

import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from runtime.bounded import Bounded, Unanswered
from signer.clouds.process import PASSING, Cloud, Failed, Service
from signer.googlecas_settings import GoogleCasSettings
from signer.upstream import files, sdk
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.given import MAX_ABOVE, certificates, chained, check_name, is_root, shorter
from signer.upstream.remote import NO_HANDLE, Answer, CaRequest, Denied, Issued, UpstreamAway
from signer.upstream.roots import RootSet

# Seconds: of one answer, and of all that one call takes, the credentials' too.
ANSWER_SECONDS, CALL_SECONDS, READ_SECONDS = 10.0, 28.0, 10.0
# And the request's id: what is issued has a name in the pool.
PREFIX = "podsvid-"
MAX_CAS = 32
# Characters, of all that comes in one answer.
MAX_CERTIFICATES = 512 * 1024
MODULE = "google.cloud.security.privateca_v1"
# What is named otherwise than by its number.
_ATTRIBUTES: Mapping[x509.ObjectIdentifier, str] = MappingProxyType(
    {NameOID.COMMON_NAME: "COMMON_NAME", NameOID.ORGANIZATION_NAME: "ORGANIZATION"}
)
_T = TypeVar("_T")


class _Failed(Exception):
    """Google answered with an error."""


@dataclass(frozen=True, slots=True)
class GoogleCas:
    """One pool, or one CA of it."""

    settings: GoogleCasSettings
    begin: sdk.Begin = field(default=sdk.begun, repr=False, compare=False)
    asks: Bounded = field(default_factory=lambda: Bounded(CALL_SECONDS), repr=False, compare=False)
    reader: Bounded = field(default_factory=lambda: Bounded(READ_SECONDS), repr=False, compare=False)

    @property
    def name(self) -> str:
        ca = f", CA {self.settings.ca}" if self.settings.ca else ""
        return f"Google CA pool {self.settings.pool}{ca}"

    async def submit(self, request: CaRequest) -> str:
        return NO_HANDLE

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        made = await self._asked("certify", partial(self._made, request))
        given = await files.given(self.reader, self.settings.roots, self.name)
        try:
            return self._issued(made, given, request)
        except UpstreamUnusable as error:
            # The same answer would come again.
            return Denied(str(error), permanent=True)

    async def forget(self, request_id: str, handle: str) -> None:
        """What was issued stays: it is of a key that nobody uses."""

    async def roots(self) -> RootSet:
        given = await files.given(self.reader, self.settings.roots, self.name)
        if given:
            return RootSet(given, complete=True)
        found = await self._asked("name its roots", self._roots)
        roots = tuple(dict.fromkeys(each for each in found if each is not None))
        # Of a CA whose chain ends below its root nothing is said.
        return RootSet(roots, complete=None not in found)

    def _made(self, request: CaRequest, cloud: Cloud) -> list[str]:
        """In PEM, what was issued and what is above it."""
        by = self.settings
        name = f"{PREFIX}{request.id}"
        asked = {
            "parent": by.pool,
            "certificate_id": name,
            # For an hour the same one is the same request.
            "request_id": str(uuid.UUID(hex=request.id[:32], version=4)),
            "issuing_certificate_authority_id": by.ca or "",
            "certificate": {"lifetime": {"seconds": int(request.lifetime.total_seconds())}, "config": _config(request)},
        }
        try:
            made = cloud.ask("create_certificate", asked, ANSWER_SECONDS)
        except Failed as failed:
            if failed.kind != "there":
                raise
            # Later its name says so; of which key it is, is looked at before it is used.
            there = {"name": f"{by.pool}/certificates/{name}"}
            made = cloud.ask("get_certificate", there, ANSWER_SECONDS)
        return self._bounded([_text(made, "pem_certificate"), *_texts(made, "pem_certificate_chain")])

    def _issued(self, made: list[str], given: tuple[x509.Certificate, ...], request: CaRequest) -> Issued:
        own, above = certificates(made[:1], self.name), certificates(made[1:], self.name)
        if len(own) != 1 or len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} gave {len(own)} certificates, and {len(above)} above")
        # Who may make certificates in the pool can have made one of that name before.
        if own[0].public_key() != request.csr.public_key():
            raise UpstreamUnusable(f"what {self.name} has by the request's name is of another key")
        check_name(own[0], request.csr, self.name, "let the pool's policy keep it")
        chain, root = chained(own[0], above)
        note = shorter(own[0], request.lifetime, self.name, ": see maximumLifetime of the pool, and when its CA ends")
        return Issued(chain, given or (() if root is None else (root,)), note)

    def _roots(self, cloud: Cloud) -> list[x509.Certificate | None]:
        """Of each CA of the pool."""
        found = cloud.ask("fetch_ca_certs", {"ca_pool": self.settings.pool}, ANSWER_SECONDS).get("ca_certs") or []
        if len(found) > MAX_CAS:
            raise UpstreamUnusable(f"{self.name} has {len(found)} CAs; {MAX_CAS} at most are trusted")
        return [self._root(_texts(each, "certificates")) for each in found]

    def _root(self, texts: list[str]) -> x509.Certificate | None:
        own, *above = certificates(self._bounded(texts), self.name) or (None,)
        if own is None or len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} names a CA with {len(above)} certificates above, or without its own")
        return own if is_root(own) else chained(own, above)[1]

    def _bounded(self, texts: list[str]) -> list[str]:
        if sum(map(len, texts)) > MAX_CERTIFICATES:
            raise UpstreamUnusable(f"{self.name} answered with more than {MAX_CERTIFICATES >> 10} KiB")
        return texts

    async def _asked(self, what: str, work: Callable[[Cloud], _T]) -> _T:
        """What Google says. Raises UpstreamAway and UpstreamUnusable."""
        try:
            return await self.asks.do(lambda: self._told(work))
        except Unanswered:
            raise UpstreamAway(f"{self.name} did not answer within {self.asks.seconds:g} s") from None
        except _Failed as error:
            raise UpstreamUnusable(f"{self.name} does not {what} ({error})") from None

    def _told(self, work: Callable[[Cloud], _T]) -> _T:
        with closing(self.begin(Service("google", "privateca"))) as cloud:
            try:
                return work(cloud)
            except Failed as failed:
                if failed.kind in PASSING:
                    raise UpstreamAway(f"{self.name}: {failed}") from None
                if not failed.code:
                    raise UpstreamUnusable(f"{self.name}: {failed}") from None
                raise _Failed(str(failed)) from None


def needed(settings: GoogleCasSettings) -> Mapping[str, Callable[[], object]]:
    """By setting, what says that something is missing. Each raises UpstreamUnusable. Blocks."""
    library = partial(sdk.check_installed, MODULE, "google-cloud-private-ca", "google")
    found: dict[str, Callable[[], object]] = {"upstream": library}
    if settings.roots is not None:
        found["upstream_bundle_file"] = partial(files.roots, settings.roots)
    return found


def _config(request: CaRequest) -> dict[str, Any]:
    """What the certificate is to be. The request itself says neither that it is for a CA nor for which usages."""
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    key = request.csr.public_key().public_bytes(serialization.Encoding.PEM, spki)
    return {
        "subject_config": {
            "subject": {"rdn_sequence": [{"attributes": [_attribute(each)]} for each in request.csr.subject]},
            "subject_alt_name": {"uris": [str(request.trust_domain.id)]},
        },
        "x509_config": {
            "ca_options": {"is_ca": True, "max_issuer_path_length": 0},
            "key_usage": {"base_key_usage": {"cert_sign": True, "crl_sign": True}},
        },
        "public_key": {"key": key, "format_": "PEM"},
    }


def _attribute(each: x509.NameAttribute[Any]) -> dict[str, Any]:
    if each.oid in _ATTRIBUTES:
        return {"type_": _ATTRIBUTES[each.oid], "value": each.value}
    path = [int(number) for number in each.oid.dotted_string.split(".")]
    return {"object_id": {"object_id_path": path}, "value": each.value}


def _text(found: Mapping[str, Any], name: str) -> str:
    text = found.get(name)
    return text if isinstance(text, str) else ""


def _texts(found: Mapping[str, Any], name: str) -> list[str]:
    texts = found.get(name)
    return [each for each in texts if isinstance(each, str)] if isinstance(texts, list) else []
