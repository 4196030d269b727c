"""Which replica rotates and publishes: a Lease, renewed while it lives, taken over when it ran out."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from runtime.clock import Clock
from runtime.stopping import end
from signer.cluster.kube import KubeApi, Object
from signer.errors import Conflict, NotFound, SignerError

_log = logging.getLogger("podsvid.leader")
# Parts of the lease's duration. A leader stops before its lease ends for the others: clocks differ in speed.
RENEW = 0.3
MARGIN = 0.2
# Seconds between looks whether this replica leads. What it writes is by compare and swap: a late look harms nothing.
LOOK_SECONDS = 1.0
# Seconds that a stop gives to giving the lease up.
RELEASE_SECONDS = 1.0


class Leader:
    """Takes part in the election.

    Time is measured on this replica's monotonic clock only: what another wrote counts as fresh from when it was seen to
    change, as clocks of two hosts need not agree. Whoever acts as leader still writes by compare and swap.

    One that is `unfit` gives the lease up once, and takes it only when nobody else did: where all are, it goes on.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        duration: timedelta,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._duration = duration.total_seconds()
        self._clock = clock
        self._rng = rng
        self._monotonic = clock.monotonic
        self._led_until = 0.0
        self._seen: tuple[str, float] = ("", 0.0)
        self._failing = False
        self.unfit: Callable[[], bool] = lambda: False
        self._gave_way = False
        self.holder = ""

    @property
    def leading(self) -> bool:
        """Whether this replica may act; false in time before another could have taken over."""
        return self._monotonic() < self._led_until

    async def run(self) -> None:
        """Stand for election for ever."""
        while True:
            was = self.leading
            try:
                await self.attempt()
                self._failing = False
            except SignerError as error:
                if not self._failing:
                    _log.warning("lease not renewed", extra={"reason": error.reason, "error": str(error)})
                self._failing = True
            if self.leading != was:
                _log.info("leading" if self.leading else "no longer leading", extra={"identity": self._identity})
            await asyncio.sleep(self._duration * RENEW * self._rng.uniform(0.8, 1.2))

    async def lead(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` whenever this replica leads, for ever; it is cancelled when it leads no more."""
        running: asyncio.Future[None] | None = None
        try:
            while True:
                if running is not None and running.done():
                    running.result()
                if self.leading:
                    running = running or asyncio.ensure_future(loop())
                elif running is not None:
                    await end([running])
                    running = None
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            if running is not None:
                await end([running])

    async def attempt(self) -> None:
        """Renew the lease, take it if it is free, or note who has it. Raises SignerError."""
        asked = self._monotonic()
        try:
            lease = await self._api.get(self._path)
        except NotFound:
            try:
                await self._api.create(self._collection, self._body({}, 0))
            except Conflict:
                self._led_until = 0.0
                return
            self._won(asked)
            return
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        version = str(lease["metadata"]["resourceVersion"])
        if version != self._seen[0]:
            # From now on, not from when it was asked for: it may have been renewed while the question was on its way.
            self._seen = (version, self._monotonic())
        self.holder = holder
        mine = holder == self._identity
        duration = float(spec.get("leaseDurationSeconds") or self._duration)
        unfit = self.unfit()
        if mine and unfit and not self._gave_way:
            self._gave_way, self._led_until = True, 0.0
            _log.warning("unfit to lead; another one may", extra={"identity": self._identity})
            with suppress(Conflict):
                await self._give_up(lease)
            return
        self._gave_way = self._gave_way and unfit
        if (holder or unfit) and not mine and asked - self._seen[1] < duration:
            self._led_until = 0.0
            return
        changes = int(spec.get("leaseTransitions") or 0) + (not mine)
        try:
            await self._api.replace(self._path, self._body(lease, changes))
        except Conflict:
            self._led_until = 0.0
            return
        self._won(asked)

    async def release(self) -> None:
        """Give the lease up, so that another need not wait for its end."""
        if not self.leading:
            return
        self._led_until = 0.0
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._api.get(self._path)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    await self._give_up(lease)
        except (SignerError, TimeoutError) as error:
            _log.info("lease not released; it ends by itself", extra={"error": str(error)})

    async def _give_up(self, lease: Object) -> None:
        body = self._body(lease, int((lease.get("spec") or {}).get("leaseTransitions") or 0))
        body["spec"]["holderIdentity"] = ""
        await self._api.replace(self._path, body)

    def _won(self, asked: float) -> None:
        # Counted from before the call: it may have taken long.
        self._led_until = asked + self._duration * (1.0 - MARGIN)
        self.holder = self._identity

    def _body(self, lease: Object, changes: int) -> Object:
        now = _micro(self._clock.now())
        old = lease.get("spec") or {}
        acquired = old.get("acquireTime") if old.get("holderIdentity") == self._identity else None
        metadata = dict(lease.get("metadata") or {"name": self._name, "namespace": self._namespace})
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": math.ceil(self._duration),
                "acquireTime": acquired or now,
                "renewTime": now,
                "leaseTransitions": changes,
            },
        }


def _micro(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
