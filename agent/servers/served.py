"""The sockets of all volumes, served by one exposed process that is started again whenever it ends."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from agent.channel import messages
from agent.channel.frames import BadFrame, Wire
from agent.channel.snapshots import Writer
from agent.errors import AuthorityRefused, AuthorityUnavailable, SocketUnavailable
from agent.servers import asked
from agent.servers.following import follow
from agent.servers.link import Link, LinkLost
from agent.servers.process import Confinement, Exposed, NotConfined
from agent.servers.protocol import JwtSource, Peer, PodSocket, Use
from agent.servers.reports import Allowance, Log, SocketMetrics, Tally
from agent.servers.spare import Spare
from csi.model import PodRef
from csi.volume import VolumeDirectory
from runtime.feed import Feed
from runtime.processes import command_of
from svid.errors import InvalidSpiffeId
from svid.identity import WorkloadIdentity
from svid.spiffeid import SpiffeId

_log = logging.getLogger("podsvid.servers")
# Seconds: until a process that was started must be ready; that a publish waits for its socket; that a start waits for
# those of the volumes that were picked up.
READY, OPENING, SETTLING = 15.0, 20.0, 8.0
# A process that lived for so long is started again at once; others after a pause that doubles.
LIVED, PAUSE, MOST_PAUSE = 2.0, 0.1, 4.0
# Lines of the log that the exposed process may write in a second, and at once.
LINES, LINES_BURST = 50, 1000
# Reports of counts in a second, and at once; it sends ten.
COUNTS, COUNTS_BURST = 30, 60
# JWT-SVIDs that all pods together may wait for.
MOST_ANSWERS = 16 * 1024
# Sockets that are opened at once after a start.
SLICE = 16


class Metrics(SocketMetrics, Protocol):
    """What is counted here."""

    def server_started(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How sockets are served. `calls`, `rate` and `burst` bound the JWT-SVIDs asked for as well: each is a call."""

    confinement: Confinement
    begin: messages.Begin


