"""One connection, from its first byte to the last, without any socket: TLS, one request, one answer."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

from runtime.http import parse
from signer.public.answers import TOO_LARGE, Answer, Answers
from signer.public.limits import GREETING, HEAD, MOST

_END = b"\r\n\r\n"
_CHUNK = 4096


class Stage(IntEnum):
    """How far it is; who is at the lowest makes place first. Being slow after TLS is no better than before."""

    ASKING = 0
    LEAVING = 1


class Talk:
    """`receive` gets what the peer sent and returns what it is sent; `over` once nothing more is to come of it.

    `refused`: why, where it was cut short (tls, head, bytes); empty where it was not. `answered`: the status.
    """

    def __init__(self, context: ssl.SSLContext, answers: Answers, date: Callable[[], str]) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._answers = answers
        self._date = date
        self._agreed = False
        self._received = 0
        self._head = bytearray()
        self.stage = Stage.ASKING
        self.over = False
        self.refused = ""
        self.answered: int | None = None

    def receive(self, data: bytes) -> bytes:
        """More of what the peer sent."""
        if self.over:
            return b""
        self._received += len(data)
        if self._received > MOST:
            return self._end("bytes")
        self._incoming.write(data)
        try:
            if not self._agreed:
                self._tls.do_handshake()
                self._agreed = True
            self._read()
        except ssl.SSLWantReadError:
            # Looked at here: what ends a greeting may have a request behind it.
            if not self._agreed and self._received > GREETING:
                return self._end("tls")
        except ssl.SSLZeroReturnError:
            # It took its leave, and said nothing.
            return self._end("")
        except ssl.SSLError:
            # What goes out is TLS's own word about it.
            return self._end("tls")
        return self._outgoing.read()

    def _read(self) -> None:
        """Raises SSLWantReadError until there is a whole head."""
        while self.answered is None:
            chunk = self._tls.read(_CHUNK)
            if not chunk:
                raise ssl.SSLZeroReturnError
            before = max(len(self._head) - len(_END) + 1, 0)
            self._head += chunk
            end = self._head.find(_END, before)
            if end > HEAD or (end < 0 and len(self._head) > HEAD):
                self.refused = "head"
                self._say(TOO_LARGE)
            elif end >= 0:
                self._say(self._answers.to(parse(bytes(self._head[:end]))))

    def _say(self, answer: Answer) -> None:
        if self._head.startswith(b"HEAD "):
            # RFC 9110 9.3.2: whatever comes of it, also of one that is not understood.
            answer = Answer(answer.status, answer.head)
        self._tls.write(answer.at(self._date()))
        self.answered, self.stage, self.over = answer.status, Stage.LEAVING, True
        # Its half of the leave; the peer's is not waited for here.
        with suppress(ssl.SSLError):
            self._tls.unwrap()

    def _end(self, why: str) -> bytes:
        self.over, self.stage, self.refused = True, Stage.LEAVING, why
        return self._outgoing.read()
