"""Roots of a CA above as a feed: trusted before anything signs below them, and gone when nothing needs them."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from signer.authority.fit_roots import MAX_BYTES, MAX_ROOTS
from signer.authority.lifecycle import Life
from signer.authority.roots import DEADLINE_SECONDS, fed
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from signer.cluster.kube import Object
from signer.errors import CertificateRefused, RootsRefused, StateDamaged
from signer.model import Agent
from signer.upstream.certify import MAX_BYTES as MAX_FILE
from signer.upstream.certify import FileUpstream, SelfSigned, UpstreamUnusable
from signer.upstream.chosen import at_hand
from signer.upstream.remote import UpstreamAway
from signer.upstream.roots import RootSet
from signer.upstream_settings import FileSettings
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.keys import key_to_pem, signature_hash
from svid.x509svid import check_x509_svid
from tests.racing import before
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, TTL, WEB, advanced, done, stages
from tests.unit.signer.test_lifecycle import first as self_signed
from tests.unit.signer.test_rotation import Cluster, Replica, loop, passes, said, until
from tests.unit.signer.test_upstream_trial import (
    DAY,
    FENCE,
    STRANGE,
    WEB_ONLY,
    Above,
    Ca,
    Extension,
    authority,
    marked,
    usual,
)

ONE, TWO, THREE = Ca.root("one"), Ca.root("two"), Ca.root("three")
KEPT = TTL + POLICY.overlap


def below(root: Ca = ONE) -> AuthorityState:
    return done(Life(POLICY, usual(root), TD).first(START))


def named(*roots: Ca, complete: bool = True) -> RootSet:
    return RootSet(tuple(each.certificate for each in roots), complete)


def trusted(state: AuthorityState) -> set[str]:
    return {each.subject.rfc4514_string().removeprefix("CN=") for each in state.bundle.x509_authorities}


def read(state: AuthorityState, *sets: RootSet, now: datetime = START) -> AuthorityState:
    """The state after these were read one after the other, all at `now`."""
    last: frozenset[x509.Certificate] | None = None
    for each in sets:
        found = fed(state, each, last, POLICY, now)
        state, last = found.state, found.named
    return state


def renewed(
    ca: Ca, *, life: timedelta = 3650 * DAY, start: timedelta = timedelta(days=-1), more: tuple[Extension, ...] = ()
) -> Ca:
    """Another certificate of the same name and key."""
    old = ca.certificate
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, ca.key.public_key(), x509.random_serial_number(), START + start, START + life
    )
    replaced = {value.oid for value, _ in more}
    for each in old.extensions:
        if each.oid not in replaced:
            builder = builder.add_extension(each.value, each.critical)
    for value, critical in more:
        builder = builder.add_extension(value, critical)
    return Ca(builder.sign(ca.key, signature_hash(ca.key)), ca.key)


def test_a_new_root_is_published_at_once() -> None:
    """U8: at worst it was seen half of authority_ttl later."""
    state = below()
    after = read(state, named(ONE, TWO))
    assert trusted(after) == {"one", "two"}
    assert after.sequence == state.sequence + 1
    assert after.digest != state.digest
    again = AuthorityState.from_json(after.to_json(), TD)
    assert (trusted(again), again.digest, again.roots) == ({"one", "two"}, after.digest, after.roots)
    assert read(after, named(TWO, ONE)) is after


def test_the_authorities_stay_as_they_are() -> None:
    """Roots are kept apart from them: what they sign, and what goes along with it, does not change."""
    middle = ONE.below("middle")
    upstream = Above(
        lambda key, end: authority(middle.below("issuing", key, life=end - START), middle, roots=[ONE]),
    )
    state = done(Life(POLICY, upstream, TD).first(START))
    assert len(state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)) == 3
    after = read(state, named(ONE, middle, TWO))
    assert trusted(after) == {"one", "middle", "two"}
    assert after.active_x509 == state.active_x509
    chain = after.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    assert len(chain) == 3
    assert check_x509_svid(chain, after.bundle, START) == WEB


def test_what_is_named_no_more_leaves_once_what_was_issued_below_it_has_ended() -> None:
    both = read(below(), named(ONE, TWO))
    assert read(both, named(ONE)) is both, "one read may have been of half a file"
    leaving = read(both, named(ONE), named(ONE))
    assert trusted(leaving) == {"one", "two"}
    assert [each.ends_at for each in leaving.roots] == [None, START + KEPT]
    assert read(leaving, named(ONE), named(ONE), now=START + KEPT - timedelta(seconds=1)) is leaving
    assert read(leaving, named(ONE), now=START + KEPT) is leaving
    # One that comes and goes keeps no other.
    assert trusted(read(leaving, named(ONE), named(ONE, THREE), now=START + KEPT)) == {"one", "three"}
    assert trusted(read(leaving, named(ONE), named(ONE), now=START + KEPT)) == {"one"}
    again = read(leaving, named(ONE, TWO))
    assert [each.ends_at for each in again.roots] == [None, None]
    assert AuthorityState.from_json(leaving.to_json(), TD).roots == leaving.roots


def test_the_root_of_an_authority_that_was_replaced_stays_with_it() -> None:
    state = read(below(), named(ONE, TWO))
    life = Life(POLICY, usual(TWO), TD)
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    asked, _ = life.asked(state, "x509", forced=False, now=START)
    moved = advanced(asked, START, by=life)
    assert stages(moved) == ["old", "active"]
    later = START + KEPT - timedelta(seconds=1)
    gone = read(read(moved, named(TWO), named(TWO)), named(TWO), named(TWO), now=later)
    assert trusted(gone) == {"one", "two"}
    assert check_x509_svid(leaf, gone.bundle, START) == WEB
    ended = advanced(gone, START + KEPT, by=life)
    assert stages(ended) == ["active"]
    assert trusted(read(ended, named(TWO), named(TWO), now=START + KEPT)) == {"two"}


def test_who_does_not_know_all_of_them_takes_away_what_no_authority_leads_to() -> None:
    both = read(below(), named(ONE, TWO))
    some = named(ONE, complete=False)
    assert read(both, some) is both
    assert trusted(read(both, named(ONE, THREE, complete=False))) == {"one", "two", "three"}
    # Of a CA that was replaced it is the other one's: trusted with what that certifies. Its own roots stay with it.
    for other in (named(THREE, complete=False), RootSet()):
        assert read(both, other) is both
        leaving = read(both, other, other)
        assert [each.ends_at for each in leaving.roots] == [None, START + KEPT]
        assert trusted(read(leaving, other, other, now=START + KEPT)) == {"one"}


def test_after_a_theft_a_root_that_was_replaced_leaves_with_what_was_stolen() -> None:
    state = read(below(), named(ONE, TWO))
    life = Life(POLICY, usual(TWO), TD)
    asked, _ = life.asked(state, "x509", forced=True, now=START)
    moved = advanced(asked, START, by=life)
    while stages(moved) != ["active"]:
        moved = advanced(moved, START + KEPT, by=life)
    assert trusted(read(moved, named(TWO))) == {"one", "two"}, "one read may have been of half a file"
    assert trusted(read(moved, named(TWO), named(TWO))) == {"two"}


def test_an_authority_that_was_declared_stolen_is_no_root_again() -> None:
    own = self_signed()
    life = Life(POLICY, usual(ONE), TD)
    moved = advanced(life.asked(own, "x509", forced=True, now=START)[0], START, by=life)
    stolen = own.active_x509.chain[0]
    found = fed(moved, RootSet((ONE.certificate, stolen), True), None, POLICY, START)
    assert stolen not in {each.certificate for each in found.state.roots}
    assert "its key was declared stolen" in found.left_out


def test_roots_without_the_active_ones_are_kept_out() -> None:
    """A file that was cut short, or another PKI's, must not cut off the cluster."""
    state = read(below(), named(ONE, TWO))
    over = Ca.root("over", life=timedelta(0) - timedelta(hours=1))
    for wrong in (named(TWO), named(TWO, THREE), RootSet(complete=True), named(over)):
        for now in (START, START + 100 * KEPT):
            with pytest.raises(RootsRefused, match="no root of the active authority is among them"):
                read(state, wrong, now=now)


