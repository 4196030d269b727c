"""A copy of a collection, kept by list and watch: what the signer knows without asking."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from runtime.clock import Clock
from runtime.feed import Feed
from runtime.giving_way import give_way
from signer.cluster.decoding import CHANGES, Kept
from signer.cluster.kube import KubeApi
from signer.cluster.objects import Item
from signer.cluster.paging import Paging
from signer.errors import Forbidden, Gone, NotFound, SignerError

_log = logging.getLogger("podsvid.mirror")
Value = TypeVar("Value")
FIRST_RETRY, MAX_RETRY = 0.5, 30.0
# Objects after which others get their turn on the event loop.
SLICE = 64
# Watches in a row that began too late; more are no accident, and a list that is too old before its end never is.
MAX_GAPS = 3
# Seconds after which objects of a kind that the cluster knows no more are gone: an API server that starts knows its
# custom ones a little later.
UNKNOWN_SECONDS = 60.0
# Seconds; the API server ends a watch by itself then, so that a dead connection is noticed.
WATCH_SECONDS = "290"
# Seconds without a word of the API server, which ends each watch before: silent for longer, a connection is dead.
FRESH_SECONDS = 330.0


class Mirror(Generic[Kept, Value]):
    """The objects of the collection at `path`, each as what `read` makes of it (None leaves it out).

    `read` must not raise. `observe` hears of each change as it is made, what was there and what is there now, and must
    be quick. `optional`: the cluster may not know such objects, and then has none. Belongs to one event loop, and gives
    way to others in long lists.
    """

    def __init__(
        self,
        api: KubeApi,
        path: str,
        kind: type[Kept],
        read: Callable[[Kept], Value | None],
        clock: Clock,
        query: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
        observe: Callable[[Value | None, Value | None], None] | None = None,
        *,
        optional: bool = False,
    ) -> None:
        self._api = api
        self._path = path
        self._kind = kind
        self._read = read
        self._clock = clock
        self._query = dict(query or {})
        self._rng = rng or random.SystemRandom()
        self._observe = observe
        self._optional = optional
        self._paging = Paging()
        self._values: dict[str, Value] = {}
        self._first = asyncio.Event()
        self._failures = 0
        # Of what a list that is not complete has not come to yet nothing new is known.
        self._listing = False
        # Since a watch brought anything: lists alone, of which none can be followed, are asked for ever more rarely.
        self._tries = 0
        self.changed: Feed[None] = Feed()
        # When the API server last said anything about this collection: for people, and by the monotonic clock.
        self.last_contact: datetime | None = None
        self.heard_at: float | None = None
        # Since when, by the monotonic clock, it can be neither listed nor watched; None while it is followed.
        self.lost_since: float | None = None

    @property
    def synced(self) -> bool:
        """Whether there was a complete list once; what came after it may be late."""
        return self._first.is_set()

    @property
    def fresh(self) -> bool:
        """Whether it is complete, followed now, and not silent for longer than a watch that hangs can be."""
        if not self.synced or self._listing or self.lost_since is not None or self.heard_at is None:
            return False
        return self._clock.monotonic() - self.heard_at <= FRESH_SECONDS

    def outdated(self, limit: timedelta) -> bool:
        """Whether it could be followed no more for longer than that; a silent watch is ended, and lost, before."""
        if self.lost_since is None:
            return False
        return self._clock.monotonic() - self.lost_since > limit.total_seconds()

    def recent(self, limit: timedelta) -> bool:
        """Whether it is fresh, or was so long ago at most: it is listed anew, or was lost just now."""
        if self.fresh:
            return True
        if not self.synced or self.heard_at is None or self.outdated(limit):
            return False
        return self._clock.monotonic() - self.heard_at <= limit.total_seconds()

    @property
    def values(self) -> Mapping[str, Value]:
        """By uid. Before there was a complete list: those that were read of it."""
        return self._values

    def find(self, uid: str) -> Value | None:
        """The object of that uid."""
        return self._values.get(uid)

    def swap(self, uid: str, old: Value, new: Value | None) -> None:
        """Keep `new`, or nothing, of the object of that uid where `old` is kept still; `observe` hears of it."""
        if self._values.get(uid) is old:
            self._put(uid, new)

    async def wait_synced(self) -> None:
        """Wait for the first complete list."""
        await self._first.wait()

    async def run(self) -> None:
        """List and watch for ever."""
        gaps = 0
        while True:
            listed = False
            try:
                version = await self._list()
                listed = True
                while True:
                    version = await self._watch(version)
                    # Ended by the API server in its time: it had nothing to say.
                    self._heard()
                    self._failures = self._tries = gaps = 0
            except SignerError as error:
                if isinstance(error, Gone) and listed and gaps < MAX_GAPS:
                    gaps += 1
                    continue
                if self._optional and isinstance(error, NotFound):
                    self._unknown()
                self._report(error)
                await asyncio.sleep(self._delay())

    def _unknown(self) -> None:
        """The cluster knows no such objects; where it did, it may only be about to know them again."""
        different = not self.synced
        if self.lost_since is not None and self._clock.monotonic() - self.lost_since > UNKNOWN_SECONDS:
            gone = [self._put(uid, None) for uid in list(self._values)]
            different |= bool(gone)
        if different:
            self._first.set()
            self.changed.publish(None)

    async def _list(self) -> str:
        # Each part is taken over as it comes: two whole copies would be twice the memory.
        found: set[str] = set()
        different = False
        version = ""
        self._listing = True
        async for page in self._paging.pages(self._api, self._path, self._kind, self._query):
            self._heard()
            different |= await self._take(page.items, found)
            version = page.version
        for number, uid in enumerate([each for each in self._values if each not in found], 1):
            different |= self._put(uid, None)
            if number % SLICE == 0:
                await self._give_way()
        self._failures = 0
        self._listing = False
        self.lost_since = None
        if different or not self.synced:
            self._first.set()
            self.changed.publish(None)
        return version

    async def _take(self, items: Iterable[Kept], found: set[str]) -> bool:
        """A part of a list, whose uids are added to `found`; whether it has news. Nothing of it is held afterwards."""
        different = False
        for number, each in enumerate(items, 1):
            value = self._read(each)
            if value is not None:
                found.add(_uid(each))
                different |= self._put(_uid(each), value)
            if number % SLICE == 0:
                await self._give_way()
        return different

    async def _give_way(self) -> None:
        # Before the first list is complete nobody is served who would wait for it, and all wait for the list.
        await (give_way() if self.synced else asyncio.sleep(0))

    async def _watch(self, version: str) -> str:
        query = {
            **self._query,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_SECONDS,
        }
        number = 0
        async for event in self._api.watch(self._path, self._kind, query):
            self._heard()
            self._tries = 0
            version = event.version or version
            if event.item is not None and event.kind in CHANGES:
                value = None if event.kind == "DELETED" else self._read(event.item)
                if self._put(_uid(event.item), value):
                    self.changed.publish(None)
            number += 1
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return version

    def _put(self, uid: str, value: Value | None) -> bool:
        """What is there now under that uid; whether that is news."""
        old = self._values.get(uid)
        if value == old:
            return False
        if value is None:
            del self._values[uid]
        else:
            self._values[uid] = value
        if self._observe is not None:
            self._observe(old, value)
        return True

    def _heard(self) -> None:
        self.last_contact, self.heard_at = self._clock.now(), self._clock.monotonic()

    def _report(self, error: SignerError) -> None:
        self._failures += 1
        self._tries += 1
        if self.lost_since is None:
            self.lost_since = self._clock.monotonic()
        if self._failures == 1 or isinstance(error, Forbidden):
            _log.warning(
                "watch interrupted; trying again",
                extra={"path": self._path, "reason": error.reason, "error": str(error)},
            )

    def _delay(self) -> float:
        most: float = min(MAX_RETRY, FIRST_RETRY * 2 ** min(self._tries - 1, 10))
        return most * self._rng.uniform(0.5, 1.0)


def _uid(each: Item) -> str:
    return each.metadata.uid or ""
