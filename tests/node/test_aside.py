"""Who connects far too often has a queue of its own in the kernel, on real sockets, and none after a while."""

import errno
import ipaddress
import logging
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import pytest

from runtime.listening import bound, whose
from signer.front import aside as module
from signer.front.aside import ASIDE_SECONDS, MOST_SECONDS, MOST_STEPS, QUEUE, Aside, Instruction, instructions
from tests.unit.runtime.test_listening import ipv6

USUAL, APART, NOWHERE = "usual", "aside", "nowhere"


class Rig:
    """A listening socket with one beside it, who is put aside, and a clock that only tests move."""

    def __init__(self, host: str) -> None:
        self.at = 100.0
        self.aside = Aside(lambda: self.at)
        self.listening = bound((host, 0), (65536, 65536))
        self.aside.listen(self.listening, 16)
        self.port = self.listening[0].getsockname()[1]

    def look(self, *floods: str, agents: Sequence[str] = ()) -> None:
        self.aside.look(dict.fromkeys(floods, agents))

    def calls(self, source: str, to: str = "127.0.0.1") -> socket.socket:
        """A connection from there."""
        client = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        client.bind((source, 0))
        assert client.connect_ex((to, self.port)) in (0, errno.EINPROGRESS)
        return client

    def comes(self, source: str, to: str = "127.0.0.1") -> str:
        """From which queue a connection from there is taken."""
        with closing(self.calls(source, to)) as client:
            until = time.monotonic() + 10
            # Where others keep the kernel busy with packets, it is in its queue only a moment later.
            while time.monotonic() < until:
                for name, sockets in ((USUAL, self.listening), (APART, self.aside.sockets)):
                    for each in sockets:
                        try:
                            taken, peer = each.accept()
                        except BlockingIOError:
                            continue
                        with taken:
                            if (peer[0].removeprefix("::ffff:"), peer[1]) != client.getsockname()[:2]:
                                continue
                            for end in (client, taken):
                                end.settimeout(10)
                            client.sendall(b"x")
                            assert taken.recv(1) == b"x"
                            return name
        return NOWHERE


@contextmanager
def rigged(host: str = "127.0.0.1") -> Iterator[Rig]:
    rig = Rig(host)
    with closing(rig.aside), closing(rig.listening[0]):
        yield rig


def test_who_floods_has_a_queue_of_its_own_and_others_are_not_in_it() -> None:
    with rigged() as rig:
        assert rig.comes("127.0.0.9") == USUAL
        rig.look("127.0.0.9", "127.0.0.7")
        assert [rig.comes(f"127.0.0.{last}") for last in (9, 8, 7)] == [APART, USUAL, APART]
        rig.at += ASIDE_SECONDS / 2
        rig.look("127.0.0.8")
        assert [rig.comes(f"127.0.0.{last}") for last in (9, 8, 6)] == [APART, APART, USUAL]
        rig.at += ASIDE_SECONDS / 2
        rig.look()
        assert ([rig.comes(f"127.0.0.{last}") for last in (9, 8)], rig.aside.count) == ([USUAL, APART], 1)
        rig.at += ASIDE_SECONDS
        rig.look()
        assert (rig.comes("127.0.0.8"), rig.aside.count) == (USUAL, 0)


def test_where_that_queue_is_full_they_are_dropped_and_others_come_in() -> None:
    with rigged() as rig:
        rig.look("127.0.0.9")
        many = [rig.calls("127.0.0.9") for _ in range(QUEUE + 50)]
        assert rig.comes("127.0.0.8") == USUAL
        taken = []
        with pytest.raises(BlockingIOError):
            while True:
                taken.append(rig.aside.sockets[0].accept()[0])
        assert len(taken) <= QUEUE + 1
        for each in (*many, *taken):
            each.close()


def test_who_was_in_before_stays_in() -> None:
    with rigged() as rig, closing(rig.calls("127.0.0.9")) as one:
        assert select.select(rig.listening, [], [], 10)[0]
        taken, _ = rig.listening[0].accept()
        rig.look("127.0.0.9")
        assert rig.comes("127.0.0.9") == APART
        with taken:
            for end in (one, taken):
                end.settimeout(10)
            one.sendall(b"y")
            assert taken.recv(1) == b"y"


@ipv6
def test_of_ipv6_a_network_is_put_aside_without_its_agents_and_ipv4_beside_it() -> None:
    with rigged("::") as rig:
        rig.look(whose("127.0.0.9"))
        assert [rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.comes("::1", "::1")] == [APART, USUAL, USUAL]
        rig.look(whose("::1"), whose("fd00::7"))
        assert [rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.comes("::1", "::1")] == [APART, USUAL, APART]
        rig.at += ASIDE_SECONDS
        rig.look(whose("fd00::7"))
        assert [rig.comes("127.0.0.9"), rig.comes("::1", "::1")] == [USUAL, USUAL]
        # An agent's address in the network is no part of its flood, and floods by itself.
        rig.look(whose("::1"), agents=["::1", "::2"])
        assert rig.comes("::1", "::1") == USUAL
        rig.at += ASIDE_SECONDS
        rig.look("::1", agents=["::1"])
        assert rig.comes("::1", "::1") == APART


