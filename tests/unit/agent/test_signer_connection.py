"""What the signer's client trusts and proves: roots, bundle files, tokens, settings."""

import asyncio
import errno
import json
import logging
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.authority.connection import FILE_AFTER, LEAVE_SECONDS, SignerSettings
from agent.authority.protocol import JwtRequest, MintRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AuthorityDamaged, AuthorityRefused, AuthorityUnavailable
from csi.model import PodToken
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.identity import Trust
from svid.keys import KeyAlgorithm
from tests.fake_signer import TRUST_DOMAIN, Refusal, authority
from tests.unit.agent.signer_scene import (
    AGENT_TOKEN,
    AUDIENCE,
    GONE,
    POD,
    POD_TOKEN,
    SPIFFE_ID,
    Scene,
    StepClock,
    on_stage,
)


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
        await at.until(lambda: "SIGNER_NOT_TRUSTED" in at.authority.contact.last_error)
        assert (at.signer.streams, len(at.signer.bearers)) == (streams, bearers), "the token went to a stranger"

    on_stage(tmp_path, play)


@pytest.mark.parametrize("pem", [False, True])
def test_an_agent_that_was_cut_off_for_too_long_goes_by_the_bundle_file(tmp_path: Path, pem: bool) -> None:
    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        at.signer.authority = new = authority(at.clock.now())
        at.signer.publish(at.signer.bundle(150, new))
        newer = tmp_path / "newer"
        newer.write_bytes(new.bundle.to_pem() if pem else at.signer.bundle(150, new).to_jwks())
        os.replace(newer, at.bundle_file)
        await at.signer.start()
        # Not at once: the file alone must not move an agent that has just lost its signer.
        await at.until(lambda: "SIGNER_NOT_TRUSTED" in at.authority.contact.last_error)
        assert not at.authority.contact.connected
        at.clock.step += FILE_AFTER
        await at.until(lambda: at.authority.contact.connected)
        await at.until(lambda: (at.authority.trust.current or Trust(at.signer.bundle(0))).bundle.sequence == 150)
        # Back to what the signer sends and to nothing else.
        assert at.authority.connection.newest_roots() == at.signer.bundle(150, new).to_pem()

    on_stage(tmp_path, play, pem=pem)


def test_a_false_bundle_file_gives_nobody_the_signers_place_while_it_answers(tmp_path: Path) -> None:
    """Whoever may write the ConfigMap and stands between agent and signer."""

    async def play(at: Scene) -> None:
        false = authority(at.clock.now())
        at.bundle_file.write_bytes(at.signer.bundle(10**9, false).to_jwks())
        before = at.authority.connection.channel()
        await at.authority.mint_x509(at.request())
        assert at.authority.connection.channel() is before
        streams, bearers = at.signer.streams, len(at.signer.bearers)
        await at.signer.stop()
        await at.signer.start(certificate_of=false)
        await at.until(lambda: "SIGNER_NOT_TRUSTED" in at.authority.contact.last_error)
        assert (at.signer.streams, len(at.signer.bearers)) == (streams, bearers)
        assert at.authority.trust.current == Trust(at.signer.bundle(100))

    on_stage(tmp_path, play)


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
        SignerSettings("127.0.0.1:1", path, tmp_path / "token", AUDIENCE, TRUST_DOMAIN, run_dir=tmp_path),
        StepClock(),
        random.Random(1),
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
        (
            f'{{"{AUDIENCE}": {{"token": "\\ud800", "expirationTimestamp": "2999-01-01T00:00:00Z"}}}}',
            "POD_TOKEN_MISSING",
        ),
        (f'{{"{AUDIENCE}": {{"token": ["t"], "expirationTimestamp": "2999-01-01T00:00:00Z"}}}}', "POD_TOKEN_MISSING"),
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
    nowhere = SignerSettings("127.0.0.1:1", Path("/none"), Path("/none"), AUDIENCE, TRUST_DOMAIN, run_dir=Path("/none"))
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


