"""What a renewal that failed makes of an identity: what is withheld, from when on, and that bundles never are."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.admin import ADVICE
from agent.authority.calls import DENIALS
from agent.channel.snapshots import Reader, Writer
from agent.errors import AgentError, AuthorityDenied, AuthorityRefused, AuthorityUnavailable, KeysBusy
from agent.workload.withholding import MOST_TOLD, left, not_renewed
from signer.errors import Reason
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.identity import Trust, Withheld, WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.x509svid import X509Svid
from tests.fake_authority import HOUR, SPIFFE_ID, StepClock, bundle_of, root
from tests.workload_rig import PARTNER, Rig, on_rig, rig

NOW = StepClock().at
ISSUER = root(NOW)
TRUST = Trust(bundle_of(ISSUER), (bundle_of(root(NOW, trust_domain=PARTNER)),))
DENIED, REFUSED = AuthorityDenied("POLICY_DENIED: no"), AuthorityRefused("POD_OVERSIZED: too large")
AWAY = AuthorityUnavailable("SIGNER_UNREACHABLE: away")


def identity(issuer: X509Authority = ISSUER, trust: Trust = TRUST) -> WorkloadIdentity:
    key = KeyAlgorithm.EC_P256.generate()
    svid = X509Svid(SPIFFE_ID, issuer.issue(key.public_key(), SPIFFE_ID, ttl=HOUR, now=NOW), key)
    return WorkloadIdentity((svid,), trust.bundle, trust.federated)


def other_trust() -> Trust:
    """By which nothing of the present one verifies."""
    return Trust(bundle_of(root(NOW), sequence=2))


@pytest.mark.parametrize(
    ("error", "withheld"),
    [
        (DENIED, Withheld(str(DENIED), refused=True, at_once=True)),
        (REFUSED, Withheld(str(REFUSED), refused=True, at_once=False)),
        (AWAY, None),
        (KeysBusy("busy"), None),
    ],
)
def test_a_denial_counts_at_once_a_refusal_when_the_svid_has_ended_and_an_outage_never(
    error: AgentError, withheld: Withheld | None
) -> None:
    before = identity()
    found = not_renewed(before, error, TRUST, NOW)
    assert found == before, "it holds what it held"
    assert found.withheld == withheld
    assert found.is_granted(NOW) is (error is not DENIED)
    assert not found.is_granted(NOW + 2 * HOUR)


@pytest.mark.parametrize("later", [AWAY, REFUSED, KeysBusy("busy")])
def test_a_denial_stands_whatever_else_fails_later(later: AgentError) -> None:
    found = not_renewed(not_renewed(identity(), DENIED, TRUST, NOW), later, TRUST, NOW)
    assert found.withheld == Withheld(str(DENIED), refused=True, at_once=True)


def test_the_newest_refusal_is_told_and_a_denial_takes_its_place() -> None:
    first = not_renewed(identity(), REFUSED, TRUST, NOW)
    other = not_renewed(first, AuthorityRefused("POD_FINISHED: over"), TRUST, NOW)
    assert other.withheld == Withheld("POD_FINISHED: over", refused=True, at_once=False)
    denied = not_renewed(other, DENIED, TRUST, NOW).withheld
    assert denied == Withheld(str(DENIED), refused=True, at_once=True)


@pytest.mark.parametrize("error", [DENIED, REFUSED, AWAY])
def test_bundles_follow_though_the_svid_does_not_verify_by_them_and_nobody_is_handed_it(error: AgentError) -> None:
    """The authority that signed it was abandoned: its key is stolen. Who verifies by it is told, SVID or not."""
    before, trust = identity(), other_trust()
    assert before.under(trust, NOW) is before
    found = not_renewed(before, error, trust, NOW)
    assert found.trust == trust
    assert found.svids == before.svids
    assert not found.is_granted(NOW)
    assert found.withheld == Withheld(str(error), refused=error is not AWAY, at_once=True)


@pytest.mark.parametrize("error", [REFUSED, AWAY])
def test_an_svid_that_verifies_by_what_is_about_to_be_handed_over_is_handed_out(error: AgentError) -> None:
    """Workloads get a new trust one after the other; whose renewal fails before its turn has done nothing."""
    before = identity()
    trust = Trust(replace(TRUST.bundle, sequence=(TRUST.bundle.sequence or 0) + 1), TRUST.federated)
    found = not_renewed(before, error, trust, NOW)
    assert found.trust == trust
    assert found.is_granted(NOW)


def test_a_refusal_after_an_outage_under_a_new_trust_is_told_and_does_not_hand_it_out() -> None:
    trust = other_trust()
    away = not_renewed(identity(), AWAY, trust, NOW)
    refused = not_renewed(away, REFUSED, trust, NOW)
    assert refused.withheld is not None
    assert refused.withheld.refused
    assert not refused.is_granted(NOW), "it does not verify"


def test_trust_that_does_not_belong_is_not_taken() -> None:
    before = identity()
    strange = Trust(replace(TRUST.bundle, sequence=2), (TrustBundle(TRUST.bundle.trust_domain),))
    assert not_renewed(before, AWAY, strange, NOW).trust == before.trust


def test_what_a_pod_is_told_is_short() -> None:
    found = not_renewed(identity(), AuthorityDenied("x" * 10_000), TRUST, NOW).withheld
    assert found is not None
    assert len(found.why) == MOST_TOLD


def test_what_an_earlier_process_left_is_bundles_only() -> None:
    found = left(identity())
    assert not found.is_granted(NOW)
    assert found.trust == TRUST


def test_denials_are_the_signers_about_the_identity_itself() -> None:
    assert {Reason.POLICY_DENIED.value} == DENIALS


def test_a_snapshot_of_it_says_so() -> None:
    for before in (identity(), not_renewed(identity(), DENIED, TRUST, NOW)):
        found = Reader().identity(Writer().snapshot(before))
        assert found.withheld == before.withheld
        assert found.is_granted(NOW + timedelta(minutes=1)) is (before.withheld is None)


def test_a_pod_that_is_denied_says_so_until_it_has_an_svid_again(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        at.authority.error = DENIED
        async with at.looping(at.registry.scheduler.run):
            await at.registry.renew_now("csi-spiffe")
            assert workload.feed.current is not None
            assert workload.feed.current.withheld == Withheld(str(DENIED), refused=True, at_once=True)
            version = workload.feed.version
            condition = at.registry.condition("csi-spiffe")
            assert condition.abnormal
            assert str(DENIED) in condition.message
            newest = workload.problems.newest
            assert newest is not None
            assert "podsvid explain" in ADVICE[newest.code]
            await at.registry.renew_now("csi-spiffe")
            assert workload.feed.version == version, "the same is no news"
            at.clock.at += 2 * HOUR
            assert "expired" in at.registry.condition("csi-spiffe").message
            assert str(DENIED) in at.registry.condition("csi-spiffe").message
            at.authority.error = None
            await at.registry.renew_now("csi-spiffe")
        assert workload.feed.current.withheld is None
        assert not at.registry.condition("csi-spiffe").abnormal

    on_rig(tmp_path, play)


@pytest.mark.parametrize("error", [DENIED, AWAY])
def test_trust_by_which_an_svid_does_not_verify_reaches_its_pod_though_there_is_no_other(
    tmp_path: Path, error: AgentError
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        at.authority.error = error
        at.authority.x509 = root(at.clock.at)
        newest = Trust(bundle_of(at.authority.x509, at.authority.jwt_key, sequence=2))
        async with at.looping(at.registry.scheduler.run, at.registry.follow_trust):
            at.authority.trust.publish(newest)
            await at.until(lambda: workload.feed.current and workload.feed.current.trust == newest)
            # Nobody in the cluster waits for this pod's files.
            await at.until(lambda: workload.written == workload.contents)
            assert workload.feed.current is not None
            assert not workload.feed.current.is_granted(at.clock.at)
            at.authority.error = None
            await at.registry.renew_now("csi-spiffe")
            assert workload.feed.current.is_granted(at.clock.at)

    on_rig(tmp_path, play)


def test_bundles_are_there_after_a_restart_though_the_svid_has_ended(tmp_path: Path) -> None:
    async def play() -> None:
        async with rig(tmp_path) as before:
            volume = before.volume()
            await before.open(volume)
        before.clock.at += 2 * HOUR
        partner = bundle_of(root(before.clock.at, PARTNER))
        async with rig(tmp_path, before) as after:
            after.authority.error = AWAY
            after.authority.trust.publish(Trust(bundle_of(after.authority.x509, sequence=2), (partner,)))
            workload = await after.adopt(volume)
            assert workload.feed.current is not None
            assert workload.feed.current.federated == (partner,)
            assert not workload.feed.current.is_granted(after.clock.at)
            assert workload.next_due() == after.clock.at
            with pytest.raises(AuthorityUnavailable):
                await workload.renew()
            assert workload.written == workload.contents
            assert workload.written is not None
            assert workload.written.identity.federated == (partner,)
            after.authority.error = None
            await workload.renew()
            assert workload.feed.current.is_granted(after.clock.at)

    asyncio.run(play())
