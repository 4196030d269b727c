"""The live pods: a mirror of all of them, and a look at the API server for one that the mirror does not have yet."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta

from msgspec import UNSET

from runtime.clock import Clock
from runtime.listening import exact, whose
from signer.attestation.volumes import read_source_wishes, read_wishes
from signer.cluster.kube import KubeApi
from signer.cluster.mirror import Mirror
from signer.cluster.objects import Pod as PodObject
from signer.cluster.objects import PodMetadata, PodSpec, PodState, Texts, few_labels
from signer.cluster.places import Age, Places
from signer.errors import ApiUnavailable, Forbidden, NotFound, Reason, Refused
from signer.model import Leaving, LivePod, PodClaim
from signer.pod_certificate_settings import USUAL_SECONDS, longest

# Pods of one namespace that count; Kubernetes is tried with some thousands of them.
MOST_OF_NAMESPACE = 10_000
# Different CSI drivers of one pod's inline volumes.
MAX_DRIVERS = 16
# Of an agent's pod and of its host: one of each family.
MAX_ADDRESSES = 2
# Nearly all pods' are: each that is made anew takes 216 bytes, and is one thing more for the collector to look at.
NO_ADDRESSES: frozenset[str] = frozenset()
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)


class Pods:
    """All pods, by uid. Those of `agents` (namespace, service account) with their addresses, volumes of `drivers` with
    what is asked for in them. `signer_name`: which Kubernetes signer's podCertificate sources are looked for.

    Of a namespace's pods the oldest `most` count, agents aside; of the others an outline is kept. So who starts very
    many pushes out none that was there, and none that is left out takes anything but its few bytes.
    """

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        agents: tuple[str, str] | None = None,
        most: int = MOST_OF_NAMESPACE,
        drivers: frozenset[str] = frozenset(),
        signer_name: str = "",
    ) -> None:
        self._api = api
        self._drivers = drivers
        self._signer_name = signer_name
        self._agents = agents
        self._most = most
        self._by_name: dict[str, dict[str, LivePod]] = {}
        self._places: dict[str, Places[LivePod]] = {}
        self._texts = Texts()
        self._mirror: Mirror[PodObject, LivePod] = Mirror(
            api, "/api/v1/pods", PodObject, self._read, clock, observe=self._index
        )
        self.left_out = 0
        # Hear of each change as it is made: what was there, and what is there now.
        self.observers: list[Callable[[LivePod | None, LivePod | None], None]] = []
        self.run = self._mirror.run
        self.wait_synced = self._mirror.wait_synced

    @property
    def synced(self) -> bool:
        """Whether there was a complete list once."""
        return self._mirror.synced

    @property
    def fresh(self) -> bool:
        """Whether all are known as they are now."""
        return self._mirror.fresh

    def unread(self) -> str:
        """Why they are not known as they are now; empty when they are."""
        if not self.synced:
            return "pods are not read yet"
        return "" if self.fresh else "pods cannot be read now"

    def outdated(self, limit: timedelta) -> bool:
        """Whether what is known of them is older than that: one may have finished, or have other labels, since."""
        return self._mirror.outdated(limit)

    def recent(self, limit: timedelta) -> bool:
        """Whether all are known as they are now, or were so long ago at most."""
        return self._mirror.recent(limit)

    @property
    def last_contact(self) -> datetime | None:
        """When the API server last said anything."""
        return self._mirror.last_contact

    @property
    def heard_at(self) -> float | None:
        """The same by the monotonic clock."""
        return self._mirror.heard_at

    def all(self) -> Iterable[LivePod]:
        """Every pod that is known."""
        return self._mirror.values.values()

    def of_namespace(self, namespace: str) -> Collection[LivePod]:
        """Those of it that are known."""
        return self._by_name.get(namespace, {}).values()

    def namespaces(self) -> Collection[str]:
        """Those that have pods."""
        return self._by_name.keys()

    def named(self, namespace: str, name: str) -> LivePod | None:
        """The pod as the mirror has it, by name."""
        return self._by_name.get(namespace, {}).get(name)

    def known(self, uid: str) -> LivePod | None:
        """The pod as the mirror has it."""
        return self._mirror.find(uid)

    async def find(self, claim: PodClaim) -> LivePod:
        """The pod of that uid and name. Raises Refused (POD_NOT_FOUND, POD_UID_MISMATCH), ApiUnavailable."""
        known = self.known(claim.uid)
        # One that was left out may have a place by now.
        if known is not None and known.node_name and not (known.left_out and self._counts(known)):
            if (known.namespace, known.name) != (claim.namespace, claim.name):
                raise Refused(Reason.POD_UID_MISMATCH, f"pod uid and name do not belong together: {claim}")
            return known
        return await self.look(claim)

    async def look(self, claim: PodClaim) -> LivePod:
        """As `find`, at the API server itself."""
        # What a token that proves nothing says may come here: it must not choose what is read with the signer's rights.
        if not _NAME.fullmatch(claim.namespace) or not _NAME.fullmatch(claim.name):
            raise Refused(Reason.POD_NOT_FOUND, "there is no pod of such a name")
        # A new pod's first mint may come before its watch event.
        try:
            body = await self._api.read(f"/api/v1/namespaces/{claim.namespace}/pods/{claim.name}", PodObject)
        except NotFound:
            raise Refused(Reason.POD_NOT_FOUND, f"pod {claim} does not exist (any more)") from None
        except Forbidden as error:
            raise ApiUnavailable(f"the signer may not read pods: {error}; apply its RBAC") from None
        pod = read_pod(body, drivers=self._drivers, signer_name=self._signer_name)
        if pod is None:
            raise ApiUnavailable(f"the API server's answer for pod {claim} is not a pod")
        if pod.uid != claim.uid:
            raise Refused(Reason.POD_UID_MISMATCH, f"pod {claim} is another one of the same name by now")
        pod, known = self._kept(pod), self.known(pod.uid)
        if known is not None and known.left_out:
            self._mirror.swap(pod.uid, known, pod)
        return pod

    def _read(self, body: PodObject) -> LivePod | None:
        pod = read_pod(body, self._texts, self._agents, self._drivers, self._signer_name)
        return pod and self._kept(pod)

    def _kept(self, pod: LivePod) -> LivePod:
        return pod if self._counts(pod) else pod.outline()

    def _counts(self, pod: LivePod) -> bool:
        """Whether it has a place in its namespace, or would have one."""
        places = self._places.get(pod.namespace)
        return self._is_agent(pod) or places is None or places.room(pod.age)

    def _is_agent(self, pod: LivePod) -> bool:
        return (pod.namespace, pod.service_account) == self._agents

    def _place(self, old: LivePod | None, new: LivePod | None) -> None:
        if old is not None and not self._is_agent(old):
            self.left_out -= old.left_out
            places = self._places[old.namespace]
            places.remove(old)
            if places.empty:
                del self._places[old.namespace]
        if new is not None and not self._is_agent(new):
            self.left_out += new.left_out
            places = self._places.setdefault(new.namespace, Places(self._most, _age))
            places.add(new)
            over = places.over
            if over is not None:
                self._mirror.swap(over.uid, over, over.outline())

    def _index(self, old: LivePod | None, new: LivePod | None) -> None:
        if old is not None:
            there = self._by_name.get(old.namespace, {})
            # One of the same name may have come before this one's end was told.
            if there.get(old.name) == old:
                del there[old.name]
            if not there:
                self._by_name.pop(old.namespace, None)
        if new is not None:
            self._by_name.setdefault(new.namespace, {})[new.name] = new
        self._place(old, new)
        for observe in self.observers:
            observe(old, new)


class Holders:
    """How many pods hold SVIDs: those that run and mount one of `drivers`. No agent's word counts here."""

    def __init__(self, drivers: frozenset[str]) -> None:
        self._drivers = drivers
        self.count = 0

    def pod_changed(self, old: LivePod | None, new: LivePod | None) -> None:
        """To be told of each change."""
        self.count += self._holds(new) - self._holds(old)

    def _holds(self, pod: LivePod | None) -> bool:
        return pod is not None and not pod.finished and bool(pod.drivers & self._drivers)


