"""The channel between agent and exposed process: whatever comes is a message within its bounds, or ends it."""

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.authority.protocol import MintRequest
from agent.channel import messages
from agent.channel.frames import One, Wire
from agent.channel.snapshots import Reader, Writer
from agent.metrics import Metrics
from agent.socket import reflection
from agent.socket.methods import Methods
from agent.socket.serving import Serving
from runtime.feed import Feed
from runtime.frames import LENGTH, BadFrame, Frames
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.handed import UnreadIdentity
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid
from tests.csi_rig import ISSUER, unchecked
from tests.fake_authority import FakeAuthority, StepClock
from tests.here_sockets import alone
from tests.unit.agent.test_issuer import POD, read_extensions


def framed(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH, "big") + body


REPORTS = (
    messages.Ready(("no files",)),
    messages.Opened(3, ""),
    messages.Closed(3),
    messages.Wanted(1, 3, "spiffe://example.org/a", ("api",)),
    messages.Seen(2, (("/A", 1.5),), ((1, 2, 3),)),
    messages.Counted({"/A": 1}, {"/A": 0}, {}, 0, 0),
    messages.Said(30, "podsvid.sds", "rejected", {"why": "no"}),
    messages.Pong(),
)


@given(st.data())
def test_messages_are_the_same_however_they_are_cut(data: st.DataObject) -> None:
    whole = b"".join(framed(each) for each in REPORTS)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    frames: Frames[Any] = Frames(messages.reports(), messages.MAX_REPORT)
    found = []
    for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += frames.feed(whole[first:last])
    assert found == list(REPORTS)


@given(st.lists(st.binary(max_size=64), max_size=8), st.booleans())
def test_rubbish_is_refused_and_nothing_else_happens(parts: list[bytes], framed_too: bool) -> None:
    for decoder in (messages.reports(), messages.orders()):
        frames: Frames[Any] = Frames(decoder, 1024)
        try:
            for part in parts:
                head = len(part).to_bytes(LENGTH, "big") if framed_too else b""
                for message in frames.feed(head + part):
                    assert isinstance(message, msgspec.Struct)
        except BadFrame as error:
            assert len(str(error)) < 80


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8), st.lists))
def test_a_message_of_another_shape_is_refused(value: object) -> None:
    for tag in ("wanted", "said", "counted", "seen", "opened"):
        body = msgspec.msgpack.encode({"type": tag, "request": value, "volume": value, "fields": value, "calls": value})
        with pytest.raises(BadFrame):
            Frames(messages.reports(), messages.MAX_REPORT).feed(len(body).to_bytes(LENGTH, "big") + body)


@pytest.mark.parametrize(
    "message",
    [
        messages.Wanted(1, 1, "", ("a",)),
        messages.Wanted(1, 1, "s" * 2049, ("a",)),
        messages.Wanted(1, 1, "s", ()),
        messages.Wanted(1, 1, "s", ("",)),
        messages.Wanted(1, 1, "s", ("a" * 513,)),
        messages.Wanted(1, 1, "s", ("a",) * 33),
        messages.Wanted(-1, 1, "s", ("a",)),
        messages.Wanted(1, 2**53, "s", ("a",)),
        messages.Said(51, "l", "e", {}),
        messages.Said(10, "l" * 129, "e", {}),
        messages.Said(10, "l", "e" * 513, {}),
        messages.Said(10, "l", "e", {str(number): "" for number in range(17)}),
        messages.Said(10, "l", "e", {"a": "x" * (16 * 1024 + 1)}),
        messages.Counted({str(number): 1 for number in range(65)}, {}, {}, 0, 0),
        messages.Counted({"/A": -1}, {}, {}, 0, 0),
        messages.Counted({}, {}, {}, -1, 0),
        messages.Seen(1, (("/A", 1.0),) * 1025, ()),
        messages.Seen(1, (("/A", float("nan")),), ()),
        messages.Seen(1, (), ((0, 0, -1),)),
        messages.Seen(1, (), ((0, 2**32, 1),)),
        messages.Ready(("x",) * 17),
        messages.Begin(1, 1, 1.0, 1, "", "", "", True, 10, 1),
    ],
    ids=str,
)
def test_what_is_beyond_its_bounds_is_refused(message: msgspec.Struct) -> None:
    with pytest.raises(BadFrame):
        Frames(messages.reports(), messages.MAX_REPORT).feed(framed(message))


def test_a_long_frame_is_refused_by_its_length_alone() -> None:
    with pytest.raises(BadFrame, match="1025 bytes, 1024 are possible"):
        Frames(messages.reports(), 1024).feed((1025).to_bytes(LENGTH, "big"))