def test_an_ended_token_is_no_denial_from_a_signer_of_before(tmp_path: Path) -> None:
    """It says so with the status of one; kubelet brings another token."""

    async def play(at: Scene) -> None:
        at.signer.mint.refusals = [Refusal(grpc.StatusCode.PERMISSION_DENIED, "POD_TOKEN_EXPIRED", "old")]
        with pytest.raises(AuthorityUnavailable, match="POD_TOKEN_EXPIRED: old"):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


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


def test_a_connection_is_kept_until_what_it_was_proven_by_is_gone(tmp_path: Path) -> None:
    """That a rotation adds an authority makes no agent come anew: they would all come at once."""

    async def play(at: Scene) -> None:
        connection = at.authority.connection
        await at.authority.mint_x509(at.request())
        old, new, other = at.signer.authority, *(authority(at.clock.now()) for _ in range(2))
        before = connection.channel()
        # What else was trusted when it was proven counts for nothing.
        for sequence, authorities in enumerate([(old, new), (old,), (new, old, other)], 101):
            at.authority._held.take(Trust(at.signer.bundle(sequence, *authorities)))
            assert connection.channel() is before
        at.authority._held.take(Trust(at.signer.bundle(110, new, other)))
        assert connection.channel() is not before

    on_stage(tmp_path, play)


