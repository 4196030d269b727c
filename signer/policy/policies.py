"""The policies of the cluster as they are now, applied to pods."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from runtime import durations
from runtime.clock import Clock
from runtime.seldom import Seldom
from runtime.stopping import side_by_side
from signer import ttls, wishes
from signer.cluster.kube import KubeApi
from signer.cluster.mirror import Mirror
from signer.cluster.objects import MAX_LABELS, Named, PolicyObject, ServiceObject, few_labels
from signer.errors import NotFound, Reason, Refused, SignerError
from signer.model import NO_POLICY, Entitlement, LivePod
from signer.policy.explanation import Other, goes_before, others
from signer.policy.index import Index
from signer.policy.policy import (
    CLUSTER,
    GROUP,
    NAMESPACED,
    Policy,
    PolicySettings,
    decide,
    matching,
    read_policy,
)
from signer.policy.services import Service, ServiceIndex
from signer.policy.statuses import Statuses
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.policies")
# After which one is asked for again that could not be read.
READ_AGAIN_SECONDS = 5.0
# Seconds between two lines of log about what is left out.
COMPLAINT_SECONDS = 60.0
SERVICES = "/api/v1/services"
ALLOWED = "allowed"


@dataclass(frozen=True, slots=True)
class Explanation:
    """For `explain`: the entitlement or the refusal, what matched in the order of the rule, and why others did not.

    Where it is refused with a `spiffe_id`, that is only of what a volume asks for beside.

    `lost`: of those that matched and do not decide, with the part of the rule by which they lost.
    `x509_ttl` is how long its X.509-SVIDs live, `x509_ttl_most` what a volume's ttl gets at most, `clipped` what of the
    policy's lifetimes nobody gets; empty where unknown. `certificate_ttl`: how long what kubelet asks for lives.
    `subject`: of all its certificates, as RFC 4514 has it; empty where they have none.
    """

    outcome: str
    policy: str
    matched: tuple[str, ...]
    not_matched: tuple[Other, ...]
    lost: tuple[tuple[str, str], ...] = ()
    spiffe_id: str = ""
    x509_ttl: str = ""
    x509_ttl_most: str = ""
    clipped: str = ""
    certificate_ttl: str = ""
    subject: str = ""


class Policies:
    """Mirrors policies, namespaces and Services. Everything is decided from these mirrors; nothing is asked.

    `outage_limit`: how long it is decided from what was read before one of them could be followed no more. `federated`:
    of which foreign trust domains there are bundles; None: nothing is said of that.
    """

    def __init__(
        self,
        api: KubeApi,
        settings: PolicySettings,
        outage_limit: timedelta,
        clock: Clock,
        federated: Callable[[], frozenset[TrustDomain]] | None = None,
    ) -> None:
        self._api = api
        self._federated = federated
        self._settings = settings
        self._outage_limit = outage_limit
        self._index = Index(settings.max_per_namespace)
        self._service_index = ServiceIndex(settings.max_services)
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
            api, SERVICES, ServiceObject, self._service_index.read, clock, observe=self._service_changed
        )
        self._mirrors: tuple[Mirror[Any, Any], ...]
        self._mirrors = self._namespaced, self._cluster, self._namespaces, self._services
        self._complaint = Seldom(COMPLAINT_SECONDS, clock.monotonic)
        # Something may be due to be read again.
        self._freed = asyncio.Event()
        self.statuses = Statuses(api, self, clock)

    @property
    def synced(self) -> bool:
        """Whether everything was read completely once."""
        return all(mirror.synced for mirror in self._mirrors)

    @property
    def followed(self) -> bool:
        """Whether the API server tells of policies, as far as can be told."""
        return all(mirror.lost_since is None for mirror in (self._namespaced, self._cluster))

    async def wait_synced(self) -> None:
        """Wait for that."""
        for mirror in self._mirrors:
            await mirror.wait_synced()

    async def run(self) -> None:
        """Follow all of them, for ever."""
        await side_by_side(*(mirror.run() for mirror in self._mirrors), self._fill_places())

    def entitlement(self, pod: LivePod) -> Entitlement:
        """What the pod gets. Raises Refused."""
        return self._entitlement(pod, self.matching)

    def entitlements(self) -> Callable[[LivePod], Entitlement]:
        """`entitlement`, for many pods of one moment: which policies match is looked up once for those that are alike,
        which is most of the work; what comes of these is each pod's own."""
        known: dict[tuple[str, str, frozenset[tuple[str, str]]], list[Policy]] = {}

        def matching(pod: LivePod) -> list[Policy]:
            alike = (pod.namespace, pod.service_account, frozenset(pod.labels.items()))
            if alike not in known:
                known[alike] = self.matching(pod)
            return known[alike]

        return lambda pod: self._entitlement(pod, matching)

    def _entitlement(self, pod: LivePod, matching: Callable[[LivePod], list[Policy]]) -> Entitlement:
        if not self.synced:
            # A policy that is not read yet could deny, or be narrower.
            raise Refused(Reason.API_SERVER_UNAVAILABLE, "the policies have not been read yet")
        if any(mirror.outdated(self._outage_limit) for mirror in self._mirrors):
            # One that denies the pod by now would not be known.
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"policies, namespaces or Services could not be read for longer than outage_limit "
                f"({durations.text(self._outage_limit)}); the signer's log says why",
            )
        if not self._index.knows(pod.namespace):
            # Its labels could be what a policy denies it by, and it may be newer than what was read last.
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"namespace {pod.namespace} has not been read yet, and its labels may decide; kubelet tries again "
                f"(one with more than {MAX_LABELS} labels is not read)",
            )
        found, unread = self._service_index, self._service_index.unread(pod.namespace)
        return decide(matching(pod), pod, found.of(pod), self._settings, unread)

    @property
    def services_left_out(self) -> int:
        """How many Services give no DNS names, as they are too many or select by too much."""
        return self._service_index.left_out

    def explain(self, pod: LivePod) -> Explanation:
        """Which policies match, which do not and why, and what comes of it."""
        labels = self._index.labels(pod.namespace)
        matched = self.matching(pod)
        names = tuple(str(each) for each in matched)
        unmatched = others(self.all(), matched, pod, labels)
        lost = tuple((str(each), goes_before(matched[0], each)) for each in matched[1:])
        try:
            found = self.entitlement(pod)
            wishes.dns_names(pod, found, (), (), never=self._settings.own_names)
        except Refused as error:
            winner = names[0] if names else NO_POLICY
            return Explanation(f"refused: {error.reason}: {error}", winner, names, unmatched, lost)
        refusals = self._refusals(pod, found)
        outcome = f"refused: {'; '.join(refusals)}" if refusals else ALLOWED
        limits, clipped = self._settings.ttls, self._not_granted(matched[0]) if matched else ""
        lives = durations.text(ttls.usual(limits, found)) if limits else ""
        most = durations.text(ttls.longest(limits, found)) if limits else ""
        certificates = ttls.pod_certificates(limits, found, pod.certificate_mosts) if limits else ""
        told = Explanation(
            outcome, found.decided_by, names, unmatched, lost, str(found.spiffe_id), lives, most, clipped
        )
        subject = f"CN={found.common_name}" if found.common_name else ""
        return replace(told, certificate_ttl=certificates, subject=subject)

    def all(self) -> list[Policy]:
        """Every policy, those that are left out too."""
        return [*self._namespaced.values.values(), *self._cluster.values.values()]

    def matching(self, pod: LivePod) -> list[Policy]:
        """Those that match the pod; the first of them decides."""
        return matching(self._index.policies(pod), pod, self._index.labels(pod.namespace))

    def is_due(self, policy: Policy) -> bool:
        """Whether it was left out, counts now, and is about to be read again."""
        return self._index.is_due(policy)

    def unusable(self, policy: Policy, pod: LivePod) -> tuple[str, str]:
        """Why the pod gets nothing by it that it should get by it: of the policy, else of what the pod asks for.

        Both are empty where it gets it.
        """
        if policy.deny:
            return "", ""
        try:
            found = decide([policy], pod, self._service_index.of(pod), self._settings)
            wishes.dns_names(pod, found, (), (), never=self._settings.own_names)
        except Refused as error:
            return str(error), ""
        return "", "; ".join(self._refusals(pod, found))

    def _refusals(self, pod: LivePod, found: Entitlement) -> list[str]:
        patterns, never = self._settings.dns_names, self._settings.own_names
        told = [wishes.refusal(pod, found, each, patterns, never=never) for each in pod.wishes]
        told += [wishes.source_refusal(pod, found, each, patterns, never=never) for each in pod.source_wishes]
        return [each for each in told if each]

    def unknown_domains(self, policy: Policy) -> str:
        """With which trust domains it federates of which there is no bundle; empty where there are all."""
        if self._federated is None or policy.deny or not policy.federates_with:
            return ""
        known = self._federated() | {self._settings.trust_domain}
        absent = sorted(each.name for each in policy.federates_with if each not in known)
        if not absent:
            return ""
        where = "FederatedTrustDomain, federated_bundles"
        return f"federatesWith {', '.join(absent)}: this cluster has no trust bundle of it ({where})"

    def _not_granted(self, policy: Policy) -> str:
        return "; ".join(each for each in (self.clipped(policy), self.unknown_domains(policy)) if each)

    def unread_services(self, policy: Policy, pod: LivePod) -> str:
        """Which Services of its namespace give the pod no DNS names by it that might; empty where all do."""
        unread = self._service_index.unread(pod.namespace) if policy.dns_names_from_services else ()
        return f"in namespace {pod.namespace}: {'; '.join(unread)}" if unread else ""

    def clipped(self, policy: Policy) -> str:
        """What of its lifetimes nobody gets; empty where they are kept."""
        limits = self._settings.ttls
        if limits is None or policy.deny or policy.problem:
            return ""
        x509_ttl, jwt_ttl = (policy.x509_ttl, policy.x509_ttl_text), (policy.jwt_ttl, policy.jwt_ttl_text)
        return ttls.clipped(limits, x509_ttl, jwt_ttl)

    async def _fill_places(self) -> None:
        """Read again what was left out and counts now, as others went; until it is read it refuses as before."""
        while True:
            self._freed.clear()
            read = [await self._read_again(each) for each in self._index.due()]
            read += [await self._read_service_again(each) for each in self._service_index.due()]
            if any(read):
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), READ_AGAIN_SECONDS if read else None)

    async def _read_again(self, outline: Policy) -> bool:
        """Whether it could be read."""
        try:
            found = read_policy(await self._api.read(outline.object_path, PolicyObject))
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

    async def _read_service_again(self, outline: Service) -> bool:
        """Whether it could be read."""
        # Not by its path: reading one needs a right of its own, which listing does not.
        path = f"/api/v1/namespaces/{outline.namespace}/services"
        try:
            found = await self._api.list(path, ServiceObject, {"fieldSelector": f"metadata.name={outline.name}"})
        except SignerError as error:
            _log.warning(
                "a Service cannot be read; trying again",
                extra={
                    "namespace": outline.namespace,
                    "service": outline.name,
                    "reason": error.reason,
                    "error": str(error),
                },
            )
            return False
        read = (self._service_index.read(each) for each in found.items if each.metadata.uid == outline.uid)
        new = next(read, None)
        if new is None or new == outline:
            return False
        self._services.swap(outline.uid, outline, new)
        return True

    def _service_changed(self, old: Service | None, new: Service | None) -> None:
        namespaces = {each.namespace for each in (old, new) if each is not None}
        before = {each: self._service_index.unread(each) for each in namespaces}
        over = self._service_index.changed(old, new)
        if over is not None:
            self._services.swap(over.uid, over, over.outline())
        if new is not None and (new.large or new.left_out) and self._complaint.due:
            _log.warning(
                "Services give no DNS names: too many in their namespace, or too large a selector",
                extra={"namespace": new.namespace, "service": new.name, "services": self.services_left_out},
            )
        if old is not None:
            self._freed.set()
        # Those that give no names matter only where they are the first of these, or the last.
        names = old != new and any(each.selector for each in (old, new) if each is not None)
        names = names and self.synced and any(each.dns_names_from_services for each in self.all())
        for namespace in namespaces:
            if names or self._service_index.unread(namespace) != before[namespace]:
                self.statuses.namespace_changed(namespace)

    def _policy_changed(self, old: Policy | None, new: Policy | None) -> None:
        over = self._index.policy(old, new)
        if over is not None:
            self._namespaced.swap(over.uid, over, self._index.outline(over))
        self._freed.set()
        for each in (old, new):
            if each is not None:
                self.statuses.namespace_changed(each.namespace)

    def _namespace_changed(
        self, old: tuple[str, Mapping[str, str]] | None, new: tuple[str, Mapping[str, str]] | None
    ) -> None:
        self._index.namespace(old, new)
        for each in (old, new):
            if each is not None:
                self.statuses.namespace_changed(each[0])


def _read_namespace(body: Named) -> tuple[str, Mapping[str, str]] | None:
    name, labels = body.metadata.name, body.metadata.labels or {}
    # One with more is unknown, and nobody in it gets anything: what is left out could have decided.
    return (name, labels) if name and few_labels(labels) else None
