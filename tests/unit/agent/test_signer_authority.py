"""The agent's side of the signer's API, against a real gRPC server: what it asks, trusts, keeps and passes on."""

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from agent import config
from agent.authority import calls
from agent.authority import signer as signer_authority
from agent.authority.connection import SignerSettings
from agent.authority.protocol import JwtRequest, MintRequest
from agent.authority.signer import SignerAuthority
from agent.authority.trust_stream import TrustStream
from agent.errors import AuthorityDamaged, AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload.registry import WorkloadRegistry
from csi.journal import Journal
from csi.model import PodRef, PodToken, Volume
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.settings import InvalidSetting
from signer.errors import Reason
from signer.front.statuses import STATUS_CODES
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.identity import Trust
from svid.keys import KeyAlgorithm, key_to_der, public_bytes
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid
from tests.fake_signer import TRUST_DOMAIN, FakeSigner, Mint, Refusal, authority, key_identifier

AUDIENCE = "signer.podsvid.io"
UID = "0b6a9a4e-6a8e-4c1c-9f3c-222222222222"
POD = PodRef("default", "web-1", UID, "web")
SPIFFE_ID = SpiffeId.from_segments(TRUST_DOMAIN, "ns", "default", "sa", "web")
AGENT_TOKEN, POD_TOKEN = "the-agents-token", "the-pods-token"
GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "RECONNECT", "the stream's time is over; open it again")


class StepClock:
    """Real time, as TLS needs it, and steps on top."""

    def __init__(self) -> None:
        self.step = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.step


class Least(random.Random):
    """The least of each range, so that nothing waits; remembers the ranges."""

    def __init__(self) -> None:
        super().__init__(1)
        self.ranges: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.ranges.append((a, b))
        return a


class Scene:
    """A signer, and an authority that is connected to it."""

    def __init__(self, base: Path, signer: FakeSigner, clock: StepClock) -> None:
        self.base = base
        self.signer = signer
        self.clock = clock
        self.rng = Least()
        self.bundle_file = base / "bundle.json"
        self.token_file = base / "token"
        self.authority = SignerAuthority(
            SignerSettings(signer.address, self.bundle_file, self.token_file, AUDIENCE, TRUST_DOMAIN, "1.2.3"),
            clock,
            self.rng,
        )

    def request(self, token: PodToken | None = None, **fields: object) -> MintRequest:
        return MintRequest(POD, token or self.token(), KeyAlgorithm.EC_P256.generate(), **fields)  # type: ignore[arg-type]

    def token(self, life: timedelta = timedelta(minutes=10)) -> PodToken:
        expiry = f"{self.clock.now() + life:%Y-%m-%dT%H:%M:%SZ}"
        return PodToken(json.dumps({AUDIENCE: {"token": POD_TOKEN, "expirationTimestamp": expiry}}))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def scene(base: Path, *, server_name: str = "", connect: bool = True, pem: bool = False) -> AsyncIterator[Scene]:
    clock = StepClock()
    signer = FakeSigner(clock, **({"server_name": server_name} if server_name else {}))
    signer.publish(signer.bundle(100))
    await signer.start()
    found = Scene(base, signer, clock)
    bundle = signer.bundle(100)
    found.bundle_file.write_bytes(bundle.to_pem() if pem else bundle.to_jwks())
    found.token_file.write_text(AGENT_TOKEN + "\n", encoding="ascii")
    found.authority.load()
    running = asyncio.create_task(found.authority.run())
    try:
        if connect:
            await found.until(lambda: found.authority.contact.connected)
        yield found
        assert not running.done(), "the loop ended by itself"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await signer.stop()


Play = Callable[[Scene], Awaitable[None]]


def on_stage(base: Path, play: Play, *, server_name: str = "", connect: bool = True, pem: bool = False) -> None:
    async def main() -> None:
        async with scene(base, server_name=server_name, connect=connect, pem=pem) as found:
            await play(found)

    asyncio.run(main())