def test_without_a_ca_above_the_ones_of_before_leave_with_their_last_authority() -> None:
    moved = read(below(), named(ONE, TWO))
    nothing = done(SelfSigned().roots())
    with pytest.raises(
        RootsRefused, match=r"as none is named\. After a change to another CA, or to none, `podsvid auth"
    ):
        read(moved, nothing)
    life = Life(POLICY, SelfSigned(), TD)
    moved = advanced(life.asked(moved, "x509", forced=False, now=START)[0], START, by=life)
    leaving = read(moved, nothing, nothing)
    assert {"one", "two"} < trusted(leaving)
    ended = advanced(leaving, START + KEPT, by=life)
    gone = read(ended, nothing, nothing, now=START + KEPT)
    assert (gone.roots, len(gone.bundle.x509_authorities)) == ((), 1)
    assert read(self_signed(), nothing, nothing).roots == ()


def test_too_many_or_too_large_are_kept_out() -> None:
    state = below()
    many = [Ca.root(f"r{number}") for number in range(MAX_ROOTS)]
    with pytest.raises(RootsRefused, match="more than the 64"):
        read(state, named(ONE, *many))
    held = read(state, named(ONE, *many[:-1]))
    with pytest.raises(RootsRefused, match="with those that are to leave"):
        read(held, named(ONE, many[-1]))
    fat = tuple(
        Ca.root(f"f{number}", more=((x509.UnrecognizedExtension(STRANGE.oid, bytes(4000)), False),))
        for number in range(MAX_BYTES // 4000)
    )
    with pytest.raises(RootsRefused, match=f"of {MAX_BYTES} that"):
        read(state, named(ONE, *fat))


def test_what_is_no_ca_is_left_out_and_the_others_are_taken() -> None:
    state = below()
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)[0]
    seals = renewed(THREE, more=((x509.KeyUsage(True, False, False, False, False, False, False, False, False), True),))
    found = fed(state, RootSet((ONE.certificate, leaf, TWO.certificate, seals.certificate), True), None, POLICY, START)
    assert trusted(found.state) == {"one", "two"}
    assert "is not a CA certificate" in found.left_out
    assert "must not sign certificates" in found.left_out


