"""How an agent comes back to a signer that was away: soon after grpc has reached it, and not before its own time."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import looptime
import pytest

from agent.authority.connection import LOOK_SECONDS, Connection, SignerSettings
from agent.authority.contact import MAX_RETRY, Contact
from agent.authority.held import HeldTrust
from agent.authority.proven import CONNECT_SECONDS
from agent.authority.trust_stream import TrustStream
from runtime.feed import Feed
from tests.fake_authority import TRUST_DOMAIN, StepClock, bundle_of, root

CUT_OFF, READY = grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.READY


class Channel:
    """As far as it is looked at: what it says at which time."""

    def __init__(self, *states: tuple[float, grpc.ChannelConnectivity]) -> None:
        self._states = states

    def get_state(self) -> grpc.ChannelConnectivity:
        now = asyncio.get_running_loop().time()
        return [state for since, state in self._states if since <= now][-1]


def connection(base: Path, channel: Channel | None) -> Connection:
    clock, settings = StepClock(), SignerSettings("signer:1", base / "b", base / "t", "aud", TRUST_DOMAIN, run_dir=base)
    held, contact = HeldTrust(clock), Contact("signer:1", clock, random.Random(1))
    made = Connection(settings, held, contact, random.Random(1))
    made._channel = cast(Any, channel)
    return made


def took(test: Callable[[], Awaitable[None]]) -> float:
    """Seconds of the loop's own clock."""
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(test())
        return float(loop.time())
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("channel", "seconds"),
    [
        (None, 40.0),
        # It was there when the stream ended: the signer put this agent off, and knows for how long.
        (Channel((0.0, READY)), 40.0),
        (Channel((0.0, grpc.ChannelConnectivity.IDLE), (5.0, READY)), 40.0),
        (Channel((0.0, CUT_OFF)), 40.0),
        (Channel((0.0, CUT_OFF), (50.0, READY)), 40.0),
        (Channel((0.0, CUT_OFF), (4.0, grpc.ChannelConnectivity.CONNECTING), (5.0, READY)), 5.0),
    ],
)
def test_an_agent_waits_for_its_own_time_or_for_the_signer(
    tmp_path: Path, channel: Channel | None, seconds: float
) -> None:
    found = took(lambda: connection(tmp_path, channel).pause(40.0))
    assert seconds <= found <= seconds + LOOK_SECONDS


def test_a_pause_of_nothing_lets_others_have_their_turn(tmp_path: Path) -> None:
    turns: list[str] = []

    async def other() -> None:
        turns.append("other")

    async def pauses() -> None:
        waiting = asyncio.ensure_future(other())
        await connection(tmp_path, None).pause(0.0)
        turns.append("paused")
        await waiting

    took(pauses)
    assert turns == ["other", "paused"]


def test_each_failed_stream_is_followed_by_such_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token no stream is opened; what comes between two attempts is what counts."""
    made = connection(tmp_path, None)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(made, "pause", pause)
    made._trust.begin(bundle_of(root(StepClock().at)))
    stream = TrustStream(made._settings, made, made._contact, made._trust, Feed())

    async def follow() -> None:
        with pytest.raises(asyncio.CancelledError):
            await stream.run()

    asyncio.run(follow())
    assert len(pauses) == 3
    assert all(0.0 <= each <= 2.0 * 2**number for number, each in enumerate(pauses))


def test_an_attempt_may_take_as_long_as_a_connection_may_at_a_busy_signer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that grpc gives up sooner was work for nothing: the signer's queue is long where all come at once."""
    made = connection(tmp_path, None)
    clock = StepClock()
    made._trust.begin(bundle_of(root(clock.at)))
    options: dict[str, Any] = {}
    monkeypatch.setattr(made._signer, "open", lambda: "unix:nowhere")
    monkeypatch.setattr("grpc.aio.insecure_channel", lambda target, options: given(options))

    def given(found: Any) -> Channel:
        options.update(found)
        return Channel((0.0, READY))

    made.channel()
    assert options["grpc.min_reconnect_backoff_ms"] >= CONNECT_SECONDS * 1000
    assert 500 <= options["grpc.initial_reconnect_backoff_ms"] <= 3000
    assert options["grpc.max_reconnect_backoff_ms"] == MAX_RETRY * 1000
