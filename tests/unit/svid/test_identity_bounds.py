"""An identity of several SVIDs is as good as the worst of them, and trust of the same sequence is news."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidSvid
from svid.identity import Trust, WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")


def authority() -> X509Authority:
    return X509Authority.create(OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)


ISSUER, STRANGER = authority(), authority()


def svid(name: str, ttl: timedelta = HOUR, issuer: X509Authority = ISSUER) -> X509Svid:
    key = KeyAlgorithm.EC_P256.generate()
    spiffe_id = SpiffeId.from_segments(OWN, name)
    return X509Svid(spiffe_id, issuer.issue(key.public_key(), spiffe_id, ttl=ttl, now=NOW), key)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_first_end_counts_wherever_it_stands(at: int) -> None:
    svids = tuple(svid(f"svid-{n}", HOUR / 2 if n == at else HOUR) for n in range(3))
    identity = WorkloadIdentity(svids, ISSUER.bundle)
    assert identity.expires_at == NOW + HOUR / 2
    identity.check(NOW + HOUR / 2)
    with pytest.raises(InvalidSvid, match="expired"):
        identity.check(NOW + HOUR / 2 + timedelta(seconds=1))


def test_each_svid_is_verified_and_not_the_default_only() -> None:
    identity = WorkloadIdentity((svid("a"), svid("b", issuer=STRANGER)), ISSUER.bundle)
    assert not identity.is_valid(NOW)
    swapped = replace(identity.svids[0], private_key=svid("x").private_key)
    with pytest.raises(InvalidSvid, match="private key"):
        WorkloadIdentity((svid("b"), swapped), ISSUER.bundle).check(NOW)


def test_a_bundle_that_takes_one_svid_away_is_not_taken() -> None:
    both = replace(ISSUER.bundle, x509_authorities=(*ISSUER.chain, *STRANGER.chain), sequence=1)
    identity = WorkloadIdentity((svid("a"), svid("b", issuer=STRANGER)), both)
    assert identity.is_valid(NOW)
    assert identity.under(Trust(replace(ISSUER.bundle, sequence=2)), NOW) is identity


def test_other_bundles_of_the_same_sequence_are_news() -> None:
    identity = WorkloadIdentity((svid("a"),), replace(ISSUER.bundle, sequence=5))
    more = Trust(identity.bundle, (TrustBundle(PARTNER),))
    assert not identity.follows(more)
    assert identity.under(more, NOW).federated == more.federated
    less = Trust(replace(identity.bundle, sequence=4), (TrustBundle(PARTNER),))
    assert identity.follows(less)
    assert identity.under(less, NOW) is identity


def test_bundles_are_those_of_whom_it_federates_with() -> None:
    identity = WorkloadIdentity((svid("a"),), ISSUER.bundle, (), (PARTNER,))
    third = TrustBundle(TrustDomain("third.test"))
    found = identity.part_of(Trust(ISSUER.bundle, (TrustBundle(PARTNER), third)))
    assert found == Trust(ISSUER.bundle, (TrustBundle(PARTNER),))
    assert replace(identity, federates_with=()).part_of(Trust(ISSUER.bundle, (third,))).federated == ()
    assert replace(identity, federates_with=None).part_of(Trust(ISSUER.bundle, (third,))).federated == (third,)
