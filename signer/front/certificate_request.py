"""A PodCertificateRequest: for which pod it is, what of it nothing can mend, and for which key, once that is proven.

It is read as it comes, by the thousand; its proof is verified when it is its turn.
"""

import base64
import binascii
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer import wishes
from signer.attestation.certified import ClaimedPod
from signer.cluster.objects import PodCertificateRequestObject, PodCertificateRequestSpec, instant
from signer.errors import Reason, Refused
from signer.minting.minting import accepted_key, proven_key
from signer.model import PodClaim
from signer.pod_certificate_settings import longest
from svid.keys import PublicKey

# Bytes of each of its keys and proofs, as the API server has it.
MAX_BYTES = 10 * 1024
# Characters of that many bytes in base64.
_ENCODED = 4 * ((MAX_BYTES + 2) // 3)


@dataclass(frozen=True, slots=True)
class Flaw:
    """What of a request nothing can mend."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A key and what shows that who asks has it, as the request has them, in base64: of one encoding or the other."""

    csr: str = ""
    key: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """One that is not decided. `most`: from the certificate's beginning to its end."""

    uid: str
    name: str
    version: str
    created: str
    claimed: ClaimedPod
    most: timedelta
    # It is that of the version, and nobody's to read.
    proof: Proof = field(default=Proof(), compare=False, repr=False)
    dns_names: tuple[str, ...] = ()
    flaw: Flaw | None = None

    @property
    def asked_at(self) -> datetime | None:
        """When it was made, by the API server."""
        return instant(self.created)

    @property
    def path(self) -> str:
        """Below a version of its group."""
        return f"namespaces/{self.claimed.pod.namespace}/podcertificaterequests/{self.name}"


def read_request(body: PodCertificateRequestObject) -> CertificateRequest | None:
    """What an object asks for; None for one that is decided, or is none."""
    metadata, spec = body.metadata, body.spec
    if not metadata.uid or not metadata.name or not metadata.namespace or spec is None:
        return None
    if is_decided(body):
        return None
    pod = PodClaim(metadata.namespace, spec.pod_name or "", spec.pod_uid or "")
    proof, flaw = Proof(), None
    names: tuple[str, ...] = ()
    try:
        names = wishes.annotated(spec.unverified_user_annotations or {})
        proof = _proof(spec)
    except Refused as refusal:
        flaw = Flaw(refusal.reason, str(refusal))
    return CertificateRequest(
        uid=metadata.uid,
        name=metadata.name,
        version=metadata.resource_version or "",
        created=metadata.creation_timestamp or "",
        claimed=ClaimedPod(pod, spec.node_name or "", spec.service_account_name or "", spec.service_account_uid or ""),
        most=longest(spec.max_expiration_seconds or 0),
        proof=proof,
        dns_names=names,
        flaw=flaw,
    )


def is_decided(body: PodCertificateRequestObject) -> bool:
    """Whether it has its answer."""
    return body.status is not None and bool(body.status.conditions)


def _proof(spec: PodCertificateRequestSpec) -> Proof:
    """Of both encodings the newer one counts: a kubelet of 1.36 fills no other. Raises Refused."""
    if spec.stub_request:
        return Proof(csr=_short(spec.stub_request, "stubPKCS10Request"))
    return Proof(
        key=_short(spec.public_key or "", "pkixPublicKey"),
        signature=_short(spec.proof_of_possession or "", "proofOfPossession"),
    )


def proven(request: CertificateRequest) -> PublicKey:
    """The key that is asked for. To verify it takes up to a millisecond: one after another. Raises Refused."""
    if request.flaw is not None:
        raise Refused(request.flaw.reason, request.flaw.message)
    proof = request.proof
    if proof.csr:
        return proven_key(_bytes(proof.csr, "stubPKCS10Request"))
    if not proof.key:
        raise Refused(
            Reason.CSR_INVALID,
            "the request has no key: with a kubelet older than 1.36 v1beta1 is to be served",
        )
    try:
        found: object = load_der_public_key(_bytes(proof.key, "pkixPublicKey"))
    except (ValueError, UnsupportedAlgorithm):
        raise Refused(Reason.CSR_INVALID, "pkixPublicKey is not the DER of a known kind of key") from None
    key = accepted_key(found)
    try:
        _verify(key, _bytes(proof.signature, "proofOfPossession"), request.claimed.pod.uid.encode())
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise Refused(
            Reason.PROOF_OF_POSSESSION, "proofOfPossession is not the pod's uid, signed with the key that is asked for"
        ) from None
    return key


def _verify(key: PublicKey, signature: bytes, message: bytes) -> None:
    """As the API server does. Raises InvalidSignature, ValueError."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPublicKey):
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
        key.verify(signature, message, scheme, hashes.SHA256())
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, message)
    else:
        raise InvalidSignature


def _short(text: str, what: str) -> str:
    if len(text) > _ENCODED:
        raise Refused(Reason.CSR_INVALID, f"{what} is longer than {MAX_BYTES} bytes")
    return text


def _bytes(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(Reason.CSR_INVALID, f"{what} is not base64") from None
