"""The channel between the signer and a worker, both ends of it: what a worker says ends it or is within its bounds."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import grpc
import grpc.aio
import msgspec

from runtime.frames import Frames
from runtime.stopping import end
from signer.workers import messages
from signer.workers.calls import Methods
from signer.workers.child import Child
from signer.workers.confinement import LACKING
from signer.workers.worker import CALLS, CALLS_OF_PEER, Worker
from tests.fuzz.channel import Lines, framed, read
from tests.fuzz.made import Draw

# Turns of the loop after which nothing that was said is under way any more.
_TURNS = 12
_SAID, _ANSWERED = "/said", "/answered"


def workers(data: bytes) -> None:
    """What both ends say: the same however it is cut, and nothing of it goes further than the call that it is of."""
    reports = read(_reports, messages.Report, messages.MAX_FRAME, data)
    orders = read(_orders, messages.Order, messages.MAX_ORDER, data)
    for report in reports:
        _within(report)
    for order in orders:
        if isinstance(order, messages.Serve):
            assert repr(order) == f"Serve({order.server})"
    lines = Lines()
    root = logging.getLogger("podsvid")
    root.addHandler(lines)
    try:
        asyncio.run(_played(reports, data, orders))
    finally:
        root.removeHandler(lines)
    # The signer says of itself that it has a bug; of a worker it says nothing here.
    assert [(line.getMessage(), line.exc_info) for line in lines.found] == []


def _reports() -> Frames[Any]:
    return Frames(msgspec.msgpack.Decoder(messages.Report), messages.MAX_FRAME)


def _orders() -> Frames[Any]:
    return Frames(msgspec.msgpack.Decoder(messages.Order), messages.MAX_ORDER)


def _within(report: messages.Report) -> None:
    """Its bounds, written down a second time."""
    match report:
        case messages.Begun(_, method, peer, headers, left):
            assert max(len(method), len(peer)) <= 256
            assert len(headers) <= 8192 // 33 + 1
            assert all(len(name) <= 8192 and len(value) <= 16_384 for name, value in headers)
            assert left is None or left >= 0.0
        case messages.Said(_, message):
            assert message is None or len(message) <= 48 * 1024
        case messages.Serves(_, why):
            assert len(why) <= 256
        case messages.Lacking(what):
            assert len(what) <= 8
            assert all(len(each) <= 256 for each in what)


def _word(draw: Draw, newest: int) -> messages.Report:
    """Something that a worker may say, in time or not."""
    call = draw.byte() % (newest + 2)
    match draw.byte() % 16:
        case 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7:
            # Numbers that do not grow are rare.
            number = call if draw.byte() % 32 == 31 else newest + 1
            method, peer = draw.of((_SAID, _ANSWERED)), draw.of(("own", "own", "own", "another's"))
            left = draw.of((None, 0.0, 1.0, float("inf"), -1.0, float("nan")))
            return messages.Begun(number, method, peer, [("a", b"\xff"), ("b-bin", b"\xff")], left)
        case 8:
            return messages.Said(call, draw.of((b"", b"x", None)))
        case 9:
            return messages.Taken(call)
        case 10 | 11:
            return messages.Left(call)
        case 12:
            return messages.Serves(draw.byte() % 3, draw.of(("", "no")))
        case 13:
            return messages.Stopped(draw.byte() % 3)
        case 14:
            return messages.Lacking([draw.of((*LACKING, "x"))])
    return messages.Pong()


async def _played(reports: Sequence[messages.Report], data: bytes, orders: Sequence[messages.Order]) -> None:
    bugs: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    await _by_the_signer(reports, Draw(b""))
    await _by_the_signer((), Draw(data))
    await _by_a_worker(orders)
    assert bugs == []


async def _by_the_signer(reports: Sequence[messages.Report], draw: Draw) -> None:
    """One word after the other, until one ends the worker; mostly what it was told to say."""
    lacking: list[str] = []
    worker = Worker(_METHODS, lambda peer: peer == "own", lacking.extend)
    sink = _Sink()
    worker._channel.connection_made(sink)
    serve = messages.Serve(1, "/a", b"key", b"chain", [], [])
    waiting = [asyncio.ensure_future(worker.serve(serve)), asyncio.ensure_future(worker.stop(2, None))]
    await asyncio.sleep(0)
    told: Frames[Any] = _orders()
    owed: list[messages.Report] = []
    newest, rest = 0, list(reports)
    for _ in range(len(reports) + draw.byte() % 64):
        if not rest and draw.byte() % 2:
            # What is being handled goes on.
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        owed += [answer for each in told.feed(sink.taken()) for answer in _answer(each, draw)]
        said = rest.pop(0) if rest else owed.pop(0) if owed and draw.byte() % 8 else _word(draw, newest)
        if isinstance(said, messages.Begun):
            newest = max(newest, said.call)
        worker._channel.data_received(framed(msgspec.msgpack.encode(said)))
        if draw.byte() >= 250:
            # The door has closed their connection.
            worker.left("own")
        assert worker.calls <= CALLS
        assert all(peer == "own" and 0 < len(some) <= CALLS_OF_PEER for peer, some in worker._of_peers.items())
        if sink.closed:
            break
    assert sink.closed == bool(worker._channel._why)
    assert len(worker._channel._why) < 256
    assert all(each in LACKING for each in lacking)
    worker._channel.connection_lost(None)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    assert worker.over
    assert (worker.calls, dict(worker._of_peers)) == (0, {})
    assert all(each.done() for each in waiting)
    await end(waiting)


def _answer(order: messages.Order, draw: Draw) -> list[messages.Report]:
    """What a worker says to it that does as it is told."""
    match order:
        case messages.Want(call):
            return [messages.Said(call, draw.of((b"x", b"", None)))]
        case messages.Answer(call, _, last) if not last:
            return [messages.Taken(call)]
        case messages.Serve(server):
            return [messages.Serves(server, draw.of(("", "no")))]
        case messages.Stop(server):
            return [messages.Stopped(server)]
    return []


async def _by_a_worker(orders: Sequence[Any]) -> None:
    """It has one call; what servers it is to have is the signer's to say, and is not done here."""
    child, sink = Child(()), _Sink()
    child._channel.connection_made(sink)
    context = _Context()

    async def calling() -> None:
        async with aclosing(child.call(_SAID, _nothing(), context)) as answers:  # type: ignore[type-var]
            async for each in answers:
                assert isinstance(each, bytes)

    task = asyncio.ensure_future(calling())
    await asyncio.sleep(0)
    for each in orders:
        if isinstance(each, messages.Serve | messages.Stop):
            continue
        mine = msgspec.structs.replace(each, call=1) if hasattr(each, "call") else each
        for order in (each, mine):
            child._channel.data_received(framed(msgspec.msgpack.encode(order)))
            await asyncio.sleep(0)
    assert not sink.closed
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError, grpc.aio.AbortError):
        await task
    assert (child._orders, child._sending) == ({}, {})
    assert context.code is None or context.code in grpc.StatusCode
    child._channel.connection_lost(None)


