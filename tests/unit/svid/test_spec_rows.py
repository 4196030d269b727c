"""Rows of the SPIFFE checklist that no other test of svid/ shows on its way."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidSpiffeId, InvalidSvid
from svid.identity import WorkloadIdentity
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import check_jwt_svid
from svid.keys import KeyAlgorithm, public_bytes
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid, check_x509_svid

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TD = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
FAST = [algorithm for algorithm in KeyAlgorithm if not algorithm.slow] + [KeyAlgorithm.RSA_2048]
JWT_KEY = JwtSigningKey.create(JwtAlgorithm.ES256)


def authority(algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> X509Authority:
    return X509Authority.create(TD, algorithm=algorithm, lifetime=HOUR * 24, now=NOW)


def svid(issuer: X509Authority, algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256, hint: str = "") -> X509Svid:
    key = algorithm.generate()
    return X509Svid(WEB, issuer.issue(key.public_key(), WEB, ttl=HOUR, now=NOW), key, hint)


ISSUER = authority()
SVID = svid(ISSUER)


@pytest.mark.spec("ID-14", "C-97")
def test_no_id_of_more_than_2048_bytes_is_made() -> None:
    room = 2048 - len("spiffe://example.org/ns/")
    assert len(str(SpiffeId.from_segments(TD, "ns", "a" * room))) == 2048
    with pytest.raises(InvalidSpiffeId, match="longer than 2048"):
        SpiffeId.from_segments(TD, "ns", "a" * (room + 1))
    with pytest.raises(InvalidSpiffeId, match="longer than 2048"):
        SpiffeId(TD, "/ns/" + "a" * (room + 1))


@pytest.mark.spec("ID-16")
def test_paths_differ_by_case_and_trust_domains_cannot() -> None:
    assert SpiffeId.parse("spiffe://td/a") != SpiffeId.parse("spiffe://td/A")
    assert len({SpiffeId.parse(text) for text in ("spiffe://td/a", "spiffe://td/A", "spiffe://td/a")}) == 2
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse("spiffe://Td/a")


def signing_request() -> bytes:
    """A request for a good leaf, signed by its own key: right name, right key, no authority."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    key = ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.spec("ID-20")
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(signing_request(), id="a signing request"),
        pytest.param(public_bytes(SVID.leaf.public_key()), id="a public key"),  # type: ignore[arg-type]
        pytest.param(pkcs7.serialize_certificates(list(SVID.chain), Encoding.DER), id="PKCS#7 with the certificates"),
        pytest.param(SVID.leaf.tbs_certificate_bytes, id="what is signed of a certificate"),
        pytest.param(b"0\x03\x02\x01\x00", id="some other sequence"),
        pytest.param(json.dumps({"sub": str(WEB)}).encode(), id="JSON"),
    ],
)
def test_other_documents_are_no_x509_svids(document: bytes) -> None:
    with pytest.raises(InvalidSvid):
        X509Svid.from_der(document, SVID.key_der())


@pytest.mark.spec("ID-20", "JWT-28")
@pytest.mark.parametrize("kind", ["wit+jwt", "at+jwt", "dpop+jwt", "application/jwt"])
def test_other_tokens_are_no_jwt_svids(kind: str) -> None:
    claims = {"sub": str(WEB), "aud": ["db"], "exp": int(NOW.timestamp()) + 60}
    token = jwt.encode(claims, JWT_KEY.private_key, "ES256", headers={"typ": kind, "kid": JWT_KEY.key_id})
    with pytest.raises(InvalidSvid, match="typ is neither"):
        check_jwt_svid(token, {TD: TrustBundle(TD, jwt_authorities=(JWT_KEY.public,))}, "db", NOW)


