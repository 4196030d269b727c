"""The life of the keys that sign JWT-SVIDs: published before they sign, kept until their last token has ended."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from svid.errors import InvalidKey, IssuanceRefused
from svid.jws import JwtAlgorithm
from svid.jwtauthority import SKEW, JwtKeyring, JwtSigningKey, KeyringPolicy
from svid.spiffeid import SpiffeId

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = KeyringPolicy(JwtAlgorithm.ES256, signing_period=24 * HOUR, lead=2 * HOUR, token_ttl=HOUR)


def test_the_thumbprint_of_rfc_7638() -> None:
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3okn"
        "jhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qM"
        "QvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJz"
        "KnqDKgw"
    )
    import base64
    import hashlib

    from svid.bundle import jwk_members

    number = int.from_bytes(base64.urlsafe_b64decode(modulus + "=="), "big")
    key = rsa.RSAPublicNumbers(65537, number).public_key()
    text = json.dumps(dict(sorted(jwk_members(key).items())), separators=(",", ":"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    assert digest == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_a_key_from_pem_has_the_same_id_and_must_fit() -> None:
    key = JwtSigningKey.create(JwtAlgorithm.ES384)
    assert JwtSigningKey.from_pem(key.to_pem(), JwtAlgorithm.ES384).key_id == key.key_id
    assert "PRIVATE" not in repr(key)
    for wrong in (JwtAlgorithm.ES256, JwtAlgorithm.RS256):
        with pytest.raises(InvalidKey):
            JwtSigningKey.from_pem(key.to_pem(), wrong)
    for data in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(InvalidKey):
            JwtSigningKey.from_pem(data, JwtAlgorithm.ES256)
    small = rsa.generate_private_key(65537, 1024)
    with pytest.raises(InvalidKey):
        JwtSigningKey.from_pem(JwtSigningKey("x", small, JwtAlgorithm.RS256).to_pem(), JwtAlgorithm.RS256)


def test_what_is_too_long_is_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the key is elsewhere, all that is signed is sent there: control characters take six times their length."""
    key = JwtSigningKey.create(JwtAlgorithm.ES256)
    monkeypatch.setattr(JwtAlgorithm, "sign", lambda *_: pytest.fail("signed"))
    audiences = ["\x01" * 511 + str(each) for each in range(9)]
    with pytest.raises(IssuanceRefused, match="too long"):
        key.issue(SpiffeId.parse("spiffe://example.org/a"), audiences, ttl=HOUR, now=NOW)


@pytest.mark.spec("FED-1", "FED-3", "JWT-11", "C-63")
def test_one_rotation_step_by_step() -> None:
    ring = JwtKeyring.create(POLICY, NOW)
    began = ring.sequence
    first = ring.active(NOW).key_id
    assert ring.advance(POLICY, NOW + 21 * HOUR) is ring
    ring = ring.advance(POLICY, NOW + 22 * HOUR)
    second = ring.authorities[1].key_id
    assert [each.key_id for each in ring.authorities] == [first, second]
    assert ring.sequence == began + 1
    assert ring.active(NOW + 23 * HOUR).key_id == first
    assert ring.active(NOW + 24 * HOUR).key_id == second
    ring = ring.advance(POLICY, NOW + 24 * HOUR)
    assert (len(ring.authorities), ring.sequence) == (2, began + 1)
    assert ring.advance(POLICY, NOW + 25 * HOUR + SKEW - timedelta(seconds=1)) is ring
    ring = ring.advance(POLICY, NOW + 25 * HOUR + SKEW)
    assert [each.key_id for each in ring.authorities] == [second]
    assert ring.sequence == began + 2


@pytest.mark.spec("TD-4")
def test_a_ring_made_anew_has_a_higher_sequence_than_the_one_that_was_lost() -> None:
    lost = JwtKeyring.create(POLICY, NOW)
    for hours in range(22, 1000, 22):
        lost = lost.advance(POLICY, NOW + hours * HOUR)
    assert JwtKeyring.create(POLICY, NOW + 1000 * HOUR).sequence > lost.sequence


def test_after_a_long_pause_the_old_key_signs_until_the_new_one_was_published_long_enough() -> None:
    ring = JwtKeyring.create(POLICY, NOW)
    late = NOW + 1000 * HOUR
    advanced = ring.advance(POLICY, late)
    assert advanced.active(late).key_id == ring.active(NOW).key_id
    assert advanced.active(late + POLICY.lead).key_id == advanced.authorities[1].key_id