def test_who_is_turned_away_there_stays_and_has_to_flood_again_now_and_then() -> None:
    with rigged() as rig:
        rig.look("127.0.0.9", "127.0.0.7")
        begun = rig.at
        while rig.at < begun + MOST_SECONDS - ASIDE_SECONDS / 2:
            rig.at += ASIDE_SECONDS / 2
            for host in ("127.0.0.9", "127.0.0.1"):
                rig.aside.turned_away(host)
            rig.look()
            assert rig.comes("127.0.0.9") == APART
        assert [rig.comes(f"127.0.0.{last}") for last in (7, 1)] == [USUAL, USUAL]
        rig.at = begun + MOST_SECONDS
        rig.aside.turned_away("127.0.0.9")
        rig.look()
        assert rig.comes("127.0.0.9") == USUAL
        rig.look("127.0.0.9")
        assert rig.comes("127.0.0.9") == APART


def test_they_are_as_many_as_the_kernel_takes() -> None:
    networks = [f"fd00:0:0:{number:x}::/64" for number in range(MOST_STEPS)]
    with rigged() as rig:
        rig.look(*networks, "127.0.0.9")
        assert rig.aside.count == MOST_STEPS // 5
        assert rig.comes("127.0.0.9") == USUAL
        rig.at += ASIDE_SECONDS
        rig.look("127.0.0.9", *networks)
        assert rig.comes("127.0.0.9") == APART
        rig.at += ASIDE_SECONDS
        # One with more agents than there is room for stays where it is.
        rig.look(networks[0], agents=[f"fd00::{number:x}" for number in range(MOST_STEPS // 9 + 1)])
        assert rig.aside.count == 0
        addresses = [f"127.1.{number // 250}.{1 + number % 250}" for number in range(MOST_STEPS + 1)]
        rig.look(*addresses)
        assert rig.aside.count == MOST_STEPS
        for number in (0, 249, 250, 251, 1777, MOST_STEPS - 1):
            assert rig.comes(addresses[number]) == APART
        assert rig.comes(addresses[-1]) == USUAL
        rig.at += ASIDE_SECONDS
        rig.look("somewhere", "")
        assert rig.aside.count == 0


def test_where_the_kernel_has_less_memory_fewer_are_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = module._attach

    def little(first: socket.socket, steps: Sequence[Instruction]) -> None:
        if len(steps) > 50:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        attach(first, steps)

    monkeypatch.setattr(module, "_attach", little)
    with rigged() as rig:
        rig.look(*(f"127.0.0.{number}" for number in range(1, 101)))
        assert rig.aside.count == 25
        assert [rig.comes(f"127.0.0.{number}") for number in (1, 25, 26, 100)] == [APART, APART, USUAL, USUAL]


def test_where_the_kernel_knows_no_such_program_all_have_one_queue_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_ATTACH", 0x7FFF)
    with caplog.at_level(logging.WARNING), rigged() as rig:
        rig.look("127.0.0.9")
        assert (rig.aside.count, rig.aside.sockets) == (0, [])
        assert [rig.comes("127.0.0.9") for _ in range(20)] == [USUAL] * 20
    assert [each.message for each in caplog.records] == ["addresses that connect far too often cannot be put aside"]


def test_nobody_else_can_listen_there() -> None:
    with rigged() as rig, socket.socket() as other:
        with pytest.raises(OSError, match="already in use"):
            bound(("127.0.0.1", rig.port), None)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="already in use"):
            other.bind(("127.0.0.1", rig.port))


def test_every_jump_ends_in_an_answer() -> None:
    """The kernel checks it too; here for any mixture of addresses."""
    many = [f"10.1.{number // 200}.{number % 200}" for number in range(600)]
    mixtures: list[list[str]] = [
        [],
        ["10.0.0.1"],
        ["fd00::/64"],
        ["10.0.0.1", "fd00::/64", "10.0.0.2", "fd01::/64"],
        ["fd00:0:0:1::9", "fd00:0:0:1::8", "fd00::/64"],
        many,
        [*many, "10.0.0.3", "fd00:0:0:1::/64"],
    ]
    for addresses in mixtures:
        for apart in ([], ["fd00::8"], ["fd00::8", "fd00:0:0:1::7"]):
            steps = instructions(addresses, apart)
            for source in ("10.0.0.1", "10.0.0.3", "fd00::9", "fd00::8", "fd00:0:0:1::9", "fd00:0:0:1::7"):
                put = any(ipaddress.ip_address(source) in ipaddress.ip_network(each) for each in addresses)
                assert ran(steps, source) == int(put and source not in apart)


def ran(steps: Sequence[Instruction], source: str) -> int:
    """What the program answers for a packet from there."""
    address = ipaddress.ip_address(source)
    packet = bytearray(40)
    packet[0] = address.version << 4
    begin = 12 if address.version == 4 else 8
    packet[begin : begin + len(address.packed)] = address.packed
    at, value, kept = 0, 0, [0, 0, 0, 0]
    while True:
        code, true, false, operand = steps[at]
        at += 1
        offset = operand - 0xFFF00000
        if code in (0x02, 0x60):
            kept[operand] = value = value if code == 0x02 else kept[operand]
        elif code == 0x30:
            value = packet[offset]
        elif code == 0x20:
            value = int.from_bytes(packet[offset : offset + 4], "big")
        elif code == 0x74:
            value >>= operand
        elif code == 0x15:
            at += true if value == operand else false
        elif code == 0x05:
            at += operand
        else:
            assert code == 0x06
            return operand
