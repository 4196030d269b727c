"""The public listeners of a replica: what each shows, by the state that this replica has and the settings."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from runtime import listening
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.listening import shown as address_of
from runtime.stopping import side_by_side
from signer.authority.state import AuthorityState
from signer.keystore.keys import Keys
from signer.metrics import Metrics
from signer.public.limits import KEPT
from signer.public.pairs import FilePair, OwnPair, Source
from signer.public.process import PublicProcess
from signer.public.shown import Listener, Page
from signer.publishing.documents import Documents, Publication

_log = logging.getLogger("podsvid.public")
BUNDLE, OIDC = "bundle", "oidc"
# Seconds between looks at certificate files, and at what the own SVID is due by.
LOOK_SECONDS = 5.0
BUNDLE_PATH = "/"


@dataclass(frozen=True, slots=True)
class Listening:
    """Where one listens, and by which files it proves itself; None: by the signer's own SVID."""

    name: str
    address: tuple[str, int]
    files: tuple[Path, Path] | None


@dataclass(frozen=True, slots=True)
class PublicSettings:
    """What is listened at. `max_age`: seconds for which caches may keep a document."""

    listening: tuple[Listening, ...]
    publication: Publication
    max_age: int


class PublicListeners:
    """All of a replica's. Nothing of them concerns readiness, or agents."""

    def __init__(self, settings: PublicSettings, keys: Keys, clock: Clock, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._sources: dict[str, Source] = {
            each.name: OwnPair(each.name, clock, keys)
            if each.files is None
            else FilePair(each.name, *each.files, clock)
            for each in settings.listening
        }
        self._process: PublicProcess | None = None
        for each in settings.listening:
            self._watch(each.name)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """With their addresses bound, which says at once whether they can be. Raises OSError."""
        with ExitStack() as stack:
            sockets = {}
            for each in self._settings.listening:
                sockets[each.name] = listening.bound(each.address, KEPT)
                for one in sockets[each.name]:
                    stack.enter_context(one)
                _log.info("public listener", extra={"listener": each.name, "address": address_of(*each.address)})
            self._process = PublicProcess(sockets, self._metrics.public_counted)
            yield

    async def run(self, states: "Feed[AuthorityState]", known: Callable[[], AuthorityState | None]) -> None:
        """Serve, for ever; inside `bound`. `known`: the state while it may be shown: one that was not seen for long may
        have what was revoked since."""
        process = self._process
        assert process is not None
        if not self._settings.listening:
            await asyncio.Event().wait()
        await side_by_side(process.run(), self._follow(states, known, process))

    async def _follow(
        self, states: "Feed[AuthorityState]", known: Callable[[], AuthorityState | None], process: PublicProcess
    ) -> None:
        version = 0
        while True:
            for source in self._sources.values():
                await source.look(states.current)
            process.show(self.showing(known()))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    version = await states.wait_beyond(version)

    def showing(self, state: AuthorityState | None) -> dict[str, Listener]:
        """What is shown while that is the state; None: before it was read, or when it was read too long ago."""
        found = None if state is None else Documents.of(state.bundle, self._settings.publication)
        return {name: Listener(source.pair, self._pages(name, found)) for name, source in self._sources.items()}

    def _pages(self, name: str, found: Documents | None) -> dict[str, Page | None]:
        if name == BUNDLE:
            return {BUNDLE_PATH: self._page(None if found is None else found.bundle)}
        issuer = self._settings.publication.issuer
        assert issuer is not None
        return {
            issuer.configuration_path: self._page(None if found is None else found.configuration),
            issuer.keys_path: self._page(None if found is None else found.keys),
        }

    def _page(self, body: bytes | None) -> Page | None:
        return None if body is None else Page(body, self._settings.max_age)

    def _watch(self, name: str) -> None:
        def trouble() -> float:
            source, process = self._sources[name], self._process
            return float(bool(source.trouble) or source.pair is None or process is None or not process.serving)

        def ends() -> float:
            found = self._sources[name].ends
            return found.timestamp() if found else 0.0

        self._metrics.watch_public(name, trouble, ends)