def test_one_that_is_not_valid_yet_or_no_more_is_neither_taken_nor_missed() -> None:
    state = below()
    coming, gone = Ca.root("coming", start=START + DAY), Ca.root("gone", life=-timedelta(hours=1))
    found = fed(state, named(ONE, coming, gone), None, POLICY, START)
    assert (trusted(found.state), found.left_out) == ({"one"}, "")
    brief = Ca.root("brief", life=DAY)
    held = read(state, named(ONE, coming, brief), now=START)
    assert trusted(held) == {"one", "brief"}
    assert trusted(read(held, named(ONE, coming, brief), now=START + 2 * DAY)) == {"one", "coming"}


@pytest.mark.parametrize(
    "more",
    [
        (FENCE, True),
        (FENCE, False),
        (STRANGE, True),
        (WEB_ONLY, False),
        (x509.BasicConstraints(True, 0), True),
        (x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://other.org")]), False),
    ],
    ids=["fence", "uncritical fence", "unknown", "usage", "path length", "another trust domain"],
)
def test_a_renewal_under_which_some_verifiers_would_refuse_is_left_out(more: Extension) -> None:
    """It has the name and the key of the root that is trusted: which of them a verifier takes nobody knows."""
    state = below()
    odd = renewed(ONE, more=(more,))
    found = fed(state, named(ONE, odd), None, POLICY, START)
    assert odd.certificate not in found.state.bundle.x509_authorities
    assert "certificate CN=one is left out" in found.left_out
    # Of a CA that nothing leads to it takes no harm; nothing is put in service below it.
    other = renewed(TWO, more=(more,))
    held = read(state, named(ONE, TWO, other))
    assert other.certificate in held.bundle.x509_authorities
    with pytest.raises(CertificateRefused, match="CN=two"):
        done(Life(POLICY, usual(TWO), TD).prepare(held, "x509", START))


def test_a_root_that_is_renewed_with_its_key_is_trusted_beside_the_one_before() -> None:
    state = below()
    new = renewed(ONE, life=5000 * DAY)
    # It is the active one's as well.
    after = read(state, named(new))
    assert set(after.bundle.x509_authorities) == {ONE.certificate, new.certificate}
    chain = after.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    for each in (after.bundle, TrustBundle(TD, (new.certificate,)), TrustBundle(TD, (ONE.certificate,))):
        assert check_x509_svid(chain, each, START) == WEB


def test_a_prepared_one_of_another_ca_keeps_what_it_leads_to() -> None:
    moving = done(Life(POLICY, usual(TWO), TD).prepare(below(), "x509", START))[0]
    assert trusted(moving) == {"one", "two"}
    assert trusted(read(moving, named(ONE), named(ONE))) == {"one", "two"}


def test_an_authority_keeps_no_root_that_it_does_not_lead_to() -> None:
    """The file's others would be trusted for as long as the authority."""
    both = Above(lambda key, end: authority(ONE.below(marked(key), key, life=end - START), roots=[TWO, ONE]))
    life = Life(POLICY, both, TD)
    state = done(life.first(START))
    assert trusted(state) == {"one", "two"}
    assert [each.certificate for each in state.roots] == [TWO.certificate]
    assert trusted(read(state, named(ONE), named(ONE), named(ONE))) == {"one", "two"}
    prepared, _ = done(life.prepare(read(state, named(ONE)), "x509", START))
    assert [each.certificate for each in prepared.roots] == [TWO.certificate, ONE.certificate]
    # As a signer of before wrote it.
    slot = replace(state.x509[0], authority=replace(state.active_x509, bundle=state.bundle))
    older = replace(state, x509=(slot,), roots=())
    moved, _ = done(life.prepare(older, "x509", START))
    assert {each.certificate for each in moved.roots} == {TWO.certificate}


def version(state: AuthorityState) -> int:
    return int(json.loads(state.to_json())["version"])


def test_a_state_that_a_signer_of_before_would_misread_has_a_version_that_it_refuses() -> None:
    state = below()
    same = read(state, named(ONE))
    assert same.roots
    assert version(same) == version(state) == 1
    assert version(read(state, named(ONE, TWO))) == 4
    assert AuthorityState.from_json(same.to_json(), TD).roots == same.roots


@pytest.mark.parametrize(
    "wrong",
    [
        lambda entries: entries + entries,
        lambda entries: [{**entries[0], "certificate": "none"}],
        lambda entries: [{**entries[0], "certificate": ""}],
        lambda entries: [{**entries[0], "certificate": entries[0]["certificate"] * 2}],
        lambda entries: [{**entries[0], "since": "2026-01-01"}],
        lambda entries: [{**entries[0], "ends_at": 7}],
        lambda entries: [{"since": entries[0]["since"]}],
        lambda entries: [7],
        lambda entries: 7,
    ],
)
def test_damaged_roots_are_damage(wrong: Callable[[list[Object]], object]) -> None:
    document = json.loads(read(below(), named(ONE, TWO)).to_json())
    document["roots"] = wrong(document["roots"])
    with pytest.raises(StateDamaged):
        AuthorityState.from_json(json.dumps(document).encode(), TD)


def test_a_root_that_is_no_ca_is_damage() -> None:
    state = below()
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)[0]
    document = json.loads(read(state, named(ONE, TWO)).to_json())
    document["roots"][1]["certificate"] = to_pem([leaf]).decode()
    with pytest.raises(StateDamaged, match="not a CA"):
        AuthorityState.from_json(json.dumps(document).encode(), TD)


