"""A CA above that answers nothing usable: asked ever more rarely, and at once when a person wants it."""

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from signer.authority.attempts import Attempts
from signer.authority.backoff import Backoff
from signer.authority.lifecycle import Life
from signer.authority.opening import First, patient
from signer.authority.slots import KINDS
from signer.authority.state import AuthorityState
from signer.errors import CertificateRefused, SignerError
from signer.keystore.keys import Keys
from signer.keystore.signing import Signing
from signer.keystore.store import KeyUnfinished
from signer.keystore.worker import Worker
from signer.upstream.certify import SelfSigned, UpstreamUnusable
from svid.authority import X509Authority
from svid.keys import KeyAlgorithm, PrivateKey
from svid.spiffeid import TrustDomain
from tests.signer_rig import StepClock
from tests.unit.signer.test_lifecycle import ALL, POLICY, TD, done, first, stages

DAY = timedelta(days=1)


class OutOfOrder:
    """Fails in a given way; counts."""

    def __init__(self, error: SignerError) -> None:
        self.error = error
        self.asked: list[datetime] = []

    async def certify(
        self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
    ) -> X509Authority:
        self.asked.append(now)
        raise self.error


class Leader:
    """Looks every second, as the leader does."""

    def __init__(self, upstream: OutOfOrder) -> None:
        self.clock = StepClock()
        self.life = Life(replace(POLICY, jwt_period=timedelta(days=365)), upstream, TD)
        self.attempts = Attempts(self.life, self.clock, random.Random(1))
        self.state: AuthorityState = first()

    def look(self) -> None:
        try:
            taken = done(self.attempts.next(self.state, ALL, self.clock.now()))
        except SignerError:
            return
        if taken is not None:
            self.state = taken[1]

    def watch(self, every: timedelta = timedelta(seconds=1), **spent: float) -> None:
        end = self.clock.now() + timedelta(**spent)
        while self.clock.now() < end:
            self.look()
            self.clock.pass_by(seconds=every.total_seconds())


def away() -> OutOfOrder:
    return OutOfOrder(UpstreamUnusable("nobody answers"))


def test_a_ca_that_fails_is_asked_ever_more_rarely() -> None:
    """U5: it was asked 3,600 times an hour."""
    upstream = away()
    leader = Leader(upstream)
    leader.clock.pass_by(days=5)
    leader.watch(hours=1)
    assert 8 <= len(upstream.asked) <= 13
    pauses = [later - before for before, later in zip(upstream.asked, upstream.asked[1:], strict=False)]
    assert timedelta(seconds=4) <= pauses[0] <= timedelta(seconds=7)
    assert max(pauses) <= timedelta(minutes=18, seconds=1)
    assert leader.attempts.waiting_since == upstream.asked[0]
    (note,) = leader.attempts.notes
    assert note.startswith(
        "x509: it failed to prepare: UPSTREAM_UNUSABLE: nobody answers; wanted since 2030-01-06T00:00:00Z"
    )
    assert stages(leader.state) == ["active"]


def test_a_certificate_that_cannot_be_used_is_not_made_again_for_an_hour() -> None:
    upstream = OutOfOrder(CertificateRefused("name constraints"))
    leader = Leader(upstream)
    leader.clock.pass_by(days=5)
    leader.watch(timedelta(seconds=10), hours=8)
    assert 6 <= len(upstream.asked) <= 11


def test_when_the_active_one_is_about_to_end_it_is_asked_every_minute() -> None:
    upstream = away()
    leader = Leader(upstream)
    leader.clock.pass_by(days=7, hours=13)
    leader.watch(minutes=30)
    assert 28 <= len(upstream.asked) <= 40


def test_what_a_person_asks_for_is_tried_at_once() -> None:
    upstream = OutOfOrder(CertificateRefused("name constraints"))
    leader = Leader(upstream)
    leader.clock.pass_by(days=5)
    leader.watch(minutes=1)
    assert len(upstream.asked) == 1
    leader.state, _ = leader.life.asked(leader.state, "x509", forced=False, now=leader.clock.now())
    leader.look()
    assert len(upstream.asked) == 2
    leader.watch(minutes=1)
    assert len(upstream.asked) == 2
    leader.state, _ = leader.life.compromised(leader.state, ("x509",), leader.clock.now())
    leader.look()
    assert len(upstream.asked) == 3


def test_after_a_theft_it_is_asked_every_minute_also_for_what_cannot_be_used() -> None:
    """The stolen one signs until there is another."""
    upstream = OutOfOrder(CertificateRefused("name constraints"))
    leader = Leader(upstream)
    leader.state, _ = leader.life.compromised(leader.state, ("x509",), leader.clock.now())
    leader.watch(minutes=30)
    assert 25 <= len(upstream.asked) <= 40