class Servers:
    """Implements PodSockets. `run` has to run; a socket that is to be open waits for the process, and is opened anew
    with the next one, for as long as nobody closes it. Belongs to one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._spare = Spare(settings.confinement)
        self._log = Log(Allowance(LINES, LINES_BURST))
        self._writer = Writer()
        self._numbers = itertools.count(1)
        self._sockets: set[ServedSocket] = set()
        self._link: Feed[Link | None] = Feed()
        self._open: dict[int, ServedSocket] = {}
        self._slots = asyncio.Semaphore(SLICE)
        self._told_lacking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._bringing: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._asked = asked.Asked(MOST_ANSWERS, asked.MOST)

    @property
    def owner(self) -> int | None:
        """Who owns what the process writes into."""
        return self._settings.confinement.owner

    def socket(
        self, feed: Feed[WorkloadIdentity], jwt_svids: JwtSource | None, pod: PodRef, directory: VolumeDirectory
    ) -> PodSocket:
        allowance = Allowance(self._settings.begin.rate, self._settings.begin.burst)
        own = asked.Asked(self._settings.begin.calls, asked.MOST_EACH, self._asked)
        return ServedSocket(self, feed, jwt_svids, pod, directory, allowance, own)

    async def run(self) -> None:
        """Keep a process running, and another waiting, for ever; cancelled, they end with this."""
        try:
            await self._run()
        finally:
            await self._spare.end()

    async def _run(self) -> None:
        pause = 0.0
        while True:
            began = time.monotonic()
            try:
                why = await self._live()
            except (OSError, BadFrame, NotConfined, LinkLost) as error:
                why = str(error) or type(error).__name__
            lived = time.monotonic() - began
            pause = 0.0 if lived >= LIVED else min(max(2 * pause, PAUSE), MOST_PAUSE)
            _log.error(
                "the process that serves pods' sockets ended; it is started again",
                extra={"why": why, "lived_seconds": round(lived, 1), "pause_seconds": pause},
            )
            await asyncio.sleep(pause)

    async def settled(self) -> None:
        """Wait, within bounds, until what is to be open was tried."""
        if self._bringing:
            await asyncio.wait(self._bringing, timeout=SETTLING)

    def hold(self, socket: "ServedSocket") -> None:
        """Open it with every process that is started, from now on."""
        self._sockets.add(socket)
        if self._link.current is not None:
            # Without a socket nobody would miss it, and it costs memory.
            self._spare.soon()

    def drop(self, socket: "ServedSocket") -> None:
        """No longer."""
        self._sockets.discard(socket)

    def holds(self, socket: "ServedSocket") -> bool:
        """Whether it is to be open."""
        return socket in self._sockets

    async def link(self) -> Link:
        """The channel to a process that is alive, when there is one."""
        while True:
            version, link = self._link.version, self._link.current
            if link is not None and not link.lost.is_set():
                return link
            await self._link.wait_beyond(version)

    async def bring(self, socket: "ServedSocket", link: Link) -> None:
        """Have it opened. Raises OSError, LinkLost."""
        number = next(self._numbers)
        identity, version = socket.feed.current, socket.feed.version
        snapshot = self._writer.snapshot(identity) if identity else None
        try:
            with socket.directory.socket_place(self.owner) as place:
                await link.open(number, socket.pod, socket.jwt_svids is not None, snapshot, place)
                socket.directory.take_socket(messages.name(number))
        except BaseException:
            # What was opened there would keep the volume, whoever gave up waiting for it.
            self._later(self._forget(link, number))
            raise
        following = asyncio.create_task(follow(link, number, socket.feed, version, self._writer), name="snapshots")
        socket.at = At(link, number, following)
        self._open[number] = socket

    def tell(self, link: Link, order: messages.Order) -> None:
        """Have it told; nobody waits."""
        self._later(self._tell(link, order))

    def left(self, number: int) -> None:
        """The socket of this number is served no longer."""
        self._open.pop(number, None)

    def bring_soon(self, socket: "ServedSocket") -> None:
        """Have it opened by the process that is there, or by the next one; nobody waits."""
        task = self._later(self._bring_soon(socket))
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring_soon(self, socket: "ServedSocket") -> None:
        link = await self.link()
        async with self._slots:
            await socket.bring(link)

    async def _tell(self, link: Link, order: messages.Order) -> None:
        with suppress(LinkLost):
            await link.send(order)

    async def _forget(self, link: Link, number: int) -> None:
        with suppress(LinkLost):
            await link.close(number)

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="exposed process's errand")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self) -> str:
        """One life of the process; answers why it ended."""
        exposed = await self._spare.take()
        how = ""
        tally = Tally(self._metrics, Allowance(COUNTS, COUNTS_BURST))
        wire: Wire[messages.Report] = Wire(exposed.channel, messages.reports(), messages.MAX_REPORT)
        reports = wire.received()
        try:
            self._metrics.server_started()
            await self._begin(exposed, wire, reports)
            link = Link(wire, reports, self._wanted, tally.take, self._log.take)
            self._link.publish(link)
            for each in self._sockets:
                self.bring_soon(each)
            if self._sockets:
                self._spare.soon()
            how = await link.run()
        finally:
            self._link.publish(None)
            await reports.aclose()
            wire.close()
            ended = await exposed.end()
            tally.end()
            for each in list(self._open.values()):
                each.lose()
        return f"{how}, {ended}"

    async def _begin(
        self, exposed: Exposed, wire: Wire[messages.Report], reports: AsyncIterator[messages.Report]
    ) -> None:
        """Wait until it is confined, look whether it is, and say how to serve."""
        async with asyncio.timeout(READY):
            report = await anext(reports, None)
        if not isinstance(report, messages.Ready):
            raise ConnectionResetError("it was not ready")
        exposed.check()
        if report.lacking and not self._told_lacking:
            self._told_lacking = True
            _log.warning(
                "the process that serves pods' sockets could not give up everything: "
                "this agent may not do that, or this kernel cannot",
                extra={"lacking": list(report.lacking)},
            )
        await wire.send(self._settings.begin)

    def _wanted(self, link: Link, wanted: messages.Wanted) -> None:
        """It asks for a JWT-SVID: within the bounds of the pod that it says it is for, and for that pod's own ID."""
        if len(self._answering) >= MOST_ANSWERS:
            # Each costs memory here until it is taken there.
            link.lost.set()
            return
        socket, taken = self._open.get(wanted.volume), asked.size(wanted)
        if socket is None or not socket.allowance.take() or not socket.asked.take(taken):
            # It keeps nothing of what came while it waits.
            why = "too many JWT-SVIDs are asked for on this socket; try again later" if socket else "it is not served"
            task = self._later(self._tell(link, messages.NoToken(wanted.request, False, why)))
        else:
            task = self._later(self._answer(link, wanted, socket))
            given = socket.asked
            task.add_done_callback(lambda _: given.give(taken))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, link: Link, wanted: messages.Wanted, socket: "ServedSocket") -> None:
        try:
            answer: messages.Token | messages.NoToken = await self._token(wanted, socket)
        except (AuthorityRefused, AuthorityUnavailable) as error:
            answer = messages.NoToken(wanted.request, isinstance(error, AuthorityRefused), str(error))
        except Exception as error:
            # A call of a pod waits for this answer.
            _log.exception("bug: a JWT-SVID could not be asked for", extra={"error": type(error).__name__})
            answer = messages.NoToken(wanted.request, False, "internal error; the agent's log says more")
        with suppress(LinkLost):
            await link.send(answer)

    async def _token(self, wanted: messages.Wanted, socket: "ServedSocket") -> messages.Token:
        identity = socket.feed.current
        if identity is None or socket.jwt_svids is None:
            raise AuthorityUnavailable("the volume is not served")
        try:
            spiffe_id = SpiffeId.parse(wanted.spiffe_id)
        except InvalidSpiffeId:
            raise AuthorityRefused("that is no SPIFFE ID") from None
        if spiffe_id not in [svid.spiffe_id for svid in identity.svids]:
            raise AuthorityRefused("the workload does not have that SPIFFE ID")
        forgotten = socket.forgotten
        kept = await socket.jwt_svids.get(spiffe_id, wanted.audiences)
        again = kept.reusable and forgotten == socket.forgotten
        return messages.Token(wanted.request, kept.svid.token, kept.renew_at.timestamp() if again else 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class At:
    """Where a socket is served: by which process, under which number, and the task that sends it what is new."""

    link: Link
    number: int
    following: asyncio.Task[None]


class ServedSocket:
    """Implements PodSocket."""

    def __init__(
        self,
        servers: Servers,
        feed: Feed[WorkloadIdentity],
        jwt_svids: JwtSource | None,
        pod: PodRef,
        directory: VolumeDirectory,
        allowance: Allowance,
        own: asked.Asked,
    ) -> None:
        self._servers = servers
        self.feed = feed
        self.jwt_svids = jwt_svids
        self.pod = pod
        self.directory = directory
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
                while True:
                    link = await self._servers.link()
                    with suppress(LinkLost):
                        async with self._one:
                            if self.at is None or self.at.link is not link:
                                await self._servers.bring(self, link)
                        return
        except TimeoutError:
            raise SocketUnavailable(
                "the process that serves pods' sockets is being started again; the agent's log says why"
            ) from None
        except OSError:
            self._servers.drop(self)
            raise

    async def reopen(self) -> None:
        self._servers.hold(self)
        self._servers.bring_soon(self)

    async def bring(self, link: Link) -> None:
        """Have it opened by a process that was just started; nothing is raised."""
        try:
            async with self._one:
                if self.at is None and self._servers.holds(self):
                    await self._servers.bring(self, link)
        except LinkLost:
            return
        except OSError as error:
            # What is not there is made again by the next renewal or publish.
            with suppress(OSError):
                self.directory.prepare_socket()
            why = error.strerror or type(error).__name__
            _log.error("volume's socket cannot be opened", extra={"pod": str(self.pod), "error": why})

    def forget_tokens(self) -> None:
        self.forgotten += 1
        if self.at is not None:
            self._servers.tell(self.at.link, messages.Forget(self.at.number))

    def lose(self) -> None:
        """The process is gone."""
        at, self.at = self.at, None
        if at is not None:
            at.following.cancel()
            self._servers.left(at.number)

    async def close(self) -> None:
        self._servers.drop(self)
        async with self._one:
            at = self.at
            self.lose()
            if at is not None:
                with suppress(LinkLost):
                    await at.link.close(at.number)
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
