"""Keys whose private half is elsewhere: what is signed with them is verified, and nothing else can be had of them."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from signer.held_key import Scheme, Sign, Unsupported, held
from svid.keys import KeyAlgorithm, PrivateKey, signature_hash

KINDS = [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048, KeyAlgorithm.ED25519]


def elsewhere(key: PrivateKey) -> Sign:
    """What signs as a token does."""

    def sign(scheme: Scheme, data: bytes) -> bytes:
        if isinstance(key, ec.EllipticCurvePrivateKey):
            assert scheme is Scheme.ECDSA
            size = (key.key_size + 7) // 8
            digest = hashes.SHA384() if size > 32 else hashes.SHA256()
            pair = decode_dss_signature(key.sign(data, ec.ECDSA(Prehashed(digest))))
            return b"".join(each.to_bytes(size) for each in pair)
        if isinstance(key, rsa.RSAPrivateKey):
            assert scheme is Scheme.RSA_SHA256
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        assert scheme is Scheme.ED25519
        return key.sign(data)

    return sign


def certificate(key: PrivateKey) -> x509.Certificate:
    name, now = x509.Name([]), datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + timedelta(days=1))
    return builder.sign(key, signature_hash(key))


@pytest.mark.parametrize("algorithm", KINDS)
def test_x509_takes_them_as_any_other(algorithm: KeyAlgorithm) -> None:
    key = algorithm.generate()
    found = held(key.public_key(), elsewhere(key))
    certificate(found).verify_directly_issued_by(certificate(key))
    assert copy.copy(found) is copy.deepcopy(found) is found


@pytest.mark.parametrize("algorithm", KINDS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: b"",
        lambda found: found[:-1],
        lambda found: found[:-1] + bytes([found[-1] ^ 1]),
        lambda _: bytes(64),
    ],
)
def test_a_signature_that_is_none_is_not_given_out(algorithm: KeyAlgorithm, spoil: Callable[[bytes], bytes]) -> None:
    key = algorithm.generate()
    sign = elsewhere(key)
    with pytest.raises(InvalidSignature):
        certificate(held(key.public_key(), lambda scheme, data: spoil(sign(scheme, data))))
    with pytest.raises(InvalidSignature):
        certificate(held(algorithm.generate().public_key(), sign))


@pytest.mark.parametrize("algorithm", KINDS)
def test_nothing_else_can_be_had_of_them(algorithm: KeyAlgorithm) -> None:
    key = algorithm.generate()
    found = held(key.public_key(), elsewhere(key))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(Unsupported):
        found.private_bytes(*form)
    with pytest.raises(Unsupported):
        if isinstance(found, ec.EllipticCurvePrivateKey):
            found.exchange(ec.ECDH(), found.public_key())
        elif isinstance(found, rsa.RSAPrivateKey):
            found.decrypt(b"", padding.PKCS1v15())
        else:
            assert isinstance(found, ed25519.Ed25519PrivateKey)
            found.private_bytes_raw()
    if isinstance(found, rsa.RSAPrivateKey):
        with pytest.raises(Unsupported):
            found.sign(b"", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    if isinstance(found, ec.EllipticCurvePrivateKey):
        with pytest.raises(Unsupported):
            found.sign(bytes(32), ec.ECDSA(Prehashed(hashes.SHA256())))


def test_post_quantum_keys_are_not_asked_for() -> None:
    with pytest.raises(Unsupported):
        held(KeyAlgorithm.ML_DSA_44.generate().public_key(), lambda *_: b"")
