"""A root of the CA above is declared stolen: what trusts it, what leads to it, and what would bring it back."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from signer.authority import revocation
from signer.authority.abandonments import Record, record_of
from signer.authority.fit_roots import MAX_ROOTS
from signer.authority.granting import granted
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.recovery import returned
from signer.authority.revoked import MAX_REVOKED, joined, key_id_of, key_of
from signer.authority.roots import fed
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from signer.errors import CertificateRefused, RootsRefused, StateDamaged, TransitionRefused
from signer.front.audit import Audit
from signer.model import Agent
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.remote import Elsewhere, Issued
from signer.upstream.roots import RootSet
from svid.errors import InvalidSvid
from svid.keys import signature_hash
from svid.x509svid import check_x509_svid
from tests.meanwhile import before
from tests.signer_rig import START
from tests.unit.signer.test_key_store import Store, kept
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, TTL, WEB, advanced, done, stages
from tests.unit.signer.test_lifecycle import first as self_signed
from tests.unit.signer.test_rotation import PATH, Cluster, Replica, loop, passes, said, until
from tests.unit.signer.test_upstream_roots import (
    ONE,
    THREE,
    TWO,
    Source,
    below,
    interval,
    led,
    named,
    read,
    renewed,
    trusted,
    version,
)
from tests.unit.signer.test_upstream_trial import Above, Ca, authority, marked, usual

BELOW_ONE, BELOW_TWO = (Life(POLICY, usual(each), TD) for each in (ONE, TWO))
SILENT = Acks(frozenset({"node-1"}), None)


def fingerprint(ca: Ca) -> str:
    return ca.certificate.fingerprint(hashes.SHA256()).hex()


def stolen(state: AuthorityState, ca: Ca = ONE, *, forced: bool = False) -> AuthorityState:
    return revocation.revoke(state, fingerprint(ca), POLICY, START, 0, forced=forced)[0]


def stored(state: AuthorityState) -> AuthorityState:
    return AuthorityState.from_json(state.to_json(), TD)


def over(ca: Ca, by: Ca) -> Ca:
    """The same key and name, certified by another root."""
    old = ca.certificate
    builder = x509.CertificateBuilder(
        by.certificate.subject,
        old.subject,
        ca.key.public_key(),
        x509.random_serial_number(),
        old.not_valid_before_utc,
        old.not_valid_after_utc,
    )
    for each in old.extensions:
        builder = builder.add_extension(each.value, each.critical)
    return Ca(builder.sign(by.key, signature_hash(by.key)), ca.key)


def test_one_that_nothing_leads_to_leaves_at_once_and_is_not_taken_again() -> None:
    state = read(below(), named(ONE, TWO))
    after = stored(stolen(state, TWO))
    assert (trusted(after), after.sequence, stages(after)) == ({"one"}, state.sequence + 1, ["active"])
    assert (after.condemned, BELOW_ONE.due(after, ALL, START)) == (False, None)
    found = fed(after, named(ONE, TWO), None, POLICY, START)
    assert trusted(found.state) == {"one"}
    assert "CN=two is left out: it was revoked" in found.left_out
    # Nor by another certificate of its key.
    for other in (renewed(TWO), over(TWO, THREE)):
        again = fed(after, RootSet((ONE.certificate, other.certificate), True), None, POLICY, START)
        assert (trusted(again.state), again.left_out != "") == ({"one"}, True)


@pytest.mark.parametrize("how", [fingerprint, lambda ca: key_id_of(ca.certificate)], ids=["fingerprint", "key id"])
def test_it_is_named_as_it_is_shown_or_as_openssl_shows_it(how: Callable[[Ca], str]) -> None:
    state, text = read(below(), named(ONE, TWO)), how(TWO)
    colons = ":".join(text[each : each + 2] for each in range(0, len(text), 2)).upper()
    for each in (text, colons):
        after, told = revocation.revoke(state, each, POLICY, START, 0, forced=False)
        assert trusted(after) == {"one"}
        assert told.startswith(f"root {fingerprint(TWO)} (CN=two) is revoked: it has left the trust bundle")


def test_where_the_active_one_leads_to_no_other_it_goes_as_in_a_forced_rotation() -> None:
    state = read(below(), named(ONE, TWO))
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    after = stored(stolen(state))
    assert (trusted(after), stages(after), after.condemned) == ({"one", "two"}, ["active"], True)
    # Nobody is without trust: it signs until another can.
    assert check_x509_svid(leaf, after.bundle, START) == WEB
    step = BELOW_TWO.due(after, SILENT, START)
    assert step is not None
    assert (step.action, step.reason) == ("prepare", "the root above was revoked")
    waiting = stored(advanced(after, START, SILENT, by=BELOW_TWO))
    assert stages(waiting) == ["active", "prepared"]
    assert advanced(waiting, START + timedelta(seconds=89), SILENT, by=BELOW_TWO) is waiting
    # Silent agents are waited for as long as in a forced rotation.
    moved = stored(advanced(waiting, START + timedelta(seconds=90), SILENT, by=BELOW_TWO))
    assert (stages(moved), trusted(moved)) == (["tainted", "active"], {"one", "two"})
    assert [(each.authority_id, each.end - each.start) for each in moved.directives] == [
        (state.active_x509_id, POLICY.forced_window)
    ]
    held = Acks(frozenset(), {state.active_x509_id: 1})
    assert advanced(moved, START + timedelta(seconds=100), held, by=BELOW_TWO) is moved
    gone = advanced(moved, START + timedelta(seconds=100), by=BELOW_TWO)
    assert (stages(gone), trusted(gone), gone.directives) == (["active"], {"two"}, ())
    with pytest.raises(InvalidSvid):
        check_x509_svid(leaf, gone.bundle, START)
    # Whoever does not answer holds it up no longer than after a theft.
    bound = START + timedelta(seconds=90) + POLICY.forced_window + timedelta(seconds=30)
    assert trusted(advanced(moved, bound, held, by=BELOW_TWO)) == {"two"}


def test_nothing_below_it_is_put_in_service_and_the_active_one_signs_on() -> None:
    after = stolen(read(below(), named(ONE, TWO)))
    with pytest.raises(CertificateRefused, match="leads to no root but one that was revoked") as caught:
        done(BELOW_ONE.prepare(after, "x509", START))
    assert "podsvid authority prepare" in str(caught.value)
    # Nor under a name, or in a chain, that is another's.
    crossed = over(ONE, TWO)
    through = Above(lambda key, end: authority(crossed.below(marked(key), key, life=end - START), crossed, roots=[TWO]))
    with pytest.raises(CertificateRefused, match="revoked"):
        done(Life(POLICY, through, TD).prepare(after, "x509", START))


def test_a_certificate_of_a_ca_elsewhere_below_it_is_refused() -> None:
    elsewhere = Life(POLICY, Elsewhere("CA"), TD)
    asked = done(elsewhere.prepare(stolen(read(below(), named(ONE, TWO))), "x509", START))[0]
    assert asked.request is not None
    key, name = asked.request.key, marked(asked.request.key)
    bad = Issued((ONE.below(name, key, life=POLICY.authority_ttl).certificate,), (ONE.certificate, TWO.certificate))
    with pytest.raises(CertificateRefused, match="revoked"):
        granted(asked, bad, POLICY, START)
    good = Issued((TWO.below(name, key, life=POLICY.authority_ttl).certificate,), (ONE.certificate, TWO.certificate))
    after, slot = granted(asked, good, POLICY, START)
    assert (stages(after), slot.authority.bundle.x509_authorities) == (["active", "prepared"], (TWO.certificate,))


def test_a_certificate_that_leads_to_another_root_as_well_brings_it_not_back() -> None:
    asked = done(Life(POLICY, Elsewhere("CA"), TD).prepare(stolen(read(below(), named(ONE, TWO)), TWO), "x509", START))[
        0
    ]
    assert asked.request is not None
    own = THREE.below(marked(asked.request.key), asked.request.key, life=POLICY.authority_ttl)
    chain = (own.certificate, over(THREE, TWO).certificate)
    _, slot = granted(asked, Issued(chain, (TWO.certificate, THREE.certificate)), POLICY, START)
    assert slot.authority.bundle.x509_authorities == (THREE.certificate,)


@pytest.mark.parametrize("by_time", [False, True], ids=["a person", "the time"])
def test_what_a_person_asks_for_meanwhile_is_asked_for_at_once(by_time: bool) -> None:
    """A refusal of before is waited out for an hour, but not by a person."""
    asked = done(Life(POLICY, Elsewhere("CA"), TD).prepare(stolen(below()), "x509", START, by_time=by_time))[0]
    assert asked.request is not None
    assert asked.request.wished is not by_time


def test_the_first_authority_of_a_new_secret_below_it_is_refused_too() -> None:
    unborn = done(Life(POLICY, Elsewhere("CA"), TD).first(START))
    assert unborn.request is not None
    revoked = replace(unborn, revoked=stolen(below()).revoked)
    name = marked(unborn.request.key)
    bad = Issued((ONE.below(name, unborn.request.key, life=POLICY.authority_ttl).certificate,), (ONE.certificate,))
    with pytest.raises(CertificateRefused, match="revoked"):
        granted(revoked, bad, POLICY, START)


def test_an_authority_below_another_root_brings_it_back_with_no_bundle() -> None:
    """The file above names both still."""
    both = Above(lambda key, end: authority(TWO.below(marked(key), key, life=end - START), roots=[ONE, TWO]))
    gone = advanced(stolen(below()), START, by=Life(POLICY, both, TD))
    assert stages(gone) == ["active"]
    assert (trusted(gone), gone.roots) == ({"two"}, ())


def test_what_leads_to_another_root_as_well_goes_on() -> None:
    crossed = over(THREE, TWO)
    # Certified by THREE, which is a root and is signed by TWO as well.
    either = Above(
        lambda key, end: authority(THREE.below(marked(key), key, life=end - START), crossed, roots=[THREE, TWO])
    )
    state = done(Life(POLICY, either, TD).first(START))
    assert trusted(state) == {"three", "two"}
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    after = stored(stolen(state, TWO))
    assert (trusted(after), stages(after), after.condemned) == ({"three"}, ["active"], False)
    assert check_x509_svid(leaf, after.bundle, START) == WEB
    # Of THREE's key there is one below TWO: who stole it makes what verifies there.
    assert stolen(state, THREE).condemned


def test_it_leaves_as_soon_as_the_active_one_leads_to_another_root_as_well() -> None:
    """A CA moves to another root, which the old one has certified: the one is stolen before the other is named."""

    async def run() -> None:
        cluster, source = Cluster(), Source(ONE)
        crossed = over(THREE, ONE)
        moving = Above(
            lambda key, end: authority(THREE.below(marked(key), key, life=end - START), crossed, roots=[ONE])
        )
        one = Replica(cluster, "one", Life(POLICY, moving, TD), source.roots)
        await one.open()
        await one.leader.attempt()
        await one.rotation.step("revoke_upstream", "x509", fingerprint(ONE), forced=False)
        assert (trusted(cluster.stored), cluster.stored.condemned) == ({"one"}, True)
        async with loop(one.rotation.ask_above()):
            await passes()
            source.says = named(ONE, THREE)
            interval(cluster)
            await until(lambda: "three" in trusted(cluster.stored))
        assert (trusted(cluster.stored), cluster.stored.condemned) == ({"three"}, False)
        assert stages(cluster.stored) == ["active"]

    asyncio.run(run())


def test_keys_of_authorities_that_are_refused_for_their_root_do_not_stay_in_a_store() -> None:
    store = Store()
    life = Life(POLICY, usual(ONE), TD, keys=kept(store))
    state = done(life.first(START))
    before_that = set(store.keys)
    condemned = stolen(state)
    for _ in range(3):
        with pytest.raises(CertificateRefused, match="was revoked"):
            done(life.prepare(condemned, "x509", START))
    with pytest.raises(CertificateRefused, match="was revoked"):
        done(life.first(START, condemned.revoked))
    assert set(store.keys) == before_that


def test_where_the_secret_was_deleted_the_first_authority_is_below_none() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)
        await one.rotation.step("revoke_upstream", "x509", fingerprint(ONE), forced=False)
        await one.leader.release()
        del cluster.kube.objects[PATH]
        two = Replica(cluster, "two", Life(POLICY, usual(ONE), TD), source.roots)
        opening = asyncio.ensure_future(two.open())
        await two.leader.attempt()
        await until(lambda: "was revoked" in two.rotation.first.awaited)
        assert PATH not in cluster.kube.objects
        two.rotation._life._make.above = usual(TWO)
        cluster.clock.pass_by(seconds=120)
        await opening
        assert trusted(cluster.stored) == {"two"}
        assert [each.id for each in cluster.stored.revoked] == [fingerprint(ONE)]

    asyncio.run(run())


def test_what_was_cut_is_refused_by_signers_of_before_though_it_was_taken_back() -> None:
    prepared = done(BELOW_TWO.prepare(below(), "x509", START))[0]
    cut = stolen(prepared, forced=True)
    back = revocation.take_back(cut, fingerprint(ONE), START)[0]
    assert any(not slot.authority.bundle.x509_authorities for slot in back.x509)
    assert version(back) == version(cut) == 6
    assert stored(back).to_json() == back.to_json()


def test_what_signed_below_it_is_re_issued_and_what_was_to_sign_is_dropped() -> None:
    state = read(below(), named(ONE, TWO))
    moved = advanced(BELOW_TWO.asked(state, "x509", forced=False, now=START)[0], START, by=BELOW_TWO)
    assert stages(moved) == ["old", "active"]
    after = stored(stolen(moved))
    assert (stages(after), trusted(after), after.condemned) == (["tainted", "active"], {"one", "two"}, False)
    assert [each.authority_id for each in after.directives] == [state.active_x509_id]
    assert trusted(advanced(after, START, by=BELOW_TWO)) == {"two"}
    coming = done(BELOW_ONE.prepare(below(TWO), "x509", START))[0]
    assert (stages(coming), trusted(coming)) == (["active", "prepared"], {"two", "one"})
    dropped = stored(stolen(coming))
    assert (stages(dropped), trusted(dropped)) == (["active"], {"two"})


def test_one_that_is_prepared_below_another_root_is_activated_soon() -> None:
    state = done(BELOW_TWO.prepare(below(), "x509", START))[0]
    after = stolen(state)
    assert advanced(after, START + timedelta(seconds=89), SILENT, by=BELOW_TWO) is after
    moved = advanced(after, START + timedelta(seconds=90), SILENT, by=BELOW_TWO)
    assert stages(moved) == ["tainted", "active"]


def test_the_next_root_is_published_before_its_authority_though_the_active_ones_is_not_named_any_more() -> None:
    after = stolen(below())
    assert trusted(read(after, named(TWO))) == {"one", "two"}
    with pytest.raises(RootsRefused, match="no root of the active authority"):
        read(below(), named(TWO))


def test_at_once_nobody_is_left_without_any_trust() -> None:
    for state in (below(), read(below(), named(ONE, TWO))):
        with pytest.raises(TransitionRefused, match="leave --forced out"):
            stolen(state, forced=True)
    prepared = done(BELOW_TWO.prepare(below(), "x509", START))[0]
    leaf = prepared.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    for state in (prepared, stolen(prepared)):
        cut = stored(stolen(state, forced=True))
        assert (stages(cut), trusted(cut)) == (["tainted", "active"], {"two"})
        with pytest.raises(InvalidSvid):
            check_x509_svid(leaf, cut.bundle, START)
        # They are re-issued all the same.
        assert [each.authority_id for each in cut.directives] == [state.active_x509_id]
        assert stages(advanced(cut, START, Acks(frozenset(), {state.active_x509_id: 1}), by=BELOW_TWO)) == stages(cut)
        assert stages(advanced(cut, START, by=BELOW_TWO)) == ["active"]
    moved = advanced(BELOW_TWO.asked(below(), "x509", forced=False, now=START)[0], START, by=BELOW_TWO)
    assert trusted(stolen(moved, forced=True)) == {"two"}


def test_a_second_word_changes_nothing_and_says_so() -> None:
    after = stolen(read(below(), named(ONE, TWO)))
    again, told = revocation.revoke(after, fingerprint(ONE), POLICY, START, 0, forced=False)
    assert again is after
    assert told.endswith("is being revoked already; see authority show")
    gone = stolen(read(below(), named(ONE, TWO)), TWO)
    again, told = revocation.revoke(gone, fingerprint(TWO), POLICY, START, 0, forced=False)
    assert again is gone
    assert told.endswith("is revoked already, and not trusted any more")


def test_what_is_no_root_of_a_ca_above_is_refused() -> None:
    own = self_signed()
    with pytest.raises(TransitionRefused, match="authority rotate --forced"):
        revocation.revoke(own, own.active_x509_id, POLICY, START, 0, forced=False)
    middle = ONE.below("middle")
    upstream = Above(lambda key, end: authority(middle.below("issuing", key, life=end - START), middle, roots=[ONE]))
    with pytest.raises(TransitionRefused, match="an intermediate, which is trusted for the root above it"):
        stolen(done(Life(POLICY, upstream, TD).first(START)), middle)
    with pytest.raises(TransitionRefused, match="no root that is trusted has the id"):
        stolen(below(), TWO)
    for wrong in ("", ":", "one", "zz" * 20, "a" * 129):
        with pytest.raises(TransitionRefused, match="authority show has both"):
            revocation.revoke(below(), wrong, POLICY, START, 0, forced=False)


def test_roots_that_call_their_keys_the_same_are_told_by_their_fingerprints() -> None:
    """What a certificate calls its key is its maker's choice."""
    mark = next(each for each in TWO.certificate.extensions if isinstance(each.value, x509.SubjectKeyIdentifier))
    mimic = renewed(THREE, more=((mark.value, False),))
    state = read(below(), named(ONE, TWO, mimic))
    with pytest.raises(TransitionRefused, match="name one by its SHA-256 fingerprint") as caught:
        revocation.revoke(state, key_id_of(TWO.certificate), POLICY, START, 0, forced=False)
    assert fingerprint(TWO) in str(caught.value)
    assert trusted(stolen(state, mimic)) == {"one", "two"}


