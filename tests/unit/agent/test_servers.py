"""The privileged side of pods' sockets, over an exposed process that a test plays: it is believed within bounds."""

import asyncio
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.authority.protocol import MintRequest
from agent.channel import messages
from agent.channel.frames import Wire
from agent.channel.snapshots import Writer
from agent.errors import AuthorityRefused, SocketUnavailable
from agent.metrics import Metrics
from agent.servers import answers as answers_module
from agent.servers import asked as asked_module
from agent.servers import patience as patience_module
from agent.servers import process as process_module
from agent.servers import served as served_module
from agent.servers import server as server_module
from agent.servers import spare as spare_module
from agent.servers import warden as warden_module
from agent.servers.link import LinkLost
from agent.servers.load import Effort, Usage
from agent.servers.process import Confinement, Exposed, NotConfined, check_status
from agent.servers.protocol import Use
from agent.servers.quarantine import Place, Times
from agent.servers.reports import Allowance, Log, Tally
from agent.servers.served import Servers, Settings
from agent.servers.server import CLOSES
from csi.model import Volume
from csi.volume import VolumeDirectory
from runtime import stderr
from runtime.blocking import Blocking
from runtime.feed import Feed
from runtime.log import JsonFormatter, TextFormatter
from svid.identity import WorkloadIdentity
from svid.jwtsvid import JwtSvid
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId
from svid.x509svid import X509Svid
from tests.fake_authority import SPIFFE_ID, FakeAuthority, StepClock
from tests.unit.agent.test_issuer import POD

MEMORY = 1000
RENEW_AT = datetime(2026, 5, 31, tzinfo=UTC)
BEGIN = messages.Begin(8, 4, 2.0, 3, "default", "ROOTCA", "ALL", True, 20, 100)


@dataclass(frozen=True)
class Kept:
    svid: JwtSvid
    renew_at: datetime
    reusable: bool


