"""The messages, one tagged struct each. What comes from the exposed process is hostile: all of it is bounded here."""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from svid.jwtsvid import MAX_AUDIENCE_BYTES, MAX_AUDIENCES

# Bytes of one frame. A snapshot may hold the bundles of many federated trust domains.
MAX_SNAPSHOT = 64 * 1024 * 1024
MAX_REPORT = 256 * 1024
MAX_ID_BYTES = 2048
# Every method that pods' sockets serve: the labels of the calls' metrics, and nothing else becomes one.
METHODS = (
    *(
        f"/SpiffeWorkloadAPI/{name}"
        for name in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID")
    ),
    *(
        f"/envoy.service.secret.v3.SecretDiscoveryService/{name}"
        for name in ("StreamSecrets", "DeltaSecrets", "FetchSecrets")
    ),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
# Why a call is refused, see agent.socket.guard; and a connection, see agent.socket.refusals.
REFUSALS = (
    *("open calls", "calls a second", "unread answers"),
    *("connections of a socket", "connections of a pod", "connections of all pods"),
    *("first bytes", "first bytes of all connections", "first bytes too late", "descriptors"),
)

# What a process lacks that has no network or root of its own, in which it could have the relay; see agent.socket.relay.
UNCOUNTED = "a count of connections"

Number: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]
Pid: TypeAlias = Annotated[int, Meta(ge=0, lt=2**31)]
User: TypeAlias = Annotated[int, Meta(ge=0, lt=2**32)]
Word: TypeAlias = Annotated[str, Meta(max_length=128)]
Text: TypeAlias = Annotated[str, Meta(max_length=16 * 1024)]
Counts: TypeAlias = Annotated[dict[Word, Number], Meta(max_length=64)]
# Volumes of one report of weights.
MOST_WEIGHED = 1024


# Unix times of the first and the last second that a datetime has.
_FIRST, _LAST = -62135596800, 253402300799


class Svid(Struct, frozen=True, array_like=True):
    """An SVID with its key: DER, leaf first, and PKCS#8. `until`: Unix time at which it ends; whoever gets it need not
    read it to know."""

    chain: bytes
    key: bytes
    hint: str
    spiffe_id: str
    until: Annotated[float, Meta(ge=_FIRST, le=_LAST)]


class Bundle(Struct, frozen=True, array_like=True):
    """A trust bundle as SPIFFE JWKS."""

    trust_domain: str
    jwks: bytes


class Withheld(Struct, frozen=True, array_like=True):
    """See svid.identity.Withheld."""

    why: str
    refused: bool
    at_once: bool


class Snapshot(Struct, frozen=True, array_like=True):
    """All that one workload holds at one moment."""

    svids: tuple[Svid, ...]
    bundle: Bundle
    federated: tuple[Bundle, ...]
    withheld: Withheld | None = None


# To the exposed process.
class Begin(Struct, frozen=True, tag="begin"):
    """How sockets are served; the first message."""

    connections: int
    calls: int
    rate: float
    burst: int
    svid_name: str
    bundle_name: str
    all_bundles_name: str
    spiffe_validator: bool
    log_level: int
    all_connections: int


class Open(Struct, frozen=True, tag="open"):
    """Bind a socket called `name(volume)` in the directory whose descriptor comes with this, and serve it. `pod` names
    the pod in logs; the sockets of one `uid` share its limits."""

    volume: int
    pod: str
    uid: str
    jwt: bool
    snapshot: Snapshot | None


class Changed(Struct, frozen=True, tag="changed"):
    """What the volume's workload holds now."""

    volume: int
    snapshot: Snapshot


class Close(Struct, frozen=True, tag="close"):
    """End the volume's calls and its socket."""

    volume: int


class Token(Struct, frozen=True, tag="token"):
    """The JWT-SVID that was asked for. `until`: Unix time until which it may be handed out again; 0: it may not."""

    request: int
    token: str
    until: float


class NoToken(Struct, frozen=True, tag="no token"):
    """There is none: refused for good, or not now."""

    request: int
    refused: bool
    why: str


class Forget(Struct, frozen=True, tag="forget"):
    """No JWT-SVID that was given for the volume before this is handed out again."""

    volume: int


class Look(Struct, frozen=True, tag="look"):
    """Who uses the volume's socket? `peers`: with the other ends of its connections."""

    request: int
    volume: int
    peers: bool


class Ping(Struct, frozen=True, tag="ping"):
    """Are you there?"""


Order: TypeAlias = Begin | Open | Changed | Close | Token | NoToken | Forget | Look | Ping


# From the exposed process.
class Ready(Struct, frozen=True, tag="ready"):
    """It has given up what it can; `lacking`: what the host did not let it give up."""

    lacking: Annotated[tuple[Word, ...], Meta(max_length=16)]


class Opened(Struct, frozen=True, tag="opened"):
    """The volume's socket is bound and served, or why not."""

    volume: Number
    error: Text


class Closed(Struct, frozen=True, tag="closed"):
    """Nothing of the volume is open any more."""

    volume: Number


class Wanted(Struct, frozen=True, tag="wanted"):
    """A JWT-SVID is asked for by the pod of a volume."""

    request: Number
    volume: Number
    spiffe_id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
    audiences: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_AUDIENCE_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_AUDIENCES),
    ]


class Seen(Struct, frozen=True, tag="seen"):
    """Open calls (method, seconds) and peers (uid, gid, pid) of a volume's socket."""

    request: Number
    calls: Annotated[tuple[tuple[Word, Annotated[float, Meta(ge=0, le=2**40)]], ...], Meta(max_length=1024)]
    peers: Annotated[tuple[tuple[User, User, Pid], ...], Meta(max_length=1024)]


class Counted(Struct, frozen=True, tag="counted"):
    """What was counted since the process began: calls and refused calls so far, calls open now, SDS responses."""

    calls: Counts
    open: Counts
    refused: Counts
    pushed: Number
    rejected: Number


class Weight(Struct, frozen=True, array_like=True):
    """What a volume's socket has cost since it was opened: connections, calls, those of them that were refused, and
    connections that were seen with something to be read; and connections and calls that are open."""

    connections: Number = 0
    calls: Number = 0
    refused: Number = 0
    busy: Number = 0
    open_connections: Number = 0
    open_calls: Number = 0


class Weighed(Struct, frozen=True, tag="weighed"):
    """The weights of volumes that changed, by their number."""

    volumes: Annotated[dict[Number, Weight], Meta(max_length=MOST_WEIGHED)]


class Said(Struct, frozen=True, tag="said"):
    """A line for the log."""

    level: Annotated[int, Meta(ge=0, le=50)]
    logger: Word
    event: Annotated[str, Meta(max_length=512)]
    fields: Annotated[dict[Word, Text], Meta(max_length=16)]


class Pong(Struct, frozen=True, tag="pong"):
    """It is there."""


Report: TypeAlias = Ready | Opened | Closed | Wanted | Seen | Counted | Weighed | Said | Pong


def orders() -> msgspec.msgpack.Decoder[Order]:
    """Reads what the exposed process is told."""
    return msgspec.msgpack.Decoder(Order)


def reports() -> msgspec.msgpack.Decoder[Report]:
    """Reads what the exposed process says."""
    return msgspec.msgpack.Decoder(Report)


def name(volume: int) -> str:
    """What the exposed process calls a volume's socket when it binds it."""
    return f"s{volume}"
