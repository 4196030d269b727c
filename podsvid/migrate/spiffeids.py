"""A ClusterSPIFFEID as a ClusterWorkloadIdentity."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from podsvid.migrate.fields import (
    Finding,
    Unfit,
    Verdict,
    flag,
    go_duration,
    jwt_lifetimes,
    known,
    lifetime,
    text,
    texts,
    x509_lifetimes,
)
from podsvid.migrate.gotemplate import Translated, dns_name, id_path, translate
from podsvid.migrate.scope import NAME_LABEL, Condition, Scope, equals, read_selector
from podsvid.migrate.settings import Spire
from podsvid.migrate.written import CLUSTER, Written, checked
from runtime.terminal import shown
from signer.model import MAX_DNS_NAMES
from signer.policy.policy import MAX_ITEMS
from svid.errors import InvalidSpiffeId
from svid.spiffeid import TrustDomain

KIND = "ClusterSPIFFEID"
# Lower than what is no fallback: it wins where nothing else matches.
FALLBACK_PRIORITY = -1
_FIELDS = (
    *("spiffeIDTemplate", "ttl", "jwtTtl", "dnsNameTemplates", "workloadSelectorTemplates", "federatesWith"),
    *(
        "namespaceSelector",
        "podSelector",
        "admin",
        "downstream",
        "autoPopulateDNSNames",
        "className",
        "fallback",
        "hint",
    ),
)
# What a template of a selector says of every pod.
_TAUTOLOGIES = ("ns:{namespace}", "sa:{service_account}", "pod-uid:{pod_uid}", "pod-name:{pod}", "node-name:{node}")
_OF_SERVICES = (
    "names of Services have their namespace (SERVICE.NAMESPACE, .svc and the cluster's domain after it), and are of "
    "Services whose selector has the pod, ready or not"
)
_REFUSED = (
    "a pod is refused here of which a value in a DNS name is missing, or is not one lower-case label (a name with "
    "a dot)"
)
_NAME_BY_HAND = "write the policy by hand, with the names that its pods need"
_LABEL = re.compile(r"\{labels\['[^']*'\]\}")
_LABEL_SELECTOR = re.compile(r"pod-label:([^:{}]+):\{labels\['([^']*)'\]\}")


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of one. `scope`: whom the ClusterSPIFFEID is for; `exact`: the policy is for just those."""

    source: str
    scope: Scope
    fallback: bool = False
    exact: bool = False
    idle: bool = False
    written: Written | None = None
    findings: tuple[Finding, ...] = ()


def carried(name: str, spec: Mapping[str, Any], spire: Spire) -> Carried:
    """Its policy, or why there is none."""
    source = f"{KIND} {name}"
    scope, fallback, idle = Scope(), spec.get("fallback") is not None and spec["fallback"] is not False, False
    try:
        idle = KIND in spire.asleep or spire.is_others(text(spec, "className"))
        scope = Scope(read_selector(spec, "podSelector"), read_selector(spec, "namespaceSelector"))
        spire.check_active(KIND, text(spec, "className"))
        if spire.idle:
            raise Unfit(spire.idle, spire.idle_to_do)
        return _carried(source, name, spec, scope, spire)
    except Unfit as unfit:
        # What is for no pod takes none from a fallback either.
        exact = unfit.verdict is Verdict.NEEDLESS
        return Carried(source, scope, fallback, exact, idle, findings=(unfit.finding(source),))


def with_safe_fallbacks(found: Sequence[Carried]) -> list[Carried]:
    """A fallback is for pods that nothing else is for: where something else is not written, it is to leave those alone.

    By one condition of that other's, turned round: so it leaves alone all of its pods, and perhaps some more.
    """
    others = [each for each in found if not each.fallback and not each.exact and not each.idle]
    return [_safe(each, others) if each.fallback and each.written else each for each in found]


