"""For which live pod a PodCertificateRequest is: what it says of the pod is a hint, and each word of it is held
against the API server's own.

The API server holds nodes to their own pods (NodeRestriction), and nobody else: whoever may create such requests may
name any pod. So a request gets what the pod that it names has, or nothing.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from runtime import durations
from runtime.clock import Clock
from signer.attestation import fitness
from signer.attestation.accounts import Account, Accounts
from signer.attestation.pods import Pods
from signer.errors import ApiUnavailable, Reason, Refused
from signer.model import AFTERWARDS, OUTAGE_RETRY, LivePod, PodClaim

# Between the moment when kubelet sees a pod's account and its request, both by clocks of API servers.
_AS_IT_ASKS = timedelta(minutes=1)
_NEXT = (
    "kubelet asks again 15 to 20 minutes after this request, and names the account of then; for a pod that is made in "
    "this one's place it asks at once"
)


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

    async def find(self, claimed: ClaimedPod, asked_at: datetime | None) -> LivePod:
        """The pod that is asked for. `asked_at`: by the API server; None where it is not known. Raises Refused."""
        if self._pods.outdated(self._limit):
            raise _away(f"pods could not be followed for longer than outage_limit ({durations.text(self._limit)})")
        try:
            pod = await self._pods.find(claimed.pod)
            _check(pod, claimed)
            # As its token would end: nobody has to confirm that it is gone.
            if pod.leaving is not None and pod.leaving.until + AFTERWARDS <= self._clock.now():
                raise Refused(Reason.POD_FINISHED, f"pod {pod} was deleted, and its time is over")
            _check_account(pod, claimed, await self._accounts.find(pod.namespace, pod.service_account), asked_at)
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


def _check_account(pod: LivePod, claimed: ClaimedPod, found: Account | None, asked_at: datetime | None) -> None:
    name = f"service account {pod.namespace}/{pod.service_account} of pod {pod}"
    if found is None:
        raise Refused(Reason.SERVICE_ACCOUNT_REPLACED, f"{name} is gone, or being deleted: make it again; {_NEXT}")
    if found.uid == claimed.service_account_uid:
        return
    created = found.created
    # Kubelet looks the account up as it asks: one that was there long before had its uid then, too.
    if created is not None and asked_at is not None and asked_at - created > _AS_IT_ASKS:
        raise Refused(
            Reason.SERVICE_ACCOUNT_MISMATCH,
            f"{name} has been there since {created:%Y-%m-%dT%H:%M:%SZ}, and the request of "
            f"{asked_at:%Y-%m-%dT%H:%M:%SZ} names another one by its uid",
        )
    raise Refused(Reason.SERVICE_ACCOUNT_REPLACED, f"{name} is another one by now than that of the request; {_NEXT}")


def _away(why: str) -> Refused:
    return Refused(Reason.API_SERVER_UNAVAILABLE, f"the pod cannot be looked at now: {why}", retry_after=OUTAGE_RETRY)
