"""Which of Istio's proxies calls, and for which live pods: its own one, or those of a service account on its node.

A proxy's token names its pod and node, and the API server says that both are still there. What a proxy says beside that
only narrows: a ztunnel gets for others what all of these pods get by themselves.
"""

from dataclasses import dataclass
from datetime import timedelta

from runtime import durations
from runtime.clock import Clock
from signer.attestation import fitness
from signer.attestation.placed import PlacedPods
from signer.attestation.pods import Pods
from signer.attestation.tokens import NOBODY, TokenRefused, TokenReviews
from signer.errors import ApiUnavailable, Reason, Refused
from signer.model import AFTERWARDS, OUTAGE_RETRY, BoundToken, LivePod, PodClaim, Sender

_FAULTS = {
    "INVALID": Reason.POD_TOKEN_INVALID,
    "EXPIRED": Reason.POD_TOKEN_EXPIRED,
    "AUDIENCE": Reason.POD_TOKEN_AUDIENCE,
}
# Seconds that a pod's first call may be before its watch event.
PATIENCE = 1.0
# How old what is known of pods may be that a ztunnel speaks for, while they cannot be followed: they are not asked for
# one by one, and who is gone from a node lends it nothing. A watch that hangs is followed until it has been silent for
# so long that it is given up (SILENCE_SECONDS of the API server's client): bookmarks come each minute, more or less.
PLACED = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """`ztunnels`: (namespace, service account) of those who may ask for others. `clusters`: those that may be named;
    empty: all. `outage_limit`: how old what is known of pods may be."""

    ztunnels: frozenset[tuple[str, str]]
    clusters: frozenset[str]
    outage_limit: timedelta


class Proxies:
    """Decides by live objects, and without the API server not at all: what a proxy has lasts half of its life yet."""

    def __init__(
        self, settings: ProxySettings, reviews: TokenReviews, pods: Pods, placed: PlacedPods, clock: Clock
    ) -> None:
        self._settings = settings
        self._reviews = reviews
        self._pods = pods
        self._placed = placed
        self._clock = clock

    async def proven(self, token: str, sender: Sender = NOBODY) -> BoundToken:
        """What a token proves, which `sender` brought: a pod and its node. Raises Refused."""
        try:
            found = await self._reviews.verify(token, sender)
        except TokenRefused as error:
            raise Refused(_FAULTS[error.fault], f"proxy's token refused: {error}") from None
        except ApiUnavailable as error:
            raise _away(str(error)) from None
        if not (found.pod_name and found.pod_uid and found.node_name and found.node_uid):
            raise Refused(
                Reason.POD_TOKEN_UNBOUND,
                "the proxy's token names no pod and node: it must be a projected one, of Kubernetes 1.30 or newer",
            )
        return found

    def is_ztunnel(self, proven: BoundToken) -> bool:
        """Whether it may ask for other pods."""
        return (proven.namespace, proven.service_account) in self._settings.ztunnels

    async def caller(self, proven: BoundToken, cluster: str) -> LivePod:
        """The live pod that calls, and says that it is of that cluster; empty: it says nothing. Raises Refused."""
        known = self._settings.clusters
        if cluster and known and cluster not in known:
            raise Refused(
                Reason.CLUSTER_UNKNOWN, f"the proxy says that it is of cluster {cluster[:253]!r} (istio_clusters)"
            )
        self._check_pods_known()
        try:
            pod = await self._pods.find(PodClaim(proven.namespace, proven.pod_name, proven.pod_uid))
        except ApiUnavailable as error:
            raise _away(str(error)) from None
        if pod.node_name != proven.node_name:
            raise Refused(
                Reason.POD_ON_OTHER_NODE, f"pod {pod} is on node {pod.node_name}, its token says {proven.node_name}"
            )
        if pod.service_account != proven.service_account:
            raise Refused(
                Reason.SERVICE_ACCOUNT_MISMATCH,
                f"pod {pod} runs as {pod.service_account}, its token is of {proven.service_account}",
            )
        if self._is_over(pod):
            raise Refused(Reason.POD_FINISHED, f"pod {pod} was deleted, and its time is over")
        fitness.check_any(pod)
        return pod

    async def placed(self, proven: BoundToken, namespace: str, account: str) -> tuple[LivePod, ...]:
        """All live pods of that account on the caller's node: one at least. Raises Refused."""
        if not self.is_ztunnel(proven):
            raise Refused(
                Reason.IMPERSONATION_DENIED,
                f"{proven.namespace}/{proven.service_account} asks for {namespace}/{account}, and is none of "
                "istio_ztunnels",
            )
        node = proven.node_name
        await self._placed.appeared(node, namespace, account, PATIENCE)
        if not self._pods.recent(PLACED):
            raise _away(f"which pods are on node {node} is not known as of {durations.text(PLACED)} ago")
        found = tuple(each for each in self._placed.of(node, namespace, account) if not self._is_over(each))
        if not found:
            raise Refused(
                Reason.POD_NOT_FOUND, f"no live pod of service account {namespace}/{account} is on node {node}"
            )
        for each in found:
            fitness.check_any(each)
        return found

    def _is_over(self, pod: LivePod) -> bool:
        """Whether it was deleted, and nobody has confirmed that it is gone."""
        return pod.leaving is not None and pod.leaving.until + AFTERWARDS <= self._clock.now()

    def _check_pods_known(self) -> None:
        limit = self._settings.outage_limit
        if self._pods.outdated(limit):
            raise _away(f"pods could not be followed for longer than outage_limit ({durations.text(limit)})")


def _away(why: str) -> Refused:
    return Refused(
        Reason.API_SERVER_UNAVAILABLE, f"the proxy's pod cannot be looked at now: {why}", retry_after=OUTAGE_RETRY
    )
