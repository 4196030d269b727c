"""A CA elsewhere: what it is asked for is stored first and survives the leader; what comes back is tried first."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from signer.authority.abandonments import Entry, Record
from signer.authority.acknowledgements import Agents
from signer.authority.granting import granted
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.recovery import returned
from signer.authority.rotation import Rotation
from signer.authority.slots import Stage
from signer.authority.state import Abandoned, AuthorityState
from signer.authority.store import SecretStore
from signer.cluster.leader import Leader
from signer.errors import ApiUnavailable, CertificateRefused, SignerError, StateDamaged, TransitionRefused
from signer.metrics import Metrics
from signer.upstream.certify import SelfSigned, UpstreamUnusable
from signer.upstream.remote import NO_HANDLE, Answer, CaRequest, Denied, Elsewhere, Issued, Pending, UpstreamAway
from signer.upstream.roots import RootSet
from svid.jwtsvid import JwtSvid
from svid.keys import KeyAlgorithm
from svid.x509svid import check_x509_svid
from tests.fake_kube import FakeKube
from tests.signer_rig import START, Apart, StepClock
from tests.unit.signer.said import abandonments, all_read, sources
from tests.unit.signer.test_lifecycle import ALL, KEY, POLICY, TD, TTL, WEB, Lives, done, first, life, stages
from tests.unit.signer.test_rotation import PATH, loop, until

CA = "CA elsewhere"
DAY = timedelta(days=1)


class RemoteCa:
    """Answers what a test wants; `thinks`: it has not decided. It knows requests by their id."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.key = KeyAlgorithm.EC_P256.generate()
        name = x509.Name.from_rfc4514_string("CN=root")
        self.root = self._signed(name, name, self.key.public_key(), START + 3650 * DAY, path_length=None)
        self.at_once = at_once
        self.clock = StepClock()
        self.thinks = self.by_person = False
        self.fails: SignerError | None = None
        self.bend: Callable[[Issued], Answer] = lambda issued: issued
        self.hangs = False
        self.submitted: list[str] = []
        self.polled: list[str] = []
        self.forgotten: list[str] = []
        self.issued: list[str] = []

    name = CA

    def _signed(
        self, subject: x509.Name, issuer: x509.Name, key: Any, end: Any, path_length: int | None = 0
    ) -> x509.Certificate:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        return (
            x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), START - DAY, end)
            .add_extension(x509.BasicConstraints(True, path_length), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .sign(self.key, hashes.SHA256())
        )

    def certificate(self, request: CaRequest, lifetime: timedelta | None = None, key: Any = None) -> x509.Certificate:
        end = self.clock.now() + (lifetime or request.lifetime)
        return self._signed(request.csr.subject, self.root.subject, key or request.csr.public_key(), end)

    async def submit(self, request: CaRequest) -> str:
        await self._called()
        self.submitted.append(request.id)
        return NO_HANDLE if self.at_once else json.dumps({"name": request.id})

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        await self._called()
        self.polled.append(request.id)
        if self.thinks:
            return Pending("nobody has approved it", timedelta(seconds=30), self.by_person)
        self.issued.append(request.id)
        return self.bend(Issued((self.certificate(request),), (self.root,)))

    async def forget(self, request_id: str, handle: str) -> None:
        self.forgotten.append(request_id)

    async def roots(self) -> RootSet:
        await self._called()
        return RootSet((self.root,), complete=True)

    async def _called(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails


class Cluster:
    """What replicas share."""

    def __init__(self, remote: RemoteCa) -> None:
        self.clock = StepClock()
        self.kube = FakeKube(self.clock)
        self.remote = remote
        remote.clock = self.clock
        self.monotonic = 1000.0

    @property
    def stored(self) -> AuthorityState:
        return SecretStore(self.kube, "podsvid", "authority", TD)._stored(self.kube.objects[PATH]).state

    def writes(self) -> int:
        return sum("secrets" in path for _, path in self.kube.writes)


class Replica:
    """One signer below that CA."""

    def __init__(self, cluster: Cluster, name: str, remote: RemoteCa | None = None) -> None:
        remote = remote or cluster.remote
        lease = Apart(cluster.clock, lambda: cluster.monotonic)
        self.leader = Leader(cluster.kube, "podsvid", "lease", name, timedelta(seconds=15), lease, random.Random(1))
        self.agents = Agents(cluster.kube, "podsvid", name, cluster.clock)
        self.metrics = Metrics()
        self.rotation = Rotation(
            SecretStore(cluster.kube, "podsvid", "authority", TD),
            abandonments(cluster.kube, cluster.clock),
            Life(POLICY, Elsewhere(remote.name), TD),
            self.leader,
            self.agents,
            sources(),
            self.metrics,
            cluster.clock,
            random.Random(1),
            remote,
        )
        self.told: list[str] = []
        self.rotation.requests.refused = self.told.append

    async def open(self) -> None:
        await all_read(self.agents)
        await self.leader.attempt()
        await self.rotation.open()

    def answers(self, result: str) -> float:
        name = "podsvid_signer_upstream_answers_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


async def passes() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def serves(state: AuthorityState, ca: RemoteCa) -> None:
    """What it signs verifies under the CA's root and nothing else is trusted."""
    chain = state.active_x509.issue(KEY, WEB, ttl=TTL, now=START)
    assert check_x509_svid(chain, state.bundle, START) == WEB
    assert state.bundle.x509_authorities == (ca.root,)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_first_start_asks_waits_and_serves(at_once: bool) -> None:
    async def run() -> None:
        ca = RemoteCa(at_once=at_once)
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        state = one.rotation.state
        assert state is not None
        serves(state, ca)
        assert (stages(state), state.request, len(ca.issued)) == (["active"], None, 1)
        # Written when it is requested, when the CA knows it by a handle, and when it serves.
        assert cluster.writes() == (2 if at_once else 3)

    asyncio.run(run())


def test_the_key_is_stored_before_anything_is_sent() -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        seen: list[str] = []

        async def submit(request: CaRequest) -> str:
            assert cluster.stored.request is not None
            seen.append(cluster.stored.request.id)
            assert request.id == seen[-1]
            return '{"n": 1}'

        ca.submit = submit  # type: ignore[method-assign]
        await Replica(cluster, "one").open()
        assert len(seen) == 1

    asyncio.run(run())


def test_where_the_ca_is_away_at_the_first_start_the_process_stays_and_says_why() -> None:
    """U7: it ended, and was started again and again."""

    async def run() -> None:
        ca = RemoteCa()
        ca.fails = UpstreamAway("nobody answers")
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        async with loop(_forever(one.open())):
            await until(lambda: "nobody answers" in one.rotation.requests.first_awaited)
            assert one.rotation.requests.first_awaited.startswith(f"waits for the first certificate of {CA}")
            assert one.rotation.state is None
            key = cluster.stored.request
            assert key is not None
            await passes()
            # One write, however long it is away; and asked ever more rarely.
            assert cluster.writes() == 1
            assert one.answers("away") == 1
            ca.fails = None
            cluster.clock.pass_by(seconds=10)
            await until(lambda: one.rotation.state is not None)
            await until(lambda: one.rotation.requests.first_awaited == "")
            assert ca.issued == [key.id]

    asyncio.run(run())


async def _forever(work: Any) -> None:
    await work
    await asyncio.Event().wait()


def test_the_next_leader_goes_on_with_the_same_request() -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one, two = Replica(cluster, "one"), Replica(cluster, "two")
        await one.open()
        await all_read(two.agents)
        await two.rotation.open()
        before = cluster.stored.active_x509_id
        ca.thinks = True
        await one.rotation.step("rotate", "x509", "", forced=False)
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: len(ca.polled) == 2)
        # It is killed; nobody gives its lease up.
        cluster.clock.pass_by(seconds=60)
        cluster.monotonic += 60
        ca.thinks = False
        await two.leader.attempt()
        cluster.monotonic += 16
        await two.leader.attempt()
        two.rotation.see(cluster.stored)
        async with loop(two.rotation.run()), loop(two.rotation.ask_above()):
            await until(lambda: cluster.stored.active_x509_id != before)
        assert len(ca.submitted) == len(set(ca.submitted)) == 2
        assert len(ca.issued) == 2

    asyncio.run(run())