def test_a_mint_proves_the_key_and_names_the_pod(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint = Mint(hint="internal", notice="ttl was capped", federates_with=("partner.test",))
        request = at.request(ttl=timedelta(minutes=30), dns_names=("web.default.svc",))
        minted = await at.authority.mint_x509(request)
        assert minted.spiffe_id == SPIFFE_ID
        assert check_x509_svid(minted.chain, minted.trust.bundle, at.clock.now()) == SPIFFE_ID
        assert public_bytes(request.public_key) == public_bytes(minted.chain[0].public_key())  # type: ignore[arg-type]
        assert minted.renewal.start > at.clock.now()
        assert (minted.hint, minted.notice, minted.federates_with) == (
            "internal",
            "ttl was capped",
            (TrustDomain("partner.test"),),
        )
        (sent,) = at.signer.mints
        assert (sent.pod.namespace, sent.pod.name, sent.pod.uid) == ("default", "web-1", UID)
        assert (sent.pod_token, sent.ttl_seconds, list(sent.dns_names)) == (POD_TOKEN, 1800, ["web.default.svc"])
        csr = x509.load_der_x509_csr(sent.csr)
        assert csr.is_signature_valid
        assert not list(csr.subject)
        assert not list(csr.extensions)
        secret = request.key.private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr]
        assert secret in key_to_der(request.key)
        assert secret not in sent.SerializeToString()
        assert "key" not in repr(request)

    on_stage(tmp_path, play)


