"""What accounts may do by the chart's RBAC, and what they did: calls that are denied, and rules that nobody uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from signer.errors import Forbidden

# How the calls of signer.cluster.kube.KubeApi are called by RBAC.
VERBS = {
    "get": "get",
    "read": "get",
    "list": "list",
    "watch": "watch",
    "create": "create",
    "replace": "update",
    "patch": "patch",
    "delete": "delete",
}
_COLLECTION = re.compile(
    r"(?:/api/v1|/apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
)


@dataclass(frozen=True, slots=True)
class Call:
    """What somebody asked of an API server. `path` is for what is no resource; everything else is empty then."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    def __str__(self) -> str:
        what = self.path or "/".join(filter(None, [self.group, self.resource]))
        return f"{self.verb} {what} {'/'.join(filter(None, [self.namespace, self.name]))}".strip()


def call_of(verb: str, path: str, query: Mapping[str, str]) -> Call:
    """A call by its REST path, as an API server's RBAC sees it."""
    found = _COLLECTION.fullmatch(path)
    if found is None:
        return Call(verb, path=path)
    resource = "/".join(filter(None, [found["resource"], found["sub"]]))
    field, _, value = query.get("fieldSelector", "").partition("=")
    name = found["name"] or (value if field == "metadata.name" else "")
    return Call(verb, found["group"] or "", resource, found["namespace"] or "", name)


@dataclass(frozen=True, slots=True)
class Permission:
    """One verb on one resource, or path; `names` empty is all of them. `namespace` is where; empty is everywhere."""

    verb: str
    group: str
    resource: str
    names: tuple[str, ...]
    namespace: str
    path: str

    def __str__(self) -> str:
        what = self.path or "/".join(filter(None, [self.group, self.resource]))
        where = f"in {self.namespace}" if self.namespace else ""
        return " ".join(filter(None, [self.verb, what, ",".join(self.names), where]))

    def allows(self, call: Call) -> bool:
        """Whether this is one of those calls that it is for."""
        if (self.verb, self.group, self.resource, self.path) != (call.verb, call.group, call.resource, call.path):
            return False
        return (not self.names or call.name in self.names) and self.namespace in ("", call.namespace)


def permissions(documents: Iterable[Mapping[str, Any]], account: str) -> list[Permission]:
    """Those of a service account by rendered manifests, one by one."""
    known = [each for each in documents if each]
    rules = {(each["kind"], each["metadata"]["name"]): each["rules"] for each in known if each["kind"].endswith("Role")}
    found = []
    for each in known:
        if each["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if account not in [subject["name"] for subject in each["subjects"]]:
            continue
        namespace = each["metadata"]["namespace"] if each["kind"] == "RoleBinding" else ""
        for rule in rules[each["roleRef"]["kind"], each["roleRef"]["name"]]:
            names = tuple(rule.get("resourceNames", ()))
            for verb in rule["verbs"]:
                for path in rule.get("nonResourceURLs", ()):
                    found.append(Permission(verb, "", "", (), "", path))
                for group in rule.get("apiGroups", ()):
                    for resource in rule["resources"]:
                        found.append(Permission(verb, group, resource, names, namespace, ""))
    return found


def denied(given: Iterable[Permission], calls: Iterable[Call]) -> list[str]:
    """The calls that nothing allows."""
    known = list(given)
    return sorted({str(call) for call in calls if not any(each.allows(call) for each in known)})


def unused(given: Iterable[Permission], calls: Iterable[Call]) -> list[str]:
    """The permissions that no call needs: none is theirs, or another and narrower one allows each of them."""
    known, made = list(given), list(calls)
    found = []
    for each in known:
        narrower = [other for other in known if other != each and _narrower(other, each)]
        needed = [call for call in made if each.allows(call) and not any(other.allows(call) for other in narrower)]
        if not needed:
            found.append(str(each))
    return sorted(found)


def _narrower(one: Permission, other: Permission) -> bool:
    return (bool(one.names), bool(one.namespace)) > (bool(other.names), bool(other.namespace))


class Guarded:
    """An API server, or what stands in for one, that notes each call and refuses what the permissions do not allow."""

    def __init__(self, api: object, given: Iterable[Permission]) -> None:
        self._api = api
        self._given = list(given)
        self.calls: set[Call] = set()
        self.refused: set[Call] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._api, name)
        if name not in VERBS:
            return found
        asked: Callable[..., Any] = found

        def call(path: str, *rest: Any, **more: Any) -> Any:
            query = next((each for each in [*rest, *more.values()] if isinstance(each, Mapping)), {})
            made = call_of(VERBS[name], path, query if VERBS[name] in ("list", "watch") else {})
            self.calls.add(made)
            if not any(each.allows(made) for each in self._given):
                self.refused.add(made)
                raise Forbidden(f"nothing allows {made}")
            return asked(path, *rest, **more)

        return call
