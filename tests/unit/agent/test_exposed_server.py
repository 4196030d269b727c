"""What the exposed process does with orders, in this process: a pod's calls are answered from what it was told."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest

from agent.authority.protocol import MintRequest
from agent.channel import messages
from agent.channel.frames import Wire
from agent.channel.snapshots import Writer
from agent.exposed import weighing
from agent.exposed.server import Served
from agent.pb import workload_pb2
from agent.socket import connections
from bench import attacks
from runtime.clock import SystemClock
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.x509svid import X509Svid
from tests.fake_authority import SPIFFE_ID, FakeAuthority
from tests.support import HEADER
from tests.unit.agent.test_exposed_parts import token
from tests.unit.agent.test_issuer import POD

BEGIN = messages.Begin(8, 16, 1000.0, 1000, "default", "ROOTCA", "ALL", True, 30, 3072)


class Agent:
    """The other end: it gives orders, and answers what it is asked for."""

    def __init__(self, end: socket.socket, base: Path) -> None:
        self.wire: Wire[Any] = Wire(end, messages.reports(), messages.MAX_REPORT)
        self.base = base
        self.wanted: list[messages.Wanted] = []
        self.reports: list[Any] = []
        self._came = asyncio.Event()
        self.served: Any = None

    async def run(self) -> None:
        async for report in self.wire.received():
            self.reports.append(report)
            self._came.set()
            if isinstance(report, messages.Wanted):
                self.wanted.append(report)
                await self.wire.send(messages.Token(report.request, token(len(self.wanted)), 4e9))

    async def heard(self, kind: Any, volume: int) -> Any:
        async with asyncio.timeout(20):
            while not (found := [each for each in self.reports if isinstance(each, kind) and each.volume == volume]):
                self._came.clear()
                await self._came.wait()
        return found[-1]

    async def weighed(self, until: Callable[[dict[int, messages.Weight]], bool]) -> dict[int, messages.Weight]:
        """What the volumes are said to weigh, once that is so."""
        async with asyncio.timeout(20):
            while True:
                found: dict[int, messages.Weight] = {}
                for each in self.reports:
                    found |= each.volumes if isinstance(each, messages.Weighed) else {}
                if until(found):
                    return found
                self._came.clear()
                await self._came.wait()

    async def open(self, volume: int, uid: str = "uid") -> None:
        key = KeyAlgorithm.EC_P256.generate()
        minted = await FakeAuthority(SystemClock()).mint_x509(MintRequest(POD, None, key, None, ()))
        identity = WorkloadIdentity((X509Svid(SPIFFE_ID, minted.chain, key),), minted.trust.bundle)
        place = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            await self.wire.send(messages.Open(volume, "default/web", uid, True, Writer().snapshot(identity)), place)
        finally:
            os.close(place)
        assert (await self.heard(messages.Opened, volume)).error == ""

    def channel(self, volume: int) -> Any:
        """One with a connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.aio.insecure_channel(f"unix:{self.base / messages.name(volume)}", options=options)

    async def fetch(self, volume: int) -> str:
        """A JWT-SVID, as the pod asks for it."""
        request = workload_pb2.JWTSVIDRequest(audience=["api"]).SerializeToString()
        async with self.channel(volume) as channel:
            ask: Any = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID", request_serializer=bytes)
            answer = workload_pb2.JWTSVIDResponse.FromString(await ask(request, metadata=HEADER, timeout=20))
        return str(answer.svids[0].svid)


def served(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Callable[[Agent], Awaitable[None]],
    begin: messages.Begin = BEGIN,
) -> None:
    # It goes to where it binds.
    monkeypatch.chdir(base)

    async def run() -> None:
        ours, theirs = socket.socketpair()
        wire: Wire[Any] = Wire(theirs, messages.orders(), messages.MAX_SNAPSHOT, descriptors=True)
        at = Agent(ours, base)
        at.served = Served(wire)
        weighing = at.served.weighing
        running = [asyncio.ensure_future(each) for each in (at.served.run(), at.run(), weighing.run(wire))]
        await at.wire.send(begin)
        try:
            await main(at)
        finally:
            at.wire.close()
            await asyncio.wait(running[:1], timeout=20)
            for each in running[1:]:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            wire.close()

    asyncio.run(run())


def test_a_token_that_is_kept_is_answered_without_asking_until_it_is_to_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(at: Agent) -> None:
        await at.open(7)
        await at.open(8)
        first = await at.fetch(7)
        assert await at.fetch(7) == first
        assert [each.volume for each in at.wanted] == [7]
        other = await at.fetch(8)
        assert other != first
        await at.wire.send(messages.Forget(7))
        assert await at.fetch(7) not in (first, other)
        assert await at.fetch(8) == other
        assert [each.volume for each in at.wanted] == [7, 8, 7]

    served(tmp_path, monkeypatch, main)


def test_what_is_closed_has_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(at: Agent) -> None:
        await at.open(7)
        await at.fetch(7)
        await at.wire.send(messages.Close(7))
        await at.heard(messages.Closed, 7)
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await at.fetch(7)
        at.reports.clear()
        await at.open(7)
        await at.fetch(7)
        assert len(at.wanted) == 2

    served(tmp_path, monkeypatch, main)


