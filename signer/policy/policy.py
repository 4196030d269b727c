"""Which identity a pod gets: policies, what they match, and the one rule by which one of them wins.

The rule. Of the policies that match a pod:
1. one with `deny` refuses, whatever the others say;
2. else the one with the highest `priority` wins;
3. else a WorkloadIdentity wins over a ClusterWorkloadIdentity;
4. else the oldest wins (`creationTimestamp`), else the first by name.
A pod has exactly one identity. No policy matches: the default one. A policy that wins and cannot be carried out for a
pod refuses: a wider policy never steps in for a narrower one that is broken.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any

import msgspec

from runtime import durations
from signer.cluster.objects import Metadata, PolicyObject, PolicyRank
from signer.cluster.places import Age
from signer.errors import InvalidPolicy, Reason, Refused
from signer.model import MAX_DNS_NAMES, Entitlement, LivePod, TtlLimits
from signer.policy.selector import Selector, read_selector
from signer.policy.services import MAX_SERVICES, Service
from signer.policy.template import Template, dns_template, is_dns_label, is_segment, path_template, subject_template
from svid.authority import is_dns_name
from svid.dnsnames import owner_of
from svid.errors import InvalidSpiffeId
from svid.identity import MAX_HINT_BYTES
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain

DEFAULT_PATH = "/ns/{namespace}/sa/{service_account}"
NAMESPACE_PREFIX = "/ns/{namespace}/"
# Bytes of a spec as JSON. What is kept of one is 90 KiB at most (bench/results/tenants.md).
GROUP = "/apis/podsvid.io/v1alpha1"
CLUSTER, NAMESPACED = "clusterworkloadidentities", "workloadidentities"
MAX_SPEC, MAX_CLUSTER_SPEC = 16 * 1024, 256 * 1024
# As the schema has them; what was stored before it had them is held to them here.
MAX_ITEMS: Mapping[str, int] = MappingProxyType({"serviceAccounts": 64, "keyAlgorithms": 9, "federatesWith": 64})
# Lists that narrow, where none means all: a list that was to have entries and has none would mean all as well.
NEVER_EMPTY = ("serviceAccounts", "keyAlgorithms")
# Of fields whose wrong type would pass for "not there", which is mostly the wider meaning.
_TYPES: Mapping[str, type] = MappingProxyType(
    {
        "podSelector": dict,
        "namespaceSelector": dict,
        "serviceAccounts": list,
        "dnsNameTemplates": list,
        "dnsNamesFromServices": bool,
        "subjectTemplate": str,
        "keyAlgorithms": list,
        "federatesWith": list,
        "priority": int,
        "deny": bool,
    }
)


@dataclass(frozen=True)
class PolicySettings:
    """The signer's own part: trust domain, the path without a policy, whether a policy is needed.

    `max_per_namespace`: policies of a namespace that count; `max_services`: its Services. `reserved_ids` are the
    signer's own elsewhere: whoever had one there would be taken for it. `ttls` are the bounds that policies' lifetimes
    are brought into elsewhere; None: nothing is said of that. `dns_names` are patterns of what a pod without a policy
    may ask for, which is decided elsewhere, too, as `own_names` are: what the signer is called by, and no pod ever.
    """

    trust_domain: TrustDomain
    default_path: str = DEFAULT_PATH
    cluster_domain: str = "cluster.local"
    require_policy: bool = False
    max_per_namespace: int = 100
    max_services: int = 5000
    reserved_ids: frozenset[SpiffeId] = frozenset()
    ttls: TtlLimits | None = None
    dns_names: tuple[str, ...] = ()
    own_names: frozenset[str] = frozenset()

    @cached_property
    def default(self) -> Template:
        """Of the path without a policy, which most pods' identities are made of. Raises InvalidPolicy."""
        return path_template(self.default_path).prepared()