def test_a_leader_killed_while_it_submits_asks_for_no_other_key() -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        await one.rotation.step("rotate", "x509", "", forced=False)
        ca.hangs = True
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: cluster.stored.request is not None)
            await passes()
        asked = cluster.stored.request
        assert asked is not None
        ca.hangs = False
        two = Replica(cluster, "two")
        cluster.monotonic += 16
        await all_read(two.agents)
        await two.leader.attempt()
        cluster.monotonic += 16
        await two.open()
        async with loop(two.rotation.run()), loop(two.rotation.ask_above()):
            await until(lambda: len(cluster.stored.x509) == 2)
        assert ca.submitted[1:] == [asked.id]

    asyncio.run(run())


def test_an_answer_that_could_not_be_stored_is_not_asked_for_again() -> None:
    async def run() -> None:
        ca = RemoteCa(at_once=True)
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        await one.rotation.step("prepare", "x509", "", forced=False)
        assert cluster.stored.request is not None
        swap, failures = one.rotation._swap, 3

        async def failing(*args: Any) -> bool:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise ApiUnavailable("away")
            return await swap(*args)

        one.rotation.seat = replace(one.rotation.seat, swap=failing)
        async with loop(one.rotation.ask_above()):
            await until(lambda: cluster.stored.request is None)
        assert failures < 0
        assert len(ca.issued) == 2

    asyncio.run(run())


