"""The channel to one exposed process while it lives: orders out, answers back, everything it asks for within bounds."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

from agent.channel import messages
from agent.channel.frames import BadFrame, Wire
from csi.model import PodRef
from runtime.terminal import printable

_log = logging.getLogger("podsvid.servers")
# Seconds: an answer to an order; without a sign of life.
ANSWER, SILENCE = 10.0, 20.0
# Bytes a second that it takes at least of what waits for it, beyond ANSWER.
PACE = 1024 * 1024
# Characters of what it says of an order that failed: kubelet shows them in the pod's event.
MOST_TOLD = 256
_Answer = TypeVar("_Answer")


class LinkLost(Exception):
    """The process has ended, or is not answering and will be ended."""


class Link:
    """Belongs to one event loop. `wanted`, `counted`, `weighed` and `said` get what the process sends by itself; `beat`
    says after how many seconds the next sign of life is asked for."""

    def __init__(
        self,
        wire: Wire[messages.Report],
        reports: AsyncIterator[messages.Report],
        wanted: Callable[["Link", messages.Wanted], None],
        counted: Callable[[messages.Counted], None],
        weighed: Callable[[messages.Weighed], None],
        said: Callable[[messages.Said], None],
        beat: Callable[[], float],
    ) -> None:
        self._wire = wire
        self._reports = reports
        self._wanted = wanted
        self._counted = counted
        self._weighed = weighed
        self._said = said
        self._beat = beat
        self._requests = itertools.count(1)
        self._opening: dict[int, asyncio.Future[str]] = {}
        self._closing: dict[int, asyncio.Future[None]] = {}
        self._looking: dict[int, asyncio.Future[messages.Seen]] = {}
        self._heard = asyncio.Event()
        self.lost = asyncio.Event()

    async def open(self, number: int, pod: PodRef, jwt: bool, snapshot: messages.Snapshot | None, place: int) -> None:
        """Have a socket bound in the open directory `place` and served. Raises OSError, LinkLost."""
        order = messages.Open(number, str(pod), pod.uid, jwt, snapshot)
        error = await self._answered(self._opening, number, order, place)
        if error:
            raise OSError(None, f"the server of the socket: {printable(error[:MOST_TOLD])}")

    async def close(self, number: int) -> None:
        """Have all that is open of it ended. Raises LinkLost."""
        await self._answered(self._closing, number, messages.Close(number))

    async def look(self, number: int, peers: bool) -> messages.Seen:
        """Who uses the socket. Raises LinkLost."""
        request = next(self._requests)
        return await self._answered(self._looking, request, messages.Look(request, number, peers))

    async def send(self, order: messages.Order | Callable[[], messages.Order]) -> None:
        """Tell it, after what it was told before. Raises LinkLost."""
        try:
            await self._taken(order)
        except (OSError, TimeoutError):
            self.lost.set()
            raise LinkLost from None

    async def run(self) -> str:
        """Take what comes until the process has ended or has to be; answers why. Afterwards nobody waits any more."""
        taking = asyncio.ensure_future(self._take())
        watching = asyncio.ensure_future(self._watch())
        losing = asyncio.ensure_future(self.lost.wait())
        try:
            done, _ = await asyncio.wait([taking, watching, losing], return_when=asyncio.FIRST_COMPLETED)
            return taking.result() if taking in done else watching.result() if watching in done else "it took nothing"
        finally:
            self.lost.set()
            for each in (taking, watching, losing):
                each.cancel()
            await asyncio.gather(taking, watching, losing, return_exceptions=True)
            for waiting in (self._opening, self._closing, self._looking):
                _fail(waiting)

    async def _take(self) -> str:
        try:
            async for report in self._reports:
                self._heard.set()
                self._sort(report)
        except BadFrame as error:
            return f"it sent {error}"
        except OSError as error:
            return error.strerror or type(error).__name__
        return "it closed the channel"

    def _sort(self, report: messages.Report) -> None:
        match report:
            case messages.Opened():
                _answer(self._opening, report.volume, report.error)
            case messages.Closed():
                _answer(self._closing, report.volume, None)
            case messages.Seen():
                _answer(self._looking, report.request, report)
            case messages.Wanted():
                self._wanted(self, report)
            case messages.Counted():
                self._counted(report)
            case messages.Weighed():
                self._weighed(report)
            case messages.Said():
                self._said(report)
            case messages.Ready() | messages.Pong():
                return

    async def _watch(self) -> str:
        """Ask for a sign of life now and then; ends when there is none."""
        while True:
            await asyncio.sleep(self._beat())
            self._heard.clear()
            try:
                await self._taken(messages.Ping())
                async with asyncio.timeout(SILENCE):
                    await self._heard.wait()
            except TimeoutError as error:
                return str(error) or f"it was silent for {SILENCE:g} s"
            except OSError as error:
                return error.strerror or type(error).__name__

    async def _taken(self, order: messages.Order | Callable[[], messages.Order], place: int | None = None) -> None:
        """Wait until it has it: ANSWER, and longer for what it takes meanwhile. Raises OSError, TimeoutError."""
        waiting = self._wire.post(order, place)
        if waiting is None:
            return
        began, before = time.monotonic(), self._wire.taken
        try:
            while not waiting.done():
                left = began + ANSWER + (self._wire.taken - before) / PACE - time.monotonic()
                if left <= 0:
                    raise TimeoutError("it took nothing")
                await asyncio.wait([waiting], timeout=left)
            waiting.result()
        finally:
            waiting.cancel()

    async def _answered(
        self, waiting: dict[int, asyncio.Future[_Answer]], key: int, order: messages.Order, place: int | None = None
    ) -> _Answer:
        if self.lost.is_set():
            raise LinkLost
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        waiting[key] = answer
        try:
            await self._taken(order, place)
            async with asyncio.timeout(ANSWER):
                return await answer
        except (OSError, TimeoutError):
            # One that does not do as it is told is started again: a socket that stays open keeps its volume.
            self.lost.set()
            raise LinkLost from None
        finally:
            waiting.pop(key, None)


def _fail(waiting: Mapping[int, asyncio.Future[Any]]) -> None:
    for each in waiting.values():
        if not each.done():
            each.set_exception(LinkLost())


def _answer(waiting: dict[int, asyncio.Future[_Answer]], key: int, answer: _Answer) -> None:
    """Nobody may have asked, or be waiting any more."""
    found = waiting.get(key)
    if found is not None and not found.done():
        found.set_result(answer)
