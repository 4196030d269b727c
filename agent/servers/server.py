"""One place where sockets are served: an exposed process that is started again whenever it ends, and what it serves."""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from agent.channel import messages
from agent.channel.frames import Wire
from agent.channel.snapshots import Writer
from agent.servers.answers import Answers, Asking
from agent.servers.following import follow
from agent.servers.link import Link, LinkLost
from agent.servers.load import Effort
from agent.servers.patience import Patience, next_patience
from agent.servers.process import Exposed, NotConfined
from agent.servers.quarantine import Place
from agent.servers.reports import Allowance, Log, SocketMetrics, Tally
from agent.servers.warden import Warden
from csi.model import PodRef
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.feed import Feed
from runtime.frames import BadFrame
from runtime.stopping import stay_cancelled

_log = logging.getLogger("podsvid.servers")
# Seconds until a process that was started must be ready.
READY = 15.0
# A process that lived for so long is started again at once; others after a pause that doubles.
LIVED, PAUSE, MOST_PAUSE = 2.0, 0.1, 4.0
# Sockets that are opened at once after a start.
SLICE = 16
# Threads that wait for the kernel where a socket was bound: others are for mounts and what kubelet asks for.
CLOSES = 2
# Lines of the log that the exposed process may write in a second, and at once.
LINES, LINES_BURST = 50, 1000
# Reports of counts in a second, and at once; it sends ten.
COUNTS, COUNTS_BURST = 30, 60


class Metrics(SocketMetrics, Protocol):
    """What is counted here."""

    def server_started(self) -> None: ...

    def server_lacks(self, number: int) -> None: ...


