"""What readers outside have of an issuer's documents: hostile documents say nothing, and keys are told apart by what
makes them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svid import oidc
from svid.bundle import TrustBundle
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.oidc import Issuer
from svid.readers import (
    MAX_DOCUMENT,
    MAX_KEYS,
    Comparison,
    Discovery,
    ReadKey,
    Standing,
    UnreadableDocument,
    age_of,
    compared,
    discovery_of,
    kept_for,
    keys_of,
)
from svid.spiffeid import TrustDomain

ISSUER = Issuer.of("https://oidc.example.org/prod", None)
ONE, TWO, THREE = (JwtSigningKey.create(each) for each in (JwtAlgorithm.ES256, JwtAlgorithm.RS256, JwtAlgorithm.ES384))


def written(*keys: JwtSigningKey) -> bytes:
    return oidc.keys(TrustBundle(TrustDomain("example.org"), (), tuple(each.public for each in keys)))


def changed(document: bytes, **members: Any) -> bytes:
    """Its first key with other members."""
    found = json.loads(document)
    found["keys"][0] |= members
    return json.dumps(found).encode()


def standings(outside: bytes, own: bytes, *abandoned: str) -> list[Standing]:
    return [each for _, each in compared(keys_of(outside), keys_of(own), abandoned).keys]


def test_what_is_published_is_read_as_it_is() -> None:
    bundle = TrustBundle(TrustDomain("example.org"), (), (ONE.public, TWO.public))
    assert discovery_of(oidc.configuration(bundle, ISSUER)) == Discovery(ISSUER.url, ISSUER.jwks_uri)
    assert ISSUER.configuration_url == "https://oidc.example.org/prod/.well-known/openid-configuration"
    own = written(ONE, TWO)
    found = compared(keys_of(own), keys_of(own), ())
    assert found == Comparison(((ONE.key_id, Standing.PUBLISHED), (TWO.key_id, Standing.PUBLISHED)), ())


def test_each_key_outside_has_a_standing_and_each_that_lacks_is_named() -> None:
    found = compared(keys_of(written(ONE, TWO)), keys_of(written(TWO, THREE)), ())
    assert found.keys == ((ONE.key_id, Standing.NOT_PUBLISHED), (TWO.key_id, Standing.PUBLISHED))
    assert found.missing == (THREE.key_id,)
    stolen = compared(keys_of(written(ONE, TWO)), keys_of(written(TWO)), (ONE.key_id, TWO.key_id))
    # One that was declared stolen is so before it leaves what is published, too.
    assert [each for _, each in stolen.keys] == [Standing.ABANDONED, Standing.ABANDONED]
    assert stolen.missing == ()


def test_a_key_under_anothers_id_is_another_and_the_own_is_missing() -> None:
    own = written(ONE)
    forged = changed(written(JwtSigningKey.create(JwtAlgorithm.ES256)), kid=ONE.key_id)
    found = compared(keys_of(forged), keys_of(own), ())
    assert found == Comparison(((ONE.key_id, Standing.ANOTHER),), (ONE.key_id,))
    # Also where it was abandoned: what is there is not what was stolen.
    assert standings(forged, own, ONE.key_id) == [Standing.ANOTHER]
    for strange in ({"kty": "oct"}, {"x": 7}, {"x": "é"}, {"y": None}, {"crv": "P-384"}, {"kty": ["EC"]}):
        assert standings(changed(own, **strange), own) == [Standing.ANOTHER], strange
    for beside in ({"alg": "none"}, {"use": "enc"}, {"x5c": ["a"]}, {"x": json.loads(own)["keys"][0]["x"] + "="}):
        assert standings(changed(own, **beside), own) == [Standing.PUBLISHED], beside
    assert standings(changed(own, kid=7), own) == [Standing.NOT_PUBLISHED]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>",
        b"\xff{}",
        b"[]",
        b"[" * 100_000,
        b'{"keys": 7}',
        b'{"keys": [7]}',
        b'{"keys": [' + b"9" * 10_000 + b"]}",
        json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(),
        b'{"keys": []}' + b" " * MAX_DOCUMENT,
    ],
    ids=lambda each: repr(each[:20]),
)
def test_what_is_no_document_is_none(document: bytes) -> None:
    for read in (keys_of, discovery_of):
        with pytest.raises(UnreadableDocument):
            read(document)


@pytest.mark.parametrize("members", [{"issuer": 7}, {"jwks_uri": ""}, {"issuer": "x" * 5000}, {"jwks_uri": None}])
def test_a_discovery_document_leads_somewhere(members: dict[str, Any]) -> None:
    with pytest.raises(UnreadableDocument):
        discovery_of(json.dumps({"issuer": "a", "jwks_uri": "b", **members}).encode())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each)))
def test_no_member_of_a_key_is_more_than_another_key(value: Any) -> None:
    own = written(ONE)
    for name in ("kid", "kty", "crv", "x", "y"):
        found = compared(keys_of(changed(own, **{name: value})), keys_of(own), ())
        assert found.keys[0][1] in (Standing.ANOTHER, Standing.NOT_PUBLISHED)
        assert found.missing == (ONE.key_id,)


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    for read in (keys_of, discovery_of):
        try:
            read(data)
        except UnreadableDocument:
            continue


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("", None),
        ("public", None),
        ("public, max-age=60", 60),
        ("max-age=60, s-maxage=86400", 86400),
        ("S-MaxAge=5, max-age=60", 60),
        ('MAX-AGE = "7" ,public', 7),
        ("max-age=60, no-store", 0),
        ("no-cache", 0),
        ("max-age=-1", None),
        ("max-age=x", None),
        ("s-maxage=60", 60),
        ("max-age=99999999999999999999", 2**31 - 1),
        ("max-age=" + "9" * 5000, None),
    ],
)
def test_for_how_long_an_answer_is_kept(said: str, seconds: int | None) -> None:
    assert kept_for(said) == seconds


@pytest.mark.parametrize(("said", "seconds"), [("", 0), (" 7 ", 7), ("-7", 0), ("٧", 0), ("9" * 5000, 0)])
def test_how_old_an_answer_is(said: str, seconds: int) -> None:
    assert age_of(said) == seconds


@given(st.text(max_size=200))
def test_no_header_is_more_than_not_said(text: str) -> None:
    assert kept_for(text) is None or kept_for(text) in range(2**31)
    assert age_of(text) in range(2**31)


def test_a_key_without_an_id_is_read_as_one() -> None:
    assert keys_of(b'{"keys": [{}]}') == (ReadKey("", ()),)
