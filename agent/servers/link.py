"""The channel to one exposed process while it lives: orders out, answers back, everything it asks for within bounds."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from agent.channel import messages
from agent.channel.frames import One, Wire
from agent.servers.patience import Patience
from csi.model import PodRef
from runtime.frames import BadFrame
from runtime.stopping import end
from runtime.terminal import printable

_log = logging.getLogger("podsvid.servers")

# Characters of what it says of an order that failed: kubelet shows them in the pod's event.
MOST_TOLD = 256
_Answer = TypeVar("_Answer")


class LinkLost(Exception):
    """The process has ended, or does not do as it is told and will be ended."""


class Link:
    """Belongs to one event loop. `wanted`, `counted`, `weighed` and `said` get what the process sends by itself; `beat`
    says after how many seconds the next sign of life is asked for. Whatever it is to do, it has `patience` for."""

    def __init__(
        self,
        wire: Wire[messages.Report],
        reports: AsyncIterator[messages.Report],
        wanted: Callable[["Link", messages.Wanted], None],
        counted: Callable[[messages.Counted], None],
        weighed: Callable[[messages.Weighed], None],
        said: Callable[[messages.Said], None],
        beat: Callable[[], float],
        patience: Patience,
    ) -> None:
        self._wire = wire
        self._reports = reports
        self._wanted = wanted
        self._counted = counted
        self._weighed = weighed
        self._said = said
        self._beat = beat
        self._patience = patience
        self._requests = itertools.count(1)
        self._opening: dict[int, asyncio.Future[str]] = {}
        self._closing: dict[int, asyncio.Future[None]] = {}
        self._looking: dict[int, asyncio.Future[messages.Seen]] = {}
        self._heard: asyncio.Future[None] | None = None
        # Whose news it is told next: what makes them, by the socket's number.
        self._news: dict[int, Callable[[], messages.Order]] = {}
        self._telling = False
        self._why = ""
        self.lost = asyncio.Event()

    def lose(self, why: str) -> None:
        """Have the process ended."""
        self._why = self._why or why
        self.lost.set()

    async def open(self, number: int, pod: PodRef, jwt: bool, snapshot: messages.Snapshot | None, place: int) -> None:
        """Have a socket bound in the open directory `place` and served. Raises OSError, LinkLost."""
        order = messages.Open(number, str(pod), pod.uid, jwt, snapshot)
        error = await self._answered(self._opening, number, order, place, owed=True)
        if error:
            self.refused()
            raise OSError(None, f"the server of the socket: {printable(error[:MOST_TOLD])}")

    def refused(self) -> None:
        """It did not open what it was told to open: one that goes on with that is started again."""
        if not self._patience.refused():
            self.lose("it did not open what it was told to open")

    async def close(self, number: int) -> None:
        """Have all that is open of it ended. Raises LinkLost."""
        # What it was not told yet has a key, which nobody needs there any more.
        self._news.pop(number, None)
        # It waits for its clients to take their last answers.
        await self._answered(self._closing, number, messages.Close(number), asleep=True)

    async def look(self, number: int, peers: bool) -> messages.Seen:
        """Who uses the socket. Raises LinkLost."""
        request = next(self._requests)
        return await self._answered(self._looking, request, messages.Look(request, number, peers))

    def tell(self, number: int, newest: Callable[[], messages.Order]) -> None:
        """Have it told of that socket what is `newest` when its turn comes, some at a time. Raises LinkLost.

        What changes in the same turn of the loop goes with it: woken for each alone it takes half as long again.
        """
        if self.lost.is_set():
            raise LinkLost
        self._news[number] = newest
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    async def send(self, order: messages.Order) -> None:
        """Tell it, after what it was told before. Raises LinkLost."""
        try:
            await self._taken(order)
        except OSError as error:
            self.lose(_said(error))
            raise LinkLost from None

    async def run(self) -> str:
        """Take what comes until the process has ended or has to be; answers why. Afterwards nobody waits any more."""
        ends = [asyncio.ensure_future(each) for each in (self._take(), self._watch(), self._patience.run())]
        losing = asyncio.ensure_future(self.lost.wait())
        try:
            done, _ = await asyncio.wait([*ends, losing], return_when=asyncio.FIRST_COMPLETED)
            return next((each.result() for each in ends if each in done), self._why)
        finally:
            self.lost.set()
            await end((*ends, losing))
            for waiting in (self._opening, self._closing, self._looking):
                _fail(waiting)

    async def _take(self) -> str:
        try:
            async for report in self._reports:
                if self._heard is not None and not self._heard.done():
                    self._heard.set_result(None)
                self._sort(report)
        except BadFrame as error:
            return f"it sent {error}"
        except OSError as error:
            return _said(error)
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
        """Ask for a sign of life now and then; ends with the channel."""
        while True:
            await asyncio.sleep(self._beat())
            self._heard = asyncio.get_running_loop().create_future()
            self._patience.begin(self._heard)
            try:
                await self._taken(messages.Ping())
                await self._heard
            except OSError as error:
                return _said(error)
            finally:
                self._heard.cancel()

    def _tell(self) -> None:
        sent: asyncio.Future[None] | None = None
        self._telling = False
        try:
            sent = self._wire.post(self._newest)
        except OSError as error:
            self.lose(_said(error))
            return
        if sent is not None:
            self._telling = True
            self._patience.begin(sent)
            sent.add_done_callback(self._told)
        elif self._news:
            # One that keeps up with all that is new has it go by go: others have their turn in between.
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _newest(self) -> Iterator[One]:
        while self._news:
            number = next(iter(self._news))
            yield One(self._news.pop(number), partial(_unwritten, number))

    def _told(self, sent: "asyncio.Future[None]") -> None:
        error = None if sent.cancelled() else sent.exception()
        if isinstance(error, OSError):
            self.lose(_said(error))
        elif error is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "what is new of pods' sockets could not be told", "exception": error, "future": sent}
            )
        self._tell()

    async def _taken(self, order: messages.Order) -> None:
        """Wait until it has it. Raises OSError."""
        sent = self._wire.post(order)
        if sent is None:
            return
        self._patience.begin(sent)
        try:
            await sent
        finally:
            sent.cancel()

    async def _answered(
        self,
        waiting: dict[int, asyncio.Future[_Answer]],
        key: int,
        order: messages.Order,
        place: int | None = None,
        *,
        asleep: bool = False,
        owed: bool = False,
    ) -> _Answer:
        """What it says to an order; `owed`: it is waited for until it does, whoever gave up meanwhile: who does not
        answer in one caller's time would have all of them wait for as long."""
        if self.lost.is_set():
            raise LinkLost
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        waiting[key] = answer
        # One that does not do as it is told is started again: a socket that stays open keeps its volume.
        self._patience.begin(answer, asleep=asleep)
        sent, given_up = None, False
        try:
            sent = self._wire.post(order, place)
            if sent is not None:
                either: list[asyncio.Future[Any]] = [sent, answer]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if sent.done():
                    sent.result()
            return await asyncio.shield(answer)
        except OSError as error:
            self.lose(_said(error))
            raise LinkLost from None
        except asyncio.CancelledError:
            given_up = owed
            raise
        finally:
            if not given_up:
                waiting.pop(key, None)
                answer.cancel()
            if sent is not None:
                sent.cancel()


def _unwritten(number: int, error: Exception) -> None:
    """That socket goes on with what it has."""
    _log.error(
        "bug: a pod's socket could not be told what is new of its workload",
        extra={"socket": number, "error": type(error).__name__},
        exc_info=error,
    )


def _said(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _fail(waiting: Mapping[int, asyncio.Future[Any]]) -> None:
    for each in waiting.values():
        if not each.done():
            each.set_exception(LinkLost())
            # Whoever asked may be gone.
            each.exception()


def _answer(waiting: dict[int, asyncio.Future[_Answer]], key: int, answer: _Answer) -> None:
    """Nobody may have asked, or be waiting any more."""
    found = waiting.pop(key, None)
    if found is not None and not found.done():
        found.set_result(answer)
