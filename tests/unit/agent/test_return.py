"""How an agent comes back to a signer that was away: soon after grpc has reached it, and not before its own time."""

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import looptime
import pytest

from agent.authority.calls import CALL_SECONDS, Calls
from agent.authority.connection import ASK_MILLISECONDS, LOOK_SECONDS, Connection, SignerSettings
from agent.authority.contact import MAX_RETRY, WAITED_FOR, Contact
from agent.authority.held import HeldTrust
from agent.authority.pacing import FIRST_LEAST, FIRST_MOST, SOON, Pacing
from agent.authority.proven import CONNECT_SECONDS, _is_nobody
from agent.authority.trust_stream import TrustStream
from agent.errors import AuthorityUnavailable
from runtime.feed import Feed
from runtime.tracing import NO_TRACING
from runtime.turns import Who
from signer.pb import signer_pb2
from tests.fake_authority import TRUST_DOMAIN, StepClock, bundle_of, root
from tests.unit.agent.signer_scene import Scene, on_stage

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
    assert options["grpc.initial_reconnect_backoff_ms"] == options["grpc.max_reconnect_backoff_ms"] == ASK_MILLISECONDS


class Time:
    """Seconds that only tests move, and whether somebody waits."""

    def __init__(self) -> None:
        self.at = 100.0
        self.waited_for = False
        self.pacing = Pacing(random.Random(1), lambda: self.waited_for, lambda: self.at)

    def pause(self) -> float:
        """How long until it may be tried again, in steps of a tenth of a second."""
        began = self.at
        while not self.pacing.may_try():
            self.at += 0.1
        return self.at - began

    def pauses(self, number: int, *, nobody: bool) -> list[float]:
        found = []
        for _ in range(number):
            self.pacing.failed(nobody=nobody)
            found.append(self.pause())
        return found


def test_the_first_attempt_is_made_at_once() -> None:
    assert Time().pause() == 0


@pytest.mark.parametrize("nobody", [False, True])
def test_whom_nobody_waits_for_is_tried_ever_more_rarely(nobody: bool) -> None:
    pauses = Time().pauses(12, nobody=nobody)
    assert FIRST_LEAST <= pauses[0] <= FIRST_MOST + 0.1
    assert all(0.7 * MAX_RETRY <= each <= MAX_RETRY + 0.1 for each in pauses[-3:])


def test_where_nobody_is_there_and_somebody_waits_it_is_tried_soon_however_long_it_was_away() -> None:
    time = Time()
    time.pauses(12, nobody=True)
    time.waited_for = True
    assert all(each <= SOON + 0.1 for each in time.pauses(5, nobody=True))
    # Who begins to wait in a long pause has it cut short.
    time.waited_for = False
    time.pacing.failed(nobody=True)
    time.at += SOON
    assert not time.pacing.may_try()
    time.waited_for = True
    assert time.pacing.may_try()


def test_a_signer_that_is_there_and_cannot_is_not_pressed_by_who_waits() -> None:
    time = Time()
    time.waited_for = True
    assert max(time.pauses(12, nobody=False)) >= 0.7 * MAX_RETRY


def test_one_that_is_back_is_tried_as_at_first() -> None:
    """It has many callers in that moment, and some get no place at once."""
    time = Time()
    time.pauses(12, nobody=True)
    assert time.pauses(1, nobody=False)[0] <= FIRST_MOST + 0.1


def test_a_new_channel_and_a_connection_forget_what_was() -> None:
    time = Time()
    time.pauses(12, nobody=False)
    time.pacing.failed(nobody=False)
    time.pacing.forget()
    assert time.pause() == 0
    assert time.pauses(1, nobody=False)[0] <= FIRST_MOST + 0.1


def test_who_waits_for_a_signer_has_it_as_soon_as_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be tried again in an hour."""
    for name in ("FIRST_LEAST", "FIRST_MOST"):
        monkeypatch.setattr(f"agent.authority.pacing.{name}", 3600.0)
    monkeypatch.setattr("agent.authority.pacing.MAX_RETRY", 3600.0)

    async def play(at: Scene) -> None:
        returned = at.authority.returns.version
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        await at.until(lambda: "SIGNER_UNREACHABLE" in at.authority.contact.last_error)
        minting = asyncio.create_task(at.authority.mint_x509(at.request()))
        await at.signer.start()
        assert (await minting).chain
        await at.until(lambda: at.authority.contact.connected)
        assert at.authority.returns.version == returned + 1

    on_stage(tmp_path, play)


def test_whom_nobody_asks_waits_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_LEAST", "FIRST_MOST"):
        monkeypatch.setattr(f"agent.authority.pacing.{name}", 3600.0)
    monkeypatch.setattr("agent.authority.pacing.MAX_RETRY", 3600.0)
    monkeypatch.setattr("agent.authority.connection.ASK_MILLISECONDS", 100)

    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: "SIGNER_UNREACHABLE" in at.authority.contact.last_error)
        listening = await asyncio.start_server(lambda *_: came.set(), "127.0.0.1", at.signer.port)
        came = asyncio.Event()
        async with listening:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(came.wait(), 0.5)

    on_stage(tmp_path, play)


def test_who_asked_a_short_while_ago_comes_again() -> None:
    clock = StepClock()
    contact = Contact("signer:1", clock, random.Random(1))
    assert not contact.waited_for
    contact.wanted()
    clock.at += timedelta(seconds=WAITED_FOR - 1)
    assert contact.waited_for
    clock.at += timedelta(seconds=2)
    assert not contact.waited_for


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("while_away", [None, 75.0])
def test_how_long_a_call_waits(tmp_path: Path, away: bool, while_away: float | None) -> None:
    """Longer for a signer that is away, where that was asked for; not for one that is there and does not answer."""

    class Silent(Channel):
        def unary_unary(self, *_: Any) -> Any:
            def ask(message: Any, *, timeout: float, **_: Any) -> Any:
                deadlines.append(timeout)
                raise late

            return ask

    late = grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
    deadlines: list[float] = []
    made = connection(tmp_path, None)
    made._trust.begin(bundle_of(root(StepClock().at)))
    made.channel = lambda: Silent((0.0, READY))  # type: ignore[method-assign, assignment, return-value]
    made.credentials = lambda: ()  # type: ignore[method-assign]
    if not away:
        made._contact.answered(1)
    calls = Calls("signer:1", made, made._contact, random.Random(1), NO_TRACING)

    async def ask() -> None:
        with pytest.raises(AuthorityUnavailable, match="SIGNER_UNREACHABLE"):
            await calls.call("M", signer_pb2.Pod(), lambda _: None, Who("default", "web"), while_away=while_away)

    took(ask)
    assert deadlines == [75.0 if away and while_away else CALL_SECONDS]
    assert made._contact.waited_for


@pytest.mark.parametrize(
    ("error", "nobody"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 8443)"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), False),
        # Two families, as asyncio says it.
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 101] Network is unr"), True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 24] Too many op"), False),
        (OSError("something else"), False),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False),
        (ssl.SSLError(1, "[SSL] wrong version"), False),
    ],
)
def test_where_nobody_listens(error: OSError, nobody: bool) -> None:
    assert _is_nobody(error) is nobody
