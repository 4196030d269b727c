"""The channel to a worker: whatever comes on it, in whatever pieces, is a message within its bounds or ends it."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import grpc.aio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.frames import LENGTH, BadFrame, Frames
from runtime.stopping import end
from signer.front import budget
from signer.front.server import MAX_ANSWER
from signer.workers import messages
from signer.workers.channel import MOST, Channel
from signer.workers.worker import (
    BEAT,
    BEGINS,
    BEGINS_AT_ONCE,
    CALLS_OF_PEER,
    PATIENCE,
    STOPS,
    STRAYS_AT_ONCE,
    Worker,
)
from tests.unit.runtime.test_stopping import on_fake_time
from tests.unit.signer.workers import Pipe, joined

# Some come back meanwhile.
STRAYS = 2 * int(STRAYS_AT_ONCE)
CALLS = st.integers(1, 2**63 - 1)
REPORTS = st.one_of(
    st.builds(
        messages.Begun,
        CALLS,
        st.text(max_size=60),
        st.text(max_size=60),
        st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=50)), max_size=20),
        st.none() | st.floats(0, 1e6),
    ),
    st.builds(messages.Said, CALLS, st.none() | st.binary(max_size=200)),
    st.builds(messages.Taken, CALLS),
    st.builds(messages.Left, CALLS),
    st.builds(messages.Serves, CALLS, st.text(max_size=60)),
    st.builds(messages.Stopped, CALLS),
)


def frames() -> "Frames[messages.Report]":
    return Frames(msgspec.msgpack.Decoder(messages.Report), messages.MAX_FRAME)


def framed(*said: Any) -> bytes:
    encoded = [each if isinstance(each, bytes) else msgspec.msgpack.encode(each) for each in said]
    return b"".join(len(each).to_bytes(LENGTH, "big") + each for each in encoded)


@given(st.lists(REPORTS, max_size=8), st.data())
def test_what_was_said_is_heard_in_whatever_pieces_it_comes(said: "list[messages.Report]", data: st.DataObject) -> None:
    rest, reading, heard = framed(*said), frames(), []
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        heard += reading.feed(rest[:cut])
        rest = rest[cut:]
    assert heard == said


@given(st.binary(max_size=400))
def test_rubbish_is_refused_in_words_that_quote_none_of_it(rubbish: bytes) -> None:
    try:
        found = frames().feed(framed(rubbish))
    except BadFrame as error:
        assert str(error).startswith("a frame that is no message (")
    else:
        assert all(isinstance(each, messages.Report) for each in found)


@pytest.mark.parametrize(
    "said",
    [
        (messages.MAX_FRAME + 1).to_bytes(LENGTH, "big"),
        framed(messages.Said(1, bytes(budget.MAX_MINT + 1))),
        framed(messages.Begun(1, "m" * 257, "peer", [], None)),
        framed(messages.Begun(1, "m", "p" * 257, [], None)),
        framed(messages.Begun(1, "m", "p", [("a", b"b")] * (budget.MOST_HEADERS // 33 + 2), None)),
        framed(messages.Begun(1, "m", "p", [("a", bytes(messages.MOST_PACKED + 1))], None)),
        framed(messages.Begun(1, "m", "p", [], float("nan"))),
        framed(messages.Begun(1, "m", "p", [], -1.0)),
        framed(messages.Serves(1, "x" * 257)),
        framed(messages.Lacking(["no files"] * 9)),
        # What the signer says to workers.
        framed(messages.Refuse(1, 2, "", [])),
        framed([6, 1, 2]),
    ],
    ids=range(12),
)
def test_each_bound_holds(said: bytes) -> None:
    with pytest.raises(BadFrame):
        frames().feed(said)


def test_orders_have_room_for_what_the_signer_says() -> None:
    order = messages.Answer(7, bytes(8 * budget.MIB), last=False)
    reading: Frames[Any] = Frames(msgspec.msgpack.Decoder(messages.Order), messages.MAX_ORDER)
    assert reading.feed(framed(order)) == [order]


def test_the_key_is_in_no_text() -> None:
    order = messages.Serve(1, "/a", b"-----BEGIN SECRET", b"chain", [], [])
    assert "SECRET" not in f"{order} {order!r}"


def test_headers_come_out_as_they_went_in() -> None:
    headers = (("authorization", "Bearer é"), ("some-bin", b"\xff\x00"))
    assert messages.unpacked(messages.packed(headers)) == headers
    assert messages.unpacked([("a", b"\xff")]) == (("a", "\ufffd"),)


class Reads:
    """A handler that reads messages without an end; `begun` counts those under way."""

    response_serializer = bytes
    stream_stream = None

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.heard: list[bytes] = []

    async def stream_unary(self, said: Any, context: Any) -> bytes:
        self.begun += 1
        try:
            async for each in said:
                self.heard.append(each)
        finally:
            self.ended += 1
        return b"done"


def begun(call: int, method: str = "/a", peer: str = "own") -> messages.Begun:
    return messages.Begun(call, method, peer, [], None)


def many(number: int, size: int) -> messages.Begun:
    """With so many headers."""
    return messages.Begun(1, "/a", "own", [(f"h{each}", bytes(size)) for each in range(number)], None)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ([begun(1), begun(1)], "a call's number again"),
        ([begun(2), begun(1)], "a call's number again"),
        ([begun(1, "/b")], "a call of a method that there is not"),
        ([begun(1), messages.Taken(1)], "a word of an answer that was not given"),
        ([begun(1), "turns", messages.Said(1, b"x"), messages.Said(1, b"y")], "a message that nobody wanted"),
        ([begun(1), messages.Said(1, b"too early")], "a message that nobody wanted"),
        ([messages.Serves(1, "")], "an answer to nothing"),
        ([messages.Stopped(1)], "an answer to nothing"),
        ([messages.Lacking(["everything"])], "that it lacks what there is not"),
        ([messages.Left(9)] * STRAYS, "too much of calls that are none"),
        ([begun(each, peer="another's") for each in range(1, STRAYS)], "too much of calls that are none"),
        ([begun(each) for each in range(1, STRAYS)], "too much of calls that are none"),
        ([messages.Pong()], "a sign of life that nobody asked for"),
        ([messages.Lacking(["no files"]), messages.Lacking(["no files"])], "that it lacks what there is not"),
        ([many(9, budget.MOST_HEADERS)], "more headers than there can be"),
        ([many(2, budget.MOST_HEADERS)], "more headers than there can be"),
    ],
    ids=range(16),
)
def test_what_a_worker_may_not_say_now_ends_it_and_its_calls(says: list[Any], why: str) -> None:
    async def run() -> None:
        handler = Reads()
        worker = Worker({"/a": handler}, lambda peer: peer == "own", lambda names: None)  # type: ignore[dict-item]
        pipe = Pipe(Channel(frames(), lambda _: None, lambda _: None))
        worker._channel.connection_made(pipe)
        for each in says:
            if each == "turns":
                await turns()
            else:
                worker._channel.data_received(framed(each))
            if pipe.closed:
                break
        assert pipe.closed
        assert why in worker._channel._why
        worker._channel.connection_lost(None)
        await turns()
        assert (worker.calls, handler.begun) == (0, handler.ended)

    asyncio.run(run())


def test_a_worker_speaks_for_connections_that_it_was_handed_and_no_others() -> None:
    """It knows how others' are called: else it would have them struck, or take their nodes' shares."""

    async def run() -> None:
        handler = Reads()
        child, worker = joined({"/a": handler}, lambda peer: peer == "own")  # type: ignore[dict-item]
        orders: asyncio.Queue[messages.Order] = asyncio.Queue()
        child._orders = dict.fromkeys((1, 2), orders)
        for number, peer in ((1, "another's"), (2, "own")):
            worker.heard(begun(number, peer=peer))
        await turns()
        assert handler.begun == worker.calls == 1
        found = [orders.get_nowait() for _ in range(orders.qsize())]
        assert [(type(each).__name__, each.call) for each in found] == [("Refuse", 1), ("Want", 2)]  # type: ignore[union-attr]

    asyncio.run(run())


def test_one_connection_has_so_many_calls_whatever_its_worker_says() -> None:
    async def run() -> None:
        handler = Reads()
        _, worker = joined({"/a": handler})  # type: ignore[dict-item]
        for number in range(1, CALLS_OF_PEER + 50):
            worker.heard(begun(number))
        await turns()
        assert handler.begun == worker.calls == CALLS_OF_PEER
        worker.heard(messages.Left(1))
        # Both may come at once: who resets a call and begins another has no more than before.
        worker.heard(begun(CALLS_OF_PEER + 50))
        await turns()
        assert (handler.begun, handler.ended) == (CALLS_OF_PEER + 1, 1)
        assert worker.calls == CALLS_OF_PEER
        worker.left("own")
        await turns()
        assert (handler.ended, worker.calls, dict(worker._of_peers)) == (CALLS_OF_PEER + 1, 0, {})

    asyncio.run(run())


def test_what_nobody_waits_for_is_given_up() -> None:
    async def run() -> None:
        handler = Reads()
        child, worker = joined({"/a": handler})  # type: ignore[dict-item]

        class Context:
            def invocation_metadata(self) -> None:
                return None

            def peer(self) -> str:
                return "own"

            def time_remaining(self) -> float:
                return 1.0

        async def silent() -> Any:
            await asyncio.Event().wait()
            yield b""

        async def calling() -> None:
            async for _ in child.call("/a", silent(), Context()):
                raise AssertionError("an answer")

        task = asyncio.ensure_future(calling())
        await turns()
        assert (handler.begun, worker.calls) == (1, 1)
        task.cancel()
        await turns()
        assert (handler.ended, worker.calls, child._orders) == (1, 0, {})

    asyncio.run(run())


class Silent:
    """A context of gRPC's."""

    def invocation_metadata(self) -> None:
        return None

    def peer(self) -> str:
        return "own"

    def time_remaining(self) -> None:
        return None


