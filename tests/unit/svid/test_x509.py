"""Issuing, validating and bundling: X509-SVID.md 2 to 6, Trust_Domain_and_Bundle.md 4; read by openssl too."""

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from svid.authority import BACKDATE, X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidBundle, InvalidKey, InvalidSvid, IssuanceRefused, SvidError
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, PrivateKey, key_from_der, key_from_pem, signature_hash
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid, check_x509_svid

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
TD = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
HOUR = timedelta(hours=1)
KEY_USAGE_BITS = (
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def authority(algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256, lifetime: timedelta = timedelta(days=1)) -> X509Authority:
    return X509Authority.create(TD, algorithm=algorithm, lifetime=lifetime, now=NOW)


def svid(issuer: X509Authority, algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> X509Svid:
    key = algorithm.generate()
    return X509Svid(WEB, issuer.issue(key.public_key(), WEB, ttl=HOUR, now=NOW), key)


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)


def openssl_knows_ml_dsa() -> bool:
    found = re.search(r"OpenSSL (\d+)\.(\d+)", openssl("version").stdout)
    return found is not None and (int(found[1]), int(found[2])) >= (3, 5)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_every_algorithm_issues_and_is_issued_to(algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    issuer = authority(algorithm)
    made = svid(issuer, algorithm)
    made.check(issuer.bundle, NOW)
    assert X509Svid.from_pem(made.chain_pem(), made.key_pem()).chain == made.chain
    assert X509Svid.from_der(made.chain_der(), made.key_der()).serial == made.serial
    assert TrustBundle.from_jwks(TD, issuer.bundle.to_jwks()) == issuer.bundle


@pytest.mark.spec("X509-26")
@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_openssl_verifies_every_algorithm(algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    if algorithm.value.startswith("ml-dsa") and not openssl_knows_ml_dsa():
        pytest.skip(f"ML-DSA needs OpenSSL 3.5, this host's command is {openssl('version').stdout.strip()}")
    issuer = authority(algorithm)
    made = svid(issuer, algorithm)
    (tmp_path / "ca").write_bytes(issuer.bundle.to_pem())
    (tmp_path / "leaf").write_bytes(made.chain_pem())
    at = str(int(NOW.timestamp()))
    verified = openssl("verify", "-x509_strict", "-attime", at, "-CAfile", str(tmp_path / "ca"), str(tmp_path / "leaf"))
    assert verified.returncode == 0, verified.stderr


@pytest.mark.spec(
    "X509-1", "X509-4", "X509-5", "X509-6", "X509-9", "X509-10", "X509-11", "X509-12", "X509-13", "X509-15",
    "X509-16", "X509-17", "X509-19", "X509-25", "X509-26", "CL-12",
)  # fmt: skip
def test_profile_as_openssl_prints_it(tmp_path: Path) -> None:
    issuer = authority()
    (tmp_path / "leaf").write_bytes(svid(issuer).chain_pem())
    text = openssl("x509", "-in", str(tmp_path / "leaf"), "-noout", "-text").stdout
    assert re.search(r"Subject: ?\n", text)
    assert f"X509v3 Subject Alternative Name: critical\n                URI:{WEB}\n" in text
    assert "X509v3 Key Usage: critical\n                Digital Signature\n" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
    assert "X509v3 Basic Constraints: critical\n                CA:FALSE" in text
    assert "X509v3 Subject Key Identifier" in text
    assert "X509v3 Authority Key Identifier" in text
    assert "Not Before: Jun  1 11:58:00 2026 GMT" in text
    assert "Not After : Jun  1 13:00:00 2026 GMT" in text
    (tmp_path / "ca").write_bytes(issuer.bundle.to_pem())
    text = openssl("x509", "-in", str(tmp_path / "ca"), "-noout", "-text").stdout
    assert "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n" in text
    assert "URI:spiffe://example.org\n" in text


@pytest.mark.spec("X509-14")
def test_rsa_leaf_has_key_encipherment() -> None:
    usage = svid(authority(), KeyAlgorithm.RSA_2048).leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.value.key_encipherment


@pytest.mark.spec("X509-25", "C-52")
def test_a_leaf_never_outlives_its_authority() -> None:
    issuer = authority(lifetime=timedelta(minutes=5))
    assert svid(issuer).not_after == NOW + timedelta(minutes=5)
    with pytest.raises(IssuanceRefused, match="expired"):
        key = KeyAlgorithm.EC_P256.generate()
        issuer.issue(key.public_key(), WEB, ttl=HOUR, now=NOW + timedelta(minutes=5))


@pytest.mark.spec("ID-22", "X509-3", "C-89", "C-100", "CL-13")
@pytest.mark.parametrize(
    ("spiffe_id", "ttl", "dns_names"),
    [
        (SpiffeId.parse("spiffe://other.org/a"), HOUR, ()),
        (TD.id, HOUR, ()),
        (WEB, timedelta(0), ()),
        (WEB, -HOUR, ()),
        (WEB, HOUR, ("*.example.org",)),
        (WEB, HOUR, ("a b",)),
        (WEB, HOUR, ("UPPER",)),
        (WEB, HOUR, ("a" * 254,)),
        (WEB, HOUR, ("a" * 64,)),
        (WEB, HOUR, ("",)),
        (WEB, HOUR, ("a..b",)),
        (WEB, HOUR, ("a.",)),
        (WEB, HOUR, ("-a",)),
        (WEB, HOUR, ("a-",)),
        (WEB, HOUR, ("a_b",)),
        (WEB, HOUR, ("a\n",)),
        (WEB, HOUR, ("10.0.0.1",)),
        (WEB, HOUR, ("1",)),
    ],
)
def test_the_authority_refuses(spiffe_id: SpiffeId, ttl: timedelta, dns_names: tuple[str, ...]) -> None:
    key = KeyAlgorithm.EC_P256.generate()
    with pytest.raises(IssuanceRefused):
        authority().issue(key.public_key(), spiffe_id, ttl=ttl, now=NOW, dns_names=dns_names)


def test_an_unlisted_key_is_refused() -> None:
    with pytest.raises(InvalidKey):
        authority().issue(ec.generate_private_key(ec.SECP521R1()).public_key(), WEB, ttl=HOUR, now=NOW)


def forged(issuer: X509Authority, **changes: object) -> x509.Certificate:
    """A leaf of `issuer` with single parts replaced."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    uris: list[str] = changes.get("uris", [str(WEB)])  # type: ignore[assignment]
    usage: dict[str, bool] = changes.get("usage", {})  # type: ignore[assignment]
    bits = dict.fromkeys(KEY_USAGE_BITS, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.chain[0].subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=bool(changes.get("ca", False)), path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris] or [x509.DNSName("a")]),
            critical=bool(changes.get("san_critical", True)),
        )
    )
    if changes.get("key_usage", True):
        builder = builder.add_extension(
            x509.KeyUsage(**{"digital_signature": True, **bits, **usage}),
            critical=bool(changes.get("usage_critical", True)),
        )
    eku = changes.get("eku", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)  # type: ignore[arg-type]
    if changes.get("unknown"):
        odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        builder = builder.add_extension(odd, critical=True)
    return builder.sign(issuer.private_key, signature_hash(issuer.private_key))


def test_the_forger_can_make_a_good_one() -> None:
    issuer = authority()
    assert check_x509_svid([forged(issuer)], issuer.bundle, NOW) == WEB
    assert check_x509_svid([forged(issuer, eku=None)], issuer.bundle, NOW) == WEB


@pytest.mark.spec(
    "ID-21", "WL-15", "X509-5", "X509-9", "X509-12", "X509-17", "X509-30", "X509-31", "X509-32", "X509-33", "X509-34",
    "X509-35", "X509-36",
)  # fmt: skip
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"uris": []}, "0 URI SANs", id="X509-36 no URI"),
        pytest.param({"uris": [str(WEB), "spiffe://example.org/b"]}, "2 URI SANs", id="X509-36 two IDs"),
        pytest.param({"uris": [str(WEB), "https://example.org"]}, "2 URI SANs", id="X509-36 one ID and a URL"),
        pytest.param({"uris": [str(WEB), str(WEB)]}, "2 URI SANs", id="X509-36 one ID twice"),
        pytest.param({"uris": ["https://example.org/a"]}, "not a SPIFFE ID", id="X509-34 scheme"),
        pytest.param({"uris": ["spiffe://EXAMPLE.org/a"]}, "not a SPIFFE ID", id="X509-34 upper case"),
        pytest.param({"uris": ["spiffe://example.org/a/"]}, "not a SPIFFE ID", id="X509-34 trailing slash"),
        pytest.param({"uris": ["spiffe://example.org"]}, "no path", id="X509-35"),
        pytest.param({"uris": ["spiffe://other.org/a"]}, "not of trust domain", id="X509-31 ID-21"),
        pytest.param({"ca": True}, "is a CA certificate", id="X509-32"),
        pytest.param({"key_usage": False}, "no critical key usage", id="X509-9 absent"),
        pytest.param({"usage_critical": False}, "no critical key usage", id="X509-9 not critical"),
        pytest.param({"usage": {"digital_signature": False}}, "lacks digitalSignature", id="X509-12"),
        pytest.param({"usage": {"key_cert_sign": True}}, "has keyCertSign", id="X509-33 keyCertSign"),
        pytest.param({"usage": {"crl_sign": True}}, "has keyCertSign or cRLSign", id="X509-33 cRLSign"),
        pytest.param({"eku": [ExtendedKeyUsageOID.SERVER_AUTH]}, "lacks serverAuth or", id="X509-17 server only"),
        pytest.param({"eku": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "lacks serverAuth or", id="X509-17 client only"),
        pytest.param(
            {"eku": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "lacks serverAuth or", id="X509-17 any purpose"
        ),
        pytest.param({"san_critical": False}, "not critical", id="X509-5"),
        pytest.param({"unknown": True}, "unknown critical extension", id="X509-30 unknown critical"),
    ],
)
def test_the_validator_refuses(changes: dict[str, object], sentence: str) -> None:
    issuer = authority()
    with pytest.raises(InvalidSvid, match=sentence):
        check_x509_svid([forged(issuer, **changes)], issuer.bundle, NOW)


@pytest.mark.spec("X509-30")
def test_validity_is_judged_at_the_given_time() -> None:
    issuer = authority()
    made = svid(issuer)
    with pytest.raises(InvalidSvid, match="expired"):
        made.check(issuer.bundle, NOW + HOUR + timedelta(seconds=1))
    with pytest.raises(InvalidSvid, match="not valid before"):
        made.check(issuer.bundle, NOW - BACKDATE - timedelta(seconds=1))


@pytest.mark.spec("ID-21", "X509-30")
def test_another_authority_of_the_same_trust_domain_is_not_trusted() -> None:
    with pytest.raises(InvalidSvid, match="does not lead"):
        svid(authority()).check(authority().bundle, NOW)


@pytest.mark.spec("CL-10")
def test_a_key_that_does_not_fit_is_refused() -> None:
    issuer = authority()
    made = svid(issuer)
    with pytest.raises(InvalidSvid, match="private key"):
        X509Svid(WEB, made.chain, KeyAlgorithm.EC_P256.generate()).check(issuer.bundle, NOW)


def ca_certificate(
    name: str, key: PrivateKey, parent: X509Authority | None, path_length: int | None, *, ca: bool = True
) -> x509.Certificate:
    """A CA certificate for `key`, signed by `parent` or by itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = parent.private_key if parent else key
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.chain[0].subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR * 2)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
        .sign(signer, signature_hash(signer))
    )


def intermediate(parent: X509Authority, *, ca: bool = True) -> X509Authority:
    name = f"intermediate {len(parent.chain)}"  # of one name with its parent it would be self-issued, and not count
    key = KeyAlgorithm.EC_P256.generate()
    return X509Authority(TD, (ca_certificate(name, key, parent, None, ca=ca), *parent.chain), key, parent.bundle)


def unlimited_root() -> X509Authority:
    key = KeyAlgorithm.EC_P256.generate()
    certificate = ca_certificate("root", key, None, 1)
    return X509Authority(TD, (certificate,), key, TrustBundle(TD, (certificate,)))


@pytest.mark.spec("X509-22")
def test_intermediates_travel_with_the_leaf_and_the_root_does_not() -> None:
    issuer = intermediate(unlimited_root())
    made = svid(issuer)
    assert made.chain == (made.leaf, issuer.chain[0])
    made.check(issuer.bundle, NOW)
    with pytest.raises(InvalidSvid, match="does not lead"):
        check_x509_svid([made.leaf], issuer.bundle, NOW)


@pytest.mark.spec("X509-8")
def test_path_length_is_enforced() -> None:
    with pytest.raises(IssuanceRefused, match="path length"):
        svid(intermediate(authority()))
    with pytest.raises(IssuanceRefused, match="path length"):
        svid(intermediate(intermediate(unlimited_root())))


@pytest.mark.spec("X509-7")
def test_an_authority_without_the_ca_bit_is_refused() -> None:
    with pytest.raises(IssuanceRefused, match="not a CA"):
        intermediate(unlimited_root(), ca=False)


def test_an_authority_whose_key_does_not_fit_is_refused() -> None:
    issuer = authority()
    with pytest.raises(IssuanceRefused, match="does not match"):
        X509Authority(TD, issuer.chain, KeyAlgorithm.EC_P256.generate(), issuer.bundle)


@pytest.mark.spec("TD-3", "TD-8", "TD-11", "TD-20", "TD-21")
def test_jwks_members() -> None:
    document = json.loads(authority().bundle.to_jwks())
    (entry,) = document["keys"]
    assert set(entry) == {"use", "kty", "crv", "x", "y", "x5c"}
    assert entry["use"] == "x509-svid"
    assert len(entry["x5c"]) == 1
    assert document["spiffe_sequence"] == 1


@pytest.mark.spec("TD-10", "TD-12", "TD-25", "TD-26", "C-101", "C-102", "C-103", "C-104")
def test_jwks_entries_that_are_not_for_us_are_ignored() -> None:
    bundle = authority().bundle
    good = json.loads(bundle.to_jwks())["keys"][0]
    other = json.loads(authority().bundle.to_jwks())["keys"][0]
    odd = [
        {**good, "use": "X509-SVID"},
        {key: value for key, value in good.items() if key != "use"},
        {**good, "x5c": []},
        {**good, "x5c": ["!!"]},
        {key: value for key, value in good.items() if key != "x5c"},
        {"use": "x509-svid"},
        {"kty": "quantum", "use": "jwt-svid", "kid": "a"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "use": "jwt-svid", "kid": "a"},
        "text",
    ]
    document = {"keys": [*odd, {**good, "kid": "tolerated", "x5c": [good["x5c"][0], other["x5c"][0]]}]}
    assert TrustBundle.from_jwks(TD, json.dumps(document).encode()).x509_authorities == bundle.x509_authorities


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys":null}', '{"keys":[],"keys":[]}', '{"keys":[NaN]}', "<html>"])
def test_what_is_no_jwks_is_refused(text: str) -> None:
    with pytest.raises(InvalidBundle):
        TrustBundle.from_jwks(TD, text.encode())


@pytest.mark.spec("TD-9", "TD-27", "C-105")
def test_an_empty_bundle_authenticates_nothing() -> None:
    empty = TrustBundle.from_jwks(TD, b'{"keys":[]}')
    with pytest.raises(InvalidSvid):
        svid(authority()).check(empty, NOW)


def test_bundles_hold_only_ca_certificates_and_no_trailing_bytes() -> None:
    issuer = authority()
    with pytest.raises(InvalidBundle):
        TrustBundle.from_pem(TD, svid(issuer).chain_pem())
    with pytest.raises(InvalidBundle):
        TrustBundle.from_der(TD, issuer.bundle.to_der() + b"\0")
    doubled = TrustBundle.from_der(TD, issuer.bundle.to_der() * 2)
    assert doubled.x509_authorities == issuer.bundle.x509_authorities


@given(st.binary(max_size=400))
def test_parsers_raise_only_their_own_errors(data: bytes) -> None:
    for parse in (
        lambda: TrustBundle.from_pem(TD, data),
        lambda: TrustBundle.from_der(TD, data),
        lambda: TrustBundle.from_jwks(TD, data),
        lambda: X509Svid.from_pem(data, data),
        lambda: X509Svid.from_der(data, data),
        lambda: key_from_der(data),
        lambda: key_from_pem(data),
    ):
        with pytest.raises(SvidError):
            parse()


_ISSUER = authority()
_SVID = svid(_ISSUER)
_CHAIN, _KEY = _SVID.chain_der(), _SVID.key_der()


@pytest.mark.spec("ID-19")
@given(st.integers(0, len(_CHAIN) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_never_accepted_silently(position: int, flip: int) -> None:
    data = bytearray(_CHAIN)
    data[position] ^= flip
    try:
        found = X509Svid.from_der(bytes(data), _KEY)
        found.check(_ISSUER.bundle, NOW)
    except SvidError:
        return
    # Only the encoding of the signature itself bends: what was signed is what was signed.
    assert found.leaf.tbs_certificate_bytes == _SVID.leaf.tbs_certificate_bytes


def test_secrets_stay_out_of_repr() -> None:
    issuer = authority()
    assert "private_key" not in repr(issuer)
    assert "private_key" not in repr(svid(issuer))


@pytest.mark.spec("WL-20", "WL-25", "WL-28", "C-41", "C-48", "CL-7", "CL-15")
def test_an_identity_belongs_together() -> None:
    issuer = authority()
    made = svid(issuer)
    hinted = X509Svid(WEB, made.chain, made.private_key, "a")
    with pytest.raises(InvalidSvid, match="same hint"):
        WorkloadIdentity((hinted, hinted), issuer.bundle)
    with pytest.raises(InvalidSvid, match="needs an SVID"):
        WorkloadIdentity((), issuer.bundle)
    with pytest.raises(InvalidSvid, match="federated"):
        WorkloadIdentity((made,), issuer.bundle, (issuer.bundle,))


@given(st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_renewal_is_drawn_inside_the_window_and_leaves_half_of_the_life(seconds: int, fraction: float) -> None:
    class Fixed:
        def random(self) -> float:
            return fraction

    end = NOW + timedelta(seconds=seconds)
    window = RenewalWindow.of(NOW, end)
    drawn = window.draw(Fixed())  # type: ignore[arg-type]
    assert window.start <= drawn <= window.end
    assert end - drawn >= timedelta(seconds=seconds) * 0.49