@dataclass(frozen=True, slots=True)
class Policy:
    """One WorkloadIdentity (with `namespace`) or ClusterWorkloadIdentity (without).

    `problem` says why it cannot be used at all: it still matches, and refuses.
    """

    name: str
    namespace: str
    uid: str
    created: str
    generation: int = 0
    pods: Selector = Selector()
    namespaces: Selector = Selector()
    service_accounts: frozenset[str] = frozenset()
    path: Template | None = None
    dns_names: tuple[Template, ...] = ()
    dns_names_from_services: bool = False
    subject: Template | None = None
    x509_ttl: timedelta | None = None
    x509_ttl_text: str = ""
    jwt_ttl: timedelta | None = None
    jwt_ttl_text: str = ""
    key_algorithms: frozenset[KeyAlgorithm] = frozenset()
    hint: str = ""
    federates_with: tuple[TrustDomain, ...] | None = None
    priority: int = 0
    deny: bool = False
    problem: str = ""
    # Its namespace has too many: only how it ranks is known, and it refuses.
    left_out: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def object_path(self) -> str:
        """Of its object at the API server."""
        if self.namespace:
            return f"{GROUP}/namespaces/{self.namespace}/{NAMESPACED}/{self.name}"
        return f"{GROUP}/{CLUSTER}/{self.name}"

    @property
    def age(self) -> Age:
        """Smallest first: which ones of a namespace count. The API server sets the time."""
        return (self.created, self.name, self.uid)

    @property
    def rank(self) -> tuple[bool, int, bool, str, str]:
        """Smallest first: the order of the rule."""
        return (not self.deny, -self.priority, not self.namespace, self.created, self.name)

    def disputes(self, loser: "Policy") -> bool:
        """Whether nothing but age or name puts it first: nobody has said which of the two is meant."""
        return self.rank[:3] == loser.rank[:3]

    def matches(self, pod: LivePod, namespace_labels: Mapping[str, str]) -> bool:
        """Whether it is for that pod."""
        return (
            self.namespace in ("", pod.namespace)
            and (not self.service_accounts or pod.service_account in self.service_accounts)
            and self.namespaces.matches(namespace_labels)
            and self.pods.matches(pod.labels)
        )

    def outline(self, problem: str) -> "Policy":
        """Of a policy that is left out what is kept: it is for all pods of its namespace, and refuses where it wins."""
        known = (self.name, self.namespace, self.uid, self.created, self.generation)
        return Policy(*known, priority=self.priority, deny=self.deny, problem=problem, left_out=True)


def matching(policies: Iterable[Policy], pod: LivePod, namespace_labels: Mapping[str, str]) -> list[Policy]:
    """Those that match, the winner first."""
    return sorted((each for each in policies if each.matches(pod, namespace_labels)), key=lambda each: each.rank)


def decide(
    matched: Sequence[Policy],
    pod: LivePod,
    services: Iterable[Service],
    settings: PolicySettings,
    unread: Sequence[str] = (),
) -> Entitlement:
    """The entitlement by `matched`, the winner first. Raises Refused (POLICY_DENIED, POLICY_UNUSABLE).

    `services`: all that may select the pod, but those that are `unread`, for people.
    """
    if not matched:
        if settings.require_policy:
            raise Refused(
                Reason.POLICY_DENIED,
                f"no WorkloadIdentity or ClusterWorkloadIdentity matches pod {pod}, and this cluster wants one",
            )
        try:
            return Entitlement(_render_id(settings, settings.default, pod))
        except InvalidPolicy as error:
            raise Refused(Reason.POLICY_UNUSABLE, f"the default path: {error}") from None
    winner = matched[0]
    if winner.deny:
        why = f": {winner.problem}" if winner.problem else ""
        raise Refused(Reason.POLICY_DENIED, f"policy {winner} denies pod {pod} an identity{why}")
    if winner.problem or winner.path is None:
        raise Refused(Reason.POLICY_UNUSABLE, f"policy {winner} cannot be used: {winner.problem}")
    try:
        spiffe_id = _render_id(settings, winner.path, pod)
        if winner.namespace and not spiffe_id.path.startswith(f"/ns/{pod.namespace}/"):
            raise InvalidPolicy(f"{spiffe_id} is outside of the namespace's /ns/{pod.namespace}/")
        names, left_out = _dns_names(winner, pod, services, settings)
        named = "" if winner.subject is None else winner.subject.common_name(pod)
    except InvalidPolicy as error:
        raise Refused(Reason.POLICY_UNUSABLE, f"policy {winner}: {error}") from None
    left_out += unread if winner.dns_names_from_services else ()
    surprises = [f"DNS names of Services were left out: {'; '.join(left_out)}"] if left_out else []
    others = ", ".join(str(each) for each in matched[1:6] if not each.left_out and winner.disputes(each))
    if others:
        surprises.append(f"policy {winner} won over {others}, which match this pod as well: the oldest wins")
    return Entitlement(
        spiffe_id=spiffe_id,
        policy=str(winner),
        dns_names=names,
        common_name=named,
        x509_ttl=winner.x509_ttl,
        x509_ttl_text=winner.x509_ttl_text,
        jwt_ttl=winner.jwt_ttl,
        key_algorithms=winner.key_algorithms,
        hint=winner.hint,
        federates_with=winner.federates_with,
        surprises=tuple(surprises),
    )


