"""The PodCertificateRequests that are not decided, as the API server has them, and whose turn it is."""

from runtime.clock import Clock
from signer.cluster.kube import KubeApi
from signer.cluster.mirror import Mirror
from signer.cluster.objects import PodCertificateRequestObject
from signer.front.certificate_request import CertificateRequest, is_decided, read_request
from signer.front.turns import Turns
from signer.pod_certificate_settings import SIGNER_NAME

GROUP = "/apis/certificates.k8s.io"
# That are held, of all nodes, of one, and of a pod: its author may have as many sources as he likes.
MOST, OF_NODE, OF_POD = 2000, 500, 8


class Following:
    """What is followed of one version."""

    def __init__(self, api: KubeApi, version: str, clock: Clock) -> None:
        self.version = version
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

    def has_room_again(self) -> bool:
        """Whether one that had none would have it, and others with it."""
        return len(self.turns) < MOST // 2 and any(self.turns.room(*each) for each in self._left_out)

    def _read(self, body: PodCertificateRequestObject) -> CertificateRequest | None:
        spec, uid = body.spec, body.metadata.uid
        # Before anything of it is kept.
        if spec is not None and uid not in self.turns:
            of = spec.node_name or "", spec.pod_uid or ""
            if not self.turns.room(*of):
                if len(self._left_out) < MOST and not is_decided(body):
                    self._left_out.add(of)
                return None
        return read_request(body)

    def _observe(self, old: CertificateRequest | None, new: CertificateRequest | None) -> None:
        if new is not None:
            self.turns.add(new.uid, new.claimed.node_name, new.claimed.pod.uid, new.created)
        elif old is not None:
            self.turns.remove(old.uid)
