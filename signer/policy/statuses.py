"""What became of each policy, in its status: how many pods it matches, whether it can be used, who else took them."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from runtime.clock import Clock
from runtime.giving_way import Slicing, slices
from runtime.pace import Pace
from runtime.seldom import Seldom
from signer.cluster.conditions import condition, with_times
from signer.cluster.kube import KubeApi, Object
from signer.errors import Conflict, NotFound, SignerError
from signer.model import LivePod
from signer.policy.policy import Policy

_log = logging.getLogger("podsvid.policies")
# Pods whose conflict is named in a policy's status.
_NAMED = 3
# Statuses that are read and written at one time.
MAX_WRITES = 100
# Of these that fail: more of them are the API server's affair, and each can take its whole deadline.
MAX_REFUSED = 3
# What some policies have in some namespaces that is added up before others have their turns: half a millisecond or so.
SUMS_AT_ONCE = 256
# Seconds until one that was not taken is tried again, at first and at most: who may write policies can have any number
# that the API server never takes.
FIRST_WAIT, MAX_WAIT = 10.0, 1800.0
# Seconds between two lines of log that say so.
COMPLAINT_SECONDS = 60.0


class LivePods(Protocol):
    """Whoever knows the pods."""

    def namespaces(self) -> Iterable[str]:
        """Those that have pods."""
        ...

    def of_namespace(self, namespace: str) -> Iterable[LivePod]:
        """Its pods."""
        ...


class Known(Protocol):
    """Whoever knows the policies."""

    @property
    def followed(self) -> bool:
        """Whether the API server tells of them."""
        ...

    def all(self) -> list[Policy]:
        """In an order that stays as it is."""
        ...

    def matching(self, pod: LivePod) -> list[Policy]:
        """Those that match the pod; the first of them decides."""
        ...

    def is_due(self, policy: Policy) -> bool:
        """Whether it is about to be read again."""
        ...

    def unusable(self, policy: Policy, pod: LivePod) -> tuple[str, str]:
        """Why the pod gets nothing by it that it should get by it: of the policy, else of what the pod asks for."""
        ...

    def unknown_domains(self, policy: Policy) -> str:
        """With which trust domains it federates of which there is no bundle."""
        ...

    def unread_services(self, policy: Policy, pod: LivePod) -> str:
        """Which Services give the pod no DNS names by it that might; empty where all do."""
        ...

    def clipped(self, policy: Policy) -> str:
        """What of its lifetimes nobody gets."""
        ...


@dataclass(frozen=True, slots=True)
class _Refused:
    """So many times in a row the status of a policy, as it was in that generation, was not taken."""

    generation: int
    times: int
    until: float


@dataclass(slots=True)
class _Tally:
    """What became of some pods under one policy; some of those that it lost are named."""

    matched: int = 0
    # To one that goes before it as somebody has said: it denies, has the higher priority, or is the namespace's own.
    yielded: int = 0
    # To one that is only older.
    lost: int = 0
    named: list[str] = field(default_factory=list)
    # Those that ask for what it does not give, and what of the first one.
    refused: int = 0
    asked: str = ""
    unusable: str = ""
    unread: str = ""

    def lose(self, name: str) -> None:
        self.lost += 1
        if len(self.named) < _NAMED:
            self.named.append(name)


class Statuses:
    """Brought up to date by what changed. Belongs to one event loop."""

    def __init__(
        self, api: KubeApi, policies: Known, clock: Clock, used: Callable[[], float] = time.thread_time
    ) -> None:
        self._api = api
        self._policies = policies
        self._clock = clock
        self._used = used
        # Of what was written, by uid, the digest: a status is larger than what is kept of most policies.
        self._written: dict[str, bytes] = {}
        # What each namespace's pods add to the statuses, by policy, and the namespaces where that may be different now.
        self._tallies: dict[str, dict[str, _Tally]] = {}
        self._stale: set[str] = set()
        self._all_stale = True
        self._turn = 0
        self._refused: dict[str, _Refused] = {}
        self._complaint = Seldom(COMPLAINT_SECONDS, clock.monotonic)

    def namespace_changed(self, namespace: str) -> None:
        """Its labels or policies are others now; empty for a policy of all namespaces."""
        if namespace:
            self._stale.add(namespace)
        else:
            self._all_stale = True

    def pod_changed(self, old: LivePod | None, new: LivePod | None) -> None:
        """To be told by whoever knows the pods."""
        self._stale.update(each.namespace for each in (old, new) if each is not None)

    async def lead(self, pods: LivePods, seconds: float) -> None:
        """Keep all of them up to date, every so many seconds (or less often), for ever; only while leading."""
        # Who led meanwhile may have written others.
        self._written.clear()
        self._refused.clear()
        pace = Pace(self._clock.monotonic)
        while True:
            await self.write(pods)
            await pace.rest(seconds)

    async def write(self, pods: LivePods) -> None:
        """Write into each policy how many pods it matches and whether it can be used. Only the leader does.

        Looks at the pods of those namespaces only where something changed, and gives way meanwhile. Nothing is written
        where nothing changed, and no more than MAX_WRITES at one time: the next call goes on. One that is not taken
        keeps no other's from being written, and is tried ever more rarely, until its policy is another one. One that
        changes meanwhile is left to the next call: its pods were counted as it was.
        """
        slicing = Slicing(self._used)
        counted = {each.uid: each for each in self._policies.all()}
        await self._count(pods, slicing)
        tallies = await self._totals()
        every = self._policies.all()
        self._written = {each.uid: self._written[each.uid] for each in every if each.uid in self._written}
        self._refused = {each.uid: self._refused[each.uid] for each in every if each.uid in self._refused}
        begin, writes, refused = self._turn % max(1, len(every)), 0, 0
        for number, policy in enumerate(every[begin:] + every[:begin], 1):
            await slicing.go_on()
            if counted.get(policy.uid) is not policy or self._policies.is_due(policy) or self._waits(policy):
                continue
            path = policy.object_path
            # To whom one would apply that is left out is not known.
            tally = _Tally() if policy.left_out else tallies.get(policy.uid, _Tally())
            status = _status(policy, tally, self._policies.clipped(policy), self._policies.unknown_domains(policy))
            digest = _digest(status)
            if self._written.get(policy.uid) == digest:
                continue
            if writes == MAX_WRITES:
                self._turn = begin + number - 1
                return
            writes += 1
            try:
                await self._replace(path, status)
                self._written[policy.uid] = digest
                self._refused.pop(policy.uid, None)
            except (NotFound, Conflict):
                continue
            except SignerError as error:
                self._not_taken(policy, error)
                refused += 1
                if refused == MAX_REFUSED:
                    self._turn = begin + number
                    return
        self._turn = 0

    def _waits(self, policy: Policy) -> bool:
        found = self._refused.get(policy.uid)
        same = found is not None and found.generation == policy.generation
        return found is not None and same and self._clock.monotonic() < found.until

    def _not_taken(self, policy: Policy, error: SignerError) -> None:
        before = self._refused.get(policy.uid)
        times = before.times if before is not None and before.generation == policy.generation else 0
        wait = 0.0
        # While the API server tells of no policies it is no policy's fault.
        if self._policies.followed:
            wait = min(FIRST_WAIT * 2 ** min(times, 20), MAX_WAIT)
            self._refused[policy.uid] = _Refused(policy.generation, times + 1, self._clock.monotonic() + wait)
        if self._complaint.due:
            _log.warning(
                "policy status not written",
                extra={"policy": str(policy), "again_in": wait, "reason": error.reason, "error": str(error)},
            )

    async def _replace(self, path: str, status: Object) -> None:
        present = await self._api.get(path)
        merged = with_times(present.get("status") or {}, status, self._clock)
        if merged != (present.get("status") or {}):
            await self._api.replace(f"{path}/status", {**present, "status": merged})

    async def _count(self, pods: LivePods, slicing: Slicing) -> None:
        """Bring what stale namespaces' pods add up to date."""
        if self._all_stale:
            self._all_stale = False
            self._stale.update(pods.namespaces(), self._tallies)
        for namespace in sorted(self._stale):
            # Before it is looked at: what changes meanwhile makes it stale again.
            self._stale.discard(namespace)
            try:
                tallies = await self._tally(pods.of_namespace(namespace), slicing)
            except BaseException:
                self._stale.add(namespace)
                raise
            self._tallies[namespace] = tallies
            if not tallies:
                del self._tallies[namespace]

    async def _tally(self, pods: Iterable[LivePod], slicing: Slicing) -> "dict[str, _Tally]":
        tallies: dict[str, _Tally] = {}
        for pod in list(pods):
            self._add(pod, tallies)
            await slicing.go_on()
        return tallies

    def _add(self, pod: LivePod, tallies: "dict[str, _Tally]") -> None:
        if pod.finished or pod.left_out or not pod.node_name:
            return
        found = self._policies.matching(pod)
        for each in found:
            tallies.setdefault(each.uid, _Tally()).matched += 1
        for each in found[1:]:
            if found[0].disputes(each):
                tallies[each.uid].lose(f"{pod} (to {found[0]})")
            else:
                tallies[each.uid].yielded += 1
        if found:
            winner = tallies[found[0].uid]
            unusable, asked = self._policies.unusable(found[0], pod)
            winner.unusable = winner.unusable or unusable
            winner.refused += bool(asked)
            winner.asked = winner.asked or (asked and f"{pod}: {asked}")
            winner.unread = winner.unread or self._policies.unread_services(found[0], pod)

    async def _totals(self) -> "dict[str, _Tally]":
        totals: dict[str, _Tally] = {}
        every = (each for tallies in self._tallies.values() for each in tallies.items())
        async for part in slices(every, SUMS_AT_ONCE):
            for uid, each in part:
                total = totals.setdefault(uid, _Tally())
                total.matched += each.matched
                total.yielded += each.yielded
                total.lost += each.lost
                total.named += each.named[: _NAMED - len(total.named)]
                total.refused += each.refused
                total.asked = total.asked or each.asked
                total.unusable = total.unusable or each.unusable
                total.unread = total.unread or each.unread
        return totals