class Tokens:
    """What the workload's JWT-SVIDs are asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[SpiffeId, tuple[str, ...]]] = []
        self.error: Exception | None = None
        self.reusable = True

    async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Kept:
        self.asked.append((spiffe_id, tuple(audiences)))
        if self.error is not None:
            raise self.error
        svid = JwtSvid(spiffe_id, ("a",), datetime(2026, 6, 1, tzinfo=UTC), None, "a.token", {})
        return Kept(svid, RENEW_AT, self.reusable)


class Played:
    """An exposed process: binds what it is told to bind, and says what a test has it say."""

    running: asyncio.Future[None]

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel = theirs
        self.raw = ours
        self.wire: Wire[Any] = Wire(ours, messages.orders(), messages.MAX_SNAPSHOT, descriptors=True)
        self.told: list[Any] = []
        self.bound: list[socket.socket] = []
        self.came = asyncio.Event()
        self.bind = self.honest
        self.error = ""
        self.unconfined = False
        self.alive = True
        self.ended = False
        self.pid = 1
        # Until when it opens nothing.
        self.held = asyncio.Event()
        self.held.set()
        # It closes nothing; it answers when it is asked for a sign of life.
        self.deaf = self.lively = False
        # It opens nothing, says nothing of it, and does all else.
        self.silent = False

    def check(self) -> None:
        if self.unconfined:
            raise NotConfined("CapEff")

    async def end(self) -> str:
        self.ended = True
        await self.close()
        return "signal 9"

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.wire.close()
        for each in self.bound:
            each.close()

    def honest(self, place: int, name: str) -> None:
        self.bound.append(socket.socket(socket.AF_UNIX))
        self.bound[-1].bind(f"/proc/self/fd/{place}/{name}")
        self.bound[-1].listen()

    async def run(self, *first: Any) -> None:
        for each in first or (messages.Ready(()),):
            await self.wire.send(each)
        async for order in self.wire.received():
            self.told.append(order)
            self.came.set()
            if isinstance(order, messages.Open):
                place = self.wire.descriptor()
                if self.silent:
                    os.close(place)
                    continue
                await self.held.wait()
                self.bind(place, messages.name(order.volume))
                os.close(place)
                await self.wire.send(messages.Opened(order.volume, self.error))
            elif isinstance(order, messages.Close) and not self.deaf:
                await self.wire.send(messages.Closed(order.volume))
            elif isinstance(order, messages.Ping) and self.lively:
                await self.wire.send(messages.Pong())
            elif isinstance(order, messages.Look):
                calls = ((messages.METHODS[0], 2.0), ("/made/up", 3.0))
                await self.wire.send(messages.Seen(order.request, calls, ((7, 8, os.getpid()),) if order.peers else ()))

    async def resume(self) -> None:
        """Read on after one that ran was cancelled."""
        async for order in self.wire.received():
            self.told.append(order)
            self.came.set()

    async def heard(self, kind: type, number: int = 1) -> Any:
        """The `number`th order of this kind."""
        async with asyncio.timeout(20):
            while len(found := [each for each in self.told if isinstance(each, kind)]) < number:
                self.came.clear()
                await self.came.wait()
        return found[number - 1]


class Scene:
    def __init__(self, base: Path, times: Times) -> None:
        self.base = base
        self.metrics = Metrics()
        self.now = 0.0
        self.usage = Usage(0.0, 0.0)
        # Of all processes: each waits for a processor.
        self.effort: Effort | None = Effort(0.0, awake=True)
        self.told: list[tuple[str, str]] = []
        settings = Settings(Confinement(os.geteuid(), MEMORY, 1), BEGIN, times)
        self.threads = ThreadPoolExecutor(1, "kernel")
        self.servers = Servers(
            settings,
            self.metrics,
            Blocking(self.threads),
            lambda: self.now,
            lambda pid: self.usage,
            lambda pid: self.effort,
        )
        self.authority = FakeAuthority(StepClock())
        self.played: list[Played] = []
        self.next = asyncio.Event()
        self.tokens = Tokens()
        self.prepare: Callable[[Played], None] = lambda played: None
        self.first: tuple[Any, ...] = ()
        self._directories: list[VolumeDirectory] = []

    async def start(self, *_: object) -> Played:
        played = Played()
        self.prepare(played)
        self.played.append(played)
        played.running = asyncio.ensure_future(played.run(*self.first))
        self.next.set()
        return played

    async def life(self, number: int) -> Played:
        """The `number`th process."""
        async with asyncio.timeout(20):
            while len(self.played) < number:
                self.next.clear()
                await self.next.wait()
        return self.played[number - 1]

    async def identity(self) -> WorkloadIdentity:
        key = KeyAlgorithm.EC_P256.generate()
        minted = await self.authority.mint_x509(MintRequest(POD, None, key, None, ()))
        return WorkloadIdentity((X509Svid(SPIFFE_ID, minted.chain, key),), minted.trust.bundle)

    async def socket(self, name: str = "v", volume: str = "") -> tuple[Any, Feed[WorkloadIdentity], VolumeDirectory]:
        target = self.base / (volume or name)
        target.mkdir()
        made = Volume(target.name, str(target), (target.name,), POD, None)
        directory = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), made)
        self._directories.append(directory)
        feed: Feed[WorkloadIdentity] = Feed()
        feed.publish(await self.identity())
        pod = replace(POD, name=name)

        def told(reason: str, message: str) -> None:
            self.told.append((pod.name, reason))

        return self.servers.socket(feed, self.tokens, pod, directory, told), feed, directory

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def end(self) -> None:
        for played in self.played:
            await played.close()
        for directory in self._directories:
            directory.close()
        self.threads.shutdown()


def play(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Callable[[Scene], Awaitable[None]],
    *,
    spare: bool = False,
    times: Times | None = None,
) -> None:
    async def run() -> None:
        scene = Scene(base, times or Times())
        monkeypatch.setattr(Exposed, "start", scene.start)
        running = asyncio.ensure_future(scene.servers.run())
        try:
            await main(scene)
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert all(played.ended for played in scene.played)
            await scene.end()

    monkeypatch.setattr(server_module, "PAUSE", 0.001)
    monkeypatch.setattr(spare_module, "AFTER", 0.0 if spare else 3600.0)
    asyncio.run(run())


async def asked(played: Played, *wanted: messages.Wanted) -> list[Any]:
    """The answers to these, in their order."""
    for each in wanted:
        await played.wire.send(each)
    async with asyncio.timeout(20):
        while True:
            found = {each.request: each for each in played.told if isinstance(each, messages.Token | messages.NoToken)}
            if all(each.request in found for each in wanted):
                return [found[each.request] for each in wanted]
            played.came.clear()
            await played.came.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount: run as root")
def test_nobody_waits_until_the_kernel_has_taken_away_the_mount_in_which_a_socket_was_bound(
    tmp_path: Path, monkeypatch: Any
) -> None:
    closed: list[str] = []
    close, may_go_on, by_the_thread = os.close, threading.Event(), threading.Event()

    def noted(descriptor: int) -> None:
        close(descriptor)
        closed.append(threading.current_thread().name)
        if closed[-1].startswith("kernel"):
            by_the_thread.set()

    async def main(at: Scene) -> None:
        at.threads.submit(may_go_on.wait, 20)
        monkeypatch.setattr(os, "close", noted)
        served, _, directory = await at.socket()
        await served.open()
        assert directory.has_socket()
        assert not by_the_thread.is_set()
        may_go_on.set()
        assert await asyncio.to_thread(by_the_thread.wait, 20), f"it was closed by {closed}"
        await served.close()

    play(tmp_path, monkeypatch, main)


def test_many_that_are_closed_leave_threads_for_mounts_and_for_kubelet(tmp_path: Path, monkeypatch: Any) -> None:
    """After a start of the process there are as many as volumes."""
    close, may_go_on = os.close, threading.Event()
    waiting: set[int] = set()

    def slow(descriptor: int) -> None:
        if threading.current_thread().name.startswith("four"):
            waiting.add(descriptor)
            may_go_on.wait(20)
        close(descriptor)

    async def main(at: Scene) -> None:
        monkeypatch.setattr(os, "close", slow)
        with ThreadPoolExecutor(4, "four") as threads:
            server = at.servers.of(Place.SHARED)
            server._kind = replace(server._kind, blocking=Blocking(threads))
            several = [os.dup(0) for _ in range(6)]
            for each in several:
                server._close(each)
            async with asyncio.timeout(20):
                while len(waiting) < CLOSES:
                    await asyncio.sleep(0.01)
                assert await server._kind.blocking(lambda: "kubelet's") == "kubelet's"
                assert len(waiting) == CLOSES < 4
                may_go_on.set()
                while len(waiting) < len(several):
                    await asyncio.sleep(0.01)

    play(tmp_path, monkeypatch, main)


def test_a_socket_is_taken_into_the_volume_and_what_is_new_follows(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, feed, directory = await at.socket()
        await served.open()
        played = await at.life(1)
        assert isinstance(played.told[0], messages.Begin)
        order = await played.heard(messages.Open)
        assert order.snapshot is not None
        assert directory.has_socket()
        assert directory.file_names() == ["socket"]
        assert os.listdir(tmp_path / "v") == ["socket"], "the place where it was bound is left"
        feed.publish(await at.identity())
        changed = await played.heard(messages.Changed)
        current = feed.current
        assert current is not None
        assert changed.snapshot.svids[0].key == current.default.key_der()
        use = await served.use(peers=True)
        assert [call[0] for call in use.calls] == [messages.METHODS[0]], "a method that nobody serves is shown"
        assert [(each.uid, each.gid, each.pid) for each in use.peers] == [(7, 8, os.getpid())]
        assert use.peers[0].command
        assert not (await served.use(peers=False)).peers
        await served.close()
        assert not directory.has_socket()
        assert (await played.heard(messages.Close)).volume == order.volume
        assert await served.use(peers=True) == Use()

    play(tmp_path, monkeypatch, main)


def test_tokens_are_for_open_volumes_own_ids_and_within_the_rate(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, _, _ = await at.socket()
        await served.open()
        played = await at.life(1)
        volume = (await played.heard(messages.Open)).volume
        own = str(SPIFFE_ID)
        answers = await asked(
            played,
            messages.Wanted(1, volume + 1, own, ("a",)),
            messages.Wanted(2, volume, "spiffe://example.org/ns/other", ("a",)),
            messages.Wanted(3, volume, "no id", ("a",)),
        )
        assert [type(each) for each in answers] == [messages.NoToken] * 3
        assert [each.refused for each in answers] == [False, True, True]
        assert at.tokens.asked == []
        served.allowance = Allowance(1.0, 3, lambda: 0.0)
        answers = await asked(played, *(messages.Wanted(10 + each, volume, own, ("a", "b")) for each in range(5)))
        assert [type(each) for each in answers] == [messages.Token] * 3 + [messages.NoToken] * 2
        assert at.tokens.asked == [(SPIFFE_ID, ("a", "b"))] * 3
        served.allowance = Allowance(1.0, 100, lambda: 0.0)
        at.tokens.error = AuthorityRefused("POD_GONE: no")
        (answer,) = await asked(played, messages.Wanted(20, volume, own, ("a",)))
        assert (answer.refused, answer.why) == (True, "POD_GONE: no")
        await served.close()
        (answer,) = await asked(played, messages.Wanted(21, volume, own, ("a",)))
        assert not answer.refused
        assert len(at.tokens.asked) == 4

    play(tmp_path, monkeypatch, main)


def test_a_token_says_until_when_it_may_be_handed_out_again(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, _, _ = await at.socket()
        await served.open()
        played = await at.life(1)
        volume = (await played.heard(messages.Open)).volume
        (answer,) = await asked(played, messages.Wanted(1, volume, str(SPIFFE_ID), ("a",)))
        assert answer.until == RENEW_AT.timestamp()
        at.tokens.reusable = False
        (answer,) = await asked(played, messages.Wanted(2, volume, str(SPIFFE_ID), ("a",)))
        assert answer.until == 0

    play(tmp_path, monkeypatch, main)


def test_what_is_forgotten_is_told_and_what_is_minted_meanwhile_is_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        started, held = asyncio.Event(), asyncio.Event()

        class Slow(Tokens):
            async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Kept:
                started.set()
                await held.wait()
                return await super().get(spiffe_id, audiences)

        at.tokens = Slow()
        served, _, _ = await at.socket()
        served.forget_tokens()
        await served.open()
        played = await at.life(1)
        volume = (await played.heard(messages.Open)).volume
        await played.wire.send(messages.Wanted(1, volume, str(SPIFFE_ID), ("a",)))
        await started.wait()
        served.forget_tokens()
        held.set()
        assert (await played.heard(messages.Forget)).volume == volume
        assert (await played.heard(messages.Token)).until == 0
        (answer,) = await asked(played, messages.Wanted(2, volume, str(SPIFFE_ID), ("a",)))
        assert answer.until > 0

    play(tmp_path, monkeypatch, main)


def test_only_so_many_tokens_of_a_volume_are_asked_for_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        held = asyncio.Event()

        class Slow(Tokens):
            async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Kept:
                await held.wait()
                return await super().get(spiffe_id, audiences)

        at.tokens = Slow()
        served, _, _ = await at.socket()
        served.allowance = Allowance(1.0, 100, lambda: 0.0)
        await served.open()
        played = await at.life(1)
        volume = (await played.heard(messages.Open)).volume
        for number in range(BEGIN.calls):
            await played.wire.send(messages.Wanted(number, volume, str(SPIFFE_ID), ("a",)))
        (answer,) = await asked(played, messages.Wanted(99, volume, str(SPIFFE_ID), ("a",)))
        assert isinstance(answer, messages.NoToken)
        held.set()
        await played.heard(messages.Token, BEGIN.calls)

    play(tmp_path, monkeypatch, main)


@pytest.mark.parametrize("rubbish", [b"\xff" * 8, b"\0\0\0\1\xc1", b""], ids=["length", "frame", "end"])
def test_one_that_sends_rubbish_or_ends_is_replaced_and_all_sockets_are_opened_again(
    tmp_path: Path, monkeypatch: Any, rubbish: bytes
) -> None:
    async def main(at: Scene) -> None:
        kept, feed, directory = await at.socket("kept")
        left, _, _ = await at.socket("left")
        await kept.open()
        await left.open()
        await left.close()
        first = await at.life(1)
        feed.publish(await at.identity())
        await first.heard(messages.Changed)
        if rubbish:
            first.raw.send(rubbish)
        else:
            first.raw.shutdown(socket.SHUT_RDWR)
        second = await at.life(2)
        order = await second.heard(messages.Open)
        assert first.ended
        current = feed.current
        assert current is not None
        assert order.snapshot.svids[0].key == current.default.key_der(), "the newest is served at once"
        await at.servers.settled()
        assert directory.has_socket()
        assert len([each for each in second.told if isinstance(each, messages.Open)]) == 1
        assert at.value("podsvid_socket_server_starts_total") == 2
        assert at.tokens.asked == []

    play(tmp_path, monkeypatch, main)


def test_one_that_sends_rubbish_before_it_is_ready_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        def prepare(played: Played) -> None:
            if not at.played:
                played.raw.send(b"\xff" * 8)

        at.prepare = prepare
        served, _, _ = await at.socket()
        await served.open()
        assert len(at.played) == 2
        assert at.played[0].told == []

    play(tmp_path, monkeypatch, main)


def test_one_that_asks_without_end_is_replaced_before_its_questions_fill_the_agent(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def main(at: Scene) -> None:
        held = asyncio.Event()

        class Slow(Tokens):
            async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Kept:
                await held.wait()
                return await super().get(spiffe_id, audiences)

        at.tokens = Slow()
        served, _, _ = await at.socket()
        served.allowance = Allowance(1.0, 100, lambda: 0.0)
        await served.open()
        first = await at.life(1)
        volume = (await first.heard(messages.Open)).volume
        for number in range(4):
            await first.wire.send(messages.Wanted(number, volume, str(SPIFFE_ID), ("a",)))
        await at.life(2)
        assert first.ended
        held.set()

    monkeypatch.setattr(answers_module, "MOST_ANSWERS", 3)
    play(tmp_path, monkeypatch, main)


@pytest.mark.parametrize("bound", ["MOST", "MOST_EACH"])
def test_what_is_asked_for_and_not_answered_is_bounded_in_bytes(tmp_path: Path, monkeypatch: Any, bound: str) -> None:
    async def main(at: Scene) -> None:
        held = asyncio.Event()

        class Slow(Tokens):
            async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> Kept:
                await held.wait()
                return await super().get(spiffe_id, audiences)

        at.tokens = Slow()
        served, _, _ = await at.socket()
        served.allowance = Allowance(1.0, 100, lambda: 0.0)
        await served.open()
        played = await at.life(1)
        volume = (await played.heard(messages.Open)).volume
        large = tuple("\U0001f600" * 100 + str(number) for number in range(32))  # 15 KB
        await played.wire.send(messages.Wanted(1, volume, str(SPIFFE_ID), large))
        (refused,) = await asked(played, messages.Wanted(2, volume, str(SPIFFE_ID), large))
        assert isinstance(refused, messages.NoToken)
        await played.wire.send(messages.Wanted(3, volume, str(SPIFFE_ID), ("a",)))
        held.set()
        await played.heard(messages.Token, 2)
        # What was answered makes room, every time.
        for number in range(4, 10):
            (answer,) = await asked(played, messages.Wanted(number, volume, str(SPIFFE_ID), large))
            assert isinstance(answer, messages.Token)
        assert (served.asked.number, served.asked.bytes) == (0, 0)

    monkeypatch.setattr(asked_module, bound, 20_000)
    play(tmp_path, monkeypatch, main)


def test_a_bug_behind_a_token_is_an_answer_all_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        at.tokens.error = ValueError("a secret")
        served, _, _ = await at.socket()
        await served.open()
        played = await at.life(1)
        volume = (await played.heard(messages.Open)).volume
        (answer,) = await asked(played, messages.Wanted(1, volume, str(SPIFFE_ID), ("a",)))
        assert not answer.refused
        assert "secret" not in answer.why

    play(tmp_path, monkeypatch, main)


def test_one_waits_and_serves_when_the_one_before_it_has_ended(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, _, directory = await at.socket()
        first = await at.life(1)
        await first.heard(messages.Begin)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(at.played) == 1, "one waits while there is nothing to serve"
        await served.open()
        waiting = await at.life(2)
        assert waiting.told == [], "what waits knows something"
        assert at.value("podsvid_socket_server_starts_total") == 1
        first.raw.shutdown(socket.SHUT_RDWR)
        await waiting.heard(messages.Open)
        assert first.ended
        assert at.value("podsvid_socket_server_starts_total") == 2
        next_one = await at.life(3)
        waiting.raw.shutdown(socket.SHUT_RDWR)
        await next_one.heard(messages.Open)
        await at.servers.settled()
        assert directory.has_socket()

    play(tmp_path, monkeypatch, main, spare=True)


@pytest.mark.parametrize("how", ["ended", "unconfined"])
def test_one_that_waited_and_is_no_good_is_not_taken(tmp_path: Path, monkeypatch: Any, how: str) -> None:
    async def main(at: Scene) -> None:
        served, _, _ = await at.socket()
        await served.open()
        first, waiting = await at.life(1), await at.life(2)
        waiting.alive, waiting.unconfined = how != "ended", how == "unconfined"
        first.raw.shutdown(socket.SHUT_RDWR)
        await (await at.life(3)).heard(messages.Open)
        assert waiting.ended
        assert waiting.told == []

    play(tmp_path, monkeypatch, main, spare=True)


def test_one_that_cannot_be_started_ahead_is_started_when_it_is_needed(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(at: Scene) -> None:
        async def fail(*_: object) -> Any:
            monkeypatch.setattr(Exposed, "start", at.start)
            failed.set()
            raise OSError(12, "no memory")

        failed = asyncio.Event()
        first = await at.life(1)
        monkeypatch.setattr(Exposed, "start", fail)
        served, _, _ = await at.socket()
        await served.open()
        await failed.wait()
        first.raw.shutdown(socket.SHUT_RDWR)
        await (await at.life(2)).heard(messages.Open)
        assert "no memory" in "".join(str(vars(each).get("error")) for each in caplog.records)

    play(tmp_path, monkeypatch, main, spare=True)


@pytest.mark.parametrize("what", ["nothing", "link", "file"])
def test_what_is_no_socket_is_not_taken(tmp_path: Path, monkeypatch: Any, what: str) -> None:
    async def main(at: Scene) -> None:
        def bind(place: int, name: str) -> None:
            if what == "link":
                os.symlink("/etc/passwd", name, dir_fd=place)
            elif what == "file":
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=place))

        def prepare(played: Played) -> None:
            played.bind = bind

        at.prepare = prepare
        served, _, directory = await at.socket()
        with pytest.raises(OSError, match="no socket was bound"):
            await served.open()
        played = await at.life(1)
        await played.heard(messages.Close)
        assert directory.file_names() == []
        assert os.listdir(tmp_path / "v") == []

    play(tmp_path, monkeypatch, main)


@pytest.mark.parametrize("how", ["not ready", "unconfined"])
def test_one_that_is_not_what_it_should_be_is_told_nothing(tmp_path: Path, monkeypatch: Any, how: str) -> None:
    async def main(at: Scene) -> None:
        def prepare(played: Played) -> None:
            played.unconfined = how == "unconfined"

        at.prepare = prepare
        at.first = (messages.Pong(),) if how == "not ready" else ()
        served, _, _ = await at.socket()
        await served.reopen()
        await at.life(3)
        assert [played.told for played in at.played[:2]] == [[], []]
        assert all(played.ended for played in at.played[:2])
        at.prepare = lambda played: None
        at.first = ()
        await served.open()

    play(tmp_path, monkeypatch, main)


def test_what_one_lacks_is_shown_and_said(tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main(at: Scene) -> None:
        at.first = (messages.Ready(("own root", messages.UNCOUNTED)),)
        first = await at.life(1)
        await first.heard(messages.Begin)
        assert at.value("podsvid_socket_server_lacks") == 2
        said = [(each.levelname, getattr(each, "lacking", None)) for each in caplog.records]
        assert said == [("WARNING", None), ("WARNING", ["own root", messages.UNCOUNTED])]
        at.first = ()
        first.raw.shutdown(socket.SHUT_RDWR)
        await (await at.life(2)).heard(messages.Begin)
        assert at.value("podsvid_socket_server_lacks") == 0

    play(tmp_path, monkeypatch, main)


def test_an_agent_waits_for_what_it_picked_up(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, _, directory = await at.socket()
        await served.reopen()
        await at.servers.settled()
        assert directory.has_socket()

    play(tmp_path, monkeypatch, main)


def test_an_agent_waits_a_bounded_time_only(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        at.first = (messages.Pong(),)
        served, _, directory = await at.socket()
        await served.reopen()
        await at.servers.settled()
        assert not directory.has_socket()

    monkeypatch.setattr(served_module, "SETTLING", 0.05)
    play(tmp_path, monkeypatch, main)


def test_a_publish_waits_a_bounded_time_for_its_socket(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        at.first = (messages.Pong(),)
        served, _, directory = await at.socket()
        with pytest.raises(SocketUnavailable):
            await served.open()
        await served.close()
        assert not directory.has_socket()

    monkeypatch.setattr(served_module, "OPENING", 0.05)
    play(tmp_path, monkeypatch, main)


def test_what_it_says_of_an_open_that_failed_is_short_and_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        (await at.life(1)).error = "no\n\x1b[2J" + "x" * 10_000
        served, _, _ = await at.socket()
        with pytest.raises(OSError, match="the server of the socket: no") as caught:
            await served.open()
        told = caught.value.strerror or ""
        assert told.isprintable()
        assert len(told) < 300

    play(tmp_path, monkeypatch, main)


def test_one_that_does_not_answer_an_order_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, _, directory = await at.socket()
        await served.open()
        first = await at.life(1)

        async def stuck(message: Any, descriptor: int | None = None) -> None:
            return

        monkeypatch.setattr(first.wire, "send", stuck)
        at.effort = Effort(0.0, awake=False)
        await served.close()
        assert not directory.has_socket()
        await at.life(2)
        assert first.ended

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "RUNNING", 0.1)
    play(tmp_path, monkeypatch, main)


def test_one_that_opens_each_socket_late_is_replaced_and_keeps_no_publish_waiting(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def main(at: Scene) -> None:
        (await at.life(1)).held.clear()
        served, _, directory = await at.socket()
        # What it does meanwhile is nothing.
        at.effort = Effort(0.0, awake=False)
        await served.open()
        assert directory.has_socket()
        assert at.played[0].ended
        assert not at.played[1].ended

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "IDLE", 0.1)
    monkeypatch.setattr(patience_module, "RUNNING", 3600.0)
    # Nothing else is waited for: not that it is there.
    monkeypatch.setattr(warden_module, "CALM", 3600.0)
    play(tmp_path, monkeypatch, main)


def test_one_that_says_nothing_of_a_socket_is_replaced_whoever_gave_up_meanwhile(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Else each publish would wait for as long as it has, again and again."""

    async def main(at: Scene) -> None:
        first = await at.life(1)
        first.silent = True
        # None was there when it began: nobody else brings one.
        await at.servers.of(Place.SHARED).link()
        served, _, directory = await at.socket()
        with monkeypatch.context() as hasty, pytest.raises(SocketUnavailable):
            hasty.setattr(served_module, "OPENING", 0.05)
            await served.open()
        await first.heard(messages.Close)
        await at.life(2)
        assert first.ended
        await served.open()
        assert directory.has_socket()

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "WAITING", 0.3)
    # Nothing else is waited for: not that it is there.
    monkeypatch.setattr(warden_module, "CALM", 3600.0)
    play(tmp_path, monkeypatch, main)


