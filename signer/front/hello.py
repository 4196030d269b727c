"""Whether a peer has said all that its first answer needs: the whole ClientHello, in TLS's first record.

Until then the server owes nothing, and how long it takes says nothing of the server.
"""

# RFC 8446 5.1 and 4: a record's type, version and length; a handshake message's type and length.
_RECORD, _MESSAGE = 5, 4
_HANDSHAKE, _CLIENT_HELLO, _MOST = 0x16, 0x01, 16 * 1024


class Hello:
    """Fed what passes, in pieces of any size."""

    def __init__(self) -> None:
        self._head = b""
        self._came = 0
        self._needed: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the first record has come, and is a whole ClientHello. One that needs more records never is."""
        return self._needed is not None and self._came >= self._needed

    def feed(self, piece: bytes) -> None:
        self._came += len(piece)
        if len(self._head) < _RECORD + _MESSAGE:
            self._head += piece[: _RECORD + _MESSAGE - len(self._head)]
            self._needed = _length(self._head)


def _length(head: bytes) -> int | None:
    """Bytes of the record that begins so; None where it is, or may be, no whole ClientHello."""
    if len(head) < _RECORD + _MESSAGE or head[0] != _HANDSHAKE or head[_RECORD] != _CLIENT_HELLO:
        return None
    record = int.from_bytes(head[3:_RECORD])
    message = int.from_bytes(head[_RECORD + 1 : _RECORD + _MESSAGE])
    return _RECORD + record if _MESSAGE + message <= record <= _MOST else None