def test_while_the_ca_hangs_everything_else_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """U4: a CA that answers in hours stopped the JWT keys' rotation, and everything else."""
    monkeypatch.setattr("signer.authority.requests.DEADLINE_SECONDS", 0.05)

    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        ca.hangs = True
        await one.rotation.step("rotate", "x509", "", forced=False)
        begun = cluster.stored.jwt[0].id
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await one.rotation.step("rotate", "jwt", "", forced=False)
            await until(lambda: cluster.stored.active_jwt is not None and cluster.stored.active_jwt.key_id != begun)
            await until(lambda: "did not answer within" in " ".join(one.rotation.next_steps(cluster.stored)))
            assert cluster.stored.request is not None

    asyncio.run(run())


def test_what_is_denied_is_dropped_told_and_the_old_one_signs_on() -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        before = cluster.stored.active_x509_id
        ca.bend = lambda issued: Denied("the approver said no", permanent=True)
        cluster.clock.pass_by(days=6)
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: one.told != [])
            await until(lambda: cluster.stored.request is None)
            await passes()
            # Not asked again for an hour, with another key then; or at once, when a person wants it.
            assert len(ca.submitted) == 2
            assert (cluster.stored.active_x509_id, one.answers("denied")) == (before, 1)
            assert one.told == [f"{CA} was asked in vain: the approver said no"]
            (note,) = [line for line in one.rotation.next_steps(cluster.stored) if "approver" in line]
            assert "asked again at 2030-01-07T0" in note
            assert one.rotation.waiting_since is not None
            ca.bend = lambda issued: issued
            await one.rotation.step("rotate", "x509", "", forced=False)
            await until(lambda: cluster.stored.active_x509_id != before)
            assert len(set(ca.submitted)) == 3
            await until(lambda: one.rotation.waiting_since is None)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("another key", "key does not match"),
        ("a leaf", "not a CA certificate"),
        ("too short", "it ends at"),
        ("another root", "names no root that its certificate leads to"),
        ("no certificate", "no certificate"),
        ("many", "are not taken"),
    ],
)
def test_what_cannot_serve_is_refused_and_nothing_of_it_is_published(wrong: str, said: str) -> None:
    ca = RemoteCa()
    state, _ = done(Life(POLICY, Elsewhere(CA), TD).prepare(first(), "x509", START))
    request = state.request
    assert request is not None
    asked = request.to_ca(TD)
    own = ca.certificate(asked)
    chain: tuple[x509.Certificate, ...] = (own,)
    roots: tuple[x509.Certificate, ...] = (ca.root,)
    if wrong == "another key":
        chain = (ca.certificate(asked, key=KeyAlgorithm.EC_P256.generate().public_key()),)
    elif wrong == "a leaf":
        builder = x509.CertificateBuilder(
            ca.root.subject, asked.csr.subject, asked.csr.public_key(), 7, START, START + 10 * DAY
        )
        chain = (builder.sign(ca.key, hashes.SHA256()),)
    elif wrong == "too short":
        chain = (ca.certificate(asked, lifetime=timedelta(hours=3)),)
    elif wrong == "another root":
        roots = (RemoteCa().root,)
    elif wrong == "no certificate":
        chain = ()
    else:
        chain = (own, *[own] * 20)
    with pytest.raises(CertificateRefused, match=said):
        granted(state, Issued(chain, roots), POLICY, START)
    after, slot = granted(state, Issued((own,), (RemoteCa().root, ca.root)), POLICY, START)
    assert (stages(after), after.request, slot.authority.bundle.x509_authorities) == (
        ["active", "prepared"],
        None,
        (ca.root,),
    )


