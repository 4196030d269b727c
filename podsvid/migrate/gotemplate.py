"""Go templates of spire-controller-manager, as far as they say what podsvid's templates can say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from podsvid.migrate.fields import Unfit
from runtime.terminal import shown
from signer.errors import InvalidPolicy
from signer.policy.template import Template, dns_template, path_template
from svid.authority import is_dns_name
from svid.dnsnames import owner_of
from svid.errors import InvalidSpiffeId
from svid.spiffeid import SCHEME, SpiffeId, TrustDomain

MAX_TEMPLATE = 4096
_ACTION = re.compile(r"\{\{(-[ \t\r\n])?((?:[^{}]|\{(?!\{)|\}(?!\}))*?)([ \t\r\n]-)?\}\}")
_BLANK = " \t\r\n"
_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        ".PodMeta.Namespace": "{namespace}",
        ".PodMeta.Name": "{pod}",
        ".PodMeta.UID": "{pod_uid}",
        ".PodSpec.ServiceAccountName": "{service_account}",
        ".PodSpec.NodeName": "{node}",
        # The object of the node that the pod is on.
        ".NodeMeta.Name": "{node}",
    }
)
_INDEX = re.compile(r"""index[ \t]+\.PodMeta\.Labels[ \t]+(?:"([^"\\]*)"|`([^`]*)`)""")
_DOTTED = re.compile(r"\.PodMeta\.Labels\.([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", re.ASCII)
# Of no text that anybody writes.
_UNKNOWN_DOMAIN = "\0"
_OPTIONS = MappingProxyType(
    {".TrustDomain": "--trust-domain", ".ClusterName": "--cluster-name", ".ClusterDomain": "--cluster-domain"}
)


@dataclass(frozen=True, slots=True)
class Names:
    """What the controller puts into every template. Empty: not known."""

    trust_domain: str = ""
    cluster: str = ""
    cluster_domain: str = ""

    def of(self, action: str) -> str:
        """The value of an action that is one of the three."""
        return {
            ".TrustDomain": self.trust_domain,
            ".ClusterName": self.cluster,
            ".ClusterDomain": self.cluster_domain,
        }[action]


@dataclass(frozen=True, slots=True)
class Translated:
    """`text` with podsvid's placeholders. `labels`: keys of the labels that it needs."""

    text: str
    labels: tuple[str, ...] = ()


def translate(template: str, names: Names) -> Translated:
    """The same with placeholders. Raises Unfit."""
    if len(template) > MAX_TEMPLATE:
        raise Unfit(f"a template has more than {MAX_TEMPLATE} characters")
    parts: list[str] = []
    labels: list[str] = []
    at, trim = 0, False
    for found in _ACTION.finditer(template):
        fixed = template[at : found.start()]
        fixed = fixed.lstrip(_BLANK) if trim else fixed
        parts.append(_fixed(fixed.rstrip(_BLANK) if found[1] else fixed))
        parts.append(_action(found[2].strip(_BLANK), names, labels))
        at, trim = found.end(), bool(found[3])
    rest = template[at:]
    parts.append(_fixed(rest.lstrip(_BLANK) if trim else rest))
    return Translated("".join(parts), tuple(dict.fromkeys(labels)))


def id_path(template: str, names: Names) -> Translated:
    """The path template of a SPIFFE ID's template, whose trust domain has to be the cluster's. Raises Unfit."""
    found = translate(template, Names(names.trust_domain or _UNKNOWN_DOMAIN, names.cluster, names.cluster_domain))
    if not found.text.startswith(SCHEME):
        raise Unfit(f"the SPIFFE ID's template {shown(template)} does not begin with {SCHEME}")
    domain, slash, rest = found.text[len(SCHEME) :].partition("/")
    check_trust_domain(domain, names.trust_domain or _UNKNOWN_DOMAIN)
    if _UNKNOWN_DOMAIN in rest:
        raise Unfit(
            f"the path of {shown(template)} has the trust domain's name, which is not known", "give --trust-domain"
        )
    return Translated(check_path(slash + rest), found.labels)


def check_trust_domain(found: str, wanted: str) -> None:
    """Raises Unfit where an ID is of another trust domain; `wanted` is empty where none is known yet."""
    if wanted and found != wanted and found != _UNKNOWN_DOMAIN:
        raise Unfit(
            f"its SPIFFE ID is of trust domain {shown(found)}, and a podsvid has one trust domain",
            "migrate it where podsvid's trustDomain is that one (--trust-domain)",
        )
    if found != _UNKNOWN_DOMAIN:
        try:
            TrustDomain.parse(found)
        except InvalidSpiffeId as error:
            raise Unfit(f"its SPIFFE ID cannot be read: {error}") from None


def check_path(text: str) -> str:
    """A path template that the signer takes and gives to pods. Raises Unfit."""
    try:
        path_template(text)
    except InvalidPolicy as error:
        raise Unfit(f"the path {shown(text)} is no template of podsvid's: {error}") from None
    first = text[1:].partition("/")[0]
    owner = "" if "{" in first else owner_of(SpiffeId.from_segments(TrustDomain("example.org"), first))
    if owner:
        raise Unfit(f"the path {shown(text)} is {owner}'s own, and no pod gets it", "give the workload another ID")
    return text


def dns_name(template: str, names: Names) -> Translated:
    """A DNS name's template. Raises Unfit."""
    found = translate(template, names)
    try:
        dns_template(found.text)
    except InvalidPolicy as error:
        raise Unfit(str(error)) from None
    if not found.labels and "{" not in found.text and not is_dns_name(found.text):
        raise Unfit(f"{shown(found.text)} is no DNS name")
    return found


def _fixed(text: str) -> str:
    if "{" in text or "}" in text:
        raise Unfit(f"{shown(text)} has a brace outside of an action")
    return text


def _action(action: str, names: Names, labels: list[str]) -> str:
    if action in _FIELDS:
        return _FIELDS[action]
    if action in _OPTIONS:
        value = names.of(action)
        if not value:
            raise Unfit(
                f"{{{{ {action} }}}} is not known", f"give {_OPTIONS[action]}, or the controller's configuration"
            )
        return _fixed(value)
    indexed, dotted = _INDEX.fullmatch(action), _DOTTED.fullmatch(action)
    if indexed is not None:
        key = indexed[1] if indexed[1] is not None else indexed[2]
    elif dotted is not None:
        key = dotted[1]
    else:
        raise Unfit(
            f"{{{{ {action[:80]} }}}} has no counterpart",
            "podsvid's templates have the pod's namespace, service account, name, UID, node and labels, and no "
            "functions: write the policy by hand, or put the value into a label of the pod",
        )
    if not _LABEL_KEY.fullmatch(key):
        raise Unfit(f"{shown(key)} is no key of a label")
    labels.append(key)
    placeholder = f"{{labels['{key}']}}"
    try:
        Template.parse(placeholder)
    except InvalidPolicy as error:
        raise Unfit(str(error)) from None
    return placeholder
