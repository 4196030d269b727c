"""The sockets of all volumes: which process serves which, and that each is opened again until nobody wants it open."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import msgspec

from agent import budget
from agent.channel import messages
from agent.errors import SocketUnavailable
from agent.servers import asked, load, server
from agent.servers.answers import Answers
from agent.servers.link import Link, LinkLost
from agent.servers.process import Confinement, Exposed
from agent.servers.protocol import JwtSource, Kept, Peer, PodSocket, Use
from agent.servers.quarantine import Move, Place, Times, Why
from agent.servers.reports import Allowance
from agent.servers.server import At, Kind, Server
from agent.servers.spare import Spare
from agent.servers.warden import Warden
from csi.model import PodRef
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.feed import Feed
from runtime.processes import command_of
from runtime.stopping import side_by_side
from svid.identity import WorkloadIdentity

_log = logging.getLogger("podsvid.servers")
# Seconds that a publish waits for its socket; that a start waits for those of the volumes that were picked up.
OPENING, SETTLING = 20.0, 8.0
# How much the process for pods that cost too much gives way to the others.
NICE = 10
# What was wrong, in the words that people read.
_COST: Mapping[Why, str] = MappingProxyType(
    {
        Why.MEMORY: "it takes too much memory of the process that serves it",
        Why.CPU: "it takes too much processor time of the process that serves it",
        Why.ENDED: "it was the heaviest when the process that served it ended",
    }
)
QUARANTINED, CLOSED = "SOCKET_QUARANTINED", "SOCKET_CLOSED"


class Metrics(server.Metrics, Protocol):
    """What is counted here."""

    def socket_moved(self, to: str, why: str) -> None: ...

    def watch_sockets(self, apart: Callable[[], Mapping[str, float]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How sockets are served. `calls`, `rate` and `burst` bound the JWT-SVIDs asked for as well: each is a call."""

    confinement: Confinement
    begin: messages.Begin
    times: Times = Times()
    # Whether pods that cost too much are served elsewhere.
    quarantine: bool = True


