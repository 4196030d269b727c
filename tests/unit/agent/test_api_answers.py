"""Tokens, validations and bundles that a Workload API answers with: for each check an answer that fails only there."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.pb import workload_pb2
from podsvid.api.answers import bundles, jwt_svids, valid_token
from podsvid.api.errors import UnusableAnswer
from svid.bundle import TrustBundle
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import SpiffeId, TrustDomain

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
WEB = SpiffeId.parse("spiffe://example.org/web")
ADMIN = SpiffeId.parse("spiffe://example.org/admin")
KEY = JwtSigningKey.create(JwtAlgorithm.ES256)
HOUR = timedelta(hours=1)


def token(spiffe_id: SpiffeId = WEB, audiences: tuple[str, ...] = ("api",), now: datetime = NOW) -> str:
    return KEY.issue(spiffe_id, audiences, ttl=HOUR, now=now).token


def answer(*entries: tuple[str, str]) -> bytes:
    svids = [workload_pb2.JWTSVID(spiffe_id=name, svid=text, hint="h") for name, text in entries]
    return workload_pb2.JWTSVIDResponse(svids=svids).SerializeToString()


def test_a_good_answer_is_told_whole() -> None:
    (found,) = jwt_svids(answer((str(WEB), token())), ["api"], WEB, NOW)
    assert (found.spiffe_id, found.audiences, found.expires_at, found.hint) == (WEB, ("api",), NOW + HOUR, "h")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (answer(), "holds no JWT-SVID"),
        (b"\xff", "not a JWTSVIDResponse"),
        (answer((str(WEB), token(audiences=("other",)))), "is not for"),
        (answer((str(WEB), token(now=NOW - HOUR))), "has expired"),
        (answer((str(ADMIN), token(ADMIN))), "another identity than"),
        (answer((str(WEB), token()), (str(ADMIN), token(ADMIN))), "another identity than"),
        (answer((str(WEB), token(ADMIN))), "but its SVID is for"),
        (answer(("", token())), "but its SVID is for"),
        (answer((str(WEB), token() + "\n")), "something else than a JWT"),
        (answer((str(WEB), "\x1b[2J.a.b")), "something else than a JWT"),
        (answer((str(WEB), "a.b")), "something else than a JWT"),
        (answer((str(WEB), "e30.e30.e30")), "unusable"),
    ],
    ids=range(12),  # each process makes tokens of its own, and all have to know a case by one name
)
def test_a_jwt_svid_with_one_thing_wrong_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(UnusableAnswer, match=why) as refused:
        jwt_svids(data, ["api"], WEB, NOW)
    assert str(refused.value).isprintable()


def test_every_audience_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(UnusableAnswer, match=r"is not for .*db"):
        jwt_svids(answer((str(WEB), token())), ["api", "db"], WEB, NOW)


def test_at_its_end_a_token_has_ended() -> None:
    good = answer((str(WEB), token()))
    assert jwt_svids(good, ["api"], WEB, NOW + HOUR - timedelta(seconds=1))
    with pytest.raises(UnusableAnswer, match="has expired"):
        jwt_svids(good, ["api"], WEB, NOW + HOUR)


def test_whoever_asks_for_all_identities_gets_all() -> None:
    found = jwt_svids(answer((str(WEB), token()), (str(ADMIN), token(ADMIN))), ["api"], None, NOW)
    assert [each.spiffe_id for each in found] == [WEB, ADMIN]


def validation(spiffe_id: str, claims: dict[str, Any]) -> bytes:
    response = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=spiffe_id)
    response.claims.update(claims)
    return response.SerializeToString(deterministic=True)


def test_a_validation_is_believed_where_name_and_claims_agree() -> None:
    found = valid_token(validation(str(WEB), {"sub": str(WEB), "exp": 2**40, "x": [1.5, None, {"a": True}]}))
    assert found.spiffe_id == WEB
    assert found.claims == {"sub": str(WEB), "exp": 2**40, "x": [1.5, None, {"a": True}]}


@pytest.mark.parametrize(
    "data",
    [
        validation(str(WEB), {"sub": str(ADMIN)}),
        validation(str(WEB), {}),
        validation("", {"sub": ""}),
        validation("web", {"sub": "web"}),
        validation(str(WEB), {"sub": str(WEB), "x": float("inf")}),
        b"\xff",
    ],
    ids=("another's sub", "no sub", "no name", "no SPIFFE ID", "no JSON", "no message"),
)
def test_a_validation_that_contradicts_itself_is_none(data: bytes) -> None:
    with pytest.raises(UnusableAnswer):
        valid_token(data)


def x509_bundles(entries: dict[str, bytes]) -> bytes:
    return workload_pb2.X509BundlesResponse(bundles=entries).SerializeToString()


def jwt_bundles(entries: dict[str, bytes]) -> bytes:
    return workload_pb2.JWTBundlesResponse(bundles=entries).SerializeToString()


KEYS = TrustBundle(TrustDomain("example.org"), (), (KEY.public,)).to_jwt_jwks()


def test_keys_of_a_jwk_set_are_keys_whether_it_says_what_for_or_not() -> None:
    for keys in (
        KEYS,
        KEYS.replace(b'"kid"', b'"use": "sig", "kid"'),
        KEYS.replace(b'"kid"', b'"use": "jwt-svid", "kid"'),
    ):
        (found,) = bundles(None, jwt_bundles({"spiffe://example.org": keys}))
        assert [each.key_id for each in found.jwt_authorities] == [KEY.key_id]
    (found,) = bundles(None, jwt_bundles({"spiffe://example.org": KEYS.replace(b'"kid"', b'"use": "enc", "kid"')}))
    assert not found.jwt_authorities


@pytest.mark.parametrize(
    "made",
    [
        lambda: bundles(x509_bundles({}), None),
        lambda: bundles(x509_bundles({"spiffe://example.org": b"0"}), None),
        lambda: bundles(x509_bundles({"spiffe://example.org/web": b""}), None),
        lambda: bundles(None, jwt_bundles({"example.org": KEYS})),
        lambda: bundles(None, jwt_bundles({"spiffe://example.org": b"{}"})),
        lambda: bundles(None, jwt_bundles({"spiffe://example.org": b'{"keys": [], "keys": []}'})),
        lambda: bundles(b"\xff", None),
    ],
)
def test_bundles_with_one_thing_wrong_are_refused(made: Callable[[], object]) -> None:
    with pytest.raises(UnusableAnswer):
        made()