class AgentNodes:
    """The nodes where one of `agents` (namespace, service account) runs, as the API server has it.

    Kept along: whoever leads asks every second, and would go through thousands of pods each time.
    """

    def __init__(self, agents: tuple[str, str]) -> None:
        self._agents = agents
        self._pods: Counter[str] = Counter()
        self._names: frozenset[str] | None = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        if self._names is None:
            self._names = frozenset(self._pods)
        return self._names

    def pod_changed(self, old: LivePod | None, new: LivePod | None) -> None:
        """To be told of each change."""
        before, after = self._node(old), self._node(new)
        if before == after:
            return
        if after:
            self._pods[after] += 1
        if before:
            self._pods[before] -= 1
            if not self._pods[before]:
                del self._pods[before]
        self._names = None

    def _node(self, pod: LivePod | None) -> str:
        """Where that pod runs, if it is an agent's; else empty."""
        if pod is None or pod.finished or (pod.namespace, pod.service_account) != self._agents:
            return ""
        return pod.node_name


class AgentAddresses:
    """Where agents run, as the API server has it."""

    def __init__(self) -> None:
        self._pods: Counter[str] = Counter()
        self._networks: dict[str, set[str]] = {}

    def __contains__(self, address: object) -> bool:
        """Whether an agent runs at that address, as `runtime.listening.exact` spells it."""
        return address in self._pods

    def within(self, network: str) -> Collection[str]:
        """Where agents run in that IPv6 network, as `runtime.listening.whose` counts it; their nodes' pods do, too."""
        return self._networks.get(network, ())

    def pod_changed(self, old: LivePod | None, new: LivePod | None) -> None:
        """To be told of each change."""
        before = frozenset() if old is None else old.addresses
        after = frozenset() if new is None else new.addresses
        for address in after - before:
            self._count(address, 1)
        for address in before - after:
            self._count(address, -1)

    def _count(self, address: str, more: int) -> None:
        self._pods[address] += more
        network = whose(address)
        there = self._networks.setdefault(network, set()) if network != address else set()
        there.add(address)
        if not self._pods[address]:
            del self._pods[address]
            there.remove(address)
        if network != address and not there:
            del self._networks[network]