def upstream(folder: Path, ca: Ca, *roots: Ca) -> FileUpstream:
    (folder / "ca.crt").write_bytes(to_pem([ca.certificate]))
    (folder / "ca.key").write_bytes(key_to_pem(ca.key))
    (folder / "roots.pem").write_bytes(to_pem([each.certificate for each in roots]))
    return FileUpstream(folder / "ca.crt", folder / "ca.key", folder / "roots.pem")


def test_files_name_their_roots(tmp_path: Path) -> None:
    given = upstream(tmp_path, ONE, ONE, TWO)
    assert done(given.roots()) == named(ONE, TWO)
    assert done(replace(given, bundle=None).roots()) == named(ONE, complete=False)
    (tmp_path / "roots.pem").write_text("cut short")
    with pytest.raises(UpstreamUnusable):
        done(given.roots())
    (tmp_path / "roots.pem").write_bytes(b"x" * (MAX_FILE + 1))
    with pytest.raises(UpstreamUnusable, match="larger than 1 MiB"):
        done(given.roots())
    (tmp_path / "roots.pem").unlink()
    with pytest.raises(UpstreamUnusable, match="cannot be read"):
        done(given.roots())


def test_the_settings_choose_who_names_them(tmp_path: Path) -> None:
    upstream(tmp_path, ONE, ONE, TWO)
    files = FileSettings(tmp_path / "ca.crt", tmp_path / "ca.key", tmp_path / "roots.pem", None)
    assert done(at_hand(files).roots()) == named(ONE, TWO)
    assert done(at_hand(FileSettings(None, None, None, None)).roots()) == RootSet(complete=True)


