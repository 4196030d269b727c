"""Sockets of a pod that costs too much, over exposed processes that a test plays: each is served in one place, and the
others stay where they are."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import budget
from agent.channel import messages
from agent.channel.messages import Weighed, Weight
from agent.errors import SocketUnavailable
from agent.servers import patience as patience_module
from agent.servers import served as served_module
from agent.servers import server as server_module
from agent.servers import warden as warden_module
from agent.servers.load import PART, Effort, Usage
from agent.servers.process import Exposed
from agent.servers.quarantine import Place, Times
from agent.servers.served import CLOSED, QUARANTINED
from svid.spiffeid import SpiffeId
from tests.fake_authority import SPIFFE_ID
from tests.unit.agent.test_servers import MEMORY, Played, Scene, asked, play

HEAVY = Weight(1, 100_000, 0, 0, 1, 1)
TIMES = Times(quiet=1000.0, closed=30.0, most_closed=600.0)


class Pods:
    """Two pods with a socket each, served by the process of all."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.bad: Any = None
        self.good: Any = None
        self.place: Any = None

    async def open(self) -> Played:
        self.bad, _, self.place = await self.scene.socket("bad")
        self.good, _, _ = await self.scene.socket("good")
        await self.bad.open()
        await self.good.open()
        return await self.scene.life(1)

    def number(self, played: Played, name: str) -> int:
        """Of the pod's socket in this process, the last that it was told."""
        found = [each for each in played.told if isinstance(each, messages.Open) and each.pod.endswith(f"/{name}")]
        return int(found[-1].volume)

    def pods(self, played: Played) -> list[str]:
        """Whose sockets the process was told to open."""
        return [each.pod.partition("/")[2] for each in played.told if isinstance(each, messages.Open)]

    async def weigh(self, played: Played, name: str = "bad", weight: Weight = HEAVY) -> None:
        await played.wire.send(Weighed({self.number(played, name): weight}))

    async def too_much(self, played: Played, name: str = "bad") -> None:
        """The process takes too much memory, and says of whom."""
        self.scene.usage = Usage(0.0, PART * MEMORY)
        self.scene.now += 1
        await self.weigh(played, name)

    def later(self, seconds: float) -> None:
        self.scene.now += seconds
        # Whoever waits for that waits by a real clock.
        self.scene.servers._warden._changed.set()

    async def apart(self) -> Played:
        """The process for pods that cost too much, with the bad one's socket in it."""
        found = await self.scene.life(2)
        await found.heard(messages.Open)
        await until(lambda: self.bad.at is not None)
        self.scene.usage = Usage(0.0, 0.0)
        return found

    async def closed(self) -> Played:
        """As `apart`, and its socket was closed then."""
        found = await self.apart()
        await self.too_much(found)
        await until(lambda: self.bad.kept_apart().closed and not self.place.has_socket())
        self.scene.usage = Usage(0.0, 0.0)
        return found


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.001)


def on(base: Path, monkeypatch: pytest.MonkeyPatch, main: Callable[[Pods], Awaitable[None]]) -> None:
    async def begun(scene: Scene) -> None:
        await main(Pods(scene))

    play(base, monkeypatch, begun, times=TIMES)


def test_who_costs_too_much_is_moved_and_the_other_notices_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        number = at.number(first, "bad")
        await at.too_much(first)
        second = await at.apart()
        closed = [each.volume for each in first.told if isinstance(each, messages.Close)]
        assert closed == [number]
        assert at.pods(first) == ["bad", "good"]
        assert at.pods(second) == ["bad"]
        assert second.told[0].all_connections == budget.QUARANTINE_CONNECTIONS
        assert first.told[0].all_connections != budget.QUARANTINE_CONNECTIONS
        assert not first.ended
        assert at.place.has_socket()
        assert (at.bad.kept_apart().reason, at.good.kept_apart()) == (QUARANTINED, None)
        assert at.scene.told == [("bad", QUARANTINED)]
        assert at.scene.value("podsvid_socket_moves_total", to="quarantine", why="memory") == 1
        assert at.scene.value("podsvid_socket_server_starts_total") == 2
        at.scene.metrics.refresh()
        assert at.scene.value("podsvid_sockets_apart", where="quarantine") == 1
        # What is new for it goes there.
        at.bad.feed.publish(await at.scene.identity())
        await second.heard(messages.Changed)
        assert not [each for each in first.told if isinstance(each, messages.Changed)]
        assert [call[0] for call in (await at.bad.use(peers=False)).calls] == [messages.METHODS[0]]
        assert [type(each) for each in second.told].count(messages.Look) == 1

    on(tmp_path, monkeypatch, main)


