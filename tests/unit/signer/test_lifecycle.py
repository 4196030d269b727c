"""The authorities' life: whatever is asked for and whoever acknowledges, every SVID verifies and nothing is torn."""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from cryptography import x509
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState, Goal
from signer.authority.timing import FORCED_GRACE, LifecyclePolicy
from signer.errors import StateDamaged, TransitionRefused
from signer.upstream.certify import SelfSigned
from svid.jws import JwtAlgorithm
from svid.jwtsvid import JwtSvid, check_jwt_svid
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid
from tests.signer_rig import START

TD = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
TTL = timedelta(hours=1)
POLICY = LifecyclePolicy(
    authority_ttl=timedelta(days=10),
    jwt_period=timedelta(days=5),
    x509_max_ttl=TTL,
    jwt_max_ttl=timedelta(minutes=10),
    ack_bound=timedelta(minutes=15),
    reissue_window=timedelta(minutes=10),
    forced_window=timedelta(seconds=90),
    overlap=timedelta(minutes=5),
    jwt_algorithm=JwtAlgorithm.ES256,
)
ALL = Acks(frozenset(), {})
KEY = KeyAlgorithm.EC_P256.generate().public_key()
_Found = TypeVar("_Found")


def done(work: Coroutine[Any, Any, _Found]) -> _Found:
    return asyncio.run(work)


def life(**changes: Any) -> Life:
    return Life(replace(POLICY, **changes), SelfSigned(), TD)


def first() -> AuthorityState:
    return done(life().first(START))


def advanced(state: AuthorityState, now: datetime, acks: Acks = ALL, by: Life | None = None) -> AuthorityState:
    """All that is due at `now`, as the leader does it."""
    acting = by or life()
    for _ in range(10):
        step = acting.due(state, acks, now)
        if step is None:
            return state
        state = done(acting.do(state, step, now))
    raise AssertionError("the steps do not end")


def stages(state: AuthorityState, kind: str = "x509") -> list[str]:
    return [slot.stage.value for slot in state.slots(kind)]


def test_a_rotation_waits_for_every_agent() -> None:
    state, _ = life().asked(first(), "x509", forced=False, now=START)
    waiting = Acks(frozenset({"node-1", "node-2"}), None)
    state = advanced(state, START, waiting)
    assert stages(state) == ["active", "prepared"]
    prepared = state.x509[1].id
    assert state.active_x509_id != prepared
    assert len(state.bundle.x509_authorities) == 2
    (line,) = [line for line in life().outlook(state, waiting, START) if "activate" in line]
    assert "2 agents (node-1, node-2)" in line
    assert advanced(state, START + timedelta(minutes=14), waiting) is state
    with pytest.raises(TransitionRefused, match="node-1, node-2"):
        life().activate(state, "x509", waiting, START, forced=False)
    now = START + timedelta(minutes=14)
    state = advanced(state, now)
    assert stages(state) == ["old", "active"]
    assert state.active_x509_id == prepared
    assert state.goals == frozenset()
    (directive,) = state.directives
    assert (directive.authority_id, directive.start, directive.end) == (
        state.x509[0].id,
        now,
        now + timedelta(minutes=10),
    )
    # Trusted until its last SVID has ended, and the overlap after.
    ends = now + TTL + POLICY.overlap
    assert stages(advanced(state, ends - timedelta(seconds=1))) == ["old", "active"]
    state = advanced(state, ends)
    assert (stages(state), state.directives) == (["active"], ())


def test_the_bound_is_the_fallback() -> None:
    state, _ = life().asked(first(), "x509", forced=False, now=START)
    waiting = Acks(frozenset({"dead"}), None)
    state = advanced(state, START, waiting)
    assert stages(advanced(state, START + POLICY.ack_bound, waiting)) == ["old", "active"]