def test_unfit_certificates_are_asked_for_once_an_hour_and_the_note_is_said() -> None:
    async def run() -> None:
        ca = RemoteCa(at_once=True)
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        ca.bend = lambda issued: Issued(issued.chain, (RemoteCa().root,), "its lifetime was cut")
        cluster.clock.pass_by(days=6)
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: one.told != [])
            for _ in range(6):
                cluster.clock.pass_by(minutes=5)
                await passes()
            assert len(ca.issued) == 2
            assert one.answers("unfit") == 1
            assert "its lifetime was cut" in one.told[0]
            for _ in range(12):
                cluster.clock.pass_by(minutes=5)
                await passes()
            assert len(ca.issued) == 3
            assert len(set(ca.issued)) == 3

    asyncio.run(run())


def test_a_bug_of_an_upstream_ends_nothing_and_its_words_are_not_said() -> None:
    """One answer that nobody foresaw would end each replica that leads, one after the other."""

    async def run() -> None:
        ca = RemoteCa()
        ca.fails = ValueError("s.token")  # type: ignore[assignment]
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        async with loop(_forever(one.open())):
            await until(lambda: "ValueError at test_requests.py:" in one.rotation.requests.first_awaited)
            assert "s.token" not in one.rotation.requests.first_awaited
            assert one.answers("unusable") == 1
            ca.fails = None
            cluster.clock.pass_by(seconds=10)
            await until(lambda: one.rotation.state is not None)

    asyncio.run(run())


def test_what_was_issued_without_roots_is_kept_until_they_are_had() -> None:
    async def run() -> None:
        ca = RemoteCa(at_once=True)
        ca.bend = lambda issued: Issued(issued.chain)
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        roots, failures = ca.roots, 2

        async def failing() -> RootSet:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise UpstreamAway("the roots are away")
            return await roots()

        ca.roots = failing  # type: ignore[method-assign]
        async with loop(_forever(one.open())):
            await until(lambda: failures == 1)
            cluster.clock.pass_by(seconds=20)
            await until(lambda: failures == 0)
            cluster.clock.pass_by(seconds=20)
            await until(lambda: one.rotation.state is not None)
        assert len(ca.issued) == 1

    asyncio.run(run())


def test_who_asks_for_the_first_in_vain_lets_others_lead_and_asks_no_more_often_for_that() -> None:
    """Its settings may be the wrong ones: while they are mended no replica of either is ready, and none may go."""

    async def run() -> None:
        ca, cluster = RemoteCa(), Cluster(RemoteCa())
        wrong = Replica(cluster, "wrong")
        cluster.remote.fails = UpstreamUnusable("no such role")
        requests = wrong.rotation.requests
        wrong.leader.unfit = lambda: requests.gives_way
        async with loop(_forever(wrong.open())):
            await until(lambda: "no such role" in requests.first_awaited)
            await until(lambda: requests.gives_way)
            await wrong.leader.attempt()
            assert not wrong.leader.leading
            ca.clock = cluster.clock
            right = Replica(cluster, "right", ca)
            await all_read(right.agents)
            await right.leader.attempt()
            assert right.leader.leading
            await right.rotation.open()
            assert wrong.answers("unusable") == 1
            await until(lambda: wrong.rotation.state is not None)
            assert not requests.gives_way
        serves(cluster.stored, ca)

    asyncio.run(run())


