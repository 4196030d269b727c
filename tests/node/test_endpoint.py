"""What stands before every method on a volume's socket, with methods made for it: header, limits, no call without
a status. Real server, real socket, real client."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.socket.accounts import Account, Limits
from agent.socket.closing import Closers
from agent.socket.connections import Connections
from agent.socket.endpoint import Endpoint
from agent.socket.guard import HEADER
from agent.socket.relay import Relay
from bench import attacks
from tests.here_sockets import alone

GOOD = (HEADER,)
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/Call"
DEADLINE = 30.0
DEFAULT = Limits()


class Counts:
    def __init__(self) -> None:
        self.open = 0
        self.taken: list[str] = []
        self.refused: list[str] = []

    def call_started(self, method: str) -> None:
        self.open += 1
        self.taken.append(method)

    def call_ended(self, method: str) -> None:
        self.open -= 1

    def call_refused(self, why: str) -> None:
        self.refused.append(why)


class Methods:
    """Methods that do what a real one must never do."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.contexts: list[Any] = []
        self.awaited: list[asyncio.Future[None]] = []
        self.seen: list[bytes] = []

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.seen.append(request)
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise RuntimeError("a secret detail")

    async def fail_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("a secret detail")

    async def wait(self, request: bytes, context: Any) -> bytes:
        await self._began(context)
        return b""

    async def wait_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        forever = self._began(context)
        yield b"first"
        await forever

    async def echo(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self.seen.append(request)
            yield request

    def _began(self, context: Any) -> asyncio.Future[None]:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        self.contexts.append(context)
        self.awaited.append(asyncio.get_running_loop().create_future())
        return self.awaited[-1]

    def handlers(self, service: str) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            service,
            {
                "Call": grpc.unary_unary_rpc_method_handler(self.unary),
                "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
                "FailStream": grpc.unary_stream_rpc_method_handler(self.fail_stream),
                "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
                "WaitStream": grpc.unary_stream_rpc_method_handler(self.wait_stream),
                "Echo": grpc.stream_stream_rpc_method_handler(self.echo),
            },
        )


class Served:
    def __init__(self, path: Path, methods: Methods, counts: Counts, endpoint: Endpoint, account: Account) -> None:
        self.account = account
        self.path = path
        self.methods = methods
        self.counts = counts
        self.endpoint = endpoint

    @asynccontextmanager
    async def channel(self, *options: tuple[str, Any]) -> AsyncIterator[Any]:
        # Each channel its own connection, or they would share one.
        own = (("grpc.use_local_subchannel_pool", 1), *options)
        async with grpc.aio.insecure_channel(f"unix:{self.path}", options=own) as channel:
            yield channel


def served(main: Callable[[Served], Awaitable[Any]], limits: Limits = DEFAULT, *, relayed: bool = True) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            methods, counts = Methods(), Counts()
            handlers = [methods.handlers(name) for name in ("SpiffeWorkloadAPI", SDS.split("/")[1])]
            account = alone(limits)
            # As it is served where the host lets it be.
            relay = Relay(Connections(Closers(), counts.call_refused)) if relayed else None
            endpoint = Endpoint(handlers, account, counts, relay)
            path = Path(base, "socket")
            await endpoint.open(str(path))
            try:
                async with asyncio.timeout(DEADLINE):
                    await main(Served(path, methods, counts, endpoint, account))
            finally:
                await endpoint.close()

    asyncio.run(run())