def test_without_a_connection_what_is_trusted_newly_is_tried_at_once(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        connection = at.authority.connection
        before = connection.channel()
        await at.signer.stop()
        await at.until(lambda: before.get_state() is not grpc.ChannelConnectivity.READY)
        assert connection.channel() is before
        at.authority._held.take(Trust(at.signer.bundle(101, at.signer.authority, authority(at.clock.now()))))
        assert connection.channel() is not before

    on_stage(tmp_path, play)


def test_a_stream_that_has_served_its_time_brings_a_new_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signer with a newer certificate goes on with the connections that there are, for as long as that."""
    monkeypatch.setattr("agent.authority.connection.LEAST_AGE", 0.0)

    async def play(at: Scene) -> None:
        connection = at.authority.connection
        before, streams = connection.channel(), at.signer.streams
        at.signer.end_streams(GONE)
        await at.until(lambda: at.signer.streams > streams)
        await at.until(lambda: connection.channel() is not before)
        assert connection._signer.proven == 2
        now, streams = connection.channel(), at.signer.streams
        at.signer.end_streams(Refusal(grpc.StatusCode.UNAVAILABLE, "BUSY", "later"))
        await at.until(lambda: at.signer.streams > streams)
        assert (connection.channel(), connection._next) == (now, None)

    on_stage(tmp_path, play)


def test_until_the_new_connection_is_there_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not come about for long: where a replica is full, or somebody keeps this agent's address busy."""

    async def play(at: Scene) -> None:
        connection = at.authority.connection
        before = connection.channel()
        connection.renew()
        assert connection._next is None, "it is as good as new"
        monkeypatch.setattr("agent.authority.connection.LEAST_AGE", 0.0)
        # As if another authority had proved the connection that there is.
        connection._signer._proven_by[b"another"] = 1
        at.authority._held.take(Trust(at.signer.bundle(101)))
        monkeypatch.setattr(connection, "_is_good", lambda *_: True)
        answers = asyncio.Event()
        connect = connection._signer._connect

        async def late() -> Any:
            await answers.wait()
            return await connect()

        monkeypatch.setattr(connection._signer, "_connect", late)
        for _ in range(2):
            connection.renew()
            assert (await at.authority.mint_x509(at.request())).chain
            assert connection.channel() is before
        answers.set()
        await at.until(lambda: connection.channel() is not before)
        assert (await at.authority.mint_x509(at.request())).chain
        # What proved the one before counts no more.
        assert len(connection._signer.proven_by) == 1
        assert b"another" not in connection._signer.proven_by

    on_stage(tmp_path, play)


def test_what_is_not_trusted_any_more_is_left_at_once_whatever_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.authority.connection.LEAST_AGE", 0.0)

    async def play(at: Scene) -> None:
        connection = at.authority.connection
        await at.authority.mint_x509(at.request())
        before = connection.channel()
        connection.renew()
        coming = connection._next
        at.authority._held.take(Trust(at.signer.bundle(101, authority(at.clock.now()))))
        assert connection.channel() not in (before, coming)
        assert connection._next is None

    on_stage(tmp_path, play)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_stream_ends_soon_after_the_authority_that_proved_its_connection_is_trusted_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Who has a stolen key may be at the other end, and would go on saying what to trust when all is over."""
    monkeypatch.setattr("agent.authority.connection.LEAST_AGE", 0.0)

    async def play(at: Scene) -> None:
        connection, old, new = at.authority.connection, at.signer.authority, authority(at.clock.now())
        held = connection.channel()
        at.signer.publish(at.signer.bundle(101, old, new))
        await at.until(lambda: sequence(at) == 101)
        if replaced:
            # As by a stream's end in its time; this one's stream goes on.
            connection.renew()
            await at.until(lambda: connection.channel() is not held)
        streams = at.signer.streams
        assert connection.leave_in(held) is None
        at.rng.ranges.clear()
        at.signer.publish(at.signer.bundle(102, new))
        await at.until(lambda: "SIGNER_NOT_TRUSTED" in at.authority.contact.last_error)
        assert (0.0, LEAVE_SECONDS) in at.rng.ranges
        assert at.signer.streams == streams

    on_stage(tmp_path, play)


def test_what_is_there_is_read_before_a_stream_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was stopped over the next rotation as well would know nobody's certificate any more."""
    monkeypatch.setattr("agent.authority.trust_stream.LAST_SECONDS", 30.0)

    async def play(at: Scene) -> None:
        old, new = at.signer.authority, authority(at.clock.now())
        at.signer.publish(at.signer.bundle(101, old, new))
        await at.until(lambda: sequence(at) == 101)
        at.rng.ranges.clear()
        at.signer.publish(at.signer.bundle(102, new))
        await at.until(lambda: (0.0, LEAVE_SECONDS) in at.rng.ranges)
        # The time to leave has come.
        await asyncio.sleep(0)
        at.signer.publish(at.signer.bundle(103, new, authority(at.clock.now())))
        await at.until(lambda: sequence(at) == 103)

    on_stage(tmp_path, play)


def sequence(at: Scene) -> int | None:
    trust = at.authority.trust.current
    return None if trust is None else trust.bundle.sequence


def test_a_channel_that_could_not_be_made_costs_nobody_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roots changed while `/run` was full, and changed back, or room was made: mints go on by either."""

    async def play(at: Scene) -> None:
        connection = at.authority.connection
        await at.authority.mint_x509(at.request())
        old, new = at.signer.authority, authority(at.clock.now())
        before = connection.channel()
        with monkeypatch.context() as full:
            full.setattr(connection._signer, "open", lambda: failing())
            at.authority._held.take(Trust(at.signer.bundle(101, new)))
            for _ in range(2):
                with pytest.raises(AuthorityUnavailable, match="no socket can be made"):
                    await at.authority.mint_x509(at.request())
            at.authority._held.take(Trust(at.signer.bundle(102, old)))
            assert connection.channel() is before
            assert (await at.authority.mint_x509(at.request())).chain
        at.authority._held.take(Trust(at.signer.bundle(103, new)))
        assert connection.channel() is not before

    on_stage(tmp_path, play)


def failing() -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_agent_that_stops_refuses_mints_as_an_outage_and_opens_nothing(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.authority.connection.close()
        with pytest.raises(AuthorityUnavailable, match="this agent is stopping"):
            await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)
