"""The trust stream of the signer's client: what it takes, reports and draws from it, and outages."""

import asyncio
import gc
import logging
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from agent.authority import signer as signer_authority
from agent.authority.trust_stream import TrustStream
from agent.errors import AuthorityUnavailable
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.identity import Trust
from svid.spiffeid import TrustDomain
from svid.x509svid import check_x509_svid
from tests.fake_signer import TRUST_DOMAIN, Refusal, authority
from tests.unit.agent.signer_scene import GONE, SPIFFE_ID, Scene, on_stage


def test_trust_is_what_the_signer_sent_last(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        partner = TrustBundle(TrustDomain("partner.test"), authority(at.clock.now(), TrustDomain("partner.test")).chain)
        second = authority(at.clock.now())
        newer = at.signer.bundle(101, at.signer.authority, second)
        at.signer.publish([newer, partner], issues_jwt=False)
        await at.until(lambda: at.authority.trust.current == Trust(newer, (partner,)))
        assert not at.authority.issues_jwt
        # Federated bundles change without a change of the own authorities.
        at.signer.publish(newer)
        await at.until(lambda: at.authority.trust.current == Trust(newer))
        assert at.signer.streams == 1

    on_stage(tmp_path, play)


@pytest.mark.parametrize("kind", ["older", "other", "empty", "broken", "late", "none"])
def test_an_answer_that_is_no_better_than_what_is_there_changes_nothing(tmp_path: Path, kind: str) -> None:
    async def play(at: Scene) -> None:
        second = authority(at.clock.now())
        before = at.authority.trust.current
        answer = signer_pb2.WatchTrustResponse(sequence=300, issues_jwt=True)
        if kind == "older":
            answer.bundles.add(trust_domain="example.org", jwks=at.signer.bundle(99, second).to_jwks())
        elif kind == "other":
            answer.bundles.add(
                trust_domain="other.test",
                jwks=TrustBundle(TrustDomain("other.test"), second.chain, sequence=300).to_jwks(),
            )
        elif kind == "empty":
            answer.bundles.add(trust_domain="example.org", jwks=TrustBundle(TRUST_DOMAIN, sequence=300).to_jwks())
        elif kind == "broken":
            answer.bundles.add(trust_domain="example.org", jwks=b"{")
        elif kind == "late":
            answer.bundles.add(trust_domain="example.org", jwks=at.signer.bundle(300).to_jwks())
            getattr(answer.renew.add(authority_id="ab"), "from").seconds = 10**15
        streams, sent = at.signer.streams, at.signer.sent
        at.signer.send(answer)
        # The stream's end comes after what was sent in it.
        await at.until(lambda: at.signer.sent > sent)
        at.signer.end_streams()
        await at.until(lambda: at.signer.streams > streams)
        assert at.authority.trust.current == before

    on_stage(tmp_path, play)


def test_a_mint_waits_for_the_trust_that_verifies_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        old, new = at.signer.authority, authority(at.clock.now())
        at.signer.authority = new
        at.signer.mint.sequence = 101
        minting = asyncio.create_task(at.authority.mint_x509(at.request()))
        await at.until(lambda: at.signer.mints)
        at.signer.publish(at.signer.bundle(101, old, new))
        minted = await minting
        assert minted.trust.bundle.sequence == 101
        assert check_x509_svid(minted.chain, minted.trust.bundle, at.clock.now()) == SPIFFE_ID

    on_stage(tmp_path, play)


def test_an_svid_whose_trust_does_not_come_is_to_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signer_authority, "TRUST_SECONDS", 0.05)

    async def play(at: Scene) -> None:
        # The bundle that is there verifies the SVID as well: no reason to do without it.
        at.signer.mint.sequence = 101
        assert (await at.authority.mint_x509(at.request())).trust.bundle.sequence == 100
        at.signer.authority = authority(at.clock.now())
        with pytest.raises(AuthorityUnavailable, match=r"^TRUST_BEHIND: "):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