def test_a_jwt_svid(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        minted = await at.authority.mint_jwt(JwtRequest(POD, at.token(), SPIFFE_ID, ("api", "db")))
        assert minted.svid.spiffe_id == SPIFFE_ID
        assert minted.svid.audiences == ("api", "db")
        assert minted.reusable
        (sent,) = at.signer.jwts
        assert (sent.pod_token, sent.spiffe_id, list(sent.audiences)) == (POD_TOKEN, str(SPIFFE_ID), ["api", "db"])

    on_stage(tmp_path, play)


def test_the_agents_token_is_read_anew_for_each_call(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.authority.mint_x509(at.request())
        at.token_file.write_text("a-newer-one", encoding="ascii")
        await at.authority.mint_x509(at.request())
        assert at.signer.bearers == [f"Bearer {AGENT_TOKEN}", f"Bearer {AGENT_TOKEN}", "Bearer a-newer-one"]

    on_stage(tmp_path, play)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines", b"a\x01b", b"\xff\xfe", "é".encode()])
def test_an_agent_token_that_is_none_is_named_and_ends_nothing(tmp_path: Path, content: bytes | None) -> None:
    async def play(at: Scene) -> None:
        if content is None:
            at.token_file.unlink()
        else:
            at.token_file.write_bytes(content)
        with pytest.raises(
            AuthorityUnavailable, match=f"AGENT_TOKEN_MISSING: agent_token_file {at.token_file}.*{AUDIENCE}"
        ):
            await at.authority.mint_x509(at.request())
        # The stream's loop meets the same file and goes on when it is good again.
        at.signer.end_streams(GONE)
        await at.until(lambda: not at.authority.contact.connected)
        at.token_file.write_text(AGENT_TOKEN, encoding="ascii")
        await at.until(lambda: at.authority.contact.connected)

    on_stage(tmp_path, play)


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_keeps_its_reason_code_and_says_whether_to_try_again(tmp_path: Path, reason: Reason) -> None:
    waiting_helps = reason in (
        *(each for each in Reason if STATUS_CODES[each] is grpc.StatusCode.UNAVAILABLE),
        *(each for each in Reason if STATUS_CODES[each] is grpc.StatusCode.RESOURCE_EXHAUSTED),
        *(each for each in Reason if each.name.startswith("AGENT_TOKEN_")),
        Reason.INTERNAL,
    )

    async def play(at: Scene) -> None:
        at.signer.mint.refusals = [Refusal(STATUS_CODES[reason], reason.value, "look there")] * 2
        expected = AuthorityUnavailable if waiting_helps else AuthorityRefused
        with pytest.raises(expected, match=f"^{reason.value}: look there$"):
            await at.authority.mint_x509(at.request())
        with pytest.raises(expected, match=f"^{reason.value}: look there$"):
            await at.authority.mint_jwt(JwtRequest(POD, at.token(), SPIFFE_ID, ("api",)))

    on_stage(tmp_path, play)


def test_a_signer_that_is_busy_is_asked_again_when_it_said_so_and_not_before(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        later = timedelta(milliseconds=150)
        busy = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slower", later)
        at.signer.mint.refusals = [busy, busy]
        at.signer.arrivals.clear()
        await at.authority.mint_x509(at.request())
        first, second, third = at.signer.arrivals
        assert second - first >= later.total_seconds()
        assert third - second >= later.total_seconds()
        # Not all at the same instant: up to twice as long.
        assert (1.0, 2.0) in at.rng.ranges
        # Longer than a call may take: said at once.
        long = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", "much later", timedelta(minutes=5))
        at.signer.mint.refusals = [long]
        with pytest.raises(AuthorityUnavailable, match=r"^BUSY: much later$"):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


def test_a_signer_that_only_ever_says_later_is_the_reason_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.5)

    async def play(at: Scene) -> None:
        slower = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slower", timedelta(microseconds=1))
        at.signer.mint.refusals = [slower] * 100_000
        with pytest.raises(AuthorityUnavailable, match=r"^RATE_LIMITED: slower$"):
            await at.authority.mint_x509(at.request())
        # Nor is one that says "at once" asked as fast as it answers.
        assert len(at.signer.mints) < 50
        # Nor does a last attempt that gets no answer hide why there were so many.
        at.signer.mint.refusals, at.signer.mint.gate = [slower], asyncio.Event()
        with pytest.raises(AuthorityUnavailable, match=r"^RATE_LIMITED: slower$"):
            await at.authority.mint_x509(at.request())
        at.signer.mint.gate.set()

    on_stage(tmp_path, play)


def test_a_signer_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.5)

    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        with pytest.raises(
            AuthorityUnavailable, match=f"^SIGNER_UNREACHABLE: the signer at {at.signer.address} did not"
        ):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


def test_a_mint_outlasts_a_signers_restart(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        minting = asyncio.create_task(at.authority.mint_x509(at.request()))
        await asyncio.sleep(0)
        await at.signer.start()
        assert (await minting).spiffe_id == SPIFFE_ID

    on_stage(tmp_path, play)


def test_a_mint_that_is_cancelled_ends(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.gate = asyncio.Event()
        minting = asyncio.create_task(at.authority.mint_x509(at.request()))
        await at.until(lambda: at.signer.mints)
        minting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await minting
        at.signer.mint.gate.set()
        assert len(at.signer.mints) == 1

    on_stage(tmp_path, play)


@pytest.mark.parametrize("chain", [b"", b"\x30", b"no certificate"])
def test_a_chain_that_is_none(tmp_path: Path, chain: bytes) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint.chain = chain
        with pytest.raises(AuthorityRefused, match="the signer's answer cannot be used"):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


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


def test_the_signers_next_certificate_is_trusted_by_what_it_sent(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        old, new = at.signer.authority, authority(at.clock.now())
        at.signer.publish(at.signer.bundle(101, old, new))
        await at.until(lambda: (at.authority.trust.current or Trust(at.signer.bundle(0))).bundle.sequence == 101)
        at.signer.authority = new
        at.signer.publish(at.signer.bundle(102, new))
        await at.until(lambda: (at.authority.trust.current or Trust(at.signer.bundle(0))).bundle.sequence == 102)
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        await at.signer.start(certificate_of=new)
        await at.until(lambda: at.authority.contact.connected)
        # The old authority is no longer trusted, so whoever has its key is not the signer.
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        streams, bearers = at.signer.streams, len(at.signer.bearers)
        await at.signer.start(certificate_of=old)
        await at.until(lambda: "CERTIFICATE_VERIFY_FAILED" in at.authority.contact.last_error)
        assert (at.signer.streams, len(at.signer.bearers)) == (streams, bearers), "the token went to a stranger"

    on_stage(tmp_path, play)


def test_an_agent_that_was_cut_off_for_too_long_goes_by_the_bundle_file(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        at.signer.authority = new = authority(at.clock.now())
        at.signer.publish(at.signer.bundle(150, new))
        await at.signer.start()
        await at.until(lambda: "CERTIFICATE_VERIFY_FAILED" in at.authority.contact.last_error)
        assert not at.authority.contact.connected
        newer = tmp_path / "newer"
        newer.write_bytes(at.signer.bundle(150, new).to_jwks())
        os.replace(newer, at.bundle_file)
        await at.until(lambda: at.authority.contact.connected)

    on_stage(tmp_path, play)


def test_a_pem_bundle_has_no_sequence_and_serves_after_failures(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        at.signer.authority = new = authority(at.clock.now())
        at.signer.publish(at.signer.bundle(150, new))
        at.bundle_file.write_bytes(new.bundle.to_pem())
        await at.signer.start()
        await at.until(lambda: at.authority.contact.connected)

    on_stage(tmp_path, play, pem=True)


def test_a_server_of_the_trust_domain_that_is_not_the_signer_gets_no_token(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.until(lambda: at.authority.contact.failures > 2)
        assert not at.authority.contact.connected
        assert not at.signer.bearers

    on_stage(tmp_path, play, server_name="web.default.svc", connect=False)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"nothing",
        TrustBundle(TRUST_DOMAIN, sequence=5).to_jwks(),
    ],
)
def test_a_bundle_file_that_authenticates_nobody_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bundle"
    if content is not None:
        path.write_bytes(content)
    found = SignerAuthority(
        SignerSettings("127.0.0.1:1", path, tmp_path / "token", AUDIENCE, TRUST_DOMAIN), StepClock(), random.Random(1)
    )
    with pytest.raises(AuthorityDamaged, match=f"signer_bundle {path} cannot be used"):
        found.load()
    assert found.trust.current is None


@pytest.mark.parametrize("content", [b"", b"{", TrustBundle(TRUST_DOMAIN, sequence=500).to_jwks()])
def test_a_bundle_file_that_goes_bad_changes_nothing(tmp_path: Path, content: bytes) -> None:
    """grpc trusts the host's public roots where it is given none."""

    async def play(at: Scene) -> None:
        roots = at.authority.connection.newest_roots()
        bad = tmp_path / "bad"
        bad.write_bytes(content)
        os.replace(bad, at.bundle_file)
        assert at.authority.connection.newest_roots() == roots == at.signer.bundle(100).to_pem()

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "POD_TOKEN_MISSING: kubelet has not passed a token of this pod; the CSIDriver object needs tokenReq"),
        ("", "POD_TOKEN_MISSING: kubelet passed no token of audience"),
        ("[" * 100_000, "POD_TOKEN_MISSING"),
        ('{"other": {"token": "t", "expirationTimestamp": "2999-01-01T00:00:00Z"}}', "POD_TOKEN_MISSING"),
        (f'{{"{AUDIENCE}": {{"token": "t", "expirationTimestamp": "2999-01-01T00:00:00"}}}}', "POD_TOKEN_MISSING"),
        (f'{{"{AUDIENCE}": {{"token": "t", "expirationTimestamp": "never"}}}}', "POD_TOKEN_MISSING"),
        (
            f'{{"{AUDIENCE}": {{"token": "\\ud800", "expirationTimestamp": "2999-01-01T00:00:00Z"}}}}',
            "POD_TOKEN_MISSING",
        ),
        (f'{{"{AUDIENCE}": {{"token": ["t"], "expirationTimestamp": "2999-01-01T00:00:00Z"}}}}', "POD_TOKEN_MISSING"),
        (f'{{"{AUDIENCE}": {{"token": "t", "expirationTimestamp": "2020-01-01T00:00:00Z"}}}}', "POD_TOKEN_EXPIRED"),
    ],
)
def test_a_pod_without_a_usable_token_says_what_to_check(tmp_path: Path, text: str | None, sentence: str) -> None:
    async def play(at: Scene) -> None:
        request = MintRequest(POD, None if text is None else PodToken(text), KeyAlgorithm.EC_P256.generate())
        with pytest.raises(AuthorityUnavailable, match=sentence):
            await at.authority.mint_x509(request)
        assert not at.signer.mints

    on_stage(tmp_path, play, connect=False)


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.sampled_from([AUDIENCE, "token", "expirationTimestamp"]), inner)
            ),
        ).map(json.dumps),
        st.tuples(st.text(), st.text()).map(
            lambda pair: json.dumps({AUDIENCE: {"token": pair[0], "expirationTimestamp": pair[1]}})
        ),
        st.text().map(
            lambda token: json.dumps({AUDIENCE: {"token": token, "expirationTimestamp": "2999-01-01T00:00:00Z"}})
        ),
    )
)
def test_whatever_stands_in_a_pods_token_it_is_one_or_it_is_named_and_never_quoted(text: str) -> None:
    nowhere = SignerSettings("127.0.0.1:1", Path("/none"), Path("/none"), AUDIENCE, TRUST_DOMAIN)
    found = SignerAuthority(nowhere, StepClock(), random.Random(1))
    try:
        token = found._pod_token(PodToken(text))
    except AuthorityUnavailable as error:
        assert len(text) < 12 or text not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None
    else:
        assert token
        assert token in json.loads(text)[AUDIENCE]["token"]
        signer_pb2.MintX509SVIDRequest(pod_token=token)