def test_it_is_trusted_again_when_a_person_says_so_and_the_ca_names_it() -> None:
    gone = stolen(read(below(), named(ONE, TWO)), TWO)
    for how in (fingerprint(TWO), key_id_of(TWO.certificate)):
        back, told = revocation.take_back(gone, how, START)
        assert "may be trusted again" in told
        assert (trusted(back), back.sequence) == ({"one"}, gone.sequence + 1)
        assert trusted(read(stored(back), named(ONE, TWO))) == {"one", "two"}
    with pytest.raises(TransitionRefused, match="no revoked roots have the id"):
        revocation.take_back(back, fingerprint(TWO), START)
    again = stolen(read(back, named(ONE, TWO)), TWO)
    assert trusted(read(again, named(ONE, TWO))) == {"one"}
    # The later word counts, also where the clock was set back.
    assert joined(gone.revoked, back.revoked) == back.revoked
    assert joined(again.revoked, back.revoked, gone.revoked) == again.revoked


def test_taken_back_before_anything_was_done_nothing_is() -> None:
    state = read(below(), named(ONE, TWO))
    back, _ = revocation.take_back(stolen(state), fingerprint(ONE), START)
    assert (back.condemned, BELOW_TWO.due(back, ALL, START)) == (False, None)


def test_a_signer_of_before_refuses_a_state_that_it_would_trust_a_stolen_root_by() -> None:
    gone = stolen(read(below(), named(ONE, TWO)), TWO)
    assert version(gone) == 6
    back, _ = revocation.take_back(gone, fingerprint(TWO), START)
    assert version(back) == 1
    assert stored(back).revoked == back.revoked
    document = json.loads(gone.to_json())
    with pytest.raises(StateDamaged, match="a newer signer wrote"):
        AuthorityState.from_json(json.dumps({**document, "version": 7}).encode(), TD)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda entry: [entry, entry],
        lambda entry: [{**entry, "key": "ab"}],
        lambda entry: [{**entry, "key": 7}],
        lambda entry: [{**entry, "id": "z" * 64}],
        lambda entry: [{**entry, "subject": "s" * 257}],
        lambda entry: [{**entry, "asked_at": "yesterday"}],
        lambda entry: [{**entry, "taken_back_at": "2026-01-01T00:00:00"}],
        lambda entry: [{"key": entry["key"]}],
        lambda entry: [7],
        lambda entry: 7,
    ],
)
def test_damaged_revocations_are_damage(wrong: Callable[[Any], object]) -> None:
    document = json.loads(stolen(below()).to_json())
    document["revoked"] = wrong(document["revoked"][0])
    with pytest.raises(StateDamaged):
        AuthorityState.from_json(json.dumps(document).encode(), TD)


