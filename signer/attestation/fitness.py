"""What a pod must be to get an identity, whoever asks: a mint is decided by it, and `explain` tells by it."""

from signer.attestation.pods import MAX_DRIVERS
from signer.cluster.objects import MAX_LABEL_CHARACTERS, MAX_LABELS
from signer.errors import Reason, Refused
from signer.model import LivePod


def check(pod: LivePod, drivers: frozenset[str]) -> None:
    """`drivers`: it must mount one of them. Raises Refused."""
    check_any(pod)
    if not pod.drivers & drivers:
        raise Refused(
            Reason.POD_WITHOUT_DRIVER,
            f"pod {pod} has no csi volume of driver {' or '.join(sorted(drivers))} (the signer's driver_names)",
        )


def check_certified(pod: LivePod) -> None:
    """It must have a podCertificate source of podsvid's Kubernetes signer. Raises Refused."""
    check_any(pod)
    if not pod.pod_certificate:
        raise Refused(
            Reason.POD_WITHOUT_CERTIFICATE_SOURCE,
            f"pod {pod} has no projected podCertificate source of this signer: no kubelet asked for it",
        )


def check_any(pod: LivePod) -> None:
    """What every pod must be, with a volume or without. Raises Refused."""
    if pod.mirror:
        raise Refused(
            Reason.POD_IS_MIRROR,
            f"pod {pod} is a static pod, for which nobody but its node speaks: run it by a DaemonSet, or without "
            "podsvid's volume",
        )
    if pod.finished:
        raise Refused(Reason.POD_FINISHED, f"pod {pod} has finished")
    if pod.left_out:
        raise Refused(
            Reason.NAMESPACE_FULL,
            f"namespace {pod.namespace} has more pods than count (the signer's pods_per_namespace), finished ones "
            f"too; the oldest do, and pod {pod} is none of them: delete others, and it is tried again",
        )
    if pod.oversized:
        raise Refused(
            Reason.POD_OVERSIZED,
            f"pod {pod} has more than {MAX_LABELS} labels, or {MAX_LABEL_CHARACTERS} characters of them, "
            f"or {MAX_DRIVERS} CSI drivers: take some away",
        )
