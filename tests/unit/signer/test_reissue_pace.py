"""Early renewals of many: spread by how many there are, so that the signers can carry them, and in time."""

from datetime import timedelta

import pytest

from signer.attestation.pods import Holders
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from signer.authority.timing import FORCED_GRACE
from signer.model import LivePod
from signer.upstream.certify import SelfSigned
from tests.signer_rig import DRIVER, START
from tests.unit.signer.test_compromise import NOBODY
from tests.unit.signer.test_lifecycle import ALL, POLICY, TD, TTL, advanced, done, first

MANY = 142_100


def life(svids: int) -> Life:
    return Life(POLICY, SelfSigned(), TD, lambda: svids)


def rotated(by: Life, *, forced: bool, by_hand: bool = False) -> AuthorityState:
    """Asked for, prepared and activated at START; all agents have it, and nobody says what is held."""
    state, _ = by.asked(first(), "x509", forced=forced, now=START)
    if not by_hand:
        return advanced(state, START, Acks(frozenset(), None), by=by)
    state = advanced(state, START, NOBODY, by=by)
    return by.activate(state, "x509", ALL, START, forced=False)[0]


def window(state: AuthorityState) -> timedelta:
    (directive,) = state.directives
    return directive.end - directive.start


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("svids", [0, 1, 20_000, MANY, 3 * MANY])
def test_signers_are_asked_for_no_more_a_second_than_they_carry(svids: int, forced: bool, by_hand: bool) -> None:
    state = rotated(life(svids), forced=forced, by_hand=by_hand)
    found = window(state)
    assert found >= (POLICY.forced_window if forced else POLICY.reissue_window)
    assert svids / found.total_seconds() <= POLICY.reissue_rate
    # And for no longer than that takes: a stolen key is trusted meanwhile.
    shortest = POLICY.forced_window if forced else POLICY.reissue_window
    assert found == max(shortest, timedelta(seconds=svids / POLICY.reissue_rate))


def test_a_stolen_authority_is_trusted_until_all_could_be_renewed_and_no_longer() -> None:
    by = life(MANY)
    state = rotated(by, forced=True)
    (leaving,) = [slot for slot in state.x509 if slot.stage is Stage.TAINTED]
    assert leaving.ends_at == START + timedelta(seconds=MANY / POLICY.reissue_rate) + FORCED_GRACE
    step = by.due(state, NOBODY, leaving.ends_at)
    assert step is not None
    assert (step.action, step.authority_id) == ("retire", leaving.id)


def test_however_many_there_are_half_of_a_life_is_enough() -> None:
    """By then all that live as long would be renewed anyway."""
    assert window(rotated(life(100 * MANY), forced=True)) == TTL / 2


def test_a_short_life_makes_no_window_shorter_than_the_setting() -> None:
    assert POLICY.spread(timedelta(seconds=90), MANY, timedelta(seconds=60)) == timedelta(seconds=90)


def test_a_revocation_is_spread_as_well() -> None:
    by = life(MANY)
    state = rotated(by, forced=False)
    revoked, _ = by.revoke(state, "x509", state.x509[0].id, START, forced=False)
    assert window(revoked) == timedelta(seconds=MANY / POLICY.reissue_rate)


def test_one_that_is_leaving_gets_no_more_time_for_others() -> None:
    by = life(MANY)
    once = rotated(life(0), forced=True)
    ends = once.x509[0].ends_at
    later = START + timedelta(seconds=10)
    again, _ = by.asked(once, "x509", forced=True, now=later)
    again = done(by.prepare(again, "x509", later))[0]
    again, _ = by.activate(again, "x509", ALL, later, forced=True)
    assert again.x509[0].ends_at == ends
    assert again.directives[0].end == START + POLICY.forced_window


def test_only_living_pods_that_mount_a_driver_hold_svids() -> None:
    holders = Holders(frozenset({DRIVER}))

    def pod(drivers: frozenset[str] = frozenset({DRIVER}), *, finished: bool = False) -> LivePod:
        return LivePod("default", "web", "u", "node-a", "web", drivers=drivers, finished=finished)

    counts = []
    for old, new in (
        (None, pod()),
        (None, pod(frozenset({"another"}))),
        (None, pod(frozenset({"another", DRIVER}))),
        (pod(), pod()),
        (pod(), pod(finished=True)),
        (pod(finished=True), None),
        (pod(frozenset({"another", DRIVER})), None),
    ):
        holders.pod_changed(old, new)
        counts.append(holders.count)
    assert counts == [1, 1, 2, 2, 1, 1, 0]