def test_so_many_are_remembered_and_one_in_force_is_never_forgotten() -> None:
    template = stolen(below()).revoked[0]
    many = tuple(replace(template, key=f"{number:064x}", id=f"{number:064x}") for number in range(MAX_REVOKED))
    full = replace(read(below(), named(ONE, TWO)), revoked=many)
    with pytest.raises(TransitionRefused, match="authority trust-upstream"):
        stolen(full, TWO)
    some = replace(full, revoked=(*many[:-1], replace(many[-1], taken_back_at=START)))
    assert stolen(some, TWO).revoked[:-1] == many[:-1]


def test_an_older_state_learns_of_it_from_the_record_and_a_later_word_of_the_state_counts() -> None:
    state = read(below(), named(ONE, TWO))
    gone = stolen(state, TWO)
    record = record_of(gone, START)
    assert returned(state, record, None).revoked == gone.revoked
    assert not returned(gone, record, None)
    back, _ = revocation.take_back(gone, fingerprint(TWO), START)
    assert not returned(back, record, None)
    # What only the record says was taken back is not: fewer may write the Secret.
    assert not returned(gone, record_of(back, START), None)
    freed = done(BELOW_ONE.freed(state, returned(state, record, None), record, START))
    assert trusted(read(freed, named(ONE, TWO))) == {"one"}
    assert Record().joined(record).covers(record)
    assert not Record().covers(record)


