"""What a client says before it has acknowledged the server's settings: gRPC holds nobody to its limits until then.

Read for the frames' headers and for how long the headers in them would become; nothing is decoded. What honest clients
send that early is a first request or some, within HTTP/2's own first windows.
"""

from collections import Counter, deque
from enum import Enum, auto
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Bytes in all: 65,535 of requests, which is the first window of HTTP/2, and headers.
BYTES: Final = 192 * 1024
# Bytes of all headers when they are decoded, with 32 for each (RFC 9113, 6.5.2): 100 calls at once of 1.3 KB each. So
# many are begun by clients that were not told yet how many they may.
DECODED: Final = 128 * 1024
FRAMES: Final = 512
# Calls begun, and headers in one call and in all: what looking at them costs is bounded, whatever their length.
STREAMS: Final = 128
BLOCK_FIELDS: Final = 256
FIELDS: Final = 2048
# Bytes of one call's headers as they are sent, which are kept until all of them are there: twice what it may have.
BLOCK: Final = 32 * 1024
# In so many parts at most, as they come: each is looked at.
PARTS: Final = 256
# The longest frame before anything else was agreed.
_FRAME: Final = 16_384
_HEADERS, _SETTINGS, _CONTINUATION = 1, 4, 9
_ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 4, 8, 0x20
# Bytes by which headers say what they depend on, where they have a priority.
_DEPENDENCY = 5
# The longest entries of HPACK's static table, and their longest name.
_STATIC, _STATIC_ENTRY, _STATIC_NAME = 61, 64, 28
_OVERHEAD = 32
# What a call that was begun takes besides.
_STREAM = 1024
# Bytes that each connection may cost (a first call or two); of what more they cost, a pod's, and all.
FREE: Final = 4 * 1024
POD, ALL = 1024 * 1024, 8 * 1024 * 1024
# Entries that a table of 4,096 bytes holds, which is its size before anything else was agreed.
_ENTRIES = 4096 // _OVERHEAD


class Verdict(Enum):
    """Of what has come so far."""

    MORE = auto()
    ACKNOWLEDGED = auto()
    REFUSED = auto()


class Early:
    """One connection's. What comes after the acknowledgement is not looked at.

    `clear`: what of all that came gRPC may have since the last `feed`. It reads a part of a frame as soon as that is
    there, and part of a block of headers can stand for as much as all of it: so it gets them whole, and counted.
    """

    __slots__ = (
        "_begun",
        "_block",
        "_blocked",
        "_continued",
        "_frames",
        "_held",
        "_parts",
        "_rest",
        "_sizes",
        "_streams",
        "_taken",
        "clear",
    )

    def __init__(self) -> None:
        # Of a frame that is not whole; and before it frames whose block of headers is not.
        self._rest = self._held = b""
        self.clear = b""
        self._taken = self._frames = self._parts = self._streams = 0
        self._begun = False
        # Of the header block that is not whole yet.
        self._block: list[bytes] = []
        self._blocked = 0
        self._continued: int | None = None
        self._sizes = HeaderSizes(DECODED)

    @property
    def cost(self) -> int:
        """Bytes that gRPC may have come to keep for it."""
        return self._taken + DECODED - max(self._sizes.left, 0) + self._streams * _STREAM

    def feed(self, data: bytes) -> Verdict:
        """More of it."""
        self._taken += len(data)
        self._parts += 1
        self.clear = b""
        rest, at, start = self._rest + data, 0, 0
        if not self._begun:
            if not (PREFACE.startswith(rest) or rest.startswith(PREFACE)):
                return Verdict.REFUSED
            if len(rest) < len(PREFACE):
                self._rest = rest
                return Verdict.MORE
            self._begun, at = True, len(PREFACE)
        while len(rest) >= at + 9:
            length = int.from_bytes(rest[at : at + 3], "big")
            kind, flags, stream = rest[at + 3], rest[at + 4], int.from_bytes(rest[at + 5 : at + 9], "big") & 0x7FFFFFFF
            if not self._may_be(length, kind, flags, stream):
                return Verdict.REFUSED
            if kind == _SETTINGS and flags & _ACK:
                self.clear += self._held + rest[start:]
                return Verdict.ACKNOWLEDGED
            if len(rest) < at + 9 + length:
                break
            self._frames += 1
            payload = rest[at + 9 : at + 9 + length]
            at += 9 + length
            if kind in (_HEADERS, _CONTINUATION) and not self._take(payload, kind, flags, stream):
                return Verdict.REFUSED
            if self._continued is None:
                self.clear += self._held + rest[start:at]
                self._held, start = b"", at
        self._held += rest[start:at]
        self._rest = rest[at:]
        return Verdict.MORE if self._taken <= BYTES and self._parts <= PARTS else Verdict.REFUSED

    def _may_be(self, length: int, kind: int, flags: int, stream: int) -> bool:
        if length > _FRAME or self._frames >= FRAMES:
            return False
        if self._continued is not None or kind == _CONTINUATION:
            return kind == _CONTINUATION and stream == self._continued
        if kind == _SETTINGS and flags:
            # An acknowledgement and nothing like one: gRPC would go on without having taken it for one.
            return self._frames > 0 and (flags, length, stream) == (_ACK, 0, 0)
        # A client begins with its own settings.
        return self._frames > 0 or kind == _SETTINGS

    def _take(self, payload: bytes, kind: int, flags: int, stream: int) -> bool:
        """A part of a header block; whether there may be so much."""
        self._streams += kind == _HEADERS
        if self._streams > STREAMS:
            return False
        if kind == _HEADERS and flags & _PADDED:
            return False  # gRPC knows no padding, and would read something else than this
        if kind == _HEADERS and flags & _PRIORITY:
            if len(payload) < _DEPENDENCY:
                return False
            payload = payload[_DEPENDENCY:]
        self._blocked += len(payload)
        if self._blocked > BLOCK:
            return False
        self._block.append(payload)
        if not flags & _END_HEADERS:
            self._continued = stream
            return True
        block, self._block, self._continued = b"".join(self._block), [], None
        self._blocked = 0
        return self._sizes.take(block)