class Source:
    """Names what a test wants."""

    def __init__(self, *roots: Ca) -> None:
        self.says = named(*roots)
        self.fails: Exception | None = None
        self.asked = 0

    async def roots(self) -> RootSet:
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        return self.says


async def led(cluster: Cluster, source: Source) -> Replica:
    one = Replica(cluster, "one", Life(POLICY, usual(ONE), TD), source.roots)
    await one.open()
    await one.leader.attempt()
    return one


def interval(cluster: Cluster) -> None:
    cluster.clock.pass_by(minutes=5)


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


def test_the_leader_follows_the_file_and_a_new_root_is_acknowledged_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        cluster = Cluster()
        cluster.live = frozenset({"a"})
        above = upstream(tmp_path, ONE, ONE)
        one = Replica(cluster, "one", Life(POLICY, above, TD), above.roots)
        told: list[str] = []
        one.rotation.roots.refused = told.append
        await one.open()
        await one.leader.attempt()
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: bool(cluster.stored.roots))
            upstream(tmp_path, ONE, ONE, TWO)
            await passes()
            assert trusted(cluster.stored) == {"one"}
            interval(cluster)
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
            upstream(tmp_path, TWO, ONE, TWO)
            await one.rotation.step("rotate", "x509", "", forced=False)
            await until(lambda: stages(cluster.stored) == ["active", "prepared"])
            await passes()
            assert stages(cluster.stored) == ["active", "prepared"]
            now = cluster.stored
            one.agents.connect(Agent("a", "u", "agent", "p", START))
            one.agents.acknowledged("a", now.sequence, {}, now.digest)
            await until(lambda: stages(cluster.stored) == ["old", "active"])
            # Cut short: kept out, and said.
            (tmp_path / "roots.pem").write_bytes(to_pem([ONE.certificate]))
            interval(cluster)
            await until(lambda: one.rotation.roots.refuses)
            assert trusted(cluster.stored) == {"one", "two"}
            (note,) = [each for each in one.rotation.next_steps(cluster.stored) if "roots" in each]
            assert note.startswith("x509: roots of the CA above: UPSTREAM_ROOTS_REFUSED: no root of")
            interval(cluster)
            await passes()
            assert len(said(caplog, "the roots of the CA above were not taken; the ones before stay")) == 1
            assert len(told) == 1
            upstream(tmp_path, TWO, ONE, TWO)
            interval(cluster)
            await until(lambda: not one.rotation.roots.refuses)
            assert not [each for each in one.rotation.next_steps(cluster.stored) if "roots" in each]

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_a_set_that_was_refused_is_read_again_when_another_authority_signs(tmp_path: Path) -> None:
    """After a change of CA and the rotation that takes it nobody is told for an interval that roots are refused."""

    async def run() -> None:
        cluster = Cluster()
        above = upstream(tmp_path, TWO, TWO)
        reads = 0

        async def counted() -> RootSet:
            nonlocal reads
            reads += 1
            return await above.roots()

        first = Replica(cluster, "first", Life(POLICY, usual(ONE), TD), None)
        await first.open()
        one = Replica(cluster, "one", Life(POLICY, above, TD), counted)
        await one.open()
        await one.leader.attempt()
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: one.rotation.roots.refuses)
            await passes()
            assert reads == 1
            # What does not change by what it is judged reads nothing.
            await one.rotation.step("rotate", "jwt", "", forced=True)
            await passes()
            assert reads == 1
            await one.rotation.step("rotate", "x509", "", forced=True)
            await until(lambda: stages(cluster.stored)[-1] == "active" and len(stages(cluster.stored)) > 1)
            await until(lambda: not one.rotation.roots.refuses)
            assert one.rotation.roots.notes == []
            told = reads
            await passes()
            assert reads == told <= 3, "what was taken is read again in its time"

    asyncio.run(run())