async def code_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def stream_code_of(call: Any) -> tuple[list[bytes], grpc.StatusCode, str]:
    got: list[bytes] = []
    try:
        async for message in call:
            got.append(message)
    except grpc.aio.AioRpcError as error:
        return got, error.code(), error.details() or ""
    return got, grpc.StatusCode.OK, ""


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.spec("EP-5", "EP-6", "EP-15", "C-1", "C-2", "C-3", "C-4", "C-5", "C-6")
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        ((HEADER[0], "True"),),
        ((HEADER[0], "TRUE"),),
        ((HEADER[0], "1"),),
        ((HEADER[0], ""),),
        ((HEADER[0], "true,true"),),
        ((HEADER[0], "true "),),
        ((HEADER[0], "true"), (HEADER[0], "true")),
        ((HEADER[0], "true"), (HEADER[0], "false")),
        (("workload-spiffe-io", "true"),),
    ],
)
def test_without_the_one_header_every_call_is_refused_before_its_body_is_looked_at(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            for method in ("Call", "Unknown"):
                code, text = await code_of(channel.unary_unary(f"/SpiffeWorkloadAPI/{method}")(b"x", metadata=metadata))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert HEADER[0] in text
            got, code, _ = await stream_code_of(
                channel.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"x", metadata=metadata)
            )
            assert (got, code) == ([], grpc.StatusCode.INVALID_ARGUMENT)
            # Any other service on the socket is behind the header too, unless it is named.
            code, _ = await code_of(channel.unary_unary("/other.Service/Call")(b"x", metadata=metadata))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert await channel.unary_unary(SDS)(b"x", metadata=metadata) == b"x"
        assert at.methods.seen == [b"x"]
        assert at.counts.taken == [SDS]

    served(main)


@pytest.mark.spec("EP-18", "C-7")
def test_an_unknown_method_with_the_header_is_unimplemented() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = channel.unary_unary("/SpiffeWorkloadAPI/Unknown")(b"", metadata=GOOD)
            assert (await code_of(call))[0] is grpc.StatusCode.UNIMPLEMENTED

    served(main)


@pytest.mark.spec("C-15")
def test_what_a_handler_raises_never_reaches_a_client() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            code, text = await code_of(channel.unary_unary("/SpiffeWorkloadAPI/Fail")(b"", metadata=GOOD))
            assert code is grpc.StatusCode.INTERNAL
            assert "secret" not in text
            got, code, text = await stream_code_of(
                channel.unary_stream("/SpiffeWorkloadAPI/FailStream")(b"", metadata=GOOD)
            )
            assert (got, code) == ([b"first"], grpc.StatusCode.INTERNAL)
            assert "secret" not in text
        await until(lambda: at.counts.open == 0)

    served(main)


@pytest.mark.spec("CL-3")
@pytest.mark.parametrize("method", ["Wait", "WaitStream"])
def test_a_handler_whose_work_is_cancelled_by_us_ends_with_unavailable_not_in_silence(method: str) -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            path = f"/SpiffeWorkloadAPI/{method}"
            if method == "Wait":
                waiting: asyncio.Future[Any] = asyncio.ensure_future(
                    code_of(channel.unary_unary(path)(b"", metadata=GOOD))
                )
            else:
                waiting = asyncio.ensure_future(stream_code_of(channel.unary_stream(path)(b"", metadata=GOOD)))
            await until(lambda: bool(at.methods.awaited))
            at.methods.awaited[0].cancel()
            assert grpc.StatusCode.UNAVAILABLE in await waiting
        await until(lambda: at.counts.open == 0)

    served(main)


@pytest.mark.spec("C-25", "WL-6")
def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            calls = [channel.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD) for _ in range(20)]
            for call in calls:
                assert await call.read() == b"first"
            assert at.counts.open == 20
            for call in calls[:10]:
                call.cancel()
            await until(lambda: at.counts.open == 10)
        await until(lambda: at.counts.open == 0)
        await until(lambda: all(task.done() for task in at.methods.tasks))
        # A status for a client that has gone fails, and grpc never frees what it was made of.
        assert len(at.methods.contexts) == 20
        assert not any(context.done() for context in at.methods.contexts)

    served(main)


def test_who_ends_the_calls_that_somebody_else_is_ending_waits_no_longer_than_they_do() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = channel.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD)
            assert await call.read() == b"first"
            guard = at.endpoint._guard
            assert guard is not None
            # Neither to its limit, which is later than this test's.
            await asyncio.gather(*(guard.end(10 * DEADLINE) for _ in range(2)))
            assert at.counts.open == 0

    served(main)