def test_who_sends_very_much_at_once_leaves_others_their_turn() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        wire = Wire(ours, messages.reports(), messages.MAX_REPORT)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
        theirs.sendall(framed(messages.Counted({}, {}, {}, 0, 0)) * 1000)
        theirs.close()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        other = asyncio.ensure_future(others())
        got = 0
        async for _ in wire.received():
            got += 1
            assert got <= 50 * (turns + 2)
        assert got == 1000
        other.cancel()
        wire.close()

    asyncio.run(run())


def test_every_method_that_is_served_is_a_label_and_nothing_else() -> None:
    clock = StepClock()
    feed: Feed[WorkloadIdentity] = Feed()

    class Never:
        async def get(self, *_: object) -> Any:
            raise AssertionError

    endpoint = Serving().endpoint(feed, Never(), clock, Metrics(), "default/web", alone())
    served: set[str] = set()
    for handler in endpoint._handlers:
        assert isinstance(handler, Methods)
        served |= set(handler._methods)
    for handler in reflection.handlers():
        served |= set(handler._method_handlers)  # type: ignore[attr-defined]
    assert served == set(messages.METHODS)


def test_the_numbers_of_an_rsa_key_are_not_looked_at_again_by_who_serves() -> None:
    # Whatever else it serves would wait for as long as that takes.
    given = WorkloadIdentity((unchecked(),), ISSUER.bundle)
    found = Reader().identity(Writer().snapshot(given))
    assert found.svids[0].lean().serial == given.svids[0].serial


def test_who_serves_keeps_nothing_of_what_was_read_in_a_certificate() -> None:
    reader, snapshot = Reader(), Writer().snapshot(WorkloadIdentity((unchecked(),), ISSUER.bundle))
    # The bundle is one object for all, and is read.
    kept = [reader.identity(snapshot)]
    before = read_extensions()
    kept += [reader.identity(snapshot) for _ in range(4)]
    assert read_extensions() == before
    assert len({each.default.lean().serial for each in kept}) == 1


async def identity() -> WorkloadIdentity:
    authority = FakeAuthority(StepClock())
    key = KeyAlgorithm.EC_P256.generate()
    minted = await authority.mint_x509(MintRequest(POD, None, key, None, ()))
    svid = X509Svid(minted.spiffe_id, minted.chain, key, "hint")
    return WorkloadIdentity((svid,), minted.trust.bundle).with_trust(minted.trust)


def test_a_snapshot_is_what_it_was_made_of_and_bundles_are_shared() -> None:
    given = asyncio.run(identity())
    writer, reader = Writer(), Reader()
    first = reader.identity(
        msgspec.msgpack.decode(msgspec.msgpack.encode(writer.snapshot(given)), type=messages.Snapshot)
    )
    second = reader.identity(writer.snapshot(given))
    svid = given.svids[0]
    for each in (first.svids[0], first.svids[0].lean()):
        assert (each.spiffe_id, each.not_after, each.hint) == (svid.spiffe_id, svid.not_after, "hint")
        assert (each.chain_der(), each.chain_pem()) == (svid.chain_der(), svid.chain_pem())
        assert (each.key_der(), each.key_pem()) == (svid.key_der(), svid.key_pem())
    assert "key" not in repr(first.svids[0])
    assert (first.bundle, first.federated) == (given.bundle, given.federated)
    ends_at = svid.not_after
    assert first.expires_at == ends_at
    assert [first.is_granted(ends_at - each) for each in (timedelta(seconds=1), timedelta(0))] == [True, False]
    assert first.bundle is second.bundle


def test_a_bundle_that_changes_for_ever_is_kept_twice_and_many_trust_domains_are_all_kept() -> None:
    given = asyncio.run(identity())
    roots, writer, reader = given.bundle.x509_authorities, Writer(), Reader()
    steady = tuple(TrustBundle(TrustDomain(f"p{number}.test"), roots) for number in range(600))

    def sent(number: int) -> UnreadIdentity:
        changing = TrustBundle(TrustDomain("changing.test"), roots, sequence=number)
        return reader.identity(writer.snapshot(replace(given, federated=(*steady, changing))))

    first = sent(0)
    for number in range(1, 300):
        newest = sent(number)
    assert newest.federated[-1].sequence == 299
    assert all(one is other for one, other in zip(first.federated[:-1], newest.federated[:-1], strict=True))
    del first, newest
    alive = [each for each in gc.get_objects() if isinstance(each, TrustBundle) and each.trust_domain.name[0] == "c"]
    assert len(alive) == 4, "two that were written, two that were read"


