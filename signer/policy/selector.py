"""What a policy says about labels: conditions that all must hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from signer.errors import InvalidPolicy

_WITH_VALUES = ("In", "NotIn")
_OPERATORS = (*_WITH_VALUES, "Exists", "DoesNotExist")
MAX_MATCH_LABELS, MAX_EXPRESSIONS, MAX_VALUES = 64, 32, 256


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on labels."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """As Kubernetes reads it: NotIn also holds where the label is missing."""
        value = labels.get(self.key)
        if self.operator == "In":
            return value in self.values
        if self.operator == "NotIn":
            return value not in self.values
        return (value is not None) == (self.operator == "Exists")


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; none matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def first_unmet(self, labels: Mapping[str, str]) -> Requirement | None:
        """Why labels do not match; None when they do."""
        return next((each for each in self.requirements if not each.holds(labels)), None)


def read_selector(spec: Mapping[str, Any]) -> Selector:
    """The `podSelector` or `namespaceSelector` of a spec. Raises InvalidPolicy, TypeError, AttributeError, KeyError."""
    labels, expressions = spec.get("matchLabels") or {}, spec.get("matchExpressions") or []
    if len(labels) > MAX_MATCH_LABELS or len(expressions) > MAX_EXPRESSIONS:
        raise InvalidPolicy(f"a selector has more than {MAX_MATCH_LABELS} labels or {MAX_EXPRESSIONS} expressions")
    found = [Requirement(str(key), "In", frozenset({str(value)})) for key, value in labels.items()]
    for each in expressions:
        operator = str(each["operator"])
        if operator not in _OPERATORS:
            raise InvalidPolicy(f"operator {operator[:80]!r} is none of {', '.join(_OPERATORS)}")
        values = each.get("values") or []
        if not isinstance(values, list):
            # The letters of a text would do as a list.
            raise InvalidPolicy(f"values of {str(each['key'])[:80]!r} is no list")
        if len(values) > MAX_VALUES:
            raise InvalidPolicy(f"a selector has more than {MAX_VALUES} values for {str(each['key'])[:80]!r}")
        if bool(values) is not (operator in _WITH_VALUES):
            raise InvalidPolicy(
                f"{str(each['key'])[:80]!r}: In and NotIn need values, Exists and DoesNotExist have none"
            )
        found.append(Requirement(str(each["key"]), operator, frozenset(map(str, values))))
    return Selector(tuple(found))
