"""What a pod's author asks for in a volume, or at a podCertificate source, beside the identity, held against what
policy gives the pod.

Where a mint is decided and where one is explained the same is asked here.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from signer.errors import Reason, Refused
from signer.model import MAX_DNS_NAMES, Entitlement, LivePod, SourceWish, VolumeWish
from signer.pod_certificate_settings import DNS_NAMES
from svid.dnsnames import allows, is_reserved
from svid.keys import KeyAlgorithm

# Where a volume's author says so.
_OF_A_VOLUME = "volumeAttributes dnsNames"
_OTHER_KEY = "set volumeAttributes keyAlgorithm to one of these"
# Where a podCertificate source's author does.
OF_A_SOURCE = f"{DNS_NAMES} of the podCertificate source's userAnnotations"
# The keyTypes of such a source of which SVIDs are.
KEY_TYPES: Mapping[KeyAlgorithm, str] = MappingProxyType(
    {
        KeyAlgorithm.EC_P256: "ECDSAP256",
        KeyAlgorithm.EC_P384: "ECDSAP384",
        KeyAlgorithm.ED25519: "ED25519",
        KeyAlgorithm.RSA_3072: "RSA3072",
        KeyAlgorithm.RSA_4096: "RSA4096",
    }
)
_SET = "set the podCertificate source's keyType to"
_BY_TYPE = MappingProxyType({name: each for each, name in KEY_TYPES.items()})
# Characters of a source's wishes, and of a text that is not known, in a message.
MAX_TEXT, _SHOWN = 8 * 1024, 80


def check_key(given: Entitlement, algorithm: KeyAlgorithm, do: str = _OTHER_KEY) -> None:
    """`do`: what its author can do, for people. Raises Refused (KEY_ALGORITHM_DENIED)."""
    allowed = given.key_algorithms
    if allowed and algorithm not in allowed:
        raise Refused(
            Reason.KEY_ALGORITHM_DENIED,
            f"policy {given.decided_by} wants keys of {', '.join(sorted(allowed))} (keyAlgorithms), this one is "
            f"{algorithm}; {do}",
        )


def check_source_key(given: Entitlement, algorithm: KeyAlgorithm) -> None:
    """The same, in the words of a podCertificate source. Raises Refused (KEY_ALGORITHM_DENIED)."""
    types = " or ".join(name for each, name in KEY_TYPES.items() if each in given.key_algorithms)
    check_key(given, algorithm, f"{_SET} {types}" if types else "kubelet makes no such keys: use a csi volume")


def weak(why: str) -> Refused:
    """Of a podCertificate source's key, of which kind SVIDs are not."""
    return Refused(Reason.KEY_WEAK, f"{why}; {_SET} one of {', '.join(KEY_TYPES.values())}")


def annotated(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The DNS names that a podCertificate source's userAnnotations ask for. Raises Refused (INVALID_REQUEST)."""
    unknown = sorted(annotations.keys() - {DNS_NAMES})
    if unknown:
        raise Refused(
            Reason.INVALID_REQUEST,
            f"the user annotation {unknown[0][:_SHOWN]!r} is not known; {DNS_NAMES} is the only one",
        )
    text = annotations.get(DNS_NAMES, "")
    if len(text) > MAX_TEXT:
        raise Refused(Reason.INVALID_REQUEST, f"the user annotation {DNS_NAMES} is longer than {MAX_TEXT} characters")
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))
    if len(names) > MAX_DNS_NAMES:
        raise Refused(Reason.INVALID_REQUEST, f"{DNS_NAMES} has more than {MAX_DNS_NAMES} names")
    return names


def dns_names(
    pod: LivePod,
    given: Entitlement,
    wished: Sequence[str],
    patterns: Sequence[str],
    where: str = _OF_A_VOLUME,
    *,
    never: Collection[str],
) -> list[str]:
    """All that go into the certificate; `patterns` are what a pod without a policy may ask for, `where` its author
    writes what is wished, for people; `never` what the signer is called by, which no pod gets.

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
    # Some programs take a common name for one of a host, and compare those as DNS does.
    host = given.common_name.lower().rstrip(".")
    reserved = [name for name in (*names, host) if is_reserved(name, never)]
    if reserved:
        raise Refused(Reason.DNS_NAME_DENIED, f"{reserved[0]} is the signer's own; no pod can have it")
    return names


def refusal(
    pod: LivePod, given: Entitlement, wish: VolumeWish, patterns: Sequence[str], *, never: Collection[str]
) -> str:
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
        dns_names(pod, given, list(asked), patterns, never=never)
    except Refused as error:
        return f"{error.reason}: volume {wish.volume}: {error}"
    return ""


def source_refusal(
    pod: LivePod, given: Entitlement, wish: SourceWish, patterns: Sequence[str], *, never: Collection[str]
) -> str:
    """As `refusal`, of a podCertificate source."""
    try:
        names = annotated(dict(wish.annotations))
        if wish.key_type:
            algorithm = _BY_TYPE.get(wish.key_type)
            if algorithm is None:
                raise weak(f"SVIDs are not for keys of keyType {wish.key_type[:_SHOWN]!r}")
            check_source_key(given, algorithm)
        dns_names(pod, given, names, patterns, OF_A_SOURCE, never=never)
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
