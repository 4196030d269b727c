"""What the signer's client asks for, and what it makes of the answer: mints, refusals, retries."""

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from agent.authority import calls
from agent.authority.protocol import JwtRequest
from agent.errors import AuthorityDenied, AuthorityRefused, AuthorityUnavailable
from signer.errors import Reason
from signer.front.statuses import STATUS_CODES
from svid.keys import key_to_der, public_bytes
from svid.spiffeid import TrustDomain
from svid.x509svid import check_x509_svid
from tests.fake_signer import Mint, Refusal
from tests.unit.agent.signer_scene import AGENT_TOKEN, AUDIENCE, GONE, POD, POD_TOKEN, SPIFFE_ID, UID, Scene, on_stage


def test_a_mint_proves_the_key_and_names_the_pod(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        at.signer.mint = Mint(hint="internal", notice="ttl was capped", federates_with=("partner.test",))
        request = at.request(ttl=timedelta(minutes=30), ttl_text="30m", dns_names=("web.default.svc",))
        minted = await at.authority.mint_x509(request)
        assert minted.spiffe_id == SPIFFE_ID
        assert check_x509_svid(minted.chain, minted.trust.bundle, at.clock.now()) == SPIFFE_ID
        assert public_bytes(request.public_key) == public_bytes(minted.chain[0].public_key())  # type: ignore[arg-type]
        assert minted.renewal.start > at.clock.now()
        assert (minted.policy, minted.hint, minted.notice, minted.federates_with) == (
            "(default)",
            "internal",
            "ttl was capped",
            (TrustDomain("partner.test"),),
        )
        (sent,) = at.signer.mints
        assert (sent.pod.namespace, sent.pod.name, sent.pod.uid) == ("default", "web-1", UID)
        assert (sent.pod_token, sent.ttl_seconds, list(sent.dns_names)) == (POD_TOKEN, 1800, ["web.default.svc"])
        assert sent.ttl == "30m"
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
        # What is said of the agent's own token; and of proxies, which no agent hears.
        *(each for each in Reason if STATUS_CODES[each] is grpc.StatusCode.UNAUTHENTICATED),
        Reason.INTERNAL,
    )

    async def play(at: Scene) -> None:
        at.signer.mint.refusals = [Refusal(STATUS_CODES[reason], reason.value, "look there")] * 2
        expected = AuthorityUnavailable if waiting_helps else AuthorityRefused
        with pytest.raises(expected, match=f"^{reason.value}: look there$") as caught:
            await at.authority.mint_x509(at.request())
        # The others are about how it was asked for, or pass: what a pod has stays its own.
        assert isinstance(caught.value, AuthorityDenied) is (reason is Reason.POLICY_DENIED)
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


def test_a_call_that_a_server_drops_as_it_is_replaced_is_made_again(tmp_path: Path) -> None:
    """grpc cancels what is on its way to a server that ends; nobody has refused anything."""

    async def play(at: Scene) -> None:
        dropped = Refusal(grpc.StatusCode.CANCELLED, message="CANCELLED")
        at.signer.mint.refusals = [dropped] * 3
        at.signer.arrivals.clear()
        assert (await at.authority.mint_x509(at.request())).chain
        assert len(at.signer.arrivals) == 4
        # And ever more slowly.
        third, fourth = at.signer.arrivals[2:]
        assert fourth - third >= 4 * calls.LEAST_WAIT
        # One that the signer gives a reason for is not.
        at.signer.mint.refusals = [Refusal(grpc.StatusCode.CANCELLED, "INTERNAL", "no")]
        with pytest.raises(AuthorityUnavailable, match=r"^INTERNAL: no$"):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


def test_what_a_server_dropped_does_not_hide_that_none_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.5)

    async def play(at: Scene) -> None:
        dropped = Refusal(grpc.StatusCode.CANCELLED, message="CANCELLED")
        at.signer.mint.refusals, at.signer.mint.gate = [dropped], asyncio.Event()
        with pytest.raises(AuthorityUnavailable, match=r"^SIGNER_UNREACHABLE: .* did not answer within 0.5 s"):
            await at.authority.mint_x509(at.request())
        at.signer.mint.gate.set()

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
