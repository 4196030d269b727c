"""Whom a policy is for: conditions that all must hold; whether two scopes can be of one pod."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from podsvid.migrate.fields import Unfit, items, known, mapping, text, texts
from runtime.terminal import shown

# Of every namespace, by the API server itself, and nobody can change it.
NAME_LABEL = "kubernetes.io/metadata.name"
_WITH_VALUES = ("In", "NotIn")
_OPPOSITE = {"In": "NotIn", "NotIn": "In", "Exists": "DoesNotExist", "DoesNotExist": "Exists"}
_OPERATORS = (*_WITH_VALUES, "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on labels, as Kubernetes reads it."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    @property
    def turned(self) -> "Condition":
        """Its opposite."""
        return Condition(self.key, _OPPOSITE[self.operator], self.values)


@dataclass(frozen=True, slots=True)
class Scope:
    """Conditions on a pod's labels and on its namespace's, and its service accounts; None: all."""

    pods: tuple[Condition, ...] = ()
    namespaces: tuple[Condition, ...] = ()
    accounts: frozenset[str] | None = None

    FIELDS: ClassVar = ("podSelector", "namespaceSelector", "serviceAccounts")

    def with_pods(self, *more: Condition) -> "Scope":
        """Narrower by those."""
        return replace(self, pods=_together(self.pods, more))

    def with_namespaces(self, *more: Condition) -> "Scope":
        """Narrower by those."""
        return replace(self, namespaces=_together(self.namespaces, more))

    def of_account(self, name: str) -> "Scope":
        """Narrower by that account."""
        return replace(self, accounts=frozenset({name}) if self.accounts is None else self.accounts & {name})

    def turned_from(self, other: "Scope") -> "Scope | None":
        """`other` without all that is in this one, by one condition turned round; None where there is none to turn."""
        # Values of a label of pods first: whatever lacks the label stays.
        for each in sorted(self.pods, key=lambda each: each.operator != "In"):
            return other.with_pods(each.turned)
        for each in self.namespaces:
            return other.with_namespaces(each.turned)
        return None

    @property
    def namespace(self) -> str:
        """Its only namespace; empty where there may be more."""
        for each in self.namespaces:
            if each.key == NAME_LABEL and each.operator == "In" and len(each.values) == 1:
                return next(iter(each.values))
        return ""

    @property
    def is_empty(self) -> bool:
        """Whether no pod can be in it."""
        return _contradict(self.pods) or _contradict(self.namespaces) or self.accounts == frozenset()

    def meets(self, other: "Scope") -> bool:
        """Whether a pod could be in both."""
        accounts = None if self.accounts is None or other.accounts is None else self.accounts & other.accounts
        return not Scope((*self.pods, *other.pods), (*self.namespaces, *other.namespaces), accounts).is_empty

    def fields(self, *, namespaced: bool) -> dict[str, Any]:
        """As a policy's spec has it."""
        found: dict[str, Any] = {}
        if self.pods:
            found["podSelector"] = _selector(self.pods)
        if self.namespaces and not namespaced:
            found["namespaceSelector"] = _selector(self.namespaces)
        if self.accounts is not None:
            found["serviceAccounts"] = sorted(self.accounts)
        return found


def equals(key: str, value: str) -> Condition:
    """A label with that value."""
    return Condition(key, "In", frozenset({value}))


def read_selector(parent: Mapping[str, Any], key: str) -> tuple[Condition, ...]:
    """A label selector of Kubernetes. Raises Unfit."""
    selector = mapping(parent, key)
    known(selector, ("matchLabels", "matchExpressions"), f"{key}'s")
    found = []
    labels = mapping(selector, "matchLabels")
    for label in labels:
        if not isinstance(labels[label], str):
            raise Unfit(f"{key} has a value of {shown(label)} that is no text")
        found.append(equals(label, labels[label]))
    for each in items(selector, "matchExpressions"):
        if not isinstance(each, dict):
            raise Unfit(f"{key} has an expression that is no object")
        known(each, ("key", "operator", "values"), f"{key}'s")
        operator, values = text(each, "operator"), texts(each, "values")
        if operator not in _OPERATORS or bool(values) is not (operator in _WITH_VALUES) or not text(each, "key"):
            raise Unfit(f"{key} has an expression that Kubernetes refuses")
        found.append(Condition(text(each, "key"), operator, frozenset(values)))
    return _together((), found)


def _together(some: Sequence[Condition], more: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(dict.fromkeys((*some, *more)))


def _contradict(conditions: Iterable[Condition]) -> bool:
    allowed: dict[str, frozenset[str]] = {}
    banned: dict[str, set[str]] = {}
    there, absent = set[str](), set[str]()
    for each in conditions:
        if each.operator == "In":
            allowed[each.key] = allowed.get(each.key, each.values) & each.values
        elif each.operator == "NotIn":
            banned.setdefault(each.key, set()).update(each.values)
        elif each.operator == "Exists":
            there.add(each.key)
        else:
            absent.add(each.key)
    return bool(absent & (there | allowed.keys())) or any(
        not values - banned.get(key, set()) for key, values in allowed.items()
    )


def _selector(conditions: Sequence[Condition]) -> dict[str, Any]:
    labels: dict[str, str] = {}
    expressions: list[dict[str, Any]] = []
    for each in conditions:
        if each.operator == "In" and len(each.values) == 1 and each.key not in labels:
            labels[each.key] = next(iter(each.values))
        else:
            values = {"values": sorted(each.values)} if each.values else {}
            expressions.append({"key": each.key, "operator": each.operator, **values})
    return {
        **({"matchLabels": labels} if labels else {}),
        **({"matchExpressions": expressions} if expressions else {}),
    }