@pytest.mark.spec("ID-19", "JWT-6")
def test_the_id_in_a_token_is_under_its_signature() -> None:
    made = JWT_KEY.issue(WEB, ["db"], ttl=HOUR, now=NOW)
    head, payload, signature = made.token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["sub"] == str(WEB)
    other = json.dumps({**claims, "sub": str(WEB).replace("web", "adm")}).encode()
    forged = f"{head}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}.{signature}"
    with pytest.raises(InvalidSvid, match="signature"):
        check_jwt_svid(forged, {TD: TrustBundle(TD, jwt_authorities=(JWT_KEY.public,))}, "db", NOW)


@pytest.mark.spec("ID-17", "ID-18", "X509-7", "X509-9", "X509-10", "X509-15", "X509-18", "X509-20", "X509-26", "TD-23")
@pytest.mark.parametrize("algorithm", FAST)
def test_the_profile_of_a_signing_certificate(algorithm: KeyAlgorithm) -> None:
    (certificate,) = authority(algorithm).chain
    found = {extension.oid._name: extension for extension in certificate.extensions}
    assert set(found) == {"basicConstraints", "keyUsage", "subjectKeyIdentifier", "subjectAltName"}
    constraints, usage = found["basicConstraints"], found["keyUsage"]
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert usage.critical
    assert bits(usage.value) == {"key_cert_sign", "crl_sign"}
    names = found["subjectAltName"].value
    assert [(type(name), name.value) for name in names] == [(x509.UniformResourceIdentifier, "spiffe://example.org")]
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.spec(
    "X509-1", "X509-4", "X509-5", "X509-6", "X509-9", "X509-12", "X509-13", "X509-14", "X509-16", "X509-17", "X509-26",
    "CL-12", "CL-13",
)  # fmt: skip
@pytest.mark.parametrize("algorithm", FAST)
def test_the_profile_of_a_leaf(algorithm: KeyAlgorithm) -> None:
    leaf = svid(ISSUER, algorithm).leaf
    found = {extension.oid._name: extension for extension in leaf.extensions}
    known = {"basicConstraints", "keyUsage", "extendedKeyUsage", "subjectAltName"}
    assert set(found) == known | {"subjectKeyIdentifier", "authorityKeyIdentifier"}
    assert not list(leaf.subject)
    constraints, usage, names = found["basicConstraints"], found["keyUsage"], found["subjectAltName"]
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert usage.critical
    rsa = {"key_encipherment"} if algorithm is KeyAlgorithm.RSA_2048 else set()
    assert bits(usage.value) == {"digital_signature"} | rsa
    assert {each.dotted_string for each in found["extendedKeyUsage"].value} == {
        "1.3.6.1.5.5.7.3.1",
        "1.3.6.1.5.5.7.3.2",
    }
    assert names.critical
    assert [(type(name), name.value) for name in names.value] == [(x509.UniformResourceIdentifier, str(WEB))]


def bits(usage: x509.KeyUsage) -> set[str]:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    return {name for name in (*names, "key_cert_sign", "crl_sign") if getattr(usage, name)}


@pytest.mark.spec("X509-23", "X509-32")
def test_a_signing_certificate_is_no_identity() -> None:
    with pytest.raises(InvalidSvid, match="no path"):
        X509Svid.from_der(ISSUER.bundle.to_der(), SVID.key_der())
    # Not even one whose ID has a path, as some authorities outside have.
    signing = named(ca=True)
    with pytest.raises(InvalidSvid, match="is a CA certificate"):
        check_x509_svid([signing], ISSUER.bundle, NOW)


@pytest.mark.spec("X509-37")
def test_subject_and_host_names_neither_give_nor_take_an_identity() -> None:
    common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(WEB))])
    with pytest.raises(InvalidSvid, match="0 URI SANs"):
        check_x509_svid([named(common, x509.DNSName("web.example.org"))], ISSUER.bundle, NOW)
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://example.org/admin")])
    uri = x509.UniformResourceIdentifier(str(WEB))
    assert check_x509_svid([named(other, uri, x509.DNSName("elsewhere.test"))], ISSUER.bundle, NOW) == WEB


