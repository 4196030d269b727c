"""What goes between the signer and its workers, each of it bounded: both ends load this."""

from typing import Annotated

from msgspec import Meta, Struct

from runtime.headers import Headers
from signer.front import budget

# Bytes of a frame of a worker: a message as large as a mint's may be, or a call's headers, of which each has 32 more.
MAX_FRAME = budget.MAX_MINT + 4 * budget.MOST_HEADERS
# The same of the signer, whose broadcasts are larger.
MAX_ORDER = 9 * budget.MIB
# More than gRPC lets through, and than `calls.bearer` takes.
# (gRPC hands on as Latin-1 what is no UTF-8: each byte of such a value is two here.)
MOST_PACKED = 2 * budget.MOST_HEADERS
_NUMBER = budget.MOST_HEADERS // (budget.HEADERS + 1) + 1
_Text = Annotated[str, Meta(max_length=budget.MOST_HEADERS)]
_Bytes = Annotated[bytes, Meta(max_length=MOST_PACKED)]
Packed = Annotated[list[tuple[_Text, _Bytes]], Meta(max_length=_NUMBER)]
# How gRPC calls headers whose values are bytes.
_BINARY = "-bin"
_Name = Annotated[str, Meta(max_length=256)]
# gRPC says none below zero; what is no number would be before no deadline and after none.
_Seconds = Annotated[float, Meta(ge=0)]


class Begun(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A call has come. Numbers only grow. `left`: seconds until its caller's deadline, if it has one."""

    call: int
    method: _Name
    peer: _Name
    headers: Packed
    left: _Seconds | None


class Said(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """The message that was wanted; None: the caller says no more, or too much."""

    call: int
    message: Annotated[bytes, Meta(max_length=budget.MAX_MINT)] | None


class Taken(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """gRPC has the last answer."""

    call: int


class Left(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Nobody waits for the call any more."""

    call: int


class Serves(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """It listens as it was told to; `why` says why not."""

    server: int
    why: _Name


class Stopped(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """That server has ended."""

    server: int


class Lacking(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """What the host did not let it give up."""

    what: Annotated[list[_Name], Meta(max_length=8)]


class Pong(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """It is there."""


Report = Begun | Said | Taken | Left | Serves | Stopped | Lacking | Pong


class Serve(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=11):
    """Listen at `path`, with that certificate (PEM), for these methods."""

    server: int
    path: str
    key: bytes
    chain: bytes
    methods: list[str]
    options: list[tuple[str, int]]

    def __repr__(self) -> str:
        """Without the key."""
        return f"Serve({self.server})"


class Stop(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=12):
    """End that server; calls in flight get `grace` seconds."""

    server: int
    grace: float | None


class Want(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=13):
    """The call's next message is to be read."""

    call: int


class Answer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=14):
    """Something that the caller gets. If it is the `last` the call is over; else `Taken` is said once gRPC has it."""

    call: int
    message: bytes
    last: bool


class Over(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=15):
    """The call is over, and all went well."""

    call: int


class Refuse(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=16):
    """The call is over with a status of gRPC."""

    call: int
    code: int
    details: str
    trailing: Packed


class Ping(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=17):
    """Is it there?"""


Order = Serve | Stop | Want | Answer | Over | Refuse | Ping


def fit(headers: list[tuple[str, bytes]]) -> bool:
    """Whether they are within their bounds: both ends look, so that no caller makes a worker say what ends it."""
    size = sum(len(name) + len(value) + budget.HEADERS for name, value in headers)
    return len(headers) <= _NUMBER and size <= MOST_PACKED


def packed(headers: Headers) -> list[tuple[str, bytes]]:
    """As they go: their values are bytes."""
    return [(name, value if isinstance(value, bytes) else value.encode()) for name, value in headers]


def unpacked(headers: list[tuple[str, bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    """As gRPC has them."""
    return tuple((name, value if name.endswith(_BINARY) else value.decode(errors="replace")) for name, value in headers)