def test_who_gave_up_and_is_answered_late_has_ended_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        first = await at.life(1)
        first.held.clear()
        # The place is gone by then.
        first.bind = lambda place, name: None
        link = await at.servers.of(Place.SHARED).link()
        served, _, _ = await at.socket()
        opening = asyncio.ensure_future(served.open())
        await first.heard(messages.Open)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert len(link._opening) == 1
        first.held.set()
        await first.heard(messages.Close)
        async with asyncio.timeout(20):
            while link._patience._waiting:
                await asyncio.sleep(0)
        assert not first.ended
        assert not link._opening

    monkeypatch.setattr(warden_module, "CALM", 3600.0)
    play(tmp_path, monkeypatch, main)


def test_one_that_gets_no_processor_opens_when_it_can(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        first = await at.life(1)
        first.held.clear()
        served, _, _ = await at.socket()
        opening = asyncio.ensure_future(served.open())
        await first.heard(messages.Open)
        link = await at.servers.of(Place.SHARED).link()
        while link._patience._turns < 2 * patience_module.IDLE / patience_module.TURN:
            await asyncio.sleep(0.001)
        first.held.set()
        await opening
        assert not first.ended
        assert len(at.played) == 1

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "IDLE", 0.02)
    play(tmp_path, monkeypatch, main)


