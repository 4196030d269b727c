"""Fetches bundles while leading, each when it is due, and says in each object's status what became of it."""

import asyncio
import logging
import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from runtime.bounded import Bounded, Unanswered
from runtime.clock import Clock
from runtime.stopping import end
from signer.cluster.conditions import condition, with_times
from signer.cluster.kube import KubeApi, Object
from signer.errors import Conflict, NotFound, SignerError
from signer.federation.domains import Domain, Domains, about
from signer.federation.endpoint import Endpoint
from signer.federation.relation import Profile, Relation
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.federation import Order, accepted, interval, interval_after_failure, order

_log = logging.getLogger("podsvid.federation")
# Looks at the same time.
AT_ONCE = 8
# Part of an interval by which a look is early or late: partners are not all asked in the same second.
SPREAD = 0.1
# Seconds after which a status that was not taken, or a look that is due, is thought of at the latest.
WAKE_SECONDS = 5.0
# Seconds for a document, of which the worst takes a tenth of one.
READ_SECONDS = 10.0
# Seconds until a status that was not taken is written again, at first and at most.
FIRST_WAIT, MAX_WAIT = 10.0, 1800.0
# Of what is left out of a bundle, so many are said.
_SAID = 4
_FAILED = "failed"
_T = TypeVar("_T")


class Aside(Protocol):
    """Whoever does what takes long off the event loop, as runtime.bounded has it."""

    async def do(self, work: Callable[[], _T]) -> _T:
        """What `work` returns or raises. Raises Unanswered."""
        ...


@dataclass(slots=True)
class _Partner:
    """What this replica did for one relation while it leads. `due`: by the monotonic clock."""

    relation: Relation
    due: float
    error: str = ""
    fetched_at: datetime | None = None
    changed_at: datetime | None = None
    next_at: datetime | None = None
    older: bool = False
    # Whether what was fetched was stored, when it was looked last.
    stored: bool = False


@dataclass(frozen=True, slots=True)
class _Refused:
    """A status that the API server did not take: how often before, and until when it is not tried again."""

    times: int
    until: float