def test_who_waits_for_a_person_gives_way_to_nobody_who_would_ask_that_person_anew() -> None:
    """Replicas of two configurations would withdraw each other's request before anybody could approve it."""

    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        ca.thinks = ca.by_person = True
        one = Replica(cluster, "one")
        requests = one.rotation.requests
        async with loop(_forever(one.open())):
            await until(lambda: "nobody has approved it" in requests.first_awaited)
            for _ in range(10):
                cluster.clock.pass_by(seconds=30)
                await passes()
                assert not requests.gives_way
            # What is approved and not answered may be a fault of its settings.
            ca.by_person = False
            cluster.clock.pass_by(seconds=30)
            await until(lambda: requests.gives_way)
            ca.thinks = False
            cluster.clock.pass_by(seconds=30)
            await until(lambda: one.rotation.state is not None)
        assert (len(ca.submitted), len(ca.issued)) == (1, 1)

    asyncio.run(run())


def test_who_gave_way_leads_again_for_most_of_each_round() -> None:
    async def run() -> None:
        cluster = Cluster(RemoteCa())
        cluster.remote.fails = UpstreamAway("nobody answers")
        one = Replica(cluster, "one")
        requests = one.rotation.requests
        async with loop(_forever(one.open())):
            await until(lambda: requests.gives_way)
            seen = []
            for _ in range(18):
                seen.append(requests.gives_way)
                cluster.clock.pass_by(seconds=10)
            assert seen == [*[True] * 3, *[False] * 6] * 2

    asyncio.run(run())


def test_what_a_person_asks_for_after_a_denial_is_tried_at_once() -> None:
    """A rotation that is under way already is no new wish."""

    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        ca.bend = lambda issued: Denied("no role", permanent=True)
        await one.rotation.step("rotate", "x509", "", forced=False)
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: one.told != [])
            await until(lambda: cluster.stored.request is None)
            ca.bend = lambda issued: issued
            await one.rotation.step("prepare", "x509", "", forced=False)
            await until(lambda: len(cluster.stored.x509) == 2)

    asyncio.run(run())


def test_the_first_authority_is_wanted_too() -> None:
    async def run() -> None:
        cluster = Cluster(RemoteCa())
        cluster.remote.fails = UpstreamAway("nobody answers")
        one = Replica(cluster, "one")
        async with loop(_forever(one.open())):
            await until(lambda: "nobody answers" in one.rotation.requests.first_awaited)
            assert one.rotation.waiting_since == START

    asyncio.run(run())


def test_a_certificate_without_roots_gets_those_of_the_ca() -> None:
    async def run() -> None:
        ca = RemoteCa(at_once=True)
        ca.bend = lambda issued: Issued(issued.chain)
        cluster = Cluster(ca)
        await Replica(cluster, "one").open()
        serves(cluster.stored, ca)

    asyncio.run(run())


def test_a_theft_takes_the_requested_key_along_and_the_ca_is_told() -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        before = cluster.stored.active_x509_id
        ca.thinks = True
        await one.rotation.step("rotate", "x509", "", forced=False)
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: len(ca.polled) == 2)
            stolen = cluster.stored.request
            assert stolen is not None
            await one.rotation.step("rotate", "x509", "", forced=True)
            assert cluster.stored.abandoned_ids("x509") >= {stolen.authority_id, cluster.stored.active_x509_id}
            ca.thinks = False
            # The first one, which is done with, and this one.
            await until(lambda: ca.forgotten == [ca.submitted[0], stolen.id])
            await until(lambda: cluster.stored.active_x509_id != before)
        assert stolen.id not in ca.issued
        assert stolen.authority_id not in {slot.id for slot in cluster.stored.x509}
        # An older Secret that has the request back is mended before anything is made of its key.
        kept = cluster.kube.objects[PATH]
        assert stolen.authority_id not in json.dumps(kept)

    asyncio.run(run())


def test_who_could_not_be_told_that_a_request_is_wanted_no_more_is_told_again() -> None:
    """A stolen key's request would wait for its approval for ever, and be granted one day."""

    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        ca.thinks = True
        await one.rotation.step("rotate", "x509", "", forced=False)
        told: list[str] = []

        async def forget(request_id: str, handle: str) -> None:
            told.append(request_id)
            if len(told) < 3:
                raise UpstreamAway("the API server is away")

        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            await until(lambda: len(ca.polled) == 2)
            stolen = cluster.stored.request
            assert stolen is not None
            ca.forget = forget  # type: ignore[method-assign]
            await one.rotation.step("rotate", "x509", "", forced=True)
            for times in (1, 2, 3):
                await until(lambda: len(told) == times)  # noqa: B023
                await passes()
                assert told == [stolen.id] * times
                cluster.clock.pass_by(seconds=60)
            await passes()
            assert len(told) == 3

    asyncio.run(run())


