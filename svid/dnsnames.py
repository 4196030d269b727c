"""Which DNS names a pod may have in its certificate: patterns over its own names; and what no pod may have."""

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from svid.spiffeid import SpiffeId, TrustDomain

_LABEL = r"([a-z0-9-]|\{namespace\}|\{service_account\}|\{pod\})+"
_PATTERN = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII)
# What the signer's own certificate is known by; no workload ever gets it, or it could stand in for the signer.
SIGNER_NAME = "signer.podsvid.internal"
_RESERVED = "podsvid.internal"
_OWN = "podsvid"
# First segments of paths, and whose own the identities below them are. SPIRE takes whoever shows /spire/server or
# /spire/agent/… for that, where its bundle is podsvid's as well, or federates with it.
_OWNERS: Mapping[str, str] = MappingProxyType({_OWN: "podsvid", "spire": "SPIRE"})


def signer_id(trust_domain: TrustDomain) -> SpiffeId:
    """The identity of the signer's own server certificate; no policy gives it to a pod."""
    return SpiffeId.from_segments(trust_domain, _OWN, "signer")


def owner_of(spiffe_id: SpiffeId) -> str:
    """Whose own it is, so that no workload may have it, whatever a policy says; empty where nobody's."""
    first, _, _ = spiffe_id.path[1:].partition("/")
    return _OWNERS.get(first, "")


def is_pattern(text: str) -> bool:
    """Whether `text` is a pattern: lower case, `{namespace}`, `{service_account}`, `{pod}`, a leading `*.`."""
    return _PATTERN.fullmatch(text) is not None


def is_reserved(name: str, own: Collection[str] = ()) -> bool:
    """Whether no workload may have `name`, whatever a policy says; `own`: what else the signer is called by."""
    if name == _RESERVED or name.endswith(f".{_RESERVED}"):
        return True
    wide = name.startswith("*.") and any(each.partition(".")[2] == name[2:] for each in own)
    return wide or name in own


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
