"""The PodCertificateRequests that are not decided, as the API server has them, and whose turn it is."""

import asyncio

from runtime.clock import Clock
from runtime.stopping import end
from signer.cluster.kube import KubeApi
from signer.cluster.mirror import Mirror
from signer.cluster.objects import PodCertificateRequestObject
from signer.front.certificate_request import CertificateRequest, is_decided, read_request
from signer.front.turns import Turns
from signer.pod_certificate_settings import SIGNER_NAME

GROUP = "/apis/certificates.k8s.io"
# That are held, of all nodes, of one, and of a pod: its author may have as many sources as he likes. A node's 110 pods,
# which is kubelet's default, all have their places.
MOST, OF_NODE, OF_POD = 2000, 500, 4


class Following:
    """What is followed of one version."""

    def __init__(self, api: KubeApi, version: str, clock: Clock) -> None:
        self.version = version
        self._clock = clock
        self.turns = Turns(MOST, OF_NODE, OF_POD)
        # Node and pod of those that had no room: they come with the next list.
        self._left_out: set[tuple[str, str]] = set()
        self.mirror: Mirror[PodCertificateRequestObject, CertificateRequest] = Mirror(
            api,
            f"{GROUP}/{version}/podcertificaterequests",
            PodCertificateRequestObject,
            self._read,
            clock,
            {"fieldSelector": f"spec.signerName={SIGNER_NAME}"},
            observe=self._observe,
        )

    async def run(self, look: float, again: float) -> None:
        """Follow, for ever; what was left out is read again when it may have a place. `look`: seconds between looks
        whether it may, `again`: at least that many between two lists."""
        while True:
            following = asyncio.ensure_future(self.mirror.run())
            again_at = self._clock.monotonic() + again
            try:
                while self._clock.monotonic() < again_at or not self._may_have_room():
                    await asyncio.wait([following], timeout=look)
                    if following.done():
                        following.result()
            finally:
                await end([following])
            self._left_out.clear()

    def _may_have_room(self) -> bool:
        """Whether one that was left out would have a place, and others with it: those that were put off may wait for
        days, and whoever comes has their places."""
        few, turns = self.turns.never_put_off() < MOST // 2, self.turns
        return any((few and turns.room(*each)) or turns.gives_way(*each) is not None for each in self._left_out)

    def _room(self, node: str, pod: str) -> bool:
        """Whether it has a place, which who was put off may have to give it: what waits for long keeps out nobody
        whose turn has not come yet."""
        key = self.turns.gives_way(node, pod)
        found = self.mirror.find(key) if key is not None else None
        if found is not None:
            self._leave_out(found.claimed.node_name, found.claimed.pod.uid)
            self.mirror.swap(found.uid, found, None)
        return self.turns.room(node, pod)

    def _leave_out(self, node: str, pod: str) -> None:
        if len(self._left_out) < MOST:
            self._left_out.add((node, pod))

    def _read(self, body: PodCertificateRequestObject) -> CertificateRequest | None:
        spec, uid = body.spec, body.metadata.uid
        # Before anything of it is kept.
        if spec is not None and uid not in self.turns:
            of = spec.node_name or "", spec.pod_uid or ""
            if is_decided(body):
                return None
            if not self._room(*of):
                self._leave_out(*of)
                return None
        return read_request(body)

    def _observe(self, old: CertificateRequest | None, new: CertificateRequest | None) -> None:
        if new is not None:
            self.turns.add(new.uid, new.claimed.node_name, new.claimed.pod.uid, new.created)
        elif old is not None:
            self.turns.remove(old.uid)
