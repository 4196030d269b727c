"""What an authority may not be, and that it looks at what it made before anybody else does."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from svid import authority as authority_module
from svid.authority import PROVEN_FOR, X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidBundle, InvalidKey, InvalidSvid, IssuanceRefused
from svid.keys import KeyAlgorithm, PrivateKey, key_from_der, key_from_pem, signature_hash
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OWN, OTHER = TrustDomain("example.org"), TrustDomain("other.test")
WEB = SpiffeId.parse("spiffe://example.org/web")
KEY = KeyAlgorithm.EC_P256.generate()
GOOD = X509Authority.self_signed(OWN, KEY, lifetime=DAY, now=NOW)


def certificate(key: PrivateKey = KEY, *, ca: bool = True, may_sign: bool | None = True) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW - HOUR, NOW + DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if may_sign is not None:
        flags = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        usage = x509.KeyUsage(digital_signature=True, key_cert_sign=may_sign, crl_sign=False, **flags)
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, signature_hash(key))


def made(*chain: x509.Certificate, key: PrivateKey = KEY, bundle: TrustBundle = GOOD.bundle) -> X509Authority:
    return X509Authority(OWN, chain, key, bundle)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (made, "has no certificate"),
        (lambda: made(certificate(ca=False, may_sign=True)), "not a CA certificate with keyCertSign"),
        (lambda: made(certificate(may_sign=False)), "not a CA certificate with keyCertSign"),
        (lambda: made(certificate(may_sign=None)), "not a CA certificate with keyCertSign"),
        (lambda: made(certificate(), key=KeyAlgorithm.EC_P256.generate()), "does not match its certificate"),
        (lambda: made(certificate(), bundle=TrustBundle(OTHER)), "bundle is of other.test"),
    ],
)
def test_what_does_not_belong_together_is_no_authority(make: Callable[[], object], why: str) -> None:
    with pytest.raises(IssuanceRefused, match=why):
        make()
    assert made(certificate())


def test_what_was_made_is_verified_as_its_holders_will(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def refusing(*given: Any) -> None:
        seen.append(given)
        raise InvalidSvid("it is wrong")

    monkeypatch.setattr(authority_module, "check_x509_svid", refusing)
    with pytest.raises(IssuanceRefused, match="made an invalid SVID: it is wrong"):
        GOOD.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW)
    ((chain, bundle, now),) = seen
    assert chain[0].public_key() == KEY.public_key()
    assert (bundle, now) == (GOOD.bundle, NOW)


def test_an_authority_that_its_bundle_does_not_verify_signs_nothing() -> None:
    stranger = X509Authority(OWN, (certificate(),), KEY, GOOD.bundle)
    with pytest.raises(IssuanceRefused, match="made an invalid SVID"):
        stranger.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW)


def fresh() -> X509Authority:
    return X509Authority.self_signed(OWN, KEY, lifetime=DAY, now=NOW)


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each leaf is written as one that may sign others."""
    value = x509.BasicConstraints(ca=True, path_length=None)
    monkeypatch.setattr(authority_module, "END_ENTITY", x509.Extension(value.oid, True, value))


def test_of_what_is_verified_later_the_first_for_each_kind_of_key_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[x509.Certificate] = []

    def noted(chain: tuple[x509.Certificate, ...], *given: Any) -> SpiffeId:
        checked.append(chain[0])
        return check_x509_svid(chain, *given)

    monkeypatch.setattr(authority_module, "check_x509_svid", noted)
    authority, keys = fresh(), [KeyAlgorithm.EC_P256, KeyAlgorithm.ED25519, KeyAlgorithm.RSA_2048]
    for algorithm in keys:
        key = algorithm.generate().public_key()
        made = [authority.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True) for _ in range(3)]
        assert checked == [made[0][0]]
        for each in made:
            assert check_x509_svid(each, authority.bundle, NOW) == WEB
        checked.clear()
    # Nobody looks at this one later.
    authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW)
    assert len(checked) == 1


def test_each_with_a_common_name_is_read_here_and_proves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[x509.Certificate] = []

    def noted(chain: tuple[x509.Certificate, ...], *given: Any) -> SpiffeId:
        checked.append(chain[0])
        return check_x509_svid(chain, *given)

    monkeypatch.setattr(authority_module, "check_x509_svid", noted)
    authority = fresh()
    for name, read in (("a@b", 1), ("a@b", 1), ("", 1), ("", 0), ("a@b", 1), ("", 0)):
        checked.clear()
        authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, common_name=name, verified_later=True)
        assert len(checked) == read


def test_a_wrong_first_one_is_refused_and_each_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = fresh()
    wrong(monkeypatch)
    for _ in range(2):
        with pytest.raises(IssuanceRefused, match="leaf is a CA certificate"):
            authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=True)


def test_a_wrong_one_that_nobody_verifies_later_is_refused_whatever_came_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = fresh()
    for later in (True, False):
        authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=later)
    wrong(monkeypatch)
    with pytest.raises(IssuanceRefused, match="leaf is a CA certificate"):
        authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW)