def test_without_any_the_ca_above_is_not_looked_at_twice() -> None:
    state = below()
    assert revocation.carried_out(state, POLICY, START, 0) is state
    gone = stolen(read(state, named(ONE, TWO)), TWO)
    assert revocation.carried_out(gone, POLICY, START, 0) is gone


def test_people_see_what_it_waits_for() -> None:
    both = read(below(), named(ONE, TWO))
    assert revocation.outlook(stolen(both, TWO)) == []
    state = stolen(both)

    def waits(at: AuthorityState) -> str:
        (line,) = (each for each in BELOW_TWO.outlook(at, SILENT, START) if "revoked root" in each)
        assert line.startswith(f"x509: stop trusting the revoked root {fingerprint(ONE)} when ")
        return line

    assert "the CA above has to certify one below another" in waits(state)
    coming = advanced(state, START, SILENT, by=BELOW_TWO)
    assert "the prepared authority signs" in waits(coming)
    moved = advanced(coming, START + timedelta(seconds=90), SILENT, by=BELOW_TWO)
    assert "no SVID below it is held any more" in waits(moved)


def test_the_audit_log_names_roots_that_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    audit, state = Audit(Cluster().clock), below()
    both = read(state, named(ONE, TWO))
    audit.changed(state, both)
    (line,) = said(caplog, "root entered the trust bundle")
    facts = {name: vars(line)[name] for name in ("root", "subject", "of")}
    assert facts == {"root": fingerprint(TWO), "subject": "CN=two", "of": "the CA above names it"}
    gone = stolen(both, TWO)
    audit.changed(both, gone)
    (line,) = said(caplog, "root left the trust bundle")
    assert (vars(line)["root"], vars(line)["revoked"]) == (fingerprint(TWO), True)
    (line,) = said(caplog, "root of the CA above revoked")
    assert (vars(line)["root"], vars(line)["key_id"]) == (fingerprint(TWO), key_id_of(TWO.certificate))
    back, _ = revocation.take_back(gone, fingerprint(TWO), START)
    audit.changed(gone, back)
    assert len(said(caplog, "revocation of a root taken back")) == 1
    moved = done(BELOW_TWO.prepare(state, "x509", START))[0]
    audit.changed(state, moved)
    assert vars(said(caplog, "root entered the trust bundle")[-1])["of"] == f"authority {moved.x509[1].id}"
    audit.changed(moved, moved)
    assert len(said(caplog, "root entered the trust bundle")) == 2


