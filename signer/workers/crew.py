"""The workers together: kept running, told what to listen with, and which of them a connection goes to."""

import asyncio
import itertools
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from runtime.feed import Feed
from runtime.stopping import end
from signer.front.server import Options
from signer.front.spread import Spread
from signer.front.tls import Made
from signer.metrics import Metrics
from signer.workers import messages
from signer.workers.calls import Methods
from signer.workers.worker import PATIENCE, STOPS, Settings, Worker

_log = logging.getLogger("podsvid.workers")
# Seconds until another is started: the double each time, up to the most, until one has served for so long.
AGAIN, AGAIN_MOST, SETTLED = 0.2, 30.0, 60.0
# Seconds in which one is to listen once it is told to; and for which all are waited for, as no change of trust is
# passed on meanwhile: the others follow, be they all.
TAKES, ALL = 20.0, 5.0
# Until one that could not is told again.
RETRY = 10.0
_LETTERS = "abcdefgh"


class Crew:
    """Implements Behind by `count` processes, which begin with the first server and end with `close`.

    `spread`: that of the door whose connections they get.
    """

    def __init__(
        self, count: int, methods: Methods, spread: Spread, memory: int, logs: tuple[str, str], metrics: Metrics
    ) -> None:
        self._count = count
        self._methods = methods
        self._spread = spread
        self._memory = memory
        self._logs = logs
        self._metrics = metrics
        self._numbers = itertools.count(1)
        self._newest: Feed[Generation] = Feed()
        self._keeping: list[asyncio.Task[None]] = []
        # Of each worker that runs: the sockets of its servers, by their numbers.
        self._running: dict[Worker, dict[int, Path]] = {}
        # By the number of a server that ends: of whom.
        self._ending: dict[int, list[Worker]] = {}
        self._closing = False
        self._changed = asyncio.Event()
        self._lacking: list[str] = []
        spread.paths = self.paths
        spread.gone = self._gone
        metrics.watch_workers(lambda: float(self.serving))

    @property
    def serving(self) -> int:
        """How many there are that serve."""
        return sum(bool(paths) and not each.over for each, paths in self._running.items())

    @property
    def serves(self) -> bool:
        """Whether somebody would be answered."""
        return self.serving > 0

    def server(self, options: Options) -> "Generation":
        """See Behind."""
        return Generation(self, next(self._numbers), options)

    def paths(self, inside: Path) -> Sequence[Path]:
        """The sockets of those who serve what was to be at `inside`; where nobody does, of who has what was before."""
        there = [list(paths.values()) for each, paths in self._running.items() if paths and not each.over]
        found = [path for paths in there for path in paths if path.parent.with_name(path.name) == inside]
        return found or [paths[-1] for paths in there]

    def closing(self) -> None:
        """See Behind."""
        self._closing = True

    async def close(self) -> None:
        """End them."""
        self._closing = True
        await end(self._keeping)
        self._keeping.clear()

    async def show(self, generation: "Generation") -> None:
        """Have all listen with that one, from now on: those who cannot yet do once they can."""
        if self._closing:
            return
        self._newest.publish(generation)
        if not self._keeping:
            loop, folder = asyncio.get_running_loop(), generation.inside.parent
            for letter in _LETTERS[: self._count]:
                # Of its own: in another's it would bind what that one is to listen at.
                settings = Settings(folder / letter, self._memory, *self._logs)
                self._keeping.append(loop.create_task(self._keep(letter, settings), name=f"worker {letter}"))
        with suppress(TimeoutError):
            async with asyncio.timeout(ALL):
                while sum(generation.number in paths for paths in self._running.values()) < self._count:
                    self._changed.clear()
                    await self._changed.wait()

    def back(self, generation: "Generation | None") -> None:
        """That one was in use before, and is again."""
        if generation is not None:
            self._newest.publish(generation)

    @property
    def newest(self) -> "Generation | None":
        """The one in use."""
        return self._newest.current

    async def stop(self, number: int, grace: float | None) -> None:
        """End that server of all of them. Once more with another grace: whichever is over first ends it."""
        told = self._ending.setdefault(number, [])
        told += [each for each, paths in self._running.items() if paths.pop(number, None) is not None]
        # Where a server retires its worker serves others' agents, and may have to wait for a processor.
        beyond = STOPS if self._closing else PATIENCE
        await asyncio.gather(*(each.stop(number, grace, beyond) for each in told))
        self._ending.pop(number, None)

    async def _keep(self, letter: str, settings: Settings) -> None:
        """One of them, for ever."""
        loop, pause = asyncio.get_running_loop(), AGAIN
        while not self._closing:
            worker = Worker(self._methods, partial(self._is_at, letter), self._lacks)
            since = loop.time()
            try:
                # Whoever was in the one before it may have left sockets where this one is to listen.
                await asyncio.to_thread(shutil.rmtree, settings.folder, ignore_errors=True)
                settings.folder.mkdir(mode=0o700)
                why = await self._once(worker, letter, settings)
            # RuntimeError: the host has no thread left.
            except (OSError, RuntimeError) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if self._closing:
                return
            if loop.time() - since >= SETTLED:
                pause = AGAIN
            self._metrics.worker_ended()
            _log.error("a worker ended; another is started", extra={"worker": letter, "pid": worker.pid, "error": why})
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN_MOST)

    async def _once(self, worker: Worker, letter: str, settings: Settings) -> str:
        telling: list[asyncio.Task[None]] = []

        def began() -> None:
            self._running[worker] = {}
            telling.append(asyncio.get_running_loop().create_task(self._tell(worker, letter)))

        try:
            return await worker.run(settings, began)
        finally:
            self._running.pop(worker, None)
            self._changed.set()
            await end(telling)

    async def _tell(self, worker: Worker, letter: str) -> None:
        """Have it listen with the newest certificate, and with each newer one."""
        version = 0
        while True:
            version = await self._newest.wait_beyond(version)
            generation = self._newest.current
            assert generation is not None
            if generation.over or generation.number in self._running[worker]:
                continue
            path = generation.inside.parent / letter / generation.inside.name
            try:
                path.unlink(missing_ok=True)
                async with asyncio.timeout(TAKES):
                    await worker.serve(generation.order(path, self._methods))
            except TimeoutError:
                worker.lose("it does not listen in time")
                return
            except OSError as error:
                if worker.over or not self._running[worker]:
                    worker.lose(str(error))
                    return
                # Its connections go on by the certificate before.
                _log.error(
                    "a worker does not listen with the newest certificate; trying again",
                    extra={"worker": letter, "pid": worker.pid, "error": str(error)},
                )
                version = 0
                await asyncio.sleep(RETRY)
                continue
            if generation.over:
                await worker.stop(generation.number, None)
                continue
            self._running[worker][generation.number] = path
            self._changed.set()

    def _is_at(self, letter: str, peer: str) -> bool:
        """Whether that connection was handed to it."""
        found = self._spread.of(peer)
        return found is not None and found.parent.name == letter

    def _gone(self, peer: str) -> None:
        for each in self._running:
            each.left(peer)

    def _lacks(self, names: Sequence[str]) -> None:
        new = [each for each in names if each not in self._lacking]
        if new:
            self._lacking += new
            _log.warning(
                "the host does not let the signer's workers give up what they should: whoever takes one over may read "
                "what the signer may",
                extra={"lacking": new},
            )


class Generation:
    """One server of each worker, with one certificate: as `Server` of the front has it."""

    def __init__(self, crew: Crew, number: int, options: Options) -> None:
        self._crew = crew
        self._options = options
        self._made: Made | None = None
        self.number = number
        self.inside = Path()
        # Nobody is to begin with it any more.
        self.over = False

    async def start(self, inside: Path, made: Made) -> None:
        """See Server: it goes on where no worker listens in time, as they follow by themselves."""
        before = self._crew.newest
        self.inside, self._made = inside, made
        try:
            await self._crew.show(self)
        except BaseException:
            self._crew.back(before)
            raise

    async def stop(self, grace: float | None) -> None:
        """End all of them."""
        self.over = True
        await self._crew.stop(self.number, grace)

    def order(self, path: Path, methods: Methods) -> messages.Serve:
        """How a worker is told."""
        assert self._made is not None
        own = self._made.own
        return messages.Serve(self.number, str(path), self._made.key, own.chain, list(methods), list(self._options))