def test_one_that_is_not_signed_with_the_authoritys_key_goes_no_further_than_to_who_verifies_it() -> None:
    """Of a key store each signature is verified when it comes, and a key in memory does not change: this one did."""
    authority = fresh()
    authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=True)
    object.__setattr__(authority, "private_key", KeyAlgorithm.EC_P256.generate())
    chain = authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=True)
    with pytest.raises(InvalidSvid, match="does not lead to an authority"):
        check_x509_svid(chain, authority.bundle, NOW)
    # So for a second at most.
    for after in (PROVEN_FOR, PROVEN_FOR, timedelta(0)):
        with pytest.raises(IssuanceRefused, match="does not lead to an authority"):
            authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW + after, verified_later=True)


def test_who_finds_a_wrong_one_finds_it_for_all_that_are_verified_later() -> None:
    authority = fresh()
    authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=True)
    object.__setattr__(authority, "private_key", KeyAlgorithm.EC_P256.generate())
    for later in (False, True):
        with pytest.raises(IssuanceRefused, match="does not lead to an authority"):
            authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=later)


def test_where_the_clock_was_set_back_before_its_authority_began_nothing_is_signed() -> None:
    authority = fresh()
    authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, verified_later=True)
    with pytest.raises(IssuanceRefused, match="not valid before"):
        authority.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW - DAY, verified_later=True)


@pytest.mark.parametrize("ttl", [timedelta(0), -HOUR])
def test_a_lifetime_is_positive(ttl: timedelta) -> None:
    with pytest.raises(IssuanceRefused, match="lifetime must be positive"):
        GOOD.issue(KEY.public_key(), WEB, ttl=ttl, now=NOW)
    with pytest.raises(IssuanceRefused, match="lifetime must be positive"):
        X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=ttl, now=NOW)


def test_a_leaf_ends_with_its_authority_and_never_after_it() -> None:
    (leaf,) = GOOD.issue(KEY.public_key(), WEB, ttl=10 * DAY, now=NOW + HOUR)
    assert leaf.not_valid_after_utc == GOOD.not_after == NOW + DAY
    with pytest.raises(IssuanceRefused, match="authority expired"):
        GOOD.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW + DAY)


def test_a_leaf_begins_a_little_before_now_and_never_before_its_authority() -> None:
    (leaf,) = GOOD.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW + HOUR)
    assert leaf.not_valid_before_utc == NOW + HOUR - authority_module.BACKDATE
    for back in (timedelta(0), timedelta(seconds=7), authority_module.MAX_BACKDATE):
        (leaf,) = GOOD.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW + HOUR, backdate=back)
        assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW + HOUR - back, NOW + 2 * HOUR)
    (leaf,) = GOOD.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, backdate=DAY)
    assert leaf.not_valid_before_utc == GOOD.chain[0].not_valid_before_utc


def test_authorities_begin_before_all_that_they_sign_from_their_first_moment() -> None:
    """A node whose clock is behind would take the SVID, and not who signed it."""
    young = X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=DAY, now=NOW)
    began = NOW - authority_module.MAX_BACKDATE
    chain = young.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, backdate=authority_module.MAX_BACKDATE)
    assert chain[0].not_valid_before_utc == began
    check_x509_svid(chain, young.bundle, began)


def test_an_id_without_a_path_or_of_another_domain_is_nobodys() -> None:
    for spiffe_id, why in ((OWN.id, "with a path"), (SpiffeId.parse("spiffe://other.test/web"), "not of trust domain")):
        with pytest.raises(IssuanceRefused, match=why):
            GOOD.issue(KEY.public_key(), spiffe_id, ttl=HOUR, now=NOW)


def unlisted() -> list[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    return [ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 1024)]


@pytest.mark.parametrize("key", unlisted(), ids=["p521", "rsa1024"])
def test_a_key_that_is_not_listed_is_neither_certified_nor_read(key: Any) -> None:
    with pytest.raises(InvalidKey):
        GOOD.issue(key.public_key(), WEB, ttl=HOUR, now=NOW)
    none, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    with pytest.raises(InvalidKey):
        key_from_pem(key.private_bytes(serialization.Encoding.PEM, form, none))
    with pytest.raises(InvalidKey):
        key_from_der(key.private_bytes(serialization.Encoding.DER, form, none))


def test_a_key_that_cannot_be_read_is_not_quoted() -> None:
    locked = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    for data in (locked, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", b""):
        with pytest.raises(InvalidKey) as refused:
            key_from_pem(data)
        assert str(refused.value) == "not an unencrypted private key"


def test_only_ca_certificates_are_a_bundle() -> None:
    with pytest.raises(InvalidBundle, match="not a CA certificate"):
        TrustBundle(OWN, (certificate(ca=False),))
    with pytest.raises(InvalidBundle, match="not a CA certificate"):
        TrustBundle(OWN, GOOD.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW))
    assert len(TrustBundle(OWN, GOOD.chain * 2).x509_authorities) == 1
