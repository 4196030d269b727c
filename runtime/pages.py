"""The pages of probes and of Prometheus, each with the limits of its listener.

They are served from threads of their own: a stuck event loop shows as unhealthy, and trouble with scrapers is none of
the probes'.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from runtime import http
from runtime.http import Answer, Limits, Page
from runtime.listening import shown

_log = logging.getLogger("podsvid.http")
# Seconds; kubelet gives GetInfo as long.
CHECK_DEADLINE = 1.0
Check = Callable[[], Awaitable[str | None]]

# Kubelet, and people. No rate: one that a crowd used up would be a probe that fails.
HEALTH_LIMITS = Limits(
    connections=32, by_address=16, head=4096, deadline=3.0, leave=0.5, received=8 * 1024, sent=8 * 1024
)
# A few scrapers. A page takes milliseconds of the process's one interpreter: what more of them cost is bounded.
METRICS_LIMITS = Limits(
    connections=16,
    by_address=8,
    head=4096,
    deadline=5.0,
    leave=0.5,
    received=8 * 1024,
    sent=64 * 1024,
    rate=20.0,
    burst=40.0,
)
# Bytes that a page is taken to have in the budget; a test holds that it fits when every reason was counted once.
PAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Checks:
    """What probes ask, on `loop`. Checks answer None or what is wrong.

    `notes` is what a person should know although nothing is wrong; /readyz shows it. `fresh` brings numbers up to date
    before they are scraped; a loop that does not within CHECK_DEADLINE leaves those of before.
    """

    loop: asyncio.AbstractEventLoop
    healthy: Check
    ready: Check
    notes: Callable[[], str] = str
    fresh: Callable[[], Awaitable[None]] | None = None

    def pages(self) -> Mapping[str, Page]:
        """/healthz and /readyz."""

        healthy, ready = _Asked(self.loop, self.healthy), _Asked(self.loop, self.ready)

        async def health(accept: str) -> Answer:
            return _answer(await healthy.answer(), "")

        async def readiness(accept: str) -> Answer:
            return _answer(await ready.answer(), self.notes())

        return {"/healthz": health, "/readyz": readiness}


def metrics(registry: CollectorRegistry, fresh: "_Asked | None" = None) -> Mapping[str, Page]:
    """/metrics; needs no event loop but its own: Prometheus sees a stuck process as well, with the numbers of before.

    `fresh` is asked first.
    """

    async def page(accept: str) -> Answer:
        if fresh is not None:
            await fresh.answer()
        encode, content_type = choose_encoder(accept)
        return Answer(200, encode(registry), content_type)

    return {"/metrics": page}


def _answer(wrong: str | None, notes: str) -> Answer:
    text = "\n".join(filter(None, [wrong or "ok", notes]))
    return Answer(503 if wrong else 200, f"{text}\n".encode())


class _Asked:
    """One check, asked once at a time however many peers want to know. Belongs to the loop of one listener."""

    def __init__(self, loop: asyncio.AbstractEventLoop, check: Check) -> None:
        self._loop = loop
        self._check = check
        self._asking: asyncio.Task[str | None] | None = None

    async def answer(self) -> str | None:
        """None, or what is wrong."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        return await self._asking

    async def _ask(self) -> str | None:
        asked: Future[str | None] = Future()
        try:
            self._loop.call_soon_threadsafe(self._begin, asked)
        except RuntimeError:
            return "stopping"
        try:
            return await asyncio.wait_for(asyncio.wrap_future(asked), CHECK_DEADLINE)
        except TimeoutError:
            return "the event loop does not answer"

    def _begin(self, asked: "Future[str | None]") -> None:
        # On the loop that is asked. Only here there is anything to run: a loop that ends may never come to it, and who
        # asks may not wait any more.
        if asked.done():
            return
        running = self._loop.create_task(self._run(asked))

        def end(_: "Future[str | None]") -> None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(running.cancel)

        asked.add_done_callback(end)

    async def _run(self, asked: "Future[str | None]") -> None:
        with suppress(InvalidStateError):
            try:
                asked.set_result(await self._check())
            except asyncio.CancelledError:
                asked.set_result("stopping")
                raise
            except Exception as error:
                asked.set_exception(error)


@contextmanager
def serving(
    health: tuple[str, int] | None,
    metrics_at: tuple[str, int] | None,
    checks: Checks,
    registry: CollectorRegistry,
    refused: Callable[[str, str], None],
) -> Iterator[Mapping[str, tuple[str, int]]]:
    """Serve the probes at `health`, and them and the metrics at `metrics_at`, while inside; None is nowhere.

    Yields the bound addresses by listener.

    `refused` is told listener (health, metrics) and why. Raises OSError when an address cannot be bound.
    """
    found = {}
    fresh = None if checks.fresh is None else _Asked(checks.loop, checks.fresh)
    with ExitStack() as stack:
        for name, address, pages, limits in (
            ("health", health, checks.pages(), HEALTH_LIMITS),
            ("metrics", metrics_at, {**checks.pages(), **metrics(registry, fresh)}, METRICS_LIMITS),
        ):
            if address is None:
                continue

            def tell(why: str, name: str = name) -> None:
                refused(name, why)

            found[name] = stack.enter_context(http.serving(address, pages, limits, tell, name))
            _log.info("http serving", extra={"listener": name, "address": shown(*found[name])})
        yield found