def named(
    subject: x509.Name | None = None,
    *names: x509.GeneralName,
    ca: bool = False,
) -> x509.Certificate:
    """A certificate that the authority's key signed, with any names."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject or x509.Name([]))
        .issuer_name(ISSUER.chain[0].subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, False, False, False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names or [x509.UniformResourceIdentifier(str(WEB))]), critical=True)
        .sign(ISSUER.private_key, hashes.SHA256())
    )


@pytest.mark.spec("TD-1", "TD-11", "TD-13", "TD-30", "TD-34")
@pytest.mark.parametrize(
    ("algorithm", "members"),
    [
        (JwtAlgorithm.RS256, {"kty": "RSA"}),
        (JwtAlgorithm.ES256, {"kty": "EC", "crv": "P-256"}),
        (JwtAlgorithm.ES384, {"kty": "EC", "crv": "P-384"}),
        (JwtAlgorithm.ES512, {"kty": "EC", "crv": "P-521"}),
    ],
)
def test_a_jwt_entry_has_these_members_and_no_others(algorithm: JwtAlgorithm, members: dict[str, str]) -> None:
    key = JwtSigningKey.create(algorithm).public
    (entry,) = json.loads(TrustBundle(TD, jwt_authorities=(key,)).to_jwks())["keys"]
    material = {"n", "e"} if members["kty"] == "RSA" else {"x", "y"}
    assert set(entry) == {"use", "kid", *members} | material
    assert {**members, "use": "jwt-svid", "kid": key.key_id}.items() <= entry.items()


@pytest.mark.spec("TD-15")
def test_a_set_without_the_key_revokes_it() -> None:
    old, new = authority(), authority()
    made = svid(old)
    keys = JwtSigningKey.create(JwtAlgorithm.ES256), JwtSigningKey.create(JwtAlgorithm.ES256)
    token = keys[0].issue(WEB, ["db"], ttl=HOUR, now=NOW).token

    def published(*which: int) -> TrustBundle:
        bundle = TrustBundle(
            TD,
            tuple((old, new)[each].chain[0] for each in which),
            tuple(keys[each].public for each in which),
        )
        return TrustBundle.from_jwks(TD, bundle.to_jwks())

    made.check(published(0, 1), NOW)
    assert check_jwt_svid(token, {TD: published(0, 1)}, "db", NOW)
    with pytest.raises(InvalidSvid, match="does not lead"):
        made.check(published(1), NOW)
    with pytest.raises(InvalidSvid):
        check_jwt_svid(token, {TD: published(1)}, "db", NOW)


@pytest.mark.spec("C-88")
@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_token_with_what_is_no_json_number_is_refused(constant: str) -> None:
    claims = f'{{"sub":"{WEB}","aud":"db","exp":{int(NOW.timestamp()) + 60},"score":{constant}}}'.encode()
    headers: dict[str, Any] = {"kid": JWT_KEY.key_id, "typ": "JWT"}
    token = jwt.PyJWS().encode(claims, JWT_KEY.private_key, "ES256", headers=headers)
    with pytest.raises(InvalidSvid, match="payload is not a JSON object"):
        check_jwt_svid(token, {TD: TrustBundle(TD, jwt_authorities=(JWT_KEY.public,))}, "db", NOW)


@pytest.mark.spec("C-43", "WL-60", "WL-62")
def test_the_first_identity_is_the_default_and_hints_are_the_operators() -> None:
    held = (svid(ISSUER), svid(ISSUER), svid(ISSUER, hint="für Müller: \u2603 not/a:name\n"))
    identity = WorkloadIdentity(held, ISSUER.bundle)
    assert identity.default is held[0]
    assert [each.hint for each in identity.svids] == [each.hint for each in held]
    assert WorkloadIdentity(held[::-1], ISSUER.bundle).default is held[2]
