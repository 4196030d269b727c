"""The books of the connections of pods' sockets."""

import array
import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.channel.messages import REFUSALS
from agent.socket import closing, connections, refusals
from agent.socket.accounts import Limits
from agent.socket.closing import Closers, close_listener, emptied
from agent.socket.connections import Connections, Held, Holder, unread


@dataclass
class Pods:
    """Sockets of pods, and the books of what connects there."""

    base: Path
    books: Connections
    listening: dict[str, socket.socket] = field(default_factory=dict)
    holders: dict[str, Holder] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def connect(self, name: str, pod: str = "") -> tuple[socket.socket, Held | None]:
        """The pod's end, and what the books have of it."""
        if name not in self.listening:
            self.listening[name] = socket.socket(socket.AF_UNIX)
            self.listening[name].bind(str(self.base / name))
            self.listening[name].listen()
            self.holders[name] = Holder(pod or name)
        theirs = socket.socket(socket.AF_UNIX)
        theirs.settimeout(5)
        theirs.connect(str(self.base / name))
        taken, _ = self.listening[name].accept()
        return theirs, self.books.enter(taken, self.holders[name])

    def enter(self, name: str, pod: str = "") -> tuple[socket.socket, Held]:
        theirs, held = self.connect(name, pod)
        assert held is not None
        return theirs, held


def with_books(main: Callable[[Pods], None], base: Path, pod: int = 3, most: int = 100) -> None:
    async def run() -> None:
        refused: list[str] = []
        at = Pods(base, Connections(Closers(), refused.append, pod, most), refused=refused)
        main(at)
        for each in at.listening.values():
            each.close()

    asyncio.run(run())


def is_shut(theirs: socket.socket) -> bool:
    theirs.setblocking(False)
    with suppress(BlockingIOError):
        return theirs.recv(1) == b""
    return False


def send_descriptor(theirs: socket.socket) -> None:
    theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])


@pytest.mark.parametrize("size", [1, 17, 100, 1000, 2200, 3000, 16384, 100_000])
def test_what_is_unread_is_bounded(tmp_path: Path, size: int) -> None:
    def main(at: Pods) -> None:
        _theirs, held = at.enter("a")
        held.connection.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                held.connection.send(b"x" * size)
        assert 0 < unread(held.connection.fileno()) <= connections.UNREAD

    with_books(main, tmp_path)


def test_a_pods_volumes_share_a_bound_and_others_have_theirs(tmp_path: Path) -> None:
    def main(at: Pods) -> None:
        kept = [at.connect(name, "one") for name in ("a", "b") * 4]
        assert [held is not None for _, held in kept] == [True] * 3 + [False] * 5
        assert [is_shut(theirs) for theirs, _ in kept] == [False] * 3 + [True] * 5
        theirs, _ = at.connect("c", "two")
        assert not is_shut(theirs)
        assert (at.books.held("one"), at.books.held("two")) == (3, 1)
        assert [(each.taken, each.open) for each in at.holders.values()] == [(4, 2), (4, 1), (1, 1)]
        assert at.refused == [refusals.OF_POD] * 5

    with_books(main, tmp_path)


def test_the_agent_counts_every_reason() -> None:
    assert set(refusals.ALL) < set(REFUSALS)


def test_all_pods_have_one(tmp_path: Path) -> None:
    def main(at: Pods) -> None:
        kept = [at.connect(name) for name in ("a", "b", "c")]
        assert [is_shut(theirs) for theirs, _ in kept] == [False, False, True]
        assert at.refused == [refusals.OF_ALL]
        at.books.allow(3)
        assert not is_shut(at.connect("c")[0])

    with_books(main, tmp_path, most=2)


def test_one_that_was_closed_counts_until_it_is_read(tmp_path: Path) -> None:
    def main(at: Pods) -> None:
        theirs, held = at.enter("a")
        held.connection.send(b"unread")
        at.books.leave(held)
        assert is_shut(at.connect("a")[0])
        assert (theirs.recv(100), theirs.recv(100)) == (b"unread", b"")
        at.books.tidy()
        assert not is_shut(at.connect("a")[0])
        assert (at.books.held("a"), at.holders["a"].open) == (1, 1)

    with_books(main, tmp_path, pod=1)


def test_one_that_was_closed_and_read_or_whose_peer_has_gone_is_over_at_once(tmp_path: Path) -> None:
    def main(at: Pods) -> None:
        theirs, held = at.enter("a")
        at.books.leave(held)
        assert is_shut(theirs)
        assert at.books.held("a") == 0
        theirs, held = at.enter("a")
        theirs.send(b"said and gone")
        held.connection.send(b"never read")
        theirs.close()
        at.books.leave(held)
        assert (at.books.held("a"), at.holders["a"].open, at.books.closers.waiting) == (0, 0, 0)

    with_books(main, tmp_path)