def test_tokens_and_keys_stand_in_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def play(at: Scene) -> None:
        denied = Refusal(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "denied")
        at.signer.mint.refusals = [denied, denied]
        request = at.request()
        for minting in (
            at.authority.mint_x509(request),
            at.authority.mint_jwt(JwtRequest(POD, request.token, SPIFFE_ID, ("api",))),
        ):
            with pytest.raises(AuthorityRefused) as caught:
                await minting
            said.extend((str(caught.value), repr(caught.value), repr(request)))
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)

    on_stage(tmp_path, play)
    said.append(caplog.text)
    said.extend(repr(vars(record)) for record in caplog.records)
    assert not [text for text in said if AGENT_TOKEN in text or POD_TOKEN in text]


@pytest.mark.parametrize("ahead", [timedelta(minutes=40), timedelta(minutes=28), timedelta(minutes=-20)])
def test_clocks_that_differ_make_no_storm_of_renewals(tmp_path: Path, ahead: timedelta) -> None:
    """The window is by the signer's clock. Where it has passed by ours, the usual part of what is left counts."""

    async def play(at: Scene) -> None:
        at.signer.mint.skew = -ahead
        now = at.clock.now()
        if ahead < timedelta(0):
            # The certificate itself is of the future then, which the workloads' check says; the window stands.
            minted = await at.authority.mint_x509(at.request())
            assert minted.renewal.start > now
            return
        minted = await at.authority.mint_x509(at.request())
        left = minted.chain[0].not_valid_after_utc - now
        assert minted.renewal.start >= now + left * 0.35
        assert minted.renewal.end <= now + left * 0.55
        jwt = await at.authority.mint_jwt(JwtRequest(POD, at.token(), SPIFFE_ID, ("api",)))
        assert jwt.renewal.start >= now + left * 0.35

    on_stage(tmp_path, play)