def test_another_algorithm_is_a_rotation_like_any_other() -> None:
    ring = JwtKeyring.create(POLICY, NOW)
    other = KeyringPolicy(JwtAlgorithm.ES384, POLICY.signing_period, POLICY.lead, POLICY.token_ttl)
    ring = ring.advance(other, NOW + HOUR)
    assert ring.active(NOW + HOUR).algorithm is JwtAlgorithm.ES256
    assert ring.active(NOW + HOUR + POLICY.lead).algorithm is JwtAlgorithm.ES384


def test_tokens_of_a_longer_setting_are_waited_for() -> None:
    ring = JwtKeyring.create(POLICY, NOW)
    shorter = KeyringPolicy(POLICY.algorithm, POLICY.signing_period, POLICY.lead, timedelta(minutes=1))
    ring = ring.advance(shorter, NOW + 22 * HOUR).advance(shorter, NOW + 24 * HOUR)
    assert len(ring.advance(shorter, NOW + 24 * HOUR + timedelta(minutes=30)).authorities) == 2


STEPS = st.lists(st.tuples(st.floats(0, 60, allow_nan=False), st.sampled_from([5, 60, 600])), min_size=1, max_size=30)


@pytest.mark.spec("TD-4", "FED-1", "FED-3")
@settings(max_examples=150)
@given(STEPS)
def test_whenever_it_is_looked_at(steps: list[tuple[float, int]]) -> None:
    """Signs only with what was published `lead` before; verifies every token until it ends; counts every change."""
    policy = KeyringPolicy(
        JwtAlgorithm.ES256, signing_period=24 * HOUR, lead=2 * HOUR, token_ttl=timedelta(minutes=steps[0][1])
    )
    now = NOW
    ring = JwtKeyring.create(policy, now)
    first = ring.authorities[0].key_id
    published = {first: now}
    out: list[tuple[str, datetime]] = []
    for hours, _ in steps:
        now += hours * HOUR
        # What is signed between two looks is signed with the ring as it was.
        signer = ring.active(now).key_id
        out.append((signer, now + policy.token_ttl))
        assert signer == first or now - published[signer] >= policy.lead
        before = ring
        ring = ring.advance(policy, now)
        ids = [each.key_id for each in ring.authorities]
        for each in ids:
            published.setdefault(each, now)
        changed = ids != [each.key_id for each in before.authorities]
        assert (ring.sequence > before.sequence) == changed
        assert ring.active(now).key_id in ids
        assert {key for key, end in out if end > now} <= set(ids)
        assert ring.advance(policy, now) is ring
        assert JwtKeyring.from_json(ring.to_json()).to_json() == ring.to_json()


@settings(max_examples=60)
@given(st.lists(st.floats(-100, 100, allow_nan=False), max_size=15))
def test_a_clock_that_jumps_never_signs_with_what_is_not_published(jumps: list[float]) -> None:
    ring, now = JwtKeyring.create(POLICY, NOW), NOW
    for jump in jumps:
        now = max(NOW - 100 * HOUR, now + jump * HOUR)
        ring = ring.advance(POLICY, now)
        assert ring.active(now).key_id in [each.key_id for each in ring.authorities]


def test_a_damaged_ring_is_refused_and_not_quoted() -> None:
    good = JwtKeyring.create(POLICY, NOW).to_json()
    document = json.loads(good)
    changes: tuple[dict[str, object], ...] = (
        {"version": 2},
        {"keys": []},
        {"sequence": 0},
        {"sequence": "1"},
        {"sequence": True},
        {"token_ttl_seconds": "x"},
        {"keys": [{**document["keys"][0], "key": "nonsense"}]},
        {"keys": [{**document["keys"][0], "signs_from": "2026-01-01T00:00:00"}]},
        {"keys": [{**document["keys"][0], "algorithm": "HS256"}]},
        {"keys": 1},
    )
    for change in changes:
        with pytest.raises(InvalidKey) as caught:
            JwtKeyring.from_json(json.dumps({**document, **change}).encode())
        assert "PRIVATE" not in str(caught.value)
    for data in (b"", b"{", b"[]", b"\xff", good[:-40]):
        with pytest.raises(InvalidKey):
            JwtKeyring.from_json(data)
