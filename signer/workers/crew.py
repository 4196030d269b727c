"""The workers together: kept running, told what to listen with, and which of them a connection goes to."""

import asyncio
import itertools
import logging
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
from signer.workers.worker import Settings, Worker

_log = logging.getLogger("podsvid.workers")
# Seconds until another is started: the double each time, up to the most, until one has served for so long.
AGAIN, AGAIN_MOST, SETTLED = 0.2, 30.0, 60.0
# Seconds in which one is to listen once it is told to; and for which all are waited for, as no change of trust is
# passed on meanwhile: the others follow.
TAKES, ALL = 20.0, 5.0
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
        self._changed = asyncio.Event()
        self._lacking: list[str] = []
        spread.paths = self.paths
        metrics.watch_workers(lambda: float(self.serving))

    @property
    def serving(self) -> int:
        """How many there are that serve."""
        return sum(bool(each) for each in self._running.values())

    @property
    def serves(self) -> bool:
        """Whether somebody would be answered."""
        return self.serving > 0

    def server(self, options: Options) -> "Generation":
        """See Behind."""
        return Generation(self, next(self._numbers), options)

    def paths(self, inside: Path) -> Sequence[Path]:
        """The sockets of those who serve what was to be at `inside`."""
        return [
            path
            for each in self._running.values()
            for path in each.values()
            if path.with_name(path.name[:-1]) == inside
        ]

    async def close(self) -> None:
        """End them."""
        await end(self._keeping)
        self._keeping.clear()

    async def show(self, generation: "Generation") -> None:
        """Have all listen with that one, from now on. Raises OSError where none does."""
        self._newest.publish(generation)
        if not self._keeping:
            loop, folder = asyncio.get_running_loop(), generation.inside.parent
            settings = Settings(folder, self._memory, *self._logs)
            for letter in _LETTERS[: self._count]:
                self._keeping.append(loop.create_task(self._keep(letter, settings), name=f"worker {letter}"))
        await self._until(generation, self._count, ALL)
        await self._until(generation, 1, TAKES - ALL)
        if not self.paths(generation.inside):
            raise OSError(None, "no worker process serves; the log says why")

    async def _until(self, generation: "Generation", count: int, seconds: float) -> None:
        """So many listen with it, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self.paths(generation.inside)) < count:
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
        """End that server of all of them."""
        those = [each for each, paths in self._running.items() if paths.pop(number, None) is not None]
        await asyncio.gather(*(each.stop(number, grace) for each in those))

    async def _keep(self, letter: str, settings: Settings) -> None:
        """One of them, for ever."""
        loop, pause = asyncio.get_running_loop(), AGAIN
        while True:
            worker = Worker(self._methods, partial(self._is_at, letter), self._lacks)
            since = loop.time()
            try:
                why = await self._once(worker, letter, settings)
            except OSError as error:
                why = error.strerror or type(error).__name__
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
            if generation.number in self._running[worker]:
                continue
            path = generation.inside.with_name(generation.inside.name + letter)
            # Of the one before it, which may have ended without a word.
            path.unlink(missing_ok=True)
            try:
                async with asyncio.timeout(TAKES):
                    await worker.serve(generation.order(path, self._methods))
            except TimeoutError:
                worker.lose("it does not listen in time")
                return
            except OSError as error:
                worker.lose(error.strerror or "it cannot listen")
                return
            self._running[worker][generation.number] = path
            self._changed.set()

    def _is_at(self, letter: str, peer: str) -> bool:
        """Whether that connection was handed to it."""
        found = self._spread.of(peer)
        return found is not None and found.name.endswith(letter)

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
        self._before: Generation | None = None

    async def start(self, inside: Path, made: Made) -> None:
        """See Server. Raises OSError."""
        self.inside, self._made, self._before = inside, made, self._crew.newest
        await self._crew.show(self)

    async def stop(self, grace: float | None) -> None:
        """End all of them; one that is the newest gives way to the one before it."""
        if self._crew.newest is self:
            self._crew.back(self._before)
        self._before = None
        await self._crew.stop(self.number, grace)

    def order(self, path: Path, methods: Methods) -> messages.Serve:
        """How a worker is told."""
        assert self._made is not None
        own = self._made.own
        return messages.Serve(self.number, str(path), self._made.key, own.chain, list(methods), list(self._options))