@asynccontextmanager
async def registry(at: Scene) -> AsyncIterator[tuple[WorkloadRegistry, Volume, VolumeDirectory]]:
    """The workloads over that authority, and a volume to be opened."""
    target = at.base / "pods" / UID / "volumes" / "kubernetes.io~csi" / "spiffe" / "mount"
    target.mkdir(parents=True)
    volume = Volume("csi-1", str(target), target.relative_to(at.base / "pods").parts, POD, None)
    directory = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), volume)
    with ThreadPoolExecutor(1) as executor:
        journal = Journal(at.base / "journal", str(at.base))
        found = WorkloadRegistry(at.authority, journal, Blocking(executor), at.clock, random.Random(1), Metrics())
        loops = [
            asyncio.create_task(each())
            for each in (
                found.scheduler.run,
                found.follow_trust,
                found.follow_early_renewals,
                found.report_holdings,
            )
        ]
        try:
            yield found, volume, directory
            assert not [each for each in loops if each.done()]
        finally:
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await found.stop()
            directory.close()


def test_a_bundle_is_acknowledged_when_the_files_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.workload.registry.REPORT_SECONDS", 0.01)

    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            await workloads.open(volume, directory, await workloads.issue(volume, at.token()))
            first = at.signer.authority
            await at.until(lambda: acknowledged(at) == (100, {key_identifier(first): 1}))
            second = authority(at.clock.now())
            broken = True
            write = VolumeDirectory.write

            def writing(self: VolumeDirectory, *arguments: object) -> None:
                if broken:
                    raise OSError(28, "No space left on device")
                write(self, *arguments)  # type: ignore[arg-type]

            monkeypatch.setattr(VolumeDirectory, "write", writing)
            at.signer.publish(at.signer.bundle(101, first, second))
            await at.until(lambda: workloads.scheduler.failures(volume.id) > 0)
            assert acknowledged(at)[0] == 100, "acknowledged although the files do not hold it"
            broken = False
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: acknowledged(at) == (101, {key_identifier(first): 1}))
            assert directory.read().identity.bundle == at.signer.bundle(101, first, second)

    def acknowledged(at: Scene) -> tuple[int, dict[str, int]]:
        report = at.signer.reports.current or signer_pb2.WatchTrustRequest()
        return report.acknowledged_sequence, {each.authority_id: each.svids for each in report.in_use}

    on_stage(tmp_path, play)