def agents_have_it(cluster: Cluster, at: Replica) -> None:
    at.agents.connect(Agent("a", "u", "agent", "p", START))
    at.agents.acknowledged("a", cluster.stored.sequence, {}, cluster.stored.digest)


def test_the_next_leader_goes_on_and_a_ca_that_is_away_meanwhile_loses_nothing() -> None:
    """The CA above answers only when another replica leads."""

    async def run() -> None:
        cluster, source = Cluster(), Source(ONE)
        above = usual(TWO)
        answer = above.answer

        def away(key: Any, end: Any) -> Any:
            raise UpstreamUnusable("nobody answers")

        one = await led(cluster, source)
        above.answer = away
        one.rotation._life._make.above = above
        told: list[str] = []
        one.rotation.roots.said = told.append
        cluster.live = frozenset({"a"})
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: bool(cluster.stored.roots))
            message = await one.rotation.step("revoke_upstream", "x509", fingerprint(ONE), forced=False)
            assert "trusted until another authority signs" in message
            assert told == [message]
            await until(lambda: above.asked > 0)
            await passes()
            assert (stages(cluster.stored), trusted(cluster.stored)) == (["active"], {"one"})
            assert any("nobody answers" in each for each in one.rotation.next_steps(cluster.stored))
        await one.leader.release()
        above.answer = answer
        two = Replica(cluster, "two", Life(POLICY, above, TD), source.roots)
        await two.open()
        await two.leader.attempt()
        async with loop(two.rotation.run()), loop(two.rotation.ask_above()):
            await until(lambda: len(cluster.stored.x509) == 2)
            agents_have_it(cluster, two)
            await until(lambda: stages(cluster.stored) == ["tainted", "active"])
            agents_have_it(cluster, two)
            await until(lambda: stages(cluster.stored) == ["active"])
            # The CA above names the stolen one still: said, and not taken.
            source.says = named(ONE, TWO)
            interval(cluster)
            await until(lambda: two.rotation.roots.refuses)
            assert trusted(cluster.stored) == {"two"}
            (note,) = two.rotation.roots.notes
            assert "CN=one is left out: it was revoked" in note

    asyncio.run(run())


