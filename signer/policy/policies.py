"""The policies of the cluster as they are now, applied to pods; and what became of each, in its status."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from runtime import durations
from runtime.clock import Clock
from signer import ttls
from signer.cluster.kube import KubeApi, Object
from signer.cluster.mirror import SLICE, Mirror
from signer.cluster.objects import Named, PolicyObject, ServiceObject
from signer.errors import Conflict, NotFound, Reason, Refused, SignerError
from signer.model import NO_POLICY, Entitlement, LivePod
from signer.policy.index import Index
from signer.policy.policy import (
    Policy,
    PolicySettings,
    Service,
    decide,
    matching,
    read_policy,
    read_service,
)

_log = logging.getLogger("podsvid.policies")
GROUP = "/apis/podsvid.io/v1alpha1"
CLUSTER, NAMESPACED = "clusterworkloadidentities", "workloadidentities"
# Pods whose conflict is named in a policy's status.
_NAMED = 3
# Statuses that are read and written at one time.
MAX_WRITES = 100
# After which one is asked for again that could not be read.
READ_AGAIN_SECONDS = 5.0


class LivePods(Protocol):
    """Whoever knows the pods."""

    def namespaces(self) -> Iterable[str]:
        """Those that have pods."""
        ...

    def of_namespace(self, namespace: str) -> Iterable[LivePod]:
        """Its pods."""
        ...


@dataclass(slots=True)
class _Tally:
    """What became of some pods under one policy; some of those that it lost are named."""

    matched: int = 0
    lost: int = 0
    named: list[str] = field(default_factory=list)
    unusable: str = ""

    def lose(self, name: str) -> None:
        self.lost += 1
        if len(self.named) < _NAMED:
            self.named.append(name)


@dataclass(frozen=True, slots=True)
class Explanation:
    """For `explain`: the entitlement or the refusal, what matched in the order of the rule, and why others did not.

    `x509_ttl` is how long its X.509-SVIDs live, `x509_ttl_most` what a volume's ttl gets at most, `clipped` what of the
    policy's lifetimes nobody gets; empty where unknown.
    """

    outcome: str
    policy: str
    matched: tuple[str, ...]
    not_matched: tuple[tuple[str, str], ...]
    spiffe_id: str = ""
    x509_ttl: str = ""
    x509_ttl_most: str = ""
    clipped: str = ""


class Policies:
    """Mirrors policies, namespaces and Services. Everything is decided from these mirrors; nothing is asked.

    `outage_limit`: how long it is decided from what was read before one of them could be followed no more.
    """

    def __init__(self, api: KubeApi, settings: PolicySettings, outage_limit: timedelta, clock: Clock) -> None:
        self._api = api
        self._settings = settings
        self._outage_limit = outage_limit
        self._clock = clock
        self._index = Index(settings.max_per_namespace)
        self._namespaced: Mirror[PolicyObject, Policy] = Mirror(
            api, f"{GROUP}/{NAMESPACED}", PolicyObject, self._index.read, clock, observe=self._policy_changed
        )
        self._cluster: Mirror[PolicyObject, Policy] = Mirror(
            api, f"{GROUP}/{CLUSTER}", PolicyObject, read_policy, clock, observe=self._policy_changed
        )
        self._namespaces: Mirror[Named, tuple[str, Mapping[str, str]]] = Mirror(
            api, "/api/v1/namespaces", Named, _read_namespace, clock, observe=self._namespace_changed
        )
        self._services: Mirror[ServiceObject, Service] = Mirror(
            api, "/api/v1/services", ServiceObject, read_service, clock, observe=self._index.service
        )
        # Something may be due to be read again.
        self._freed = asyncio.Event()
        # Of what was written, by uid, the digest: a status is larger than what is kept of most policies.
        self._statuses: dict[str, bytes] = {}
        # What each namespace's pods add to the statuses, by policy, and the namespaces where that may be different now.
        self._tallies: dict[str, dict[str, _Tally]] = {}
        self._stale: set[str] = set()
        self._all_stale = True
        self._turn = 0

    @property
    def synced(self) -> bool:
        """Whether everything was read completely once."""
        return all(mirror.synced for mirror in self._mirrors)

    async def wait_synced(self) -> None:
        """Wait for that."""
        for mirror in self._mirrors:
            await mirror.wait_synced()

    async def run(self) -> None:
        """Follow all of them, for ever."""
        async with asyncio.TaskGroup() as group:
            for mirror in self._mirrors:
                group.create_task(mirror.run())
            group.create_task(self._fill_places())

    def entitlement(self, pod: LivePod) -> Entitlement:
        """What the pod gets. Raises Refused."""
        if not self.synced:
            # A policy that is not read yet could deny, or be narrower.
            raise Refused(Reason.API_SERVER_UNAVAILABLE, "the policies have not been read yet")
        lost = [mirror.lost_since for mirror in self._mirrors if mirror.lost_since is not None]
        if lost and self._clock.now() - min(lost) > self._outage_limit:
            # One that denies the pod by now would not be known.
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"policies, namespaces or Services could not be read for longer than outage_limit "
                f"({durations.text(self._outage_limit)}); the signer's log says why",
            )
        return decide(self._matching(pod), pod, self._index.services(pod), self._settings)

    def explain(self, pod: LivePod) -> Explanation:
        """Which policies match, which do not and why, and what comes of it."""
        labels = self._index.labels(pod.namespace)
        matched = self._matching(pod)
        names = tuple(str(each) for each in matched)
        uids = {each.uid for each in matched}
        others = [
            (str(each), each.mismatch(pod, labels) or each.problem) for each in self._all() if each.uid not in uids
        ]
        unmatched = tuple((name, why) for name, why in sorted(others) if why)
        try:
            found = self.entitlement(pod)
        except Refused as error:
            winner = names[0] if names else NO_POLICY
            return Explanation(f"refused: {error.reason}: {error}", winner, names, unmatched)
        limits, clipped = self._settings.ttls, self._clipped(matched[0]) if matched else ""
        lives = durations.text(ttls.usual(limits, found)) if limits else ""
        most = durations.text(ttls.longest(limits, found)) if limits else ""
        return Explanation("allowed", found.decided_by, names, unmatched, str(found.spiffe_id), lives, most, clipped)

    def pod_changed(self, old: LivePod | None, new: LivePod | None) -> None:
        """To be told by whoever knows the pods."""
        self._stale.update(each.namespace for each in (old, new) if each is not None)

    async def write_status(self, pods: LivePods) -> None:
        """Write into each policy how many pods it matches and whether it can be used. Only the leader does.

        Looks at the pods of those namespaces only where something changed, and gives way meanwhile. Nothing is written
        where nothing changed, and no more than MAX_WRITES at one time: the next call goes on. Raises SignerError.
        """
        await self._count(pods)
        tallies = await self._totals()
        every = self._all()
        self._statuses = {each.uid: self._statuses[each.uid] for each in every if each.uid in self._statuses}
        begin, writes = self._turn % max(1, len(every)), 0
        for number, policy in enumerate(every[begin:] + every[:begin], 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            if self._index.is_due(policy):
                continue
            path = _path(policy)
            # To whom one would apply that is left out is not known.
            tally = _Tally() if policy.left_out else tallies.get(policy.uid, _Tally())
            status = _status(policy, tally, self._clipped(policy))
            digest = _digest(status)
            if self._statuses.get(policy.uid) == digest:
                continue
            if writes == MAX_WRITES:
                self._turn = begin + number - 1
                return
            writes += 1
            try:
                present = await self._api.get(path)
                merged = _keep_times(present.get("status") or {}, status, self._clock)
                if merged != (present.get("status") or {}):
                    await self._api.replace(f"{path}/status", {**present, "status": merged})
                self._statuses[policy.uid] = digest
            except (NotFound, Conflict):
                continue

    async def _count(self, pods: LivePods) -> None:
        """Bring what stale namespaces' pods add up to date."""
        if self._all_stale:
            self._all_stale = False
            self._stale.update(pods.namespaces(), self._tallies)
        for namespace in sorted(self._stale):
            # Before it is looked at: what changes meanwhile makes it stale again.
            self._stale.discard(namespace)
            tallies: dict[str, _Tally] = {}
            for number, pod in enumerate(list(pods.of_namespace(namespace)), 1):
                self._add(pod, tallies)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
            self._tallies[namespace] = tallies
            if not tallies:
                del self._tallies[namespace]
            await asyncio.sleep(0)

    def _add(self, pod: LivePod, tallies: "dict[str, _Tally]") -> None:
        if pod.finished or not pod.node_name:
            return
        found = self._matching(pod)
        for each in found:
            tallies.setdefault(each.uid, _Tally()).matched += 1
        for each in found[1:]:
            tallies[each.uid].lose(f"{pod} (to {found[0]})")
        if found and not found[0].deny:
            try:
                decide(found[:1], pod, (), self._settings)
            except Refused as error:
                tallies[found[0].uid].unusable = tallies[found[0].uid].unusable or str(error)

    async def _totals(self) -> "dict[str, _Tally]":
        totals: dict[str, _Tally] = {}
        for namespace in list(self._tallies):
            for uid, each in self._tallies.get(namespace, {}).items():
                total = totals.setdefault(uid, _Tally())
                total.matched += each.matched
                total.lost += each.lost
                total.named += each.named[: _NAMED - len(total.named)]
                total.unusable = total.unusable or each.unusable
            await asyncio.sleep(0)
        return totals

    async def _fill_places(self) -> None:
        """Read again what was left out and counts now, as others went; until it is read it refuses as before."""
        while True:
            self._freed.clear()
            read = [await self._read_again(each) for each in self._index.due()]
            if any(read):
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), READ_AGAIN_SECONDS if read else None)

    async def _read_again(self, outline: Policy) -> bool:
        """Whether it could be read."""
        try:
            found = read_policy(await self._api.read(_path(outline), PolicyObject))
        except SignerError as error:
            # Where it went meanwhile the watch will say so.
            if not isinstance(error, NotFound):
                _log.warning(
                    "a policy cannot be read; trying again",
                    extra={"policy": str(outline), "reason": error.reason, "error": str(error)},
                )
            return False
        if found is None or found.uid != outline.uid:
            return False
        self._namespaced.swap(outline.uid, outline, found)
        return True

    def _policy_changed(self, old: Policy | None, new: Policy | None) -> None:
        over = self._index.policy(old, new)
        if over is not None:
            self._namespaced.swap(over.uid, over, self._index.outline(over))
        self._freed.set()
        for each in (old, new):
            if each is not None and each.namespace:
                self._stale.add(each.namespace)
            elif each is not None:
                self._all_stale = True

    def _namespace_changed(
        self, old: tuple[str, Mapping[str, str]] | None, new: tuple[str, Mapping[str, str]] | None
    ) -> None:
        self._index.namespace(old, new)
        self._stale.update(each[0] for each in (old, new) if each is not None)

    def _clipped(self, policy: Policy) -> str:
        limits = self._settings.ttls
        if limits is None or policy.deny or policy.problem:
            return ""
        x509_ttl, jwt_ttl = (policy.x509_ttl, policy.x509_ttl_text), (policy.jwt_ttl, policy.jwt_ttl_text)
        return ttls.clipped(limits, x509_ttl, jwt_ttl)

    @property
    def _mirrors(self) -> "tuple[Mirror[Any, Any], ...]":
        return self._namespaced, self._cluster, self._namespaces, self._services

    def _all(self) -> list[Policy]:
        return [*self._namespaced.values.values(), *self._cluster.values.values()]

    def _matching(self, pod: LivePod) -> list[Policy]:
        return matching(self._index.policies(pod), pod, self._index.labels(pod.namespace))