class Servers:
    """Implements PodSockets. `run` has to run; a socket that is to be open waits for the process that its pod's sockets
    belong to, and is opened anew with the next one, for as long as nobody closes it. Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        blocking: Blocking,
        now: Callable[[], float] = time.monotonic,
        usage: Callable[[int], load.Usage] = load.usage,
        effort: Callable[[int], load.Effort | None] = load.effort,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        confined = settings.confinement
        apart = replace(confined, memory=min(budget.QUARANTINE, confined.memory), nice=NICE)
        begin_apart = msgspec.structs.replace(settings.begin, all_connections=budget.QUARANTINE_CONNECTIONS)
        self._spare = Spare(confined)
        self._warden = Warden(settings.times, self._moved, usage, now, active=settings.quarantine)
        self._answers = Answers(settings.begin.calls)
        kinds = (
            Kind(Place.SHARED, self._spare.take, effort, settings.begin, confined.memory, confined.owner, blocking),
            Kind(
                Place.QUARANTINE,
                lambda: Exposed.start(apart),
                effort,
                begin_apart,
                apart.memory,
                confined.owner,
                blocking,
            ),
        )
        self._servers = {kind.place: Server(kind, metrics, self._warden, self._answers, self._begun) for kind in kinds}
        self._servers[Place.SHARED].need(True)
        self._sockets: dict[ServedSocket, None] = {}
        self._bringing: set[asyncio.Task[None]] = set()
        metrics.watch_sockets(self._apart)

    def socket(
        self,
        feed: Feed[WorkloadIdentity],
        jwt_svids: JwtSource | None,
        pod: PodRef,
        directory: VolumeDirectory,
        trouble: Callable[[str, str], None],
    ) -> PodSocket:
        allowance = Allowance(self._settings.begin.rate, self._settings.begin.burst)
        return ServedSocket(self, feed, jwt_svids, pod, directory, trouble, allowance, self._answers.bounds())

    async def run(self) -> None:
        """Keep processes running, and another waiting, for ever; cancelled, they end with this."""
        try:
            await side_by_side(*(each.run() for each in self._servers.values()), self._warden.run())
        finally:
            await self._spare.end()

    async def settled(self) -> None:
        """Wait, within bounds, until what is to be open was tried."""
        if self._bringing:
            await asyncio.wait(self._bringing, timeout=SETTLING)

    def hold(self, socket: "ServedSocket") -> None:
        """Open it with every process that is started, from now on."""
        self._sockets[socket] = None
        if self._servers[Place.SHARED].serving:
            # Without a socket nobody would miss it, and it costs memory.
            self._spare.soon()
        self._need(socket)

    def drop(self, socket: "ServedSocket") -> None:
        """No longer."""
        self._sockets.pop(socket, None)
        self._need(socket)

    def of(self, place: Place) -> Server:
        """Who serves there; nobody serves what is closed."""
        return self._servers[place]

    def server(self, socket: "ServedSocket") -> Server | None:
        """Who is to serve it; None: nobody, or nobody now."""
        return self._servers.get(self._warden.place(socket.key)) if socket in self._sockets else None

    def bring_soon(self, socket: "ServedSocket") -> None:
        """Have it where it belongs as soon as that can be; nobody waits."""
        task = asyncio.create_task(self._bring_soon(socket), name="socket's way to its process")
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    def kept_apart(self, socket: "ServedSocket") -> Kept | None:
        """See PodSocket."""
        held = self._warden.held(socket.key)
        if held is None:
            return None
        cost = _COST.get(held.why, str(held.why))
        if held.place is Place.CLOSED:
            seconds = self._warden.closed_for(socket.key)
            return Kept(CLOSED, f"the pod's sockets are closed for {seconds:.0f} s more: {cost}", closed=True)
        return Kept(
            QUARANTINED, f"the pod's sockets are served by a process apart from all others: {cost}", closed=False
        )

    async def _bring_soon(self, socket: "ServedSocket") -> None:
        await socket.leave_others()
        place = self.server(socket)
        if place is None:
            return
        with suppress(LinkLost):
            link = await place.link()
            async with place.slots:
                await socket.bring(place, link)

    def _begun(self, begun: Server) -> None:
        """A process takes orders."""
        for each in self._sockets:
            if self.server(each) is begun:
                self.bring_soon(each)
        if self._sockets and begun.place is Place.SHARED:
            self._spare.soon()

    def _moved(self, moves: tuple[Move, ...]) -> None:
        """Pods are to be served elsewhere from now on."""
        for move in moves:
            sockets = [each for each in self._sockets if each.key == move.pod]
            if not sockets:
                continue
            self._need(sockets[0])
            self._metrics.socket_moved(str(move.to), str(move.why))
            kept = self.kept_apart(sockets[0])
            _log.warning(
                "a pod's sockets are moved",
                extra={"pod": str(sockets[0].pod), "to": str(move.to), "why": str(move.why), "sockets": len(sockets)},
            )
            for each in sockets:
                if kept is not None and move.why in _COST:
                    each.trouble(kept.reason, _COST[move.why])
                self.bring_soon(each)

    def _need(self, changed: "ServedSocket") -> None:
        """A process for quarantine is there while it has sockets to serve."""
        quarantine = self._servers[Place.QUARANTINE]
        if quarantine.needed or self._warden.held(changed.key):
            quarantine.need(any(self._warden.place(each.key) is Place.QUARANTINE for each in self._sockets))

    def _apart(self) -> Mapping[str, float]:
        places = [self._warden.place(each.key) for each in self._sockets]
        return {str(place): float(places.count(place)) for place in (Place.QUARANTINE, Place.CLOSED)}


class ServedSocket:
    """Implements PodSocket, and what a Server serves."""

    def __init__(
        self,
        servers: Servers,
        feed: Feed[WorkloadIdentity],
        jwt_svids: JwtSource | None,
        pod: PodRef,
        directory: VolumeDirectory,
        trouble: Callable[[str, str], None],
        allowance: Allowance,
        own: asked.Asked,
    ) -> None:
        self._servers = servers
        self.feed = feed
        self.jwt_svids = jwt_svids
        self.pod = pod
        # A pod of the same name may come after it.
        self.key = f"{pod} {pod.uid}"
        self.directory = directory
        self.trouble = trouble
        self.allowance = allowance
        self.asked = own
        # How often those that were given were to be forgotten.
        self.forgotten = 0
        self.at: At | None = None
        self._one = asyncio.Lock()

    async def open(self) -> None:
        self._servers.hold(self)
        try:
            async with asyncio.timeout(OPENING):
                while not await self._open():
                    pass
        except TimeoutError:
            raise SocketUnavailable(
                "the process that serves pods' sockets is being started again; the agent's log says why"
            ) from None
        except OSError:
            self._servers.drop(self)
            raise

    async def _open(self) -> bool:
        """Try it with one process; whether it is open. Raises OSError, SocketUnavailable."""
        server = self._servers.server(self)
        if server is None:
            kept = self._servers.kept_apart(self)
            raise SocketUnavailable(kept.message if kept and kept.closed else "the volume is being unpublished")
        with suppress(LinkLost):
            link = await server.link()
            async with self._one:
                if self._servers.server(self) is not server:
                    return False
                await self._leave(server)
                if self.at is None or self.at.link is not link:
                    self.at = await server.bring(self, link)
                return True
        return False

    async def reopen(self) -> None:
        self._servers.hold(self)
        self._servers.bring_soon(self)

    async def bring(self, server: Server, link: Link) -> None:
        """Have it opened by a process, if it still belongs there; nothing is raised."""
        try:
            async with self._one:
                if self._servers.server(self) is server and self.at is None:
                    self.at = await server.bring(self, link)
        except LinkLost:
            return
        except OSError as error:
            # What is not there is made again by the next renewal or publish.
            with suppress(OSError):
                self.directory.prepare_socket()
            _log.error(
                "volume's socket cannot be opened",
                extra={"pod": str(self.pod), "error": error.strerror or type(error).__name__},
            )

    async def leave_others(self) -> None:
        """Have it closed wherever it does not belong; nothing is raised."""
        async with self._one:
            server = self._servers.server(self)
            await self._leave(server)
            if server is None:
                with suppress(OSError):
                    self.directory.prepare_socket()

    async def _leave(self, server: Server | None) -> None:
        at = self.at
        if at is None or at.server is server:
            return
        self.lose()
        try:
            with suppress(LinkLost):
                await at.link.close(at.number)
        except asyncio.CancelledError:
            # It is open there for nobody else to close.
            at.server.forget(at.link, at.number)
            raise

    def forget_tokens(self) -> None:
        self.forgotten += 1
        if self.at is not None:
            self.at.server.tell(self.at.link, messages.Forget(self.at.number))

    def kept_apart(self) -> Kept | None:
        return self._servers.kept_apart(self)

    def lose(self) -> None:
        """It is served there no longer."""
        at, self.at = self.at, None
        if at is not None:
            at.following.cancel()
            at.server.left(at.number)

    async def close(self) -> None:
        self._servers.drop(self)
        async with self._one:
            await self._leave(None)
            with suppress(OSError):
                self.directory.prepare_socket()

    async def use(self, *, peers: bool) -> Use:
        at = self.at
        if at is None:
            return Use()
        try:
            seen = await at.link.look(at.number, peers)
        except LinkLost:
            return Use()
        return Use(
            tuple((method, seconds) for method, seconds in seen.calls if method in messages.METHODS),
            tuple(Peer(uid, gid, pid, command_of(pid)) for uid, gid, pid in seen.peers),
        )
