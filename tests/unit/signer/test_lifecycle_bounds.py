"""The instants and the conditions of the authorities' steps, each at its bound and on both sides of it."""

from datetime import datetime, timedelta

import pytest

from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life, Step
from signer.authority.settling import ROUSED
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState, Goal
from signer.authority.timing import FORCED_GRACE
from signer.errors import TransitionRefused
from svid.jws import JwtAlgorithm
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import ALL, POLICY, TTL, advanced, done, first, life, stages

SECOND = timedelta(seconds=1)
NOBODY = Acks(frozenset({"silent"}), None)


def asked(kind: str = "x509", *, forced: bool = False) -> AuthorityState:
    return life().asked(first(), kind, forced=forced, now=START)[0]


def due(state: AuthorityState, acks: Acks, now: datetime) -> tuple[str, str] | None:
    step = life().due(state, acks, now)
    return (step.action, step.kind) if step else None


def rotated(*, forced: bool = False, kind: str = "x509") -> AuthorityState:
    """Prepared and activated at once, at START."""
    state = advanced(asked(kind, forced=forced), START, NOBODY)
    return done(life().do(state, _activation(state), START))


def _activation(state: AuthorityState) -> Step:
    step = life().due(state, ALL, START)
    assert step is not None
    assert step.action == "activate"
    return step


def test_each_kind_has_its_own_steps() -> None:
    """What one waits for does not hold the other up."""
    state = advanced(asked("x509"), START, NOBODY)
    both, _ = life().asked(state, "jwt", forced=False, now=START)
    assert due(state, NOBODY, START) is None
    assert due(both, NOBODY, START) == ("prepare", "jwt")


def test_an_authority_is_replaced_at_half_of_what_it_signs() -> None:
    state = first()
    half = START + (state.active_x509.not_after - START) / 2
    assert due(state, ALL, START + POLICY.jwt_period - POLICY.ack_bound - SECOND) is None
    without_jwt = life(jwt_algorithm=None)
    alone = advanced(state, START, by=without_jwt)
    assert without_jwt.due(alone, ALL, half - SECOND) is None
    step = without_jwt.due(alone, ALL, half)
    assert step is not None
    assert (step.action, step.kind) == ("prepare", "x509")


def test_half_of_a_life_counts_from_when_it_began_to_sign() -> None:
    """One that was prepared long before, by a person, is not replaced as soon as it signs."""
    state, _ = done(life().prepare(first(), "x509", START))
    end = state.x509[1].authority.not_after
    now = START + timedelta(days=4)
    state, _ = life().activate(state, "x509", ALL, now, forced=False)
    state = advanced(state, now + timedelta(days=1))
    half = now + (end - now) / 2
    assert due(advanced(state, half - SECOND), ALL, half - SECOND) is None
    assert due(advanced(state, half - SECOND), ALL, half) == ("prepare", "x509")


def test_a_jwt_key_is_prepared_in_time_for_its_turn() -> None:
    turn = START + POLICY.jwt_period
    assert due(first(), ALL, turn - POLICY.ack_bound - SECOND) is None
    assert due(first(), ALL, turn - POLICY.ack_bound) == ("prepare", "jwt")
    lead = timedelta(days=1)
    patient = life(jwt_lead=lead)
    assert patient.due(first(), ALL, turn - lead - SECOND) is None
    state = advanced(first(), turn - lead, NOBODY, by=patient)
    assert stages(state, "jwt") == ["active", "prepared"]
    # Silent agents do not bring its turn forward: others look at the bundle now and then.
    assert patient.due(state, NOBODY, turn - SECOND) is None
    assert patient.due(state, ALL, turn - SECOND) is None
    assert stages(advanced(state, turn, NOBODY, by=patient), "jwt") == ["old", "active"]


def test_a_jwt_key_that_was_asked_for_has_no_lead() -> None:
    patient = life(jwt_lead=timedelta(days=1))
    state = advanced(asked("jwt"), START, NOBODY, by=patient)
    assert stages(advanced(state, START, by=patient), "jwt") == ["old", "active"]
    assert advanced(state, START + POLICY.ack_bound - SECOND, NOBODY, by=patient) is state
    assert stages(advanced(state, START + POLICY.ack_bound, NOBODY, by=patient), "jwt") == ["old", "active"]


def test_a_key_of_another_algorithm_is_replaced_at_once() -> None:
    changed = life(jwt_algorithm=JwtAlgorithm.ES384)
    state = advanced(first(), START, by=changed)
    assert stages(state, "jwt") == ["old", "active"]
    assert state.active_jwt is not None
    assert state.active_jwt.algorithm is JwtAlgorithm.ES384


@pytest.mark.parametrize(
    ("forced", "bound"), [(False, POLICY.ack_bound), (True, min(POLICY.ack_bound, POLICY.forced_window))]
)
def test_how_long_agents_are_waited_for(forced: bool, bound: timedelta) -> None:
    state = advanced(asked(forced=forced), START, NOBODY)
    assert due(state, NOBODY, START + bound - SECOND) is None
    step = life().due(state, NOBODY, START + bound)
    assert step is not None
    assert (step.action, step.reason) == ("activate", "although 1 agents (silent) did not acknowledge")


