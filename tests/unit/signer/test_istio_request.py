"""What a proxy's message says, whatever its bytes are: read, or refused with one of two reasons."""

import base64
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from runtime import durations
from signer.errors import Reason, Refused
from signer.front.budget import PROXY_MESSAGE
from signer.front.istio_request import Account, IstioMessage, account_of, heard, read
from signer.minting.minting import proven_key
from signer.pb.istio_ca_pb2 import IstioCertificateRequest
from svid.keys import KeyAlgorithm, public_bytes
from svid.spiffeid import MAX_ID_BYTES, SpiffeId
from tests.unit.signer.istio_door import KEY, TD, csr, spiffe

GOOD = csr(spiffe("default", "web"))
REASONS = (Reason.INVALID_REQUEST, Reason.CSR_INVALID)
SEGMENT = st.text("abcdefghijklmnopqrstuvwxyz0123456789-._AZ", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..")
)


def heard_of(message: IstioCertificateRequest) -> IstioMessage:
    return heard(message.SerializeToString())


@given(SEGMENT, SEGMENT)
def test_an_identity_of_istios_is_read_back(namespace: str, account: str) -> None:
    wanted = spiffe(namespace, account)
    message = IstioCertificateRequest(csr=GOOD)
    message.metadata.update({"ImpersonatedIdentity": wanted, "CertSigner": ""})
    found = read(heard_of(message), TD)
    assert found.impersonated == SpiffeId.parse(wanted)
    assert account_of(SpiffeId.parse(wanted)) == Account(namespace, account)
    assert heard_of(message).asked == wanted
    assert found.uris == (spiffe("default", "web"),)


@pytest.mark.parametrize("wanted", [7.0, "x" * (MAX_ID_BYTES + 1)])
def test_a_refusal_keeps_nothing_of_the_message(wanted: float | str) -> None:
    """Its traceback's frames live as long as it, and `metadata` grows to many times its bytes when it is parsed."""
    message = IstioCertificateRequest(csr=GOOD)
    message.metadata.update({"ImpersonatedIdentity": wanted})
    with pytest.raises(Refused) as caught:
        heard_of(message)
    frames = [each.frame for each in caught.traceback[2:]]
    assert [each.code.name for each in frames] == ["heard"]
    assert not [each for each in frames[-1].f_locals.values() if hasattr(each, "DESCRIPTOR")]


@given(st.text(max_size=300))
def test_any_text_as_an_identity_is_one_of_istios_or_refused(text: str) -> None:
    message = IstioCertificateRequest(csr=GOOD)
    message.metadata.update({"ImpersonatedIdentity": text})
    try:
        found = read(heard_of(message), TD)
    except Refused as refusal:
        assert refusal.reason is Reason.INVALID_REQUEST
        return
    assert found.impersonated is not None
    assert str(found.impersonated) == text
    assert account_of(found.impersonated) is not None


@given(st.binary(max_size=2000))
def test_any_bytes_as_a_message_are_read_or_refused(data: bytes) -> None:
    try:
        read(heard(data), TD)
    except Refused as refusal:
        assert refusal.reason in REASONS


@given(st.binary(max_size=600), st.integers(0, 500))
def test_any_certificate_request_is_read_or_refused(junk: bytes, at: int) -> None:
    der = base64.b64decode("".join(GOOD.splitlines()[1:-1]))
    for body in (junk, der[:at] + junk + der[at + len(junk) :]):
        text = base64.encodebytes(body).decode()
        pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"
        try:
            found = read(heard_of(IstioCertificateRequest(csr=pem)), TD)
        except Refused as refusal:
            assert refusal.reason is Reason.CSR_INVALID
            continue
        try:
            proven_key(found.csr)
        except Refused as refusal:
            assert refusal.reason in (Reason.CSR_INVALID, Reason.KEY_WEAK, Reason.PROOF_OF_POSSESSION)


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_time_is_a_wish_or_refused(seconds: int) -> None:
    message = IstioCertificateRequest(csr=GOOD, validity_duration=seconds)
    if seconds < 0:
        with pytest.raises(Refused) as caught:
            read(heard_of(message), TD)
        assert caught.value.reason is Reason.INVALID_REQUEST
        return
    found = read(heard_of(message), TD).ttl
    if not seconds:
        assert found is None
    else:
        assert found == min(durations.MAX, timedelta(seconds=min(seconds, 10**10)))


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.RSA_2048, KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384])
@pytest.mark.parametrize("critical", [False, True])
def test_proxies_kinds_of_certificate_requests_are_read(algorithm: KeyAlgorithm, critical: bool) -> None:
    key = algorithm.generate()
    found = read(heard_of(IstioCertificateRequest(csr=csr(spiffe("a", "b"), key=key, critical=critical))), TD)
    assert public_bytes(proven_key(found.csr)) == public_bytes(key.public_key())
    assert found.uris == (spiffe("a", "b"),)


def test_a_certificate_request_without_names_has_none() -> None:
    assert read(heard_of(IstioCertificateRequest(csr=csr())), TD).uris == ()
    assert public_bytes(KEY.public_key())


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, "3004a3023000"),
        (ExtensionOID.TLS_FEATURE, "3003020101"),
        (ExtensionOID.TLS_FEATURE, "3000"),
    ],
)
def test_extensions_that_the_library_cannot_read_are_refused(oid: x509.ObjectIdentifier, value: str) -> None:
    odd = x509.UnrecognizedExtension(oid, bytes.fromhex(value))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(odd, critical=False).sign(KEY, hashes.SHA256())
    with pytest.raises(Refused) as caught:
        read(heard_of(IstioCertificateRequest(csr=signed.public_bytes(Encoding.PEM).decode())), TD)
    assert caught.value.reason is Reason.CSR_INVALID


def test_a_huge_message_is_refused_before_it_is_read() -> None:
    room = PROXY_MESSAGE - len(IstioCertificateRequest(csr="x" * PROXY_MESSAGE).SerializeToString()) + PROXY_MESSAGE
    assert heard_of(IstioCertificateRequest(csr="x" * room)).size == PROXY_MESSAGE
    with pytest.raises(Refused, match="longer than") as caught:
        heard_of(IstioCertificateRequest(csr="x" * (room + 1)))
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_what_a_message_is_when_it_is_parsed_is_not_kept() -> None:
    """Two bytes of an empty value are an object of some fifty."""
    message = IstioCertificateRequest(csr="x")
    message.metadata.update({"a": [None] * 2000, "ImpersonatedIdentity": "x" * MAX_ID_BYTES})
    found = heard_of(message)
    kept = (found.csr, found.seconds, found.impersonated, found.size)
    assert kept == (b"x", 0, "x" * MAX_ID_BYTES, message.ByteSize())
    assert all(type(each) in (bytes, int, str) for each in kept)
    message.metadata.update({"ImpersonatedIdentity": "x" * (MAX_ID_BYTES + 1)})
    with pytest.raises(Refused, match="longer than a SPIFFE ID") as caught:
        heard_of(message)
    assert caught.value.reason is Reason.INVALID_REQUEST