def test_several_messages_go_at_once_and_no_more_are_made_than_are_sent_in_one_go() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        receiver: Wire[Any] = Wire(theirs, messages.reports(), messages.MAX_REPORT)
        left = list(range(10))
        failed: list[Exception] = []

        def some() -> Iterator[One]:
            while left:
                yield One(partial(messages.Opened, left.pop(0), "x" * 15_000), failed.append)

        assert sender.post(some) is None
        assert left == [5, 6, 7, 8, 9]
        found = receiver.received()
        assert [(await anext(found)).volume for _ in range(5)] == [0, 1, 2, 3, 4]
        assert sender.post(some) is None
        assert [(await anext(found)).volume for _ in range(5)] == [5, 6, 7, 8, 9]
        assert sender.post(some) is None
        assert sender.taken == sum(len(framed(messages.Opened(each, "x" * 15_000))) for each in range(10))
        assert failed == []
        for each in (sender, receiver):
            each.close()

    asyncio.run(main())


def test_one_of_several_that_cannot_be_written_takes_none_of_the_others_with_it() -> None:
    def broken() -> msgspec.Struct:
        raise MemoryError

    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        receiver: Wire[Any] = Wire(theirs, messages.reports(), messages.MAX_REPORT)
        failed: list[Exception] = []
        makers: list[Callable[[], msgspec.Struct]] = [
            partial(messages.Opened, 1, "x"),
            partial(messages.Opened, 2, "\ud800"),
            broken,
            partial(messages.Opened, 3, "y"),
        ]
        assert sender.post(lambda: (One(each, failed.append) for each in makers)) is None
        found = receiver.received()
        assert [(await anext(found)).volume for _ in range(2)] == [1, 3]
        assert [type(each) for each in failed] == [UnicodeEncodeError, MemoryError]
        assert sender.post(lambda: iter([One(broken, failed.append)])) is None
        assert sender.taken == sum(len(framed(messages.Opened(*each))) for each in [(1, "x"), (3, "y")])
        for each in (sender, receiver):
            each.close()

    asyncio.run(main())


def test_a_descriptor_comes_with_its_message_and_more_are_closed() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        receiver: Wire[Any] = Wire(theirs, messages.orders(), messages.MAX_SNAPSHOT, descriptors=True)
        reading, writing = os.pipe()
        await sender.send(messages.Open(1, "default/web", "uid", True, None), writing)
        os.close(writing)
        await sender.send(messages.Ping())
        found = []
        async for message in receiver.received():
            found.append(message)
            if isinstance(message, messages.Open):
                passed = receiver.descriptor()
                os.write(passed, b"here")
                os.close(passed)
                with pytest.raises(BadFrame, match="a descriptor is missing"):
                    receiver.descriptor()
            if len(found) == 2:
                break
        assert os.read(reading, 16) == b"here"
        assert os.read(reading, 16) == b"", "somebody still holds the other end"
        os.close(reading)
        sender.close()
        receiver.close()

    asyncio.run(main())


def test_who_has_the_number_of_an_end_that_was_closed_keeps_what_it_waits_for() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        wire: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        reading = asyncio.ensure_future(anext(wire.received()))
        await asyncio.sleep(0)
        number = ours.fileno()
        here, there = socket.socketpair()
        wire.close()
        os.dup2(here.fileno(), number)
        here.close()
        came, sender = await asyncio.open_connection(sock=socket.socket(fileno=number))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        there.send(b"x")
        async with asyncio.timeout(30):
            assert await came.read(1) == b"x"
        sender.close()
        await sender.wait_closed()
        there.close()
        theirs.close()

    asyncio.run(main())


def test_a_descriptor_that_the_exposed_process_sends_is_never_taken() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        agent: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        reading, writing = os.pipe()
        socket.send_fds(theirs, [framed(messages.Pong())], [writing])
        os.close(writing)
        async for message in agent.received():
            assert message == messages.Pong()
            break
        assert os.read(reading, 1) == b""
        os.close(reading)
        agent.close()
        theirs.close()

    asyncio.run(main())


def test_what_is_sent_while_nobody_reads_waits_and_comes_whole_though_its_sender_left() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        receiver: Wire[Any] = Wire(theirs, messages.reports(), messages.MAX_REPORT)
        lines = [messages.Said(20, "podsvid.sds", str(number), {"a": "x" * 16_000}) for number in range(100)]
        sending = [asyncio.ensure_future(sender.send(each)) for each in lines]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not all(each.done() for each in sending), "the kernel took all of it at once: the test shows nothing"
        for each in sending[::2]:
            each.cancel()
        found = []
        async for message in receiver.received():
            found.append(message)
            if len(found) == len(lines):
                break
        assert found == lines
        await asyncio.gather(*sending, return_exceptions=True)
        receiver.close()
        with pytest.raises(OSError):
            for _ in range(2):
                await sender.send(messages.Pong())
        sender.close()

    asyncio.run(main())