def test_an_early_renewal_is_drawn_once_in_its_window_and_done(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await workloads.issue(volume, at.token())
            await workloads.open(volume, directory, issued)
            workloads.republished(volume.id, at.token())
            old, new = at.signer.authority, authority(at.clock.now())
            at.signer.authority = new
            bundle = at.signer.bundle(101, old, new)
            now = at.clock.now()
            window = (now + timedelta(minutes=2), now + timedelta(minutes=4))
            # Another authority's directive is nothing to this SVID.
            at.signer.publish(bundle, {"ab" * 20: window})
            await at.until(lambda: at.authority.early_renewals.current)
            await at.until(lambda: workloads.scheduler.due(volume.id) == issued.renew_at)
            name = key_identifier(old)
            at.signer.publish(bundle, {name: window})
            await at.until(lambda: (workloads.scheduler.due(volume.id) or issued.renew_at) < issued.renew_at)
            drawn = workloads.scheduler.due(volume.id)
            assert drawn is not None
            assert window[0] - timedelta(seconds=1) <= drawn <= window[1]
            # Sent again beside others, as each answer has all directives that are in force.
            for count in range(1, 16):
                at.signer.publish(bundle, {name: window, f"{count:040x}": window})
                await at.until(lambda count=count: early(at) == {name, f"{count:040x}"})  # type: ignore[misc]
                await asyncio.sleep(0)
            await at.until(lambda: workloads.scheduler.due(volume.id) is not None)
            assert workloads.scheduler.due(volume.id) == drawn
            at.clock.step = timedelta(minutes=4)
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: directory.read().identity.default.authority_id == key_identifier(new))
            assert len(at.signer.mints) == 2

    def early(at: Scene) -> set[str]:
        return {each.authority_id for each in at.authority.early_renewals.current or ()}

    on_stage(tmp_path, play)


