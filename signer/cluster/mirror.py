"""A copy of a collection, kept by list and watch: what the signer knows without asking."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from runtime.clock import Clock
from runtime.feed import Feed
from signer.cluster.kube import KubeApi, Object
from signer.errors import ApiUnavailable, Forbidden, Gone, SignerError

_log = logging.getLogger("podsvid.mirror")
Value = TypeVar("Value")
FIRST_RETRY, MAX_RETRY = 0.5, 30.0
# A list comes in parts of this many objects: the API server holds each part in memory.
PAGE = "500"
# Seconds; the API server ends a watch by itself then, so that a dead connection is noticed.
WATCH_SECONDS = "290"
# Seconds without a word of the API server, which ends each watch before: silent for longer, a connection is dead.
FRESH_SECONDS = 330.0


class Mirror(Generic[Value]):
    """The objects of the collection at `path`, each as what `read` makes of it (None leaves it out).

    `read` must not raise: it gets what the API server sends. Belongs to one event loop.
    """

    def __init__(
        self,
        api: KubeApi,
        path: str,
        read: Callable[[Object], Value | None],
        clock: Clock,
        query: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._path = path
        self._read = read
        self._clock = clock
        self._query = dict(query or {})
        self._rng = rng or random.SystemRandom()
        self._values: dict[str, Value] = {}
        self._first = asyncio.Event()
        self._failures = 0
        self._monotonic = monotonic
        self._heard_at = 0.0
        self.changed: Feed[None] = Feed()
        # When the API server last said anything about this collection.
        self.last_contact: datetime | None = None
        # Since when it can be neither listed nor watched; None while it is followed.
        self.lost_since: datetime | None = None

    @property
    def synced(self) -> bool:
        """Whether there was a complete list once; what came after it may be late."""
        return self._first.is_set()

    @property
    def fresh(self) -> bool:
        """Whether it is complete, followed now, and not silent for longer than a watch that hangs can be."""
        followed = self.synced and self.lost_since is None
        return followed and self._monotonic() - self._heard_at <= FRESH_SECONDS

    def outdated(self, limit: timedelta) -> bool:
        """Whether it could be followed no more for longer than that; a silent watch is ended, and lost, before."""
        return self.lost_since is not None and self._clock.now() - self.lost_since > limit

    @property
    def values(self) -> Mapping[str, Value]:
        """By uid."""
        return self._values

    def find(self, uid: str) -> Value | None:
        """The object of that uid."""
        return self._values.get(uid)

    async def wait_synced(self) -> None:
        """Wait for the first complete list."""
        await self._first.wait()

    async def run(self) -> None:
        """List and watch for ever."""
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
                    # Ended by the API server in its time: it had nothing to say.
                    self._heard()
                    self._failures = 0
            except Gone:
                continue
            except SignerError as error:
                self._report(error)
                await asyncio.sleep(self._delay())

    async def _list(self) -> str:
        found: dict[str, Value] = {}
        token = ""
        while True:
            query = {**self._query, "limit": PAGE, **({"continue": token} if token else {})}
            answer = await self._api.list(self._path, query)
            self._heard()
            for each in answer.get("items") or []:
                value = self._read(each)
                if value is not None:
                    found[_uid(each)] = value
            metadata = answer.get("metadata") or {}
            token = metadata.get("continue") or ""
            if not token:
                break
        different = found != self._values
        self._values = found
        self._failures = 0
        self.lost_since = None
        if different or not self.synced:
            self._first.set()
            self.changed.publish(None)
        return str(metadata.get("resourceVersion", ""))

    async def _watch(self, version: str) -> str:
        query = {
            **self._query,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_SECONDS,
        }
        async for event in self._api.watch(self._path, query):
            self._heard()
            kind, each = event.get("type"), event.get("object") or {}
            if kind == "ERROR":
                if each.get("code") == 410:
                    raise Gone("the watch is too old")
                raise ApiUnavailable(f"the watch of {self._path} failed: {str(each.get('message', ''))[:200]}")
            version = str((each.get("metadata") or {}).get("resourceVersion", version))
            if kind in ("ADDED", "MODIFIED", "DELETED"):
                self._apply(kind, each)
        return version

    def _apply(self, kind: str, each: Object) -> None:
        uid = _uid(each)
        value = None if kind == "DELETED" else self._read(each)
        if value == self._values.get(uid):
            return
        if value is None:
            with suppress(KeyError):
                del self._values[uid]
        else:
            self._values[uid] = value
        self.changed.publish(None)

    def _heard(self) -> None:
        self._heard_at = self._monotonic()
        self.last_contact = self._clock.now()

    def _report(self, error: SignerError) -> None:
        self._failures += 1
        self.lost_since = self.lost_since or self._clock.now()
        if self._failures == 1 or isinstance(error, Forbidden):
            _log.warning(
                "watch interrupted; trying again",
                extra={"path": self._path, "reason": error.reason, "error": str(error)},
            )

    def _delay(self) -> float:
        most: float = min(MAX_RETRY, FIRST_RETRY * 2 ** min(self._failures - 1, 10))
        return most * self._rng.uniform(0.5, 1.0)


def _uid(each: Object) -> str:
    return str((each.get("metadata") or {}).get("uid", ""))
