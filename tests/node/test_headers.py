"""A call on a volume's socket from its headers to its end: it counts from the first, is refused without its request,
and has to ask for something in time. Real server, real socket, a client that leaves out what it likes."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.socket import accounts as accounts_module
from agent.socket import guard
from agent.socket.accounts import Account, Accounts, Limits
from agent.socket.closing import Closers
from agent.socket.connections import Connections
from agent.socket.endpoint import Endpoint
from agent.socket.guard import Guard
from agent.socket.relay import Relay
from bench.attacks import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, headers, message
from tests.node.test_endpoint import DEADLINE, GOOD, Counts, Methods, Served, code_of, served, until

ALL = ("Call", "Wait", "WaitStream", "Echo")
RESET = 3


def unfinished(channel: Any, method: str, metadata: Any = GOOD) -> Any:
    """A call of which only the headers are sent."""
    return channel.stream_stream(f"/SpiffeWorkloadAPI/{method}")(metadata=metadata)


async def ended(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize("method", ALL)
def test_a_call_counts_before_its_request_has_come_and_no_more_once_its_client_is_gone(method: str) -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = unfinished(channel, method)
            await until(lambda: at.counts.open == 1)
            assert at.endpoint.open_calls[0][0] == f"/SpiffeWorkloadAPI/{method}"
            assert at.account.weight().open_calls == at.account.pod.open == 1
            call.cancel()
            await until(lambda: at.counts.open == 0)
        assert (at.account.weight().open_calls, at.account.pod.open, at.endpoint.open_calls) == (0, 0, [])

    served(main)


@pytest.mark.parametrize("method", [*ALL, "Unknown"])
@pytest.mark.parametrize(
    "why", ["open calls", "calls a second", "security header", "metadata"], ids=lambda each: each.replace(" ", "-")
)
def test_what_is_refused_is_refused_without_its_request(method: str, why: str) -> None:
    expected = {
        "open calls": grpc.StatusCode.UNAVAILABLE,
        "calls a second": grpc.StatusCode.UNAVAILABLE,
        "security header": grpc.StatusCode.INVALID_ARGUMENT,
        "metadata": grpc.StatusCode.RESOURCE_EXHAUSTED,
    }[why]
    limits = {"open calls": Limits(calls=1), "calls a second": Limits(rate=0.0001, burst=1)}.get(why, Limits())
    much = (*GOOD, *((f"x-{n}", "y" * 5000) for n in range(4)))
    metadata: Any = {"security header": (), "metadata": much}.get(why, GOOD)
    if method == "Unknown" and metadata is GOOD:
        expected = grpc.StatusCode.UNIMPLEMENTED

    async def main(at: Served) -> None:
        # One who is not held to what the settings say: gRPC's own client would refuse so much metadata itself.
        # And one that keeps to the calls that a connection may have would wait with the second.
        async with at.channel() as first, at.channel(("grpc.max_metadata_size", 1 << 20)) as channel:
            held = unfinished(first, "Wait")
            await until(lambda: at.counts.open == 1)
            assert await ended(unfinished(channel, method, metadata)) is expected
            assert at.account.weight().refused == 1
            await until(lambda: at.account.weight().open_calls == 1)
            held.cancel()
        await until(lambda: at.counts.open == 0)

    served(main, limits)


@pytest.mark.parametrize("method", ALL)
def test_a_request_that_does_not_come_in_time_ends_its_call(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUEST", 0.01)

    async def main(at: Served) -> None:
        async with at.channel() as channel:
            assert await ended(unfinished(channel, method)) is grpc.StatusCode.DEADLINE_EXCEEDED
            # Nor one that is never whole: it would be taken, and more of it waited for.
            half = unfinished(channel, method)
            if method != "Echo":
                await half.write(b"asked")
                assert await ended(half) is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: at.counts.open == 0)
        assert at.account.pod.open == 0

    served(main)


def test_a_stream_that_has_asked_once_may_be_silent_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUEST", 1.5)

    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call, silent = unfinished(channel, "Echo"), unfinished(channel, "Echo")
            await call.write(b"one")
            assert await call.read() == b"one"
            # It came later, and its time is over.
            assert await ended(silent) is grpc.StatusCode.DEADLINE_EXCEEDED
            await call.write(b"two")
            assert await call.read() == b"two"
            call.cancel()

    served(main)


@pytest.mark.parametrize("method", ["Call", "WaitStream"])
@pytest.mark.parametrize("requests", [0, 2, 3])
def test_no_request_or_more_than_one_is_what_grpc_calls_a_violation_of_cardinality(method: str, requests: int) -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = unfinished(channel, method)
            for _ in range(requests):
                await call.write(b"asked")
            await call.done_writing()
            assert await ended(call) is grpc.StatusCode.UNIMPLEMENTED
        assert at.methods.seen == []
        await until(lambda: at.counts.open == 0)

    served(main)


@pytest.mark.parametrize(
    ("method", "asked"), [("Call", False), ("WaitStream", False), ("Echo", False), ("Wait", True), ("Echo", True)]
)
def test_a_client_that_leaves_before_it_is_answered_gets_no_status(
    method: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fails, and gRPC never frees what it was made of (grpc/grpc#43360)."""
    contexts: list[Any] = []
    asking = Guard._asked

    async def noted(self: Guard, handler: Any, context: Any) -> Any:
        contexts.append(context)
        return await asking(self, handler, context)

    monkeypatch.setattr(Guard, "_asked", noted)

    async def main(at: Served) -> None:
        async with at.channel() as channel:
            calls = [unfinished(channel, method) for _ in range(20)]
            for call in calls if asked else ():
                await call.write(b"and more may come")
            await until(lambda: len(contexts) == at.counts.open == 20)
            for call in calls[:10]:
                call.cancel()
            await until(lambda: at.counts.open == 10)
        await until(lambda: at.counts.open == 0)
        assert not any(context.done() for context in contexts)

    served(main)