def _safe(fallback: Carried, others: Sequence[Carried]) -> Carried:
    written = fallback.written
    assert written is not None
    scope, findings = written.scope, list(fallback.findings)
    for other in others:
        if not other.scope.meets(scope):
            continue
        what = f"it is a fallback, and {other.source} may be for the same pods and is not written for all of them"
        without = other.scope.turned_from(scope)
        if without is None or without.is_empty:
            unfit = Unfit(
                f"{what}: these would get the fallback's ID here",
                f"write a policy for those of {other.source} first, then this one by hand",
            )
            return replace(fallback, written=None, findings=(unfit.finding(fallback.source),))
        scope = without
        to_do = "write policies for the pods that it is not for any more, where they are to have an ID"
        findings.append(Finding(Verdict.DIFFERS, fallback.source, f"{what}: it leaves alone more pods here", to_do))
    beside = {key: value for key, value in written.spec.items() if key not in Scope.FIELDS}
    narrowed = checked(replace(written, scope=scope, spec={**scope.fields(namespaced=False), **beside}))
    return replace(fallback, written=narrowed, findings=tuple(findings))


def check_rights(*, admin: bool, downstream: bool) -> None:
    """Raises Unfit for an ID by which SPIRE's server obeys its holder."""
    if admin or downstream:
        what = "administers SPIRE's server (admin)" if admin else "is a SPIRE server's below it (downstream)"
        raise Unfit(
            f"its SVID {what}: while both sides trust one root, whoever had it from podsvid could do so, too",
            "leave it to SPIRE, and give the workload an ID of its own where it needs one from podsvid",
        )


def federates_with(names: Sequence[str]) -> list[str]:
    """Trust domains, of names or IDs. Never absent: without the field podsvid gives all there are. Raises Unfit."""
    found = list(dict.fromkeys(each.removeprefix("spiffe://") for each in names))
    if len(found) > MAX_ITEMS["federatesWith"]:
        raise Unfit(f"it federates with more than {MAX_ITEMS['federatesWith']} trust domains")
    for each in found:
        try:
            TrustDomain.parse(each)
        except InvalidSpiffeId as error:
            raise Unfit(f"federatesWith: {error}") from None
    return found


def _heeded(scope: Scope, spire: Spire) -> Scope:
    """`scope` without the namespaces that the controller ignores."""
    but = Condition(NAME_LABEL, "NotIn", frozenset(spire.ignored))
    for each in scope.namespaces:
        if each.key == NAME_LABEL and each.operator == "In" and not each.values & but.values:
            return scope
    return scope.with_namespaces(but) if spire.ignored else scope


def _carried(source: str, name: str, spec: Mapping[str, Any], scope: Scope, spire: Spire) -> Carried:
    known(spec, _FIELDS)
    check_rights(admin=flag(spec, "admin"), downstream=flag(spec, "downstream"))
    if not text(spec, "spiffeIDTemplate"):
        raise Unfit("it has no spiffeIDTemplate")
    path = id_path(text(spec, "spiffeIDTemplate"), spire.names)
    differs: list[tuple[str, str]] = []
    # Without such a label Go's template makes no ID of it, and the pod is as one that the object is not for.
    told = {each.key for each in scope.pods if each.operator in ("In", "Exists")}
    names, in_names, told_of_names = _dns_names(texts(spec, "dnsNameTemplates"), spire)
    labels = [each for each in dict.fromkeys(in_names) if each not in {*told, *path.labels}]
    needed = (Condition(each, "Exists") for each in (*path.labels, *labels) if each not in told)
    own = _heeded(scope, spire).with_pods(*needed)
    # A name that cannot be costs a pod its entry as well, yet the object has taken it from the fallbacks.
    exact = not labels
    for label in labels:
        why = f"a pod without label {shown(label)}, of a DNS name, gets nothing of it here"
        differs.append((why, "label the pods"))
    for label in _loose(path):
        exact = False
        differs.append((f"a pod without label {shown(label)} gets nothing of it here", "label the pods"))
    own, narrowed = _selected(own, texts(spec, "workloadSelectorTemplates"), spire)
    if own.is_empty:
        raise Unfit("no pod can be as it says", "nothing", Verdict.NEEDLESS)
    differs += told_of_names
    if flag(spec, "autoPopulateDNSNames"):
        differs.append(
            (
                _OF_SERVICES,
                "let clients use one of those names",
            )
        )
    x509, clipped = lifetime(go_duration(text(spec, "ttl") or "0"), "ttl", x509_lifetimes())
    jwt, clipped_too = lifetime(go_duration(text(spec, "jwtTtl") or "0"), "jwtTtl", jwt_lifetimes())
    differs += [*clipped, *clipped_too]
    fallback = flag(spec, "fallback")
    written = checked(
        Written(
            CLUSTER,
            name,
            {
                **own.fields(namespaced=False),
                "spiffeIDTemplate": path.text,
                **({"dnsNameTemplates": names} if names else {}),
                **({"dnsNamesFromServices": True} if flag(spec, "autoPopulateDNSNames") else {}),
                **({"x509TTL": x509} if x509 else {}),
                **({"jwtTTL": jwt} if jwt else {}),
                **({"hint": text(spec, "hint")} if text(spec, "hint") else {}),
                "federatesWith": federates_with(texts(spec, "federatesWith")),
                **({"priority": FALLBACK_PRIORITY} if fallback else {}),
            },
            source,
            scope=own,
        )
    )
    findings = tuple(Finding(Verdict.DIFFERS, source, why, to_do) for why, to_do in differs)
    return Carried(source, scope, fallback, exact and not narrowed, written=written, findings=findings)