def test_a_descriptor_that_there_is_no_room_for_is_said_and_the_next_ones_are_their_own() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        receiver: Wire[Any] = Wire(theirs, messages.orders(), messages.MAX_SNAPSHOT, descriptors=True)
        pipes = [os.pipe() for _ in range(2)]
        for number, (_, writing) in enumerate(pipes):
            await sender.send(messages.Open(number, "default/web", "uid", True, None), writing)
        coming = receiver.received()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        # As where all are taken.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(pipes[0]), before[1]))
        try:
            first = await anext(coming)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert first.volume == 0
        with pytest.raises(OSError, match="Too many open files"):
            receiver.descriptor()
        assert (await anext(coming)).volume == 1
        os.write(receiver.descriptor(), b"second")
        assert os.read(pipes[1][0], 16) == b"second"
        await coming.aclose()
        sender.close()
        receiver.close()

    asyncio.run(main())


class Receiver:
    """The other end, which takes bytes when it is told to."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._frames: Frames[Any] = Frames(messages.orders(), messages.MAX_SNAPSHOT)
        self.found: list[Any] = []

    def take(self, most: int) -> int:
        try:
            data = self._end.recv(most)
        except BlockingIOError:
            return 0
        self.found += self._frames.feed(data)
        return len(data)


SIZES = st.sampled_from([1, 1000, 60_000, 300_000])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), SIZES),
            st.tuples(st.just("newest"), SIZES),
            st.tuples(st.just("left"), SIZES),
            st.tuples(st.just("take"), st.integers(1, 400_000)),
        ),
        max_size=40,
    )
)
def test_of_what_waits_one_message_is_bytes_and_all_come_in_their_order(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        wire: Wire[Any] = Wire(ours, messages.reports(), messages.MAX_REPORT)
        other = Receiver(theirs)
        made: list[int] = []
        sent: list[int] = []
        ends = [0]
        waiting: list[asyncio.Future[None]] = []

        def message(number: int, size: int) -> messages.NoToken:
            return messages.NoToken(number, True, "x" * size)

        def late(number: int, size: int) -> messages.NoToken:
            made.append(number)
            return message(number, size)

        for number, (what, size) in enumerate(steps):
            if what == "take":
                other.take(size)
            else:
                one = wire.post(message(number, size) if what == "send" else partial(late, number, size))
                sent.append(number)
                ends.append(ends[-1] + len(framed(message(number, size))))
                if one is not None:
                    waiting.append(one)
                    if what == "left":
                        one.cancel()
            await asyncio.sleep(0)
            whole = sum(end <= wire.taken for end in ends[1:])
            assert set(made) <= set(sent[: whole + 1]), "it was made before its turn"
            assert wire.held <= (ends[whole + 1] - ends[whole] if whole < len(sent) else 0)
        while len(other.found) < len(sent):
            if not other.take(400_000):
                await asyncio.sleep(0.001)
        assert [each.request for each in other.found] == sent
        await asyncio.gather(*waiting, return_exceptions=True)
        assert wire.held == 0
        assert wire.taken == sum(len(framed(each)) for each in other.found)
        wire.close()
        theirs.close()

    asyncio.run(main())


def test_what_serves_hands_on_no_svid_that_cannot_be_one() -> None:
    made = Writer().snapshot(asyncio.run(identity()))
    of, broken = made.svids[0], {"chain": b"\x30\x01", "key": b"\x30\x01", "spiffe_id": "spiffe://example.org/other"}
    with pytest.raises(SvidError):
        Reader().identity(msgspec.structs.replace(made, svids=()))
    with pytest.raises(SvidError):
        Reader().identity(msgspec.structs.replace(made, svids=(msgspec.structs.replace(of, spiffe_id="web"),)))
    for name, value in broken.items():
        other = msgspec.structs.replace(of, **{name: value})
        found = Reader().identity(msgspec.structs.replace(made, svids=(other,)))
        with pytest.raises(SvidError):
            found.default.lean().check(found.bundle, StepClock().now())
    for until in (-62135596801.0, 253402300800.0, float("nan")):
        message = messages.Changed(1, msgspec.structs.replace(made, svids=(msgspec.structs.replace(of, until=until),)))
        with pytest.raises(BadFrame):
            Frames(messages.orders(), messages.MAX_SNAPSHOT).feed(framed(message))