def test_what_is_refused_and_reset_in_one_breath_gets_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a client likes, and each would keep some hundred bytes for ever (grpc/grpc#43360)."""
    contexts: list[Any] = []
    make = guard._stream_unary

    def noting(behaviour: Any) -> Any:
        async def noted(requests: Any, context: Any) -> Any:
            contexts.append(context)
            return await behaviour(requests, context)

        return make(noted)

    monkeypatch.setattr(guard, "_stream_unary", noting)
    # However long that takes here.
    monkeypatch.setattr(guard, "REFUSAL", 1.0)

    async def main(at: Served) -> None:
        raw = await Raw.connect(at.path)
        for stream in range(1, 101, 2):
            raw.writer.write(frame(HEADERS, END_HEADERS, stream, headers(b"/SpiffeWorkloadAPI/Unknown")))
            raw.writer.write(frame(RESET, 0, stream, struct.pack(">I", 8)))
        await until(lambda: len(contexts) == 50 and at.account.pod.refusing == 0)
        assert not any(context.done() for context in contexts)
        raw.writer.close()

    served(main)


def test_a_request_that_is_longer_than_may_be_is_grpcs_to_refuse() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            for method in ("Call", "Wait"):
                call = channel.unary_unary(f"/SpiffeWorkloadAPI/{method}")
                assert (await code_of(call(b"x" * 70_000, metadata=GOOD)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x" * 60_000, metadata=GOOD)
        await until(lambda: at.counts.open == 0)

    served(main)


def test_the_sockets_of_a_pod_share_its_limits_and_another_pod_has_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        accounts = Accounts(Limits(calls=3), lambda pod: None, time.monotonic)
        counts = Counts()
        async with open_sockets(tmp_path, counts, [accounts.begin(n, pod) for n, pod in enumerate("aab")]) as channels:
            one, two, other = channels
            held = [unfinished(each, "Wait") for each in (one, two, two)]
            await until(lambda: counts.open == 3)
            for each in (one, two):
                assert await ended(unfinished(each, "Wait")) is grpc.StatusCode.UNAVAILABLE
            assert await other.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"
            weights = accounts.weights()
            assert [(each.calls, each.refused) for each in weights.values()] == [(2, 1), (3, 1), (1, 0)]
            for call in held:
                call.cancel()
            await until(lambda: not any(each.open_calls for each in accounts.weights().values()))
            assert await one.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"

    asyncio.run(run())


@asynccontextmanager
async def open_sockets(base: Path, counts: Counts, accounts: Sequence[Account]) -> AsyncIterator[list[Any]]:
    """A channel to a socket for each."""
    async with AsyncExitStack() as stack:
        channels = []
        for number, account in enumerate(accounts):
            endpoint = Endpoint([Methods().handlers("SpiffeWorkloadAPI")], account, counts)
            await endpoint.open(str(base / f"{number}"))
            stack.push_async_callback(endpoint.close)
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.aio.insecure_channel(f"unix:{base / str(number)}", options=options)
            channels.append(await stack.enter_async_context(channel))
        async with asyncio.timeout(DEADLINE):
            yield channels


class Raw:
    """A connection that speaks HTTP/2 as the test has it, and acknowledges settings unless it is `rude`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: Path, settings: bytes = b"") -> "Raw":
        found = cls(*await asyncio.open_unix_connection(path))
        found.writer.write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, 1, 0))
        return found

    async def settings(self) -> dict[int, int]:
        """Those of the server."""
        while True:
            head = await self.reader.readexactly(9)
            payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == SETTINGS and payload:
                return dict(struct.iter_unpack(">HI", payload))

    async def closed(self) -> None:
        while await self.reader.read(1 << 16):
            pass


def test_what_a_client_may_send_before_it_is_read_from_is_little(tmp_path: Path) -> None:
    async def main(at: Served) -> None:
        raw = await Raw.connect(at.path)
        found = await raw.settings()
        # SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_MAX_FRAME_SIZE (16 KB without a word).
        assert found[4] == 8 * 1024
        assert found.get(5, 16 * 1024) == 16 * 1024
        raw.writer.close()

    served(main)


@pytest.mark.parametrize("method", ["Call", "WaitStream"])
def test_an_answer_that_cannot_be_sent_counts_until_its_client_is_gone(method: str) -> None:
    """Its client leaves no window for it: nothing else would bound how many there are."""

    async def main(at: Served) -> None:
        raw = await Raw.connect(at.path, struct.pack(">HI", 4, 0))
        block = headers(f"/SpiffeWorkloadAPI/{method}".encode())
        for stream in (1, 3, 5):
            raw.writer.write(frame(HEADERS, END_HEADERS, stream, block) + message(stream, b"asked"))
        await until(lambda: at.counts.open == 3 and (method != "Call" or len(at.methods.seen) == 3))
        async with at.channel() as channel:
            code, text = await code_of(channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD))
            assert (code, "open calls" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        raw.writer.close()
        await until(lambda: at.counts.open == at.account.weight().open_calls == 0)

    served(main, Limits(calls=3))


def test_who_lets_refusals_lie_loses_the_pods_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot be written to one who does not read, and would be kept without a bound."""
    monkeypatch.setattr(accounts_module, "UNTAKEN", 8)

    async def run() -> None:
        counts = Counts()
        connections = Connections(Closers(), counts.call_refused)
        accounts = Accounts(Limits(calls=8), connections.shut, time.monotonic)
        account = accounts.begin(1, "pod")
        path = tmp_path / "socket"
        endpoint = Endpoint([Methods().handlers("SpiffeWorkloadAPI")], account, counts, Relay(connections))
        await endpoint.open(str(path))
        try:
            async with asyncio.timeout(DEADLINE):
                # So many streams as calls may be open are possible on one connection.
                raws = [await Raw.connect(path) for _ in range(3)]
                for raw in raws:
                    await raw.settings()
                    reading: Any = raw.writer.transport
                    reading.pause_reading()
                    # Answers to pings fill what the kernel holds for it.
                    raw.writer.write(frame(6, 0, 0, b"12345678") * 4000)
                    await raw.writer.drain()
                    block = headers(b"/SpiffeWorkloadAPI/Call")
                    for stream in range(1, 17, 2):
                        raw.writer.write(frame(HEADERS, END_HEADERS, stream, block))
                await until(lambda: "unread answers" in counts.refused)
                for raw in raws:
                    reading = raw.writer.transport
                    reading.resume_reading()
                    await raw.closed()
                await until(lambda: account.weight().open_calls == account.pod.refusing == account.pod.open == 0)
                options = (("grpc.use_local_subchannel_pool", 1),)
                async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
                    ask: Any = channel.unary_unary("/SpiffeWorkloadAPI/Call")
                    assert await ask(b"x", metadata=GOOD, wait_for_ready=True) == b"x"
        finally:
            await endpoint.close()

    asyncio.run(run())


# What a client may do with one of its calls.
STEPS = {
    "headers": lambda stream, block: frame(HEADERS, END_HEADERS, stream, block),
    "all headers": lambda stream, block: frame(HEADERS, END_HEADERS | END_STREAM, stream, block),
    "message": lambda stream, block: message(stream, b"asked", 0),
    "last message": lambda stream, block: message(stream, b"asked"),
    "half a message": lambda stream, block: frame(DATA, 0, stream, b"\0\0\0\1\0x"),
    "end": lambda stream, block: frame(DATA, END_STREAM, stream),
    "reset": lambda stream, block: frame(RESET, 0, stream, struct.pack(">I", 8)),
}
METHODS = [f"/SpiffeWorkloadAPI/{name}".encode() for name in (*ALL, "Fail", "FailStream", "Unknown")]


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What a client sends, piece by piece: calls to some methods, each with some steps, in their order or mixed."""
    some = st.lists(st.sampled_from(sorted(STEPS)), max_size=4)
    calls = draw(st.lists(st.tuples(st.sampled_from(METHODS), some), min_size=1, max_size=6))
    steps = [
        STEPS[step](2 * number + 1, headers(method))
        for number, (method, then) in enumerate(calls)
        for step in (draw(st.sampled_from(["headers", "headers", "all headers"])), *then)
    ]
    # New streams have to come in the order of their numbers.
    first = [each for each in steps if each[3] == HEADERS]
    rest = [each for each in steps if each[3] != HEADERS]
    return [*first, *draw(st.permutations(rest))] if draw(st.booleans()) else steps


def test_whatever_a_client_does_nothing_is_open_once_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUEST", 0.05)
    monkeypatch.setattr(guard, "GONE", 0.01)

    async def main(at: Served) -> None:
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(conversations(), st.integers(0, 7), st.booleans())
        def holds(pieces: list[bytes], turns: int, abrupt: bool) -> None:
            asyncio.run_coroutine_threadsafe(one(pieces, turns, abrupt), loop).result(DEADLINE)

        async def one(pieces: list[bytes], turns: int, abrupt: bool) -> None:
            raw = await Raw.connect(at.path)
            for piece in pieces:
                raw.writer.write(piece)
                for _ in range(turns):
                    await asyncio.sleep(0)
            if abrupt:
                raw.writer.transport.abort()
            else:
                # All that was sent has come before this is answered.
                async with at.channel() as channel:
                    assert (await code_of(channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD)))[0] in (
                        grpc.StatusCode.OK,
                        grpc.StatusCode.UNAVAILABLE,
                    )
                raw.writer.close()
            pod = at.account.pod
            await until(lambda: pod.open == pod.refusing == at.counts.open == at.account.weight().open_calls == 0)
            assert at.endpoint.open_calls == []

        await asyncio.to_thread(holds)

    served(main, Limits(calls=3, rate=1e6, burst=1_000_000))
