"""Roots of a CA above as a feed: trusted before anything signs below them, and gone when nothing needs them."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from signer.authority.lifecycle import Life
from signer.authority.roots import DEADLINE_SECONDS, MAX_ROOTS, Roots, fed
from signer.authority.state import AuthorityState
from signer.errors import RootsRefused
from signer.model import Agent
from signer.upstream.certify import FileUpstream, SelfSigned, UpstreamUnusable
from signer.upstream.roots import RootSet
from svid.certificates import to_pem
from svid.keys import key_to_pem
from svid.x509svid import check_x509_svid
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, TTL, WEB, advanced, done, first, stages
from tests.unit.signer.test_rotation import Cluster, Replica, loop, passes, said, until
from tests.unit.signer.test_upstream_trial import FENCE, Ca, usual

ONE, TWO, THREE = Ca.root("one"), Ca.root("two"), Ca.root("three")


def below(root: Ca = ONE) -> AuthorityState:
    return done(Life(POLICY, usual(root), TD).first(START))


def named(*roots: Ca, complete: bool = True) -> RootSet:
    return RootSet(tuple(each.certificate for each in roots), complete)


def trusted(state: AuthorityState) -> set[str]:
    return {each.subject.rfc4514_string().removeprefix("CN=") for each in state.bundle.x509_authorities}


def test_a_new_root_is_published_at_once() -> None:
    """U8: at worst it was seen half of authority_ttl later."""
    state = below()
    after = fed(state, named(ONE, TWO), START)
    assert trusted(after) == {"one", "two"}
    assert after.sequence == state.sequence + 1
    assert after.digest != state.digest
    again = AuthorityState.from_json(after.to_json(), TD)
    assert trusted(again) == {"one", "two"}
    assert fed(after, named(TWO, ONE), START) is after


def test_what_is_named_no_more_leaves_when_nothing_leads_to_it() -> None:
    both = fed(below(), named(ONE, TWO), START)
    assert trusted(fed(both, named(ONE), START)) == {"one"}
    # The next authority is below the new root; what the one before signed verifies until it has ended.
    life = Life(POLICY, usual(TWO), TD)
    asked, _ = life.asked(both, "x509", forced=False, now=START)
    leaf = both.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    moved = advanced(asked, START, by=life)
    assert stages(moved) == ["old", "active"]
    dropped = fed(moved, named(TWO), START)
    assert trusted(dropped) == {"one", "two"}
    assert check_x509_svid(leaf, dropped.bundle, START) == WEB
    ended = advanced(dropped, START + TTL + POLICY.overlap, by=life)
    assert (stages(ended), trusted(ended)) == (["active"], {"two"})


def test_who_does_not_know_all_of_them_takes_none_away() -> None:
    both = fed(below(), named(ONE, TWO), START)
    assert fed(both, named(ONE, complete=False), START) is both
    assert trusted(fed(both, named(ONE, THREE, complete=False), START)) == {"one", "two", "three"}
    # Of a CA that was replaced it is the other one's: trusted with what that certifies.
    assert fed(both, named(THREE, complete=False), START) is both
    assert fed(both, RootSet(complete=True), START) is both


def test_roots_without_the_active_ones_are_kept_out() -> None:
    """A file that was cut short, or another PKI's, must not cut off the cluster."""
    state = below()
    for wrong in (named(TWO), named(TWO, THREE)):
        with pytest.raises(RootsRefused, match="no root of the active authority is among them"):
            fed(state, wrong, START)
    over = Ca.root("over", life=timedelta(0))
    assert fed(state, named(ONE, over), START) is state
    with pytest.raises(RootsRefused, match="no root of the active authority"):
        fed(below(), named(over), START)


def test_what_is_no_ca_and_too_many_are_kept_out() -> None:
    state = below()
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)[0]
    with pytest.raises(RootsRefused, match="is not a CA's"):
        fed(state, RootSet((ONE.certificate, leaf), True), START)
    with pytest.raises(RootsRefused, match="more than the 64"):
        fed(state, named(ONE, *(Ca.root(f"r{number}") for number in range(MAX_ROOTS))), START)


def test_a_root_under_which_others_would_refuse_is_kept_out() -> None:
    """Renewed with the key it has, and with name constraints: some verifiers take that one."""
    state = below()
    old = ONE.certificate
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, ONE.key.public_key(), 7, old.not_valid_before_utc, old.not_valid_after_utc
    )
    for each in old.extensions:
        builder = builder.add_extension(each.value, each.critical)
    fenced = Ca(builder.add_extension(FENCE, True).sign(ONE.key, old.signature_hash_algorithm), ONE.key)  # type: ignore[arg-type]
    with pytest.raises(RootsRefused, match="name constraints"):
        fed(state, named(ONE, fenced), START)


def test_a_prepared_one_of_another_ca_keeps_what_it_leads_to() -> None:
    moving = done(Life(POLICY, usual(TWO), TD).prepare(below(), "x509", START))[0]
    assert trusted(moving) == {"one", "two"}
    assert trusted(fed(moving, named(ONE), START)) == {"one", "two"}
    assert fed(first(), RootSet(), START).bundle.x509_authorities


