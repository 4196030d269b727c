"""False trust: a bundle file that others wrote, and who once stood in the signer's place. None of it lasts."""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from agent.authority import signer as signer_authority
from agent.authority.connection import FILE_AFTER, SignerSettings
from agent.authority.held import AHEAD
from agent.authority.protocol import JwtRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AuthorityUnavailable
from csi.model import JwtFile
from signer.pb import signer_pb2
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.identity import Trust
from tests.fake_authority import SPIFFE_ID, TRUST_DOMAIN, bundle_of, root
from tests.fake_authority import StepClock as StillClock
from tests.fake_signer import authority
from tests.unit.agent.signer_scene import Scene, on_stage
from tests.workload_rig import Rig, rig

API = JwtFile("api.jwt", ("api",))
SECOND = 1000
HOUR = 3600 * SECOND
MOST = int(AHEAD.total_seconds()) * SECOND
BEYOND = "number that cannot be"
OLDER = "older than the one held"


class Place:
    """A signer's client without a network, and whom it hears: the true signer, and a false one."""

    def __init__(self, base: Path) -> None:
        self.clock = StillClock()
        self.true, self.false = root(self.clock.at), root(self.clock.at)
        self.file = base / "bundle.json"
        settings = SignerSettings("s:1", self.file, base / "token", "aud", TRUST_DOMAIN, run_dir=base)
        self.authority = SignerAuthority(settings, self.clock, random.Random(1))

    @property
    def now(self) -> int:
        """As a step's number."""
        return int(self.clock.at.timestamp() * 1000)

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        trust = self.authority.trust.current
        assert trust is not None
        return trust.bundle.x509_authorities

    @property
    def roots(self) -> set[x509.Certificate]:
        return set(TrustBundle.from_pem(TRUST_DOMAIN, self.authority.connection.newest_roots()).x509_authorities)

    def bundle(self, sequence: int, *of: X509Authority) -> TrustBundle:
        authorities = tuple(each.chain[-1] for each in of or (self.true,))
        return replace(bundle_of(self.true, sequence=sequence), x509_authorities=authorities)

    def start(self, bundle: TrustBundle) -> None:
        self.mount(bundle)
        self.authority.load()

    def mount(self, bundle: TrustBundle) -> None:
        """What kubelet does with the ConfigMap."""
        newer = self.file.with_suffix(".new")
        newer.write_bytes(bundle.to_jwks())
        os.replace(newer, self.file)

    def hear(self, bundle: TrustBundle) -> None:
        """On the trust stream, from whoever proved to be the signer."""
        answer = signer_pb2.WatchTrustResponse(sequence=1, issues_jwt=True)
        answer.bundles.add(trust_domain=TRUST_DOMAIN.name, jwks=bundle.to_jwks())
        self.authority._stream._take(answer)

    def cut_off(self) -> None:
        self.authority.contact.lost("gone")
        self.clock.at += FILE_AFTER

    def acknowledged(self) -> int:
        trust = self.authority.trust.current
        assert trust is not None
        self.authority.hold(trust, {})
        return self.authority._stream._report.acknowledged_sequence


@pytest.fixture
def at(tmp_path: Path) -> Place:
    return Place(tmp_path)


def logged(caplog: pytest.LogCaptureFixture, part: str) -> list[int]:
    return [each.levelno for each in caplog.records if part in each.message]


@pytest.mark.parametrize("number", [2**62, 2**63 + 5, 2**70, -1, "ahead", "now"])
def test_a_false_file_at_the_start_lasts_until_the_signers_first_word(at: Place, number: int | str) -> None:
    sequence = {"ahead": at.now + HOUR, "now": at.now}[number] if isinstance(number, str) else number
    at.start(at.bundle(sequence, at.true, at.false))
    at.mount(at.bundle(at.now - HOUR))
    assert at.acknowledged() == 0, "what no signer said is acknowledged to it"
    at.hear(at.bundle(at.now - HOUR))
    assert at.trusted == at.true.chain
    assert at.roots == set(at.true.chain)
    assert at.acknowledged() == at.now - HOUR


@pytest.mark.parametrize("number", [2**62, "ahead"])
def test_before_that_the_file_counts_as_it_is_now(at: Place, number: int | str) -> None:
    """One that lacks the signer's authorities would keep it away for ever."""
    at.start(at.bundle(at.now + HOUR if isinstance(number, str) else number, at.false))
    assert at.roots == set(at.false.chain)
    at.mount(at.bundle(at.now - HOUR))
    assert at.roots == set(at.true.chain)