class Polling:
    """One event loop's. `own`: the own trust domain's bundle now. `told` hears of each look: an `Order` or `failed`."""

    def __init__(
        self,
        api: KubeApi,
        domains: Domains,
        endpoint: Endpoint,
        own: Callable[[], TrustBundle | None],
        clock: Clock,
        rng: random.Random,
        told: Callable[[str], None] = lambda result: None,
        aside: Aside | None = None,
    ) -> None:
        self._api = api
        self._domains = domains
        self._endpoint = endpoint
        self._own = own
        self._clock = clock
        self._rng = rng
        self._told = told
        self._partners: dict[str, _Partner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._aside = aside or Bounded(READ_SECONDS)
        # By uid: the statuses that were written, and those that are not taken now.
        self._written: dict[str, Object] = {}
        self._refused: dict[str, _Refused] = {}

    async def lead(self) -> None:
        """For ever; only while leading."""
        await self._domains.wait_synced()
        for each in (self._partners, self._written, self._refused):
            each.clear()
        try:
            while True:
                version = self._domains.changed.version
                self._begin_due()
                await self._write_statuses()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._until_next()):
                        await self._domains.changed.wait_beyond(version)
        finally:
            tasks, self._tasks = list(self._tasks.values()), {}
            await end(tasks)

    def _begin_due(self) -> None:
        followed = {each.relation.uid: each.relation for each in self._domains.followed}
        for gone in self._partners.keys() - followed.keys():
            self._forget(gone)
        now = self._clock.monotonic()
        for uid, relation in followed.items():
            known = self._partners.get(uid)
            if known is None or known.relation.generation != relation.generation:
                # New, or another one since: it is asked at once, and what is asked of the one before is no answer.
                self._forget(uid)
                known = self._partners[uid] = _Partner(relation, now, fetched_at=relation.fetched_at)
            stored = self._domains.is_stored(relation)
            if known.stored and not stored:
                # Somebody took it away.
                known.due = now
            known.stored = stored
            task = self._tasks.get(uid)
            if task is not None and task.done():
                task.result()
            if known.due <= now and (task is None or task.done()):
                self._tasks[uid] = asyncio.create_task(self._look(known))

    def _forget(self, uid: str) -> None:
        self._partners.pop(uid, None)
        task = self._tasks.pop(uid, None)
        if task is not None:
            task.cancel()

    def _until_next(self) -> float:
        now = self._clock.monotonic()
        idle = [each.due for uid, each in self._partners.items() if uid not in self._tasks or self._tasks[uid].done()]
        return min(WAKE_SECONDS, max(0.05, min(idle, default=now + WAKE_SECONDS) - now))

    async def _look(self, partner: _Partner) -> None:
        async with self._room:
            relation = partner.relation
            assert relation.trust_domain is not None
            name = relation.trust_domain.name
            # As it is when it is its turn.
            held = next((each.held for each in self._domains.followed if each.relation.uid == relation.uid), None)
            try:
                found, how = await self._fetched(relation, held)
            except (SignerError, SvidError) as error:
                self._failed(partner, held, error.reason, str(error))
                return
            except Exception as error:
                # What a partner publishes is its own affair, and so is what nobody had thought of.
                trace = "".join(traceback.format_exception(error))
                _log.error("a look at another trust domain failed", extra={"trust_domain": name, "traceback": trace})
                self._failed(partner, held, "INTERNAL", f"it cannot be read ({type(error).__name__}); see the log")
                return
            if how is Order.OLDER and not partner.older:
                _log.warning(
                    "another trust domain publishes a bundle that is older than the one held; ignored",
                    extra={"trust_domain": name, "url": relation.url, "sequence": found.sequence},
                )
            now = self._clock.now()
            if how in (Order.NEWER, Order.UNNUMBERED):
                partner.changed_at = now
                self._say_taken(relation, found)
            if how is not Order.OLDER:
                # An old document, again and again, is no news of the partner.
                partner.fetched_at = now
            partner.error, partner.older = "", how is Order.OLDER
            self._told(how.value)
            self._plan(partner, interval(found))

    def _failed(self, partner: _Partner, held: TrustBundle | None, reason: str, error: str) -> None:
        if partner.error != error:
            domain = partner.relation.trust_domain
            _log.warning(
                "the bundle of another trust domain was not fetched; the last good one stays",
                extra={"trust_domain": str(domain), "url": partner.relation.url, "reason": reason, "error": error},
            )
        partner.error = error
        self._told(_FAILED)
        self._plan(partner, interval_after_failure(held))

    async def _fetched(self, relation: Relation, held: TrustBundle | None) -> tuple[TrustBundle, Order]:
        """What is published now and how it stands to what is held; stored, where it is news."""
        assert relation.trust_domain is not None
        own = self._own()
        if own is None:
            raise NotReady("the own trust bundle is not there yet")
        document = await self._endpoint.fetch(relation, self._trusted(relation, held, own))
        left_out: list[str] = []
        read = partial(accepted, relation.trust_domain, document, own, left_out.append)
        try:
            found = await self._aside.do(read)
        except Unanswered:
            raise NotReady("what it publishes was not read in time; is this signer very busy?") from None
        how = order(held, found)
        if left_out and how in (Order.NEWER, Order.UNNUMBERED):
            _log.warning(
                "authorities of a trust bundle cannot be used and are left out",
                extra={
                    "trust_domain": relation.trust_domain.name,
                    "left_out": len(left_out),
                    "error": "; ".join(left_out[:_SAID]),
                },
            )
        if not self._domains.is_current(relation):
            raise NotReady("the object changed while it was asked")
        if how in (Order.NEWER, Order.UNNUMBERED) or (how is Order.SAME and not self._domains.is_stored(relation)):
            await self._domains.store(relation, found)
        return found, how

    def _trusted(self, relation: Relation, held: TrustBundle | None, own: TrustBundle) -> TrustBundle | None:
        """What the endpoint is known by: the latest bundle of its own trust domain, whosoever that is (FED-49, 50)."""
        if relation.profile is Profile.WEB or relation.endpoint_id is None:
            return None
        domain = relation.endpoint_id.trust_domain
        if domain == relation.trust_domain:
            return held
        return next((each for each in (own, *self._domains.bundles) if each.trust_domain == domain), None)

    def _plan(self, partner: _Partner, after: timedelta) -> None:
        seconds = after.total_seconds() * self._rng.uniform(1 - SPREAD, 1 + SPREAD)
        partner.due = self._clock.monotonic() + seconds
        partner.next_at = self._clock.now() + timedelta(seconds=seconds)

    def _say_taken(self, relation: Relation, found: TrustBundle) -> None:
        if not found.x509_authorities and not found.jwt_authorities:
            _log.error(
                "another trust domain publishes an empty bundle: none of its SVIDs is trusted any more",
                extra={"trust_domain": found.trust_domain.name, "url": relation.url, "sequence": found.sequence},
            )
            return
        _log.info(
            "the bundle of another trust domain changed",
            extra={
                "trust_domain": found.trust_domain.name,
                "url": relation.url,
                "sequence": found.sequence,
                "x509_authorities": len(found.x509_authorities),
                "jwt_keys": len(found.jwt_authorities),
            },
        )

    async def _write_statuses(self) -> None:
        problems = self._domains.problems()
        followed = {each.relation.uid: each for each in self._domains.followed}
        relations = self._domains.relations
        for kept in (self._written, self._refused):
            for gone in kept.keys() - {each.uid for each in relations}:
                kept.pop(gone, None)
        for relation in relations:
            partner = self._partners.get(relation.uid)
            domain = followed.get(relation.uid)
            status = _status(relation, problems.get(relation.uid, ""), domain, partner)
            if self._written.get(relation.uid) == status or self._waits(relation):
                continue
            try:
                await self._replace(relation, status)
            except (NotFound, Conflict):
                continue
            except SignerError as error:
                self._not_taken(relation, error)
                continue
            self._written[relation.uid] = status
            self._refused.pop(relation.uid, None)

    def _waits(self, relation: Relation) -> bool:
        refused = self._refused.get(relation.uid)
        return refused is not None and self._clock.monotonic() < refused.until

    def _not_taken(self, relation: Relation, error: SignerError) -> None:
        before = self._refused.get(relation.uid)
        times = before.times + 1 if before is not None else 0
        wait = min(FIRST_WAIT * 2 ** min(times, 20), MAX_WAIT)
        self._refused[relation.uid] = _Refused(times, self._clock.monotonic() + wait)
        _log.warning(
            "a federated trust domain's status is not written",
            extra={"trust_domain": relation.name, "again_in": wait, "reason": error.reason, "error": str(error)},
        )

    async def _replace(self, relation: Relation, status: Object) -> None:
        present = await self._api.get(relation.path)
        before = present.get("status") or {}
        # What another leader knew stays until there is something newer.
        kept = {key: before[key] for key in ("fetchedAt", "changedAt") if key in before and key not in status}
        merged = with_times(before, {**kept, **status}, self._clock)
        if merged != before:
            await self._api.replace(f"{relation.path}/status", {**present, "status": merged})