class Served(Asking, Protocol):
    """A socket, for whoever serves it. `key` says which pod it is of; `lose` is called when the process is gone."""

    @property
    def key(self) -> str: ...

    @property
    def pod(self) -> PodRef: ...

    @property
    def directory(self) -> VolumeDirectory: ...

    def lose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What processes serve there: `start` makes one; `effort`: what the kernel says of one; `memory`: bytes of each;
    `owner`: who owns what it writes into; `blocking`: where the kernel is waited for."""

    place: Place
    start: Callable[[], Awaitable[Exposed]]
    effort: Callable[[int], Effort | None]
    begin: messages.Begin
    memory: int
    owner: int | None
    blocking: Blocking


@dataclass(frozen=True, eq=False, slots=True)
class At:
    """Where a socket is served: by which process, under which number, and the task that sends it what is new."""

    server: "Server"
    link: Link
    number: int
    following: asyncio.Task[None]


class Server:
    """Belongs to one event loop. `run` has to run; `begun` is called with each process that takes orders."""

    def __init__(
        self, kind: Kind, metrics: Metrics, warden: Warden, answers: Answers, begun: Callable[["Server"], None]
    ) -> None:
        self.place = kind.place
        self.open: dict[int, Served] = {}
        # For those that are opened at once after a start.
        self.slots = asyncio.Semaphore(SLICE)
        self._closing = asyncio.Semaphore(CLOSES)
        self._kind = kind
        self._metrics = metrics
        self._warden = warden
        self._answers = answers
        self._begun = begun
        self._needed = asyncio.Event()
        # Whether the process that serves was asked to end.
        self._asked = False
        self._log = Log(Allowance(LINES, LINES_BURST))
        self._writer = Writer()
        self._numbers = itertools.count(1)
        self._link: Feed[Link | None] = Feed()
        self._told_lacking = False
        # How much more patience than usual there is with the next one.
        self._more = 1.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def needed(self) -> bool:
        """Whether there is to be a process."""
        return self._needed.is_set()

    @property
    def serving(self) -> bool:
        """Whether there is a process."""
        return self._link.current is not None

    def need(self, needed: bool) -> None:
        """Have a process, or none."""
        if needed:
            self._needed.set()
            return
        self._needed.clear()
        if self._link.current is not None:
            self._asked = True
            self._link.current.lose("it is not needed")
        else:
            # Whoever waits for one waits no longer.
            self._link.publish(None)

    async def run(self) -> None:
        """Keep a process running, while one is needed, for ever; cancelled, it ends with this."""
        pause = 0.0
        while True:
            await self._needed.wait()
            began = time.monotonic()
            try:
                why = await self._live()
            except (OSError, BadFrame, NotConfined, LinkLost) as error:
                why = str(error) or type(error).__name__
            # What fails while a process is ended takes a cancellation away.
            stay_cancelled()
            if self._asked:
                _log.info("a process for pods' sockets is not needed any more", extra={"which": str(self.place)})
                continue
            lived = time.monotonic() - began
            pause = 0.0 if lived >= LIVED else min(max(2 * pause, PAUSE), MOST_PAUSE)
            _log.error(
                "the process that serves pods' sockets ended; it is started again",
                extra={
                    "which": str(self.place),
                    "why": why,
                    "lived_seconds": round(lived, 1),
                    "pause_seconds": pause,
                },
            )
            await asyncio.sleep(pause)

    async def link(self) -> Link:
        """The channel to a process that is alive, when there is one. Raises LinkLost when none is needed any more."""
        while True:
            version, link = self._link.version, self._link.current
            if not self.needed:
                raise LinkLost
            if link is not None and not link.lost.is_set():
                return link
            await self._link.wait_beyond(version)

    async def bring(self, socket: Served, link: Link) -> At:
        """Have it opened there. Raises OSError, LinkLost."""
        number = next(self._numbers)
        identity, version = socket.feed.current, socket.feed.version
        snapshot = self._writer.snapshot(identity) if identity else None
        try:
            with socket.directory.socket_place(self._kind.owner, self._close) as place:
                await link.open(number, socket.pod, socket.jwt_svids is not None, snapshot, place)
                try:
                    socket.directory.take_socket(messages.name(number))
                except OSError:
                    link.refused()
                    raise
        except BaseException:
            # What was opened there would keep the volume, whoever gave up waiting for it.
            self.forget(link, number)
            raise
        self.open[number] = socket
        following = asyncio.create_task(follow(link, number, socket.feed, version, self._writer), name="snapshots")
        return At(self, link, number, following)

    def left(self, number: int) -> None:
        """The socket of this number is served no longer."""
        self.open.pop(number, None)
        self._warden.left(self.place, number)

    def tell(self, link: Link, order: messages.Order) -> None:
        """Have it told; nobody waits."""
        self._later(_tell(link, order))

    def forget(self, link: Link, number: int) -> None:
        """Have it closed; nobody waits."""
        self._later(_forget(link, number))

    def _close(self, descriptor: int) -> None:
        # Everybody waited for it otherwise.
        self._later(self._closed(descriptor))

    async def _closed(self, descriptor: int) -> None:
        # After a start there are as many as volumes, and mounts and what kubelet asks for need threads, too.
        async with self._closing:
            await self._kind.blocking(lambda: os.close(descriptor))

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="exposed process's errand")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self) -> str:
        """One life of the process; answers why it ended."""
        self._asked = False
        exposed = await self._kind.start()
        how = ""
        tally = Tally(self._metrics, Allowance(COUNTS, COUNTS_BURST))
        wire: Wire[messages.Report] = Wire(exposed.channel, messages.reports(), messages.MAX_REPORT)
        reports = wire.received()
        patience = Patience(lambda: self._kind.effort(exposed.pid), lambda: wire.taken, self._more)
        began = time.monotonic()
        try:
            self._metrics.server_started()
            await self._begin(exposed, wire, reports)
            self._warden.began(self.place, exposed.pid, self._kind.memory, self._key)
            link = Link(
                wire,
                reports,
                wanted=lambda link, wanted: self._answers.wanted(link, wanted, self.open),
                counted=tally.take,
                weighed=lambda weighed: self._warden.weighed(self.place, weighed),
                said=self._log.take,
                beat=lambda: self._warden.look(self.place),
                patience=patience,
            )
            self._link.publish(link)
            self.need(self._needed.is_set())
            self._begun(self)
            how = await link.run()
        finally:
            self._link.publish(None)
            await reports.aclose()
            wire.close()
            ended = await exposed.end()
            tally.end()
            self._more = next_patience(patience, time.monotonic() - began)
            # Before its sockets are brought elsewhere: who is to blame is not brought where all others are.
            self._warden.ended(self.place, asked=self._asked or not how)
            for each in list(self.open.values()):
                each.lose()
        return f"{how}, {ended}"

    def _key(self, number: int) -> str | None:
        found = self.open.get(number)
        return found.key if found else None

    async def _begin(
        self, exposed: Exposed, wire: Wire[messages.Report], reports: AsyncIterator[messages.Report]
    ) -> None:
        """Wait until it is confined, look whether it is, and say how to serve."""
        async with asyncio.timeout(READY):
            report = await anext(reports, None)
        if not isinstance(report, messages.Ready):
            raise ConnectionResetError("it was not ready")
        exposed.check()
        self._metrics.server_lacks(len(report.lacking))
        if messages.UNCOUNTED in report.lacking:
            _log.warning(
                "the process that serves pods' sockets has no network or root of its own: they have lower limits, and "
                "what pods leave unread, or say before they know their limits, is not bounded; run the agent as root"
            )
        if report.lacking and not self._told_lacking:
            self._told_lacking = True
            _log.warning(
                "the process that serves pods' sockets could not give up everything: "
                "this agent may not do that, or this kernel cannot",
                extra={"lacking": list(report.lacking)},
            )
        await wire.send(self._kind.begin)


async def _tell(link: Link, order: messages.Order) -> None:
    with suppress(LinkLost):
        await link.send(order)


async def _forget(link: Link, number: int) -> None:
    with suppress(LinkLost):
        await link.close(number)
