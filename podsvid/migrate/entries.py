"""Registration entries, of `spire-server entry show -output json` or of ClusterStaticEntries, as policies."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podsvid.migrate.fields import (
    Finding,
    Unfit,
    Verdict,
    flag,
    go_duration,
    items,
    jwt_lifetimes,
    known,
    lifetime,
    mapping,
    text,
    texts,
    x509_lifetimes,
)
from podsvid.migrate.gotemplate import check_path, check_trust_domain
from podsvid.migrate.scope import Scope
from podsvid.migrate.settings import Spire
from podsvid.migrate.spiffeids import check_rights, federates_with, select
from podsvid.migrate.written import CLUSTER, NAMESPACED, Written, checked, slug
from runtime.terminal import shown
from signer.errors import InvalidPolicy
from signer.model import MAX_DNS_NAMES
from signer.policy.template import dns_template
from svid.authority import is_dns_name
from svid.errors import InvalidSpiffeId
from svid.spiffeid import SpiffeId

STATIC = "ClusterStaticEntry"
_ENTRY = (
    *("id", "spiffe_id", "parent_id", "selectors", "x509_svid_ttl", "jwt_svid_ttl", "federates_with", "hint", "admin"),
    *("created_at", "downstream", "expires_at", "dns_names", "revision_number", "store_svid", "additional_attributes"),
)
_STATIC = (
    *("spiffeID", "parentID", "selectors", "federatesWith", "x509SVIDTTL", "jwtSVIDTTL", "dnsNames", "hint", "admin"),
    *("downstream", "storeSVID", "className"),
)
_AGENT = re.compile(r"/spire/agent/(?:k8s_psat|k8s_sat)/([^/]+)/.+")
_SERVER = "/spire/server"
_NODE_ATTESTORS = ("k8s_psat", "k8s_sat")
# What nodes' agents of one DaemonSet have in common.
_COMMON = ("agent_ns:", "agent_sa:")


@dataclass(frozen=True, slots=True)
class Entry:
    """One, wherever it stands. Lifetimes in seconds, 0: the server's. `name`: its object's, empty where it has none."""

    source: str
    spiffe_id: SpiffeId
    parent: SpiffeId
    selectors: tuple[tuple[str, str], ...]
    x509: float = 0.0
    jwt: float = 0.0
    federates: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    hint: str = ""
    admin: bool = False
    downstream: bool = False
    stored: bool = False
    expires: bool = False
    with_jti: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Aliases:
    """Which parents are all nodes of a cluster: clusters by ID; `partial`: IDs of other sets of nodes;
    `by_agents`: clusters whose aliases are all of agents of one namespace or account, which counts as all of them."""

    whole: Mapping[SpiffeId, frozenset[str]] = field(default_factory=dict)
    partial: frozenset[SpiffeId] = frozenset()
    clusters: frozenset[str] = frozenset()
    by_agents: frozenset[str] = frozenset()


def read_entry(source: str, given: Any) -> Entry:
    """An entry as the server prints it. Raises Unfit."""
    if not isinstance(given, dict):
        raise Unfit("it is no object")
    known(given, _ENTRY)
    more = mapping(given, "additional_attributes")
    known(more, ("disable_x509_svid_prefetch", "jwt_svid_include_jti"), "additional attribute")
    selectors = []
    for each in items(given, "selectors"):
        if not isinstance(each, dict):
            raise Unfit("selectors has something that is no object")
        known(each, ("type", "value"), "selector's")
        selectors.append((text(each, "type"), text(each, "value")))
    return Entry(
        source,
        _id(given, "spiffe_id"),
        _id(given, "parent_id"),
        tuple(selectors),
        _number(given, "x509_svid_ttl"),
        _number(given, "jwt_svid_ttl"),
        tuple(texts(given, "federates_with")),
        tuple(texts(given, "dns_names")),
        text(given, "hint"),
        flag(given, "admin"),
        flag(given, "downstream"),
        flag(given, "store_svid"),
        _number(given, "expires_at") > 0,
        flag(more, "jwt_svid_include_jti"),
    )


def read_static(name: str, spec: Mapping[str, Any], spire: Spire) -> Entry:
    """A ClusterStaticEntry. Raises Unfit."""
    spire.check_active(STATIC, text(spec, "className"))
    known(spec, _STATIC)
    selectors = []
    for each in texts(spec, "selectors"):
        kind, colon, value = each.partition(":")
        if not kind or not colon or not value:
            raise Unfit(f"selector {shown(each)} is none")
        selectors.append((kind, value))
    return Entry(
        f"{STATIC} {name}",
        _parsed(text(spec, "spiffeID"), "spiffeID"),
        _parsed(text(spec, "parentID"), "parentID"),
        tuple(selectors),
        go_duration(text(spec, "x509SVIDTTL") or "0"),
        go_duration(text(spec, "jwtSVIDTTL") or "0"),
        tuple(texts(spec, "federatesWith")),
        tuple(texts(spec, "dnsNames")),
        text(spec, "hint"),
        flag(spec, "admin"),
        flag(spec, "downstream"),
        flag(spec, "storeSVID"),
        name=name,
    )


def aliases(entries: Iterable[Entry]) -> Aliases:
    """Of all entries those that are for nodes."""
    maybe: list[tuple[SpiffeId, str, frozenset[str]]] = []
    partial, clusters = set[SpiffeId](), set[str]()
    for each in entries:
        agent = _AGENT.fullmatch(each.parent.path)
        if agent is not None:
            clusters.add(agent[1])
        if each.parent.path != _SERVER:
            continue
        named = [value.removeprefix("cluster:") for kind, value in each.selectors if value.startswith("cluster:")]
        clusters.update(named)
        if len(named) == 1 and all(
            kind in _NODE_ATTESTORS and value.startswith(("cluster:", *_COMMON)) for kind, value in each.selectors
        ):
            agents = frozenset(value for _, value in each.selectors if value.startswith(_COMMON))
            maybe.append((each.spiffe_id, named[0], agents))
        else:
            partial.add(each.spiffe_id)
    # A cluster may have several sets of agents: then those of one account are some of its nodes.
    kinds: dict[str, set[frozenset[str]]] = {}
    for _, cluster, agents in maybe:
        kinds.setdefault(cluster, set()).add(agents)
    whole: dict[SpiffeId, frozenset[str]] = {}
    for spiffe_id, cluster, agents in maybe:
        if agents and len(kinds[cluster]) > 1:
            partial.add(spiffe_id)
        else:
            whole[spiffe_id] = whole.get(spiffe_id, frozenset()) | {cluster}
    by_agents = frozenset(cluster for cluster, found in kinds.items() if len(found) == 1 and any(found))
    return Aliases(whole, frozenset(partial), frozenset(clusters), by_agents)


def carried(entry: Entry, nodes: Aliases, spire: Spire) -> tuple[Written, list[Finding]]:
    """Its policy, and what differs. Raises Unfit."""
    if entry.parent.path == _SERVER:
        raise Unfit(
            "it is a set of nodes, and no workload", "nothing: podsvid knows nodes by Kubernetes", Verdict.NEEDLESS
        )
    check_trust_domain(str(entry.spiffe_id.trust_domain), spire.names.trust_domain)
    check_rights(admin=entry.admin, downstream=entry.downstream)
    if entry.stored:
        raise Unfit("its SVID is for a store (store_svid), and no pod's", "keep SPIRE for it: podsvid stores none")
    if entry.expires:
        raise Unfit("it ends at a time of its own (expires_at), and no policy does", "write one, and delete it in time")
    if not entry.selectors:
        raise Unfit("it has no selectors")
    scope = Scope()
    for kind, value in entry.selectors:
        scope = select(scope, kind, value)
    _check_parent(entry, nodes, spire)
    if scope.is_empty:
        raise Unfit("its selectors contradict each other: it is for no pod", "nothing", Verdict.NEEDLESS)
    names, differs = _dns_names(entry.dns_names)
    if entry.name and differs:
        # The server refuses it with a name that it does not take; of what it has printed it has taken all.
        raise Unfit(differs[0][0].replace("is left out", "cannot be said"), "write the policy by hand")
    x509, clipped = lifetime(entry.x509, "x509_svid_ttl", x509_lifetimes())
    jwt, clipped_too = lifetime(entry.jwt, "jwt_svid_ttl", jwt_lifetimes())
    differs += [*clipped, *clipped_too]
    if entry.with_jti:
        differs.append(
            ("JWT-SVIDs with a jti of their own are for all pods or for none", "set signer.settings.jwt_jti to true")
        )
    path, namespace = _path(entry, scope, names)
    written = checked(
        Written(
            NAMESPACED if namespace else CLUSTER,
            entry.name or slug(entry.spiffe_id.path),
            {
                **scope.fields(namespaced=bool(namespace)),
                "spiffeIDTemplate": path,
                **({"dnsNameTemplates": names} if names else {}),
                **({"x509TTL": x509} if x509 else {}),
                **({"jwtTTL": jwt} if jwt else {}),
                **({"hint": entry.hint} if entry.hint else {}),
                "federatesWith": federates_with(entry.federates),
            },
            entry.source,
            namespace,
            scope,
        )
    )
    return written, [Finding(Verdict.DIFFERS, entry.source, why, to_do) for why, to_do in differs]


def _path(entry: Entry, scope: Scope, names: Sequence[str]) -> tuple[str, str]:
    """The template of its path; and its namespace, where a policy of that namespace can say the same."""
    path = check_path(entry.spiffe_id.path)
    namespace = scope.namespace
    # By another label than its name a policy of a namespace cannot be for it or not.
    if namespace and len(scope.namespaces) == 1 and not names and path.startswith(f"/ns/{namespace}/"):
        return f"/ns/{{namespace}}/{path.removeprefix(f'/ns/{namespace}/')}", namespace
    return path, ""


def _check_parent(entry: Entry, nodes: Aliases, spire: Spire) -> None:
    """Raises Unfit where its pods have to be on some of the cluster's nodes."""
    if _AGENT.fullmatch(entry.parent.path) or entry.parent.path.startswith("/spire/agent/"):
        raise Unfit(
            f"its parent {shown(str(entry.parent))} is the agent of one node: it is for pods there, a policy for all",
            "label the pods of that node's workload and write a policy for the label",
        )
    clusters = nodes.whole.get(entry.parent, frozenset())
    if not clusters and entry.parent in nodes.partial:
        raise Unfit(
            f"its parent {shown(str(entry.parent))} is some of the nodes, and a policy is for all",
            "label the workload's pods and write a policy for the label",
        )
    if not clusters:
        raise Unfit(
            f"its parent {shown(str(entry.parent))} is not among these entries: of which nodes it is, is not known",
            "give all of them: `spire-server entry show -output json` without a filter, and once more with -downstream",
        )
    if spire.names.cluster:
        if spire.names.cluster not in clusters:
            raise Unfit(
                f"it is for cluster {', '.join(sorted(map(shown, clusters)))}, not for {shown(spire.names.cluster)}",
                "migrate it there",
            )
    elif len(nodes.clusters) > 1:
        raise Unfit(
            f"these entries are of several clusters ({', '.join(sorted(map(shown, nodes.clusters)))})",
            "give --cluster-name",
        )