def _read_namespace(body: Named) -> tuple[str, Mapping[str, str]] | None:
    name = body.metadata.name
    return (name, body.metadata.labels or {}) if name else None


def _path(policy: Policy) -> str:
    if policy.namespace:
        return f"{GROUP}/namespaces/{policy.namespace}/{NAMESPACED}/{policy.name}"
    return f"{GROUP}/{CLUSTER}/{policy.name}"


def _digest(status: Object) -> bytes:
    return hashlib.blake2b(json.dumps(status, sort_keys=True).encode(), digest_size=16).digest()


def _status(policy: Policy, tally: _Tally, clipped: str) -> Object:
    problem = policy.problem or tally.unusable
    reason = "TooManyPolicies" if policy.left_out else "Unusable" if problem else "InUse"
    conditions = [
        _condition(policy, "Ready", not problem, reason, problem or "it can be used"),
        _condition(
            policy,
            "Conflicting",
            tally.lost > 0,
            "LostToOthers" if tally.lost else "NoConflict",
            f"{tally.lost} pods went to other policies: {', '.join(tally.named)}"
            if tally.lost
            else "no pod is disputed",
        ),
        _condition(
            policy,
            "TtlClipped",
            bool(clipped),
            "OutsideOfLimits" if clipped else "WithinLimits",
            clipped or "pods get its lifetimes",
        ),
    ]
    return {"observedGeneration": policy.generation, "podsMatched": tally.matched, "conditions": conditions}


def _condition(policy: Policy, kind: str, holds: bool, reason: str, message: str) -> Object:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message[:1024],
        "observedGeneration": policy.generation,
    }


def _keep_times(present: Object, status: Object, clock: Clock) -> Object:
    """`status` with each condition's time: the old one while its status is the same."""
    old = {each.get("type"): each for each in present.get("conditions") or []}
    now = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for each in status["conditions"]:
        before = old.get(each["type"]) or {}
        since = before.get("lastTransitionTime") if before.get("status") == each["status"] else None
        conditions.append({**each, "lastTransitionTime": since or now})
    return {**status, "conditions": conditions}
