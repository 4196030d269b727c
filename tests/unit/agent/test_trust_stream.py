"""What the agent takes from the signer's trust stream, answer by answer and without a network."""

import logging
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from agent.authority.connection import FILE_AFTER, Connection, SignerSettings
from agent.authority.contact import FIRST_RETRY, MAX_RETRY, Contact
from agent.authority.held import HeldTrust
from agent.authority.protocol import EarlyRenewal
from agent.authority.trust_stream import TrustStream
from agent.errors import AuthorityUnavailable
from runtime.feed import Feed
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.identity import Trust
from svid.spiffeid import TrustDomain
from tests.fake_authority import HOUR, TRUST_DOMAIN, StepClock, bundle_of, root

OTHER = TrustDomain("other.test")
NAME = "ab" * 20


class Scene:
    """A stream that has taken the bundle of sequence 100."""

    def __init__(self, base: Path) -> None:
        self.clock = StepClock()
        self.x509 = root(self.clock.at)
        self.bundle_file = base / "bundle"
        self.token_file = base / "token"
        self.settings = SignerSettings("signer:1", self.bundle_file, self.token_file, "aud", TRUST_DOMAIN, run_dir=base)
        self.held = HeldTrust(self.clock)
        self.trust = self.held.feed
        self.early: Feed[tuple[EarlyRenewal, ...]] = Feed()
        self.contact = Contact("signer:1", self.clock, random.Random(1))
        self.connection = Connection(self.settings, self.held, self.contact, random.Random(1))
        self.stream = TrustStream(self.settings, self.connection, self.contact, self.held, self.early)
        self.take(self.bundle(100), issues_jwt=True)
        assert self.trust.current == Trust(self.bundle(100))

    def bundle(self, sequence: int) -> TrustBundle:
        return bundle_of(self.x509, sequence=sequence)

    def take(
        self,
        *bundles: TrustBundle,
        renew: Mapping[str, tuple[datetime, datetime]] | None = None,
        issues_jwt: bool = True,
    ) -> None:
        answer = signer_pb2.WatchTrustResponse(
            sequence=bundles[0].sequence or 0 if bundles else 0, issues_jwt=issues_jwt
        )
        for bundle in bundles:
            answer.bundles.add(trust_domain=bundle.trust_domain.name, jwks=bundle.to_jwks())
        for name, (start, end) in (renew or {}).items():
            added = answer.renew.add(authority_id=name)
            getattr(added, "from").FromDatetime(start)
            added.until.FromDatetime(end)
        self.stream._take(answer)


@pytest.fixture
def at(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_newer_answer_replaces_bundles_and_directives(at: Scene) -> None:
    partner = bundle_of(root(at.clock.at, OTHER))
    window = (at.clock.at, at.clock.at + HOUR)
    at.take(at.bundle(101), partner, renew={NAME: window}, issues_jwt=False)
    assert at.trust.current == Trust(at.bundle(101), (partner,))
    (early,) = at.early.current or ()
    assert (early.authority_id, early.window.start, early.window.end) == (NAME, *window)
    assert not at.stream.issues_jwt


def test_a_replica_that_lags_behind_has_nothing_to_say(at: Scene) -> None:
    window = (at.clock.at, at.clock.at + HOUR)
    at.take(at.bundle(101), renew={NAME: window})
    directives = at.early.current
    versions = (at.trust.version, at.early.version)
    at.take(at.bundle(100))
    at.take(at.bundle(100), renew={"cd" * 20: window})
    at.take(at.bundle(0))
    assert at.trust.current == Trust(at.bundle(101))
    assert at.early.current == directives, "a replica that does not know of a renewal yet has ended it"
    assert (at.trust.version, at.early.version) == versions


def test_the_same_again_wakes_nobody(at: Scene) -> None:
    versions = (at.trust.version, at.early.version)
    at.take(at.bundle(100))
    assert (at.trust.version, at.early.version) == versions


def test_the_first_bundle_is_the_own_trust_domains(at: Scene, caplog: pytest.LogCaptureFixture) -> None:
    foreign = bundle_of(root(at.clock.at, OTHER), sequence=300)
    wrong: list[tuple[TrustBundle, ...]] = [
        (),
        (foreign,),
        (foreign, at.bundle(300)),
        (TrustBundle(TRUST_DOMAIN, sequence=300),),
    ]
    for bundles in wrong:
        caplog.clear()
        at.take(*bundles, renew={NAME: (at.clock.at, at.clock.at + HOUR)}, issues_jwt=False)
        assert at.trust.current == Trust(at.bundle(100))
        assert not at.early.current
        assert at.stream.issues_jwt, "of an answer that is no good nothing is taken"
        assert [each.levelno for each in caplog.records] == [logging.ERROR]


def test_an_answer_of_another_cluster_is_no_contact(tmp_path: Path) -> None:
    at = Scene(tmp_path)
    at.contact.lost("gone")
    at.take(bundle_of(root(at.clock.at, OTHER), sequence=300))
    assert not at.contact.connected
    at.take(at.bundle(100))
    assert at.contact.connected
    assert at.contact.away_since is None


def test_one_bundle_that_cannot_be_read_costs_the_answer_and_nothing_else(at: Scene) -> None:
    answer = signer_pb2.WatchTrustResponse(sequence=101)
    answer.bundles.add(trust_domain=TRUST_DOMAIN.name, jwks=at.bundle(101).to_jwks())
    answer.bundles.add(trust_domain="Not A Domain", jwks=b"{}")
    at.stream._take(answer)
    assert at.trust.current == Trust(at.bundle(100))
    backwards = {NAME: (at.clock.at + HOUR, at.clock.at)}
    at.take(at.bundle(101), renew=backwards)
    assert at.trust.current == Trust(at.bundle(100))


AWAY = FILE_AFTER + timedelta(seconds=1)


def anchors(pem: bytes) -> set[x509.Certificate]:
    return set(TrustBundle.from_pem(TRUST_DOMAIN, pem).x509_authorities)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.levelname for each in caplog.records if each.message.startswith("no signer answers under the trust")]