def test_files_hold_a_trust_bundle_at_once_though_directives_came_with_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await workloads.issue(volume, at.token())
            await workloads.open(volume, directory, issued)
            old, new = at.signer.authority, authority(at.clock.now())
            bundle = at.signer.bundle(101, old, new)
            now = at.clock.now()
            at.signer.publish(bundle, {key_identifier(old): (now + timedelta(minutes=2), now + timedelta(minutes=4))})
            await at.until(lambda: (workloads.scheduler.due(volume.id) or issued.renew_at) < issued.renew_at)
            await at.until(lambda: directory.read().identity.bundle == bundle)
            assert len(at.signer.mints) == 1

    on_stage(tmp_path, play)


def test_files_hold_a_trust_bundle_at_once_though_a_mint_is_under_way(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await workloads.issue(volume, at.token())
            await workloads.open(volume, directory, issued)
            at.signer.mint.gate = asyncio.Event()
            at.clock.step = issued.renew_at - at.clock.now() + timedelta(seconds=1)
            workloads.republished(volume.id, at.token())
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: len(at.signer.mints) == 2)
            bundle = at.signer.bundle(101, at.signer.authority, authority(at.clock.now()))
            at.signer.publish(bundle)
            await at.until(lambda: directory.read().identity.bundle == bundle)
            assert workloads.scheduler.failures(volume.id) == 0, "the mint's end was waited for"
            at.signer.mint.gate.set()

    on_stage(tmp_path, play)


def test_a_renewal_that_failed_for_want_of_a_token_is_tried_again_when_kubelet_brings_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await workloads.issue(volume, at.token())
            await workloads.open(volume, directory, issued)
            at.clock.step = timedelta(minutes=31)
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: workloads.scheduler.failures(volume.id) >= 1)
            # Far beyond this test's patience; nothing but the token brings it forward.
            workloads.scheduler.schedule(volume.id, at.clock.now() + timedelta(hours=1))
            workloads.republished(volume.id, at.token())
            await at.until(lambda: directory.read().identity.default.serial != issued.identity.default.serial)
            await at.until(lambda: workloads.scheduler.failures(volume.id) == 0)

    on_stage(tmp_path, play)


def test_running_pods_keep_what_they_have_while_the_signer_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.2)

    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await workloads.issue(volume, at.token())
            await workloads.open(volume, directory, issued)
            await at.signer.stop()
            at.clock.step = timedelta(minutes=31)
            workloads.republished(volume.id, at.token())
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: workloads.scheduler.failures(volume.id) > 0)
            assert directory.read().identity.default.serial == issued.identity.default.serial
            assert workloads.condition(volume.id).abnormal
            ends = workloads.earliest_expiry()
            assert ends == issued.identity.expires_at.timestamp() > time.time()

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"signer_address": None}, "needs signer_address, signer_bundle and agent_token_file"),
        ({"signer_bundle": None}, "needs signer_address, signer_bundle and agent_token_file"),
        ({"agent_token_file": None}, "needs signer_address, signer_bundle and agent_token_file"),
        ({"signer_address": "signer"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_address": ":8443"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_address": "signer:0"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_address": "signer:65536"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_bundle": "bundle.json"}, "signer_bundle .*accepted: an absolute path"),
        ({"signer_audience": "two words"}, "signer_audience .*accepted: printable characters"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, str | None], sentence: str) -> None:
    given = {
        "authority": "signer",
        "signer_address": "podsvid-signer.podsvid.svc:8443",
        "signer_bundle": "/bundle/bundle.json",
        "agent_token_file": "/token/token",
        "trust_domain": "example.org",
    }

    def load(values: dict[str, str | None]) -> config.AgentConfig:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
        parser = argparse.ArgumentParser()
        config.add_arguments(parser)
        return config.load(parser.parse_args(flags), {})

    assert load(dict(given)).signer_audience == AUDIENCE
    with pytest.raises(InvalidSetting, match=sentence):
        load({**given, **changed})
