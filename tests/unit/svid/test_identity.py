"""What a workload holds at one moment must belong together."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest

from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidSvid
from svid.identity import MAX_HINT_BYTES, Trust, WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
ISSUER = X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)


def svid(hint: str = "") -> X509Svid:
    key = KeyAlgorithm.EC_P256.generate()
    web = SpiffeId.parse("spiffe://example.org/web")
    return X509Svid(web, ISSUER.issue(key.public_key(), web, ttl=timedelta(hours=1), now=NOW), key, hint)


@pytest.mark.spec("WL-61", "C-42")
def test_a_hint_has_at_most_1024_bytes() -> None:
    assert WorkloadIdentity((svid("ä" * (MAX_HINT_BYTES // 2)),), ISSUER.bundle)
    for hint in ("x" * (MAX_HINT_BYTES + 1), "€" * 400):
        with pytest.raises(InvalidSvid, match="1024 bytes"):
            WorkloadIdentity((svid(hint),), ISSUER.bundle)


@pytest.mark.spec("WL-25", "C-41", "C-43")
def test_hints_are_unique_and_none_need_not_be() -> None:
    assert WorkloadIdentity((svid(), svid(), svid("a")), ISSUER.bundle)
    with pytest.raises(InvalidSvid, match="same hint"):
        WorkloadIdentity((svid("a"), svid("a")), ISSUER.bundle)


@pytest.mark.spec("TD-41")
def test_what_does_not_belong_together() -> None:
    with pytest.raises(InvalidSvid, match="of one trust domain"):
        WorkloadIdentity((svid(),), ISSUER.bundle, (TrustBundle(PARTNER), TrustBundle(PARTNER, sequence=2)))
    with pytest.raises(InvalidSvid, match="needs an SVID"):
        WorkloadIdentity((), ISSUER.bundle)
    with pytest.raises(InvalidSvid, match="another trust domain"):
        WorkloadIdentity((svid(),), TrustBundle(PARTNER))
    with pytest.raises(InvalidSvid, match="among the federated"):
        WorkloadIdentity((svid(),), ISSUER.bundle, (replace(ISSUER.bundle),))


def test_other_trust_keeps_the_svids() -> None:
    identity = WorkloadIdentity((svid(),), ISSUER.bundle)
    trust = Trust(replace(ISSUER.bundle, sequence=7), (TrustBundle(PARTNER),))
    found = identity.with_trust(trust)
    assert (found.svids, found.trust) == (identity.svids, trust)
    with pytest.raises(InvalidSvid):
        identity.with_trust(Trust(TrustBundle(PARTNER)))


def newer(sequence: int | None, *partners: TrustDomain) -> Trust:
    return Trust(replace(ISSUER.bundle, sequence=sequence), tuple(TrustBundle(each) for each in partners))


@pytest.mark.parametrize(
    ("own", "given", "follows"),
    [(5, 5, True), (5, 6, False), (6, 5, True), (None, 5, False), (5, None, False), (None, None, True)],
)
def test_trust_is_followed_when_it_is_the_same_or_older(own: int | None, given: int | None, follows: bool) -> None:
    identity = WorkloadIdentity((svid(),), replace(ISSUER.bundle, sequence=own))
    assert identity.follows(newer(given)) is follows
    assert (identity.under(newer(given), NOW) is identity) is follows


def test_what_it_does_not_federate_with_is_no_news_to_it() -> None:
    identity = WorkloadIdentity((svid(),), replace(ISSUER.bundle, sequence=1), (), ())
    assert identity.follows(newer(1, PARTNER))
    assert identity.under(newer(2, PARTNER), NOW).federated == ()
    everybodys = replace(identity, federates_with=None)
    assert not everybodys.follows(newer(1, PARTNER))
    assert everybodys.under(newer(1, PARTNER), NOW).federated == (TrustBundle(PARTNER),)


def test_trust_that_does_not_verify_its_svids_is_not_taken() -> None:
    identity = WorkloadIdentity((svid(),), ISSUER.bundle)
    stranger = X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)
    assert identity.under(Trust(replace(stranger.bundle, sequence=9)), NOW) is identity
    assert identity.under(Trust(TrustBundle(PARTNER)), NOW) is identity
    assert identity.is_valid(NOW)
    assert not identity.is_valid(NOW + timedelta(hours=1, seconds=1))


def test_svids_that_have_ended_keep_no_trust_away() -> None:
    identity = WorkloadIdentity((svid(),), ISSUER.bundle)
    stranger = X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)
    newest = Trust(replace(stranger.bundle, sequence=9))
    assert identity.under(newest, identity.expires_at - timedelta(seconds=1)) is identity
    assert identity.under(newest, identity.expires_at).trust == newest
    assert identity.under(Trust(TrustBundle(PARTNER)), identity.expires_at) is identity


def test_every_svid_counts_not_the_default_one_only() -> None:
    key, half = KeyAlgorithm.EC_P256.generate(), timedelta(minutes=30)
    web = SpiffeId.parse("spiffe://example.org/web")
    short = X509Svid(web, ISSUER.issue(key.public_key(), web, ttl=half, now=NOW), key)
    for svids in ((svid(), short), (short, svid())):
        identity = WorkloadIdentity(svids, ISSUER.bundle)
        assert identity.default is svids[0]
        assert identity.expires_at == NOW + half
        identity.check(NOW + half)
        with pytest.raises(InvalidSvid, match="expired"):
            identity.check(NOW + half + timedelta(seconds=1))
        assert not identity.is_valid(NOW + half + timedelta(seconds=1))


def test_what_is_kept_for_long_is_the_same_and_nobody_has_looked_at_it() -> None:
    given = WorkloadIdentity((svid("a"), svid("b")), ISSUER.bundle)
    given.check(NOW)
    read = [each.leaf for each in given.svids]
    kept = given.lean()
    assert kept == given
    assert kept.is_valid(NOW)
    assert [(each.authority_id, each.not_after) for each in kept.svids] == [
        (each.authority_id, each.not_after) for each in given.svids
    ]
    # What the library read of a certificate is kept with that object.
    assert all(each.leaf is not before for each, before in zip(given.lean().svids, read, strict=True))


def test_who_asks_whether_newer_trust_verifies_svids_keeps_nothing_of_what_was_read() -> None:
    kept = WorkloadIdentity((svid("a"), svid("b")), ISSUER.bundle).lean()
    stranger = X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)
    with patch("svid.x509svid.check_path") as checked:
        taken = kept.under(newer(2), NOW)
    read = [each for call in checked.call_args_list for each in call.args[0]]
    assert len(read) == 2
    assert taken.trust == newer(2)
    assert kept.under(Trust(replace(stranger.bundle, sequence=9)), NOW) is kept
    assert not {id(each) for each in read} & {id(each.leaf) for each in (*kept.svids, *taken.svids)}


def test_an_identifier_that_is_asked_for_again_and_again_is_not_read_again() -> None:
    kept = svid().lean()
    with patch("svid.x509svid.extension", side_effect=AssertionError):
        assert kept.authority_id