def test_who_does_not_lead_neither_asks_nor_writes() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = Replica(cluster, "one", Life(POLICY, usual(ONE), TD), source.roots)
        await one.open()
        async with loop(one.rotation.ask_above()):
            await passes()
            assert (source.asked, trusted(cluster.stored)) == (0, {"one"})
            await one.leader.attempt()
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
            assert source.asked == 1

    asyncio.run(run())


def test_who_stops_leading_while_it_asks_stores_nothing() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)

        async def slow() -> RootSet:
            await one.leader.release()
            return await source.roots()

        one.rotation.roots._source = slow
        async with loop(one.rotation.ask_above()):
            await passes()
        assert (source.asked, trusted(cluster.stored)) == (1, {"one"})

    asyncio.run(run())


def test_where_the_clock_is_doubted_nothing_changes() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        doubt = "the clock is wrong"
        one = await led(cluster, source)
        one.rotation.roots._doubt = lambda: doubt
        async with loop(one.rotation.ask_above()):
            await passes()
            assert (source.asked, trusted(cluster.stored)) == (0, {"one"})
            doubt = ""
            await until(lambda: trusted(cluster.stored) == {"one", "two"})

        async def at_that_moment() -> RootSet:
            nonlocal doubt
            doubt = "the clock is wrong"
            return named(ONE, TWO, THREE)

        one.rotation.roots._source = at_that_moment
        interval(cluster)
        async with loop(one.rotation.ask_above()):
            await until(lambda: bool(doubt))
            await passes()
            assert trusted(cluster.stored) == {"one", "two"}
            doubt = ""
            await until(lambda: trusted(cluster.stored) == {"one", "two", "three"})

    asyncio.run(run())


def test_what_was_read_is_kept_until_it_is_stored(caplog: pytest.LogCaptureFixture) -> None:
    """The Secret is changed by somebody else at the same moment, and the API server goes away."""

    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)
        two = Replica(cluster, "two", Life(POLICY, usual(ONE), TD), source.roots)
        await two.open()
        first = True

        async def other() -> None:
            nonlocal first
            if first:
                first = False
                await two.rotation.step("rotate", "jwt", "", forced=True)

        before(cluster.kube, "replace", other)
        async with loop(one.rotation.ask_above()):
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
        assert not first
        assert source.asked == 1
        assert cluster.stored.goals

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_the_next_leader_goes_on_with_what_is_stored() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)
        async with loop(one.rotation.ask_above()):
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
            source.says = named(ONE)
            interval(cluster)
            await until(lambda: source.asked == 2)
            await passes()
        assert all(each.ends_at is None for each in cluster.stored.roots), "it has read it once"
        await one.leader.release()
        two = Replica(cluster, "two", Life(POLICY, usual(ONE), TD), source.roots)
        await two.open()
        await two.leader.attempt()
        async with loop(two.rotation.ask_above()):
            await until(lambda: source.asked == 3)
            await passes()
            assert all(each.ends_at is None for each in cluster.stored.roots), "what the one before read is not known"
            interval(cluster)
            await until(lambda: cluster.stored.roots[1].ends_at is not None)
        await two.leader.release()
        cluster.clock.pass_by(seconds=KEPT.total_seconds())
        three = Replica(cluster, "three", Life(POLICY, usual(ONE), TD), source.roots)
        await three.open()
        await three.leader.attempt()
        async with loop(three.rotation.ask_above()):
            await until(lambda: source.asked == 5)
            await passes()
            assert trusted(cluster.stored) == {"one", "two"}
            interval(cluster)
            await until(lambda: trusted(cluster.stored) == {"one"})

    asyncio.run(run())