def _loose(path: Translated) -> list[str]:
    """Labels that are a part of a segment: Go's templates leave such a part empty where there is no such label."""
    segments = _LABEL.sub("\0", path.text).split("/")
    return list(path.labels) if any("\0" in each and each != "\0" for each in segments) else []


def _selected(scope: Scope, templates: Sequence[str], spire: Spire) -> tuple[Scope, bool]:
    """`scope` with what workload selectors say beside; whether they narrow it."""
    before = scope
    for each in templates:
        found = translate(each, spire.names).text
        kind, _, value = found.partition(":")
        own = _LABEL_SELECTOR.fullmatch(value)
        if kind != "k8s":
            raise unselectable(each)
        if value in _TAUTOLOGIES:
            continue
        if own is not None and own[1] == own[2]:
            scope = scope.with_pods(Condition(own[1], "Exists"))
        elif "{" in value:
            raise unselectable(each)
        else:
            scope = select(scope, kind, value)
    return scope, scope != before


def select(scope: Scope, kind: str, value: str) -> Scope:
    """`scope` with one selector of SPIRE's beside. Raises Unfit for one that says what no policy can say."""
    what, _, rest = value.partition(":")
    if kind == "k8s" and rest:
        if what == "ns":
            return scope.with_namespaces(equals(NAME_LABEL, rest))
        if what == "sa":
            return scope.of_account(rest)
        if what in ("pod-label", "ns-label"):
            key, colon, label = rest.partition(":")
            if key and colon:
                more = equals(key, label)
                return scope.with_pods(more) if what == "pod-label" else scope.with_namespaces(more)
    raise unselectable(f"{kind}:{value}")


def unselectable(selector: str) -> Unfit:
    """No policy can say that."""
    what = selector.removeprefix("k8s:").partition(":")[0]
    advice = {
        "pod-uid": "give the ClusterSPIFFEIDs of which spire-controller-manager made it; a policy outlives pods",
        "pod-name": "label the pod and write a policy for the label",
        "node-name": "label the pods of that node's workload and write a policy for the label",
        "container-name": "a pod has one identity: give it to the pod by its labels or account, or divide the pod",
    }
    return Unfit(
        f"selector {shown(selector)} says what no policy can say, and without it the policy would be for more pods",
        advice.get(what, "give the pods a label or a service account of their own, and write a policy for that"),
    )


def _dns_names(templates: Sequence[str], spire: Spire) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Those here, the labels they need, what differs. Raises Unfit: without one of its names SPIRE has no entry."""
    found = []
    for each in dict.fromkeys(templates):
        try:
            found.append(dns_name(each, spire.names))
        except Unfit as unfit:
            raise Unfit(f"DNS name {shown(each)} cannot be said: {unfit}", unfit.to_do or _NAME_BY_HAND) from None
    names = list(dict.fromkeys(each.text for each in found))
    if len(names) > MAX_DNS_NAMES:
        raise Unfit(f"it has more than {MAX_DNS_NAMES} DNS names, which no policy has", _NAME_BY_HAND)
    differs = []
    if any("{" in each.replace("{namespace}", "").replace("{pod_uid}", "") for each in names):
        differs.append((_REFUSED, "leave that DNS name out for those pods"))
    return names, [label for each in found for label in each.labels], differs