def read_policy(body: PolicyObject) -> Policy | None:
    """A policy object; an unusable one is kept with its `problem`. None for what is none at all."""
    base = _base(body.metadata)
    if not base:
        return None
    namespace = base["namespace"]
    most = MAX_SPEC if namespace else MAX_CLUSTER_SPEC
    if memoryview(body.spec).nbytes > most:
        # Whom it is for would have to be read out of it: it is for everybody, and refuses.
        problem = f"its spec has more than {most} bytes; divide it into several policies"
        return Policy(**base, **_rank(body.spec), problem=problem)
    try:
        spec = msgspec.json.decode(body.spec) or {}
    except (ValueError, RecursionError):
        spec = None
    if not isinstance(spec, dict):
        return Policy(**base, problem="its spec cannot be read")
    # What it is for comes first: were a broken policy to match nothing, a wider one would step in for it.
    scope = _scope(spec, namespaced=bool(namespace))
    try:
        return Policy(**base, **scope, **_grants(spec, namespaced=bool(namespace)))
    except (InvalidPolicy, ValueError, TypeError, AttributeError, KeyError) as error:
        problem = str(error) if isinstance(error, InvalidPolicy) else f"{type(error).__name__} in its spec"
        return Policy(**base, **scope, problem=problem)


def read_outline(body: PolicyObject, problem: str) -> Policy | None:
    """The outline of a policy object of which no more than that is wanted."""
    base = _base(body.metadata)
    return Policy(**base, **_rank(body.spec)).outline(problem) if base else None


def _render_id(settings: PolicySettings, path: Template, pod: LivePod) -> SpiffeId:
    text = path.render(pod, is_segment, "one segment of a SPIFFE ID's path")
    try:
        found = SpiffeId.from_segments(settings.trust_domain, *text[1:].split("/"))
    except InvalidSpiffeId as error:
        raise InvalidPolicy(str(error)) from None
    owner = "this signer" if found in settings.reserved_ids else owner_of(found)
    if owner:
        # Of what was rendered: a label can say `spire` as well as a template's text.
        raise InvalidPolicy(f"{found} is {owner}'s own; no pod can have it")
    return found


def _dns_names(
    policy: Policy, pod: LivePod, services: Iterable[Service], settings: PolicySettings
) -> tuple[tuple[str, ...], list[str]]:
    names = [each.render(pod, is_dns_label, "one label of a DNS name") for each in policy.dns_names]
    for name in names:
        if not is_dns_name(name):
            raise InvalidPolicy(f"{name[:120]!r} is not a DNS name")
        if policy.namespace and not _inside(name, pod.namespace, settings.cluster_domain):
            # Else whoever may write policies in one namespace could answer for the Services of another.
            raise InvalidPolicy(f"DNS name {name} is not one of namespace {pod.namespace} (<name>.{pod.namespace}.svc)")
    left_out, others = 0, []
    for number, service in enumerate(services if policy.dns_names_from_services else ()):
        if number == MAX_SERVICES:
            others.append(f"all but {MAX_SERVICES} of those with a label of the pod in their selector")
            break
        if not service.selects(pod):
            continue
        base = f"{service.name}.{service.namespace}"
        more = [base, f"{base}.svc", f"{base}.svc.{settings.cluster_domain}"]
        if len(names) + len(more) > MAX_DNS_NAMES or not all(is_dns_name(each) for each in more):
            left_out += 1
            continue
        names += more
    return tuple(dict.fromkeys(names)), [*([f"{left_out} Services"] if left_out else []), *others]


def _inside(name: str, namespace: str, cluster_domain: str) -> bool:
    # The short form takes one label: in a namespace called svc or local, longer ones are names of other namespaces.
    short = name.endswith(f".{namespace}") and name.count(".") == 1
    return short or any(name.endswith(f".{namespace}.{end}") for end in ("svc", f"svc.{cluster_domain}"))


