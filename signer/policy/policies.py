"""The policies of the cluster as they are now, applied to pods; and what became of each, in its status."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from runtime.clock import Clock
from signer.cluster.kube import KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.cluster.objects import Named, PolicyObject, ServiceObject
from signer.errors import Conflict, NotFound, Reason, Refused
from signer.model import NO_POLICY, Entitlement, LivePod
from signer.policy.policy import (
    Explanation,
    Policy,
    PolicySettings,
    Service,
    decide,
    matching,
    read_policy,
    read_service,
)

GROUP = "/apis/podsvid.io/v1alpha1"
CLUSTER, NAMESPACED = "clusterworkloadidentities", "workloadidentities"
# Pods whose conflict is named in a policy's status.
_NAMED = 3


class Policies:
    """Mirrors policies, namespaces and Services. Everything is decided from these mirrors; nothing is asked.

    `outage_limit`: how long it is decided from what was read before one of them could be followed no more.
    """

    def __init__(self, api: KubeApi, settings: PolicySettings, outage_limit: timedelta, clock: Clock) -> None:
        self._api = api
        self._settings = settings
        self._outage_limit = outage_limit
        self._clock = clock
        self._namespaced: Mirror[PolicyObject, Policy] = Mirror(
            api, f"{GROUP}/{NAMESPACED}", PolicyObject, read_policy, clock
        )
        self._cluster: Mirror[PolicyObject, Policy] = Mirror(
            api, f"{GROUP}/{CLUSTER}", PolicyObject, read_policy, clock
        )
        self._namespaces: Mirror[Named, tuple[str, Mapping[str, str]]] = Mirror(
            api, "/api/v1/namespaces", Named, _read_namespace, clock
        )
        self._services: Mirror[ServiceObject, Service] = Mirror(
            api, "/api/v1/services", ServiceObject, read_service, clock
        )
        self._statuses: dict[str, Object] = {}
        self._namespace_labels: tuple[int, dict[str, Mapping[str, str]]] = (-1, {})

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
                f"({self._outage_limit.total_seconds():g} s); the signer's log says why",
            )
        return decide(self._matching(pod), pod, self._services.values.values(), self._settings)

    def explain(self, pod: LivePod) -> Explanation:
        """Which policies match, which do not and why, and what comes of it."""
        labels = self._labels(pod.namespace)
        others = [(str(each), each.mismatch(pod, labels)) for each in self._all()]
        matched = self._matching(pod)
        names = tuple(str(each) for each in matched)
        unmatched = tuple((name, why) for name, why in sorted(others) if why)
        try:
            found = self.entitlement(pod)
        except Refused as error:
            winner = names[0] if names else NO_POLICY
            return Explanation(f"refused: {error.reason}: {error}", winner, names, unmatched)
        return Explanation("allowed", found.decided_by, names, unmatched, str(found.spiffe_id))

    async def write_status(self, pods: Iterable[LivePod]) -> None:
        """Write into each policy how many pods it matches and whether it can be used. Only the leader does.

        Nothing is written where nothing changed. Raises SignerError.
        """
        for path, status in self._status_of_all(pods).items():
            if self._statuses.get(path) == status:
                continue
            try:
                present = await self._api.get(path)
                merged = _keep_times(present.get("status") or {}, status, self._clock)
                if merged != (present.get("status") or {}):
                    await self._api.replace(f"{path}/status", {**present, "status": merged})
                self._statuses[path] = status
            except (NotFound, Conflict):
                continue

    def _status_of_all(self, pods: Iterable[LivePod]) -> dict[str, Object]:
        matched: dict[str, int] = {}
        lost: dict[str, list[str]] = {}
        unusable: dict[str, list[str]] = {}
        for pod in pods:
            if pod.finished or not pod.node_name:
                continue
            found = self._matching(pod)
            for each in found:
                matched[each.uid] = matched.get(each.uid, 0) + 1
            for each in found[1:]:
                lost.setdefault(each.uid, []).append(f"{pod} (to {found[0]})")
            if found and not found[0].deny:
                try:
                    decide(found[:1], pod, (), self._settings)
                except Refused as error:
                    unusable.setdefault(found[0].uid, []).append(str(error))
        return {
            _path(each): _status(each, matched.get(each.uid, 0), lost.get(each.uid, []), unusable.get(each.uid, []))
            for each in self._all()
        }

    @property
    def _mirrors(self) -> "tuple[Mirror[Any, Any], ...]":
        return self._namespaced, self._cluster, self._namespaces, self._services

    def _all(self) -> list[Policy]:
        return [*self._namespaced.values.values(), *self._cluster.values.values()]

    def _matching(self, pod: LivePod) -> list[Policy]:
        return matching(self._all(), pod, self._labels(pod.namespace))

    def _labels(self, namespace: str) -> Mapping[str, str]:
        version = self._namespaces.changed.version
        if self._namespace_labels[0] != version:
            self._namespace_labels = (version, dict(self._namespaces.values.values()))
        return self._namespace_labels[1].get(namespace, {})


def _read_namespace(body: Named) -> tuple[str, Mapping[str, str]] | None:
    name = body.metadata.name
    return (name, body.metadata.labels or {}) if name else None


def _path(policy: Policy) -> str:
    if policy.namespace:
        return f"{GROUP}/namespaces/{policy.namespace}/{NAMESPACED}/{policy.name}"
    return f"{GROUP}/{CLUSTER}/{policy.name}"


def _status(policy: Policy, matched: int, lost: list[str], unusable: list[str]) -> Object:
    problem = policy.problem or (unusable[0] if unusable else "")
    conditions = [
        _condition(policy, "Ready", not problem, "Unusable" if problem else "InUse", problem or "it can be used"),
        _condition(
            policy,
            "Conflicting",
            bool(lost),
            "LostToOthers" if lost else "NoConflict",
            f"{len(lost)} pods went to other policies: {', '.join(lost[:_NAMED])}" if lost else "no pod is disputed",
        ),
    ]
    return {"observedGeneration": policy.generation, "podsMatched": matched, "conditions": conditions}


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