async def nothing() -> Any:
    await asyncio.Event().wait()
    yield b""


def test_a_caller_that_does_not_take_its_answer_is_cut_off_when_its_time_is_over() -> None:
    """As in one process, where it is gRPC's task that ends."""
    ended: list[bool] = []

    async def answers(said: Any, context: Any) -> Any:
        patience = asyncio.timeout(0.05)
        try:
            async with patience:
                yield b"one"
                yield b"two"
        finally:
            ended.append(patience.expired())

    async def run() -> None:
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(answers, None, None)
        child, worker = joined({"/a": handler})

        async def caller() -> None:
            async with aclosing(child.call("/a", nothing(), Silent())) as found:  # type: ignore[type-var]
                async for _ in found:
                    await asyncio.Event().wait()

        calling = asyncio.ensure_future(caller())
        await asyncio.wait([calling], timeout=10)
        assert calling.cancelled()
        await turns()
        assert (ended, worker.calls, child._orders, child._sending) == ([True], 0, {}, {})

    asyncio.run(run())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_worker_that_gives_no_sign_of_life_is_lost(hangs: bool) -> None:
    async def run() -> None:
        child, worker = joined({})
        if hangs:
            child._channel._heard = lambda _: None
        watching = asyncio.ensure_future(worker.watch())
        await asyncio.sleep(2 * BEAT + PATIENCE)
        assert (watching.done(), worker._over.is_set()) == (hangs, hangs)
        assert worker._why == ("it gives no sign of life" if hangs else "")
        watching.cancel()

    on_fake_time(run)


