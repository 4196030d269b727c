"""`podsvid migrate spire`: objects of spire-controller-manager and registration entries in, podsvid's objects out."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podsvid.migrate import entries, federations, settings, spiffeids, written
from podsvid.migrate.fields import Finding, Unfit, Verdict, items, mapping, text
from podsvid.migrate.report import Report
from podsvid.migrate.scope import Scope
from podsvid.migrate.settings import CONFIG, Spire
from podsvid.migrate.sources import Document, UnusableDocument, parsed
from podsvid.migrate.written import Names, Written
from podsvid.outcome import WrongUsage
from runtime.terminal import shown
from signer.federation.relation import KIND as FEDERATION
from signer.policy.policy import DEFAULT_PATH, PolicySettings
from svid.spiffeid import TrustDomain

PRODUCT = "spire"
GROUP = "spire.spiffe.io/"
KINDS = (spiffeids.KIND, federations.KIND, entries.STATIC)
# What the signer lets a namespace have unless its settings are others.
_MOST = PolicySettings(TrustDomain("example.org")).max_per_namespace
_DOMAIN = re.compile(r"spiffe://([a-z0-9._-]{1,255})/", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """One foreign object. `kind`: of KINDS, or empty for a registration entry."""

    kind: str
    name: str
    body: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.kind else self.name

    @property
    def spec(self) -> Mapping[str, Any]:
        """Raises Unfit."""
        return mapping(self.body, "spec")


@dataclass(frozen=True, slots=True)
class Migration:
    """Everything that became of it."""

    objects: tuple[Written, ...]
    report: Report


def migrate(documents: Sequence[Document], parsed_options: argparse.Namespace) -> Migration:
    """Raises WrongUsage where nobody can say what is meant, UnusableDocument where there is nothing in them."""
    if not documents:
        # An empty pipe would look like a migration without a loss.
        raise UnusableDocument(
            "there is nothing in it: give what `kubectl get -o json` or `spire-server entry show -output json` prints"
        )
    findings: list[Finding] = []
    configs: list[Mapping[str, Any]] = []
    sources: list[Source] = []
    for document in documents:
        for found in _sources(document.where, document.value, configs):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                sources.append(found)
    if len(configs) > 1:
        raise WrongUsage(f"there is more than one {CONFIG}: give that of the cluster's own controller")
    try:
        spire = settings.read(parsed_options, configs[0] if configs else None)
    except Unfit as unfit:
        raise WrongUsage(f"{CONFIG}: {unfit}") from None
    read = len(sources) + len(findings)
    _check_class(sources, spire)
    guessed = "" if spire.names.trust_domain else _trust_domain(sources)
    spire = settings.of_trust_domain(spire, spire.names.trust_domain or guessed)
    objects, more, nodes = _carried(sources, spire)
    findings += more
    if any(each.source.startswith(spiffeids.KIND) for each in objects):
        findings += spire.wider
    findings += written.overlaps(objects)
    notes = (*_taken_to_be(guessed, sources, nodes), *_notes(objects, sources, spire, nodes))
    return Migration(tuple(objects), Report(read, len(objects), tuple(findings), notes))


def _sources(where: str, value: Any, configs: list[Mapping[str, Any]]) -> Iterator[Source | Finding]:
    if not isinstance(value, dict):
        yield Finding(Verdict.LEFT_OUT, where, "it is no object of Kubernetes, nor what spire-server prints")
        return
    try:
        kind, version = text(value, "kind"), text(value, "apiVersion")
        if not kind and "entries" in value:
            for number, each in enumerate(items(value, "entries"), 1):
                yield Source("", _entry_name(each, number), each)
        elif kind.endswith("List") and "items" in value:
            for each in items(value, "items"):
                own = {"kind": kind.removesuffix("List"), "apiVersion": version} if kind != "List" else {}
                yield from _sources(where, {**own, **each} if isinstance(each, dict) else each, configs)
        elif kind == CONFIG and version.startswith(GROUP):
            configs.append(value)
        elif kind == "ConfigMap" and any(CONFIG in str(each) for each in mapping(value, "data").values()):
            for each in mapping(value, "data").values():
                for inner in parsed(where, str(each)) if CONFIG in str(each) else ():
                    yield from _sources(inner.where, inner.value, configs)
        elif kind in KINDS and version.startswith(GROUP):
            yield Source(kind, text(mapping(value, "metadata"), "name"), value)
        else:
            what = f"{version} {kind}".strip() or "what has no kind"
            yield Finding(
                Verdict.LEFT_OUT,
                f"{kind or 'document'} {text(mapping(value, 'metadata'), 'name')}".strip() + f" ({where})",
                f"{shown(what)} is not known here",
                f"give {', '.join(KINDS)}, {CONFIG}, or what `spire-server entry show -output json` prints",
            )
    except Unfit as unfit:
        yield unfit.finding(where)


def _entry_name(entry: Any, number: int) -> str:
    found = entry if isinstance(entry, dict) else {}
    spiffe_id = found.get("spiffe_id")
    path = spiffe_id.get("path") if isinstance(spiffe_id, dict) else spiffe_id
    beside = f" ({path})" if isinstance(path, str) else ""
    return f"entry {found['id']}{beside}" if isinstance(found.get("id"), str) else f"entry number {number}{beside}"


def _check_class(sources: Sequence[Source], spire: Spire) -> None:
    """Raises WrongUsage where nobody knows on which objects the controller acts: a fallback depends on it."""
    if spire.class_known:
        return
    for each in sources:
        spec = each.body.get("spec") if each.kind else None
        if isinstance(spec, dict) and spec.get("className"):
            raise WrongUsage(
                f"{each} has className {shown(str(spec['className']))}, and which class the controller's is, is not "
                f"known: give its configuration ({CONFIG}) as a FILE, too, or --class-name"
            )


def _trust_domain(sources: Sequence[Source]) -> str:
    """The one that IDs name, empty where none does. Raises WrongUsage where nobody knows whether it is SPIRE's.

    The controller makes nothing of an object that names another trust domain than its own, and goes on.
    """
    of_entries, found = set[str](), set[str]()
    asked = False
    for each in sources:
        try:
            if each.kind == spiffeids.KIND:
                literal = _DOMAIN.match(text(each.spec, "spiffeIDTemplate"))
                asked = asked or ".TrustDomain" in str(each.spec)
            elif each.kind == entries.STATIC:
                literal = _DOMAIN.match(text(each.spec, "spiffeID"))
            elif not each.kind:
                of_entries.add(str(entries.read_entry("", each.body).spiffe_id.trust_domain))
                continue
            else:
                continue
        except Unfit:
            # It is told of when it is its turn.
            continue
        found |= {literal[1]} if literal else set()
    domains = sorted(of_entries | found)
    if len(domains) > 1:
        raise WrongUsage(f"SPIFFE IDs are of several trust domains ({', '.join(domains[:5])}): give --trust-domain")
    if asked and domains and not of_entries:
        raise WrongUsage(
            f"some templates have {{{{ .TrustDomain }}}} and others {domains[0]}, which may be another one by now: "
            f"give --trust-domain, or the controller's configuration ({CONFIG}) as a FILE, too"
        )
    return next(iter(domains), "")


def _carried(sources: Sequence[Source], spire: Spire) -> tuple[list[Written], list[Finding], entries.Aliases]:
    names = Names()
    objects: list[Written] = []
    findings: list[Finding] = []

    def take(found: Written, beside: Sequence[Finding]) -> None:
        try:
            objects.append(names.own(found))
            findings.extend(beside)
        except Unfit as unfit:
            findings.append(unfit.finding(found.source))

    mine = [each for each in sources if each.kind == spiffeids.KIND]
    each_became = [_spiffeid(each, spire) for each in mine]
    for became in spiffeids.with_safe_fallbacks(each_became):
        if became.written is None:
            findings.extend(became.findings)
        else:
            take(became.written, became.findings)
    read: list[entries.Entry] = []
    for each in sources:
        try:
            if each.kind == federations.KIND:
                take(*federations.carried(each.name, each.spec, spire))
            elif each.kind == entries.STATIC:
                read.append(entries.read_static(each.name, each.spec, spire))
            elif not each.kind:
                read.append(entries.read_entry(str(each), each.body))
        except Unfit as unfit:
            findings.append(unfit.finding(str(each)))
    nodes = entries.aliases(read)
    for entry in read:
        try:
            take(*entries.carried(entry, nodes, spire))
        except Unfit as unfit:
            findings.append(unfit.finding(entry.source))
    return objects, findings, nodes


def _spiffeid(source: Source, spire: Spire) -> spiffeids.Carried:
    try:
        return spiffeids.carried(source.name, source.spec, spire)
    except Unfit as unfit:
        return spiffeids.Carried(str(source), Scope(), findings=(unfit.finding(str(source)),))


def _taken_to_be(guessed: str, sources: Sequence[Source], nodes: entries.Aliases) -> Iterator[str]:
    """What nobody has said, and the policies rest on."""
    if guessed and all(each.kind for each in sources):
        yield f"SPIRE's trust domain is taken to be {guessed}, which IDs name: give --trust-domain if it is another."
    if nodes.by_agents:
        clusters = ", ".join(sorted(map(shown, nodes.by_agents)))
        yield (
            f"Entries' parents are agents of one namespace or account of cluster {clusters}: that is taken "
            "to be every node. Where some nodes have other agents, the policies are for pods there, too."
        )
    if any("k8s:ns-label:" in str(each.body) or "'ns-label:" in str(each.body) for each in sources):
        yield (
            "Selectors k8s:ns-label hold only where SPIRE's agents have enable_namespace_labels: where they do not, "
            "SPIRE gives such an entry to nobody, and the policy made of it is to be deleted."
        )


def _notes(
    objects: Sequence[Written], sources: Sequence[Source], spire: Spire, nodes: entries.Aliases
) -> Iterator[str]:
    policies = [each for each in objects if each.kind != FEDERATION]
    if spire.names.trust_domain:
        yield f"IDs stay the same where podsvid's trustDomain is {spire.names.trust_domain}; policies have paths alone."
    if policies:
        yield (
            f"A pod that no policy is for gets podsvid's default ID, {DEFAULT_PATH}, where SPIRE gives it none: set "
            "signer.settings.require_policy to true where it is to have none here either."
        )
        yield "A SPIRE workload may have several SVIDs, and a pod of podsvid's has one; containers of a pod share it."
    crowded = Counter(each.namespace for each in policies if each.namespace)
    for namespace, number in crowded.items():
        if number > _MOST:
            yield (
                f"Namespace {namespace} gets {number} {written.NAMESPACED} objects, of which {_MOST} count: raise "
                "signer.settings.policies_per_namespace."
            )
    if any(each.spec.get("dnsNameTemplates") or each.spec.get("dnsNamesFromServices") for each in policies):
        yield (
            "SPIRE puts the first DNS name into the subject's common name as well; podsvid's is empty without a "
            "subjectTemplate, which no policy here has."
        )
    if any(each.kind == spiffeids.KIND for each in sources):
        yield from spire.notes
    if not spire.names.cluster and len(nodes.clusters) == 1 and any(not each.kind for each in sources):
        (cluster,) = nodes.clusters
        yield f"All entries' nodes are of the cluster {shown(cluster)}: it is taken to be the one that you move."
    there = {each.spec["trustDomain"] for each in objects if each.kind == FEDERATION}
    missing = sorted({domain for each in policies for domain in each.spec["federatesWith"]} - there)
    if missing:
        yield (
            f"Policies federate with {', '.join(missing[:10])}{', …' if len(missing) > 10 else ''}, of which no "
            f"{federations.KIND} is among these: pods get such a bundle once there is a {FEDERATION}."
        )


def documents_of(migration: Migration) -> list[dict[str, Any]]:
    """The objects as the API server takes them."""
    return [each.document(PRODUCT) for each in migration.objects]