def _base(metadata: Metadata) -> dict[str, Any]:
    if not metadata.uid or not metadata.name:
        return {}
    return {
        "name": metadata.name,
        "namespace": metadata.namespace or "",
        "uid": metadata.uid,
        "created": metadata.creation_timestamp or "",
        "generation": metadata.generation or 0,
    }


def _rank(spec: msgspec.Raw) -> dict[str, Any]:
    """What a spec says of its place among others; all else is passed over."""
    try:
        found = msgspec.json.decode(spec, type=PolicyRank)
    except (ValueError, RecursionError):
        return {"deny": True}
    return _ranked(found.deny, found.priority)


def _ranked(deny: object, priority: object) -> dict[str, Any]:
    return {"deny": deny not in (None, False), "priority": priority if isinstance(priority, int) else 0}


def _scope(spec: Mapping[str, Any], *, namespaced: bool) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    for field, key in (("pods", "podSelector"), ("namespaces", "namespaceSelector")):
        if key == "namespaceSelector" and namespaced:
            continue
        try:
            scope[field] = read_selector(spec.get(key) or {})
        except (InvalidPolicy, TypeError, AttributeError, KeyError):
            scope[field] = Selector()
    scope |= _ranked(spec.get("deny"), spec.get("priority"))
    accounts = spec.get("serviceAccounts")
    if isinstance(accounts, list):
        scope["service_accounts"] = frozenset(map(str, accounts))
    return scope


def _grants(spec: Mapping[str, Any], *, namespaced: bool) -> dict[str, Any]:
    for key, kind in _TYPES.items():
        if spec.get(key) is not None and not isinstance(spec[key], kind):
            raise InvalidPolicy(f"{key} is of another type than its schema says")
    for key, most in MAX_ITEMS.items():
        if len(spec.get(key) or ()) > most:
            raise InvalidPolicy(f"{key} has more than {most} entries")
    for key in NEVER_EMPTY:
        if spec.get(key) is not None and not spec[key]:
            raise InvalidPolicy(f"{key} is empty: leave it out to mean all, or say which")
    read_selector(spec.get("podSelector") or {})
    read_selector(spec.get("namespaceSelector") or {})
    hint = str(spec.get("hint") or "")
    if len(hint.encode()) > MAX_HINT_BYTES:
        raise InvalidPolicy(f"hint is longer than {MAX_HINT_BYTES} bytes")
    names = spec.get("dnsNameTemplates") or []
    if len(names) > MAX_DNS_NAMES:
        raise InvalidPolicy(f"more than {MAX_DNS_NAMES} dnsNameTemplates")
    federates, subject = spec.get("federatesWith"), spec.get("subjectTemplate")
    prefix = NAMESPACE_PREFIX if namespaced else "/"
    return {
        "path": path_template(str(spec.get("spiffeIDTemplate") or DEFAULT_PATH), prefix),
        "dns_names": tuple(dns_template(str(each)) for each in names),
        "dns_names_from_services": spec.get("dnsNamesFromServices") is True,
        "subject": None if subject is None else subject_template(subject, namespaced=namespaced),
        "x509_ttl": _duration(spec, "x509TTL"),
        "x509_ttl_text": str(spec.get("x509TTL") or ""),
        "jwt_ttl": _duration(spec, "jwtTTL"),
        "jwt_ttl_text": str(spec.get("jwtTTL") or ""),
        "key_algorithms": frozenset(_key_algorithm(str(each)) for each in spec.get("keyAlgorithms") or []),
        "hint": hint,
        "federates_with": None if federates is None else tuple(_trust_domain(str(each)) for each in federates),
    }


def _duration(spec: Mapping[str, Any], key: str) -> timedelta | None:
    text = spec.get(key)
    try:
        return None if text is None else durations.parse(str(text), durations.MIN_TTL, durations.MAX_TTL)
    except durations.InvalidDuration as error:
        raise InvalidPolicy(f"{key} {str(text)[:80]!r} is not {error}") from None


def _key_algorithm(text: str) -> KeyAlgorithm:
    try:
        return KeyAlgorithm(text)
    except ValueError:
        raise InvalidPolicy(f"{text[:80]!r} is none of {', '.join(KeyAlgorithm)}") from None


def _trust_domain(text: str) -> TrustDomain:
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise InvalidPolicy(f"federatesWith: {error}") from None