@pytest.mark.parametrize("dies", [False, True], ids=["restored", "died between the two writes"])
def test_an_older_secret_that_is_restored_while_no_signer_runs_does_not_bring_it_back(dies: bool) -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)
        async with loop(one.rotation.ask_above()):
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
        older = cluster.kube.objects[PATH]
        if dies:

            def falls() -> None:
                raise asyncio.CancelledError

            before(cluster.kube, "replace", falls, "secrets")
            with pytest.raises(asyncio.CancelledError):
                await one.rotation.step("revoke_upstream", "x509", fingerprint(TWO), forced=False)
        else:
            await one.rotation.step("revoke_upstream", "x509", fingerprint(TWO), forced=False)
            assert trusted(cluster.stored) == {"one"}
            cluster.kube.put(PATH, {"data": older["data"]})
        assert trusted(cluster.stored) == {"one", "two"}
        await one.leader.release()
        two = Replica(cluster, "two", BELOW_ONE, source.roots)
        await two.open()
        await two.leader.attempt()
        assert trusted(cluster.stored) == {"one"}
        async with loop(two.rotation.ask_above()):
            await until(lambda: two.rotation.roots.refuses)
            await passes()
            assert trusted(cluster.stored) == {"one"}
        # A person's word is in the Secret, and outlives the next start.
        await two.rotation.step("trust_upstream", "x509", fingerprint(TWO), forced=False)
        three = Replica(cluster, "three", BELOW_ONE, source.roots)
        await three.open()
        assert cluster.stored.revoked_keys == frozenset()

    asyncio.run(run())