def test_a_request_that_is_wanted_again_is_not_withdrawn() -> None:
    """An older Secret was put back, before the CA could be told that nobody wants it."""

    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        ca.thinks = True
        await one.rotation.step("rotate", "x509", "", forced=False)
        async with loop(one.rotation.run()):
            await until(lambda: cluster.stored.request is not None)
        wanted, told = cluster.stored, list[str]()

        async def forget(request_id: str, handle: str) -> None:
            told.append(request_id)
            raise UpstreamAway("the API server is away")

        async def unused(*_: Any) -> Any:
            raise AssertionError

        # The first one, which is done with, is.
        await one.rotation.requests.look(wanted, unused, unused, lambda: False)
        assert len(ca.forgotten) == 1
        ca.forget = forget  # type: ignore[method-assign]
        for state in (wanted, replace(wanted, request=None), wanted):
            await one.rotation.requests.look(state, unused, unused, lambda: False)
            cluster.clock.pass_by(seconds=60)
        assert wanted.request is not None
        assert told == [wanted.request.id]

    asyncio.run(run())


def test_another_theft_while_a_request_waits_takes_that_one() -> None:
    by = Life(POLICY, Elsewhere(CA), TD)
    state, _ = by.asked(first(), "x509", forced=True, now=START)
    state, _ = done(by.prepare(state, "x509", START))
    request = state.request
    assert request is not None
    again, told = by.asked(state, "x509", forced=True, now=START)
    assert request.authority_id in told
    assert again.request is None
    assert request.authority_id in again.abandoned_ids("x509")


def test_a_stolen_first_request_that_comes_back_is_asked_for_no_more() -> None:
    """An older Secret of the first start was restored before the recovery was over."""
    by = Life(POLICY, Elsewhere(CA), TD)
    state = done(by.first(START))
    request = state.request
    assert request is not None
    record = Record((Entry(Abandoned("x509", request.authority_id, START)),), {"x509": state.sequence + 1000})
    found = returned(state, record, None)
    assert (dict(found.drop), found.declare) == ({}, ("x509",))
    after = done(by.freed(state, found, record, START))
    assert after.unborn
    assert after.request is not None
    assert after.request.id != request.id
    assert after.sequence > state.sequence


def test_after_a_theft_of_all_the_first_one_may_end_soon() -> None:
    ca, by = RemoteCa(), Life(POLICY, Elsewhere(CA), TD)
    state = done(by.first(START))
    assert state.request is not None
    soon = Issued((ca.certificate(state.request.to_ca(TD), lifetime=timedelta(hours=3)),), (ca.root,))
    with pytest.raises(CertificateRefused, match="it ends at"):
        granted(state, soon, POLICY, START)
    stolen = replace(state, abandoned=(Abandoned("x509", "stolen", START),))
    serves(granted(stolen, soon, POLICY, START)[0], ca)


def test_a_request_to_another_ca_is_withdrawn() -> None:
    state, _ = done(Life(POLICY, Elsewhere("another"), TD).prepare(first(), "x509", START))
    acks = Acks(frozenset(), {})
    for by in (Life(POLICY, Elsewhere(CA), TD), life()):
        step = by.due(state, acks, START)
        assert step is not None
        assert (step.action, "another" in step.reason) == ("withdraw", True)
        assert done(by.do(state, step, START)).request is None
    assert Life(POLICY, Elsewhere("another"), TD).due(state, acks, START + 6 * DAY, ("x509",)) is None


def test_a_first_request_to_a_ca_that_is_above_no_more_is_replaced() -> None:
    async def run() -> None:
        cluster = Cluster(RemoteCa())
        unborn = await Life(POLICY, Elsewhere("another"), TD).first(START)
        await SecretStore(cluster.kube, "podsvid", "authority", TD).create(unborn)
        one = Replica(cluster, "one")
        await one.open()
        serves(cluster.stored, cluster.remote)
        assert unborn.request is not None
        assert cluster.remote.submitted != [unborn.request.id]

    asyncio.run(run())


