"""The signer's port: what passes it, who is closed, how much comes in, and what gRPC keeps to behind it."""

import asyncio
import gc
import math
import random
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.authority.endings import explain
from agent.authority.proven import ProvenSigner
from bench.attacks import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame
from bench.strangers import MINT, WATCH, bearer, head
from runtime import heap
from runtime.clock import SystemClock
from signer.attestation.pods import AgentAddresses
from signer.errors import Reason
from signer.front import budget, sweeping
from signer.front import door as module
from signer.front.admission import Admission
from signer.front.door import Door
from signer.front.way import Way
from signer.model import Sender, Standing
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.ports import free_port
from tests.signer_rig import Serving, Site, serving
from tests.unit.signer.test_minting import csr


class Inside:
    """Stands for grpc's server: a Unix socket that keeps what it gets and says what it is told to."""

    def __init__(self) -> None:
        self.got: list[bytearray] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.reading = asyncio.Event()
        self.reading.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.got)
        self.got.append(bytearray())
        self.writers.append(writer)
        while True:
            await self.reading.wait()
            found = await reader.read(65536)
            if not found:
                writer.close()
                return
            self.got[number] += found


class Rig:
    """A door before such a server."""

    def __init__(self, door: Door, admission: Admission, inside: Inside, port: int, refused: list[str]) -> None:
        self.door, self.admission, self.inside, self.port, self.refused = door, admission, inside, port, refused

    async def connect(self, first: bytes = b"hello") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Who says nothing waits outside."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(first)
        return reader, writer

    @property
    def peer(self) -> str:
        """Of the newest connection."""
        return list(self.door._passages)[-1]


def client_hello() -> bytes:
    """As agents send it."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="signer").do_handshake()
    return sent.read()


def doored(test: Callable[[Rig], Awaitable[None]], rate: int = 1 << 20, burst: int = 1 << 20, new: int = 1000) -> None:
    async def run(folder: Path) -> None:
        inside = Inside()
        refused: list[str] = []
        server = await asyncio.start_unix_server(inside.connected, folder / "inside")
        admission = Admission(new, refused.append, asyncio.get_running_loop().time, expected=AgentAddresses())
        door = Door(admission, rate, burst)
        door.target = folder / "inside"
        port = free_port()
        door.bind("127.0.0.1", port)
        door.open()
        try:
            async with asyncio.timeout(30):
                await test(Rig(door, admission, inside, port, refused))
        finally:
            await door.end()
            server.close()
            for each in inside.writers:
                each.close()

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_an_address_that_could_not_be_taken_can_be_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
        made: list[socket.socket] = []

        class Failing(socket.socket):
            def bind(self, *_: object) -> None:
                made.append(self)
                raise OSError(98, "Address already in use")

        with monkeypatch.context() as taken:
            taken.setattr(socket, "socket", Failing)
            with pytest.raises(OSError, match="already in use"):
                door.bind("127.0.0.1", 0)
        assert [each.fileno() for each in made] == [-1], "a socket of the attempt is left"
        door.bind("127.0.0.1", 0)
        assert len(door._listening) == 1
        await door.end()

    asyncio.run(run())


def test_bytes_pass_both_ways_unchanged_however_many() -> None:
    sent = random.Random(1).randbytes(3_000_000)

    async def test(rig: Rig) -> None:
        reader, writer = await rig.connect(sent[:100])
        await until(lambda: bool(rig.inside.got) and len(rig.inside.got[0]) == 100)
        assert rig.door.proven(rig.peer, "a")
        # Who is inside reads nothing for a while: what comes waits outside.
        rig.inside.reading.clear()
        writer.write(sent[100:])
        rig.inside.writers[0].write(sent)
        assert await reader.readexactly(len(sent)) == sent
        rig.inside.reading.set()
        await until(lambda: len(rig.inside.got[0]) == len(sent))
        assert rig.inside.got[0] == sent

    doored(test, rate=1 << 30, burst=1 << 30)


def test_a_stranger_brings_in_so_much_and_an_agent_goes_on() -> None:
    async def test(rig: Rig) -> None:
        _, _writer = await rig.connect(bytes(200_000))
        await until(lambda: bool(rig.inside.got) and len(rig.inside.got[0]) >= budget.GREETING)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert len(rig.inside.got[0]) == budget.GREETING
        rig.door.proven(rig.peer, "a")
        await until(lambda: len(rig.inside.got[0]) == 200_000)

    doored(test)


def test_who_sends_is_an_address_until_an_agent_has_proven_itself() -> None:
    async def test(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(b"x")
        await until(lambda: bool(rig.door._passages))
        assert rig.door.sender(rig.peer) == Sender(Standing.STRANGER, "127.0.0.1")
        assert rig.door.proven(rig.peer, "a")
        assert rig.door.sender(rig.peer) == Sender(Standing.AGENT, "a")
        # One that has gone meanwhile.
        assert rig.door.sender("unix-abstract:gone") == Sender(Standing.STRANGER, "")

    doored(test)


def test_what_young_connections_bring_in_is_bounded_for_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until grpc's limits must have been acknowledged, since until then it does not hold anybody to them."""
    monkeypatch.setattr(module, "SETTINGS_SECONDS", 2.0)
    monkeypatch.setattr("signer.front.young.YOUNG_BYTES", 80_000)

    async def test(rig: Rig) -> None:
        wanted, writers = 0, []
        # Each takes half of what is left.
        for number, share in enumerate((40_000, 20_000, 10_000)):
            _, writer = await rig.connect(bytes(100_000))
            writers.append(writer)
            await until(lambda number=number: len(rig.door._passages) > number)  # type: ignore[misc]
            rig.door.proven(rig.peer, f"node-{number}")
            wanted += budget.GREETING + share
            # The last bytes are given one by one.
            await until(lambda wanted=wanted: sum(map(len, rig.inside.got)) >= wanted - 3)  # type: ignore[misc]
        assert sum(map(len, rig.inside.got)) <= wanted
        await until(lambda: sum(map(len, rig.inside.got)) == 300_000)
        assert rig.door.young.borrow("other", 1 << 30) == 40_000

    doored(test)


