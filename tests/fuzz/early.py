"""What a pod says before it has acknowledged gRPC's settings: gRPC gets whole frames whose headers were counted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.socket.early import (
    BLOCK,
    BLOCK_FIELDS,
    BYTES,
    DECODED,
    FRAMES,
    FREE,
    POD,
    PREFACE,
    STREAMS,
    Budget,
    Early,
    Verdict,
)
from tests.fuzz.made import Draw

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW, _CONTINUATION, _UNKNOWN = 0, 1, 4, 6, 8, 9, 0xEB
_END_HEADERS, _PADDED, _PRIORITY = 4, 8, 0x20
# HPACK's static table (RFC 7541, appendix A), from 1 on: names and values.
_TABLE = """:authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200
:status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= accept-encoding=gzip,_deflate
accept-language= accept-ranges= accept= access-control-allow-origin= age= allow= authorization= cache-control=
content-disposition= content-encoding= content-language= content-length= content-location= content-range= content-type=
cookie= date= etag= expect= expires= from= host= if-match= if-modified-since= if-none-match= if-range=
if-unmodified-since= last-modified= link= location= max-forwards= proxy-authenticate= proxy-authorization= range=
referer= refresh= retry-after= server= set-cookie= strict-transport-security= transfer-encoding= user-agent= vary= via=
www-authenticate="""
_STATIC = _TABLE.split()
# What the relay reads at once; and parts in which something is cut here, fewer than there may be.
_READ, _PARTS = 4096, 200


def early(data: bytes) -> None:
    """The same however it is cut; a conversation is refused exactly where something of it is not allowed."""
    begun = PREFACE + _frame(_SETTINGS, 0, 0, b"")
    for before in (b"", PREFACE, begun, begun + _head(len(data), _HEADERS, _END_HEADERS, 1)):
        _cut(before + data)
    made = _Made(Draw(data))
    said = begun + b"".join(made.frames())
    acknowledged = said + _frame(_SETTINGS, 1, 0, b"")
    fits = made.fits and made.most <= DECODED
    # What gRPC would keep of the headers is never more than what was counted.
    assert made.real <= made.most
    for part in (_READ, len(acknowledged) // _PARTS + 1):
        at, found, clear = _fed(said, part)
        assert found is (Verdict.MORE if fits else Verdict.REFUSED), f"{made.what}: {found}"
        if fits:
            assert clear == said
            assert at.cost == len(said) + made.most + made.streams * 1024
        _, found, clear = _fed(acknowledged + b"whatever", part)
        assert found is (Verdict.ACKNOWLEDGED if fits else Verdict.REFUSED), f"{made.what}: {found}"
        assert not fits or clear == acknowledged + b"whatever"


def _cut(said: bytes) -> None:
    _, whole, clear = _fed(said, len(said) or 1)
    _, pieces, clear_too = _fed(said, len(said) // _PARTS + 1)
    assert whole is pieces
    for each in (clear, clear_too):
        assert said.startswith(each)
        assert whole is Verdict.ACKNOWLEDGED or _is_whole(each)
    assert whole is Verdict.REFUSED or clear == clear_too
    assert whole is not Verdict.ACKNOWLEDGED or clear == said


def _fed(said: bytes, part: int) -> tuple[Early, Verdict, bytes]:
    """As the relay does: what gRPC gets of it, too. Nothing is charged any more in the end."""
    at, budget, found, clear, cost = Early(), Budget(), Verdict.MORE, b"", 0
    for start in range(0, len(said), part):
        found = at.feed(said[start : start + part])
        if found is Verdict.ACKNOWLEDGED:
            clear += at.clear + said[start + part :]
        if found is not Verdict.MORE:
            break
        clear += at.clear
        before, cost = cost, at.cost
        assert before <= cost <= BYTES + DECODED + STREAMS * 1024
        assert budget.charge("pod", before, cost)
    budget.charge("pod", cost, 0)
    assert budget.charge("pod", 0, FREE + POD)
    assert not budget.charge("pod", 0, FREE + 1)
    return at, found, clear


def _is_whole(said: bytes) -> bool:
    """Whether it ends with a frame, and none of a header block's that goes on: read once more, in another way."""
    if not said:
        return True
    if not said.startswith(PREFACE):
        return False
    rest, goes_on = said[len(PREFACE) :], False
    while rest:
        length, kind, flags = int.from_bytes(rest[:3], "big"), rest[3:4], rest[4:5]
        if len(rest) < 9 + length:
            return False
        if kind in (b"\1", b"\x09"):
            goes_on = not flags[0] & _END_HEADERS
        rest = rest[9 + length :]
    return not goes_on


