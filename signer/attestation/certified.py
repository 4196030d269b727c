"""For which live pod a PodCertificateRequest is: what it says of the pod is a hint, and each word of it is held
against the API server's own.

The API server holds nodes to their own pods (NodeRestriction), and nobody else: whoever may create such requests may
name any pod. So a request gets what the pod that it names has, or nothing.
"""

from dataclasses import dataclass
from datetime import timedelta

from runtime import durations
from runtime.clock import Clock
from signer.attestation import fitness
from signer.attestation.accounts import Accounts
from signer.attestation.pods import Pods
from signer.errors import ApiUnavailable, Reason, Refused
from signer.model import AFTERWARDS, OUTAGE_RETRY, LivePod, PodClaim


@dataclass(frozen=True, slots=True)
class ClaimedPod:
    """The pod, its node and its service account as a request names them."""

    pod: PodClaim
    node_name: str
    service_account: str
    service_account_uid: str


class CertifiedPods:
    """Decides by live objects, and without the API server not at all: there is nowhere to write the answer either."""

    def __init__(self, pods: Pods, accounts: Accounts, limit: timedelta, clock: Clock) -> None:
        self._pods = pods
        self._accounts = accounts
        self._limit = limit
        self._clock = clock

    async def find(self, claimed: ClaimedPod) -> LivePod:
        """The pod that is asked for. Raises Refused."""
        if self._pods.outdated(self._limit):
            raise _away(f"pods could not be followed for longer than outage_limit ({durations.text(self._limit)})")
        try:
            pod = await self._pods.find(claimed.pod)
            _check(pod, claimed)
            # As its token would end: nobody has to confirm that it is gone.
            if pod.leaving is not None and pod.leaving.until + AFTERWARDS <= self._clock.now():
                raise Refused(Reason.POD_FINISHED, f"pod {pod} was deleted, and its time is over")
            # Of an account that was made anew under its name this request is not; kubelet's next one may be.
            if not await self._accounts.is_there(pod.namespace, pod.service_account, claimed.service_account_uid):
                raise Refused(
                    Reason.SERVICE_ACCOUNT_REPLACED,
                    f"service account {pod.namespace}/{pod.service_account} of pod {pod} is gone, or another one of "
                    "its name by now: make it again where it is gone; kubelet's next request, a quarter of an hour "
                    "after this one, names the new one, and that of a pod in this one's place does at once",
                )
        except ApiUnavailable as error:
            raise _away(str(error)) from None
        return pod


def _check(pod: LivePod, claimed: ClaimedPod) -> None:
    if pod.node_name != claimed.node_name:
        raise Refused(
            Reason.POD_ON_OTHER_NODE, f"pod {pod} is on node {pod.node_name}, the request says {claimed.node_name}"
        )
    if pod.service_account != claimed.service_account:
        raise Refused(
            Reason.SERVICE_ACCOUNT_MISMATCH,
            f"pod {pod} runs as {pod.service_account}, the request says {claimed.service_account}",
        )
    fitness.check_certified(pod)


def _away(why: str) -> Refused:
    return Refused(Reason.API_SERVER_UNAVAILABLE, f"the pod cannot be looked at now: {why}", retry_after=OUTAGE_RETRY)