@pytest.mark.parametrize("wrong", [timedelta(hours=-1), timedelta(hours=1)], ids=["back", "forward"])
def test_whoever_sets_the_nodes_clock_does_not_choose_when_the_file_counts(at: Scene, wrong: timedelta) -> None:
    other = bundle_of(root(at.clock.at), sequence=101)
    at.bundle_file.write_bytes(other.to_jwks())
    at.contact.lost("gone")
    at.clock.wrong = wrong
    assert at.connection.newest_roots() == at.bundle(100).to_pem()
    at.clock.at += AWAY
    assert at.connection.newest_roots() != at.bundle(100).to_pem()


@pytest.mark.parametrize("sequence", [99, 100, 101, 10**12, None])
def test_a_changed_file_changes_no_trust_while_the_stream_answers(at: Scene, sequence: int | None) -> None:
    other = bundle_of(root(at.clock.at), sequence=sequence)
    at.bundle_file.write_bytes(other.to_jwks() if sequence else other.to_pem())
    for _ in range(3):
        assert at.connection.newest_roots() == at.bundle(100).to_pem()
        # Nor when one stream ends and the next begins, nor in a short outage.
        at.contact.ended("its time is over")
        at.contact.lost("gone")
        at.clock.at += FILE_AFTER - timedelta(seconds=1)
        assert at.connection.newest_roots() == at.bundle(100).to_pem()
        at.contact.answered(100)
        at.clock.at += AWAY


@pytest.mark.parametrize(("sequence", "added"), [(99, False), (100, False), (101, True), (None, True)])
def test_an_agent_that_is_cut_off_tries_the_file_beside_what_it_trusts_and_says_so(
    at: Scene, sequence: int | None, added: bool, caplog: pytest.LogCaptureFixture
) -> None:
    other = bundle_of(root(at.clock.at), sequence=sequence)
    at.bundle_file.write_bytes(other.to_jwks() if sequence else other.to_pem())
    present = set(at.bundle(100).x509_authorities)
    wanted = present | (set(other.x509_authorities) if added else set())
    for times in (1, 2):
        at.contact.lost("gone")
        at.clock.at += AWAY
        for _ in range(3):
            assert anchors(at.connection.newest_roots()) == wanted
        assert said(caplog) == ["ERROR"] * times * added
        # A false file cuts nobody off, and is forgotten as soon as the signer answers.
        at.contact.answered(100)
        assert at.connection.newest_roots() == at.bundle(100).to_pem()


def test_what_workloads_trust_is_never_the_files_once_the_signer_has_answered(at: Scene) -> None:
    at.bundle_file.write_bytes(bundle_of(root(at.clock.at), sequence=101).to_jwks())
    at.contact.lost("gone")
    at.clock.at += AWAY
    at.connection.newest_roots()
    assert at.trust.current == Trust(at.bundle(100))