def read_pod(
    pod: PodObject,
    texts: Texts | None = None,
    agents: tuple[str, str] | None = None,
    drivers: frozenset[str] = frozenset(),
    signer_name: str = "",
) -> LivePod | None:
    """What attestation and policy look at; None for what is no pod. `texts` keeps the first of equal ones.

    `agents`: of whose pods (namespace, service account) addresses are kept, as long as they run. `drivers`: of whose
    volumes it is kept what is asked for in them. `signer_name`: as `Pods` has it; empty for none.
    """
    same = (texts or Texts()).same
    metadata, spec = pod.metadata, pod.spec or PodSpec()
    if not metadata.uid or not metadata.name or not metadata.namespace:
        return None
    labels = metadata.labels or {}
    named = {each.csi.driver for each in spec.volumes or () if each.csi is not None and each.csi.driver}
    # Its author chooses how many there are. What is left out could have decided, so nothing is decided without it.
    oversized = not few_labels(labels) or len(named) > MAX_DRIVERS
    if oversized:
        labels, named = {}, set()
    finished = pod.status is not None and pod.status.phase in ("Succeeded", "Failed")
    mosts = _mosts(spec, signer_name) if signer_name else ()
    is_agent = agents is not None and (metadata.namespace, spec.service_account_name) == agents
    return LivePod(
        namespace=same(metadata.namespace),
        name=metadata.name,
        uid=metadata.uid,
        node_name=same(spec.node_name or ""),
        service_account=same(spec.service_account_name or ""),
        # Most are those of others, too.
        labels={same(key): same(value) for key, value in labels.items()},
        drivers=same(frozenset(map(same, named))),
        finished=finished,
        mirror=metadata.annotations is not None and metadata.annotations.mirror is not UNSET,
        oversized=oversized,
        created=same(metadata.creation_timestamp or ""),
        addresses=_addresses(pod.status) if is_agent and not finished else NO_ADDRESSES,
        leaving=_leaving(metadata),
        # Most have a volume of the same name, in which nothing is asked for.
        wishes=same(read_wishes(spec, drivers)) if not finished and not oversized else (),
        pod_certificate=bool(mosts),
        certificate_mosts=same(mosts),
        source_wishes=same(read_source_wishes(spec, signer_name)) if mosts and not finished and not oversized else (),
    )


def _mosts(spec: PodSpec, signer_name: str) -> tuple[timedelta, ...]:
    """The least and the greatest lifetime that sources of that signer allow; empty where there is none."""
    found: set[int] = set()
    for volume in spec.volumes or ():
        for source in (volume.projected.sources if volume.projected else None) or ():
            asked = source.pod_certificate
            if asked is not None and asked.signer_name == signer_name:
                found.add(USUAL_SECONDS if asked.max_expiration_seconds is None else asked.max_expiration_seconds)
    return (longest(min(found)), longest(max(found))) if found else ()


def _leaving(metadata: PodMetadata) -> Leaving | None:
    if metadata.deletion_timestamp is None:
        return None
    try:
        until = datetime.fromisoformat(metadata.deletion_timestamp)
        since = until - timedelta(seconds=max(metadata.deletion_grace_period_seconds or 0, 0))
        # Nobody may go on by an end that cannot be compared.
        return Leaving(since.astimezone(UTC), until.astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def _age(pod: LivePod) -> Age:
    return pod.age


def _addresses(state: PodState | None) -> frozenset[str]:
    if state is None:
        return NO_ADDRESSES
    found = [*(state.pod_ips or ())[:MAX_ADDRESSES], *(state.host_ips or ())[:MAX_ADDRESSES]]
    return frozenset(exact(each.ip) for each in found if each.ip)