class Full(Pipe):
    """The other end reads nothing; `paused`: whether nothing of it is read."""

    paused = False

    def __init__(self) -> None:
        super().__init__(Channel(frames(), lambda _: None, lambda _: None))
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def test_a_worker_that_reads_nothing_is_ended_before_what_it_is_told_fills_the_memory() -> None:
    """And one that reads in time gets all of it, in its order."""

    async def run() -> None:
        for reads in (False, True):
            worker, pipe = Worker({}, lambda peer: True, lambda names: None), Full()
            channel = worker._channel
            channel.connection_made(pipe)
            channel.pause_writing()
            refuse = messages.Refuse(1, 8, "x" * 1000, [])
            size = LENGTH + len(msgspec.msgpack.encode(refuse))
            fits = MOST // size
            for _ in range(fits):
                channel.post(refuse)
            await turns()
            assert (pipe.closed, pipe.written) == (False, 0)
            if reads:
                channel.resume_writing()
                assert pipe.written == fits * size
            for _ in range(2):
                channel.post(refuse)
            await turns()
            assert pipe.closed is not reads
            assert channel._why == ("" if reads else "it takes nothing of what it is told")
            assert len(channel._out) <= MOST + 2 * size

    asyncio.run(run())


def test_what_is_large_waits_for_room_one_after_another() -> None:
    async def run() -> None:
        pipe = Full()
        channel: Channel[messages.Report] = Channel(frames(), lambda _: None, lambda _: None)
        channel.connection_made(pipe)
        channel.pause_writing()
        sending = [asyncio.ensure_future(channel.send(messages.Answer(1, bytes(1000), last=False))) for _ in range(3)]
        await turns()
        # Room that others have taken again.
        channel.resume_writing()
        channel.pause_writing()
        await turns()
        assert (len(channel._out), pipe.written) == (0, 0)
        channel.resume_writing()
        await asyncio.gather(*sending)
        await turns()
        assert pipe.written > 3000

    asyncio.run(run())