def test_volumes_of_a_pod_share_its_limits_by_its_uid_and_closed_ones_weigh_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(at: Agent) -> None:
        # The same name each time: a pod that was made anew is another one.
        for volume, uid in ((1, "a"), (2, "a"), (3, "b")):
            await at.open(volume, uid)
        accounts = at.served._accounts
        async with contextlib.AsyncExitStack() as stack:
            held = []
            for volume in (1, 2):
                channel = await stack.enter_async_context(at.channel(volume))
                for _ in range(8):
                    held.append(channel.stream_stream("/SpiffeWorkloadAPI/FetchX509SVID")(metadata=HEADER))
            async with asyncio.timeout(20):
                while sum(each.open_calls for each in accounts.weights().values()) < 16:
                    await asyncio.sleep(0.005)
                for volume in (1, 2):
                    with pytest.raises(grpc.aio.AioRpcError, match="too many open calls on this pod's sockets"):
                        await at.fetch(volume)
                assert await at.fetch(3)
            weights = accounts.weights()
            assert {volume: (each.pod, each.calls, each.refused) for volume, each in weights.items()} == {
                1: ("a", 9, 1),
                2: ("a", 9, 1),
                3: ("b", 1, 0),
            }
            assert [each.connections for each in weights.values()] == [2, 2, 1]
            await at.wire.send(messages.Close(1))
            await at.heard(messages.Closed, 1)
            assert sorted(accounts.weights()) == [2, 3]
            assert await at.fetch(2)
            for call in held:
                call.cancel()

    served(tmp_path, monkeypatch, main)


def test_what_each_volume_costs_is_told_after_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(at: Agent) -> None:
        await at.open(7)
        await at.open(8)
        for _ in range(3):
            await at.fetch(7)
        found = await at.weighed(lambda found: 7 in found and found[7].calls == 3)
        assert found[7].connections == 3
        assert 8 not in found or found[8].calls == 0
        await at.fetch(8)
        found = await at.weighed(lambda found: 8 in found and found[8].calls == 1)
        assert found[7].calls == 3
        # What is closed weighs nothing, and its number begins anew.
        await at.wire.send(messages.Close(7))
        await at.heard(messages.Closed, 7)
        at.reports.clear()
        await at.open(7)
        await at.fetch(7)
        assert (await at.weighed(lambda found: 7 in found and found[7].calls > 0))[7].calls == 1

    served(tmp_path, monkeypatch, main)


def test_who_is_asked_whether_it_is_there_says_what_volumes_cost_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(at: Agent) -> None:
        await at.open(7)
        before = len(at.reports)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(at.base / messages.name(7)))
            silent.sendall(
                attacks.PREFACE + attacks.frame(attacks.SETTINGS, 0, 0) + attacks.frame(attacks.SETTINGS, 1, 0)
            )
            # Connections alone are no calls: they, and who is busy, are seen by whoever asks.
            async with asyncio.timeout(20):
                while not (found := (await asked(at)).get(7, messages.Weight())).open_connections or not found.busy:
                    await asyncio.sleep(0.01)
        kinds = [type(each) for each in at.reports[before:] if isinstance(each, messages.Weighed | messages.Pong)]
        assert kinds[:2] == [messages.Weighed, messages.Pong]

    async def asked(at: Agent) -> dict[int, messages.Weight]:
        pongs = sum(isinstance(each, messages.Pong) for each in at.reports)
        await at.wire.send(messages.Ping())
        return await at.weighed(lambda _: sum(isinstance(each, messages.Pong) for each in at.reports) > pongs)

    monkeypatch.setattr(connections, "unheard", lambda descriptor: 1)
    served(tmp_path, monkeypatch, main)


def test_what_is_read_within_a_moment_keeps_nobody_busy() -> None:
    """As in a process that others keep from a processor: what has come is there when it looks, and is read soon."""
    counted: list[list[str]] = []
    did: list[str] = []

    class Books:
        def look(self) -> None:
            return

        def unheard(self) -> frozenset[str]:
            return frozenset(["one"])

        def count_busy(self, before: frozenset[str]) -> None:
            counted.append([*before, *did])

    async def run() -> None:
        asyncio.get_running_loop().call_soon(did.append, "read")
        books: Any = Books()
        await weighing.Weighing(books).look()

    asyncio.run(run())
    assert counted == [["one", "read"]]


def test_a_report_names_so_many_volumes_and_the_others_are_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(at: Agent) -> None:
        for volume in range(5):
            await at.open(volume)
            await at.fetch(volume)
        await at.weighed(lambda found: sum(each.calls for each in found.values()) == 5)
        reports = [each for each in at.reports if isinstance(each, messages.Weighed)]
        assert all(len(each.volumes) <= 2 for each in reports)

    monkeypatch.setattr(weighing, "MOST_WEIGHED", 2)
    served(tmp_path, monkeypatch, main)


def test_all_connections_are_as_many_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(at: Agent) -> None:
        await at.open(7, "one")
        await at.open(8, "two")
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(at.base / messages.name(7)))
            second.connect(str(at.base / messages.name(8)))
            second.settimeout(20)
            first.settimeout(20)
            heard = await asyncio.gather(*(asyncio.to_thread(each.recv, 1) for each in (first, second)))
        # One is shut, whichever came last; the other hears of HTTP/2.
        assert sorted(bool(each) for each in heard) == [False, True]

    served(tmp_path, monkeypatch, main, msgspec.structs.replace(BEGIN, all_connections=1))
