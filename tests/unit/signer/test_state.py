"""The state as a value: what contradicts itself is none, whoever wrote it; and what is derived from it."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from signer.authority.state import AuthorityState, Directive, Goal, JwtSlot, Stage, X509Slot, authority_id
from signer.authority.trust import Broadcast
from signer.errors import StateDamaged
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import JwtAlgorithm
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from svid.x509svid import check_x509_svid
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import KEY, TD, TTL, WEB, done, first, life

PARTNER = TrustDomain("partner.test")


def x509_slot(stage: Stage = Stage.OLD, trust_domain: TrustDomain = TD) -> X509Slot:
    authority = X509Authority.create(
        trust_domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=10), now=START
    )
    return X509Slot(stage, authority, START)


def jwt_slot(stage: Stage = Stage.OLD) -> JwtSlot:
    return JwtSlot(stage, JwtSigningKey.create(JwtAlgorithm.ES256), START)


def full() -> AuthorityState:
    """One of each stage, with everything that a state can have."""
    state = first()
    old = replace(x509_slot(), activated_at=START, ends_at=START + timedelta(hours=1))
    tainted, prepared = x509_slot(Stage.TAINTED), x509_slot(Stage.PREPARED)
    return replace(
        state,
        x509=(old, tainted, *state.x509, prepared),
        jwt=(jwt_slot(), *state.jwt, jwt_slot(Stage.PREPARED)),
        directives=(Directive(old.id, START, START + timedelta(minutes=10)),),
        goals=frozenset({Goal("x509", True), Goal("jwt")}),
    )


def test_nothing_is_lost_in_the_text() -> None:
    state = full()
    again = AuthorityState.from_json(state.to_json(), TD)
    assert again.to_json() == state.to_json()
    assert (again.sequence, again.directives, again.goals) == (state.sequence, state.directives, state.goals)
    for kind in ("x509", "jwt"):
        for mine, theirs in zip(state.slots(kind), again.slots(kind), strict=True):
            assert (mine.id, mine.stage, mine.prepared_at) == (theirs.id, theirs.stage, theirs.prepared_at)
            assert (mine.activated_at, mine.ends_at) == (theirs.activated_at, theirs.ends_at)
    assert again.bundle.to_jwks() == state.bundle.to_jwks()
    chain = again.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    assert check_x509_svid(chain, state.bundle, START) == WEB


def test_all_stages_are_trusted_and_one_signs() -> None:
    state = full()
    roots = {root for slot in state.x509 for root in slot.authority.bundle.x509_authorities}
    assert len(roots) == 4
    assert set(state.bundle.x509_authorities) == roots
    assert {key.key_id for key in state.bundle.jwt_authorities} == {slot.id for slot in state.jwt}
    assert len(state.jwt) == 3
    assert state.bundle.sequence == state.sequence
    active = state.find("x509", Stage.ACTIVE)
    assert isinstance(active, X509Slot)
    assert active.authority is state.active_x509
    assert active.id == state.active_x509_id == authority_id(state.active_x509)
    jwt = state.find("jwt", Stage.ACTIVE)
    assert isinstance(jwt, JwtSlot)
    assert jwt.key is state.active_jwt


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: {"x509": ()}, "0 active X.509"),
        (lambda s: {"x509": (x509_slot(Stage.OLD),)}, "0 active X.509"),
        (lambda s: {"x509": (*s.x509, x509_slot(Stage.ACTIVE))}, "2 active X.509"),
        (lambda s: {"x509": (*s.x509, x509_slot(Stage.PREPARED), x509_slot(Stage.PREPARED))}, "more than one prepared"),
        (lambda s: {"x509": (*s.x509, replace(s.x509[0], stage=Stage.OLD))}, "X.509 authority twice"),
        (lambda s: {"x509": (*s.x509, x509_slot(Stage.OLD, PARTNER))}, "not of trust domain example.org"),
        (lambda s: {"jwt": (jwt_slot(),)}, "0 active JWT"),
        (lambda s: {"jwt": (*s.jwt, jwt_slot(Stage.ACTIVE))}, "2 active JWT"),
        (lambda s: {"jwt": (*s.jwt, jwt_slot(Stage.PREPARED), jwt_slot(Stage.PREPARED))}, "more than one prepared JWT"),
        (lambda s: {"jwt": (*s.jwt, replace(s.jwt[0], stage=Stage.OLD))}, "JWT authority twice"),
    ],
)
def test_what_contradicts_itself_is_no_state(change: Callable[[AuthorityState], Any], why: str) -> None:
    state = first()
    with pytest.raises(StateDamaged, match=why) as caught:
        replace(state, **change(state))
    assert "restore the Secret from a backup" in str(caught.value)


def test_without_jwt_authorities_is_a_state() -> None:
    state = replace(first(), jwt=())
    assert (state.active_jwt, state.find("jwt", Stage.ACTIVE), state.bundle.jwt_authorities) == (None, None, ())
    assert AuthorityState.from_json(state.to_json(), TD).jwt == ()


def test_a_text_whose_parts_do_not_fit_is_refused() -> None:
    """Each change alone, in the place of what was right."""
    state = full()
    document = json.loads(state.to_json())
    other = json.loads(full().to_json())

    def slot(kind: str, **changes: Any) -> dict[str, Any]:
        head, *rest = document[kind]
        return {kind: [{**head, **changes}, *rest]}

    directive = document["directives"][0]
    changes: list[dict[str, Any]] = [
        slot("x509", key=other["x509"][0]["key"]),
        slot("x509", id=other["x509"][0]["id"]),
        slot("x509", chain=other["x509"][0]["chain"]),
        slot("x509", roots=""),
        slot("x509", stage="revoked"),
        slot("x509", prepared_at="2030-01-01T00:00:00"),
        slot("x509", ends_at="2030-01-01T00:00:00"),
        slot("x509", activated_at="soon"),
        slot("x509", prepared_at=None),
        slot("jwt", key=other["jwt"][0]["key"]),
        slot("jwt", id=other["jwt"][0]["id"]),
        slot("jwt", algorithm="none"),
        slot("jwt", algorithm="RS256"),
        {"directives": [{**directive, "start": "2030-01-01T00:00:00"}]},
        {"directives": [{**directive, "end": None}]},
        {"directives": [{}]},
        {"goals": [{"kind": "ssh", "forced": False}]},
        {"goals": [{"kind": "x509"}]},
        {"x509": {}},
        {"x509": None},
        {"version": "1"},
        {"version": None},
        {"trust_domain": "other.org"},
    ]
    for change in changes:
        with pytest.raises(StateDamaged) as caught:
            AuthorityState.from_json(json.dumps({**document, **change}).encode(), TD)
        assert "PRIVATE" not in str(caught.value)
    for missing in document:
        with pytest.raises(StateDamaged):
            AuthorityState.from_json(json.dumps({k: v for k, v in document.items() if k != missing}).encode(), TD)
    for text in (b"[]", b"null", b"1", b"\xff", b"[" * 100_000):
        with pytest.raises(StateDamaged):
            AuthorityState.from_json(text, TD)


def test_agents_are_told_all_bundles_and_what_to_renew() -> None:
    state = full()
    partner = TrustBundle(PARTNER, state.bundle.x509_authorities, sequence=3)
    told = Broadcast.of(state, (partner,)).message()
    assert (told.sequence, told.issues_jwt) == (state.sequence, True)
    assert [each.trust_domain for each in told.bundles] == ["example.org", "partner.test"]
    assert TrustBundle.from_jwks(TD, told.bundles[0].jwks) == state.bundle
    assert told.bundles[1].jwks == partner.to_jwks()
    (renew,) = told.renew
    (directive,) = state.directives
    assert renew.authority_id == directive.authority_id
    assert getattr(renew, "from").ToSeconds() == directive.start.timestamp()
    assert renew.until.ToSeconds() == directive.end.timestamp()
    assert not Broadcast.of(replace(state, jwt=()), ()).message().issues_jwt
    assert b"PRIVATE" not in told.SerializeToString()


def test_the_sequence_of_a_new_cluster_is_above_that_of_one_that_was_lost() -> None:
    """Agents that run on must take the new bundle for the newer one."""
    lost = first()
    for _ in range(1000):
        lost = replace(lost, sequence=lost.sequence + 1)
    assert done(life().first(START + timedelta(hours=1))).sequence > lost.sequence
