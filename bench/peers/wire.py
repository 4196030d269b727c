"""Protocol Buffers by hand, as far as SPIRE's API for SVIDs needs: this bench alone asks it, so no stubs are kept.

Numbers: github.com/spiffe/spire-api-sdk, proto/spire/api/server/svid/v1/svid.proto.
"""

from collections.abc import Iterator

_VARINT, _BYTES = 0, 2


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, of text or of a message."""
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message that has numbers, bytes, text and messages only. Raises ValueError."""
    at = 0
    while at < len(message):
        key, at = _read(message, at)
        number, kind = key >> 3, key & 7
        value, at = _read(message, at)
        if kind == _VARINT:
            yield number, value
        elif kind == _BYTES:
            yield number, message[at : at + value]
            at += value
        else:
            raise ValueError(f"field {number} is of kind {kind}")


def mint_request(csr: bytes) -> bytes:
    """MintX509SVIDRequest."""
    return field(1, csr)


def batch_request(csr: bytes, entries: Iterator[str] | list[str]) -> bytes:
    """BatchNewX509SVIDRequest: one for each entry, with the same request in it."""
    return b"".join(field(1, field(1, each.encode()) + field(2, csr)) for each in entries)


def minted(answer: bytes) -> int:
    """How many SVIDs a BatchNewX509SVIDResponse has."""
    return sum(any(number == 2 for number, _ in fields(each)) for _, each in fields(answer) if isinstance(each, bytes))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _read(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("the message ends in a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