def test_no_more_roots_come_with_an_authority_than_the_ca_above_may_name() -> None:
    """One bound, at the first start and later."""
    many = [Ca.root(f"r{number}") for number in range(MAX_ROOTS)]

    def life(*roots: Ca) -> Life:
        above = Above(lambda key, end: authority(ONE.below(marked(key), key, life=end - START), roots=roots))
        return Life(POLICY, above, TD)

    with pytest.raises(CertificateRefused, match=r"65 certificates of .* are more than the 64"):
        done(life(ONE, *many).first(START))
    state = done(life(ONE, *many[:-1]).first(START))
    assert len(trusted(state)) == MAX_ROOTS
    assert len(read(state, named(ONE, *many[:-1])).roots) == MAX_ROOTS
    with pytest.raises(CertificateRefused, match="are more than the 64"):
        done(life(ONE, TWO, THREE).prepare(state, "x509", START))


def test_what_the_feed_would_leave_out_does_not_come_with_an_authority() -> None:
    seals = renewed(THREE, more=((x509.KeyUsage(True, False, False, False, False, False, False, False, False), True),))
    later = Ca.root("later", start=START + timedelta(days=1))
    both = Above(
        lambda key, end: authority(ONE.below(marked(key), key, life=end - START), roots=[ONE, TWO, seals, later])
    )
    life = Life(POLICY, both, TD)
    assert trusted(done(life.first(START))) == {"one", "two"}
    assert trusted(done(life.prepare(below(), "x509", START))[0]) == {"one", "two"}


