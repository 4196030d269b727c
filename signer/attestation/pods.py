"""The live pods: a mirror of all of them, and a look at the API server for one that the mirror does not have yet."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from runtime.clock import Clock
from signer.cluster.kube import KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.errors import ApiUnavailable, Forbidden, NotFound, Reason, Refused
from signer.model import LivePod, PodClaim

_MIRROR = "kubernetes.io/config.mirror"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)


class Pods:
    """All pods, by uid."""

    def __init__(self, api: KubeApi, clock: Clock) -> None:
        self._api = api
        self._mirror: Mirror[LivePod] = Mirror(api, "/api/v1/pods", read_pod, clock)
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

    def outdated(self, limit: timedelta) -> bool:
        """Whether what is known of them is older than that: one may have finished, or have other labels, since."""
        return self._mirror.outdated(limit)

    @property
    def last_contact(self) -> datetime | None:
        """When the API server last said anything."""
        return self._mirror.last_contact

    def all(self) -> Iterable[LivePod]:
        """Every pod that is known."""
        return self._mirror.values.values()

    def known(self, uid: str) -> LivePod | None:
        """The pod as the mirror has it."""
        return self._mirror.find(uid)

    async def find(self, claim: PodClaim) -> LivePod:
        """The pod of that uid and name. Raises Refused (POD_NOT_FOUND, POD_UID_MISMATCH), ApiUnavailable."""
        known = self.known(claim.uid)
        if known is not None and known.node_name:
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
            body = await self._api.get(f"/api/v1/namespaces/{claim.namespace}/pods/{claim.name}")
        except NotFound:
            raise Refused(Reason.POD_NOT_FOUND, f"pod {claim} does not exist (any more)") from None
        except Forbidden as error:
            raise ApiUnavailable(f"the signer may not read pods: {error}; apply its RBAC") from None
        pod = read_pod(body)
        if pod is None:
            raise ApiUnavailable(f"the API server's answer for pod {claim} is not a pod")
        if pod.uid != claim.uid:
            raise Refused(Reason.POD_UID_MISMATCH, f"pod {claim} is another one of the same name by now")
        return pod


def read_pod(body: Object) -> LivePod | None:
    """What attestation and policy look at; None for what is no pod."""
    metadata, spec, status = body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}
    if not metadata.get("uid") or not metadata.get("name") or not metadata.get("namespace"):
        return None
    drivers = [str((volume.get("csi") or {}).get("driver") or "") for volume in spec.get("volumes") or []]
    return LivePod(
        namespace=str(metadata["namespace"]),
        name=str(metadata["name"]),
        uid=str(metadata["uid"]),
        node_name=str(spec.get("nodeName") or ""),
        service_account=str(spec.get("serviceAccountName") or ""),
        labels={str(key): str(value) for key, value in (metadata.get("labels") or {}).items()},
        drivers=frozenset(driver for driver in drivers if driver),
        finished=status.get("phase") in ("Succeeded", "Failed"),
        mirror=_MIRROR in (metadata.get("annotations") or {}),
    )
