"""Leaves that are written here are, byte by byte, what the library would have written."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from svid import leaves
from svid.authority import BACKDATE, PROVEN_FOR, X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificate_from_der, to_der
from svid.errors import InvalidSvid
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey, public_bytes, signature_hash
from svid.leaves import Form, Leaf
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid

OWN = TrustDomain("example.org")
NOW = datetime(2030, 1, 1, 0, 30, 15, 250_000, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
EVERY = [each for each in KeyAlgorithm if each not in (KeyAlgorithm.RSA_3072, KeyAlgorithm.RSA_4096)]
KEYS: dict[KeyAlgorithm, PrivateKey] = {each: each.generate() for each in EVERY}
LONGEST = SpiffeId.parse(f"{WEB}/{'x' * (2048 - len(str(WEB)) - 1)}")


def authority(
    algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256, now: datetime = NOW, life: timedelta = 365 * 30 * timedelta(days=1)
) -> X509Authority:
    return X509Authority.create(OWN, algorithm=algorithm, lifetime=life, now=now)


def written_by_the_library(by: X509Authority, key: PublicKey, asked: Leaf) -> bytes:
    """What it makes of what was asked for. Of the leaf that is tried nothing, or it was compared with itself."""
    uses = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    of_rsa = isinstance(key, rsa.RSAPublicKey)
    usage = x509.KeyUsage(digital_signature=True, key_encipherment=of_rsa, key_cert_sign=False, crl_sign=False, **uses)
    above = by.chain[0]
    try:
        known = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        key_above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)
    except x509.ExtensionNotFound:
        key_above = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.private_key.public_key())
    extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    names = [x509.UniformResourceIdentifier(asked.uri), *map(x509.DNSName, asked.dns_names)]
    builder = x509.CertificateBuilder(
        above.subject, by.subject, key, asked.serial, asked.not_before, asked.not_after
    ).add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(usage, critical=True).add_extension(extended, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(key_above, critical=False)
    # RFC 5280 4.1.2.6: critical where nothing but it names who has the key.
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=by.subject == x509.Name([]))
    return builder.sign(by.private_key, signature_hash(by.private_key)).tbs_certificate_bytes


def assert_same(by: X509Authority, key: PublicKey, spiffe_id: SpiffeId, names: Sequence[str], now: datetime) -> None:
    """Of the second, as the first is the library's own."""
    both = [by.issued(key, spiffe_id, ttl=HOUR, now=now, dns_names=names, verified_later=True) for _ in range(2)]
    assert [each.der for each in both] == [to_der(each.chain) for each in both]
    first, second = (each.chain for each in both)
    leaf = second[0]
    asked = Leaf(leaf.serial_number, now - BACKDATE, now + HOUR, public_bytes(key), str(spiffe_id), names)
    assert leaf.tbs_certificate_bytes == written_by_the_library(by, key, asked)
    assert check_x509_svid(second, by.bundle, now) == spiffe_id
    assert list(leaf.extensions) == list(first[0].extensions)
    assert public_bytes(leaf.public_key()) == public_bytes(key)  # type: ignore[arg-type]  # it is one of ours
    assert len(to_der(second[:1])) > len(leaf.tbs_certificate_bytes)


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("above", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519])
def test_for_each_kind_of_key(above: KeyAlgorithm, algorithm: KeyAlgorithm) -> None:
    assert_same(authority(above), KEYS[algorithm].public_key(), WEB, (), NOW)


@pytest.mark.parametrize("count", [1, 2, 8, 40, 100])
@pytest.mark.parametrize("spiffe_id", [SpiffeId(OWN, "/a"), WEB, LONGEST])
def test_for_names_of_each_length(spiffe_id: SpiffeId, count: int) -> None:
    names = [f"{'a' * (number % 60 + 1)}{number}.web.default.svc" for number in range(count)]
    by, key = authority(), KEYS[KeyAlgorithm.EC_P256].public_key()
    # How they are written is taken from one that has other names.
    by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True)
    assert_same(by, key, spiffe_id, names, NOW)


def test_for_numbers_of_each_length() -> None:
    """One byte more stands before those whose first bit is set: a serial number is positive."""
    by, key = authority(), KEYS[KeyAlgorithm.EC_P256].public_key()
    (made,) = by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True)
    asked = leaf_of(made, key)
    form = Form.of(made, asked)
    assert form is not None
    for serial in (1, 127, 128, 255, 256, 2**63, 2**64 - 1, 2**127, 2**158, 2**159 - 1):
        numbered = replace(asked, serial=serial)
        to_be_signed = form.to_be_signed(numbered)
        found = certificate_from_der(form.certificate(to_be_signed, made.signature))
        assert (found.serial_number, found.tbs_certificate_bytes) == (serial, to_be_signed)
        assert to_be_signed == written_by_the_library(by, key, numbered)