def test_an_authority_that_a_ca_certified_for_longer_than_asked_serves_as_long_as_was_asked_for() -> None:
    """Else a CA that certifies for ten years has one serve for five."""
    years = Above(lambda key, end: authority(ONE.below(marked(key), key, life=timedelta(days=3650)), roots=[ONE]))
    life = Life(POLICY, years, TD)
    state = done(life.first(START))
    assert state.active_x509.not_after == START + timedelta(days=3650)
    half = START + POLICY.authority_ttl / 2
    assert life.due(state, ALL, half - timedelta(seconds=1), ("x509",)) is None
    step = life.due(state, ALL, half, ("x509",))
    assert step is not None
    assert (step.action, step.reason) == ("prepare", "the active one is due for replacement")
    # One that is cut short ends later than this one was to serve: worth the change, though its certificate lives on.
    short = Above(lambda key, end: authority(ONE.below(marked(key), key, life=timedelta(days=12)), roots=[ONE]))
    assert stages(advanced(state, half, by=Life(POLICY, short, TD))) == ["old", "active"]


class Revocations(RuleBasedStateMachine):
    """Roots are stolen among rotations, reads and time: what left is never trusted again, and nobody is cut off."""

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.state = below()
        # Those that were trusted no more since they were revoked.
        self.gone: set[str] = set()

    @rule(which=st.sets(st.sampled_from([ONE, TWO, THREE]), min_size=1), complete=st.booleans())
    def reads(self, which: set[Ca], complete: bool) -> None:
        try:
            self.state = fed(self.state, named(*which, complete=complete), None, POLICY, self.now).state
        except RootsRefused:
            return

    @rule(which=st.sampled_from([ONE, TWO, THREE]))
    def advances_below(self, which: Ca) -> None:
        try:
            self.state = advanced(self.state, self.now, by=Life(POLICY, usual(which), TD))
        except CertificateRefused:
            assert key_of(which.certificate) in self.state.revoked_keys

    @rule(which=st.sampled_from([ONE, TWO, THREE]))
    def rotates(self, which: Ca) -> None:
        self.state = Life(POLICY, usual(which), TD).asked(self.state, "x509", forced=False, now=self.now)[0]

    @rule(which=st.sampled_from([ONE, TWO, THREE]), forced=st.booleans())
    def steals(self, which: Ca, forced: bool) -> None:
        try:
            self.state, _ = revocation.revoke(self.state, fingerprint(which), POLICY, self.now, 0, forced=forced)
        except TransitionRefused:
            return
        if forced:
            assert which.certificate not in self.state.bundle.x509_authorities

    @rule(which=st.sampled_from([ONE, TWO, THREE]))
    def takes_back(self, which: Ca) -> None:
        try:
            self.state, _ = revocation.take_back(self.state, fingerprint(which), self.now)
        except TransitionRefused:
            return
        self.gone.discard(key_of(which.certificate))

    @rule(minutes=st.integers(1, 90))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @invariant()
    def it_is_what_is_stored(self) -> None:
        again = stored(self.state)
        assert (again.digest, again.revoked, again.condemned) == (
            self.state.digest,
            self.state.revoked,
            self.state.condemned,
        )

    @invariant()
    def what_the_active_one_signs_is_accepted(self) -> None:
        if self.state.active_x509.not_after > self.now:
            chain = self.state.active_x509.issue(KEY, WEB, ttl=timedelta(minutes=1), now=self.now)
            assert check_x509_svid(chain, self.state.bundle, self.now) == WEB

    @invariant()
    def what_is_revoked_is_trusted_for_what_leads_to_it_alone(self) -> None:
        keys = self.state.revoked_keys
        needed = {
            root
            for slot in self.state.x509
            if slot.stage in (Stage.ACTIVE, Stage.TAINTED)
            for root in slot.authority.bundle.x509_authorities
        }
        held = {each for each in self.state.bundle.x509_authorities if key_of(each) in keys}
        assert held <= needed
        if not self.state.condemned and held:
            assert any(slot.stage is Stage.TAINTED for slot in self.state.x509)

    @invariant()
    def one_that_left_stays_away(self) -> None:
        held = {key_of(each) for each in self.state.bundle.x509_authorities}
        assert not held & self.gone
        self.gone |= self.state.revoked_keys - held


TestRevocations = Revocations.TestCase
TestRevocations.settings = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