def upstream(folder: Path, ca: Ca, *roots: Ca) -> FileUpstream:
    (folder / "ca.crt").write_bytes(to_pem([ca.certificate]))
    (folder / "ca.key").write_bytes(key_to_pem(ca.key))
    (folder / "roots.pem").write_bytes(to_pem([each.certificate for each in roots]))
    return FileUpstream(folder / "ca.crt", folder / "ca.key", folder / "roots.pem")


def test_files_name_their_roots(tmp_path: Path) -> None:
    given = upstream(tmp_path, ONE, ONE, TWO)
    assert done(given.roots()) == named(ONE, TWO)
    assert done(replace(given, bundle=None).roots()) == named(ONE, complete=False)
    assert done(SelfSigned().roots()) == RootSet()
    (tmp_path / "roots.pem").write_text("cut short")
    with pytest.raises(UpstreamUnusable):
        done(given.roots())
    (tmp_path / "roots.pem").unlink()
    with pytest.raises(UpstreamUnusable, match="cannot be read"):
        done(given.roots())


async def led(cluster: Cluster, above: FileUpstream) -> Replica:
    one = Replica(cluster, "one")
    one.rotation._life.upstream = above
    await one.open()
    await one.leader.attempt()
    return one


def test_the_leader_follows_the_file_and_a_new_root_is_acknowledged_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        cluster = Cluster()
        cluster.live = frozenset({"a"})
        one = await led(cluster, upstream(tmp_path, ONE, ONE))
        async with loop(one.rotation.run()):
            await passes()
            upstream(tmp_path, ONE, ONE, TWO)
            await passes()
            assert trusted(cluster.stored) == {"one"}
            cluster.clock.pass_by(minutes=5)
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
            cluster.clock.pass_by(minutes=5)
            await until(lambda: one.rotation.roots_refused)
            assert trusted(cluster.stored) == {"one", "two"}
            (note,) = [each for each in one.rotation.next_steps(cluster.stored) if "roots" in each]
            assert note.startswith("x509: roots of the CA above are not taken: UPSTREAM_ROOTS_REFUSED: no root of")
            cluster.clock.pass_by(minutes=5)
            await passes()
            assert len(said(caplog, "the roots of the CA above were not taken; the ones before stay")) == 1
            upstream(tmp_path, TWO, ONE, TWO)
            cluster.clock.pass_by(minutes=5)
            await until(lambda: not one.rotation.roots_refused)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_only_who_leads_asks(tmp_path: Path) -> None:
    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        one.rotation._life.upstream = upstream(tmp_path, ONE, ONE)
        await one.open()
        upstream(tmp_path, ONE, ONE, TWO)
        async with loop(one.rotation.run()):
            await passes()
            assert trusted(cluster.stored) == {"one"}
            await one.leader.attempt()
            await until(lambda: trusted(cluster.stored) == {"one", "two"})

    asyncio.run(run())


def test_a_ca_that_does_not_answer_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """U4: JWT keys, retirement and what people ask for go on."""
    monkeypatch.setattr("signer.authority.roots.DEADLINE_SECONDS", 0.05)

    class Silent(SelfSigned):
        async def roots(self) -> RootSet:
            await asyncio.Event().wait()
            return RootSet()

    async def run() -> None:
        cluster = Cluster()
        one = Replica(cluster, "one")
        one.rotation._life.upstream = Silent()
        await one.open()
        await one.leader.attempt()
        async with loop(one.rotation.run()):
            before = cluster.stored.jwt[0].id
            await one.rotation.step("rotate", "jwt", "", forced=True)
            await until(lambda: [each.id for each in cluster.stored.jwt] not in ([], [before]))
            await until(lambda: one.rotation.roots_refused)
            assert "did not say within" in one.rotation._roots.refused

    assert DEADLINE_SECONDS == 30
    asyncio.run(run())


def test_who_stops_leading_waits_for_no_answer(tmp_path: Path) -> None:
    async def run() -> None:
        asked = Roots(Life(POLICY, upstream(tmp_path, ONE, ONE), TD), timedelta(minutes=5), Cluster().clock)
        assert asked.look() is None
        task = asked._task
        asked.stop()
        assert task is not None
        await asyncio.wait([task])
        assert task.cancelled()
        assert asked.look() is None
        async with asyncio.timeout(10):
            while (found := asked.look()) is None:
                await asyncio.sleep(0)
        assert found == named(ONE)
        assert asked.look() is None

    asyncio.run(run())


def test_from_one_ca_to_another_without_a_gap() -> None:
    """The new one's root is published with the prepared authority, the old one's leaves with the old authority."""
    life = Life(POLICY, usual(TWO), TD)
    state = below()
    leaf = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    moving, _ = life.asked(state, "x509", forced=False, now=START)
    step = life.due(moving, ALL, START)
    assert step is not None
    moving = done(life.do(moving, step, START))
    assert (stages(moving), trusted(moving)) == (["active", "prepared"], {"one", "two"})
    moving = advanced(moving, START, by=life)
    new = moving.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    for chain in (leaf, new):
        assert check_x509_svid(chain, moving.bundle, START) == WEB
    assert trusted(advanced(moving, START + TTL + POLICY.overlap, by=life)) == {"two"}