def test_who_leads_again_counts_no_read_of_before() -> None:
    """In between another one led, and the CA may have named anything."""

    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)
        async with loop(one.rotation.ask_above()):
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
            source.says = named(ONE)
            interval(cluster)
            await until(lambda: source.asked == 2)
            await passes()
            await one.leader.release()
            await passes()
            await one.leader.attempt()
            await until(lambda: source.asked == 3)
            await passes()
            assert all(each.ends_at is None for each in cluster.stored.roots)
            interval(cluster)
            await until(lambda: cluster.stored.roots[1].ends_at is not None)

    asyncio.run(run())


def test_one_that_comes_and_goes_stays() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        one = await led(cluster, source)
        async with loop(one.rotation.ask_above()):
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
            written = len(cluster.writes())
            for number in range(2, 20):
                source.says = named(ONE) if number % 2 else named(ONE, TWO)
                interval(cluster)
                await until(lambda number=number: source.asked == number)  # type: ignore[misc]
                await passes()
            assert trusted(cluster.stored) == {"one", "two"}
            assert len(cluster.writes()) == written

    asyncio.run(run())


def test_a_ca_that_fails_is_asked_again_and_said() -> None:
    async def run() -> None:
        cluster, source = Cluster(), Source(ONE, TWO)
        source.fails = UpstreamAway("nobody answers")
        one = await led(cluster, source)
        async with loop(one.rotation.ask_above()):
            await until(lambda: one.rotation.roots.refuses)
            assert one.rotation.roots.notes == ["x509: roots of the CA above: not read: UPSTREAM_AWAY: nobody answers"]
            await passes()
            assert source.asked == 1
            source.fails = ZeroDivisionError("secret")
            cluster.clock.pass_by(seconds=7)
            await until(lambda: "ZeroDivisionError" in one.rotation.roots.notes[0])
            assert "secret" not in one.rotation.roots.notes[0]
            source.fails = None
            interval(cluster)
            await until(lambda: trusted(cluster.stored) == {"one", "two"})
            assert not one.rotation.roots.refuses

    asyncio.run(run())


def test_a_ca_that_does_not_answer_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """U4: JWT keys, retirement and what people ask for go on."""
    monkeypatch.setattr("signer.authority.roots.DEADLINE_SECONDS", 0.05)

    async def silent() -> RootSet:
        await asyncio.Event().wait()
        return RootSet()

    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one", None, silent)
        await one.open()
        await one.leader.attempt()
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            before = cluster.stored.jwt[0].id
            await one.rotation.step("rotate", "jwt", "", forced=True)
            await until(lambda: [each.id for each in cluster.stored.jwt] not in ([], [before]))
            await until(lambda: one.rotation.roots.refuses)
            assert "did not say them within" in one.rotation.roots.notes[0]

    assert DEADLINE_SECONDS == 30
    asyncio.run(run())