def test_what_a_pod_has_left_is_seen_in_time() -> None:
    looks = connections._LOOKS
    assert connections.ALL / looks < connections.POD - Limits().connections


def test_a_pods_connections_are_shut_at_once_and_nobody_elses(tmp_path: Path) -> None:
    def main(at: Pods) -> None:
        kept = [at.enter("a", "one"), at.enter("b", "one"), at.enter("c", "two")]
        at.books.shut("one")
        assert [is_shut(theirs) for theirs, _ in kept] == [True, True, False]
        # They count until they are closed.
        assert at.books.held("one") == 2
        for _, held in kept:
            at.books.leave(held)
        assert (at.books.held("one"), at.books.held("two")) == (0, 0)

    with_books(main, tmp_path)


def test_connections_with_something_to_be_read_are_busy(tmp_path: Path) -> None:
    def main(at: Pods) -> None:
        one, two = at.enter("a"), at.enter("b")

        def busy() -> list[int]:
            return [each.busy for each in at.holders.values()]

        one[0].send(b"x")
        at.books.count_busy(at.books.unheard())
        at.books.count_busy(at.books.unheard())
        assert busy() == [2, 0]
        # What was read meanwhile, or has just come, keeps nobody busy.
        before = at.books.unheard()
        one[1].connection.recv(1)
        two[0].send(b"x")
        at.books.count_busy(before)
        assert busy() == [2, 0]
        # Nor does what was closed, whatever was left in it.
        before = at.books.unheard()
        assert before == {two[1]}
        at.books.leave(two[1])
        at.books.count_busy(before)
        assert busy() == [2, 0]
        assert at.books.unheard() == frozenset()

    with_books(main, tmp_path)


def test_one_with_a_descriptor_in_it_is_closed_in_a_thread_and_counts_until_then(tmp_path: Path) -> None:
    async def run() -> None:
        at = Pods(tmp_path, Connections(Closers(most=1), list[str]().append, pod=3))
        theirs, held = at.enter("a")
        send_descriptor(theirs)
        another, also = at.enter("a")
        send_descriptor(another)
        at.books.leave(held)
        at.books.leave(also)
        assert at.books.closers.waiting == 1
        assert at.books.held("a") == 2
        async with asyncio.timeout(10):
            while at.books.held("a"):
                await asyncio.sleep(0.001)
        assert held.connection.fileno() == also.connection.fileno() == -1
        at.listening["a"].close()

    asyncio.run(run())


def test_what_can_be_taken_is_taken_and_what_may_last_is_left() -> None:
    for what, sent in (("nothing", 0), ("little", 100), ("as much as it can hold", 10_000_000)):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            theirs.send(b"x" * sent)
        assert emptied(ours), what
        with pytest.raises(BrokenPipeError):
            theirs.send(b"later")
        ours.close()
        theirs.close()
    ours, theirs = socket.socketpair()
    theirs.send(b"x" * 30_000)
    send_descriptor(theirs)
    before = len(os.listdir("/proc/self/fd"))
    assert not emptied(ours)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


def test_a_descriptor_beside_an_urgent_byte_is_left_as_well() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", reading))], socket.MSG_OOB)
    assert not emptied(ours)
    for each in (ours, theirs):
        each.close()
    for number in (reading, writing):
        os.close(number)


@pytest.mark.parametrize("waiting", [0, 2])
def test_a_listener_is_closed_with_whoever_waits_there(
    tmp_path: Path, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        monkeypatch.setattr(closing, "WAITING", 2)
        closers = Closers(most=0)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        ends = []
        for number in range(waiting + 3):
            ends.append(socket.socket(socket.AF_UNIX))
            ends[-1].connect(str(tmp_path / "socket"))
            if number < waiting:
                send_descriptor(ends[-1])
        close_listener(listening, closers)
        # Beyond so many, all that are left wait with their listener.
        assert closers.waiting == (3 if waiting else 0)
        assert (listening.fileno() == -1) == (not waiting)
        assert [is_shut(each) for each in ends] == [True] * waiting + [not waiting] * 3
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(tmp_path / "socket"))
        for each in ends:
            each.close()
        closers._most = 4
        closers.go_on()
        started = time.monotonic()
        while listening.fileno() != -1:
            assert time.monotonic() < started + 10
            await asyncio.sleep(0.001)

    asyncio.run(run())
