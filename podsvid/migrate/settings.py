"""What is known of a SPIRE installation beside its objects: the controller's configuration, or options in its place."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from podsvid.migrate.fields import Finding, Unfit, Verdict, flag, known, mapping, text, texts
from podsvid.migrate.gotemplate import Names
from podsvid.outcome import WrongUsage
from runtime.terminal import shown

CONFIG = "ControllerManagerConfig"
# As spire-controller-manager has them.
IGNORED = ("kube-system", "kube-public", "spire-system")
_RECONCILED = (
    ("clusterSPIFFEIDs", "ClusterSPIFFEID"),
    ("clusterStaticEntries", "ClusterStaticEntry"),
    ("clusterFederatedTrustDomains", "ClusterFederatedTrustDomain"),
)
_LITERAL = re.compile(r"(\^?)([a-z0-9-]+)(\$?)", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
# Those that are read below, and those that change neither who is registered nor as what.
_FIELDS: tuple[str, ...] = (
    *("apiVersion", "kind", "metadata", "clusterName", "clusterDomain", "trustDomain", "ignoreNamespaces"),
    *("className", "watchClassless", "parentIDTemplate", "reconcile", "cacheNamespace", "cacheNamespaces"),
    *("staticManifestPath", "expandEnvStaticManifests", "validatingWebhookConfigurationName", "gcInterval"),
    *("spireServerSocketPath", "syncPeriod", "leaderElection", "gracefulShutDown", "controller", "metrics", "health"),
    *("webhook", "entryIDPrefix", "entryIDPrefixCleanup", "logLevel", "logEncoding", "entryRenderCacheSize"),
)


@dataclass(frozen=True, slots=True)
class Spire:
    """`ignored`: namespaces in which the controller registers nobody. `idle`: why it registers nobody at all, or why
    nobody knows where; with `idle_to_do`. `notes`: how exactly that is known; `wider`: of whom it is not. `asleep`:
    kinds that nobody acts on. `class_known`: whether somebody has said of which class it is."""

    names: Names = Names()
    class_name: str = ""
    classless: bool = True
    ignored: tuple[str, ...] = IGNORED
    idle: str = ""
    idle_to_do: str = ""
    notes: tuple[str, ...] = ()
    asleep: frozenset[str] = frozenset()
    wider: tuple[Finding, ...] = ()
    class_known: bool = False

    def is_others(self, class_name: str) -> bool:
        """Whether it is certain that this controller leaves an object of that class alone."""
        return bool(self.class_name) and class_name != self.class_name and bool(class_name or not self.classless)

    def check_active(self, kind: str, class_name: str) -> None:
        """Raises Unfit where another controller, or none, acts on an object of that kind and class."""
        if kind in self.asleep:
            raise Unfit(f"the controller's configuration (reconcile, staticManifestPath) leaves {kind} objects alone")
        if class_name == self.class_name or (not class_name and self.classless):
            return
        if not class_name:
            raise Unfit("it has no className, and this controller acts on its own class alone", _CLASSLESS)
        raise Unfit(
            f"it is of class {shown(class_name)}, which is {'another than' if self.class_name else 'not known to be'} "
            "this controller's",
            f"give --class-name {class_name if class_name.isprintable() else 'NAME'} if the controller's is that one",
        )


_CLASSLESS = "give --watch-classless if the controller's configuration has watchClassless"


def read(parsed: argparse.Namespace, config: Mapping[str, Any] | None) -> Spire:
    """By the options, else the controller's configuration. Raises Unfit for a configuration that cannot be read."""
    given = config or {}
    known(given, _FIELDS)
    names = Names(
        parsed.trust_domain or text(given, "trustDomain"),
        parsed.cluster_name or text(given, "clusterName"),
        parsed.cluster_domain or text(given, "clusterDomain"),
    )
    class_name = parsed.class_name or text(given, "className")
    classless = parsed.watch_classless or flag(given, "watchClassless") or not class_name
    ignored, idle, idle_to_do, notes, wider = _namespaces(parsed, config)
    cached = [each for each in ("cacheNamespaces", "cacheNamespace") if given.get(each)]
    if cached:
        idle = f"the controller looks at the namespaces of {cached[0]} alone"
        idle_to_do = "write the policies by hand, with a namespaceSelector for those"
    parent = text(given, "parentIDTemplate")
    if parent and ".NodeMeta." not in parent:
        idle = f"the controller's entries have the parent {shown(parent)}, a set of nodes, and a policy is for all"
        idle_to_do = (
            "label the pods there and write policies for the label, or leave out parentIDTemplate where it is all nodes"
        )
    reconciled = mapping(given, "reconcile")
    asleep = {kind for name, kind in _RECONCILED if given.get("reconcile") is not None and not flag(reconciled, name)}
    if given.get("staticManifestPath"):
        # It reads files in the place of these objects, and registers no pods by them unless it is told to.
        asleep.add("ClusterSPIFFEID")
    certain = config is not None or bool(parsed.class_name)
    return Spire(names, class_name, classless, ignored, idle, idle_to_do, notes, frozenset(asleep), wider, certain)


def _namespaces(
    parsed: argparse.Namespace, config: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], str, str, tuple[str, ...], tuple[Finding, ...]]:
    if parsed.ignored_namespaces is not None:
        return _listed(parsed.ignored_namespaces), "", "", (), ()
    patterns = tuple(texts(config, "ignoreNamespaces")) if config and "ignoreNamespaces" in config else IGNORED
    found, open_ended = [], []
    for each in patterns:
        literal = _LITERAL.fullmatch(each)
        if literal is None:
            return (
                (),
                f"the controller ignores namespaces by {shown(each)}, and selectors have no such patterns",
                "give --ignored-namespaces with their names",
                (),
                (),
            )
        found.append(literal[2])
        if not (literal[1] and literal[3]):
            open_ended.append(literal[2])
    notes: list[str] = []
    wider: list[Finding] = []
    if open_ended:
        wider.append(
            Finding(
                Verdict.DIFFERS,
                "every ClusterSPIFFEID",
                f"the controller ignores each namespace whose name has {', '.join(open_ended)} in it, and policies "
                "leave out only those with exactly that name",
                "give --ignored-namespaces with all that there are",
            )
        )
    if config is None:
        notes.append(
            "Which namespaces the controller ignores is taken to be its default: give its configuration as a FILE, "
            "too, or --ignored-namespaces."
        )
    return tuple(found), "", "", tuple(notes), tuple(wider)


def _listed(option: str) -> tuple[str, ...]:
    names = [each.strip() for each in option.split(",") if each.strip()]
    for each in names:
        # What is no name is nobody's: the policies would be for a namespace that is meant to be left out.
        if not _NAMESPACE.fullmatch(each):
            raise WrongUsage(f"--ignored-namespaces: {shown(each)} is no namespace's name; such as kube-system,spire")
    return tuple(names)


def of_trust_domain(spire: Spire, name: str) -> Spire:
    """The same, of that trust domain."""
    return replace(spire, names=replace(spire.names, trust_domain=name))