def test_an_authority_that_ended_signs_no_more() -> None:
    state, _ = done(life().prepare(first(), "x509", START + SECOND))
    end = state.active_x509.not_after
    late = life(ack_bound=timedelta(days=20), jwt_algorithm=None)
    state = advanced(state, START, NOBODY, by=late)
    assert late.due(state, NOBODY, end - SECOND) is None
    step = late.due(state, NOBODY, end)
    assert step is not None
    assert (step.action, step.reason) == ("activate", "the active one has ended")


def test_an_old_authority_leaves_when_its_last_svid_has_ended_and_not_before() -> None:
    """In use or not: SVIDs outlive the agents' numbers, as others may hold them."""
    state = rotated()
    ends = START + TTL + POLICY.overlap
    assert state.x509[0].ends_at == ends
    assert due(state, ALL, ends - SECOND) is None
    assert due(state, NOBODY, ends) == ("retire", "x509")
    gone = advanced(state, ends)
    assert (stages(gone), gone.directives) == (["active"], ())


def test_an_old_jwt_key_leaves_when_its_last_token_has_ended() -> None:
    state = rotated(kind="jwt")
    ends = START + POLICY.jwt_max_ttl + POLICY.overlap
    assert state.jwt[0].ends_at == ends
    assert due(state, ALL, ends - SECOND) is None
    assert due(state, NOBODY, ends) == ("retire", "jwt")


def test_a_compromised_authority_leaves_at_its_bound_whoever_holds_what() -> None:
    state = rotated(forced=True)
    assert stages(state) == ["tainted", "active"]
    held = Acks(frozenset(), {state.x509[0].id: 1})
    bound = START + POLICY.forced_window + FORCED_GRACE
    assert state.x509[0].ends_at == bound
    (directive,) = state.directives
    assert (directive.authority_id, directive.end) == (state.x509[0].id, START + POLICY.forced_window)
    for acks in (held, NOBODY, Acks(frozenset({"silent"}), {}), Acks(frozenset(), None)):
        assert due(state, acks, bound - SECOND) is None
        assert due(state, acks, bound) == ("retire", "x509")
    assert due(state, ALL, START) == ("retire", "x509")


def test_only_a_revoked_authority_leaves_because_nobody_uses_it() -> None:
    """A prepared one is unused by its nature, and an old one may be used by those whom no agent speaks for."""
    waits = life(ack_bound=timedelta(days=1), jwt_algorithm=None)
    old = advanced(rotated(), START, by=waits)
    assert waits.due(old, ALL, START) is None
    prepared, _ = done(life().prepare(first(), "x509", START))
    assert due(prepared, ALL, START) == ("activate", "x509")


def test_a_goal_ends_with_its_rotation_and_no_other_goal_does() -> None:
    state, _ = life().asked(asked("x509", forced=True), "jwt", forced=True, now=START)
    assert state.goals == {Goal("x509", True), Goal("jwt", True)}
    state = done(life().do(state, _prepare(state), START))
    activated, _ = life().activate(state, "x509", ALL, START, forced=False)
    assert activated.goals == {Goal("jwt", True)}
    # It was asked for by force: what a person activates is as if the leader did.
    assert stages(activated) == ["tainted", "active"]


def _prepare(state: AuthorityState) -> Step:
    step = life().due(state, NOBODY, START)
    assert step is not None
    assert (step.action, step.kind) == ("prepare", "x509")
    return step


def test_what_was_asked_for_by_force_stays_so() -> None:
    state = asked(forced=True)
    again, said = life().asked(state, "x509", forced=False, now=START)
    assert again is state
    assert "under way already" in said
    more, _ = life().asked(asked(), "x509", forced=True, now=START)
    assert more.goals == {Goal("x509", True)}


def test_every_step_is_a_new_sequence() -> None:
    """Agents acknowledge numbers: two states of one number would be one to them."""
    state = first()
    prepared, _ = done(life().prepare(state, "x509", START))
    activated, _ = life().activate(prepared, "x509", ALL, START, forced=False)
    tainted, _ = life().revoke(activated, "x509", activated.x509[0].id, START, forced=False)
    gone, _ = life().revoke(tainted, "x509", tainted.x509[0].id, START, forced=True)
    wanted, _ = life().asked(gone, "jwt", forced=False, now=START)
    found = [each.sequence for each in (state, prepared, activated, tainted, gone, wanted)]
    assert found == list(range(state.sequence, state.sequence + 6))


