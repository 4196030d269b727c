"""The state as a value: what contradicts itself is none, whoever wrote it; and what is derived from it."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.authority.knowledge import Acks
from signer.authority.slots import KINDS, JwtSlot, Stage, X509Slot, authority_id, jwt_entry, x509_entry
from signer.authority.state import Abandoned, AuthorityState, Directive, Goal
from signer.authority.trust import Broadcast
from signer.errors import StateDamaged
from svid.authority import PublicAuthority, X509Authority
from svid.bundle import TrustBundle
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
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
        abandoned=(
            Abandoned("x509", tainted.id, START, START, START + timedelta(hours=1), True, START + timedelta(days=1)),
            Abandoned("x509", state.active_x509_id, START),
            Abandoned("jwt", "gone", START),
        ),
    )


def ed25519_pem() -> str:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_nothing_is_lost_in_the_text() -> None:
    state = full()
    again = AuthorityState.from_json(state.to_json(), TD)
    assert again.to_json() == state.to_json()
    assert (again.sequence, again.directives, again.goals) == (state.sequence, state.directives, state.goals)
    for kind in ("x509", "jwt"):
        for mine, theirs in zip(state.slots(kind), again.slots(kind), strict=True):
            assert (mine.id, mine.stage, mine.prepared_at) == (theirs.id, theirs.stage, theirs.prepared_at)
            assert (mine.activated_at, mine.ends_at) == (theirs.activated_at, theirs.ends_at)
    assert (again.abandoned, again.outdated) == (state.abandoned, False)
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

    def signing(kind: str, **changes: Any) -> dict[str, Any]:
        *rest, last = document[kind]
        return {kind: [*rest, {**last, **changes}]}

    directive = document["directives"][0]
    changes: list[dict[str, Any]] = [
        signing("x509", key=other["x509"][-1]["key"]),
        # Not wanted there, and still none that does not fit.
        slot("x509", key=other["x509"][-1]["key"]),
        slot("jwt", key=other["jwt"][-1]["key"], algorithm="ES256"),
        slot("x509", id=other["x509"][0]["id"]),
        slot("x509", chain=other["x509"][0]["chain"]),
        slot("x509", roots=""),
        slot("x509", stage="revoked"),
        slot("x509", prepared_at="2030-01-01T00:00:00"),
        slot("x509", ends_at="2030-01-01T00:00:00"),
        slot("x509", activated_at="soon"),
        slot("x509", prepared_at=None),
        signing("jwt", key=other["jwt"][-1]["key"]),
        slot("jwt", public=other["jwt"][0]["public"]),
        slot("jwt", public="no PEM"),
        slot("jwt", public=document["jwt"][-1]["key"]),
        slot("jwt", public=ed25519_pem()),
        slot("jwt", id=other["jwt"][0]["id"]),
        signing("jwt", algorithm="none"),
        signing("jwt", algorithm="RS256"),
        {"version": 2, "abandoned": [{**document["abandoned"][0], "kind": "ssh"}]},
        {"version": 2, "abandoned": [{**document["abandoned"][0], "id": 1}]},
        {"version": 2, "abandoned": [{**document["abandoned"][0], "asked_at": None}]},
        {"version": 2, "abandoned": [{**document["abandoned"][0], "left_at": "2030-01-01T00:00:00"}]},
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
    told = Broadcast.of(state, (partner,)).message
    assert (told.sequence, told.issues_jwt) == (state.sequence, True)
    assert [each.trust_domain for each in told.bundles] == ["example.org", "partner.test"]
    assert TrustBundle.from_jwks(TD, told.bundles[0].jwks) == state.bundle
    assert told.bundles[1].jwks == partner.to_jwks()
    (renew,) = told.renew
    (directive,) = state.directives
    assert renew.authority_id == directive.authority_id
    assert getattr(renew, "from").ToSeconds() == directive.start.timestamp()
    assert renew.until.ToSeconds() == directive.end.timestamp()
    assert not Broadcast.of(replace(state, jwt=()), ()).message.issues_jwt
    assert b"PRIVATE" not in told.SerializeToString()


def test_the_sequence_of_a_new_cluster_is_above_that_of_one_that_was_lost() -> None:
    """Agents that run on must take the new bundle for the newer one."""
    lost = first()
    for _ in range(1000):
        lost = replace(lost, sequence=lost.sequence + 1)
    assert done(life().first(START + timedelta(hours=1))).sequence > lost.sequence


@pytest.mark.parametrize("stage", [Stage.OLD, Stage.TAINTED])
def test_what_signs_no_more_has_no_key_however_it_came_to_be(stage: Stage) -> None:
    authority = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=10), now=START)
    key = JwtSigningKey.create(JwtAlgorithm.ES256)
    for signing in (Stage.PREPARED, Stage.ACTIVE):
        x509, jwt = X509Slot(signing, authority, START), JwtSlot(signing, key, START)
        assert (x509.signs, jwt.signs) == (True, True)
        for slot in (replace(x509, stage=stage), X509Slot(stage, authority, START)):
            assert slot.authority == PublicAuthority(TD, authority.chain, authority.bundle)
            assert (slot.id, slot.signs, slot.authority.not_after) == (x509.id, False, authority.not_after)
        for each in (replace(jwt, stage=stage), JwtSlot(stage, key, START)):
            assert (each.key, each.signs, each.id) == (key.public, False, jwt.id)
    text = full().to_json()
    assert text.count(b"PRIVATE KEY-----") == 2 * 4
    assert b"PRIVATE" not in repr(full()).encode()


@pytest.mark.parametrize("stage", [Stage.PREPARED, Stage.ACTIVE])
def test_what_is_to_sign_without_a_key_is_no_state(stage: Stage) -> None:
    state = first()
    public = replace(x509_slot(), stage=stage)
    key = JwtSlot(stage, JwtSigningKey.create(JwtAlgorithm.ES256).public, START)
    with pytest.raises(StateDamaged, match=r"no key of a X\.509 authority that is to sign"):
        replace(state, x509=(public,) if stage is Stage.ACTIVE else (*state.x509, public))
    with pytest.raises(StateDamaged, match="no key of a JWT authority that is to sign"):
        replace(state, jwt=(key,) if stage is Stage.ACTIVE else (*state.jwt, key))


def of_before() -> tuple[AuthorityState, bytes]:
    """A state, and how a signer wrote it that kept all keys."""
    state = full()
    document = json.loads(replace(state, abandoned=(), goals=frozenset()).to_json())
    for kind in KINDS:
        for number, each in enumerate(document[kind]):
            if "key" not in each:
                entry = x509_entry(x509_slot(Stage.ACTIVE)) if kind == "x509" else jwt_entry(jwt_slot(Stage.ACTIVE))
                times = ("stage", "prepared_at", "activated_at", "ends_at")
                document[kind][number] = {**entry, **{name: each[name] for name in times}}
    del document["abandoned"]
    return state, json.dumps({**document, "version": 1}).encode()


def test_a_state_of_before_is_read_and_written_without_the_keys_that_sign_no_more() -> None:
    _, text = of_before()
    assert text.count(b"BEGIN PRIVATE KEY") == 7
    state = AuthorityState.from_json(text, TD)
    assert state.outdated
    assert [slot.signs for slot in state.x509] == [False, False, True, True]
    step = life().due(state, Acks(frozenset({"silent"}), None), START)
    assert step is not None
    assert step.action == "rewrite"
    after = done(life().do(state, step, START))
    assert (after.sequence, after.x509, after.jwt) == (state.sequence + 1, state.x509, state.jwt)
    again = AuthorityState.from_json(after.to_json(), TD)
    assert not again.outdated
    assert after.to_json().count(b"BEGIN PRIVATE KEY") == 4
    due = life().due(again, Acks(frozenset({"silent"}), None), START)
    assert due is None or due.action != "rewrite"


def test_the_version_is_the_lowest_that_reads_it_right() -> None:
    """A signer of before goes on from what it would not misread, and refuses what it would."""
    assert json.loads(first().to_json())["version"] == 1
    prepared, _ = done(life().prepare(first(), "x509", START))
    assert json.loads(prepared.to_json())["version"] == 1
    assert json.loads(replace(first(), x509=(x509_slot(), *first().x509)).to_json())["version"] == 2
    assert json.loads(replace(first(), jwt=(jwt_slot(), *first().jwt)).to_json())["version"] == 2
    assert json.loads(replace(first(), abandoned=(Abandoned("jwt", "gone", START),)).to_json())["version"] == 2


def test_a_forced_rotation_of_before_that_says_not_what_is_stolen_counts_for_all_that_is_there() -> None:
    state, _ = done(life().prepare(first(), "x509", START))
    document = json.loads(state.to_json())
    document["goals"] = [{"kind": "x509", "forced": True}]
    del document["abandoned"]
    read = AuthorityState.from_json(json.dumps(document).encode(), TD)
    assert read.outdated
    step = life().due(read, Acks(frozenset(), {}), START)
    assert step is not None
    after = done(life().do(read, step, START))
    assert [slot.stage for slot in after.x509] == [Stage.ACTIVE]
    assert {each.authority_id for each in after.abandoned} == {slot.id for slot in state.x509}
    # One that says it is left to go on.
    going, _ = done(life().prepare(after, "x509", START))
    again = AuthorityState.from_json(going.to_json(), TD)
    assert not again.outdated
    due = life().due(again, Acks(frozenset(), {}), START)
    assert due is not None
    assert due.action == "activate"
    # Nor is it touched when it is another kind that has to be written anew.
    goals = [{"kind": kind, "forced": True} for kind in KINDS]
    older = AuthorityState.from_json(json.dumps({**json.loads(going.to_json()), "goals": goals}).encode(), TD)
    step = life().due(older, Acks(frozenset(), {}), START)
    assert step is not None
    assert step.action == "rewrite"
    assert [slot.stage for slot in done(life().do(older, step, START)).x509] == [Stage.ACTIVE, Stage.PREPARED]


def test_with_which_algorithm_a_key_signed_outlives_its_service() -> None:
    """Verifiers by OpenID Connect are told; an RSA key alone does not say it."""
    key = JwtSigningKey.create(JwtAlgorithm.PS256)
    old = JwtSlot(Stage.OLD, key, START)
    state = AuthorityState.from_json(replace(first(), jwt=(*first().jwt, old)).to_json(), TD)
    assert [each.algorithm for each in state.bundle.jwt_authorities if each.key_id == key.key_id] == ["PS256"]
    # A signer of before wrote none.
    document = json.loads(state.to_json())
    (entry,) = [each for each in document["jwt"] if each["id"] == key.key_id]
    assert entry.pop("algorithm") == "PS256"
    before = AuthorityState.from_json(json.dumps(document).encode(), TD)
    assert before.digest == state.digest
    assert [each.algorithm for each in before.bundle.jwt_authorities if each.key_id == key.key_id] == [None]
    # And one that is none of the key is damage.
    entry["algorithm"] = "ES256"
    with pytest.raises(StateDamaged):
        AuthorityState.from_json(json.dumps(document).encode(), TD)