def test_a_first_request_goes_on_as_a_root_of_its_own_where_no_ca_is_above_any_more() -> None:
    async def run() -> None:
        cluster = Cluster(RemoteCa())
        await SecretStore(cluster.kube, "podsvid", "authority", TD).create(
            await Life(POLICY, Elsewhere("another"), TD).first(START)
        )
        one = Replica(cluster, "one")
        one.rotation._life._make.above = SelfSigned()
        one.rotation.requests._remote = None
        await one.open()
        assert stages(cluster.stored) == ["active"]
        assert cluster.remote.submitted == []

    asyncio.run(run())


def test_what_signs_goes_on_where_the_secret_was_deleted_and_another_replica_asks_for_the_first() -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        known = one.rotation.state
        assert known is not None
        del cluster.kube.objects[PATH]
        cluster.clock.pass_by(seconds=1)
        unborn = await Life(POLICY, Elsewhere(CA), TD).first(cluster.clock.now())
        await SecretStore(cluster.kube, "podsvid", "authority", TD).create(unborn)
        one.rotation.see(cluster.stored)
        assert one.rotation.state is known
        with pytest.raises(StateDamaged, match="asked for the first"):
            await one.rotation.step("prepare", "x509", "", forced=False)
        # It cannot ask for it, and whoever can needs the lease.
        assert one.rotation.requests.gives_way
        one.leader.unfit = lambda: one.rotation.requests.gives_way
        await one.leader.attempt()
        two = Replica(cluster, "two")
        await two.open()
        assert two.rotation.state is not None
        assert two.rotation.state.sequence > known.sequence
        await one.rotation._loaded()
        assert one.rotation.state.to_json() == two.rotation.state.to_json()
        assert not one.rotation.requests.gives_way

    asyncio.run(run())


def test_a_person_cannot_ask_twice() -> None:
    by = Life(POLICY, Elsewhere(CA), TD)
    state, told = done(by.prepare(first(), "x509", START))
    assert told.startswith(f"requested an x509 authority of {CA}")
    with pytest.raises(TransitionRefused, match="is requested of CA elsewhere already"):
        done(by.prepare(state, "x509", START))
    assert by.outlook(state, Acks(frozenset(), {}), START)[0] == (
        f"x509: waits for a certificate of {CA}, wanted since 2030-01-01T00:00:00Z"
    )


def test_a_request_is_stored_whole_and_only_while_there_is_one() -> None:
    state, _ = done(Life(POLICY, Elsewhere(CA), TD).prepare(first(), "x509", START))
    request = state.request
    assert request is not None
    state = replace(state, request=request.sent('{"n": 1}'))
    document = json.loads(state.to_json())
    assert document["version"] == 3
    again = AuthorityState.from_json(state.to_json(), TD)
    assert again.to_json() == state.to_json()
    assert again.request is not None
    assert (again.request.id, again.request.handle) == (request.id, '{"n": 1}')
    assert json.loads(replace(state, request=None).to_json())["version"] == 1
    assert "PRIVATE" not in repr(again.request)
    other = done(Life(POLICY, Elsewhere(CA), TD).prepare(first(), "x509", START))[0]
    entry, stranger = document["request"], json.loads(other.to_json())["request"]
    for change in (
        {"key": stranger["key"]},
        {"csr": "no PEM"},
        {"csr": 1},
        {"at": None},
        {"handle": "no JSON"},
        {"handle": json.dumps("x" * 1100)},
        {"handle": 1},
        {"lifetime_seconds": 0},
        {"lifetime_seconds": True},
        {"lifetime_seconds": "1"},
        {"asked_at": "2030-01-01T00:00:00"},
    ):
        text = json.dumps({**document, "request": {**entry, **change}}).encode()
        with pytest.raises(StateDamaged) as caught:
            AuthorityState.from_json(text, TD)
        assert "PRIVATE" not in str(caught.value)
    with pytest.raises(StateDamaged):
        AuthorityState.from_json(json.dumps({**document, "request": None}).encode(), TD)
    with pytest.raises(StateDamaged, match="run the newer signer again") as caught:
        AuthorityState.from_json(json.dumps({**document, "version": 7}).encode(), TD)
    assert "delete it" not in str(caught.value)