def test_a_revocation_taints_one_and_re_issues_in_minutes() -> None:
    state = rotated()
    old, active = state.x509
    now = START + timedelta(minutes=1)
    revoked, _ = life().revoke(state, "x509", old.id, now, forced=False)
    assert stages(revoked) == ["tainted", "active"]
    assert revoked.x509[1] is active
    assert revoked.x509[0].ends_at == now + POLICY.forced_window + FORCED_GRACE
    # In the place of the slower one.
    (directive,) = revoked.directives
    assert (directive.authority_id, directive.start, directive.end) == (old.id, now, now + POLICY.forced_window)
    # Again gives it no more time.
    again, said = life().revoke(revoked, "x509", old.id, now + timedelta(minutes=1), forced=False)
    assert again is revoked
    assert "already" in said
    gone, _ = life().revoke(revoked, "x509", old.id, now, forced=True)
    assert (stages(gone), gone.directives) == (["active"], ())
    assert gone.bundle.x509_authorities == active.authority.bundle.x509_authorities


def test_a_revoked_jwt_key_is_gone_at_once() -> None:
    state = rotated(kind="jwt")
    gone, _ = life().revoke(state, "jwt", state.jwt[0].id, START, forced=False)
    assert stages(gone, "jwt") == ["active"]
    assert gone.x509 is state.x509


@pytest.mark.parametrize("kind", ["x509", "jwt"])
@pytest.mark.parametrize("forced", [False, True])
def test_what_signs_is_never_revoked(kind: str, forced: bool) -> None:
    state = first()
    with pytest.raises(TransitionRefused, match="cannot be revoked; use: authority rotate --forced"):
        life().revoke(state, kind, state.slots(kind)[0].id, START, forced=forced)


def test_jwt_authorities_by_hand() -> None:
    off = life(jwt_algorithm=None)
    state = advanced(first(), START, by=off)
    with pytest.raises(TransitionRefused, match="--jwt-svids"):
        done(off.prepare(state, "jwt", START))
    # The first one has nobody to wait for: nothing else signs.
    made, said = done(life().prepare(state, "jwt", START))
    assert (stages(made, "jwt"), "made the first" in said) == (["active"], True)
    assert made.jwt[0].activated_at == START
    second, _ = done(life().prepare(made, "jwt", START))
    assert stages(second, "jwt") == ["active", "prepared"]


def test_when_agents_matter() -> None:
    """Then what they say is passed on at once."""

    usual = life()

    def waits(state: AuthorityState, by: Life = usual, now: datetime = START) -> bool:
        return by.waits_for_agents(state, now)

    state = first()
    assert not waits(state)
    assert waits(asked())
    assert waits(done(life().prepare(state, "x509", START))[0])
    assert waits(done(life().prepare(state, "jwt", START))[0])
    assert not waits(rotated())
    assert waits(rotated(forced=True))
    # While a key is published for a day nothing hangs on them, but at its end.
    patient, lead = life(jwt_lead=timedelta(days=1)), timedelta(days=1)
    prepared = done(patient.prepare(state, "jwt", START))[0]
    assert not waits(prepared, patient, START + lead - ROUSED - SECOND)
    assert waits(prepared, patient, START + lead - ROUSED)


def test_a_person_may_go_on_without_agents_that_are_silent() -> None:
    state, _ = done(life().prepare(first(), "x509", START))
    with pytest.raises(TransitionRefused, match="silent"):
        life().activate(state, "x509", NOBODY, START, forced=False)
    activated, said = life().activate(state, "x509", NOBODY, START, forced=True)
    # The order is not one to distrust the old one: that is what a forced rotation is for.
    assert stages(activated) == ["old", "active"]
    assert said == f"activated x509 authority {state.x509[1].id}"


def test_a_long_list_of_agents_is_cut() -> None:
    many = Acks(frozenset(f"node-{number}" for number in range(9)), None)
    state, _ = done(life().prepare(first(), "x509", START))
    with pytest.raises(TransitionRefused) as caught:
        life().activate(state, "x509", many, START, forced=False)
    assert str(caught.value).startswith("9 agents (node-0, node-1, node-2, node-3, node-4 and 4 more) would refuse")


def test_what_happens_next_is_told() -> None:
    state = advanced(asked(), START, NOBODY)
    bound = f"{START + POLICY.ack_bound:%Y-%m-%dT%H:%M:%SZ}"
    prepared = state.x509[1].id
    line, jwt = life().outlook(state, NOBODY, START)
    assert line == f"x509: activate {prepared} when 1 agents (silent) acknowledged it, at {bound} at the latest"
    assert jwt.startswith("jwt: prepare a new authority at 2030-01-05T23:45:00Z")
    assert life().outlook(state, ALL, START)[0] == "x509: activate now, all live agents have acknowledged it"
    tainted = rotated(forced=True)
    found = life().outlook(tainted, Acks(frozenset(), {tainted.x509[0].id: 1}), START)
    assert found[0].startswith(f"x509: stop trusting {tainted.x509[0].id} when no agent holds its SVIDs, at 2030-01-01")
    old = rotated()
    assert f"x509: stop trusting {old.x509[0].id} when its last SVID ended" in life().outlook(old, ALL, START)[0]
    assert old.find("x509", Stage.OLD) is old.x509[0]