def test_a_node_cannot_take_what_the_others_young_connections_need() -> None:
    async def test(rig: Rig) -> None:
        taken = [rig.door.young.borrow("thief", 1 << 30) for _ in range(9)]
        assert taken == [budget.YOUNG_BYTES // 2] + [0] * 8
        assert rig.door.young.borrow("honest", 1 << 30) == budget.YOUNG_BYTES // 4
        rig.door.young.give_back("thief", taken[0])
        rig.door.young.give_back("honest", budget.YOUNG_BYTES // 4)
        assert rig.door.young.borrow("honest", 1 << 30) == budget.YOUNG_BYTES // 2

    doored(test)


def test_a_young_connection_goes_on_with_what_its_answered_mints_have_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTINGS_SECONDS", 60.0)
    monkeypatch.setattr("signer.front.young.YOUNG_BYTES", 20_000)

    async def test(rig: Rig) -> None:
        _, _writer = await rig.connect(bytes(100_000))
        await until(lambda: bool(rig.door._passages))
        rig.door.proven(rig.peer, "a")
        most = budget.GREETING + 10_000
        await until(lambda: bool(rig.inside.got) and len(rig.inside.got[0]) == most)
        rig.door.used(rig.peer, 5_000)
        await until(lambda: len(rig.inside.got[0]) == most + 5_000)
        # Never more than it borrowed.
        rig.door.used(rig.peer, 1 << 30)
        await until(lambda: len(rig.inside.got[0]) == most + 15_000)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert len(rig.inside.got[0]) == most + 15_000
        rig.door.used("unix-abstract:gone", 1)

    doored(test)


def test_a_new_connections_mints_go_on_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than one node's young connections may bring in."""
    monkeypatch.setattr(module, "SETTINGS_SECONDS", 600.0)
    monkeypatch.setattr("signer.front.young.YOUNG_BYTES", 65_536)

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        claim = site.pod("web-1")
        request = signer_pb2.MintX509SVIDRequest(
            pod=signer_pb2.Pod(namespace=claim.namespace, name=claim.name, uid=claim.uid),
            pod_token=site.token(claim),
            # Larger beside its headers, which nobody knows the size of.
            csr=csr(KeyAlgorithm.RSA_4096.generate()),
        )
        token = (("authorization", f"Bearer {site.agent()}"),)
        async with channel(signer, folder) as found:
            call: Any = found.unary_unary(
                "/podsvid.signer.v1.Signer/MintX509SVID", signer_pb2.MintX509SVIDRequest.SerializeToString
            )
            for _ in range(2 * 32_768 // request.ByteSize()):
                await call(request, metadata=token, timeout=10)

    asked(test)


def test_one_agents_bytes_have_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTINGS_SECONDS", 0.0)

    async def test(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        _, writer = await rig.connect()
        await until(lambda: bool(rig.door._passages))
        began = loop.time()
        rig.door.proven(rig.peer, "a")
        writer.write(bytes(budget.GREETING + 20_000 + 40_000 - len(b"hello")))
        await until(lambda: bool(rig.inside.got) and len(rig.inside.got[0]) == budget.GREETING + 60_000)
        # Beyond what comes at once: 40,000 bytes at 100,000 a second.
        assert loop.time() - began >= 0.39

    doored(test, rate=100_000, burst=20_000)


@pytest.mark.parametrize("proven", [False, True])
def test_who_speaks_in_single_bytes_takes_few_turns_of_the_loop(proven: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read by itself at first; then some come together. Nothing is lost by it."""
    monkeypatch.setattr(module, "SETTINGS_SECONDS", 0.0)
    reads = 0
    pass_on = Way._pass_on

    def counted(way: Way) -> None:
        nonlocal reads
        reads += 1
        pass_on(way)

    monkeypatch.setattr(Way, "_pass_on", counted)

    async def test(rig: Rig) -> None:
        _, writer = await rig.connect(b"x")
        await until(lambda: bool(rig.door._passages))
        if proven:
            rig.door.proven(rig.peer, "a")
        for _ in range(1000):
            writer.write(b"x")
            for _ in range(4):
                await asyncio.sleep(0)
        await until(lambda: len(rig.inside.got[0]) == 1001)
        assert reads < 200

    most = 32 * budget.AGENT_READ
    doored(test, rate=most, burst=most)


def test_who_is_to_rest_is_not_read_and_others_are() -> None:
    async def test(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        _, one = await rig.connect()
        await until(lambda: len(rig.inside.got) == 1 and rig.inside.got[0] == b"hello")
        rig.door.proven(rig.peer, "a")
        rig.door.rest(rig.peer, 1.0)
        began = loop.time()
        one.write(b"more")
        _, other = await rig.connect()
        await until(lambda: len(rig.inside.got) == 2 and rig.inside.got[1] == b"hello")
        other.write(b"more")
        await until(lambda: rig.inside.got[1] == b"hellomore")
        assert rig.inside.got[0] == b"hello"
        # However often it is told: the longest counts, from when it was said.
        rig.door.rest(next(iter(rig.door._passages)), 0.0)
        await until(lambda: rig.inside.got[0] == b"hellomore")
        assert loop.time() - began >= 0.99
        rig.door.rest("unix-abstract:gone", 1.0)

    doored(test)


def test_an_agent_that_calls_without_end_gets_its_answers_no_faster_than_it_may_call() -> None:
    """Each is refused for its node's rate of mints, in a moment; it was asked as fast as it was answered."""

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        token = (("authorization", f"Bearer {site.agent()}"),)
        async with channel(signer, folder) as found:
            call: Any = found.unary_unary("/podsvid.signer.v1.Signer/MintX509SVID")
            began = loop.time()
            for _ in range(2 + 2 * 5):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(b"", metadata=token, timeout=20)
        # Two at once, and four a second.
        assert loop.time() - began >= 2.0
        assert value(signer, "calls") >= 5

    asked(test, "--node-rate", "1", "--node-burst", "1")


def test_who_says_nothing_is_closed_and_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "GREETING_SECONDS", 1.0)
    monkeypatch.setattr(sweeping, "SWEEP", 0.05)

    async def test(rig: Rig) -> None:
        silent, _silent = await rig.connect(b"")
        halting, _kept = await rig.connect()
        await until(lambda: len(rig.door._passages) == 1)
        agent, _other = await rig.connect()
        await until(lambda: len(rig.door._passages) == 2)
        rig.door.proven(rig.peer, "a")
        assert await silent.read() == b""
        assert await halting.read() == b""
        assert (rig.refused, len(rig.door._passages), rig.admission.agents) == (["silent"] * 2, 1, 1)
        assert (len(rig.inside.got), rig.admission.strangers) == (2, 0)
        assert not agent.at_eof()

    doored(test)


def test_who_says_nothing_costs_no_connection_inside() -> None:
    async def test(rig: Rig) -> None:
        _, silent = await rig.connect(b"")
        _, gone = await rig.connect(b"")
        await until(lambda: rig.admission.strangers == 2)
        gone.close()
        await until(lambda: rig.admission.strangers == 1)
        assert not rig.inside.got
        silent.write(b"hello")
        await until(lambda: rig.inside.got == [b"hello"])

    doored(test)


def test_who_waits_for_a_place_gets_it_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.front.admission.HOLD_SECONDS", 0.1)

    async def test(rig: Rig) -> None:
        # One address has both: the one that came later waits until the first had its time.
        rig.admission._most_strangers = 1
        first, _writer = await rig.connect()
        await until(lambda: len(rig.inside.got) == 1)
        _, second = await rig.connect(b"me too")
        await until(lambda: len(rig.inside.got) == 2)
        assert rig.refused == ["strangers"]
        assert await first.read() == b""
        second.close()

    doored(test)


def test_who_left_while_it_waited_for_a_place_costs_no_connection_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.front.admission.HOLD_SECONDS", 1000.0)

    async def test(rig: Rig) -> None:
        rig.admission._most_strangers = 1
        _, first = await rig.connect(b"first")
        await until(lambda: len(rig.inside.got) == 1)
        _, leaves = await rig.connect(b"leaves")
        await until(lambda: rig.admission.strangers == 2)
        _, stays = await rig.connect(b"stays")
        await until(lambda: rig.admission.strangers == 3)
        leaves.transport.abort()
        await asyncio.sleep(0)
        first.close()
        await until(lambda: len(rig.inside.got) == 2 and bool(rig.inside.got[1]))
        assert [bytes(each) for each in rig.inside.got] == [b"first", b"stays"]
        assert rig.refused == ["strangers"]
        stays.close()

    doored(test)


def test_a_whole_client_hello_is_grpcs_to_answer_and_half_of_one_is_not() -> None:
    """Else whoever sends the rest of it later makes the replica look slow."""
    hello = client_hello()

    async def test(rig: Rig) -> None:
        answering = rig.admission._answering
        reader, writer = await rig.connect(hello[:100])
        await until(lambda: bool(rig.inside.got) and len(rig.inside.got[0]) == 100)
        entry = rig.door._passages[rig.peer].entry
        assert entry not in answering
        writer.write(hello[100:])
        await until(lambda: len(rig.inside.got[0]) == len(hello))
        assert entry in answering
        rig.inside.writers[0].write(b"answer")
        await reader.readexactly(6)
        assert entry not in answering
        # Nothing more is looked at.
        writer.write(hello)
        await until(lambda: len(rig.inside.got[0]) == 2 * len(hello))
        assert entry not in answering
        writer.close()

    doored(test)


def test_whoever_is_refused_costs_no_connection_inside() -> None:
    async def test(rig: Rig) -> None:
        kept = []
        while not rig.refused.count("address") > 1:
            with suppress(ConnectionError):
                kept.append(await rig.connect())
        # Two at once: what came after them was reset.
        await until(lambda: len(rig.inside.got) == 2)
        assert rig.admission.strangers == 2

    doored(test, new=1)


def test_when_one_side_ends_so_does_the_other() -> None:
    async def test(rig: Rig) -> None:
        reader, writer = await rig.connect()
        await until(lambda: len(rig.inside.writers) == 1)
        rig.inside.writers[0].write(b"goodbye")
        rig.inside.writers[0].close()
        assert await reader.read() == b"goodbye"
        await until(lambda: not rig.door._passages)
        _, writer = await rig.connect()
        await until(lambda: len(rig.inside.writers) == 2)
        writer.close()
        await until(lambda: not rig.door._passages)
        assert (rig.admission.strangers, rig.admission.agents) == (0, 0)
        assert rig.door.proven("unix-abstract:gone", "a")

    doored(test)


def test_without_a_certificate_nobody_is_let_in_and_the_log_is_not_filled_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(rig: Rig) -> None:
        rig.door.target = None
        for _ in range(3):
            reader, _ = await rig.connect()
            with suppress(ConnectionError):
                assert await reader.read() == b""
            await until(lambda: rig.admission.strangers == 0)

    doored(test)
    assert [each.message for each in caplog.records if each.name == "podsvid.door"] == [
        "a connection cannot be passed on"
    ]


@asynccontextmanager
async def speaking(signer: Serving, *, acknowledge: bool = True) -> AsyncIterator[Any]:
    """HTTP/2 with a signer by hand."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = signer.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    if acknowledge:
        writer.write(frame(SETTINGS, 1, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, int, int, bytes]]:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            first = await reader.readexactly(9)
            size = int.from_bytes(first[:3], "big")
            yield first[3], first[4], int.from_bytes(first[5:], "big"), await reader.readexactly(size)


def asked(test: Callable[[Serving, Site, Path], Awaitable[None]], *flags: str) -> None:
    async def run(folder: Path) -> None:
        site = Site(datetime.now(UTC).replace(microsecond=0))
        async with asyncio.timeout(60), serving(site, folder, SystemClock(), *flags) as signer:
            await test(signer, site, folder)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


def asked_without_collector(test: Callable[[Serving, Site, Path], Awaitable[None]]) -> None:
    """As `asked`, where nothing that refers to itself goes."""
    gc.collect()
    gc.disable()
    try:
        asked(test)
    finally:
        gc.enable()


def value(signer: Serving, kind: str) -> float:
    found = signer.replica.metrics.registry.get_sample_value("podsvid_signer_turned_away_total", {"kind": kind})
    return found or 0.0


def test_grpc_announces_what_the_budget_counts_with() -> None:
    async def test(signer: Serving, site: Site, folder: Path) -> None:
        async with speaking(signer) as (reader, _):
            async for kind, flags, _, content in frames(reader):
                if kind == SETTINGS and not flags:
                    pairs = [content[at : at + 6] for at in range(0, len(content), 6)]
                    said = {int.from_bytes(each[:2], "big"): int.from_bytes(each[2:], "big") for each in pairs}
                    break
        assert said[3] == budget.STREAMS
        assert said[4] == budget.WINDOW
        assert said[6] == budget.MOST_HEADERS

    asked(test)


def test_a_call_without_a_token_is_refused_before_its_message_comes() -> None:
    async def test(signer: Serving, site: Site, folder: Path) -> None:
        async with speaking(signer) as (reader, writer):
            writer.write(frame(HEADERS, END_HEADERS, 1, head(MINT)))
            async for kind, flags, stream, _ in frames(reader):
                if stream == 1 and kind == HEADERS and flags & END_STREAM:
                    break
            else:
                pytest.fail("it was closed, not answered")

    asked(test)


def test_a_refused_call_leaves_nothing_for_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of them, each with thousands of headers, held the loop for a tenth of a second when it found them."""
    # The signer calls it by itself, too.
    monkeypatch.setattr(heap, "EVERY", 3600.0)

    def kept() -> int:
        return sum(type(each).__name__ == "_ServicerContext" for each in gc.get_objects())

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        token = site.agent(life=7200.0)
        for method, sent in (("MintX509SVID", ""), ("WatchTrust", ""), ("MintX509SVID", token), ("Mint", "")):
            async with channel(signer, folder) as found:
                call: Any = found.stream_stream(f"/podsvid.signer.v1.Signer/{method}")
                for _ in range(3):
                    one = call(iter([b"no message"]), metadata=(("authorization", f"Bearer {sent}"),))
                    assert await one.code() is not grpc.StatusCode.OK
                await until(lambda: kept() == 0)

    asked_without_collector(test)


def test_a_closed_connection_leaves_nothing_that_was_under_way_for_the_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each direction may hold what its other side has not taken."""
    monkeypatch.setattr(heap, "EVERY", 3600.0)

    def kept() -> int:
        return sum(isinstance(each, Way) for each in gc.get_objects())

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        async with channel(signer, folder) as found:
            await found.channel_ready()
            assert kept() == 2
        await until(lambda: kept() == 0)

    asked_without_collector(test)


def test_who_does_not_acknowledge_grpcs_limits_is_closed() -> None:
    async def test(signer: Serving, site: Site, folder: Path) -> None:
        token = site.agent(life=7200.0).encode()
        async with speaking(signer, acknowledge=False) as (reader, writer):
            writer.write(frame(HEADERS, END_HEADERS, 1, head(WATCH, bearer(token))))
            async for _ in frames(reader):
                pass

    asked(test)


def test_bad_tokens_close_the_connection_and_are_counted() -> None:
    async def test(signer: Serving, site: Site, folder: Path) -> None:
        async with speaking(signer) as (reader, writer):
            for number in range(10):
                writer.write(frame(HEADERS, END_HEADERS, 2 * number + 1, head(MINT, bearer(b"a.b.c%d" % number))))
            async for _ in frames(reader):
                pass
        assert value(signer, "unauthenticated") == 1
        metrics = signer.replica.metrics.registry.get_sample_value
        assert metrics("podsvid_signer_token_reviews_total", {"result": "refused"})
        # No keys are published here.
        assert metrics("podsvid_signer_token_key_reads_total", {"why": "start", "result": "failed"}) == 1

    asked(test)


def channel(signer: Serving, folder: Path) -> grpc.aio.Channel:
    roots = TrustBundle.from_jwks(TrustDomain("example.org"), signer.bundle_file.read_bytes()).to_pem()
    options = (("grpc.ssl_target_name_override", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.secure_channel(signer.address, grpc.ssl_channel_credentials(roots), options=options)


@pytest.mark.parametrize(("number", "young"), [(1, math.inf), (6, math.inf), (12, math.inf), (12, 0.0)])
def test_an_agent_that_starts_many_calls_on_a_new_connection_is_known_by_the_first(number: int, young: float) -> None:
    """They are more than a stranger may send: a node's pods after a restart of the signer.

    Its first words are in small records on a connection, too, on which nobody spoke while it was young.
    """

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        claim = site.pod("web-1")
        request = signer_pb2.MintX509SVIDRequest(
            pod=signer_pb2.Pod(namespace=claim.namespace, name=claim.name, uid=claim.uid),
            pod_token=site.token(claim),
            csr=csr(KeyAlgorithm.EC_P256.generate()),
        )
        roots = TrustBundle.from_jwks(TrustDomain("example.org"), signer.bundle_file.read_bytes()).to_pem()
        way = ProvenSigner(signer.address, TrustDomain("example.org"), folder, lambda: roots, young=young)
        options = (("grpc.default_authority", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))
        try:
            async with grpc.aio.insecure_channel(way.open(), options=options) as found:
                call: Any = found.unary_unary(
                    "/podsvid.signer.v1.Signer/MintX509SVID",
                    signer_pb2.MintX509SVIDRequest.SerializeToString,
                    signer_pb2.MintX509SVIDResponse.FromString,
                )
                token = (("authorization", f"Bearer {site.agent()}"),)
                answers = await asyncio.gather(*(call(request, metadata=token) for _ in range(number)))
        finally:
            await way.close()
        assert {each.spiffe_id for each in answers} == {"spiffe://example.org/ns/default/sa/web"}

    asked(test)


async def ended(signer: Serving, folder: Path, token: str, *messages: signer_pb2.WatchTrustRequest) -> tuple[Any, str]:
    """How a trust stream ends after these."""
    async with channel(signer, folder) as found:
        call: Any = found.stream_stream(
            "/podsvid.signer.v1.Signer/WatchTrust", signer_pb2.WatchTrustRequest.SerializeToString
        )(metadata=(("authorization", f"Bearer {token}"),))
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for each in messages:
                await call.write(each)
            async for _ in call:
                pass
        return await call.code(), await call.details() or ""


@pytest.mark.parametrize(
    ("size", "code"), [(20_000, grpc.StatusCode.INVALID_ARGUMENT), (1 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED)]
)
def test_a_report_that_is_too_long_ends_its_stream(size: int, code: grpc.StatusCode) -> None:
    async def test(signer: Serving, site: Site, folder: Path) -> None:
        report = signer_pb2.WatchTrustRequest(agent_version="x" * size)
        found, _ = await ended(signer, folder, site.agent(life=7200.0), report)
        assert found is code

    asked(test)


def test_a_mint_that_never_gets_its_message_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.front.calls.MESSAGE_SECONDS", 0.2)

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        token = site.agent(life=7200.0).encode()
        async with speaking(signer) as (reader, writer):
            writer.write(frame(HEADERS, END_HEADERS, 1, head(MINT, bearer(token))))
            writer.write(frame(DATA, 0, 1, b"\0\0\0"))
            async for kind, flags, stream, _ in frames(reader):
                if stream == 1 and ((kind == HEADERS and flags & END_STREAM) or kind == RST_STREAM):
                    return
            pytest.fail("it was not answered")

    asked(test)


def test_a_replica_that_is_full_says_so_with_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.front.agents.MINTS", 0)

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        async with channel(signer, folder) as found:
            call: Any = found.unary_unary(
                "/podsvid.signer.v1.Signer/MintX509SVID", signer_pb2.MintX509SVIDRequest.SerializeToString
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(
                    signer_pb2.MintX509SVIDRequest(),
                    metadata=(("authorization", f"Bearer {site.agent(life=7200.0)}"),),
                )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reason, _, retry = explain(caught.value)
        assert (reason, retry) == (Reason.BUSY.value, 2.0)
        assert value(signer, "mints") == 1

    asked(test)


def test_grpcs_own_sockets_are_for_nobody_else_and_go_with_it() -> None:
    async def test(signer: Serving, site: Site, folder: Path) -> None:
        (found,) = folder.glob("door-*")
        assert found.stat().st_mode & 0o777 == 0o700
        assert [each.is_socket() for each in found.iterdir()] == [True]
        folders.append(found)

    folders: list[Path] = []
    asked(test)
    assert not folders[0].exists()


def test_streams_of_servers_before_end_with_the_newest() -> None:
    """They would end in their own time, which is half an hour."""

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        server, replica = signer.replica._server, signer.replica
        state = replica._signing_state()
        assert state is not None
        async with channel(signer, folder) as found:
            call: Any = found.stream_stream(
                "/podsvid.signer.v1.Signer/WatchTrust", signer_pb2.WatchTrustRequest.SerializeToString
            )(metadata=(("authorization", f"Bearer {site.agent(life=7200.0)}"),))
            assert await call.read()
            server._identity.unused()
            await server.renew(state)
            assert replica._agents.connected == 1
            await server.close(0.1)
            assert replica._agents.connected == 0

    asked(test)


def test_a_replica_that_stops_sends_agents_on_before_it_takes_their_connections() -> None:
    """Else it would wait for their streams as for mints, and then end them without a word."""

    async def run(folder: Path) -> None:
        site = Site(datetime.now(UTC).replace(microsecond=0))
        async with asyncio.timeout(60), AsyncExitStack() as outside:
            async with serving(site, folder, SystemClock()) as signer:
                found = await outside.enter_async_context(channel(signer, folder))
                call: Any = found.stream_stream(
                    "/podsvid.signer.v1.Signer/WatchTrust", signer_pb2.WatchTrustRequest.SerializeToString
                )(metadata=(("authorization", f"Bearer {site.agent(life=7200.0)}"),))
                assert await call.read()
                service = signer.replica._service
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert (ended.value.code(), explain(ended.value)[0]) == (grpc.StatusCode.UNAVAILABLE, "RECONNECT")
            assert service._stopping

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


async def flood(rig: Rig, aside: Callable[[], object]) -> None:
    """From 127.0.0.9, until it is put aside."""
    while not aside():
        for _ in range(100):
            with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)) as client:
                client.bind(("127.0.0.9", 0))
                client.connect_ex(("127.0.0.1", rig.port))
        await asyncio.sleep(0.001)


def test_before_who_comes_far_too_often_others_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "SWEEP", 0.01)

    async def test(rig: Rig) -> None:
        await flood(rig, lambda: rig.door.aside.count)
        # Whoever came before it stands before it in the kernel's queue.
        _, first = await rig.connect(b"x")
        await until(lambda: len(rig.inside.got) == 1)
        # Whoever goes on stays there for longer.
        until_then = rig.door.aside._floods["127.0.0.9"].until
        await flood(rig, lambda: rig.door.aside._floods["127.0.0.9"].until > until_then)
        # Nothing is taken from the other queue any more.
        assert rig.door._sweeping is not None
        rig.door._sweeping.cancel()
        before = rig.refused.count("address")
        waiting = [socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(50)]
        for each in waiting:
            each.bind(("127.0.0.9", 0))
            each.connect_ex(("127.0.0.1", rig.port))
        _, second = await rig.connect(b"x")
        await until(lambda: len(rig.inside.got) == 2)
        assert rig.refused.count("address") == before
        for writer in (first, second):
            writer.close()
        for each in waiting:
            each.close()

    doored(test, new=1)


def test_who_came_far_too_often_comes_in_when_it_does_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "SWEEP", 0.01)

    async def test(rig: Rig) -> None:
        await flood(rig, lambda: rig.door.aside.count)
        while not rig.inside.got:
            # One that is turned away ends.
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, local_addr=("127.0.0.9", 0))
                writer.write(b"x")
                await asyncio.wait([asyncio.ensure_future(reader.read(1))], timeout=0.2)
                writer.close()
        assert rig.door.aside.count == 1

    doored(test, new=5)