def _digest(status: Object) -> bytes:
    return hashlib.blake2b(json.dumps(status, sort_keys=True).encode(), digest_size=16).digest()


def _status(policy: Policy, tally: _Tally, clipped: str, unknown: str) -> Object:
    problem = policy.problem or tally.unusable
    reason = "TooManyPolicies" if policy.left_out else "Unusable" if problem else "InUse"
    use = "it denies the pods that it matches" if policy.deny else "it can be used"
    conditions = [
        _condition(policy, "Ready", not problem, reason, problem or use),
        _condition(
            policy,
            "Conflicting",
            tally.lost > 0,
            "LostToOthers" if tally.lost else "NoConflict",
            _dispute(tally),
        ),
        _condition(
            policy,
            "TtlClipped",
            bool(clipped),
            "OutsideOfLimits" if clipped else "WithinLimits",
            clipped or "pods get its lifetimes",
        ),
    ]
    if not policy.deny:
        asking = "1 pod asks" if tally.refused == 1 else f"{tally.refused} pods ask"
        asked = f"{asking} for what it does not give, such as {tally.asked}" if tally.refused else ""
        reason = "AskForMore" if asked else "NoneRefused"
        conditions.append(_condition(policy, "PodsRefused", bool(asked), reason, asked or "no pod asks for more"))
    if policy.federates_with:
        reason, message = ("NoBundle", unknown) if unknown else ("AllThere", "there is a trust bundle of each")
        conditions.append(_condition(policy, "FederationMissing", bool(unknown), reason, message))
    if policy.dns_names_from_services:
        reason = "TooManyOrTooLarge" if tally.unread else "AllRead"
        message = tally.unread or "all Services of its pods are read"
        conditions.append(_condition(policy, "ServicesLeftOut", bool(tally.unread), reason, message))
    return {"observedGeneration": policy.generation, "podsMatched": tally.matched, "conditions": conditions}


def _dispute(tally: _Tally) -> str:
    found = (
        f"{tally.lost} pods went to older policies: {', '.join(tally.named)}" if tally.lost else "no pod is disputed"
    )
    yielded = f"; {tally.yielded} have one that goes before it" if tally.yielded else ""
    return f"{found}{yielded}"


def _condition(policy: Policy, kind: str, holds: bool, reason: str, message: str) -> Object:
    return condition(kind, holds=holds, reason=reason, message=message, generation=policy.generation)
