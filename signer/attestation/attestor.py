"""Who asks, and for which pod: every check between a call and policy, in one order.

agent token -> its service account and node -> pod token -> the same node -> the claimed pod -> the live pod, on that
node, of that account, running, and a client of the driver. Nothing that an agent says decides; it only narrows.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta

from runtime import durations
from runtime.clock import Clock
from runtime.newest import keep
from signer.attestation import fitness
from signer.attestation.accounts import Accounts
from signer.attestation.pods import Pods
from signer.attestation.tokens import NOBODY, OfflineTokens, TokenRefused, TokenReviews, claimed_pod, names_a_key
from signer.errors import ApiUnavailable, Reason, Refused
from signer.model import AFTERWARDS, OUTAGE_RETRY, Agent, AttestedPod, BoundToken, LivePod, PodClaim, Sender, Standing
from svid.spiffeid import SpiffeId

# Pods whose last mint this replica remembers, for an outage of the API server.
MAX_ISSUED = 200_000
_AGENT_FAULTS = {
    "INVALID": Reason.AGENT_TOKEN_INVALID,
    "EXPIRED": Reason.AGENT_TOKEN_EXPIRED,
    "AUDIENCE": Reason.AGENT_TOKEN_AUDIENCE,
}
_POD_FAULTS = {
    "INVALID": Reason.POD_TOKEN_INVALID,
    "EXPIRED": Reason.POD_TOKEN_EXPIRED,
    "AUDIENCE": Reason.POD_TOKEN_AUDIENCE,
}


@dataclass(frozen=True, slots=True)
class AttestationSettings:
    """`drivers`: a pod must mount one of them. `outage_limit`: how long identities go on without the API server."""

    agent_namespace: str
    agent_service_account: str
    drivers: frozenset[str]
    outage_limit: timedelta


class Attestor:
    """Decides by live objects; while the API server is away, by what it said before, for identities issued already."""

    def __init__(
        self,
        settings: AttestationSettings,
        reviews: TokenReviews,
        offline: OfflineTokens,
        pods: Pods,
        accounts: Accounts,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._reviews = reviews
        self._offline = offline
        self._pods = pods
        self._accounts = accounts
        self._clock = clock
        # The node's uid and the identity by the pod's uid.
        self._issued: OrderedDict[str, tuple[str, SpiffeId]] = OrderedDict()
        # By the monotonic clock, as what is known gets no younger when the time of day is set back.
        self._answered_at: float | None = None
        # Since when tokens are not reviewed, though pods may still be told of.
        self._unanswered_since: float | None = None

    async def agent(self, token: str, sender: Sender = NOBODY) -> Agent:
        """The agent that a token proves, which `sender` brought. Raises Refused."""
        try:
            proven, degraded = await self._verify(token, sender)
        except TokenRefused as error:
            raise Refused(_AGENT_FAULTS[error.fault], f"agent token refused: {error}") from None
        settings = self._settings
        if (proven.namespace, proven.service_account) != (settings.agent_namespace, settings.agent_service_account):
            raise Refused(
                Reason.AGENT_DENIED,
                f"the caller is {proven.namespace}/{proven.service_account}, not the agents' "
                f"{settings.agent_namespace}/{settings.agent_service_account} (agent_namespace, agent_service_account)",
            )
        if not proven.pod_uid or not proven.node_name or not proven.node_uid:
            raise Refused(
                Reason.AGENT_TOKEN_UNBOUND,
                "the agent token names no pod and node: it must be a projected one, of Kubernetes 1.30 or newer",
            )
        if degraded:
            self._within_outage()
        return Agent(proven.node_name, proven.node_uid, proven.pod_name, proven.pod_uid, proven.expires_at)

    async def pod(self, agent: Agent, token: str, claim: PodClaim) -> AttestedPod:
        """The live pod that `token` proves, on the agent's node. Raises Refused."""
        if not token:
            raise Refused(
                Reason.POD_TOKEN_MISSING,
                "the call has no pod token; the CSIDriver object needs tokenRequests with the signer's audience",
            )
        try:
            proven, degraded = await self._verify(token, Sender(Standing.AGENT, agent.node_uid))
        except TokenRefused as error:
            leaving = await self._leaving(error, agent, token, claim)
            if leaving is not None:
                return leaving
            raise await self._pod_refusal(error, token, agent) from None
        _check_claim(proven, claim)
        _check_node(proven, agent, claim)
        if degraded:
            return self._remembered(agent, proven, claim, degraded)
        self._check_pods_known()
        try:
            pod = await self._pods.find(claim)
        except ApiUnavailable as error:
            return self._remembered(agent, proven, claim, str(error))
        self._check_live(pod, proven)
        return AttestedPod(pod, agent)

    def issued(self, attested: AttestedPod, spiffe_id: SpiffeId) -> None:
        """Remember that this pod has that identity: it can be renewed while the API server is away."""
        keep(self._issued, attested.pod.uid, (attested.agent.node_uid, spiffe_id), MAX_ISSUED)

    async def _verify(self, token: str, sender: Sender) -> tuple[BoundToken, str]:
        """With why it was not reviewed; empty where it was."""
        try:
            proven = await self._reviews.verify(token, sender)
        except ApiUnavailable as error:
            if not self._offline.knows_key_of(token) and names_a_key(token):
                # It may be a newer one, of which nobody can say anything now.
                raise Refused(
                    Reason.API_SERVER_UNAVAILABLE,
                    f"the API server is away, and the token's key was not read from it yet ({error})",
                    retry_after=OUTAGE_RETRY,
                ) from None
            proven = self._offline.verify(token)
            # After: what a stranger makes up says nothing of the API server.
            if self._unanswered_since is None:
                self._unanswered_since = self._clock.monotonic()
            return proven, str(error) or "the API server does not answer"
        self._answered_at, self._unanswered_since = self._clock.monotonic(), None
        return proven, ""

    async def _pod_refusal(self, error: TokenRefused, token: str, agent: Agent) -> Refused:
        """Why: the API server refuses tokens of deleted pods without saying so, which a person wants to know."""
        namespace, name, uid = claimed_pod(token)
        # Looking costs the API server as much as a review, which is paid for.
        if error.reviewed and error.fault == "INVALID" and namespace and name and uid and self._of_node(token, agent):
            try:
                await self._pods.look(PodClaim(namespace, name, uid))
            except Refused as found:
                return found
            except ApiUnavailable:
                pass
        return Refused(_POD_FAULTS[error.fault], f"pod token refused: {error}")

    def _of_node(self, token: str, agent: Agent) -> bool:
        """Whether the cluster once signed it for a pod of that node: an agent hears of no pods that it makes up."""
        try:
            return self._offline.verify(token).node_uid == agent.node_uid
        except TokenRefused:
            return False

    def _check_live(self, pod: LivePod, proven: BoundToken) -> None:
        if pod.node_name != proven.node_name:
            raise Refused(
                Reason.POD_ON_OTHER_NODE, f"pod {pod} is on node {pod.node_name}, its token says {proven.node_name}"
            )
        if pod.service_account != proven.service_account or pod.namespace != proven.namespace:
            raise Refused(
                Reason.SERVICE_ACCOUNT_MISMATCH,
                f"pod {pod} runs as {pod.service_account}, its token is of {proven.service_account}",
            )
        fitness.check(pod, self._settings.drivers)

    async def _leaving(self, error: TokenRefused, agent: Agent, token: str, claim: PodClaim) -> AttestedPod | None:
        """The pod, where its token ended after its own end began: kubelet brings no other then, and it may serve on.

        No agent's word: the cluster's signature on the token, and the pod itself as the API server has it now. None
        where it is not so. Raises Refused.
        """
        if error.fault != "EXPIRED":
            return None
        try:
            proven = self._offline.once(token)
        except TokenRefused:
            return None
        _check_claim(proven, claim)
        _check_node(proven, agent, claim)
        known = self._pods.known(claim.uid)
        # What is known of it decides nothing but whether asking is worth it.
        if known is None or known.leaving is None:
            return None
        try:
            pod = await self._pods.look(claim)
            has_account = await self._accounts.has(proven)
        except ApiUnavailable as away:
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"the API server is away, and a pod that ends without a new token waits for it ({away})",
                retry_after=OUTAGE_RETRY,
            ) from None
        leaving = pod.leaving
        # Of a token from long before that nobody can say where it was since.
        if leaving is None or proven.expires_at < leaving.since or leaving.until <= self._clock.now():
            return None
        if not has_account:
            raise Refused(Reason.POD_TOKEN_INVALID, f"the service account of pod {pod} is gone")
        self._check_live(pod, proven)
        return AttestedPod(pod, agent, until=leaving.until + AFTERWARDS)

    def _remembered(self, agent: Agent, proven: BoundToken, claim: PodClaim, why: str) -> AttestedPod:
        """The pod as it was, if it may be renewed without the API server. Raises Refused."""
        self._within_outage()
        self._check_pods_known()
        pod = self._pods.known(claim.uid)
        issued = self._issued.get(claim.uid)
        if pod is None or issued is None or issued[0] != agent.node_uid:
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"the API server does not prove the pod's token, and a pod without an identity waits for it ({why})",
                retry_after=OUTAGE_RETRY,
            )
        self._check_live(pod, proven)
        return AttestedPod(pod, agent, held=issued[1])

    def _check_pods_known(self) -> None:
        """Tokens may be reviewed while pods can be followed no more. Raises Refused."""
        limit = self._settings.outage_limit
        if self._pods.outdated(limit):
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"pods could not be followed for longer than outage_limit ({durations.text(limit)}); the signer's "
                "log says why",
                retry_after=OUTAGE_RETRY,
            )

    def _within_outage(self) -> None:
        heard = [at for at in (self._answered_at, self._pods.heard_at) if at is not None]
        now, limit = self._clock.monotonic(), self._settings.outage_limit
        # An API server that tells of pods and reviews no tokens does not prolong it either.
        oldest = min(max(heard), self._unanswered_since or now) if heard else None
        if oldest is None or now - oldest > limit.total_seconds():
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"the API server is away for longer than outage_limit ({durations.text(limit)})",
                retry_after=OUTAGE_RETRY,
            )


def _check_node(proven: BoundToken, agent: Agent, claim: PodClaim) -> None:
    if not proven.node_name or not proven.node_uid:
        raise Refused(Reason.POD_TOKEN_UNBOUND, "the pod token names no node; Kubernetes 1.30 or newer is needed")
    if (proven.node_name, proven.node_uid) != (agent.node_name, agent.node_uid):
        raise Refused(
            Reason.POD_ON_OTHER_NODE,
            f"pod {claim} is on node {proven.node_name}, the agent that asks is on {agent.node_name}",
        )


def _check_claim(proven: BoundToken, claim: PodClaim) -> None:
    if not proven.pod_uid or not proven.pod_name:
        raise Refused(Reason.POD_TOKEN_UNBOUND, "the pod token is not bound to a pod")
    if (proven.namespace, proven.pod_name, proven.pod_uid) != (claim.namespace, claim.name, claim.uid):
        raise Refused(
            Reason.POD_TOKEN_REPLAYED,
            f"the token is of pod {proven.namespace}/{proven.pod_name}, not of the pod that is asked for",
        )