class _Sink(asyncio.Transport):
    """The other end takes all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self._written = b""

    def write(self, data: Any) -> None:
        self._written += data

    def taken(self) -> bytes:
        """What was written since."""
        found, self._written = self._written, b""
        return found

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""

    def pause_reading(self) -> None:
        """What comes is told all the same."""

    def resume_reading(self) -> None:
        """See pause_reading."""


class _Context:
    """What a worker's gRPC knows of a call."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> None:
        return None

    def peer(self) -> str:
        return "own"

    def time_remaining(self) -> None:
        return None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        assert isinstance(details, str)
        assert all(isinstance(name, str) for name, _ in trailing)
        self.code = code
        raise grpc.aio.AbortError


async def _nothing() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def _reads(said: Any, context: Any) -> bytes:
    _looked_at(context)
    return b"".join([each async for each in said])


async def _answers(said: Any, context: Any) -> AsyncIterator[bytes]:
    _looked_at(context)
    async for each in said:
        assert isinstance(each, bytes)
        yield each


def _looked_at(context: Any) -> None:
    assert context.peer() == "own"
    left = context.time_remaining()
    assert left is None or left >= 0.0
    assert all(isinstance(name, str) for name, _ in context.invocation_metadata())


_METHODS: Methods = {
    _SAID: grpc.stream_unary_rpc_method_handler(_reads),
    _ANSWERED: grpc.stream_stream_rpc_method_handler(_answers),
}