def test_what_the_workloads_hold_is_reported_now_and_first_on_the_next_stream(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.until(lambda: at.signer.first_reports)
        assert at.signer.first_reports[0].acknowledged_sequence == 0
        assert at.signer.first_reports[0].agent_version == "1.2.3"
        trust = at.authority.trust.current
        assert trust is not None
        for count in range(1, 6):
            at.authority.hold(trust, {"aa": count, "bb": 2})
            await at.until(lambda count=count: _in_use(at) == {"aa": count, "bb": 2})  # type: ignore[misc]
        version = at.signer.reports.version
        # Nothing new is nothing to report.
        at.authority.hold(trust, {"bb": 2, "aa": 5})
        for _ in range(10):
            await asyncio.sleep(0)
        at.authority.hold(trust, {"aa": 6, "bb": 2})
        await at.until(lambda: _in_use(at) == {"aa": 6, "bb": 2})
        assert at.signer.reports.version == version + 1
        version += 1
        at.signer.end_streams(GONE)
        await at.until(lambda: len(at.signer.first_reports) == 2)
        assert at.signer.reports.version == version + 1, "the same was reported twice"
        again = at.signer.first_reports[1]
        assert again.acknowledged_sequence == 100
        assert {each.authority_id: each.svids for each in again.in_use} == {"aa": 6, "bb": 2}

    def _in_use(at: Scene) -> dict[str, int]:
        report = at.signer.reports.current
        return {each.authority_id: each.svids for each in report.in_use} if report else {}

    on_stage(tmp_path, play)


def test_early_renewals_are_those_of_the_last_answer(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        now = at.clock.now().replace(microsecond=0)
        window = (now, now + timedelta(minutes=10))
        at.signer.publish(at.signer.bundle(101), {"ab": window})
        await at.until(lambda: at.authority.early_renewals.current)
        (early,) = at.authority.early_renewals.current or ()
        assert (early.authority_id, early.window.start, early.window.end) == ("ab", *window)
        at.signer.publish(at.signer.bundle(102))
        await at.until(lambda: at.authority.early_renewals.current == ())

    on_stage(tmp_path, play)


def test_while_the_signer_is_away_trust_stays_and_it_shows_since_when(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(at: Scene) -> None:
        before = at.authority.trust.current
        assert at.authority.contact.away_since is None
        caplog.set_level(logging.INFO, "podsvid.authority")
        lost_at = at.clock.now()
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        assert at.authority.trust.current == before
        assert at.authority.contact.away_since is not None
        assert at.authority.contact.away_since >= lost_at
        since = at.authority.contact.away_since
        await at.until(lambda: len(at.rng.ranges) > 12)
        assert at.authority.contact.away_since == since
        assert [each.message for each in caplog.records] == ["signer lost; SVIDs are kept"]
        await at.signer.start()
        await at.until(lambda: at.authority.contact.connected)
        assert at.authority.contact.away_since is None
        assert [each.message for each in caplog.records][-1] == "signer connected"

    on_stage(tmp_path, play)


def test_an_outage_leaves_nothing_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: at.authority.contact.failures > 100)
        gc.collect()
        await asyncio.sleep(0)
        assert not [each for each in asyncio.all_tasks() if "consume" in repr(each)]
        assert {each.name for each in caplog.records} == {"podsvid.authority"}

    on_stage(tmp_path, play)


def test_the_loop_ends_when_told_whatever_its_call_answers_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc answers a cancelled call with the status it has, when it has one already."""

    async def play(at: Scene) -> None:
        entered, answered = asyncio.Event(), False

        async def watch(self: TrustStream) -> None:
            nonlocal answered
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if answered:
                    raise
                answered, nothing = True, grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing) from None

        monkeypatch.setattr(TrustStream, "_watch", watch)
        running = asyncio.create_task(at.authority.run())
        await entered.wait()
        running.cancel()
        await asyncio.wait([running], timeout=5)
        assert running.cancelled()

    on_stage(tmp_path, play)


def test_attempts_spread_over_times_that_double_up_to_a_minute(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.rng.ranges.clear()
        at.signer.watch_refusals = [Refusal(grpc.StatusCode.UNAVAILABLE)] * 8
        at.signer.end_streams(GONE)
        await at.until(lambda: at.signer.streams > 9 and at.authority.contact.connected)
        delays = [each for each in at.rng.ranges if each[0] == 0.0]
        assert delays == [(0.0, most) for most in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)]
        # A good answer starts from the beginning.
        at.rng.ranges.clear()
        at.signer.end_streams()
        await at.until(lambda: at.rng.ranges)
        assert at.rng.ranges[0] == (0.0, 2.0)

    on_stage(tmp_path, play)


def test_a_stream_whose_time_is_over_is_no_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play(at: Scene) -> None:
        caplog.set_level(logging.INFO, "podsvid.authority")
        for how in (GONE, None):
            streams = at.signer.streams
            at.signer.end_streams(how)
            await at.until(lambda streams=streams: at.signer.streams > streams)  # type: ignore[misc]
            # Answered as well: a stream that ends before it said anything is an outage.
            await at.until(lambda: at.authority.contact.failures == 0)
            assert at.authority.contact.away_since is None
        assert not caplog.records

    on_stage(tmp_path, play)
