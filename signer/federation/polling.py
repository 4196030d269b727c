"""Fetches bundles while leading, each when it is due, and says in each object's status what became of it."""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runtime.clock import Clock
from runtime.stopping import end
from signer.cluster.conditions import condition, with_times
from signer.cluster.kube import KubeApi, Object
from signer.errors import Conflict, NotFound, SignerError
from signer.federation.domains import Domain, Domains, about
from signer.federation.endpoint import Endpoint
from signer.federation.relation import Profile, Relation
from svid.bundle import TrustBundle
from svid.errors import InvalidBundle
from svid.federated import Order, accepted, interval, interval_after_failure, order

_log = logging.getLogger("podsvid.federated")
# Looks at the same time.
AT_ONCE = 8
# Part of an interval by which a look is early or late: partners are not all asked in the same second.
SPREAD = 0.1
# Seconds after which a status that was not taken, or a look that is due, is thought of at the latest.
WAKE_SECONDS = 5.0
# Of what is left out of a bundle, so many are said.
_SAID = 4
_FAILED = "failed"


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
    written: Object = field(default_factory=dict)


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

    async def lead(self) -> None:
        """For ever; only while leading."""
        await self._domains.wait_synced()
        self._partners.clear()
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
        followed = {each.relation.uid: each for each in self._domains.followed}
        for gone in self._partners.keys() - followed.keys():
            del self._partners[gone]
        for uid, domain in followed.items():
            known = self._partners.get(uid)
            if known is None or known.relation.generation != domain.relation.generation:
                # New, or another one since: it is asked at once.
                now = self._clock.monotonic()
                self._partners[uid] = _Partner(domain.relation, now, fetched_at=domain.relation.fetched_at)
            task = self._tasks.get(uid)
            if self._partners[uid].due <= self._clock.monotonic() and (task is None or task.done()):
                if task is not None:
                    task.result()  # what it did not expect ends the signer
                self._tasks[uid] = asyncio.create_task(self._look(self._partners[uid], domain))

    def _until_next(self) -> float:
        now = self._clock.monotonic()
        idle = [each.due for uid, each in self._partners.items() if uid not in self._tasks or self._tasks[uid].done()]
        return min(WAKE_SECONDS, max(0.05, min(idle, default=now + WAKE_SECONDS) - now))

    async def _look(self, partner: _Partner, domain: Domain) -> None:
        async with self._room:
            relation, held = partner.relation, domain.held
            assert relation.trust_domain is not None
            name = relation.trust_domain.name
            try:
                found, how = await self._fetched(relation, held)
            except (SignerError, InvalidBundle) as error:
                if partner.error != str(error):
                    _log.warning(
                        "the bundle of another trust domain was not fetched; the last good one stays",
                        extra={"trust_domain": name, "url": relation.url, "reason": error.reason, "error": str(error)},
                    )
                partner.error = str(error)
                self._told(_FAILED)
                self._plan(partner, interval_after_failure(held))
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
            partner.error, partner.fetched_at, partner.older = "", now, how is Order.OLDER
            self._told(how.value)
            self._plan(partner, interval(found))

    async def _fetched(self, relation: Relation, held: TrustBundle | None) -> tuple[TrustBundle, Order]:
        """What is published now and how it stands to what is held; stored, where it is news."""
        assert relation.trust_domain is not None
        own = self._own()
        if own is None:
            raise NotReady("the own trust bundle is not there yet")
        document = await self._endpoint.fetch(relation, self._trusted(relation, held, own))
        left_out: list[str] = []
        found = accepted(relation.trust_domain, document, own, left_out.append)
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
        if how in (Order.NEWER, Order.UNNUMBERED) or not self._domains.is_stored(relation):
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
        for relation in self._domains.relations:
            partner = self._partners.get(relation.uid)
            domain = followed.get(relation.uid)
            status = _status(relation, problems.get(relation.uid, ""), domain, partner)
            if partner is not None and partner.written == status:
                continue
            try:
                await self._replace(relation, status)
            except (NotFound, Conflict):
                continue
            except SignerError as error:
                _log.warning(
                    "a federated trust domain's status is not written",
                    extra={"trust_domain": relation.name, "reason": error.reason, "error": str(error)},
                )
                return
            if partner is not None:
                partner.written = status

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
