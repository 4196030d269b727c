"""PodCertificateRequests: the leader decides each by the live pod, by policy, and by what it may sign, and writes what
became of it.

Denied is what nothing can mend, as kubelet asks no more for that pod then. Everything else waits, and is tried again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from runtime.bucket import Bucket
from runtime.clock import Clock
from runtime.giving_way import give_way
from runtime.stopping import end, side_by_side
from signer import wishes
from signer.attestation.certified import CertifiedPods
from signer.cluster.events import Events
from signer.cluster.kube import KubeApi, Object
from signer.cluster.objects import Named
from signer.errors import ApiUnavailable, Conflict, Forbidden, NotFound, Reason, Refused, SignerError
from signer.front.audit import Audit, facts_of
from signer.front.calls import MINT_DEADLINE, refused_by
from signer.front.certificate_request import CertificateRequest, proven
from signer.front.certificate_requests import GROUP, Following
from signer.metrics import Metrics
from signer.minting.minting import IssuedX509, Minting
from signer.model import Entitlement, LivePod
from signer.pod_certificate_settings import SIGNER_NAME
from signer.policy.policies import Policies
from svid.certificates import to_pem
from svid.keys import PublicKey, algorithm_of

_log = logging.getLogger("podsvid.certificates")
# The older one first: in it are both kinds of proofs, and kubelets of 1.35 have the older kind only.
VERSIONS = ("v1beta1", "v1")
# Decided at a time, and so many a second, and at once.
AT_ONCE, RATE, BURST = 16, 50.0, 100.0
# Seconds between looks whether the API is served, and whether what is followed still is.
ABSENT_SECONDS, LOOK_SECONDS = 60.0, 10.0
# Until what had no room is read again, at least.
AGAIN_SECONDS = 60.0
# Of how many tries one is said to the pod.
_TOLD_OF = 10
# The API server wants so much before and after it.
REFRESH_MARGIN = timedelta(minutes=10)
# Of many key stores' turns: all pods' certificates together are one holder, as a node is.
_HOLDER = "pod certificates"
_MAX_MESSAGE = 1024
# What no policy, administrator or time mends, by what kubelet and people know it as.
DENIED: Mapping[Reason, str] = MappingProxyType(
    {
        **{
            each: each.value
            for each in (
                Reason.POD_NOT_FOUND,
                Reason.POD_UID_MISMATCH,
                Reason.POD_FINISHED,
                Reason.POD_IS_MIRROR,
                Reason.POD_ON_OTHER_NODE,
                Reason.POD_WITHOUT_CERTIFICATE_SOURCE,
                Reason.SERVICE_ACCOUNT_MISMATCH,
                Reason.CSR_INVALID,
                Reason.PROOF_OF_POSSESSION,
                Reason.POLICY_DENIED,
            )
        },
        Reason.KEY_WEAK: "UnsupportedKeyType",
        Reason.KEY_ALGORITHM_DENIED: "UnsupportedKeyType",
        Reason.INVALID_REQUEST: "InvalidUnverifiedUserAnnotations",
    }
)
# What is said of the pod before it is let pass, and only once it is known to be the one that is named.
_OF_THE_POD = (Reason.NAMESPACE_FULL, Reason.POD_OVERSIZED, Reason.SERVICE_ACCOUNT_REPLACED)


class PodCertificates:
    """Follows and decides, while this replica leads."""

    def __init__(
        self,
        api: KubeApi,
        pods: CertifiedPods,
        policies: Policies,
        minting: Minting,
        events: Events,
        audit: Audit,
        metrics: Metrics,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._api = api
        self._pods = pods
        self._policies = policies
        self._minting = minting
        self._events = events
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._bucket = Bucket(RATE, BURST, clock.monotonic())
        self._proving = asyncio.Lock()
        self._following: Following | None = None
        self._absent = False

    async def lead(self) -> None:
        """Follow what is served, for ever; only while leading."""
        while True:
            version = None
            try:
                version = await self._served()
            except SignerError as error:
                _log.warning(
                    "it is not known whether pod certificates are served",
                    extra={"reason": error.reason, "error": str(error)},
                )
            else:
                self._report(version)
            if version is None:
                await asyncio.sleep(ABSENT_SECONDS)
                continue
            try:
                await self._follow(version)
            finally:
                self._following = None

    @property
    def waiting(self) -> int:
        """Requests that are not decided."""
        return len(self._following.turns) if self._following is not None else 0

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest of them has waited; 0 where none does."""
        found = self._following
        created = min((each.created for each in found.mirror.values.values()), default="") if found is not None else ""
        try:
            since = datetime.fromisoformat(created)
        except ValueError:
            return 0.0
        return max(0.0, (self._clock.now() - since).total_seconds())

    async def _served(self) -> str | None:
        """The version to go by; None: the API server has no such objects. Raises SignerError."""
        for version in VERSIONS:
            query = {"limit": "1", "fieldSelector": f"spec.signerName={SIGNER_NAME}"}
            try:
                await self._api.list(f"{GROUP}/{version}/podcertificaterequests", Named, query)
            except NotFound:
                continue
            return version
        return None

    def _report(self, version: str | None) -> None:
        if version is not None:
            self._absent = False
            _log.info("pod certificates are served", extra={"version": version, "signer": SIGNER_NAME})
        elif not self._absent:
            self._absent = True
            _log.warning(
                "pod_certificates is on, and the API server has none: it needs podcertificaterequests of "
                "certificates.k8s.io, in v1 or v1beta1, switched on; looking again now and then"
            )

    async def _follow(self, version: str) -> None:
        """Until another version is to be followed."""
        found = self._following = Following(self._api, version, self._clock)
        workers = [self._work(found) for _ in range(AT_ONCE)]
        running = asyncio.ensure_future(side_by_side(found.run(LOOK_SECONDS, AGAIN_SECONDS), *workers))
        try:
            while True:
                await asyncio.wait([running], timeout=LOOK_SECONDS)
                if running.done():
                    running.result()
                if found.mirror.lost_since is not None and await self._differs(version):
                    return
        finally:
            await end([running])

    async def _differs(self, version: str) -> bool:
        try:
            return await self._served() != version
        except SignerError:
            return False

    async def _work(self, found: "Following") -> None:
        while True:
            await self._decide(await self._next(found), found)
            # Agents' mints go on meanwhile.
            await give_way()

    async def _next(self, found: "Following") -> CertificateRequest:
        changed, turns = found.mirror.changed, found.turns
        while True:
            seen, now = changed.version, self._clock.monotonic()
            wait = self._bucket.wait(now)
            if wait > 0.0:
                await asyncio.sleep(wait)
                continue
            uid = turns.take(now)
            if uid is None:
                due = turns.next_at()
                waiting = asyncio.ensure_future(changed.wait_beyond(seen))
                try:
                    await asyncio.wait([waiting], timeout=None if due is None else max(due - now, 0.0))
                finally:
                    await end([waiting])
                continue
            self._bucket.spend()
            request = found.mirror.find(uid)
            if request is not None:
                return request
            turns.remove(uid)

    async def _decide(self, request: CertificateRequest, found: "Following") -> None:
        started = time.perf_counter()
        pod: LivePod | None = None
        try:
            async with asyncio.timeout(MINT_DEADLINE):
                pod = await self._pods.find(request.claimed, request.asked_at)
                key = await self._key(request)
                entitlement = self._policies.entitlement(pod)
                issued = await self._signed(request, key, pod, entitlement)
                self._audit.certified(request.name, pod, entitlement, facts_of(issued), time.perf_counter() - started)
                is_there = await self._write(found.version, request, self._issued(issued))
        except Exception as error:
            await self._refused(request, found, pod, refused_by(error), started)
            return
        if not is_there:
            return
        claim = request.claimed.pod
        for surprise in entitlement.surprises:
            self._events.surprise(claim, "PolicySurprise", surprise)
        if issued.notice:
            self._events.surprise(claim, "TtlRaised", issued.notice)
        self._metrics.certified("issued")
        self._metrics.minted("pod_certificate", "ok", time.perf_counter() - started)

    async def _key(self, request: CertificateRequest) -> PublicKey:
        """Raises Refused."""
        # Who asks chooses what a proof costs: agents' mints have their turns after each.
        async with self._proving:
            try:
                return proven(request)
            except Refused as refusal:
                raise wishes.weak(str(refusal)) if refusal.reason is Reason.KEY_WEAK else refusal from None
            finally:
                await give_way()

    async def _signed(
        self, request: CertificateRequest, key: PublicKey, pod: LivePod, entitlement: Entitlement
    ) -> IssuedX509:
        """Raises Refused."""
        wishes.check_source_key(entitlement, algorithm_of(key))
        await self._minting.promise_pod_certificate(entitlement, request.most)
        return await self._minting.signed(
            "x509",
            _HOLDER,
            lambda: self._minting.pod_certificate(
                pod, entitlement, key, request.most, request.dns_names, wishes.OF_A_SOURCE
            ),
        )

    async def _refused(
        self,
        request: CertificateRequest,
        found: "Following",
        pod: LivePod | None,
        refusal: Refused,
        started: float,
    ) -> None:
        """Denied, or put off."""
        reason, claim, seconds = refusal.reason, request.claimed.pod, time.perf_counter() - started
        self._audit.uncertified(request.name, request.claimed.node_name, claim, reason, str(refusal), seconds)
        self._metrics.minted("pod_certificate", reason.value, seconds)
        if self._is_final(reason, pod):
            try:
                await self._write(found.version, request, self._denied(refusal))
            except SignerError as error:
                _log.warning(
                    "a pod certificate's denial was not written; trying again",
                    extra={"request": request.path, "reason": error.reason, "error": str(error)},
                )
            else:
                self._metrics.certified("denied")
                return
        elif (pod is not None or reason in _OF_THE_POD) and found.turns.tries(request.uid) % _TOLD_OF == 0:
            self._events.certificate_waits(claim, reason.value, str(refusal))
        self._metrics.certified("put_off")
        found.turns.put_off(request.uid, self._clock.monotonic(), self._rng.random())

    def _is_final(self, reason: Reason, pod: LivePod | None) -> bool:
        if reason in (Reason.POLICY_DENIED, Reason.KEY_ALGORITHM_DENIED) and not self._policies.followed:
            return False
        if reason is Reason.POLICY_DENIED:
            # Where none matches and one is wanted, one may come; and one that cannot be read may not be for this pod.
            matching = self._policies.matching(pod) if pod is not None else []
            return bool(matching) and matching[0].deny and not matching[0].problem
        return reason in DENIED

    def _issued(self, issued: IssuedX509) -> Object:
        leaf = issued.chain[0]
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        refresh = issued.renewal.draw(self._rng)
        refresh = max(begins + REFRESH_MARGIN, min(refresh, ends - REFRESH_MARGIN))
        return {
            "conditions": [self._condition("Issued", "Issued", "")],
            "certificateChain": to_pem(issued.chain).decode(),
            "notBefore": _written(begins),
            "beginRefreshAt": _written(refresh),
            "notAfter": _written(ends),
        }

    def _denied(self, refusal: Refused) -> Object:
        return {"conditions": [self._condition("Denied", DENIED[refusal.reason], str(refusal))]}

    def _condition(self, kind: str, reason: str, message: str) -> Object:
        return {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "lastTransitionTime": _written(self._clock.now()),
        }

    async def _write(self, version: str, request: CertificateRequest, status: Object) -> bool:
        """Whether it was still there. Raises ApiUnavailable."""
        body: Object = {"metadata": {"resourceVersion": request.version}, "status": status}
        try:
            await self._api.patch(f"{GROUP}/{version}/{request.path}/status", body)
        except NotFound:
            return False
        except Conflict:
            raise ApiUnavailable("the request was changed meanwhile") from None
        except Forbidden as error:
            raise ApiUnavailable(f"the signer may not decide the request: {error}; apply its RBAC") from None
        return True


def _written(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