def test_who_ends_the_process_of_all_is_not_brought_back_there(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.weigh(first)
        await at.weigh(first, "good", Weight(1, 1, 0, 0, 1, 1))
        await until(lambda: at.number(first, "bad") in at.bad.at.server.open)
        await asked(first, messages.Wanted(1, 10**6, str(SPIFFE_ID), ("a",)))  # all before it was read
        first.raw.shutdown(socket.SHUT_RDWR)
        second, third = await at.scene.life(2), await at.scene.life(3)
        await second.heard(messages.Open)
        await third.heard(messages.Open)
        assert first.ended
        assert sorted([at.pods(second), at.pods(third)]) == [["bad"], ["good"]]
        assert at.scene.value("podsvid_socket_moves_total", to="quarantine", why="ended") == 1

    on(tmp_path, monkeypatch, main)


def test_an_end_that_nobody_is_to_blame_for_moves_nobody(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.weigh(first, "bad", Weight(1, 1, 0, 0, 1, 1))
        await asked(first, messages.Wanted(1, 10**6, str(SPIFFE_ID), ("a",)))
        first.raw.shutdown(socket.SHUT_RDWR)
        second = await at.scene.life(2)
        await second.heard(messages.Open, 2)
        assert sorted(at.pods(second)) == ["bad", "good"]
        assert at.scene.told == []

    on(tmp_path, monkeypatch, main)


def test_who_costs_too_much_alone_is_closed_and_told_why_and_comes_back(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.too_much(first)
        second = await at.closed()
        await until(lambda: second.ended)
        kept = at.bad.kept_apart()
        assert (kept.reason, kept.closed) == (CLOSED, True)
        assert "30 s more" in kept.message
        assert "too much memory" in kept.message
        assert at.scene.told == [("bad", QUARANTINED), ("bad", CLOSED)]
        at.scene.metrics.refresh()
        assert at.scene.value("podsvid_sockets_apart", where="closed") == 1
        assert at.scene.value("podsvid_sockets_apart", where="quarantine") == 0
        assert at.scene.value("podsvid_socket_moves_total", to="closed", why="memory") == 1
        assert (await at.bad.use(peers=True)).calls == ()
        with pytest.raises(SocketUnavailable, match="closed for 30 s more"):
            await at.bad.open()
        # A publish of another volume of that pod, and of another pod.
        another, _, _ = await at.scene.socket("bad", "bad2")
        with pytest.raises(SocketUnavailable, match="closed for 30 s more"):
            await another.open()
        await another.close()
        other, _, _ = await at.scene.socket("other")
        await other.open()
        assert len(at.scene.played) == 2
        at.later(30)
        third = await at.scene.life(3)
        await third.heard(messages.Open)
        await until(at.place.has_socket)
        assert at.pods(third) == ["bad"]
        assert at.scene.value("podsvid_socket_moves_total", to="quarantine", why="over") == 1
        # Quiet for long enough, it is one of all again.
        at.later(TIMES.quiet)
        await first.heard(messages.Open, 4)
        assert at.pods(first)[-1] == "bad"
        await until(lambda: third.ended)
        assert at.bad.kept_apart() is None
        assert at.scene.value("podsvid_socket_moves_total", to="shared", why="quiet") == 1
        assert not first.ended
        at.scene.metrics.refresh()
        assert at.scene.value("podsvid_sockets_apart", where="quarantine") == 0

    on(tmp_path, monkeypatch, main)


def test_a_volume_of_a_pod_in_quarantine_is_opened_there(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.too_much(first)
        second = await at.apart()
        another, _, _ = await at.scene.socket("bad", "bad2")
        await another.open()
        assert at.pods(second) == ["bad", "bad"]
        # The last of them goes, and with it the process; the next volume of that pod has it started again.
        await another.close()
        assert not second.ended
        await at.bad.close()
        await until(lambda: second.ended)
        again, _, _ = await at.scene.socket("bad", "bad3")
        await again.open()
        assert at.pods(await at.scene.life(3)) == ["bad"]
        assert at.pods(first) == ["bad", "good"]

    on(tmp_path, monkeypatch, main)


def test_a_process_asks_for_nobody_that_another_one_serves(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        bad, good = at.number(first, "bad"), at.number(first, "good")
        await at.too_much(first)
        second = await at.apart()
        own = str(SpiffeId.parse(str(SPIFFE_ID)))
        moved = at.number(second, "bad")
        (answer,) = await asked(second, messages.Wanted(1, moved, own, ("a",)))
        assert isinstance(answer, messages.Token)
        wrong = [number for number in (bad, good) if number != moved]
        for played, numbers in ((second, wrong), (first, [bad])):
            for number in numbers:
                (answer,) = await asked(played, messages.Wanted(10 + number, number, own, ("a",)))
                assert isinstance(answer, messages.NoToken)
        at.bad.forget_tokens()
        assert (await second.heard(messages.Forget)).volume == moved
        assert not [each for each in first.told if isinstance(each, messages.Forget)]

    on(tmp_path, monkeypatch, main)


def test_the_end_of_one_process_is_no_affair_of_the_other(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.too_much(first)
        second = await at.apart()
        at.scene.now += 100  # what weighed then is forgotten
        second.raw.shutdown(socket.SHUT_RDWR)
        third = await at.scene.life(3)
        await third.heard(messages.Open)
        assert at.pods(third) == ["bad"]
        assert not first.ended
        await until(lambda: at.bad.at is not None)
        first.raw.shutdown(socket.SHUT_RDWR)
        fourth = await at.scene.life(4)
        await fourth.heard(messages.Open)
        assert at.pods(fourth) == ["good"]
        assert not third.ended

    on(tmp_path, monkeypatch, main)


@pytest.mark.parametrize("when", ["before it is open there", "when it is open there"])
def test_an_unpublish_during_a_move_leaves_nothing_open(tmp_path: Path, monkeypatch: Any, when: str) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.too_much(first)
        if when == "when it is open there":
            await at.apart()
        await at.bad.close()
        assert not at.place.has_socket()
        await until(lambda: all(each.ended for each in at.scene.played[1:]))
        await at.scene.servers.settled()
        for played in at.scene.played:
            opened = [each.volume for each in played.told if isinstance(each, messages.Open) and "bad" in each.pod]
            closed = [each.volume for each in played.told if isinstance(each, messages.Close)]
            assert played.ended or set(opened) <= set(closed)
        assert not at.place.has_socket()
        assert at.bad.at is None

    on(tmp_path, monkeypatch, main)


def test_what_is_unpublished_while_it_waits_for_its_turn_is_not_opened(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        at.scene.prepare = lambda played: played.held.clear()
        first.raw.shutdown(socket.SHUT_RDWR)
        second = await at.scene.life(2)
        await second.heard(messages.Open)
        (waiting,) = {"bad", "good"} - set(at.pods(second))
        await getattr(at, waiting).close()
        second.held.set()
        await at.scene.servers.settled()
        assert waiting not in at.pods(second)
        assert getattr(at, waiting).at is None

    monkeypatch.setattr(server_module, "SLICE", 1)
    on(tmp_path, monkeypatch, main)


def test_one_that_does_not_close_what_is_moved_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        first.deaf = True
        at.scene.effort = Effort(0.0, awake=False)
        await at.too_much(first)
        second = await at.scene.life(2)
        third = await at.scene.life(3)
        await second.heard(messages.Open)
        await third.heard(messages.Open)
        assert first.ended
        assert sorted([at.pods(second), at.pods(third)]) == [["bad"], ["good"]]

    monkeypatch.setattr(patience_module, "TURN", 0.005)
    monkeypatch.setattr(patience_module, "RUNNING", 0.2)
    on(tmp_path, monkeypatch, main)


def test_a_publish_that_gives_up_while_its_socket_is_moved_leaves_nothing_open(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        # Held where it was: the move waits for it, and a publish waits for the move.
        first.deaf = True
        await at.too_much(first)
        await first.heard(messages.Close)
        # Where it is to be is there: at its turn in the loop the publish waits for the move and for nothing else.
        await at.scene.servers.of(Place.QUARANTINE).link()
        with monkeypatch.context() as hasty, pytest.raises(SocketUnavailable):
            hasty.setattr(served_module, "OPENING", 0.0)
            await at.bad.open()
        at.scene.effort = Effort(0.0, awake=False)
        await at.bad.close()
        await until(lambda: first.ended)
        assert at.bad.at is None
        assert not at.place.has_socket()

    monkeypatch.setattr(patience_module, "TURN", 0.005)
    monkeypatch.setattr(patience_module, "RUNNING", 0.2)
    on(tmp_path, monkeypatch, main)


def test_it_is_looked_at_on_the_beat_when_it_says_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        first.lively = True
        await first.wire.send(messages.Pong())
        await at.weigh(first)
        await asked(first, messages.Wanted(1, 10**6, str(SPIFFE_ID), ("a",)))  # all before it was read
        assert at.scene.told == []
        at.scene.usage = Usage(0.0, PART * MEMORY)
        await at.apart()
        assert at.scene.value("podsvid_socket_moves_total", to="quarantine", why="memory") == 1

    monkeypatch.setattr(warden_module, "CALM", 0.01)
    on(tmp_path, monkeypatch, main)


def test_whoever_waits_for_a_process_that_is_not_needed_any_more_waits_no_longer(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        never = asyncio.Event()

        async def start(*_: object) -> Played:
            await never.wait()
            raise AssertionError

        monkeypatch.setattr(Exposed, "start", start)
        await at.too_much(first)
        await first.heard(messages.Close)
        await until(lambda: at.bad.at is None)
        opening = asyncio.ensure_future(at.bad.open())
        await asyncio.sleep(0)
        await at.bad.close()
        with pytest.raises(SocketUnavailable, match="unpublished"):
            await opening
        async with asyncio.timeout(5):
            await asyncio.gather(*at.scene.servers._bringing)

    on(tmp_path, monkeypatch, main)


def test_place_of_a_socket_is_left_clean(tmp_path: Path, monkeypatch: Any) -> None:
    async def main(at: Pods) -> None:
        first = await at.open()
        await at.too_much(first)
        await at.apart()
        assert os.listdir(tmp_path / "bad") == ["socket"]

    on(tmp_path, monkeypatch, main)
