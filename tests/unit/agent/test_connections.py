"""The books of the connections of pods' sockets."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.socket import connections
from agent.socket.accounts import Limits
from agent.socket.connections import Connections, Holder, unread


class Listener:
    """A socket at a path; `connect` answers the pod's end and a descriptor of this one, as gRPC would have it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()

    def connect(self) -> tuple[socket.socket, int]:
        theirs = socket.socket(socket.AF_UNIX)
        theirs.settimeout(5)
        theirs.connect(self.path)
        taken, _ = self._socket.accept()
        return theirs, taken.detach()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[Listener]]:
    found = [Listener(tmp_path / name) for name in ("a", "b", "c")]
    yield found
    for each in found:
        each.close()


def books(listeners: list[Listener], pod: int = 3, most: int = 100) -> Connections:
    made = Connections(pod, most)
    for listener, name in zip(listeners, ("one", "one", "two"), strict=True):
        made.begin(listener.path, Holder(name))
    return made


def is_shut(theirs: socket.socket) -> bool:
    theirs.setblocking(False)
    try:
        return theirs.recv(1) == b""
    except BlockingIOError:
        return False


def fill(descriptor: int, message: bytes) -> None:
    os.set_blocking(descriptor, False)
    try:
        while True:
            os.write(descriptor, message)
    except BlockingIOError:
        pass


@pytest.mark.parametrize("size", [1, 17, 100, 1000, 2200, 3000, 16384, 100_000])
def test_what_is_unread_is_bounded(listeners: list[Listener], size: int) -> None:
    _theirs, ours = listeners[0].connect()
    books(listeners).taken(ours)
    fill(ours, b"x" * size)
    assert 0 < unread(ours) <= connections.UNREAD


def test_a_pods_volumes_share_a_bound_and_others_have_theirs(listeners: list[Listener]) -> None:
    taken = books(listeners)
    kept = [each.connect() for each in (listeners[0], listeners[1]) * 4]
    for _, ours in kept:
        taken.taken(ours)
    assert [is_shut(theirs) for theirs, _ in kept] == [False] * 3 + [True] * 5
    theirs, ours = listeners[2].connect()
    taken.taken(ours)
    assert not is_shut(theirs)
    assert (taken.held("one"), taken.held("two")) == (3, 1)


def test_all_pods_have_one(listeners: list[Listener]) -> None:
    taken = books(listeners, most=2)
    kept = [each.connect() for each in listeners]
    for _, ours in kept:
        taken.taken(ours)
    assert [is_shut(theirs) for theirs, _ in kept] == [False, False, True]


def test_one_that_cannot_be_entered_is_shut(listeners: list[Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    taken = books(listeners)
    theirs, ours = listeners[0].connect()
    with monkeypatch.context() as full:
        full.setattr(os, "dup", none_left)
        with pytest.raises(OSError, match="too many open files"):
            taken.taken(ours)
    assert is_shut(theirs)
    assert taken.held("one") == 0
    able, second = listeners[0].connect()
    taken.taken(second)
    assert not is_shut(able)


def test_one_that_is_refused_takes_no_descriptor(listeners: list[Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = books(listeners, most=0)
    theirs, ours = listeners[0].connect()
    monkeypatch.setattr(os, "dup", lambda _: pytest.fail("a descriptor was taken"))
    taken.taken(ours)
    assert is_shut(theirs)


def test_one_that_was_closed_counts_until_it_is_read(listeners: list[Listener]) -> None:
    taken = books(listeners, pod=1)
    theirs, ours = listeners[0].connect()
    taken.taken(ours)
    os.write(ours, b"unread")
    os.close(ours)
    refused, second = listeners[0].connect()
    taken.taken(second)
    assert is_shut(refused)
    assert theirs.recv(100) == b"unread"
    able, third = listeners[0].connect()
    taken.taken(third)
    assert not is_shut(able)
    assert taken.held("one") == 1


def test_a_number_that_is_used_again_is_another_connection(listeners: list[Listener]) -> None:
    taken = books(listeners, pod=1)
    for _ in range(50):
        theirs, ours = listeners[0].connect()
        taken.taken(ours)
        assert not is_shut(theirs)
        os.close(ours)
    assert taken.held("one") == 1


def test_pods_that_went_are_forgotten(listeners: list[Listener]) -> None:
    taken = books(listeners)
    _theirs, ours = listeners[2].connect()
    taken.taken(ours)
    os.close(ours)
    _other, kept = listeners[0].connect()
    taken.taken(kept)
    assert (taken.held("one"), taken.held("two")) == (1, 0)


def test_what_a_pod_has_left_is_seen_in_time() -> None:
    looks = connections._LOOKS
    assert connections.ALL / looks < connections.POD - Limits().connections


def test_each_socket_knows_what_it_took_and_what_is_open(listeners: list[Listener]) -> None:
    taken, one, two = Connections(pod=3), Holder("pod"), Holder("pod")
    taken.begin(listeners[0].path, one)
    taken.begin(listeners[1].path, two)
    kept = [each.connect() for each in (listeners[0], listeners[0], listeners[1], listeners[1])]
    for _, ours in kept:
        taken.taken(ours)
    assert is_shut(kept[3][0])
    assert [(each.taken, each.open) for each in (one, two)] == [(2, 2), (2, 1)]
    os.close(kept[0][1])
    taken.look()
    assert [(each.taken, each.open) for each in (one, two)] == [(2, 1), (2, 1)]


def test_a_pods_connections_are_shut_at_once_and_nobody_elses(listeners: list[Listener]) -> None:
    taken = books(listeners)
    kept = [each.connect() for each in listeners]
    for _, ours in kept:
        taken.taken(ours)
    taken.shut("one")
    assert [is_shut(theirs) for theirs, _ in kept] == [True, True, False]
    # They are gRPC's to close, and count until it does.
    assert taken.held("one") == 2
    for _, ours in kept:
        os.close(ours)
    taken.look()
    assert (taken.held("one"), taken.held("two")) == (0, 0)


def test_connections_with_something_to_be_read_are_busy(listeners: list[Listener]) -> None:
    at = Connections()
    holders = [Holder("one"), Holder("two")]
    for listener, holder in zip(listeners, holders, strict=False):
        at.begin(listener.path, holder)
    pairs = [listener.connect() for listener in listeners[:2]]
    for _, ours in pairs:
        at.taken(ours)
    pairs[0][0].send(b"x")
    at.count_busy(at.unheard())
    at.count_busy(at.unheard())
    assert [each.busy for each in holders] == [2, 0]
    # What was read meanwhile, or has just come, keeps nobody busy.
    before = at.unheard()
    os.read(pairs[0][1], 1)
    pairs[1][0].send(b"x")
    at.count_busy(before)
    assert [each.busy for each in holders] == [2, 0]
    os.read(pairs[1][1], 1)
    # What its process has closed keeps nobody busy, whatever was left in it.
    pairs[0][0].send(b"x")
    before = at.unheard()
    os.close(pairs[0][1])
    at.count_busy(before)
    assert [each.busy for each in holders] == [2, 0]
    assert at.unheard() == frozenset()
    for theirs, _ in pairs:
        theirs.close()
    os.close(pairs[1][1])