def test_from_one_ca_to_another_without_a_gap() -> None:
    """The new one's root is published with the prepared authority, the old one's leaves after the old authority."""
    life = Life(POLICY, usual(TWO), TD)
    state = read(below(), named(ONE, THREE))
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    with pytest.raises(RootsRefused, match="podsvid authority rotate"):
        read(state, named(TWO))
    moving, _ = life.asked(state, "x509", forced=False, now=START)
    step = life.due(moving, ALL, START)
    assert step is not None
    moving = done(life.do(moving, step, START))
    assert (stages(moving), trusted(moving)) == (["active", "prepared"], {"one", "two", "three"})
    moving = read(advanced(moving, START, by=life), named(TWO), named(TWO))
    new = moving.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    for chain in (leaf, new):
        assert check_x509_svid(chain, moving.bundle, START) == WEB
    ended = advanced(moving, START + KEPT, by=life)
    assert trusted(read(ended, named(TWO), named(TWO), now=START + KEPT)) == {"two"}


_CAS = [ONE, TWO, THREE, renewed(ONE), renewed(TWO, life=4000 * DAY), Ca.root("brief", life=timedelta(hours=3))]


class Feeds(RuleBasedStateMachine):
    """A CA that names whatever it likes, rotations below any of its roots, leaders that change, and time.

    Every SVID verifies until it ends, and nothing is trusted that was never named.
    """

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.state = below()
        self.before: frozenset[x509.Certificate] | None = None
        self.ever = {ONE.certificate}
        self.svids: list[tuple[tuple[x509.Certificate, ...], datetime]] = []
        self.unnamed: dict[x509.Certificate, datetime] = {}

    @rule(which=st.sets(st.sampled_from(range(len(_CAS)))), complete=st.booleans())
    def reads(self, which: set[int], complete: bool) -> None:
        found = named(*(_CAS[each] for each in sorted(which)), complete=complete)
        try:
            after = fed(self.state, found, self.before, POLICY, self.now)
        except RootsRefused:
            self.before = None
            return
        if after.state is not self.state:
            assert after.state.sequence == self.state.sequence + 1
        self.state = AuthorityState.from_json(after.state.to_json(), TD)
        assert self.state.digest == after.state.digest
        assert after.named <= set(self.state.bundle.x509_authorities) or not complete
        self.before = after.named if complete else None
        self.ever |= set(found.certificates)

    @rule()
    def another_leads(self) -> None:
        self.before = None

    @rule(which=st.sampled_from([ONE, TWO, THREE]))
    def rotates(self, which: Ca) -> None:
        life = Life(POLICY, usual(which), TD)
        if self.state.find("x509", Stage.PREPARED) is None:
            self.state = done(life.prepare(self.state, "x509", self.now))[0]
            self.ever.add(which.certificate)

    @rule()
    def steps(self) -> None:
        self.state = advanced(self.state, self.now)

    @rule(minutes=st.integers(1, 90))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        self.state = advanced(self.state, self.now)

    @precondition(lambda self: self.state.active_x509.not_after > self.now)
    @rule()
    def issues(self) -> None:
        ends = self.now + TTL
        self.svids.append((self.state.active_x509.issue(KEY, WEB, ttl=TTL, now=self.now), ends))

    @invariant()
    def every_svid_verifies(self) -> None:
        self.svids = [each for each in self.svids if each[1] > self.now]
        for chain, _ in self.svids:
            assert check_x509_svid(chain, self.state.bundle, self.now) == WEB

    @invariant()
    def only_what_was_named_is_trusted(self) -> None:
        own = {each for slot in self.state.x509 for each in slot.authority.chain}
        assert set(self.state.bundle.x509_authorities) <= self.ever | own

    def teardown(self) -> None:
        """What is named no more is gone in the end."""
        active = self.state.active_x509.bundle.x509_authorities
        last = RootSet(active, complete=True)
        for _ in range(3):
            self.now += KEPT
            self.state = advanced(self.state, self.now)
            try:
                self.state = read(self.state, last, last, now=self.now)
            except RootsRefused:
                return
        keeps = {each for slot in self.state.x509 for each in slot.authority.bundle.x509_authorities}
        assert set(self.state.bundle.x509_authorities) == keeps


TestFeeds = Feeds.TestCase
TestFeeds.settings = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