def test_calls_that_begin_faster_than_any_replica_answers_are_read_later() -> None:
    async def run() -> None:
        worker, pipe = Worker({"/a": Reads()}, lambda peer: True, lambda names: None), Full()  # type: ignore[dict-item]
        worker._channel.connection_made(pipe)
        over = 1000
        for number in range(1, int(BEGINS_AT_ONCE) + over + 1):
            worker.heard(begun(number, peer=str(number % 300)))
            assert pipe.paused is (number > BEGINS_AT_ONCE)
            worker.heard(messages.Left(number))
        await asyncio.sleep(0.01)
        assert pipe.paused
        await asyncio.sleep(over / BEGINS + 0.01)
        assert not pipe.paused

    on_fake_time(run)


@pytest.mark.parametrize(("beyond", "seconds"), [((), PATIENCE), ((STOPS,), STOPS)])
def test_a_server_that_does_not_end_in_time_costs_its_worker(beyond: tuple[float, ...], seconds: float) -> None:
    """One that retires while its worker serves others' agents has as long as any sign of life."""

    async def run() -> None:
        _, worker = joined({})
        worker._channel._heard = lambda _: None
        began = asyncio.get_running_loop().time()
        await worker.stop(1, 0.5, *beyond)
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.5 + seconds)
        assert (worker.over, worker._why) == (True, "it does not stop in time")

    on_fake_time(run)


class Ends:
    """A server of gRPC's, whose calls last for ever."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def stop(self, grace: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(grace or 0.0):
                await self._ended.wait()
        self._ended.set()


def test_a_server_that_ends_may_be_told_again_and_says_once_that_it_has() -> None:
    """A second word would be an answer to nothing, which ends the worker."""

    async def run() -> None:
        child, worker = joined({})
        child._servers[1] = Ends()  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        retiring = asyncio.ensure_future(worker.stop(1, 1800.0))
        await asyncio.sleep(10.0)
        await end((retiring,))
        began = loop.time()
        again = asyncio.ensure_future(worker.stop(1, 7.0, STOPS))
        await worker.stop(1, 5.0, STOPS)
        assert loop.time() - began == pytest.approx(5.0, abs=0.1)
        await again
        # It has ended there, and not yet at others.
        await worker.stop(1, 7.0, STOPS)
        assert loop.time() - began == pytest.approx(5.0, abs=0.1)
        # What was on its way when the server had ended.
        child._heard(messages.Stop(1, 0.0))
        await asyncio.sleep(10.0)
        assert (worker.over, worker._channel._why) == (False, "")

    on_fake_time(run)


def test_headers_that_would_end_its_worker_are_refused_by_it() -> None:
    refused: list[Any] = []

    class Context(Silent):
        def invocation_metadata(self) -> Any:
            return [("a", "x" * messages.MOST_PACKED)]

        async def abort(self, code: Any, details: str) -> None:
            refused.append(code)
            raise grpc.aio.AbortError

    async def run() -> None:
        child, worker = joined({"/a": Reads()})  # type: ignore[dict-item]
        with pytest.raises(grpc.aio.AbortError):
            await anext(child.call("/a", nothing(), Context()))
        await turns()
        assert (worker.calls, child._orders, worker._channel._why) == (0, {}, "")
        assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED]

    asyncio.run(run())


@pytest.mark.parametrize("what", ["answer", "trailing", "details"])
def test_no_answer_of_the_signer_ends_the_worker_that_is_to_pass_it_on(what: str) -> None:
    class Status:
        code = grpc.StatusCode.NOT_FOUND
        details = "x" * 100_000
        trailing_metadata = (("a-bin", bytes(100_000 if what == "trailing" else 10)),)

    async def answers(said: Any, context: Any) -> Any:
        if what != "answer":
            await context.abort_with_status(Status())
        yield bytes(MAX_ANSWER + 1)

    found: list[Any] = []

    class Context(Silent):
        async def abort(self, code: Any, details: str, trailing: Any) -> None:
            found.extend((code, len(details), trailing))
            raise grpc.aio.AbortError

    async def run() -> None:
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(answers, None, None)
        child, worker = joined({"/a": handler})
        with pytest.raises(grpc.aio.AbortError):
            await anext(child.call("/a", nothing(), Context()))
        assert not child._over.is_set()
        assert (worker._channel._why, child._channel._why) == ("", "")

    asyncio.run(run())
    code, length, trailing = found
    assert code is (grpc.StatusCode.RESOURCE_EXHAUSTED if what == "answer" else grpc.StatusCode.NOT_FOUND)
    assert length <= 8 * 1024
    assert trailing == ((("a-bin", bytes(10)),) if what == "details" else ())
