"""Bounds that another check stands behind or before: each is met by itself here."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography import x509

from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidSvid, IssuanceRefused
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import MAX_AUDIENCE_BYTES, MAX_AUDIENCES, check_jwt_svid
from svid.keys import KeyAlgorithm, signature_hash
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
OWN = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/web")
KEY = JwtSigningKey.create(JwtAlgorithm.ES256)
ISSUER = X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=HOUR, now=NOW)


def extended(*, critical: bool) -> tuple[x509.Certificate, ...]:
    """A good leaf with one extension more, which nobody here knows."""
    key = KeyAlgorithm.EC_P256.generate()
    (leaf,) = ISSUER.issue(key.public_key(), WEB, ttl=HOUR, now=NOW)
    builder = x509.CertificateBuilder(
        leaf.issuer, leaf.subject, key.public_key(), 7, leaf.not_valid_before_utc, leaf.not_valid_after_utc
    )
    for each in leaf.extensions:
        builder = builder.add_extension(each.value, each.critical)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    builder = builder.add_extension(unknown, critical)
    return (builder.sign(ISSUER.private_key, signature_hash(ISSUER.private_key)),)


def test_what_nobody_knows_is_refused_where_it_is_critical() -> None:
    assert check_x509_svid(extended(critical=False), ISSUER.bundle, NOW) == WEB
    with pytest.raises(InvalidSvid, match=r"unknown critical extension 1\.3\.6\.1\.4\.1\.55555\.1"):
        check_x509_svid(extended(critical=True), ISSUER.bundle, NOW)


def test_an_authority_refuses_a_foreign_domain_before_it_signs() -> None:
    with pytest.raises(IssuanceRefused, match=r"^spiffe://other\.test/web is not of trust domain example\.org$"):
        ISSUER.issue(ISSUER.private_key.public_key(), SpiffeId.parse("spiffe://other.test/web"), ttl=HOUR, now=NOW)


@pytest.mark.parametrize(("ahead", "good"), [(15, True), (16, False)])
def test_a_token_without_a_kid_is_tried_against_so_many_keys(ahead: int, good: bool) -> None:
    others = tuple(JwtSigningKey.create(JwtAlgorithm.ES256).public for _ in range(ahead))
    bundles = {OWN: TrustBundle(OWN, (), (*others, KEY.public))}
    claims = {"sub": str(WEB), "aud": ["api"], "exp": int((NOW + HOUR).timestamp())}
    token = jwt.encode(claims, KEY.private_key, algorithm="ES256")
    header = json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
    assert "kid" not in header
    if good:
        assert check_jwt_svid(token, bundles, "api", NOW).spiffe_id == WEB
    else:
        with pytest.raises(InvalidSvid, match="signature does not match"):
            check_jwt_svid(token, bundles, "api", NOW)


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(milliseconds=999), -HOUR])
@pytest.mark.parametrize("fraction", [timedelta(0), timedelta(microseconds=1)])
def test_a_token_lives_a_second_at_least(ttl: timedelta, fraction: timedelta) -> None:
    with pytest.raises(IssuanceRefused, match="a second at least"):
        KEY.issue(WEB, ["api"], ttl=ttl, now=NOW + fraction)
    assert KEY.issue(WEB, ["api"], ttl=timedelta(seconds=1), now=NOW).expires_at == NOW + timedelta(seconds=1)


@pytest.mark.parametrize("audiences", [[], [""], ["api", ""], ["", "api"]])
def test_an_empty_audience_is_none(audiences: list[str]) -> None:
    with pytest.raises(IssuanceRefused, match="needs an audience, none of them empty"):
        KEY.issue(WEB, audiences, ttl=HOUR, now=NOW)


def test_audiences_are_bounded_in_number_and_bytes() -> None:
    many = [f"a{n}" for n in range(MAX_AUDIENCES)]
    assert KEY.issue(WEB, [*many, *many], ttl=HOUR, now=NOW).audiences == tuple(many)
    assert KEY.issue(WEB, ["x" * MAX_AUDIENCE_BYTES], ttl=HOUR, now=NOW)
    for wrong in ([*many, "one more"], ["x" * (MAX_AUDIENCE_BYTES + 1)], ["é" * (MAX_AUDIENCE_BYTES // 2 + 1)]):
        with pytest.raises(IssuanceRefused, match="at most"):
            KEY.issue(WEB, wrong, ttl=HOUR, now=NOW)


def test_a_token_names_no_trust_domain() -> None:
    with pytest.raises(IssuanceRefused, match="with a path"):
        KEY.issue(OWN.id, ["api"], ttl=HOUR, now=NOW)


def test_what_each_renewal_writes_of_a_bundle_is_made_once() -> None:
    assert ISSUER.bundle.to_jwks() is ISSUER.bundle.to_jwks()
    # Kept with the bundle, and not with what is made of it.
    other = replace(ISSUER.bundle, jwt_authorities=(KEY.public,))
    assert other.to_jwks() != ISSUER.bundle.to_jwks()
    assert replace(other, jwt_authorities=()).to_jwks() == ISSUER.bundle.to_jwks()
