"""What is known of a SPIRE installation beside its objects: the controller's configuration, or options in its place."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from podsvid.migrate.fields import Unfit, flag, mapping, text, texts
from podsvid.migrate.gotemplate import Names
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


@dataclass(frozen=True, slots=True)
class Spire:
    """`ignored`: namespaces in which the controller registers nobody. `idle`: why it registers nobody at all, or why
    nobody knows where; with `idle_to_do`. `notes`: how exactly that is known. `asleep`: kinds that nobody acts on."""

    names: Names = Names()
    class_name: str = ""
    classless: bool = True
    ignored: tuple[str, ...] = IGNORED
    idle: str = ""
    idle_to_do: str = ""
    notes: tuple[str, ...] = ()
    asleep: frozenset[str] = frozenset()

    def check_active(self, kind: str, class_name: str) -> None:
        """Raises Unfit where another controller, or none, acts on an object of that kind and class."""
        if kind in self.asleep:
            raise Unfit(f"the controller's configuration (reconcile) leaves {kind} objects alone")
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
    names = Names(
        parsed.trust_domain or text(given, "trustDomain"),
        parsed.cluster_name or text(given, "clusterName"),
        parsed.cluster_domain or text(given, "clusterDomain"),
    )
    class_name = parsed.class_name or text(given, "className")
    classless = parsed.watch_classless or flag(given, "watchClassless") or not class_name
    ignored, idle, idle_to_do, notes = _namespaces(parsed, config)
    if given.get("cacheNamespaces"):
        idle = "the controller looks at the namespaces of cacheNamespaces alone"
        idle_to_do = "write the policies by hand, with a namespaceSelector for those"
    parent = text(given, "parentIDTemplate")
    if parent and ".NodeMeta." not in parent:
        idle = f"the controller's entries have the parent {shown(parent)}, a set of nodes, and a policy is for all"
        idle_to_do = (
            "label the pods there and write policies for the label, or leave out parentIDTemplate where it is all nodes"
        )
    reconciled = mapping(given, "reconcile")
    asleep = {kind for name, kind in _RECONCILED if given.get("reconcile") is not None and not flag(reconciled, name)}
    return Spire(names, class_name, classless, ignored, idle, idle_to_do, notes, frozenset(asleep))


def _namespaces(
    parsed: argparse.Namespace, config: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], str, str, tuple[str, ...]]:
    if parsed.ignored_namespaces is not None:
        return tuple(filter(None, parsed.ignored_namespaces.split(","))), "", "", ()
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
            )
        found.append(literal[2])
        if not (literal[1] and literal[3]):
            open_ended.append(literal[2])
    notes: list[str] = []
    if open_ended:
        notes.append(
            f"The controller ignores every namespace whose name has {', '.join(open_ended)} in it; the policies leave "
            "out those that are called just so. Where there are others, give --ignored-namespaces with all of them."
        )
    if config is None:
        notes.append(
            "Which namespaces the controller ignores is taken to be its default: give its configuration as a FILE, "
            "too, or --ignored-namespaces."
        )
    return tuple(found), "", "", tuple(notes)


def of_trust_domain(spire: Spire, name: str) -> Spire:
    """The same, of that trust domain."""
    return replace(spire, names=replace(spire.names, trust_domain=name))