def test_a_forced_rotation_ends_with_the_last_svid_of_the_compromised_one() -> None:
    state, message = life().asked(first(), "x509", forced=True, now=START)
    assert "forced" in message
    compromised = state.active_x509_id
    state = advanced(state, START, Acks(frozenset({"n"}), None))
    state = advanced(state, START + timedelta(seconds=5), Acks(frozenset(), {compromised: 7}))
    assert stages(state) == ["tainted", "active"]
    assert state.directives[0].end - state.directives[0].start == POLICY.forced_window
    held = Acks(frozenset(), {compromised: 1})
    assert advanced(state, START + timedelta(seconds=60), held) is state
    # An agent that has said nothing may hold some: unknown is not none.
    assert advanced(state, START + timedelta(seconds=60), Acks(frozenset(), None)) is state
    assert advanced(state, START + timedelta(seconds=60), Acks(frozenset({"n"}), {})) is state
    assert stages(advanced(state, START + timedelta(seconds=60), ALL)) == ["active"]
    bound = START + timedelta(seconds=5) + POLICY.forced_window + FORCED_GRACE
    assert stages(advanced(state, bound, held)) == ["active"]


def test_a_forced_jwt_rotation_drops_the_old_key_at_once() -> None:
    state = first()
    old = state.active_jwt
    state, _ = life().asked(state, "jwt", forced=True, now=START)
    state = advanced(state, START)
    assert stages(state, "jwt") == ["active"]
    assert state.active_jwt != old
    assert [key.key_id for key in state.bundle.jwt_authorities] == [state.jwt[0].id]


def test_kinds_rotate_independently_and_by_themselves() -> None:
    state = first()
    before = state.active_x509_id
    state = advanced(state, START + timedelta(days=4, hours=23, minutes=45))
    assert (stages(state), stages(state, "jwt")) == (["active"], ["old", "active"])
    assert state.active_x509_id == before
    state = advanced(state, START + timedelta(days=5, hours=1))
    assert stages(state) == ["old", "active"]


def test_a_scheduled_jwt_key_waits_for_those_who_look_now_and_then() -> None:
    patient = life(jwt_lead=timedelta(days=1))
    state = advanced(first(), START + timedelta(days=4), by=patient)
    assert stages(state, "jwt") == ["active", "prepared"]
    assert advanced(state, START + timedelta(days=4, hours=23), by=patient) is state
    assert stages(advanced(state, START + timedelta(days=5), by=patient), "jwt") == ["old", "active"]


def test_an_ended_authority_is_replaced_whoever_is_missing() -> None:
    nobody = Acks(frozenset({"n"}), None)
    state = advanced(first(), START + timedelta(days=11), nobody)
    assert stages(state)[-1] == "active"
    assert state.active_x509.not_after > START + timedelta(days=11)


def test_jwt_can_be_switched_off_and_on() -> None:
    state = advanced(first(), START, by=life(jwt_algorithm=None))
    assert (state.jwt, state.active_jwt) == ((), None)
    with pytest.raises(TransitionRefused, match="--jwt-svids"):
        life().asked(state, "jwt", forced=False, now=START)
    assert stages(advanced(state, START), "jwt") == ["active"]


def test_steps_that_are_refused() -> None:
    state = first()
    with pytest.raises(TransitionRefused, match="prepare one first"):
        life().activate(state, "x509", ALL, START, forced=True)
    for authority_id in (state.active_x509_id, "unknown"):
        with pytest.raises(TransitionRefused):
            life().revoke(state, "x509", authority_id, START, forced=True)
    prepared, _ = done(life().prepare(state, "x509", START))
    with pytest.raises(TransitionRefused, match="prepared already"):
        done(life().prepare(prepared, "x509", START))
    gone, _ = life().revoke(prepared, "x509", prepared.x509[1].id, START, forced=False)
    assert stages(gone) == ["active"]


def test_what_is_damaged_is_refused_and_not_quoted() -> None:
    data = first().to_json()
    assert AuthorityState.from_json(data, TD).to_json() == data
    with pytest.raises(StateDamaged, match="of another trust domain"):
        AuthorityState.from_json(data, TrustDomain("other.org"))
    secret = data.split(b"PRIVATE KEY")[1][8:48].decode()
    for cut in range(0, len(data) - 2, 97):
        with pytest.raises(StateDamaged) as caught:
            AuthorityState.from_json(data[:cut], TD)
        assert "restore the Secret from a backup" in str(caught.value)
        assert secret not in str(caught.value)
    for old, new in ((b'"active"', b'"old"'), (b'"version": 1', b'"version": 3'), (b'"sequence": ', b'"sequence": -')):
        with pytest.raises(StateDamaged):
            AuthorityState.from_json(data.replace(old, new), TD)
    document = json.loads(data)
    for sequence in (0, True, "1", None, 1.5, 2**63 + 1, 10**400):
        with pytest.raises(StateDamaged):
            AuthorityState.from_json(json.dumps({**document, "sequence": sequence}).encode(), TD)
    assert AuthorityState.from_json(json.dumps({**document, "sequence": 2**63}).encode(), TD).bundle.to_jwks()