def test_a_file_that_adds_nothing_is_nothing_to_say(at: Scene, caplog: pytest.LogCaptureFixture) -> None:
    at.bundle_file.write_bytes(at.bundle(101).to_jwks())
    at.contact.lost("gone")
    at.clock.at += AWAY
    assert at.connection.newest_roots() == at.bundle(100).to_pem()
    assert said(caplog) == []


@pytest.mark.parametrize("sequence", [101, None])
def test_before_the_signer_has_answered_once_the_file_is_what_there_is(at: Scene, sequence: int | None) -> None:
    contact = Contact("signer:1", at.clock, random.Random(1))
    connection = Connection(at.settings, at.held, contact, random.Random(1))
    other = bundle_of(root(at.clock.at), sequence=sequence)
    at.bundle_file.write_bytes(other.to_jwks() if sequence else other.to_pem())
    assert connection.newest_roots() == other.to_pem()
    contact.lost("gone")
    assert connection.newest_roots() == other.to_pem()
    at.bundle_file.write_bytes(bundle_of(root(at.clock.at), sequence=99).to_jwks())
    assert connection.newest_roots() == at.bundle(100).to_pem()
    contact.answered(100)
    at.bundle_file.write_bytes(bundle_of(root(at.clock.at), sequence=102).to_jwks())
    assert connection.newest_roots() == at.bundle(100).to_pem()


def test_a_file_of_nobody_never_becomes_the_hosts_own_roots(at: Scene) -> None:
    at.bundle_file.write_bytes(TrustBundle(TRUST_DOMAIN, sequence=500).to_jwks())
    at.contact.lost("gone")
    at.clock.at += AWAY
    assert at.connection.newest_roots() == at.bundle(100).to_pem()


@pytest.mark.parametrize("content", [b"", b"a b", b"a\nb", b"\x00", b"\xc3\xa9"])
def test_a_token_that_is_none_is_never_sent_nor_quoted(at: Scene, content: bytes) -> None:
    at.token_file.write_bytes(content)
    with pytest.raises(AuthorityUnavailable, match=r"^AGENT_TOKEN_MISSING: "):
        at.connection.credentials()
    at.token_file.write_bytes(b"good\n")
    assert at.connection.credentials() == (("authorization", "Bearer good"),)


def test_attempts_wait_longer_and_never_beyond_the_most(at: Scene) -> None:
    drawn = []

    class Most(random.Random):
        def uniform(self, a: float, b: float) -> float:
            drawn.append((a, b))
            return b

    contact = Contact("signer:1", at.clock, Most())
    waits = []
    for _ in range(12):
        waits.append(contact.delay())
        contact.lost("gone")
    assert waits[:4] == [FIRST_RETRY, 2.0, 4.0, 8.0]
    assert waits[-1] == MAX_RETRY
    assert {low for low, _ in drawn} == {0.0}


def test_a_streams_usual_end_is_no_outage_and_a_second_in_a_row_is(at: Scene) -> None:
    assert at.contact.connected
    at.contact.ended("its time is over")
    assert at.contact.connected
    at.clock.at += timedelta(minutes=1)
    at.contact.ended("again")
    assert not at.contact.connected
    assert at.contact.away_since == at.clock.at
    assert at.contact.last_error == "again"


def test_what_is_acknowledged_is_named_by_what_it_is(at: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Not by what the signer said of it: a kind of key that this agent does not know is missing in what it took."""
    trust = Trust(at.bundle(101))
    at.stream.hold(trust, {NAME: 2})
    report = at.stream._report
    assert (report.acknowledged_sequence, report.digest) == (101, trust.bundle.digest())
    assert [(each.authority_id, each.svids) for each in report.in_use] == [(NAME, 2)]
    answer = signer_pb2.WatchTrustResponse(sequence=102, digest=trust.bundle.digest())
    answer.bundles.add(trust_domain=TRUST_DOMAIN.name, jwks=at.bundle(102).to_jwks())
    at.stream._take(answer)
    assert not caplog.records
    answer.digest = bytes(32)
    at.stream._take(answer)
    (line,) = caplog.records
    assert "more than this agent can take" in line.getMessage()
    assert at.trust.current == Trust(at.bundle(102))