@pytest.mark.spec("CL-1", "CL-2", "C-27")
def test_a_stop_ends_streams_with_unavailable_and_removes_the_socket() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = channel.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD)
            assert await call.read() == b"first"
            await at.endpoint.close()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not at.path.exists()

    served(main)


@pytest.mark.spec("C-14", "EP-16")
def test_calls_above_the_limit_are_told_to_come_back_and_the_open_ones_go_on() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as one, at.channel() as other:
            calls = [one.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD) for _ in range(3)]
            for call in calls:
                assert await call.read() == b"first"
            got, code, text = await stream_code_of(
                other.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD)
            )
            assert (got, code) == ([], grpc.StatusCode.UNAVAILABLE)
            assert "open calls" in text
            assert at.counts.refused == ["open calls"]
            calls[0].cancel()
            await until(lambda: at.counts.open == 2)
            assert await other.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"

    served(main, Limits(calls=3))


def test_a_burst_is_taken_and_what_is_above_it_is_refused() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = channel.unary_unary("/SpiffeWorkloadAPI/Call")
            codes = [(await code_of(call(b"", metadata=GOOD)))[0] for _ in range(8)]
        assert codes == [grpc.StatusCode.OK] * 5 + [grpc.StatusCode.UNAVAILABLE] * 3
        assert at.counts.refused == ["calls a second"] * 3

    served(main, Limits(rate=0.0001, burst=5))


def test_what_is_asked_on_an_open_stream_counts_as_calls_do_and_waits() -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = channel.stream_stream("/SpiffeWorkloadAPI/Echo")(metadata=GOOD)
            for number in range(3):
                await call.write(b"%d" % number)
                assert await call.read() == b"%d" % number
            await call.write(b"one too many")
            code, _ = await code_of(channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"", metadata=GOOD))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert at.methods.seen == [b"0", b"1", b"2"]
            call.cancel()
        await until(lambda: at.counts.open == 0)

    served(main, Limits(rate=0.0001, burst=4))


@pytest.mark.parametrize("relayed", [True, False])
def test_connections_above_the_limit_are_closed_and_the_open_ones_go_on(relayed: bool) -> None:
    async def main(at: Served) -> None:
        async with at.channel() as channel:
            call = channel.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD)
            assert await call.read() == b"first"
            raw = [await asyncio.open_unix_connection(at.path) for _ in range(12)]
            closed = 0
            for reader, _ in raw:
                # The server speaks first (SETTINGS) on a connection that it takes.
                closed += (await reader.read(9)) == b""
            assert closed >= 12 - 3
            assert await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"
            for _, writer in raw:
                writer.close()
        await until(lambda: at.counts.open == 0)
        async with at.channel() as channel:
            assert (
                await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD, wait_for_ready=True) == b"x"
            )

    served(main, Limits(connections=4), relayed=relayed)


@pytest.mark.spec("C-19", "EP-7")
@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096])
def test_what_is_no_http2_is_closed_and_hurts_nobody(rubbish: bytes) -> None:
    async def main(at: Served) -> None:
        reader, writer = await asyncio.open_unix_connection(at.path)
        writer.write(rubbish)
        while await reader.read(4096):
            pass
        writer.close()
        async with at.channel() as channel:
            assert await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"x", metadata=GOOD) == b"x"

    served(main)