class Lives(RuleBasedStateMachine):
    """Time, people, agents and the leader in any order."""

    @initialize()
    def begin(self) -> None:
        self.life = life()
        self.now = START
        self.state = done(self.life.first(self.now))
        self.published = {self.state.active_x509_id: self.state.sequence}
        self.issued: list[tuple[x509.Certificate, ...]] = []
        self.tokens: list[JwtSvid] = []
        self.forced = False
        self.acks = ALL

    def move(self, after: AuthorityState) -> None:
        if after is self.state:
            return
        assert after.sequence == self.state.sequence + 1
        newly_active = after.active_x509_id != self.state.active_x509_id
        # No authority signs that was not published by an earlier state.
        assert not newly_active or after.active_x509_id in self.published
        for slot in after.x509:
            self.published.setdefault(slot.id, after.sequence)
        self.state = AuthorityState.from_json(after.to_json(), TD)
        assert self.state.to_json() == after.to_json()

    @rule(minutes=st.integers(0, 60 * 30))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        self.lead()

    @rule()
    def lead(self) -> None:
        for _ in range(10):
            step = self.life.due(self.state, self.acks, self.now)
            if step is None:
                return
            self.move(done(self.life.do(self.state, step, self.now)))
        raise AssertionError("the steps do not end")

    @rule(nodes=st.frozensets(st.sampled_from(["a", "b"])), known=st.booleans())
    def acknowledge(self, nodes: frozenset[str], known: bool) -> None:
        self.acks = Acks(nodes, {slot.id: 1 for slot in self.state.x509} if known else None)

    @rule(kind=st.sampled_from(["x509", "jwt"]))
    def ask(self, kind: str) -> None:
        self.move(self.life.asked(self.state, kind, forced=False, now=self.now)[0])

    @rule(kind=st.sampled_from(["x509", "jwt"]))
    def force(self, kind: str) -> None:
        self.forced = True
        self.move(self.life.asked(self.state, kind, forced=True, now=self.now)[0])

    @rule(kind=st.sampled_from(["x509", "jwt"]))
    def prepare(self, kind: str) -> None:
        try:
            self.move(done(self.life.prepare(self.state, kind, self.now))[0])
        except TransitionRefused:
            waits = kind == "x509" and self.state.request is not None
            assert waits or self.state.find(kind, Stage.PREPARED) is not None

    @precondition(lambda self: self.state.active_x509.not_after > self.now)
    @rule()
    def issue(self) -> None:
        self.issued.append(self.state.active_x509.issue(KEY, WEB, ttl=TTL, now=self.now))
        assert self.state.active_jwt is not None
        self.tokens.append(self.state.active_jwt.issue(WEB, ["api"], ttl=POLICY.jwt_max_ttl, now=self.now))

    @invariant()
    def what_was_issued_verifies(self) -> None:
        if self.forced:
            return
        self.issued = [chain for chain in self.issued if chain[0].not_valid_after_utc >= self.now]
        for chain in self.issued:
            check_x509_svid(chain, self.state.bundle, self.now)
        self.tokens = [token for token in self.tokens if token.expires_at > self.now]
        for token in self.tokens:
            check_jwt_svid(token.token, {TD: self.state.bundle}, "api", self.now)

    @invariant()
    def one_signs(self) -> None:
        for kind in ("x509", "jwt"):
            assert stages(self.state, kind).count("active") == 1
            assert stages(self.state, kind).count("prepared") <= 1

    @invariant()
    def goals_are_of_kinds(self) -> None:
        assert {goal.kind for goal in self.state.goals} <= {"x509", "jwt"}
        assert len({Goal(goal.kind) for goal in self.state.goals}) == len(self.state.goals)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
