"""Which DNS names a pod may have in its certificate: patterns over the pod's own names; and the signer's own names."""

import re
from collections.abc import Sequence

from svid.spiffeid import SpiffeId, TrustDomain

_LABEL = r"([a-z0-9-]|\{namespace\}|\{service_account\}|\{pod\})+"
_PATTERN = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII)
# What the signer's own certificate is known by; no workload ever gets it, or it could stand in for the signer.
SIGNER_NAME = "signer.podsvid.internal"
_RESERVED = "podsvid.internal"
# Below this first segment of a path are podsvid's own identities.
_OWN = "podsvid"


def signer_id(trust_domain: TrustDomain) -> SpiffeId:
    """The identity of the signer's own server certificate; no policy gives it to a pod."""
    return SpiffeId.from_segments(trust_domain, _OWN, "signer")


def is_own_id(spiffe_id: SpiffeId) -> bool:
    """Whether it is one of podsvid's own, which no workload may have, whatever a policy says."""
    return f"{spiffe_id.path}/".startswith(f"/{_OWN}/")


def is_pattern(text: str) -> bool:
    """Whether `text` is a pattern: lower case, `{namespace}`, `{service_account}`, `{pod}`, a leading `*.`."""
    return _PATTERN.fullmatch(text) is not None


def is_reserved(name: str) -> bool:
    """Whether no workload may have `name`, whatever a policy says."""
    return name == _RESERVED or name.endswith(f".{_RESERVED}")


def allows(patterns: Sequence[str], name: str, *, namespace: str, service_account: str, pod: str) -> bool:
    """Whether one of `patterns` grants a pod the DNS name `name` (lower case); a leading `*.` stands for one label."""
    if is_reserved(name):
        return False
    values = {"{namespace}": namespace, "{service_account}": service_account, "{pod}": pod}
    for pattern in patterns:
        wanted = pattern
        for placeholder, value in values.items():
            if placeholder in wanted:
                # A dot in the value would make labels that the pattern's author did not mean.
                wanted = wanted.replace(placeholder, value) if "." not in value else ""
        label, _, rest = name.partition(".")
        if name == wanted or (wanted.startswith("*.") and label and rest == wanted[2:]):
            return bool(wanted)
    return False
