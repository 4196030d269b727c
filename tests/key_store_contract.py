"""What podsvid expects of a key store: checked of a PKCS#11 token, and of the stand-ins of clouds' KMS."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from signer.held_key import KeyRef, Unsupported, ref_of
from signer.keystore.keys import Keys
from signer.keystore.store import KeyMissing, KeyStore
from svid.keys import KeyAlgorithm, PrivateKey, algorithm_of, signature_hash
from svid.spiffeid import TrustDomain

# Another process's, each time: of the same token, account or key ring.
Opened = Callable[[], AbstractContextManager[KeyStore]]
KINDS = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048)
OWN = "podsvid-example.org-00112233-"
NAME, NEXT = f"{OWN}0011223344556677", f"{OWN}8899aabbccddeeff"
FOREIGN = "podsvid-example.org-ffffffff-0011223344556677"


def sign(key: PrivateKey, data: bytes = b"data") -> bytes:
    """What it signs is verified by itself."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(signature_hash(key) or hashes.SHA256()))
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def check_keys_are_made_and_sign(opened: Opened) -> None:
    with opened() as store:
        for number, algorithm in enumerate(KINDS):
            made = store.create(f"{OWN}{number:016x}", algorithm)
            assert algorithm_of(made.public_key()) is algorithm
            assert ref_of(made) == KeyRef(store.kind, f"{OWN}{number:016x}")
            sign(made)
            csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(made, signature_hash(made))
            assert csr.is_signature_valid


def check_another_process_finds_a_key_by_its_name(opened: Opened) -> None:
    with opened() as one, opened() as other:
        made = one.create(NAME, KeyAlgorithm.EC_P256)
        sign(other.open(KeyRef(other.kind, NAME), made.public_key()))


def check_what_another_key_signed_is_refused(opened: Opened) -> None:
    """Its public half is in the state: a key that has come in its place is none."""
    with opened() as store:
        store.create(NAME, KeyAlgorithm.EC_P256)
        pinned = store.open(KeyRef(store.kind, NAME), KeyAlgorithm.EC_P256.generate().public_key())
        with pytest.raises(InvalidSignature):
            sign(pinned)


def check_nothing_else_can_be_had(opened: Opened) -> None:
    with opened() as store:
        made = store.create(NAME, KeyAlgorithm.EC_P256)
        with pytest.raises(Unsupported):
            made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_names_are_those_of_one_owner(opened: Opened) -> None:
    with opened() as store:
        assert list(store.names(OWN)) == []
        for each in (NAME, NEXT, FOREIGN):
            store.create(each, KeyAlgorithm.EC_P256)
    with opened() as other:
        assert sorted(other.names(OWN)) == [NAME, NEXT]


def check_a_key_that_is_destroyed_signs_no_more_and_is_named_no_more(opened: Opened) -> None:
    with opened() as store:
        made, kept = store.create(NAME, KeyAlgorithm.EC_P256), store.create(NEXT, KeyAlgorithm.EC_P256)
        assert store.delete(NAME)
        for each in (store.names(OWN), store.names(OWN)):
            assert list(each) == [NEXT]
        with pytest.raises(KeyMissing, match="rotate --forced"):
            sign(made)
        sign(kept)
    with opened() as other:
        # Another leader may have been at it.
        assert not other.delete(FOREIGN)
        other.delete(NAME)
        assert list(other.names(OWN)) == [NEXT]


def check_a_name_that_is_not_ours_is_no_key(opened: Opened) -> None:
    """The state may name anything."""
    with opened() as store:
        keys, public = Keys(TrustDomain("example.org"), store), KeyAlgorithm.EC_P256.generate().public_key()
        for name in ("podsvid-example.org-x", "podsvid-example.org-00112233-../ca", "podsvid-example.org-"):
            assert not store.delete(name)
            assert list(store.names(name)) == []
            with pytest.raises(Exception, match=r"has no key|cannot be used"):
                sign(keys.open(KeyRef(store.kind, name), public))


CHECKS = (
    check_keys_are_made_and_sign,
    check_another_process_finds_a_key_by_its_name,
    check_what_another_key_signed_is_refused,
    check_nothing_else_can_be_had,
    check_names_are_those_of_one_owner,
    check_a_key_that_is_destroyed_signs_no_more_and_is_named_no_more,
    check_a_name_that_is_not_ours_is_no_key,
)
