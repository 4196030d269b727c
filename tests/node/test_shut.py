"""Who connects far too often is shut out by the kernel, on real sockets, and let in again after a while."""

import errno
import ipaddress
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import pytest

from runtime.listening import bound, whose
from signer.front import shut as module
from signer.front.shut import MOST_SECONDS, MOST_STEPS, SHUT_SECONDS, STEPS_6, Instruction, Shut, instructions
from tests.unit.runtime.test_listening import ipv6


class Rig:
    """A listening socket, who is shut out of it, and a clock that only tests move."""

    def __init__(self, host: str) -> None:
        self.at = 100.0
        self.shut = Shut(lambda: self.at)
        (self.listening,) = bound((host, 0), (65536, 65536))
        self.listening.listen(16)
        self.port = self.listening.getsockname()[1]

    def look(self, *floods: str) -> None:
        self.shut.look(floods, [self.listening])

    def comes(self, source: str, to: str = "127.0.0.1") -> bool:
        """Whether a connection from there is taken; over the loopback that is known at once."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)) as client:
            client.bind((source, 0))
            assert client.connect_ex((to, self.port)) in (0, errno.EINPROGRESS)
            try:
                taken, _ = self.listening.accept()
            except BlockingIOError:
                return False
            with taken:
                self.shut.taken(taken)
                client.setblocking(True)
                client.settimeout(10)
                client.sendall(b"x")
                taken.settimeout(10)
                return taken.recv(1) == b"x"


@contextmanager
def rigged(host: str = "127.0.0.1") -> Iterator[Rig]:
    rig = Rig(host)
    with closing(rig.listening):
        yield rig


def test_who_floods_is_shut_out_and_others_are_not_until_its_time_is_over() -> None:
    with rigged() as rig:
        assert rig.comes("127.0.0.9")
        rig.look("127.0.0.9", "127.0.0.7")
        assert (rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.comes("127.0.0.7")) == (False, True, False)
        rig.at += SHUT_SECONDS / 2
        rig.look("127.0.0.8")
        assert (rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.comes("127.0.0.6")) == (False, False, True)
        rig.at += SHUT_SECONDS / 2
        rig.look()
        assert (rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.shut.count) == (True, False, 1)
        rig.at += SHUT_SECONDS
        rig.look()
        assert (rig.comes("127.0.0.8"), rig.shut.count) == (True, 0)


def test_who_was_in_before_stays_in() -> None:
    with (
        rigged() as rig,
        closing(socket.create_connection(("127.0.0.1", rig.port), source_address=("127.0.0.9", 0))) as one,
    ):
        taken, _ = rig.listening.accept()
        rig.look("127.0.0.9")
        assert not rig.comes("127.0.0.9")
        with taken:
            taken.settimeout(10)
            one.sendall(b"y")
            assert taken.recv(1) == b"y"


@ipv6
def test_of_ipv6_a_network_is_shut_out_and_ipv4_beside_it() -> None:
    with rigged("::") as rig:
        rig.look(whose("127.0.0.9"))
        assert (rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.comes("::1", "::1")) == (False, True, True)
        rig.look(whose("::1"), whose("fd00::7"))
        assert (rig.comes("127.0.0.9"), rig.comes("127.0.0.8"), rig.comes("::1", "::1")) == (False, True, False)
        rig.at += SHUT_SECONDS
        rig.look(whose("fd00::7"))
        assert (rig.comes("127.0.0.9"), rig.comes("::1", "::1")) == (True, True)


def test_they_are_as_many_as_the_kernel_takes() -> None:
    networks = [f"fd00:0:0:{number:x}::/64" for number in range(MOST_STEPS)]
    with rigged("127.0.0.1") as rig:
        rig.look(*networks, "127.0.0.9")
        assert rig.shut.count == MOST_STEPS // STEPS_6
        assert rig.comes("127.0.0.9")
        rig.at += SHUT_SECONDS
        rig.look("127.0.0.9", *networks)
        assert not rig.comes("127.0.0.9")
        rig.at += 2 * SHUT_SECONDS
        addresses = [f"127.1.{number // 250}.{1 + number % 250}" for number in range(MOST_STEPS + 1)]
        rig.look(*addresses)
        assert rig.shut.count == MOST_STEPS
        for number in (0, 249, 250, 251, 1777, MOST_STEPS - 1):
            assert not rig.comes(addresses[number])
        assert rig.comes(addresses[-1])
        # What is no address cannot be shut out, nor one of a network without the others.
        rig.at += MOST_SECONDS
        rig.look("somewhere", "", "fd00::7")
        assert rig.shut.count == 0


def test_where_one_of_several_sockets_takes_no_filter_none_keeps_one(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = module._attach
    with rigged() as rig, rigged() as other:

        def one(listening: socket.socket, steps: Sequence[Instruction]) -> None:
            if listening is other.listening:
                raise OSError(errno.EPERM, "Operation not permitted")
            attach(listening, steps)

        monkeypatch.setattr(module, "_attach", one)
        rig.shut.look(["127.0.0.9"], [rig.listening, other.listening])
        assert (rig.comes("127.0.0.9"), other.comes("127.0.0.9"), rig.shut.count) == (True, True, 0)


def test_where_the_kernel_has_less_memory_fewer_are_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = module._attach

    def little(listening: socket.socket, steps: Sequence[Instruction]) -> None:
        if len(steps) > 50:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        attach(listening, steps)

    monkeypatch.setattr(module, "_attach", little)
    with rigged() as rig:
        rig.look(*(f"127.0.0.{number}" for number in range(1, 101)))
        assert rig.shut.count == 25
        assert [rig.comes(f"127.0.0.{number}") for number in (1, 25, 26, 100)] == [False, False, True, True]


def test_who_floods_again_is_shut_out_for_longer_and_that_is_forgotten() -> None:
    with rigged() as rig:
        for seconds in (SHUT_SECONDS, 2 * SHUT_SECONDS, 4 * SHUT_SECONDS):
            rig.look("127.0.0.9")
            rig.at += seconds - 1
            rig.look()
            assert not rig.comes("127.0.0.9")
            rig.at += 1
            rig.look()
            assert rig.comes("127.0.0.9")
        for _ in range(3):
            rig.look("127.0.0.9")
            rig.at += MOST_SECONDS
            rig.look()
            assert rig.comes("127.0.0.9")
        rig.at += MOST_SECONDS
        rig.look()
        rig.look("127.0.0.9")
        rig.at += SHUT_SECONDS
        rig.look()
        assert rig.comes("127.0.0.9")


def test_where_the_kernel_takes_no_filter_it_is_said_and_nobody_is_shut_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_ATTACH", 0x7FFF)
    with rigged() as rig, caplog.at_level(logging.WARNING):
        rig.look("127.0.0.9")
        assert rig.comes("127.0.0.9")
        assert [each.message for each in caplog.records] == ["addresses cannot be shut out"]


def test_every_jump_ends_in_an_answer() -> None:
    """The kernel checks it too; here for any mixture of addresses."""
    many = [f"10.1.{number // 200}.{number % 200}" for number in range(600)]
    mixtures: list[list[str]] = [
        [],
        ["10.0.0.1"],
        ["fd00::/64"],
        ["10.0.0.1", "fd00::/64", "10.0.0.2", "fd01::/64"],
        many,
        [*many, "10.0.0.3", "fd00:0:0:1::/64"],
    ]
    for addresses in mixtures:
        steps = instructions(addresses)
        for source in ("10.0.0.1", "10.0.0.3", "fd00::9", "fd00:0:0:1::9"):
            dropped = any(ipaddress.ip_address(source) in ipaddress.ip_network(each) for each in addresses)
            assert ran(steps, source) == (0 if dropped else 0xFFFFFFFF)


def ran(steps: Sequence[Instruction], source: str) -> int:
    """What the filter answers for a packet from there."""
    address = ipaddress.ip_address(source)
    packet = bytearray(40)
    packet[0] = address.version << 4
    begin = 12 if address.version == 4 else 8
    packet[begin : begin + len(address.packed)] = address.packed
    at, value, kept = 0, 0, [0, 0]
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
