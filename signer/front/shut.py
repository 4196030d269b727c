"""Who connects far more often than it may is shut out for a while: the kernel drops its first packet.

Each connection that is taken only to be closed costs a moment of the replica's one loop; ten thousand a second of them
cost all of it, and those of agents wait in the kernel's queue behind them, or are dropped there with the others. A
filter on the listening sockets (socket(7), SO_ATTACH_FILTER) costs nothing here, and needs no right.
"""

import ctypes
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from runtime.seldom import Seldom

_log = logging.getLogger("podsvid.door")
# Seconds for which an address is shut out; twice as long each time that it floods again soon, up to the last.
SHUT_SECONDS, MOST_SECONDS = 5.0, 60.0
# Instructions of a filter, of which the kernel takes 4096; and how many an IPv4 address and a network of IPv6 need.
MOST_STEPS, STEPS_4, STEPS_6 = 2200, 1, 5
# Addresses between two answers: a jump if a comparison holds goes no farther than 255.
_BLOCK = 250
_COMPLAINT_SECONDS = 60.0
# Of asm-generic/socket.h; Python has no names for these.
_ATTACH, _DETACH = 26, 27
# Of linux/bpf_common.h and linux/filter.h: load a byte or a word, shift, compare, jump, answer; keep a word and load
# it again; and where IP begins.
_LOAD_BYTE, _LOAD_WORD, _SHIFT, _EQUAL, _JUMP, _ANSWER = 0x30, 0x20, 0x74, 0x15, 0x05, 0x06
_KEEP, _KEPT = 0x02, 0x60
_IP = 0xFFF00000
_NETWORK = 64
_SOURCE_4, _SOURCE_6 = _IP + 12, _IP + 8
_DROP, _TAKE = 0, 0xFFFFFFFF
Instruction = tuple[int, int, int, int]


def instructions(addresses: Iterable[str]) -> Sequence[Instruction]:
    """Classic BPF (code, jump if true, if not, operand) that drops what comes from these and takes all else.

    `addresses` as `runtime.listening.whose` counts them: IPv4 addresses, and networks of 64 bits.
    """
    networks = [ipaddress.ip_network(each) for each in addresses]
    four = [int(each.network_address) for each in networks if each.version == 4]
    six = [int(each.network_address) >> 64 for each in networks if each.version == 6]
    drop, take = (_ANSWER, 0, 0, _DROP), (_ANSWER, 0, 0, _TAKE)
    of_4: list[Instruction] = [(_LOAD_WORD, 0, 0, _SOURCE_4)]
    for begin in range(0, len(four), _BLOCK):
        block = four[begin : begin + _BLOCK]
        of_4 += [(_EQUAL, len(block) - number, 0, address) for number, address in enumerate(block)]
        of_4 += [(_JUMP, 0, 0, 1), drop]
    of_4.append(take)
    of_6: list[Instruction] = []
    for number, source in enumerate((_SOURCE_6, _SOURCE_6 + 4)):
        of_6 += [(_LOAD_WORD, 0, 0, source), (_KEEP, 0, 0, number)]
    for each in six:
        of_6 += [(_KEPT, 0, 0, 0), (_EQUAL, 0, 3, each >> 32)]
        of_6 += [(_KEPT, 0, 0, 1), (_EQUAL, 0, 1, each & 0xFFFFFFFF), drop]
    first = [(_LOAD_BYTE, 0, 0, _IP), (_SHIFT, 0, 0, 4), (_EQUAL, 1, 0, 4), (_JUMP, 0, 0, len(of_4))]
    return [*first, *of_4, *of_6, take]


@dataclass(frozen=True, slots=True)
class _Offence:
    until: float
    seconds: float
    steps: int


class Shut:
    """The addresses that are shut out now. `now`: seconds that only grow."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # Those that are shut out, and those that were and would be for longer now.
        self._shut: dict[str, _Offence] = {}
        self._past: dict[str, _Offence] = {}
        self._ever = False
        self._complaint = Seldom(_COMPLAINT_SECONDS, now)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self._shut)

    def look(self, floods: Iterable[str], listening: Sequence[socket.socket]) -> None:
        """Shut these out from now on, and let in those whose time is over."""
        now = self._now()
        over = {address: each for address, each in self._shut.items() if each.until <= now}
        left = {address: each for address, each in self._shut.items() if each.until > now}
        self._past = {address: each for address, each in self._past.items() if now - each.until < MOST_SECONDS} | over
        steps = sum(each.steps for each in left.values())
        for address in floods:
            cost = _cost(address)
            if cost and address not in left and steps + cost <= MOST_STEPS:
                before = self._past.pop(address, None)
                seconds = SHUT_SECONDS if before is None else min(2 * before.seconds, MOST_SECONDS)
                left[address] = _Offence(now + seconds, seconds, cost)
                steps += cost
        changed, self._shut = left.keys() != self._shut.keys(), left
        if changed:
            self._filter(listening)

    def taken(self, connection: socket.socket) -> None:
        """A connection has the filter that there was when it came, which nobody needs there."""
        if self._ever:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, _DETACH, 0)

    def _filter(self, listening: Sequence[socket.socket]) -> None:
        try:
            # First: the kernel has room for one of that size.
            self._detach(listening)
            for each in listening:
                self._attach(each)
        except OSError as error:
            # Then they are taken and closed one by one, as without any filter.
            self._detach(listening)
            self._shut = {}
            if self._complaint.due:
                _log.warning("addresses cannot be shut out", extra={"error": str(error)})
            return
        self._ever = self._ever or bool(self._shut)
        if self._shut and self._complaint.due:
            _log.warning(
                "addresses that connect far too often are shut out for a while",
                extra={"addresses": len(self._shut), "one": next(iter(self._shut))},
            )

    def _detach(self, listening: Sequence[socket.socket]) -> None:
        for each in listening:
            # Where there is none.
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, _DETACH, 0)

    def _attach(self, listening: socket.socket) -> None:
        """As many of them as the kernel has memory for (net.core.optmem_max), the oldest first. Raises OSError."""
        while self._shut:
            try:
                _attach(listening, instructions(self._shut))
            except OSError as error:
                if error.errno != errno.ENOMEM or len(self._shut) == 1:
                    raise
                self._shut = dict(list(self._shut.items())[: len(self._shut) // 2])
            else:
                return


def _attach(listening: socket.socket, steps: Sequence[Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in steps))
    listening.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HP", len(steps), ctypes.addressof(code)))


def _cost(address: str) -> int:
    """Instructions that it needs; 0: it is no address, or an agent's own of IPv6, whose network is others', too."""
    try:
        found = ipaddress.ip_network(address)
    except ValueError:
        return 0
    return STEPS_4 if found.version == 4 else STEPS_6 if found.prefixlen == _NETWORK else 0
