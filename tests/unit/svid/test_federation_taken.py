"""Which bundle of another trust domain is taken, and when it is looked for again (SPIFFE_Federation.md 4, 6)."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from svid.bundle import TrustBundle
from svid.errors import InvalidBundle
from svid.federation import (
    AFTER_FAILURE,
    LEAST_INTERVAL,
    MAX_AUTHORITIES,
    MAX_DOCUMENT,
    MOST_INTERVAL,
    NO_HINT,
    Order,
    accepted,
    interval,
    interval_after_failure,
    order,
)
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.fake_authority import bundle_of, root

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
PARTNER = TrustDomain("partner.test")
ONE, OTHER = root(NOW, PARTNER).bundle, root(NOW, PARTNER).bundle
OWN_ROOT, KEY = root(NOW), JwtSigningKey.create(JwtAlgorithm.ES256)
OWN = bundle_of(OWN_ROOT, KEY)


def taken(document: bytes, left_out: list[str] | None = None) -> TrustBundle:
    return accepted(PARTNER, document, OWN, (left_out if left_out is not None else []).append)


@pytest.mark.parametrize(
    ("held", "found", "how"),
    [
        (None, ONE, Order.NEWER),
        (replace(ONE, sequence=7), replace(OTHER, sequence=8), Order.NEWER),
        (replace(ONE, sequence=7), replace(ONE, sequence=8), Order.NEWER),
        (replace(ONE, sequence=7), replace(ONE, sequence=7), Order.SAME),
        (replace(ONE, sequence=7), replace(OTHER, sequence=7), Order.UNNUMBERED),
        (replace(ONE, sequence=7), replace(OTHER, sequence=6), Order.OLDER),
        (replace(ONE, sequence=7), replace(ONE, sequence=6), Order.OLDER),
        (replace(ONE, sequence=7), replace(OTHER, sequence=None), Order.NEWER),
        (replace(ONE, sequence=None), replace(OTHER, sequence=0), Order.NEWER),
        (replace(ONE, sequence=None), replace(ONE, sequence=None), Order.SAME),
        (replace(ONE, sequence=None), replace(OTHER, sequence=None), Order.NEWER),
    ],
)
def test_the_sequence_says_what_is_newer_and_else_the_last_one_is(
    held: TrustBundle | None, found: TrustBundle, how: Order
) -> None:
    assert order(held, found) is how


@pytest.mark.spec("FED-30")
def test_what_is_published_is_read_as_the_bundle_of_the_domain_that_was_asked_for() -> None:
    found = taken(replace(ONE, sequence=3).to_jwks())
    assert (found.trust_domain, found.x509_authorities, found.sequence) == (PARTNER, ONE.x509_authorities, 3)
    # A domain that trusts nobody any more says so (TDB 4.1.3).
    assert taken(b'{"keys": []}').x509_authorities == ()


@pytest.mark.parametrize("document", [b"", b"<html>", b"{}", b'{"keys": 1}', b'{"keys": null}', b"[]", b"\xff"])
def test_what_is_no_bundle_is_none(document: bytes) -> None:
    with pytest.raises(InvalidBundle):
        taken(document)


def test_a_document_is_bounded() -> None:
    with pytest.raises(InvalidBundle, match="longer than 512 KiB"):
        taken(b'{"keys": []}'.ljust(MAX_DOCUMENT + 1))
    assert taken(b'{"keys": []}'.ljust(MAX_DOCUMENT)).jwt_authorities == ()
    (key,) = json.loads(ONE.to_jwks())["keys"]
    jwt = {"kty": "EC", "use": "jwt-svid", **json.loads(OWN.to_jwt_jwks())["keys"][0]}
    strange = {**jwt, **{name: key[name] for name in ("x", "y", "crv")}}
    full = [{**strange, "kid": str(number)} for number in range(MAX_AUTHORITIES)]
    assert len(taken(json.dumps({"keys": full}).encode()).jwt_authorities) == MAX_AUTHORITIES
    with pytest.raises(InvalidBundle, match="more than 100 authorities"):
        taken(json.dumps({"keys": [*full, key]}).encode())


def jwt_keys(*entries: Mapping[str, object]) -> bytes:
    return json.dumps({"keys": [{"use": "jwt-svid", **each} for each in entries]}).encode()


def test_what_verifying_costs_is_bounded() -> None:
    left_out: list[str] = []
    large = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    odd = {"kty": "RSA", "kid": "e", "n": _number(large.n), "e": _number(2**40 + 1)}
    long = {"kty": "RSA", "kid": "n", "n": _number(2**8300 + 1), "e": "AQAB"}
    assert taken(jwt_keys(odd, long), left_out).jwt_authorities == ()
    assert len(left_out) == 2
    certificates = [each for _ in range(9) for each in _of_one_name()]
    keys = [json.loads(TrustBundle(PARTNER, (each,)).to_jwks())["keys"][0] for each in certificates]
    assert len(taken(json.dumps({"keys": keys[:8]}).encode()).x509_authorities) == 8
    with pytest.raises(InvalidBundle, match="more than 8 X"):
        taken(json.dumps({"keys": keys}).encode())
    with pytest.raises(InvalidBundle, match="more than 200 entries"):
        taken(json.dumps({"keys": [{"kty": "x"}] * 201}).encode())


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


def _of_one_name() -> tuple[x509.Certificate, ...]:
    key, name = KeyAlgorithm.EC_P256.generate(), x509.Name.from_rfc4514_string("CN=partner")
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - timedelta(days=1), NOW)
    return (builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()),)


@pytest.mark.parametrize("kid", ["\ud800", "a\udfff", "x" * 1025])
def test_a_key_id_that_is_no_text_is_left_out(kid: str) -> None:
    (key,) = json.loads(OTHER.to_jwks())["keys"]
    left_out: list[str] = []
    entry = {each: key[each] for each in ("kty", "crv", "x", "y")}
    assert taken(jwt_keys({**entry, "kid": kid}), left_out).jwt_authorities == ()
    assert len(left_out) == 1
    assert len(
        taken(jwt_keys({**entry, "kid": kid[:1024].replace("\ud800", "é").replace("\udfff", "é")})).jwt_authorities
    )


@pytest.mark.parametrize("sequence", [-1, 2**63, 2**70])
def test_a_sequence_has_63_bits(sequence: int) -> None:
    with pytest.raises(InvalidBundle, match="63 bits"):
        taken(json.dumps({"keys": [], "spiffe_sequence": sequence}).encode())
    assert taken(json.dumps({"keys": [], "spiffe_sequence": 2**63 - 1}).encode()).sequence == 2**63 - 1


def test_what_is_short_as_it_came_and_long_as_it_is_published_is_refused() -> None:
    (key,) = json.loads(OTHER.to_jwks())["keys"]
    entry = {each: key[each] for each in ("kty", "crv", "x", "y")}
    document = {"keys": [{"use": "jwt-svid", **entry, "kid": f"{number:03}" + "é" * 1000} for number in range(95)]}
    data = json.dumps(document, ensure_ascii=False).encode()
    assert len(data) < MAX_DOCUMENT
    with pytest.raises(InvalidBundle, match="once written in full"):
        taken(data)


@pytest.mark.parametrize("mine", [OWN_ROOT.bundle, replace(OWN, x509_authorities=())])
@pytest.mark.spec("FED-8", "TD-16")
def test_the_own_authorities_are_nobody_elses(mine: TrustBundle) -> None:
    keys = json.loads(ONE.to_jwks())["keys"] + json.loads(mine.to_jwks())["keys"]
    with pytest.raises(InvalidBundle, match=r"an authority of example\.org"):
        taken(json.dumps({"keys": keys}).encode())


def test_what_cannot_be_an_authority_is_told_and_the_others_count() -> None:
    left_out: list[str] = []
    keys = [*json.loads(ONE.to_jwks())["keys"], {"kty": "EC", "use": "x509-svid", "x5c": ["AAAA"]}, {"use": "sig"}]
    found = taken(json.dumps({"keys": keys}).encode(), left_out)
    assert found.x509_authorities == ONE.x509_authorities
    assert len(left_out) == 1


@given(st.none() | st.integers(0, 10**9))
def test_a_partner_is_asked_four_times_in_its_hint_and_neither_all_the_time_nor_once_a_day(seconds: int | None) -> None:
    hint = None if seconds is None else timedelta(seconds=seconds)
    bundle = replace(ONE, refresh_hint=hint)
    found = interval(bundle)
    assert LEAST_INTERVAL <= found <= MOST_INTERVAL
    assert found <= max((hint or NO_HINT) / 4, LEAST_INTERVAL)
    # No hint makes a failure be tried again at once, nor forgotten for an hour.
    assert min(found, AFTER_FAILURE) == interval_after_failure(bundle)


@pytest.mark.spec("FED-5")
def test_without_a_bundle_it_is_asked_as_without_a_hint() -> None:
    assert interval(None) == NO_HINT / 4
