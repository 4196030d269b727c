"""JWT-SVIDs: every trap of JOSE, each as a token that a lax reader would take."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from svid.bundle import JwtAuthority, TrustBundle
from svid.errors import InvalidSvid, IssuanceRefused
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import (
    MAX_AUDIENCE_BYTES,
    MAX_AUDIENCES,
    MAX_TOKEN,
    NOT_BEFORE_LEEWAY,
    check_jwt_svid,
    parse_jwt_svid_unverified,
)
from svid.spiffeid import SpiffeId, TrustDomain

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
KEYS = {algorithm: JwtSigningKey.create(algorithm) for algorithm in JwtAlgorithm}
KEY = KEYS[JwtAlgorithm.ES256]
FOREIGN = JwtSigningKey(KEY.key_id, JwtAlgorithm.ES256.generate(), JwtAlgorithm.ES256)  # another key, the same kid
BUNDLES = {
    OWN: TrustBundle(OWN, jwt_authorities=tuple(key.public for key in KEYS.values())),
    PARTNER: TrustBundle(PARTNER, jwt_authorities=(FOREIGN.public,)),
}
GOOD: Mapping[str, Any] = {
    "sub": str(WEB),
    "aud": ["db"],
    "exp": int(NOW.timestamp()) + 300,
    "iat": int(NOW.timestamp()),
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: Any, claims: Any, key: JwtSigningKey = KEY) -> str:
    """A token whose header and payload are what a test says, text included, and whose signature is right."""
    parts = [each if isinstance(each, str) else json.dumps(each) for each in (header, claims)]
    text = ".".join(b64(part.encode()) for part in parts)
    algorithm = jwt.get_algorithm_by_name(key.algorithm.value)
    return f"{text}.{b64(algorithm.sign(text.encode(), key.private_key))}"


def header(key: JwtSigningKey = KEY, **more: Any) -> dict[str, Any]:
    return {"alg": key.algorithm.value, "kid": key.key_id, "typ": "JWT", **more}


def without(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def check(token: str, audience: str = "db", now: datetime = NOW) -> Any:
    return check_jwt_svid(token, BUNDLES, audience, now)


def refused(token: str, words: str, audience: str = "db", now: datetime = NOW) -> None:
    with pytest.raises(InvalidSvid) as caught:
        check(token, audience, now)
    assert words in str(caught.value)
    assert token[:20] not in str(caught.value)


@pytest.mark.spec("JWT-1", "JWT-2", "JWT-3", "JWT-4", "JWT-5", "JWT-6", "JWT-7", "JWT-9", "CL-18")
@pytest.mark.parametrize("algorithm", JwtAlgorithm)
def test_what_is_issued_has_the_profile_and_is_valid(algorithm: JwtAlgorithm) -> None:
    key = KEYS[algorithm]
    svid = key.issue(WEB, ["db", "cache", "db"], ttl=timedelta(minutes=5), now=NOW)
    assert len(svid.token.split(".")) == 3
    assert jwt.get_unverified_header(svid.token) == {"alg": algorithm.value, "kid": key.key_id, "typ": "JWT"}
    public: Any = key.public.public_key
    options: Any = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(svid.token, public, algorithms=[algorithm.value], audience="db", options=options)
    assert claims == {**GOOD, "aud": ["db", "cache"]}
    assert all(isinstance(claims[name], int) for name in ("exp", "iat"))
    found = check(svid.token, "cache")
    assert (found.spiffe_id, found.audiences, found.token) == (WEB, ("db", "cache"), svid.token)
    assert (found.expires_at, found.issued_at) == (NOW + timedelta(minutes=5), NOW)
    assert parse_jwt_svid_unverified(svid.token) == found == svid
    assert svid.token not in repr(svid)


@pytest.mark.spec("JWT-10")
def test_issuer_and_id_on_request() -> None:
    svid = KEY.issue(WEB, ["db"], ttl=timedelta(minutes=5), now=NOW, issuer="https://issuer.test", jwt_id="1")
    assert (svid.claims["iss"], svid.claims["jti"]) == ("https://issuer.test", "1")
    assert check(svid.token).claims == svid.claims


@pytest.mark.parametrize(
    ("audiences", "ttl"),
    [
        ([], 300),
        ([""], 300),
        (["db", ""], 300),
        ([f"a{n}" for n in range(MAX_AUDIENCES + 1)], 300),
        (["x" * (MAX_AUDIENCE_BYTES + 1)], 300),
        (["ä" * (MAX_AUDIENCE_BYTES // 2 + 1)], 300),
        (["db"], 0),
        (["db"], -1),
    ],
)
def test_not_issued(audiences: list[str], ttl: int) -> None:
    with pytest.raises(IssuanceRefused):
        KEY.issue(WEB, audiences, ttl=timedelta(seconds=ttl), now=NOW)


def test_the_longest_that_is_issued_is_accepted_by_the_validator() -> None:
    audiences = [f"{n:02}" + "x" * (MAX_AUDIENCE_BYTES - 2) for n in range(MAX_AUDIENCES)]
    svid = KEYS[JwtAlgorithm.RS512].issue(WEB, audiences, ttl=timedelta(minutes=5), now=NOW)
    assert check(svid.token, audiences[-1]).audiences == tuple(audiences)


def test_no_token_for_a_trust_domain_as_such() -> None:
    with pytest.raises(IssuanceRefused):
        KEY.issue(OWN.id, ["db"], ttl=timedelta(minutes=5), now=NOW)


@pytest.mark.spec("C-80", "C-71", "JWT-5", "JWT-29", "C-81")
@pytest.mark.parametrize(
    ("head", "claims"),
    [
        (header(), {**GOOD, "aud": "db"}),
        (header(), {**GOOD, "aud": ["x", "db"]}),
        (without("typ", header()), GOOD),
        (header(typ="JOSE"), GOOD),
        (without("kid", header()), GOOD),
        (header(), {**GOOD, "exp": GOOD["exp"] + 0.5}),
        (header(), without("iat", GOOD)),
        (header(), {**GOOD, "extra": {"a": [1]}}),
    ],
)
def test_variants_that_the_specification_allows(head: Any, claims: Any) -> None:
    assert check(signed(head, claims)).spiffe_id == WEB


@pytest.mark.spec("C-85", "JWT-31")
def test_issued_in_the_future_is_no_bound() -> None:
    assert check(signed(header(), {**GOOD, "iat": GOOD["iat"] + 3600})).spiffe_id == WEB


def unsigned(head: Any) -> str:
    return f"{b64(json.dumps(head).encode())}.{b64(json.dumps(GOOD).encode())}."


def hmac_with_the_public_key(encoding: serialization.Encoding) -> str:
    """The public key is no secret: whoever takes it as one for HS256 lets everybody sign."""
    secret = KEY.public.public_key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{b64(json.dumps(header(alg='HS256')).encode())}.{b64(json.dumps(GOOD).encode())}"
    code = hmac.HMAC(secret, hashes.SHA256())
    code.update(text.encode())
    return f"{text}.{b64(code.finalize())}"


@pytest.mark.spec("JWT-20", "C-67", "C-68")
@pytest.mark.parametrize(
    "token",
    [
        pytest.param(unsigned({"alg": "none", "kid": KEY.key_id}), id="none"),
        pytest.param(unsigned({"alg": "None"}), id="None"),
        pytest.param(unsigned({"kid": KEY.key_id}), id="absent"),
        pytest.param(unsigned({"alg": None}), id="null"),
        pytest.param(unsigned({"alg": ["ES256"]}), id="list"),
        pytest.param(signed(header(alg="es256"), GOOD), id="lower"),
        pytest.param(signed(header(alg="ES256K"), GOOD), id="ES256K"),
        pytest.param(signed(header(alg="EdDSA"), GOOD), id="EdDSA"),
        pytest.param(hmac_with_the_public_key(serialization.Encoding.PEM), id="HS256 PEM"),
        pytest.param(hmac_with_the_public_key(serialization.Encoding.DER), id="HS256 DER"),
    ],
)
def test_algorithms_beyond_the_nine(token: str) -> None:
    refused(token, "alg is not one of")


@pytest.mark.spec("JWT-30", "C-69")
def test_an_algorithm_of_another_curve_or_kind_than_the_keys() -> None:
    for algorithm in ("ES384", "ES512", "RS256", "PS256"):
        refused(signed(header(alg=algorithm), GOOD), "no ")
    p384 = KEYS[JwtAlgorithm.ES384]
    refused(signed(header(alg="ES256", kid=p384.key_id), GOOD, KEY), "has no ES256 key")


@pytest.mark.spec("JWT-28", "JWT-32", "C-79", "C-82", "C-83")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"typ": "wit+jwt"}, "typ"),
        ({"typ": "at+jwt"}, "typ"),
        ({"typ": "jwt"}, "typ"),
        ({"typ": ""}, "typ"),
        ({"typ": None}, "typ"),
        ({"crit": ["b64"], "b64": False}, "members beyond"),
        ({"crit": []}, "members beyond"),
        ({"jku": "https://evil.test"}, "members beyond"),
        ({"jwk": {}}, "members beyond"),
        ({"x5c": []}, "members beyond"),
        ({"x5u": "https://evil.test"}, "members beyond"),
        ({"cty": "JWT"}, "members beyond"),
        ({"kid": 1}, "kid"),
        ({"kid": ""}, "kid"),
        ({"kid": "unknown"}, "has no ES256 key"),
    ],
)
def test_headers_that_are_refused(more: dict[str, Any], words: str) -> None:
    refused(signed(header(**more), GOOD), words)


@pytest.mark.spec("JWT-21", "JWT-22", "JWT-23", "JWT-24", "JWT-27", "C-70", "C-72", "C-73", "C-74", "C-75", "C-84")
@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (without("sub", GOOD), "no sub"),
        ({**GOOD, "sub": 1}, "no sub"),
        ({**GOOD, "sub": "web"}, "not a SPIFFE ID"),
        ({**GOOD, "sub": f"{WEB}\n"}, "not a SPIFFE ID"),
        ({**GOOD, "sub": str(WEB).replace("example", "EXAMPLE")}, "not a SPIFFE ID"),
        ({**GOOD, "sub": "spiffe://example.org"}, "trust domain, not a workload"),
        (without("aud", GOOD), "no aud"),
        ({**GOOD, "aud": []}, "no aud"),
        ({**GOOD, "aud": [1]}, "no aud"),
        ({**GOOD, "aud": {"db": 1}}, "no aud"),
        ({**GOOD, "aud": "dbx"}, "not for this audience"),
        ({**GOOD, "aud": ["d", "DB", "db/"]}, "not for this audience"),
        (without("exp", GOOD), "no exp"),
        ({**GOOD, "exp": str(GOOD["exp"])}, "exp is not a number"),
        ({**GOOD, "exp": True}, "exp is not a number"),
        ({**GOOD, "exp": None}, "exp is not a number"),
        ({**GOOD, "exp": -1}, "exp is negative"),
        ({**GOOD, "exp": GOOD["iat"]}, "expired"),
        ({**GOOD, "exp": GOOD["iat"] - 1}, "expired"),
        ({**GOOD, "nbf": GOOD["iat"] + 3600}, "not valid yet"),
        ({**GOOD, "nbf": "x"}, "nbf is not a number"),
        ({**GOOD, "iat": "x"}, "iat is not a number"),
        ("[]", "not a JSON object"),
        ('{"exp": NaN}', "not a JSON object"),
        ('{"exp": 1' + "0" * 5000 + "}", "not a JSON object"),
        ("", "not a JSON object"),
    ],
)
def test_claims_that_are_refused(claims: Any, words: str) -> None:
    refused(signed(header(), claims), words)


@pytest.mark.spec("C-74")
def test_a_huge_but_finite_end_is_legal() -> None:
    for exp in ("1e300", "1" + "0" * 300):
        claims = json.dumps({**GOOD, "exp": 0}).replace('"exp": 0', f'"exp": {exp}')
        assert check(signed(header(), claims)).expires_at.year == 9999


@pytest.mark.spec("JWT-24")
def test_the_edges_of_time() -> None:
    token = signed(header(), {**GOOD, "nbf": GOOD["iat"]})
    end = NOW + timedelta(seconds=300)
    assert check(token, now=end - timedelta(microseconds=1))
    refused(token, "expired", now=end)
    assert check(token, now=NOW - NOT_BEFORE_LEEWAY)
    refused(token, "not valid yet", now=NOW - NOT_BEFORE_LEEWAY - timedelta(seconds=1))


@pytest.mark.spec("C-86")
@pytest.mark.parametrize("at", ["header", "payload", "nested"])
def test_a_member_that_stands_twice(at: str) -> None:
    head, claims = json.dumps(header()), json.dumps(GOOD)
    if at == "header":
        head = head.replace('{"alg"', '{"alg": "none", "alg"')
    elif at == "payload":
        claims = claims.replace('{"sub"', '{"sub": "spiffe://example.org/admin", "sub"')
    else:
        claims = claims.replace('{"sub"', '{"x": {"a": 1, "a": 2}, "sub"')
    refused(signed(head, claims), "twice")


@pytest.mark.spec("C-66", "JWT-1")
def test_other_serialisations() -> None:
    token = signed(header(), GOOD)
    first, second, third = token.split(".")
    document = json.dumps({"protected": first, "payload": second, "signature": third})
    for wrong in (
        "", ".", "..", f"{first}.{second}", f"{token}.", f"{token}.x.y", f"{token}\n", f" {token}", document,
        f"{first}=.{second}.{third}", f"{first}.{second}.{third}=", f"{first}.{second}.", f"{first}..{third}",
        f"{first}.{second}.{third[:-1]}", token.replace(".", ". "), "\ud800.a.b", "ä.b.c",
    ):  # fmt: skip
        with pytest.raises(InvalidSvid):
            check(wrong)
    for wrong in (f"{token}\n", f"{token}.x", f"{first}.{second}.\x1b[0m", f"{first}.{second}.{third}="):
        with pytest.raises(InvalidSvid):
            parse_jwt_svid_unverified(wrong)


def test_there_is_one_spelling_of_a_signature() -> None:
    """Unused bits of the last character must be zero, or one token has several spellings."""
    token = signed(header(), GOOD)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for other in alphabet:
        if other != token[-1]:
            with pytest.raises(InvalidSvid):
                check(token[:-1] + other)


def test_size_and_depth_are_bounded() -> None:
    refused(signed(header(), {**GOOD, "x": "y" * MAX_TOKEN}), "longer than")
    deep = json.dumps(GOOD)[:-1] + ', "x": ' + "[" * 10_000 + "]" * 10_000 + "}"
    with pytest.raises(InvalidSvid):
        check(signed(header(), deep))


@pytest.mark.spec("JWT-25", "C-76", "C-77")
def test_the_bundle_is_that_of_the_subjects_domain_whatever_the_kid_says() -> None:
    refused(signed(header(FOREIGN), GOOD, FOREIGN), "signature does not match")
    partner = {**GOOD, "sub": "spiffe://partner.test/x"}
    assert check(signed(header(FOREIGN), partner, FOREIGN)).spiffe_id.trust_domain == PARTNER
    refused(signed(header(), partner), "signature does not match")
    refused(signed(header(), {**GOOD, "sub": "spiffe://unknown.test/x"}), "no trust bundle")


@pytest.mark.spec("JWT-26", "C-78", "TD-31")
def test_keys_of_another_use_verify_nothing() -> None:
    document = json.loads(TrustBundle(OWN, jwt_authorities=(KEY.public,)).to_jwks())
    assert check_jwt_svid(
        signed(header(), GOOD), {OWN: TrustBundle.from_jwks(OWN, json.dumps(document).encode())}, "db", NOW
    )
    for use in ("wit-svid", "x509-svid", "sig", "JWT-SVID"):
        document["keys"][0]["use"] = use
        bundle = TrustBundle.from_jwks(OWN, json.dumps(document).encode())
        with pytest.raises(InvalidSvid):
            check_jwt_svid(signed(header(), GOOD), {OWN: bundle}, "db", NOW)


def test_two_keys_of_one_kid_are_both_tried() -> None:
    bundle = TrustBundle(OWN, jwt_authorities=(JwtAuthority(KEY.key_id, FOREIGN.public.public_key), KEY.public))
    assert check_jwt_svid(signed(header(), GOOD), {OWN: bundle}, "db", NOW)


def test_an_empty_audience_is_nobodys() -> None:
    refused(signed(header(), {**GOOD, "aud": [""]}), "not for this audience", audience="")


def test_a_key_of_another_kind_in_the_bundle_is_passed_over() -> None:
    odd: Any = ed25519.Ed25519PrivateKey.generate().public_key()
    bundle = TrustBundle(OWN, jwt_authorities=(JwtAuthority(KEY.key_id, odd), KEY.public))
    assert check_jwt_svid(signed(header(), GOOD), {OWN: bundle}, "db", NOW)
    k1: Any = ec.generate_private_key(ec.SECP256K1()).public_key()
    bundle = TrustBundle(OWN, jwt_authorities=(JwtAuthority(KEY.key_id, k1),))
    with pytest.raises(InvalidSvid):
        check_jwt_svid(signed(header(), GOOD), {OWN: bundle}, "db", NOW)


SAMPLE = signed(header(), GOOD)


@settings(max_examples=400)
@given(st.integers(0, len(SAMPLE) - 1), st.text(max_size=3), st.integers(0, 3))
def test_no_changed_token_is_valid(at: int, put: str, cut: int) -> None:
    changed = SAMPLE[:at] + put + SAMPLE[at + cut :]
    if changed != SAMPLE:
        with pytest.raises(InvalidSvid):
            check(changed)


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{0,20}\.[A-Za-z0-9_-]{0,20}\.[A-Za-z0-9_-]{0,20}"))
def test_any_text_is_answered(text: str) -> None:
    with pytest.raises(InvalidSvid):
        check(text)