class HeaderSizes:
    """How long headers are once they are decoded: not less than that, and hardly more. `most`: bytes of all."""

    __slots__ = ("_fields", "_table", "left")

    def __init__(self, most: int, fields: int = FIELDS) -> None:
        self.left = most
        self._fields = fields
        # Of the entries that were added, the newest first: none is longer than said here.
        self._table: deque[int] = deque(maxlen=_ENTRIES)

    def take(self, block: bytes) -> bool:
        """Whether one more block is within the bound, and well formed as far as its length shows."""
        at, most = 0, min(self._fields, BLOCK_FIELDS)
        try:
            while at < len(block) and self.left >= 0 and most:
                at = self._field(block, at)
                most -= 1
                self._fields -= 1
        except (IndexError, ValueError):
            return False
        return self.left >= 0 and at == len(block)

    def _field(self, block: bytes, at: int) -> int:
        first = block[at]
        if first & 0x80:
            index, at = _integer(block, at, 7)
            self.left -= self._entry(index)
            return at
        if first & 0xE0 == 0x20:
            # No header, but no such steps without end either.
            self.left -= _OVERHEAD
            return _integer(block, at, 5)[1]
        added = bool(first & 0x40)
        index, at = _integer(block, at, 6 if added else 4)
        if index:
            # The name of an entry is no longer than the entry.
            name = _STATIC_NAME if index <= _STATIC else self._entry(index)
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        size = name + value + _OVERHEAD
        if added:
            self._table.appendleft(size)
        self.left -= size
        return at

    def _entry(self, index: int) -> int:
        return _STATIC_ENTRY if index <= _STATIC else self._table[index - _STATIC - 1]


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """RFC 7541, 5.1. Raises IndexError, ValueError."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in (0, 7, 14, 21, 28):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("too long a number")


def _string(block: bytes, at: int) -> tuple[int, int]:
    """The most that it can be decoded to. Raises IndexError, ValueError."""
    huffman = bool(block[at] & 0x80)
    length, at = _integer(block, at, 7)
    if at + length > len(block):
        raise ValueError("a string ends beyond its block")
    # Huffman's shortest codes have five bits.
    return (length * 8 + 4) // 5 if huffman else length, at + length


class Budget:
    """What all connections of one process may cost before their clients have acknowledged the settings."""

    def __init__(self, pod: int = POD, most: int = ALL) -> None:
        self._pod = pod
        self._most = most
        self._spent: Counter[str] = Counter()
        self._all = 0

    def charge(self, pod: str, before: int, cost: int) -> bool:
        """One of the pod's costs so much now, and did `before`; whether there is room for it. It is charged all the
        same, until it is charged for nothing."""
        more = max(cost - FREE, 0) - max(before - FREE, 0)
        if not more:
            return True
        self._all += more
        self._spent[pod] += more
        if not self._spent[pod]:
            del self._spent[pod]
        return more < 0 or (self._all <= self._most and self._spent[pod] <= self._pod)