def test_one_that_closes_sockets_late_may_wait_for_their_clients(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        sockets = [(await at.socket(f"v{number}"))[0] for number in range(8)]
        for served in sockets:
            await served.open()
        first = await at.life(1)
        at.effort = Effort(0.0, awake=False)
        link = await at.servers.of(Place.SHARED).link()
        send = first.wire.send

        async def late(message: Any, descriptor: int | None = None) -> None:
            if isinstance(message, messages.Closed):
                before = link._patience._turns
                while link._patience._turns < before + 10:
                    await asyncio.sleep(0.001)
            await send(message, descriptor)

        monkeypatch.setattr(first.wire, "send", late)
        for served in sockets:
            await served.close()
        assert not first.ended

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "IDLE", 0.02)
    play(tmp_path, monkeypatch, main)


@pytest.mark.parametrize("how", ["refuses", "binds nothing"])
def test_one_that_opens_nothing_is_replaced(tmp_path: Path, monkeypatch: Any, how: str) -> None:
    async def main(at: Scene) -> None:
        first = await at.life(1)
        if how == "refuses":
            first.error = "no"
        else:
            first.bind = lambda place, name: None
        for number in range(20):
            served, _, _ = await at.socket(f"v{number}")
            try:
                await served.open()
                break
            except OSError:
                await served.close()
        assert number == patience_module.REFUSED + 1
        assert first.ended
        assert not at.played[1].ended

    play(tmp_path, monkeypatch, main)


