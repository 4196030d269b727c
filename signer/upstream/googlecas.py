"""Google's Certificate Authority Service as the CA above: it answers in the call itself, and knows a request again.

Its library asks, in a thread, with the credentials that it finds by itself: the identity that the cluster gives the
pod's service account. Nothing of it is loaded before.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from runtime.bounded import Bounded, Unanswered
from runtime.words import line
from signer.googlecas_settings import GoogleCasSettings
from signer.upstream import files, sdk
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.given import MAX_ABOVE, certificates, chained, check_name, is_root, shorter
from signer.upstream.remote import NO_HANDLE, Answer, CaRequest, Denied, Issued, UpstreamAway
from signer.upstream.roots import RootSet

# Seconds: of one answer, and of all that one call takes, the credentials' too.
ANSWER_SECONDS, CALL_SECONDS, READ_SECONDS = 10.0, 25.0, 10.0
# And the request's id: what is issued has a name in the pool.
PREFIX = "podsvid-"
MAX_CAS = 32
# Characters, of all that comes in one answer.
MAX_CERTIFICATES = 512 * 1024
MODULE = "google.cloud.security.privateca_v1"
# Statuses by HTTP's numbers: another attempt may get past these, beside 5xx.
_AWAY = (408, 429, 499)
# Whose words are told: those of others may be about a credential.
_TOLD = (400, 403, 404, 409, 412, 429)
# What is named otherwise than by its number.
_ATTRIBUTES: Mapping[x509.ObjectIdentifier, str] = MappingProxyType(
    {NameOID.COMMON_NAME: "COMMON_NAME", NameOID.ORGANIZATION_NAME: "ORGANIZATION"}
)
_T = TypeVar("_T")


class Client(Protocol):
    """Of the service, as far as it is used. Each method takes a request as a mapping."""

    def create_certificate(self, request: dict[str, Any], *, timeout: float, retry: None) -> Any: ...

    def get_certificate(self, request: dict[str, Any], *, timeout: float, retry: None) -> Any: ...

    def fetch_ca_certs(self, request: dict[str, Any], *, timeout: float, retry: None) -> Any: ...


# Blocks, and raises what the library does.
Connect: TypeAlias = Callable[[], Client]


def connect() -> Client:
    """With the credentials that are there."""
    from google.cloud.security import privateca_v1

    return privateca_v1.CertificateAuthorityServiceClient()


class _Failed(Exception):
    """Google answered with an error."""


@dataclass(frozen=True, slots=True)
class GoogleCas:
    """One pool, or one CA of it."""

    settings: GoogleCasSettings
    connect: Connect = field(default=connect, repr=False, compare=False)
    asks: Bounded = field(default_factory=lambda: Bounded(CALL_SECONDS), repr=False, compare=False)
    reader: Bounded = field(default_factory=lambda: Bounded(READ_SECONDS), repr=False, compare=False)
    _clients: list[Client] = field(default_factory=list, init=False, repr=False, compare=False)

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

    def _made(self, request: CaRequest) -> list[str]:
        """In PEM, what was issued and what is above it."""
        from google.api_core.exceptions import AlreadyExists

        by = self.settings
        name = f"{PREFIX}{request.id}"
        asked = {
            "parent": by.pool,
            "certificate_id": name,
            # For an hour the same one is the same request.
            "request_id": str(uuid.UUID(hex=request.id[:32], version=4)),
            "issuing_certificate_authority_id": by.ca or "",
            "certificate": {"lifetime": request.lifetime, "config": _config(request)},
        }
        try:
            made = self._client().create_certificate(asked, timeout=ANSWER_SECONDS, retry=None)
        except AlreadyExists:
            # Later its name says so; of which key it is, is looked at before it is used.
            there = {"name": f"{by.pool}/certificates/{name}"}
            made = self._client().get_certificate(there, timeout=ANSWER_SECONDS, retry=None)
        return self._bounded([made.pem_certificate, *made.pem_certificate_chain])

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

    def _roots(self) -> list[x509.Certificate | None]:
        """Of each CA of the pool."""
        answer = self._client().fetch_ca_certs({"ca_pool": self.settings.pool}, timeout=ANSWER_SECONDS, retry=None)
        if len(answer.ca_certs) > MAX_CAS:
            raise UpstreamUnusable(f"{self.name} has {len(answer.ca_certs)} CAs; {MAX_CAS} at most are trusted")
        return [self._root(list(each.certificates)) for each in answer.ca_certs]

    def _root(self, texts: list[str]) -> x509.Certificate | None:
        own, *above = certificates(self._bounded(texts), self.name) or (None,)
        if own is None or len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} names a CA with {len(above)} certificates above, or without its own")
        return own if is_root(own) else chained(own, above)[1]

    def _bounded(self, texts: list[str]) -> list[str]:
        if sum(map(len, texts)) > MAX_CERTIFICATES:
            raise UpstreamUnusable(f"{self.name} answered with more than {MAX_CERTIFICATES >> 10} KiB")
        return texts

    def _client(self) -> Client:
        if not self._clients:
            self._clients.append(self.connect())
        return self._clients[0]

    async def _asked(self, what: str, work: Callable[[], _T]) -> _T:
        """What Google says. Raises UpstreamAway and UpstreamUnusable."""
        try:
            return await self.asks.do(lambda: self._told(work))
        except Unanswered:
            raise UpstreamAway(f"{self.name} did not answer within {self.asks.seconds:g} s") from None
        except _Failed as error:
            raise UpstreamUnusable(f"{self.name} does not {what} ({error})") from None

    def _told(self, work: Callable[[], _T]) -> _T:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        try:
            return work()
        except GoogleAuthError as error:
            self._clients.clear()
            # Not its words: they may have an answer to a credential.
            hint = ": has the signer's service account an identity at Google?"
            raise UpstreamUnusable(f"{self.name} was not asked ({type(error).__name__}){hint}") from None
        except GoogleAPIError as error:
            status = int(getattr(error, "code", None) or 0)
            words = line(str(getattr(error, "message", ""))) if status in _TOLD else ""
            said = ": ".join(each for each in (type(error).__name__, words) if each)
            if status >= 500 or status in _AWAY or not status:
                raise UpstreamAway(f"{self.name} answers {status} ({said})") from None
            raise _Failed(said) from None


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