def test_the_same_bundle_from_the_signer_is_news(at: Place) -> None:
    at.start(at.bundle(100))
    version = at.authority.trust.version
    at.hear(at.bundle(100))
    assert at.authority.trust.version == version + 1
    assert at.authority.trust.current == Trust(at.bundle(100))
    assert at.acknowledged() == 100


@pytest.mark.parametrize("number", [2**62, 2**63 + 5, 2**70, -1, "most"])
def test_a_number_that_cannot_be_keeps_nobody_out(
    at: Place, number: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    at.start(at.bundle(100))
    at.hear(at.bundle(101))
    sequence = at.now + MOST + 1 if isinstance(number, str) else number
    at.hear(at.bundle(sequence, at.true, at.false))
    assert logged(caplog, BEYOND) == [logging.ERROR]
    # A signer whose clock once ran ahead has such numbers, and waits for their acknowledgement.
    assert at.acknowledged() == (sequence if 0 <= sequence < 2**63 else 0)
    at.hear(at.bundle(101))
    assert at.trusted == at.true.chain
    assert at.acknowledged() == 101
    assert not logged(caplog, OLDER)


def test_who_once_had_the_signers_place_is_outdone_by_its_next_number(
    at: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent says what it holds; the signer publishes above that, or dates its next step so."""
    at.start(at.bundle(100))
    stolen = at.now + MOST
    at.hear(at.bundle(stolen, at.true, at.false))
    for _ in range(3):
        at.hear(at.bundle(at.now - HOUR))
    assert at.authority.contact.connected
    assert logged(caplog, OLDER) == [logging.WARNING], "said once, not on each stream"
    assert at.acknowledged() == stolen
    assert not logged(caplog, BEYOND)
    at.clock.at += timedelta(seconds=1)
    at.hear(at.bundle(stolen + 1))
    assert at.trusted == at.true.chain


def test_a_replica_behind_takes_nothing_away_and_is_named(at: Place, caplog: pytest.LogCaptureFixture) -> None:
    at.start(at.bundle(100))
    at.hear(at.bundle(at.now, at.true, at.false))
    at.hear(at.bundle(at.now - 1))
    at.hear(at.bundle(at.now - 2))
    assert at.trusted == (*at.true.chain, *at.false.chain)
    assert len(logged(caplog, OLDER)) == 2
    at.hear(at.bundle(at.now))
    assert at.trusted == at.true.chain


def test_a_clock_that_was_set_back_makes_a_number_one_that_cannot_be(at: Place) -> None:
    at.start(at.bundle(100))
    at.hear(at.bundle(at.now, at.true, at.false))
    at.clock.at -= AHEAD + timedelta(seconds=1)
    at.hear(at.bundle(at.now))
    assert at.trusted == at.true.chain


@pytest.mark.parametrize("number", [2**62, "most", "now"])
def test_an_agent_that_a_thief_cut_off_comes_back_by_the_signers_next_step(at: Place, number: int | str) -> None:
    """What the thief sent lacks the signer's authorities, so that only the file can bring them."""
    at.start(at.bundle(100))
    at.hear(at.bundle({"most": at.now + MOST, "now": at.now}.get(str(number), 2**62), at.false))
    before = at.now - HOUR
    at.mount(at.bundle(before))
    at.cut_off()
    assert (at.roots == {*at.false.chain, *at.true.chain}) is (number == 2**62)
    at.mount(at.bundle(at.now))
    assert at.roots == {*at.false.chain, *at.true.chain}
    at.mount(at.bundle(2**62))
    assert at.roots == {*at.false.chain, *at.true.chain}, "a number that cannot be is none"


def test_a_file_from_before_what_is_held_brings_no_authority_back(at: Place) -> None:
    """A ConfigMap that lags behind, or was restored, has those that were abandoned since."""
    at.start(at.bundle(100))
    at.hear(at.bundle(at.now))
    at.mount(at.bundle(at.now - 1, at.false))
    at.cut_off()
    assert at.roots == set(at.true.chain)


def test_a_mint_gives_no_workload_the_files_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signer_authority, "TRUST_SECONDS", 0.05)

    async def play(at: Scene) -> None:
        # Its trust stream is refused, its mints are not: nobody runs the stream here.
        silent = SignerAuthority(
            replace(at.authority._settings, run_dir=tmp_path / "silent"), at.clock, random.Random(1)
        )
        silent.load()
        jwt = JwtRequest(at.request().pod, at.token(), SPIFFE_ID, ("api",))
        minting: list[Callable[[], Awaitable[object]]] = [
            lambda: silent.mint_x509(at.request()),
            lambda: silent.mint_jwt(jwt),
        ]
        for mint in minting:
            with pytest.raises(AuthorityUnavailable, match=r"^TRUST_BEHIND: the signer has not sent"):
                await mint()
        assert at.signer.mints
        assert at.signer.jwts
        silent._held.take(Trust(at.signer.bundle(100)))
        for mint in minting:
            await mint()
        await silent.connection.close()

    on_stage(tmp_path, play)


def test_a_mint_waits_for_no_number_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waited(_: int) -> Awaitable[int]:
        raise AssertionError("it waits for a number that cannot come")

    async def play(at: Scene) -> None:
        monkeypatch.setattr(at.authority.trust, "wait_beyond", waited)
        for sequence in (2**63, 2**64 - 1):
            at.signer.mint.sequence = sequence
            assert (await at.authority.mint_x509(at.request())).trust == Trust(at.signer.bundle(100))

    on_stage(tmp_path, play)


def test_an_agent_that_started_by_a_false_file_hears_the_signer(tmp_path: Path) -> None:
    """Over the network, from the start to what is reported."""

    async def play(at: Scene) -> None:
        false = authority(at.clock.now())
        at.bundle_file.write_bytes(at.signer.bundle(2**70, at.signer.authority, false).to_jwks())
        started = SignerAuthority(
            replace(at.authority._settings, run_dir=tmp_path / "started"), at.clock, random.Random(1)
        )
        started.load()
        following = asyncio.create_task(started.run())
        try:
            await at.until(lambda: started.trust.current == Trust(at.signer.bundle(100)))
            trust = started.trust.current
            assert trust is not None
            started.hold(trust, {})
            await at.until(lambda: (r := at.signer.reports.current) is not None and r.acknowledged_sequence == 100)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    on_stage(tmp_path, play)


def unproven(at: Rig, sequence: int, *more: X509Authority) -> Trust:
    """What the bundle file says: not the JWT keys that the authority has, and `more` authorities."""
    bundle = bundle_of(at.authority.x509, sequence=sequence)
    roots = (*bundle.x509_authorities, *(each.chain[-1] for each in more))
    trust = Trust(replace(bundle, x509_authorities=roots), proven=False)
    at.authority.trust.publish(trust)
    return trust


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_what_no_signer_said_reaches_no_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.workload.registry.REPORT_SECONDS", 0)

    async def main() -> None:
        async with rig(tmp_path) as first:
            before = first.authority.trust.current
            await first.open(first.volume("spiffe", API))
        async with rig(tmp_path, first) as second:
            unproven(second, 2**62, root(second.clock.at))
            async with second.looping(second.registry.follow_trust, second.registry.report_holdings):
                workload = await second.adopt(second.volume("spiffe", API))
                await settled()
                assert workload.feed.current is not None
                assert workload.feed.current.trust == before
                assert list(workload.jwt_files) == [API.name], "a file that lacks the keys took a good token away"
                due = second.registry.scheduler.due("csi-spiffe")
                assert due is not None
                assert due > second.clock.at
                assert all(trust.proven for trust, _ in second.authority.held)
                assert before is not None
                lower = Trust(replace(before.bundle, sequence=2))
                second.authority.trust.publish(lower)
                await second.until(lambda: workload.directory.read().identity.trust == lower)
                await second.until(lambda: lower in [trust for trust, _ in second.authority.held])

    asyncio.run(main())


def test_files_with_a_number_that_cannot_be_are_written_anew_by_the_signers_word(tmp_path: Path) -> None:
    """As an agent from before wrote them, which had believed a false file."""

    async def main() -> None:
        async with rig(tmp_path) as first:
            good = first.authority.trust.current
            assert good is not None
            false = replace(
                good.bundle,
                x509_authorities=(*good.bundle.x509_authorities, *root(first.clock.at).chain),
                sequence=2**62,
            )
            first.authority.trust.publish(Trust(false))
            await first.open(first.volume())
        first.authority.trust.publish(replace(good, proven=False))
        async with rig(tmp_path, first) as second:
            workload = await second.adopt(second.volume())
            async with second.looping(second.registry.follow_trust, second.registry.scheduler.run):
                second.authority.trust.publish(good)
                await second.until(lambda: workload.directory.read().identity.trust == good)
            assert len(second.authority.asked) == 1, "nothing was minted for it"

    asyncio.run(main())