def test_with_one_that_comes_after_many_that_were_too_slow_there_is_more_patience(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def main(at: Scene) -> None:
        at.prepare = lambda played: played.held.clear()
        at.effort = Effort(0.0, awake=False)
        served, _, _ = await at.socket()
        await served.reopen()
        await at.life(4)
        async with asyncio.timeout(20):
            while (found := at.servers.of(Place.SHARED)._more) < patience_module.MOST_MORE:
                await asyncio.sleep(0.001)
        assert found == patience_module.MOST_MORE

    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "IDLE", 0.01)
    play(tmp_path, monkeypatch, main)


def test_what_waits_for_a_process_that_reads_nothing_is_no_bytes_and_the_newest_of_each_volume(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def main(at: Scene) -> None:
        volumes = [await at.socket(f"v{number}") for number in range(4)]
        for served, _, _ in volumes:
            await served.open()
        played = await at.life(1)
        held: list[int] = []
        writes = Writer.snapshot

        def counted(writer: Writer, identity: WorkloadIdentity) -> messages.Snapshot:
            held.append(1)
            return writes(writer, identity)

        monkeypatch.setattr(Writer, "snapshot", counted)
        # It reads nothing, and the kernel has no room for more.
        played.running.cancel()
        await asyncio.gather(played.running, return_exceptions=True)
        link = await at.servers.of(Place.SHARED).link()
        filling = [asyncio.ensure_future(link.send(messages.NoToken(1, True, "x" * 100_000))) for _ in range(20)]
        await asyncio.sleep(0)
        assert not all(each.done() for each in filling)
        newest = [await at.identity() for _ in volumes]
        for number, (_, feed, _) in enumerate(volumes):
            for _ in range(5):
                feed.publish(await at.identity())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            feed.publish(newest[number])
        assert held == [], "something was written down before its turn"
        played.told.clear()
        played.running = asyncio.ensure_future(played.resume())
        await played.heard(messages.Changed, len(volumes))
        await asyncio.gather(*filling)
        changes = [each for each in played.told if isinstance(each, messages.Changed)]
        assert [each.snapshot.svids[0].key for each in changes] == [each.default.key_der() for each in newest]
        assert len(held) == len(volumes)

    play(tmp_path, monkeypatch, main)


def test_what_is_new_of_several_at_once_is_told_in_one_go(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        volumes = [await at.socket(f"v{number}") for number in range(4)]
        for served, _, _ in volumes:
            await served.open()
        played = await at.life(1)
        link = await at.servers.of(Place.SHARED).link()
        sent: list[object] = []
        posts = Wire.post

        def posted(wire: Wire[Any], message: Any, descriptor: int | None = None) -> Any:
            if wire is link._wire:
                sent.append(message)
            return posts(wire, message, descriptor)

        monkeypatch.setattr(Wire, "post", posted)
        newest = [await at.identity() for _ in volumes]
        for (_, feed, _), each in zip(volumes, newest, strict=True):
            feed.publish(each)
        played.told.clear()
        await played.heard(messages.Changed, len(volumes))
        assert len([each for each in sent if callable(each)]) == 1
        changes = [each for each in played.told if isinstance(each, messages.Changed)]
        assert {each.snapshot.svids[0].key for each in changes} == {each.default.key_der() for each in newest}

    play(tmp_path, monkeypatch, main)


def test_news_of_one_socket_that_cannot_be_written_takes_no_others_with_it_and_is_logged(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(at: Scene) -> None:
        volumes = [await at.socket(f"v{number}") for number in range(3)]
        for served, _, _ in volumes:
            await served.open()
        played = await at.life(1)
        newest = [await at.identity() for _ in volumes]
        snapshot = Writer.snapshot

        def written(writer: Writer, identity: WorkloadIdentity) -> messages.Snapshot:
            if identity is newest[0]:
                raise MemoryError
            found = snapshot(writer, identity)
            hint = "\ud800" if identity is newest[1] else ""
            return msgspec.structs.replace(
                found, svids=tuple(msgspec.structs.replace(each, hint=hint) for each in found.svids)
            )

        monkeypatch.setattr(Writer, "snapshot", written)
        played.told.clear()
        for (_, feed, _), each in zip(volumes, newest, strict=True):
            feed.publish(each)
        change = await played.heard(messages.Changed)
        assert change.snapshot.svids[0].key == newest[2].default.key_der()
        told = {
            vars(each)["socket"]: vars(each)["error"]
            for each in caplog.records
            if each.msg == "bug: a pod's socket could not be told what is new of its workload"
        }
        assert sorted(told.values()) == ["MemoryError", "UnicodeEncodeError"]
        assert change.volume not in told
        assert not (await at.servers.of(Place.SHARED).link()).lost.is_set()

    play(tmp_path, monkeypatch, main)


def test_a_socket_that_closes_is_told_nothing_more(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        served, _, _ = await at.socket()
        await served.open()
        played = await at.life(1)
        link = await at.servers.of(Place.SHARED).link()
        number = (await played.heard(messages.Open)).volume
        link.tell(number, lambda: messages.Forget(number))
        await link.close(number)
        await link.look(number, False)
        assert not [each for each in played.told if isinstance(each, messages.Forget)]

    play(tmp_path, monkeypatch, main)


def test_news_that_one_keeps_up_with_leaves_others_their_turn(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        link, made, seen = await at.servers.of(Place.SHARED).link(), 0, []

        def newest() -> messages.Order:
            nonlocal made
            made += 1
            return messages.NoToken(1, True, "x" * 30_000)

        def look() -> None:
            seen.append(made)
            if made < 6:
                asyncio.get_running_loop().call_soon(look)

        for number in range(6):
            link.tell(number, newest)
        look()
        await (await at.life(1)).heard(messages.NoToken, 6)
        assert seen[0] == 0
        assert max(after - before for before, after in itertools.pairwise(seen)) == 3

    play(tmp_path, monkeypatch, main)


def test_what_goes_wrong_with_news_that_waited_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        link = await at.servers.of(Place.SHARED).link()
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        sent: asyncio.Future[None] = loop.create_future()
        sent.set_exception(bug := ValueError())
        link._told(sent)
        assert [each["exception"] for each in told] == [bug]

    play(tmp_path, monkeypatch, main)


def test_one_that_takes_no_news_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        at.effort = Effort(0.0, awake=False)
        served, feed, _ = await at.socket("v")
        await served.open()
        first = await at.life(1)
        first.running.cancel()
        await asyncio.gather(first.running, return_exceptions=True)
        link = await at.servers.of(Place.SHARED).link()
        async with asyncio.timeout(20):
            while link._wire.held == 0:
                feed.publish(await at.identity())
                await asyncio.sleep(0)
        await at.life(2)
        assert first.ended

    # Nothing else is waited for.
    monkeypatch.setattr(warden_module, "CALM", 1000.0)
    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "IDLE", 0.1)
    play(tmp_path, monkeypatch, main)


@pytest.mark.parametrize(("pace", "ended"), [(1.0, False), (1e9, True)], ids=["fast enough", "a drop now and then"])
def test_one_that_takes_what_it_is_told_slowly_is_waited_for(
    tmp_path: Path, monkeypatch: Any, pace: float, ended: bool
) -> None:
    async def main(at: Scene) -> None:
        at.effort = None
        played = await at.life(1)
        await played.heard(messages.Begin)
        link = await at.servers.of(Place.SHARED).link()
        played.running.cancel()
        await asyncio.gather(played.running, return_exceptions=True)
        sending = [asyncio.ensure_future(link.send(messages.NoToken(1, True, "x" * 50_000))) for _ in range(30)]
        taken = 0
        while not (all(each.done() for each in sending) or link.lost.is_set()):
            with suppress(BlockingIOError):
                taken += len(played.raw.recv(8_000))
            # The kernel has room for more when most of what it has was taken.
            await asyncio.sleep(0.01 if ended or taken > 400_000 else 0)
        done = await asyncio.gather(*sending, return_exceptions=True)
        assert any(isinstance(each, LinkLost) for each in done) == ended
        assert taken > 0

    # Of this the kernel says nothing.
    monkeypatch.setattr(patience_module, "RUNNING", 0.5)
    monkeypatch.setattr(patience_module, "TURN", 0.01)
    monkeypatch.setattr(patience_module, "PACE", pace)
    play(tmp_path, monkeypatch, main)


def test_one_that_gives_no_sign_of_life_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Scene) -> None:
        at.effort = Effort(0.0, awake=False)
        first = await at.life(1)
        await first.heard(messages.Ping)
        await at.life(2)
        assert first.ended

    monkeypatch.setattr(warden_module, "CALM", 0.01)
    monkeypatch.setattr(patience_module, "TURN", 0.001)
    monkeypatch.setattr(patience_module, "IDLE", 0.1)
    play(tmp_path, monkeypatch, main)


def test_counts_are_believed_within_bounds_and_under_known_labels() -> None:
    metrics = Metrics()
    now = 0.0
    tally = Tally(metrics, Allowance(1.0, 4, lambda: now))
    method = messages.METHODS[0]

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(name, labels) or 0.0

    tally.take(messages.Counted({method: 5, "/made/up": 9}, {method: 2}, {"open calls": 1, "other": 4}, 3, 1))
    tally.take(messages.Counted({method: 3}, {method: 1}, {"open calls": 0}, 2, 0))
    tally.take(messages.Counted({method: 4}, {method: 1}, {"open calls": 1}, 2, 0))
    assert value("podsvid_api_calls_total", method=method) == 6
    assert value("podsvid_api_open_calls", method=method) == 1
    assert value("podsvid_api_refused_calls_total", limit="open calls") == 2
    assert (value("podsvid_sds_pushes_total"), value("podsvid_sds_rejections_total")) == (3, 1)
    tally.take(messages.Counted({method: 2**52}, {method: 2**52}, {}, 2**52, 0))
    assert value("podsvid_api_calls_total", method=method) < 2**24
    assert value("podsvid_api_open_calls", method=method) < 2**24
    before = value("podsvid_api_calls_total", method=method)
    tally.take(messages.Counted({method: 2**52 + 5}, {method: 7}, {}, 2**52, 0))
    assert value("podsvid_api_calls_total", method=method) == before
    now = 1.0
    tally.take(messages.Counted({method: 2**52 + 6}, {method: 7}, {}, 2**52, 0))
    assert value("podsvid_api_calls_total", method=method) == before + 6
    tally.end()
    assert value("podsvid_api_open_calls", method=method) == 0
    labels = {sample.labels.get("method") for family in metrics.registry.collect() for sample in family.samples}
    assert labels <= {None, *messages.METHODS}


def test_its_log_is_marked_bounded_and_speaks_for_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = Log(Allowance(1.0, 2, lambda: now))
    with caplog.at_level(logging.DEBUG):
        log.take(messages.Said(50, "podsvid.csi", "volume %s published", {"name": "x", "pod": "a\nb", "said_by": "c"}))
        log.take(messages.Said(0, "podsvid.sds", "rejected", {}))
        log.take(messages.Said(20, "podsvid.sds", "lost", {}))
        now = 5.0
        log.take(messages.Said(20, "podsvid.endpoint", "again", {}))
    found = [(each.name, each.levelname, each.getMessage()) for each in caplog.records]
    assert found == [
        ("podsvid.exposed", "ERROR", "volume %s published"),
        ("podsvid.sds", "DEBUG", "rejected"),
        ("podsvid.endpoint", "INFO", "again"),
    ]
    assert {getattr(each, "said_by", None) for each in caplog.records} == {"exposed"}
    assert getattr(caplog.records[0], "pod", None) == "a\nb"
    assert getattr(caplog.records[2], "lines_lost", None) == "1"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_what_it_says_looks_like_no_line_of_another(
    caplog: pytest.LogCaptureFixture, formatter: logging.Formatter
) -> None:
    forged = "2026-01-01T00:00:00.000+00:00 ERROR   volume published"
    names = ("time", "level", "logger", "event", "traceback", "said_by", "lines_lost", "message")
    with caplog.at_level(logging.DEBUG):
        said = messages.Said(20, "podsvid.sds", f"x\n{forged}\x1b[2J", dict.fromkeys(names, f"y\n{forged}"))
        Log(Allowance(1.0, 2, lambda: 0.0)).take(said)
    (record,) = caplog.records
    line = formatter.format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    if isinstance(formatter, JsonFormatter):
        assert line.count('"level": ') == line.count('"logger": ') == line.count('"time": ') == 1
        found = json.loads(line)
        assert (found["level"], found["logger"], found["said_by"]) == ("info", "podsvid.sds", "exposed")
        assert found["said_traceback"].startswith("y")
        assert "lines_lost" not in found


@pytest.mark.parametrize("written", [b"\n" * 256 * 1024, b"x" * 256 * 1024, b"a line\n" * 40_000])
def test_whatever_it_writes_is_few_lines_and_few_reads(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    class Stderr(asyncio.StreamReader):
        reads = 0

        async def readuntil(self, separator: Any = b"\n") -> bytes:
            self.reads += 1
            return await super().readuntil(separator)

        async def read(self, n: int = -1) -> bytes:
            self.reads += 1
            return await super().read(n)

    class Process:
        returncode = None

        def __init__(self) -> None:
            self.stderr = Stderr(limit=2048)

    async def run() -> int:
        process = Process()
        process.stderr.feed_data(written)
        process.stderr.feed_eof()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found = Exposed(process, ours, Confinement(os.geteuid(), 1, 1))  # type: ignore[arg-type]
            await found._listening
        return process.stderr.reads

    monkeypatch.setattr(stderr, "_SKIPPING", 0.0)
    monkeypatch.setattr(stderr, "LINES_RATE", 0.001)
    reads = asyncio.run(run())
    assert len(caplog.records) == 50
    assert reads < 130


CONFINED = """Name:\tpython
Uid:\t7\t7\t7\t7
Gid:\t7\t7\t7\t7
Groups:\t\x20
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
"""


class Strict(Confinement):
    strict = True


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7"),
        ("Gid:\t7\t7\t7\t7", "Gid:\t0\t7\t7\t7"),
        ("Groups:\t ", "Groups:\t0 "),
        ("CapPrm:\t0", "CapPrm:\t1"),
        ("CapEff:\t0", "CapEff:\t1"),
        ("CapBnd:\t0", "CapBnd:\t1"),
        ("CapAmb:\t0", "CapAmb:\t1"),
        ("CapInh:\t0", "CapInh:\t1"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ("Seccomp:\t2", "Seccomp:\t0"),
        ("Seccomp:\t2\n", ""),
    ],
)
def test_a_process_that_has_more_than_it_should_is_seen(line: str, other: str) -> None:
    check_status(CONFINED, Strict(7, 1, 1))
    with pytest.raises(NotConfined, match=line.partition(":")[0]):
        check_status(CONFINED.replace(line, other), Strict(7, 1, 1))


@pytest.mark.parametrize("shared", ["net", "mnt", ""])
def test_a_process_that_has_the_agents_network_or_mounts_is_seen(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        pid = os.getpid()

    def namespace(path: str) -> str:
        name = path.rpartition("/")[2]
        return name if name == shared else path

    found = Exposed.__new__(Exposed)
    found._process = Process()  # type: ignore[assignment]
    found._confinement = Strict(7, 1, 1)
    monkeypatch.setattr(process_module, "check_status", lambda *_: None)
    monkeypatch.setattr(os, "readlink", namespace)
    if shared:
        with pytest.raises(NotConfined, match="it has this process's"):
            found.check()
    else:
        found.check()
