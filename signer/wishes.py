"""What a pod's author asks for in a volume beside the identity, held against what policy gives the pod.

Where a mint is decided and where one is explained the same is asked here.
"""

from collections.abc import Sequence

from signer.errors import Reason, Refused
from signer.model import MAX_DNS_NAMES, Entitlement, LivePod, VolumeWish
from svid.dnsnames import allows, is_reserved
from svid.keys import KeyAlgorithm

# Where a volume's author says so.
_OF_A_VOLUME = "volumeAttributes dnsNames"


def check_key(given: Entitlement, algorithm: KeyAlgorithm) -> None:
    """Raises Refused (KEY_ALGORITHM_DENIED)."""
    allowed = given.key_algorithms
    if allowed and algorithm not in allowed:
        raise Refused(
            Reason.KEY_ALGORITHM_DENIED,
            f"policy {given.decided_by} wants keys of {', '.join(sorted(allowed))} (keyAlgorithms), this one is "
            f"{algorithm}; set volumeAttributes keyAlgorithm to one of these",
        )


def dns_names(
    pod: LivePod, given: Entitlement, wished: Sequence[str], patterns: Sequence[str], where: str = _OF_A_VOLUME
) -> list[str]:
    """All that go into the certificate; `patterns` are what a pod without a policy may ask for, `where` its author
    writes what is wished, for people.

    Raises Refused (INVALID_REQUEST, DNS_NAME_DENIED).
    """
    if len(wished) > MAX_DNS_NAMES:
        raise Refused(Reason.INVALID_REQUEST, f"at most {MAX_DNS_NAMES} DNS names can be asked for")
    patterns = patterns if given.policy is None else ()
    own = {"namespace": pod.namespace, "service_account": pod.service_account, "pod": pod.name}
    for name in wished:
        if name not in given.dns_names and not allows(patterns, name, **own):
            raise Refused(
                Reason.DNS_NAME_DENIED,
                f"{name[:253]!r} is not among the DNS names that policy {given.decided_by} gives this pod; ask for "
                f"another in {where}, or add it to the policy (dnsNameTemplates)",
            )
    names = [*given.dns_names, *(name for name in wished if name not in given.dns_names)]
    reserved = [name for name in names if is_reserved(name)]
    if reserved:
        raise Refused(Reason.DNS_NAME_DENIED, f"{reserved[0]} is the signer's own; no pod can have it")
    return names


def refusal(pod: LivePod, given: Entitlement, wish: VolumeWish, patterns: Sequence[str]) -> str:
    """For people: why a volume with that wish is refused; empty where it is not, or where it cannot be told from here.

    What no driver would send is the node's to refuse.
    """
    try:
        algorithm = KeyAlgorithm(wish.key_algorithm) if wish.key_algorithm else KeyAlgorithm.EC_P256
    except ValueError:
        return ""
    try:
        check_key(given, algorithm)
        asked = dict.fromkeys(each.strip() for each in wish.dns_names.split(",") if each.strip())
        dns_names(pod, given, list(asked), patterns)
    except Refused as error:
        return f"{error.reason}: volume {wish.volume}: {error}"
    return ""


def stale_mounts(wish: VolumeWish) -> str:
    """For people: which containers never see a renewed file of the volume; empty where all do.

    A mount by subPath stays with the file, or folder, that was there when its container began.
    """
    if not wish.by_sub_path:
        return ""
    return (
        f"volume {wish.volume} is mounted by subPath in container {', '.join(wish.by_sub_path)}: what is renewed never "
        "gets there; mount the whole volume and point the program at the file in it"
    )
