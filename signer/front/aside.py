"""Who connects far more often than it may comes in by a queue of its own, of which little is taken.

Each connection that is taken only to be closed costs a moment of the replica's one loop; ten thousand a second of them
cost all of it, and those of agents wait in the kernel's queue behind them, or are dropped there with the others. So at
each address two sockets listen (socket(7), SO_REUSEPORT), and a program in the kernel says by where a connection comes
from into whose queue it goes (SO_ATTACH_REUSEPORT_CBPF). What finds that queue full is dropped there and costs nothing
here. It needs no right.
"""

import ctypes
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from errno import ENOMEM

from runtime.listening import exact, whose
from runtime.seldom import Seldom

_log = logging.getLogger("podsvid.door")
# Seconds for which an address is aside after it flooded, or was turned away there; and the most before it has to flood
# again, since agents may have come to its network.
ASIDE_SECONDS, MOST_SECONDS = 60.0, 600.0
# Connections that wait there.
QUEUE = 64
# Instructions of a program, of which the kernel takes 4096.
MOST_STEPS = 2200
# Addresses between two answers: a jump if a comparison holds goes no farther than 255.
_BLOCK = 250
_COMPLAINT_SECONDS = 60.0
# Of asm-generic/socket.h; Python has no name for it.
_ATTACH = 51
# Of linux/bpf_common.h and linux/filter.h: load a byte or a word, shift, compare, jump, answer; keep a word and load
# it again; and where IP begins.
_LOAD_BYTE, _LOAD_WORD, _SHIFT, _EQUAL, _JUMP, _ANSWER = 0x30, 0x20, 0x74, 0x15, 0x05, 0x06
_KEEP, _KEPT = 0x02, 0x60
_IP = 0xFFF00000
_SOURCE_4, _SOURCE_6 = _IP + 12, _IP + 8
# Which of an address's sockets, in the order in which they began to listen.
_USUAL, _ASIDE = (_ANSWER, 0, 0, 0), (_ANSWER, 0, 0, 1)
Instruction = tuple[int, int, int, int]


def instructions(aside: Iterable[str], apart: Iterable[str] = ()) -> Sequence[Instruction]:
    """Classic BPF (code, jump if true, if not, operand) that puts what comes from these aside, without those `apart`.

    `aside`: IPv4 addresses, addresses of IPv6 and networks of 64 bits; `apart`: addresses in these networks.
    """
    networks = [ipaddress.ip_network(each) for each in aside]
    four = [int(each.network_address) for each in networks if each.version == 4]
    of_4: list[Instruction] = [(_LOAD_WORD, 0, 0, _SOURCE_4)]
    for begin in range(0, len(four), _BLOCK):
        block = four[begin : begin + _BLOCK]
        of_4 += [(_EQUAL, len(block) - number, 0, address) for number, address in enumerate(block)]
        of_4 += [(_JUMP, 0, 0, 1), _ASIDE]
    of_4.append(_USUAL)
    of_6: list[Instruction] = []
    for number in range(4):
        of_6 += [(_LOAD_WORD, 0, 0, _SOURCE_6 + 4 * number), (_KEEP, 0, 0, number)]
    for host in apart:
        of_6 += _if(ipaddress.ip_network(host), _USUAL)
    for network in networks:
        if network.version == 6:
            of_6 += _if(network, _ASIDE)
    first = [(_LOAD_BYTE, 0, 0, _IP), (_SHIFT, 0, 0, 4), (_EQUAL, 1, 0, 4), (_JUMP, 0, 0, len(of_4))]
    return [*first, *of_4, *of_6, _USUAL]


def _if(network: ipaddress.IPv4Network | ipaddress.IPv6Network, answer: Instruction) -> list[Instruction]:
    """That answer for what comes from this IPv6 network."""
    words = network.prefixlen // 32
    found: list[Instruction] = []
    for number, word in enumerate(struct.unpack_from(f">{words}I", network.network_address.packed)):
        found += [(_KEPT, 0, 0, number), (_EQUAL, 0, 2 * (words - number) - 1, word)]
    return [*found, answer]