def test_nothing_is_wanted_any_more_once_nothing_is_due_or_another_leads() -> None:
    """A rotation of another leader left an alarm behind that came back with the lease, days later."""
    leader = Leader(away())
    leader.clock.pass_by(days=5)
    leader.watch(minutes=2)
    assert leader.attempts.waiting_since is not None
    leader.attempts.rest()
    assert [*leader.attempts.notes, leader.attempts.waiting_since] == [None]


def test_once_it_answers_nothing_of_it_is_left() -> None:
    upstream = away()
    leader = Leader(upstream)
    leader.clock.pass_by(days=5)
    leader.watch(minutes=2)
    leader.life._make.above = SelfSigned()
    leader.watch(minutes=3)
    assert len(leader.state.x509) == 2
    assert (leader.attempts.notes, leader.attempts.waiting_since) == ([], None)


@pytest.mark.parametrize("seed", range(5))
def test_pauses_are_spread(seed: int) -> None:
    clock = StepClock()
    pause = Backoff(clock, random.Random(seed))
    assert pause.left() == timedelta(0)
    for failures in range(30):
        pause.failed()
        usual = min(timedelta(seconds=5) * 2**failures, timedelta(minutes=15))
        assert usual * 0.8 <= pause.left() <= usual * 1.2
        assert pause.left(pressed=True) <= timedelta(minutes=1)
    clock.set_by(days=1)
    assert pause.left() > timedelta(minutes=11)
    pause.failed(for_good=True)
    assert timedelta(minutes=48) <= pause.left() <= timedelta(minutes=72)
    pause.forget()
    assert pause.left() == timedelta(0)


class Vain:
    """Implements KeyStore: makes keys that cannot be used."""

    kind = "shelf"

    def __init__(self, *, again: bool) -> None:
        self.again = again
        self.made: list[str] = []

    def create(self, name: str, algorithm: KeyAlgorithm) -> PrivateKey:
        self.made.append(name)
        raise KeyUnfinished("made in vain", again=self.again)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"nothing else is asked: {name}")


def in_vain(store: Vain) -> Life:
    return Life(POLICY, SelfSigned(), TD, keys=Keys(TD, store, Signing(Worker("vain"))))


@pytest.mark.parametrize(("again", "least", "most"), [(False, 6, 11), (True, 30, 60)])
def test_keys_that_are_made_in_vain_and_paid_for_are_few(again: bool, least: int, most: int) -> None:
    """Also while the active authority is about to end."""
    store = Vain(again=again)
    leader = Leader(away())
    leader.life = in_vain(store)
    leader.attempts = Attempts(leader.life, leader.clock, random.Random(1))
    leader.clock.pass_by(days=7, hours=13)
    leader.watch(timedelta(seconds=30), hours=8)
    assert least * len(KINDS) <= len(store.made) <= most * len(KINDS)
    for kind, note in zip(KINDS, leader.attempts.notes, strict=True):
        assert note.startswith(f"{kind}: it failed to prepare: AUTHORITY_KEY_STORE_UNAVAILABLE: made in vain; ")
        assert "tried again at 2030-01-08T2" in note
    # What a person asks for then is tried at once.
    for kind in KINDS:
        before = len(store.made)
        leader.state, _ = leader.life.compromised(leader.state, (kind,), leader.clock.now())
        leader.look()
        assert len(store.made) == before + 1


@pytest.mark.parametrize(("again", "least", "most"), [(False, 6, 11), (True, 30, 60)])
def test_first_keys_that_are_made_in_vain_are_few(again: bool, least: int, most: int) -> None:
    store, clock = Vain(again=again), StepClock()
    opens = First(in_vain(store), lambda: True, clock, random.Random(1))
    for _ in range(8 * 360):
        assert done(opens.made(())) is None
        clock.pass_by(seconds=10)
    assert least <= len(store.made) <= most
    assert "made in vain; tried again at 2030-01-01T0" in opens.awaited
    assert opens.awaited.endswith("or when the signer is started anew")


def test_a_start_that_makes_keys_in_vain_waits_ever_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("signer.authority.opening.asyncio.sleep", sleep)
    left = [KeyUnfinished("made in vain", again=False) for _ in range(13)]

    async def work() -> Any:
        if left:
            raise left.pop()
        return None

    done(patient(work, 1.0))
    assert slept == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 1024.0, 1024.0, 1024.0]