def _dns_names(given: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    names: list[str] = []
    differs: list[tuple[str, str]] = []
    for each in dict.fromkeys(given):
        try:
            dns_template(each)
            fits = is_dns_name(each) and "{" not in each and len(names) < MAX_DNS_NAMES
        except InvalidPolicy:
            fits = False
        if fits:
            names.append(each)
        else:
            differs.append(
                (
                    f"DNS name {shown(each)} is left out: a policy has {MAX_DNS_NAMES}, in lower case, no wildcards",
                    "write it so where clients take that",
                )
            )
    return names, differs


def _id(parent: Mapping[str, Any], key: str) -> SpiffeId:
    found = parent.get(key)
    if isinstance(found, dict):
        known(found, ("trust_domain", "path"), f"{key}'s")
        return _parsed(f"spiffe://{text(found, 'trust_domain')}{text(found, 'path')}", key)
    return _parsed(text(parent, key), key)


def _parsed(value: str, key: str) -> SpiffeId:
    try:
        found = SpiffeId.parse(value)
    except InvalidSpiffeId as error:
        raise Unfit(f"{key} {shown(value)} is no SPIFFE ID: {error}") from None
    if not found.path:
        raise Unfit(f"{key} {shown(value)} has no path")
    return found


def _number(parent: Mapping[str, Any], key: str) -> float:
    found = parent.get(key)
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 19:
        return float(found)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise Unfit(f"{key} is no number")
    return float(min(max(found or 0, 0), 1 << 60))