@pytest.mark.spec("CL-21")
def test_keepalive_pings_on_an_idle_stream_are_borne() -> None:
    """A raw HTTP/2 client: preface, SETTINGS, one stream, then more PINGs than a default server takes (two strikes)."""

    async def main(at: Served) -> None:
        reader, writer = await asyncio.open_unix_connection(at.path)
        writer.write(attacks.PREFACE + attacks.frame(4, 0, 0))
        for number in range(20):
            # One after the other: a GOAWAY comes behind the answer to the ping that was one too many.
            writer.write(attacks.frame(6, 0, 0, number.to_bytes(8, "big")))
            answered = False
            while not answered:
                kind, flags, payload = await read_frame(reader)
                assert kind != 7, f"GOAWAY: {payload!r}"
                answered = kind == 6 and flags == 1
        writer.close()

    served(main)


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    head = await reader.readexactly(9)
    return head[3], head[4], await reader.readexactly(int.from_bytes(head[:3], "big"))


def test_metadata_that_no_setting_limits_is_refused_and_who_acknowledges_nothing_is_closed() -> None:
    """A client is not held to what the server's SETTINGS say by what it sent before it acknowledged them."""

    async def main(at: Served) -> None:
        mute, quiet = await asyncio.open_unix_connection(at.path)
        unheard, speaks = await asyncio.open_unix_connection(at.path)
        speaks.write(attacks.PREFACE + attacks.frame(4, 0, 0) + attacks.call(1))
        for _ in range(5):
            reader, writer = await asyncio.open_unix_connection(at.path)
            writer.write(attacks.PREFACE + attacks.frame(4, 0, 0) + attacks.call(1, (b"x", b"y" * 30_000)))
            writer.write(attacks.frame(4, attacks.ACK, 0))
            seen = b""
            while b"grpc-status" not in seen:
                kind, _, payload = await read_frame(reader)
                seen = payload if kind == 1 else seen
            # Above its soft limit grpc refuses by chance: of such calls one in 200, before we see it.
            if b"received metadata size" not in seen:
                break
            writer.close()
        assert b"metadata of more than" in seen
        assert not at.methods.tasks
        assert at.counts.open == 0
        # Neither who says nothing nor who acknowledges nothing is kept.
        for each in (unheard, mute):
            while await each.read(4096):
                pass
        assert at.counts.taken == []
        for ours in (writer, quiet, speaks):
            ours.close()

    served(main)


@pytest.mark.spec("C-23")
def test_a_socket_file_that_an_ended_process_left_is_replaced() -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            path = Path(base, "socket")
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(path))
            endpoint = Endpoint([Methods().handlers("SpiffeWorkloadAPI")], alone(), Counts())
            await endpoint.open(str(path))
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                call: Any = channel.unary_unary("/SpiffeWorkloadAPI/Call")
                assert await call(b"x", metadata=GOOD) == b"x"
            await endpoint.close()

    asyncio.run(run())


@pytest.mark.parametrize("step", ["add_insecure_port", "start"])
def test_a_socket_that_could_not_be_made_is_made_at_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            path, counts, stopped, account = Path(base, "socket"), Counts(), [], alone()
            endpoint = Endpoint([Methods().handlers("SpiffeWorkloadAPI")], account, counts)
            kind: Any = type(grpc.aio.server())
            stop = kind.stop

            async def noted(server: Any, grace: float | None) -> None:
                stopped.append(server)
                await stop(server, grace)

            def fails(*_: object) -> Any:
                raise RuntimeError("no room")

            monkeypatch.setattr(kind, "stop", noted)
            with monkeypatch.context() as full:
                full.setattr(kind, step, fails)
                with pytest.raises(OSError, match="cannot listen on the volume's socket: no room"):
                    await endpoint.open(str(path))
            assert len(stopped) == 1
            assert endpoint.open_calls == []
            await endpoint.close()
            assert len(stopped) == 1
            path.unlink(missing_ok=True)
            await endpoint.open(str(path))
            try:
                served = Served(path, Methods(), counts, endpoint, account)
                async with served.channel() as channel:
                    call = channel.unary_unary("/SpiffeWorkloadAPI/Call")
                    assert await call(b"x", metadata=GOOD, timeout=DEADLINE) == b"x"
            finally:
                await endpoint.close()

    asyncio.run(run())