def test_a_request_beside_a_prepared_authority_is_no_state() -> None:
    by = Life(POLICY, Elsewhere(CA), TD)
    asked = done(by.prepare(first(), "x509", START))[0]
    prepared = done(life().prepare(first(), "x509", START))[0]
    with pytest.raises(StateDamaged, match="asks for another"):
        replace(prepared, request=asked.request)


@pytest.mark.parametrize("error", [UpstreamAway("sealed"), UpstreamUnusable("permission denied")])
def test_failures_are_rare_and_shown(error: SignerError) -> None:
    async def run() -> None:
        ca = RemoteCa()
        cluster = Cluster(ca)
        one = Replica(cluster, "one")
        await one.open()
        ca.fails = error
        cluster.clock.pass_by(days=6)
        result = "away" if isinstance(error, UpstreamAway) else "unusable"
        async with loop(one.rotation.run()), loop(one.rotation.ask_above()):
            for _ in range(360):
                cluster.clock.pass_by(seconds=10)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert 5 <= one.answers(result) <= 13
            writes = cluster.writes()
            assert any(str(error) in line for line in one.rotation.next_steps(cluster.stored))
            asked = cluster.stored.request
            assert asked is not None
            assert one.rotation.waiting_since == asked.asked_at
            assert cluster.writes() == writes

    asyncio.run(run())


class LivesBelow(Lives):
    """The same below a CA elsewhere, which answers at any time, with what can serve or not, or denies."""

    @initialize()
    def begin(self) -> None:
        self.ca = RemoteCa()
        self.stolen: set[str] = set()
        self.life = Life(POLICY, Elsewhere(CA), TD)
        self.now = START
        unborn = done(self.life.first(self.now))
        assert unborn.unborn
        assert unborn.request is not None
        self.state, _ = granted(unborn, self.issued_to(unborn), POLICY, self.now)
        self.published = {self.state.active_x509_id: self.state.sequence}
        self.issued: list[tuple[x509.Certificate, ...]] = []
        self.tokens: list[JwtSvid] = []
        self.forced = False
        self.acks = ALL

    def issued_to(self, state: AuthorityState) -> Issued:
        assert state.request is not None
        self.ca.clock.at = self.now
        return Issued((self.ca.certificate(state.request.to_ca(TD)),), (self.ca.root,))

    @precondition(lambda self: self.state.request is not None)
    @rule()
    def certify(self) -> None:
        after, slot = granted(self.state, self.issued_to(self.state), POLICY, self.now)
        assert after.request is None
        assert slot.stage is Stage.PREPARED
        self.move(after)

    @precondition(lambda self: self.state.request is not None)
    @rule()
    def certify_too_short(self) -> None:
        assert self.state.request is not None
        self.ca.clock.at = self.now
        chain = (self.ca.certificate(self.state.request.to_ca(TD), lifetime=timedelta(minutes=-1)),)
        with pytest.raises(CertificateRefused):
            granted(self.state, Issued(chain, (self.ca.root,)), POLICY, self.now)

    @precondition(lambda self: self.state.request is not None)
    @rule()
    def deny(self) -> None:
        self.move(replace(self.state, sequence=self.state.sequence + 1, request=None))

    @rule(kind=st.sampled_from(["x509", "jwt"]))
    def force(self, kind: str) -> None:
        if kind == "x509" and self.state.request is not None:
            self.stolen.add(self.state.request.authority_id)
        super().force(kind)
        assert kind == "jwt" or self.state.request is None

    @invariant()
    def nothing_stolen_serves(self) -> None:
        assert not self.stolen & {slot.id for slot in self.state.x509}

    @invariant()
    def what_is_asked_for_is_not_trusted_yet(self) -> None:
        assert self.state.request is None or self.state.find("x509", Stage.PREPARED) is None
        assert set(self.state.bundle.x509_authorities) == {self.ca.root}


TestLivesBelow = LivesBelow.TestCase
TestLivesBelow.settings = settings(max_examples=12, stateful_step_count=25, suppress_health_check=list(HealthCheck))
