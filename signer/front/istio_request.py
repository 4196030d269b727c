"""One request of an Istio proxy, read: whose certificate, for how long, and the certificate request as bytes.

What is in the certificate request beside its key decides nothing: its URIs are kept, as a client that gets another one
throws the answer away.
"""

import re
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from runtime import durations
from signer.errors import Reason, Refused
from signer.front.budget import PROXY_MESSAGE
from signer.front.calls import parsed
from signer.pb import istio_ca_pb2
from svid.certificates import extensions
from svid.errors import InvalidSpiffeId
from svid.spiffeid import MAX_ID_BYTES, SpiffeId, TrustDomain

_IMPERSONATED = "ImpersonatedIdentity"
_FORM = re.compile(r"/ns/([^/]+)/sa/([^/]+)", re.ASCII)
_MAX_QUOTED = 253


@dataclass(frozen=True, slots=True)
class Account:
    """A service account, as Istio's identities name them."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class IstioMessage:
    """What of a message counts, as it was said: `csr` in PEM, `seconds`, `impersonated` (empty: nobody is), and `size`,
    the bytes that it had."""

    csr: bytes
    seconds: int
    impersonated: str
    size: int

    @property
    def asked(self) -> str:
        """Whose identity it says it wants, for people; empty: the caller's."""
        return self.impersonated[:_MAX_QUOTED]


@dataclass(frozen=True, slots=True)
class IstioRequest:
    """`csr`: DER. `ttl` None: as long as is usual. `impersonated`: for whose pods it is asked, None: the caller's."""

    csr: bytes
    uris: tuple[str, ...]
    ttl: timedelta | None
    impersonated: SpiffeId | None


def account_of(spiffe_id: SpiffeId) -> Account | None:
    """The account that Istio takes from an identity; None where it would refuse it."""
    found = _FORM.fullmatch(spiffe_id.path)
    return None if found is None else Account(found[1], found[2])


def heard(data: bytes) -> IstioMessage:
    """What a message says: no more of it is kept, as `metadata` grows to many times its bytes when it is parsed.

    Raises Refused (INVALID_REQUEST).
    """
    if len(data) > PROXY_MESSAGE:
        raise Refused(Reason.INVALID_REQUEST, f"the message is longer than {PROXY_MESSAGE} bytes")
    # In a function that raises nothing: a refusal holds the frames of those that it comes through.
    csr, seconds, impersonated = _taken(parsed(istio_ca_pb2.IstioCertificateRequest, data))
    if impersonated is None:
        raise Refused(Reason.INVALID_REQUEST, f"metadata {_IMPERSONATED} is no text")
    if len(impersonated) > MAX_ID_BYTES:
        raise Refused(Reason.INVALID_REQUEST, f"metadata {_IMPERSONATED} is longer than a SPIFFE ID")
    return IstioMessage(csr, seconds, impersonated, len(data))


def read(message: IstioMessage, trust_domain: TrustDomain) -> IstioRequest:
    """Raises Refused (INVALID_REQUEST, CSR_INVALID)."""
    csr, uris = _csr(message.csr)
    seconds = message.seconds
    if seconds < 0:
        raise Refused(Reason.INVALID_REQUEST, "validity_duration is below zero")
    ttl = min(timedelta(seconds=min(seconds, int(durations.MAX.total_seconds()))), durations.MAX)
    wanted = message.impersonated
    return IstioRequest(csr, uris, ttl or None, _identity(wanted, trust_domain) if wanted else None)


def _taken(message: istio_ca_pb2.IstioCertificateRequest) -> tuple[bytes, int, str | None]:
    """Its certificate request, its seconds, and who is impersonated: empty where nobody is, None: it is no text."""
    fields = message.metadata.fields
    wanted: str | None = ""
    if _IMPERSONATED in fields:
        found = fields[_IMPERSONATED]
        wanted = found.string_value if found.WhichOneof("kind") == "string_value" else None
        wanted = wanted or None
    return message.csr.encode(), message.validity_duration, wanted


def _identity(text: str, trust_domain: TrustDomain) -> SpiffeId:
    try:
        found = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise Refused(Reason.INVALID_REQUEST, f"metadata {_IMPERSONATED}: {error}") from None
    if found.trust_domain != trust_domain:
        raise Refused(
            Reason.INVALID_REQUEST,
            f"metadata {_IMPERSONATED} is of trust domain {found.trust_domain}, this signer is of {trust_domain}: set "
            "meshConfig.trustDomain",
        )
    if account_of(found) is None:
        raise Refused(Reason.INVALID_REQUEST, f"metadata {_IMPERSONATED} is no spiffe://…/ns/NAMESPACE/sa/ACCOUNT")
    return found


def _csr(text: bytes) -> tuple[bytes, tuple[str, ...]]:
    """As DER, with its URIs."""
    try:
        found = x509.load_pem_x509_csr(text)
        names = [each.value for each in extensions(found) if isinstance(each.value, x509.SubjectAlternativeName)]
        uris = [uri for each in names for uri in each.get_values_for_type(x509.UniformResourceIdentifier)]
        return found.public_bytes(Encoding.DER), tuple(uris)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise Refused(Reason.CSR_INVALID, "csr is not a PEM certificate request that can be read") from None