@dataclass
class _Made:
    """Frames made of bytes. `real`: bytes that their headers have when they are decoded; `most`: as what they are
    counted, where lengths of Huffman's code and of names by reference are bounds."""

    draw: Draw
    fits: bool = True
    what: str = "all as it may be"
    real: int = 0
    most: int = 0
    streams: int = 0
    # Of entries that were added, the newest first: the same two of each, and the real length of its name.
    table: list[tuple[int, int, int]] = field(default_factory=list)

    def frames(self) -> Iterator[bytes]:
        """Some, up to the first that is not allowed."""
        for _ in range(self.draw.byte() % 7):
            if self.draw.byte() >= 240:
                yield self._wrong()
                return
            stream = 2 * self.streams + 1
            match self.draw.byte() % 8:
                case 0:
                    yield _frame(self.draw.of((_PING, _WINDOW, _UNKNOWN)), self.draw.byte(), 0, b"12345678")
                case 1:
                    yield _frame(_DATA, self.draw.byte(), stream, bytes(self.draw.of((0, 1, 5, 16_000, 16_384))))
                case 2:
                    yield _frame(_SETTINGS, 0, 0, bytes(6 * (self.draw.byte() % 3)))
                case _:
                    yield from self._block(stream)

    def _block(self, stream: int) -> Iterator[bytes]:
        """A call's headers in one frame or more."""
        fields = b"\x20\x3f\xe1\x1f" if self.draw.byte() >= 240 else b""
        if fields:
            # The table is emptied, and may be as large again.
            self.table.clear()
            self._count(0, 2 * 32)
        fields += b"".join(self._field() for _ in range(self.draw.byte() % 9))
        self.streams += 1
        has_priority = self.draw.byte() >= 192
        if has_priority:
            fields = b"\0\0\0\0\x10" + fields
        kind, flags = _HEADERS, _PRIORITY * has_priority
        size = self.draw.of((16_000, 16_000, 16_384, 4_000))
        # The priority is whole in the first frame.
        while len(fields) > size:
            yield _frame(kind, flags, stream, fields[:size])
            fields, kind, flags = fields[size:], _CONTINUATION, 0
            size = self.draw.of((4_000, 16_384))
        yield _frame(kind, flags | _END_HEADERS, stream, fields)

    def _field(self) -> bytes:
        draw = self.draw
        match draw.byte() % 4:
            case 0:
                at = draw.byte() % len(_STATIC)
                self._count(len(_STATIC[at]) - 1 + 32, 64)
                return _number(1 + at, 7, 0x80)
            case 1 if self.table:
                at = draw.byte() % len(self.table)
                real, most, _ = self.table[at]
                # So often that few blocks of them are more than there may be.
                times = draw.of((1, 1, 1, 30))
                self._count(times * real, times * most)
                return _number(62 + at, 7, 0x80) * int(times)
        added = draw.byte() % 2 == 1
        bits, first = (6, 0x40) if added else (4, draw.of((0, 0x10)))
        if self.table and draw.byte() % 4 == 0:
            at = draw.byte() % len(self.table)
            real, most = self.table[at][2], self.table[at][1]
            found = _number(62 + at, bits, first)
        elif draw.byte() % 4 == 0:
            at = draw.byte() % len(_STATIC)
            real, most, found = _STATIC[at].index("="), 28, _number(1 + at, bits, first)
        else:
            text, real, most = self._text(draw.of((1, 5, 30, 127)))
            found = _number(0, bits, first) + text
        text, length, longest = self._text(draw.of((0, 1, 60, 126, 127, 128, 300, 3_000)))
        entry = real + length + 32, most + longest + 32
        self._count(*entry)
        if added:
            self.table.insert(0, (*entry, real))
            # By what they may have at most: none is referred to that gRPC has dropped.
            while sum(each for _, each, _ in self.table) > 4096:
                self.table.pop()
        return found + text

    def _text(self, length: int) -> tuple[bytes, int, int]:
        """A string, its real length, and what it is counted as."""
        match self.draw.byte() % 4:
            case 0:
                # Huffman's shortest code, five zeros, and ones to the end of the byte.
                bits = 5 * length
                size = (bits + 7) // 8
                coded = bytes(size) if not bits % 8 else bytes(size - 1) + bytes([(1 << (8 - bits % 8)) - 1])
                return _number(size, 7, 0x80) + coded, length, (8 * size + 4) // 5
            case 1:
                # One of eight bits: `&`.
                return _number(length, 7, 0x80) + b"\xf8" * length, length, (8 * length + 4) // 5
        return _number(length, 7) + bytes([self.draw.byte()]) * length, length, length

    def _count(self, real: int, most: int) -> None:
        self.real += real
        self.most += most

    def _wrong(self) -> bytes:
        self.fits = False
        stream, draw = 2 * self.streams + 1, self.draw
        wrong: Mapping[str, Callable[[], bytes]] = {
            "padding": lambda: _frame(_HEADERS, _END_HEADERS | _PADDED, stream, draw.of((b"", b"\x83"))),
            "what continues nothing": lambda: _frame(_CONTINUATION, draw.byte(), stream, b""),
            "another within headers": lambda: _frame(_HEADERS, 0, stream, b"") + _frame(_PING, 0, 0, b""),
            "continued elsewhere": lambda: _frame(_HEADERS, 0, 1, b"") + _frame(_CONTINUATION, 0, 3, b""),
            "settings with flags": lambda: _frame(_SETTINGS, 2 + draw.byte() % 254, 0, b""),
            "an acknowledgement of a stream": lambda: _frame(_SETTINGS, 1, 1 + draw.byte(), b""),
            "an acknowledgement of something": lambda: _frame(_SETTINGS, 1, 0, bytes(1 + draw.byte())),
            "a frame that is too long": lambda: _head(16_385 + draw.byte(), draw.of((_DATA, _HEADERS, _PING)), 4, 1),
            "a priority that is cut off": lambda: _frame(_HEADERS, _PRIORITY, stream, bytes(draw.byte() % 5)),
            "an entry that is not there": lambda: self._headers(_number(62 + len(self.table) + 128, 7, 0x80)),
            "a string beyond its block": lambda: self._headers(b"\0" + _number(9 + draw.byte(), 7) + b"12345678"),
            "a number without end": lambda: self._headers(draw.of((b"\xff", b"\x7f", b"\x0f", b"\x3f")) + b"\xff" * 5),
            "a header that is cut off": lambda: self._headers(draw.of((b"\0", b"\x40\1x", b"\0\1x", b"\xff", b"\x4f"))),
            "too many headers": lambda: self._headers(b"\x83" * (BLOCK_FIELDS + 1)),
            "too long headers": lambda: b"".join(
                _frame(_HEADERS if not each else _CONTINUATION, 0, stream, bytes(16_000)) for each in range(3)
            ),
            "references to what is long": lambda: self._headers(
                b"\x40\1x" + _number(4_000, 7) + bytes(4_000) + b"\xbe" * (DECODED // 4_000)
            ),
            "frames without end": lambda: _frame(_PING, 0, 0, b"") * (FRAMES + 1),
            "calls without end": lambda: _frame(_HEADERS, _END_HEADERS, stream, b"") * (STREAMS + 1),
            "bytes without end": lambda: _frame(_DATA, 0, stream, bytes(16_000)) * ((BYTES + _READ) // 16_000 + 1),
        }
        self.what = str(draw.of(sorted(wrong)))
        return wrong[self.what]()

    def _headers(self, block: bytes) -> bytes:
        assert len(block) <= BLOCK
        return _frame(_HEADERS, _END_HEADERS, 2 * self.streams + 1, block)


def _head(length: int, kind: int, flags: int, stream: int) -> bytes:
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _head(len(payload), kind, flags, stream) + payload


def _number(value: int, bits: int, first: int = 0) -> bytes:
    """RFC 7541, 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    found, value = [first | most], value - most
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