@dataclass(frozen=True, slots=True)
class _Flood:
    """`apart`: the addresses in its network that are not meant."""

    since: float
    until: float
    apart: frozenset[str]
    steps: int


class Aside:
    """The addresses whose connections have a queue of their own now. `now`: seconds that only grow."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._floods: dict[str, _Flood] = {}
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._complaint = Seldom(_COMPLAINT_SECONDS, now)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self._floods)

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """What their connections are taken from."""
        return [second for _, second in self._pairs]

    def listen(self, sockets: Sequence[socket.socket], backlog: int) -> None:
        """Have these listen, and another one beside each where the kernel can do that. Raises OSError."""
        for first in sockets:
            with suppress(OSError):
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            first.listen(backlog)
            try:
                # Before there are two: without it they would share what comes.
                _attach(first, instructions([]))
                self._pairs.append((first, _second(first)))
            except OSError as error:
                self._complain(error)

    def look(self, floods: Mapping[str, Collection[str]]) -> None:
        """Put these aside from now on, and no longer those whose time is over. The addresses of each that are no part
        of its flood, since agents have them, stay where they are."""
        now, before = self._now(), frozenset(self._floods)
        self._floods = {address: each for address, each in self._floods.items() if each.until > now}
        steps = sum(each.steps for each in self._floods.values())
        for address, agents in floods.items() if self._pairs else ():
            apart = frozenset(agents) - {address}
            cost = _cost([address, *apart])
            if cost and address not in self._floods and steps + cost <= MOST_STEPS:
                self._floods[address] = _Flood(now, now + ASIDE_SECONDS, apart, cost)
                steps += cost
        if self._floods.keys() != before:
            self._tell()

    def turned_away(self, host: str) -> None:
        """A connection that was taken from there was one too many: its address floods as before."""
        for address in {exact(host), whose(host)} & self._floods.keys():
            found = self._floods[address]
            until = min(self._now() + ASIDE_SECONDS, found.since + MOST_SECONDS)
            self._floods[address] = replace(found, until=until)

    def close(self) -> None:
        """Take no more of them."""
        for _, second in self._pairs:
            second.close()
        self._pairs.clear()

    def _tell(self) -> None:
        """As many of them as the kernel has memory for (net.core.optmem_max), the oldest first."""
        while True:
            apart = sorted(frozenset().union(*(each.apart for each in self._floods.values())))
            try:
                for first, _ in self._pairs:
                    _attach(first, instructions(self._floods, apart))
            except OSError as error:
                if error.errno == ENOMEM and self._floods:
                    self._floods = dict(list(self._floods.items())[: len(self._floods) // 2])
                    continue
                # Whoever was put aside stays there.
                self._complain(error)
            break
        if self._floods and self._complaint.due:
            _log.warning(
                "addresses that connect far too often have a queue of their own for a while",
                extra={"addresses": len(self._floods), "one": next(iter(self._floods))},
            )

    def _complain(self, error: OSError) -> None:
        if self._complaint.due:
            _log.warning("addresses that connect far too often cannot be put aside", extra={"error": str(error)})


def _second(first: socket.socket) -> socket.socket:
    """Another one at its address, which listens. Raises OSError."""
    found = socket.socket(first.family, first.type)
    try:
        if first.family == socket.AF_INET6:
            only = first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            # The kernel doubles what it is told.
            found.setsockopt(socket.SOL_SOCKET, option, first.getsockopt(socket.SOL_SOCKET, option) // 2)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            found.setsockopt(socket.SOL_SOCKET, option, 1)
        found.setblocking(False)
        found.bind(first.getsockname())
        found.listen(QUEUE)
    except OSError:
        found.close()
        raise
    return found


def _attach(first: socket.socket, steps: Sequence[Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in steps))
    first.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HP", len(steps), ctypes.addressof(code)))


def _cost(addresses: Iterable[str]) -> int:
    """Instructions that they need; 0: one of them is no address."""
    try:
        networks = [ipaddress.ip_network(each) for each in addresses]
    except ValueError:
        return 0
    return sum(1 if each.version == 4 else each.prefixlen // 16 + 1 for each in networks)