class NotReady(SignerError):
    """It cannot be looked yet."""

    reason = "FEDERATION_NOT_READY"


def _status(relation: Relation, problem: str, domain: Domain | None, partner: _Partner | None) -> Object:
    bundle = domain.bundle if domain is not None else None
    generation = relation.generation
    if problem:
        ready = condition("Ready", holds=False, reason="Unusable", message=problem, generation=generation)
    elif domain is not None and domain.withheld:
        reason, why = domain.withheld
        ready = condition("Ready", holds=False, reason=reason, message=why, generation=generation)
    elif bundle is None:
        why = (partner.error if partner is not None else "") or "it was not fetched yet"
        ready = condition("Ready", holds=False, reason="NoBundle", message=why, generation=generation)
    elif not bundle.x509_authorities and not bundle.jwt_authorities:
        why = "it is empty: none of its SVIDs is trusted"
        ready = condition("Ready", holds=False, reason="Empty", message=why, generation=generation)
    else:
        ready = condition("Ready", holds=True, reason="InForce", message="workloads have it", generation=generation)
    status: Object = {"observedGeneration": generation, "conditions": [ready]}
    if partner is not None and not problem:
        error = partner.error
        reason, message = ("Failed", error) if error else ("Fetched", "the last look succeeded")
        if not error and partner.older:
            reason, message = "Older", "what is published is older than what is held, and ignored"
        if error or partner.fetched_at is not None:
            fetched = condition("Fetched", holds=not error, reason=reason, message=message, generation=generation)
            status["conditions"].append(fetched)
        times = {"fetchedAt": partner.fetched_at, "changedAt": partner.changed_at, "nextPoll": partner.next_at}
        status |= {key: at.strftime("%Y-%m-%dT%H:%M:%SZ") for key, at in times.items() if at is not None}
    return status | (about(bundle) if bundle is not None else {})
