"""What a workload asks of whoever serves its socket."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from csi.model import PodRef
from csi.volume import VolumeDirectory
from runtime.feed import Feed
from svid.identity import WorkloadIdentity
from svid.jwtsvid import JwtSvid
from svid.spiffeid import SpiffeId


@dataclass(frozen=True, slots=True)
class Peer:
    """One connection's other end when it connected. `pid` is 0 for a process outside of this PID namespace."""

    uid: int
    gid: int
    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Use:
    """Who uses a socket: open calls (method, seconds), the oldest first, and peers where they were asked for."""

    calls: tuple[tuple[str, float], ...] = ()
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a socket is not served with all others: a reason code, and a text. `closed`: it is not served at all."""

    reason: str
    message: str
    closed: bool


class KeptJwtSvid(Protocol):
    """A JWT-SVID that may be handed out more than once until `renew_at`, where it is `reusable`."""

    @property
    def svid(self) -> JwtSvid: ...

    @property
    def renew_at(self) -> datetime: ...

    @property
    def reusable(self) -> bool: ...


class JwtSource(Protocol):
    """The workload's JWT-SVIDs."""

    async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> KeptJwtSvid:
        """One that is valid. Raises AuthorityUnavailable, AuthorityRefused."""
        ...


class PodSocket(Protocol):
    """One volume's socket. `open` and `close` bracket it, and may be repeated."""

    async def open(self) -> None:
        """Have it in the volume, with its mode, and served. Raises OSError, SocketUnavailable."""
        ...

    async def reopen(self) -> None:
        """Have it as soon as it can be; returns before that where that may take long."""
        ...

    async def close(self) -> None:
        """End all calls with UNAVAILABLE, so that clients reconnect, and remove the socket."""
        ...

    def forget_tokens(self) -> None:
        """Have no JWT-SVID that was given before this handed out again."""
        ...

    def kept_apart(self) -> Kept | None:
        """Why it is not served as all others are; None where it is."""
        ...

    async def use(self, *, peers: bool) -> Use:
        """Who uses it now, as far as that can be told."""
        ...


class PodSockets(Protocol):
    """Serves the sockets of all volumes."""

    def socket(
        self,
        feed: Feed[WorkloadIdentity],
        jwt_svids: JwtSource | None,
        pod: PodRef,
        directory: VolumeDirectory,
        trouble: Callable[[str, str], None],
    ) -> PodSocket:
        """A socket that is not open yet; without `jwt_svids` the JWT profile is not served. `trouble` is told, by a
        reason and a text, when it is served worse than others."""
        ...