@pytest.mark.parametrize(
    "begins",
    [
        datetime(2049, 12, 31, 22, 30, tzinfo=UTC),
        # Begins in one century and ends in the other.
        datetime(2049, 12, 31, 23, 30, tzinfo=UTC),
        datetime(2050, 1, 1, 0, 1, tzinfo=UTC),
        datetime(2050, 1, 1, 1, 30, tzinfo=timezone(2 * HOUR)),
        datetime(2100, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_for_years_of_both_kinds(begins: datetime) -> None:
    by, key = authority(), KEYS[KeyAlgorithm.EC_P256].public_key()
    (made,) = by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True)
    asked = leaf_of(made, key)
    form = Form.of(made, asked)
    assert form is not None
    dated = replace(asked, not_before=begins, not_after=begins + HOUR)
    to_be_signed = form.to_be_signed(dated)
    found = certificate_from_der(form.certificate(to_be_signed, made.signature))
    assert found.not_valid_before_utc == begins.replace(microsecond=0)
    assert found.not_valid_after_utc == (begins + HOUR).replace(microsecond=0)
    assert to_be_signed == written_by_the_library(by, key, dated)
    assert_same(authority(now=begins), key, WEB, (), begins)


def test_for_an_authority_below_another_and_leaves_with_a_subject() -> None:
    root = ca("root", KEYS[KeyAlgorithm.ED25519])
    above = X509Authority(OWN, (root,), KEYS[KeyAlgorithm.ED25519], TrustBundle(OWN, (root,)))
    below = above.issue_intermediate(KEYS[KeyAlgorithm.EC_P384], lifetime=10 * HOUR, now=NOW)
    named = replace(below, subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wörkload")]))
    bare = ca("bare", KEYS[KeyAlgorithm.EC_P256])
    unmarked = X509Authority(OWN, (bare,), KEYS[KeyAlgorithm.EC_P256], TrustBundle(OWN, (bare,)))
    for each in (below, named, unmarked):
        assert_same(each, KEYS[KeyAlgorithm.EC_P256].public_key(), WEB, ("a.default.svc",), NOW)


@pytest.mark.parametrize("above", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519])
@pytest.mark.parametrize("order", [("admin@db", "other@x", "", ""), ("", "admin@db", "", "other@x", "other@x")])
def test_a_common_name_is_in_the_leaf_that_it_was_asked_for_and_in_no_other(
    order: Sequence[str], above: KeyAlgorithm
) -> None:
    by, key = authority(above), KEYS[KeyAlgorithm.EC_P256].public_key()
    for name in order:
        chain = by.issue(key, WEB, ttl=HOUR, now=NOW, common_name=name, verified_later=True)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        assert chain[0].subject == subject
        asked = Leaf(chain[0].serial_number, NOW - BACKDATE, NOW + HOUR, public_bytes(key), str(WEB), ())
        # It also says that the SubjectAltName is critical where there is no subject, and only there.
        assert chain[0].tbs_certificate_bytes == written_by_the_library(replace(by, subject=subject), key, asked)
        assert check_x509_svid(chain, by.bundle, NOW) == WEB


def ca(name: str, key: PrivateKey) -> x509.Certificate:
    """Without a key identifier, so that leaves name its key by another one."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 7, NOW - 50 * HOUR, NOW + 50 * HOUR)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.add_extension(usage, critical=True).sign(key, signature_hash(key))


def leaf_of(made: x509.Certificate, key: PublicKey) -> Leaf:
    begins, ends = made.not_valid_before_utc, made.not_valid_after_utc
    return Leaf(made.serial_number, begins, ends, public_bytes(key), str(WEB), ())


def test_no_form_is_taken_from_what_it_would_not_have_written() -> None:
    key = KEYS[KeyAlgorithm.EC_P256].public_key()
    (made,) = authority().issue(key, WEB, ttl=HOUR, now=NOW)
    asked = leaf_of(made, key)
    assert Form.of(made, asked) is not None
    others = (
        replace(asked, serial=asked.serial + 1),
        replace(asked, not_after=asked.not_after + HOUR),
        replace(asked, key=public_bytes(KEYS[KeyAlgorithm.EC_P384].public_key())),
        replace(asked, uri=f"{WEB}-2"),
        replace(asked, dns_names=("a.default.svc",)),
    )
    for other in others:
        assert Form.of(made, other) is None
    # Nor from what has other parts than a leaf has.
    assert Form.of(authority().chain[0], asked) is None
    signing = ec.generate_private_key(ec.SECP256R1())
    bare = x509.CertificateBuilder(made.issuer, made.subject, key, made.serial_number, NOW, NOW + HOUR)
    assert Form.of(bare.sign(signing, signature_hash(signing)), asked) is None


def test_where_it_would_write_another_one_the_library_writes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "_URI", 0x81)
    by, key = authority(), KEYS[KeyAlgorithm.EC_P256].public_key()
    for _ in range(3):
        assert check_x509_svid(by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True), by.bundle, NOW) == WEB


def test_what_is_no_certificate_at_all_is_written_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    by, key = authority(), KEYS[KeyAlgorithm.EC_P256].public_key()
    by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True)
    monkeypatch.setattr(leaves, "_SEQUENCE", 0x31)
    for _ in range(3):
        assert check_x509_svid(by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True), by.bundle, NOW) == WEB


def test_a_wrong_one_is_refused_by_who_verifies_it_and_none_is_written_after_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by, key = authority(), KEYS[KeyAlgorithm.EC_P256].public_key()
    by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True)
    monkeypatch.setattr(leaves, "_URI", 0x81)
    chain = by.issue(key, WEB, ttl=HOUR, now=NOW, verified_later=True)
    with pytest.raises(InvalidSvid, match="0 URI SANs"):
        check_x509_svid(chain, by.bundle, NOW)
    later = NOW + PROVEN_FOR
    for _ in range(2):
        assert check_x509_svid(by.issue(key, WEB, ttl=HOUR, now=later, verified_later=True), by.bundle, later) == WEB
