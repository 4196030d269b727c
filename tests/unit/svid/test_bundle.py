"""Trust bundles as PEM, DER and SPIFFE JWKS: Trust_Domain_and_Bundle.md 4, X509-SVID.md 6, JWT-SVID.md 6."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from svid.authority import X509Authority
from svid.bundle import JwtAuthority, JwtKey, TrustBundle
from svid.errors import InvalidBundle
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
TD = TrustDomain("example.org")
JWT_KEYS: dict[str, JwtKey] = {
    "rsa": rsa.generate_private_key(65537, 2048).public_key(),
    "p256": ec.generate_private_key(ec.SECP256R1()).public_key(),
    "p384": ec.generate_private_key(ec.SECP384R1()).public_key(),
    "p521": ec.generate_private_key(ec.SECP521R1()).public_key(),
}


def authority(algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> X509Authority:
    return X509Authority.create(TD, algorithm=algorithm, lifetime=timedelta(days=1), now=NOW)


AUTHORITY = authority()
BUNDLE = AUTHORITY.bundle
GOOD: dict[str, Any] = json.loads(BUNDLE.to_jwks())["keys"][0]
OTHER: dict[str, Any] = json.loads(authority().bundle.to_jwks())["keys"][0]


def parse(*entries: object, **members: object) -> TrustBundle:
    return TrustBundle.from_jwks(TD, json.dumps({"keys": entries, **members}).encode())


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.spec("TD-1", "TD-11", "TD-13", "TD-20", "TD-21", "TD-22", "TD-24", "TD-34")
@pytest.mark.parametrize(
    ("algorithm", "members"),
    [
        (KeyAlgorithm.EC_P256, {"kty": "EC", "crv": "P-256"}),
        (KeyAlgorithm.EC_P384, {"kty": "EC", "crv": "P-384"}),
        (KeyAlgorithm.ED25519, {"kty": "OKP", "crv": "Ed25519"}),
        (KeyAlgorithm.RSA_2048, {"kty": "RSA", "e": "AQAB"}),
    ],
)
def test_an_x509_entry(algorithm: KeyAlgorithm, members: dict[str, str]) -> None:
    bundle = authority(algorithm).bundle
    (entry,) = json.loads(bundle.to_jwks())["keys"]
    assert members.items() <= entry.items()
    material = {"EC": {"x", "y"}, "RSA": {"n"}, "OKP": {"x"}}[members["kty"]]
    assert set(entry) == {"use", "x5c"} | set(members) | material, "no kid, nothing private, nothing else"
    assert entry["use"] == "x509-svid"
    (x5c,) = entry["x5c"]
    (certificate,) = bundle.x509_authorities
    assert base64.b64decode(x5c, validate=True) == certificate.public_bytes(Encoding.DER)
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = b"\x04" + unpadded(entry["x"]) + unpadded(entry["y"])
        assert point == key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    elif isinstance(key, rsa.RSAPublicKey):
        assert int.from_bytes(unpadded(entry["n"]), "big") == key.public_numbers().n
    else:
        assert isinstance(key, ed25519.Ed25519PublicKey)
        assert unpadded(entry["x"]) == key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert TrustBundle.from_jwks(TD, bundle.to_jwks()) == bundle


ML_DSA = (KeyAlgorithm.ML_DSA_44, KeyAlgorithm.ML_DSA_65, KeyAlgorithm.ML_DSA_87)


@pytest.mark.spec("TD-20")
@pytest.mark.parametrize("algorithm", ML_DSA)
def test_an_ml_dsa_authority_is_not_among_the_keys_and_is_read_back(algorithm: KeyAlgorithm) -> None:
    """Readers that do not know the kind AKP refuse the whole document: tests/conformance/test_post_quantum.py."""
    (later,) = authority(algorithm).chain
    made = TrustBundle(TD, (later, *BUNDLE.x509_authorities), (JwtAuthority("a", JWT_KEYS[min(JWT_KEYS)]),))
    assert made.x509_authorities == (*BUNDLE.x509_authorities, later)
    document = json.loads(made.to_jwks())
    assert "AKP" not in [each["kty"] for each in document["keys"]]
    assert len(document["keys"]) == len(BUNDLE.x509_authorities) + 1
    (beside,) = document["podsvid_x509_authorities"]
    assert base64.b64decode(beside, validate=True) == later.public_bytes(Encoding.DER)
    found = TrustBundle.from_jwks(TD, made.to_jwks())
    assert (found, found.digest()) == (made, made.digest())
    only = TrustBundle(TD, (later,))
    assert json.loads(only.to_jwks())["keys"] == []
    assert TrustBundle.from_jwks(TD, only.to_jwks()) == only


@pytest.mark.parametrize("algorithm", ML_DSA)
def test_an_ml_dsa_authority_among_another_publishers_keys_is_read(algorithm: KeyAlgorithm) -> None:
    (certificate,) = authority(algorithm).chain
    raw = certificate.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    pub = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    x5c = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
    entry = {"use": "x509-svid", "kty": "AKP", "alg": algorithm.value.upper(), "pub": pub, "x5c": x5c}
    assert parse(entry).x509_authorities == (certificate,)
    other = entry | {"pub": pub[:-8] + "AAAAAAAA"}
    assert parse(other).x509_authorities == ()


@pytest.mark.parametrize("beside", [None, "x", 7, {"a": 1}, [7], ["x"], [[]], ["AAAA"], [GOOD["x5c"][0][:-8]]])
def test_what_is_no_authority_beside_the_keys_is_left_out(beside: object) -> None:
    said: list[str] = []
    document = json.dumps({"keys": [GOOD], "podsvid_x509_authorities": beside}).encode()
    found = TrustBundle.from_jwks(TD, document, said.append)
    assert found.x509_authorities == parse(GOOD).x509_authorities
    assert len(said) == isinstance(beside, list)


@pytest.mark.spec("TD-30", "TD-34")
@pytest.mark.parametrize("name", sorted(JWT_KEYS))
def test_a_jwt_entry_round_trips(name: str) -> None:
    made = TrustBundle(TD, BUNDLE.x509_authorities, (JwtAuthority(name, JWT_KEYS[name]),))
    entry = json.loads(made.to_jwks())["keys"][1]
    assert (entry["use"], entry["kid"]) == ("jwt-svid", name)
    assert not {"x5c", "d", "p", "q", "k"} & set(entry)
    assert TrustBundle.from_jwks(TD, made.to_jwks()) == made


@pytest.mark.spec("TD-5", "TD-7")
@given(st.none() | st.integers(0, 2**64 - 1), st.none() | st.integers(0, 2**31 - 1))
def test_sequence_and_refresh_hint_round_trip(sequence: int | None, seconds: int | None) -> None:
    hint = None if seconds is None else timedelta(seconds=seconds)
    made = TrustBundle(TD, BUNDLE.x509_authorities, sequence=sequence, refresh_hint=hint)
    document = json.loads(made.to_jwks())
    assert document.get("spiffe_sequence") == sequence
    assert document.get("spiffe_refresh_hint") == seconds
    assert ("spiffe_sequence" in document, "spiffe_refresh_hint" in document) == (
        sequence is not None,
        seconds is not None,
    )
    assert TrustBundle.from_jwks(TD, made.to_jwks()) == made


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.spec("TD-10", "TD-12", "TD-25", "TD-27", "C-101", "C-102", "C-104")
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({**GOOD, "kty": "quantum"}, id="TD-10 C-101 unknown kty"),
        pytest.param({**GOOD, "kty": "ec"}, id="TD-10 kty in lower case"),
        pytest.param({**GOOD, "kty": ["EC"]}, id="TD-10 kty of another type"),
        pytest.param(without("kty"), id="TD-10 no kty"),
        pytest.param(without("use"), id="TD-12 C-102 no use"),
        pytest.param({**GOOD, "use": "X509-SVID"}, id="TD-12 C-102 use in upper case"),
        pytest.param({**GOOD, "use": "sig"}, id="TD-12 C-102 unknown use"),
        pytest.param({**GOOD, "use": "wit-svid"}, id="TD-33"),
        pytest.param({**GOOD, "use": None}, id="TD-12 use null"),
        pytest.param(without("x5c"), id="TD-25 no x5c"),
        pytest.param({**GOOD, "x5c": []}, id="TD-25 C-104 empty x5c"),
        pytest.param({**GOOD, "x5c": GOOD["x5c"][0]}, id="TD-25 x5c is text"),
        pytest.param({**GOOD, "x5c": [1]}, id="TD-25 x5c of numbers"),
        pytest.param({**GOOD, "x5c": ["-_" + GOOD["x5c"][0][2:]]}, id="TD-22 C-104 URL-safe base64"),
        pytest.param({**GOOD, "x5c": [GOOD["x5c"][0][:40]]}, id="TD-25 cut certificate"),
        pytest.param({**GOOD, "x5c": [GOOD["x5c"][0] + "AAAA"]}, id="TD-25 text after the certificate"),
        pytest.param("text", id="C-101 not an object"),
        pytest.param(None, id="C-101 null"),
    ],
)
def test_an_entry_that_is_not_for_us_is_ignored_alone(entry: object) -> None:
    assert parse(entry).x509_authorities == ()
    assert parse(entry, OTHER, entry, GOOD, entry) == parse(OTHER, GOOD)
    assert len(parse(OTHER, GOOD).x509_authorities) == 2  # TD-27


@pytest.mark.spec("TD-26", "C-104")
def test_of_several_certificates_the_first_counts() -> None:
    assert parse({**GOOD, "x5c": GOOD["x5c"] + OTHER["x5c"]}) == parse(GOOD)


@pytest.mark.spec("TD-2", "C-103")
def test_extra_members_are_no_harm() -> None:
    assert parse({**GOOD, "kid": "publisher's bug", "x5t": "?"}, more=[1]) == parse(GOOD)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": OTHER["x"]},
        {"y": OTHER["y"]},
        {"crv": "P-384"},
        {"kty": "RSA"},
        {"x": "not a number"},
        {"x": 1},
        {name: OTHER[name] for name in ("x", "y")},
    ],
)
def test_an_entry_that_shows_another_key_than_its_certificate_has_is_ignored_alone_and_said(
    changes: dict[str, object],
) -> None:
    said: list[str] = []
    document = json.dumps({"keys": [{**GOOD, **changes}, OTHER]}).encode()
    assert TrustBundle.from_jwks(TD, document, said.append) == parse(OTHER)
    (line,) = said
    assert "shows another key" in line


@pytest.mark.parametrize("without", [(), ("x",), ("x", "y", "crv")])
def test_members_that_an_entry_lacks_and_zeros_before_a_number_contradict_nothing(without: tuple[str, ...]) -> None:
    found = {name: value for name, value in GOOD.items() if name not in without}
    if not without:
        number = base64.urlsafe_b64decode(GOOD["x"] + "==")
        found["x"] = base64.urlsafe_b64encode(b"\0" + number).decode().rstrip("=")
    assert parse(found) == parse(GOOD)


def test_a_leaf_in_an_x509_entry_is_ignored() -> None:
    key = KeyAlgorithm.EC_P256.generate()
    leaf = AUTHORITY.issue(key.public_key(), SpiffeId(TD, "/web"), ttl=timedelta(hours=1), now=NOW)[0]
    assert parse({**GOOD, "x5c": [base64.b64encode(leaf.public_bytes(Encoding.DER)).decode()]}) == parse()


def jwt_entry(name: str, **changes: object) -> dict[str, object]:
    document = TrustBundle(TD, (), (JwtAuthority(name, JWT_KEYS[name]),)).to_jwks()
    return {**json.loads(document)["keys"][0], **changes}


@pytest.mark.spec("CL-17", "C-101")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kid": ""}, id="TD-30 empty kid"),
        pytest.param({"kid": None}, id="TD-30 no kid"),
        pytest.param({"crv": "secp256k1"}, id="unlisted curve"),
        pytest.param({"crv": []}, id="curve of another type"),
        pytest.param({"x": "AA"}, id="point not on the curve"),
        pytest.param({"x": 1}, id="coordinate of another type"),
        pytest.param({"x": "+/+/"}, id="standard base64"),
        pytest.param({"kty": "OKP"}, id="no key type of JWT-SVIDs"),
        pytest.param({"kty": "RSA", "n": "AQAB", "e": "AQAB"}, id="RSA of 17 bits"),
        pytest.param({"kty": "RSA", "n": "_" * 200_000, "e": "AQAB"}, id="RSA of a million bits"),
        pytest.param({"kty": "RSA", "n": "", "e": ""}, id="RSA of nothing"),
    ],
)
def test_a_bad_jwt_entry_is_ignored_alone(changes: dict[str, object]) -> None:
    assert parse(jwt_entry("p256", **changes)).jwt_authorities == ()
    assert parse(jwt_entry("p256", **changes), jwt_entry("rsa")) == parse(jwt_entry("rsa"))


@pytest.mark.spec("C-106")
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("<html>", id="C-106 a page"),
        pytest.param("[]", id="no object"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="TD-8 C-106 no keys"),
        pytest.param('{"keys":null}', id="TD-8 null keys"),
        pytest.param('{"keys":{}}', id="TD-8 keys is an object"),
        pytest.param('{"keys":[],"keys":[]}', id="keys twice"),
        pytest.param('{"keys":[{"use":"sig","use":"x509-svid"}]}', id="use twice"),
        pytest.param('{"keys":[],"more":{"a":{"b":1,"b":1}}}', id="twice deep down"),
        pytest.param('{"keys":[NaN]}', id="NaN"),
        pytest.param('{"keys":[],"spiffe_sequence":-Infinity}', id="infinity"),
        pytest.param('{"keys":[]} x', id="more text"),
        pytest.param('{"keys":[],}', id="trailing comma"),
        pytest.param('{"keys":' + "[" * 100_000, id="deep"),
        pytest.param('{"keys":[],"spiffe_sequence":' + "9" * 5000 + "}", id="number of 5000 digits"),
        pytest.param("\ufeff" + '{"keys":[]}', id="byte order mark"),
    ],
)
def test_what_is_no_jwks_is_refused(text: str) -> None:
    with pytest.raises(InvalidBundle) as refused:
        TrustBundle.from_jwks(TD, text.encode())
    assert refused.value.reason == "INVALID_TRUST_BUNDLE"


def test_who_stored_a_bundle_with_a_byte_order_mark_is_told() -> None:
    with pytest.raises(InvalidBundle, match="byte order mark"):
        TrustBundle.from_jwks(TD, "\ufeff{}".encode())


def test_bytes_that_are_no_text_and_too_many_bytes_are_refused() -> None:
    with pytest.raises(InvalidBundle):
        TrustBundle.from_jwks(TD, b'{"keys":[],"a":"\xff"}')
    with pytest.raises(InvalidBundle, match="longer than"):
        TrustBundle.from_jwks(TD, b'{"keys":[]}' + b" " * 4 * 1024 * 1024)


@pytest.mark.spec("C-108")
@pytest.mark.parametrize("value", ["300", 1.5, True, None, -1, 10**12])
def test_a_refresh_hint_that_is_none(value: object) -> None:
    assert parse(GOOD, spiffe_refresh_hint=value).refresh_hint is None


@pytest.mark.parametrize("value", ["1", 1.0, True, None, [1]])
def test_a_sequence_that_is_none(value: object) -> None:
    assert parse(GOOD, spiffe_sequence=value).sequence is None


@pytest.mark.spec("TD-8", "C-105")
def test_the_empty_bundle_is_a_bundle() -> None:
    assert parse() == TrustBundle(TD)
    assert json.loads(TrustBundle(TD).to_jwks()) == {"keys": []}


def test_pem_and_der_round_trip_in_order() -> None:
    certificates = tuple(authority().chain[0] for _ in range(3))
    made = TrustBundle(TD, certificates)
    assert TrustBundle.from_pem(TD, made.to_pem()).x509_authorities == certificates
    assert TrustBundle.from_der(TD, made.to_der()).x509_authorities == certificates
    assert TrustBundle.from_pem(TD, made.to_pem() * 2) == made
    assert TrustBundle.from_pem(TD, b"# a comment\r\n" + made.to_pem().replace(b"\n", b"\r\n")) == made


def test_what_all_volumes_write_and_are_told_is_made_once() -> None:
    made = TrustBundle(TD, authority().chain)
    assert made.to_pem() is made.to_pem()
    assert made.to_der() is made.to_der()
    assert made.to_jwks() is made.to_jwks()


PEM, DER = BUNDLE.to_pem(), BUNDLE.to_der()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"# only a comment\n", id="no block"),
        pytest.param(PEM + key_to_pem(AUTHORITY.private_key), id="a key among them"),
        pytest.param(PEM.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"), id="another kind of certificate"),
        pytest.param(PEM + PEM[:-30], id="last block without end"),
        pytest.param(PEM[:100], id="only block without end"),
    ],
)
def test_what_is_no_pem_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBundle, match="not a PEM trust bundle") as refused:
        TrustBundle.from_pem(TD, data)
    assert "PRIVATE" not in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(DER + b"\0", id="one byte more"),
        pytest.param(DER + b"\x30", id="half a header more"),
        pytest.param(DER + b"\x30\x00", id="an empty sequence more"),
        pytest.param(DER[:-1], id="one byte less"),
        pytest.param(b"\x30\x80" + DER[2:] + b"\0\0", id="indefinite length"),
        pytest.param(b"\x30\x85\0\0\0\0\0", id="length of five bytes"),
        pytest.param(b"\x30\x84\xff\xff\xff\xff", id="length of four gigabytes"),
        pytest.param(PEM, id="PEM"),
    ],
)
def test_what_is_no_der_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBundle, match="not a DER trust bundle"):
        TrustBundle.from_der(TD, data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["RSA", "EC", "OKP", "AKP"]) | _JSON,
        "use": st.sampled_from(["x509-svid", "jwt-svid"]) | _JSON,
        "x5c": st.lists(st.just(GOOD["x5c"][0]) | _JSON, max_size=2) | _JSON,
        "kid": st.text(max_size=3) | _JSON,
        "crv": st.sampled_from(["P-256", "P-384", "P-521"]) | _JSON,
        "x": st.just(GOOD["x"]) | _JSON,
        "y": st.just(GOOD["y"]) | _JSON,
        "n": st.text(max_size=9) | _JSON,
        "e": st.just("AQAB") | _JSON,
    },
)


@given(st.lists(_ENTRY | _JSON, max_size=4), _JSON, _JSON)
def test_json_of_any_shape_is_a_bundle_or_refused(entries: list[object], sequence: object, hint: object) -> None:
    document = {"keys": entries, "spiffe_sequence": sequence, "spiffe_refresh_hint": hint}
    try:
        found = TrustBundle.from_jwks(TD, json.dumps(document).encode())
    except InvalidBundle:
        return
    assert TrustBundle.from_jwks(TD, found.to_jwks()) == found


def test_a_digest_names_what_is_trusted_and_nothing_else() -> None:
    """Signer and agent make it each from what they hold: order, sequence, hint and format are no part of it."""
    one, two = (
        X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW).chain[0]
        for _ in range(2)
    )
    keys = tuple(JwtAuthority(name, ec.generate_private_key(ec.SECP256R1()).public_key()) for name in ("a", "b"))
    bundle = TrustBundle(TD, (one, two), keys, sequence=7)
    same = [
        TrustBundle(TD, (two, one), keys[::-1], sequence=8, refresh_hint=timedelta(minutes=5)),
        TrustBundle.from_jwks(TD, bundle.to_jwks()),
    ]
    assert {each.digest() for each in same} == {bundle.digest()}
    assert len(bundle.digest()) == 32
    others = [
        TrustBundle(TD, (one, two), keys[:1]),
        TrustBundle(TD, (one,), keys),
        TrustBundle(TD, (), keys),
        TrustBundle(TD, (one, two)),
        TrustBundle(TD),
        TrustBundle(TrustDomain("other.test")),
        TrustBundle(TD, (one, two), (JwtAuthority("c", keys[0].public_key), keys[1])),
        TrustBundle(TD, (one, two), (JwtAuthority("a", keys[1].public_key), JwtAuthority("b", keys[0].public_key))),
    ]
    assert len({each.digest() for each in [bundle, *others]}) == len(others) + 1
