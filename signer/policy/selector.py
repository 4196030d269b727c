"""What a policy says about labels: conditions that all must hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from signer.errors import InvalidPolicy

_WITH_VALUES = ("In", "NotIn")
_END = b"\0"
_OPERATORS = (*_WITH_VALUES, "Exists", "DoesNotExist")
# Of a text of a policy's or a pod's author, and of the values of one list, as many are shown.
_SHOWN, _VALUES_SHOWN = 80, 5
MAX_MATCH_LABELS, MAX_EXPRESSIONS, MAX_VALUES = 64, 32, 256
# Of a label's key (prefix of 253, slash, name of 63) and of its value, as Kubernetes has them.
MAX_KEY, MAX_VALUE = 317, 63


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on labels. `listed`: its values, each between two ends: as one text they cost what they have."""

    key: str
    operator: str
    listed: bytes = b""

    @property
    def values(self) -> tuple[str, ...]:
        """What it lists."""
        return tuple(each.decode("utf-8", "surrogatepass") for each in self.listed.split(_END)[1:-1])

    def holds(self, labels: Mapping[str, str]) -> bool:
        """As Kubernetes reads it: NotIn also holds where the label is missing."""
        value = labels.get(self.key)
        if self.operator == "In":
            return self._lists(value)
        if self.operator == "NotIn":
            return not self._lists(value)
        return (value is not None) == (self.operator == "Exists")

    def __str__(self) -> str:
        if self.operator not in _WITH_VALUES:
            return f"{'a' if self.operator == 'Exists' else 'no'} label {self.key[:_SHOWN]}"
        values, wants = self.values, self.operator == "In"
        if len(values) == 1:
            return f"{self.key[:_SHOWN]}{'=' if wants else '!='}{values[0][:_SHOWN]}"
        more = ", …" if len(values) > _VALUES_SHOWN else ""
        listed = ", ".join(each[:_SHOWN] for each in values[:_VALUES_SHOWN])
        return f"{self.key[:_SHOWN]} {'in' if wants else 'not in'} ({listed}{more})"

    def found(self, labels: Mapping[str, str]) -> str:
        """What there is in the place of what is wanted, for people."""
        value = labels.get(self.key)
        return f"no label {self.key[:_SHOWN]}" if value is None else f"{self.key[:_SHOWN]}={value[:_SHOWN]}"

    def _lists(self, value: str | None) -> bool:
        return value is not None and "\0" not in value and _listed([value]) in self.listed


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; none matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether all of them hold."""
        return all(each.holds(labels) for each in self.requirements)

    def unmet(self, labels: Mapping[str, str], whose: str) -> list[str]:
        """For people: what each requirement that does not hold wants, and what there is; `whose` labels these are."""
        found = (each for each in self.requirements if not each.holds(labels))
        return [f"wants {each}, and {whose} has {each.found(labels)}" for each in found]


def read_selector(spec: Mapping[str, Any]) -> Selector:
    """The `podSelector` or `namespaceSelector` of a spec. Raises InvalidPolicy, TypeError, AttributeError, KeyError."""
    labels, expressions = spec.get("matchLabels") or {}, spec.get("matchExpressions") or []
    if len(labels) > MAX_MATCH_LABELS or len(expressions) > MAX_EXPRESSIONS:
        raise InvalidPolicy(f"a selector has more than {MAX_MATCH_LABELS} labels or {MAX_EXPRESSIONS} expressions")
    found = [Requirement(str(key), "In", _listed([str(value)])) for key, value in labels.items()]
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
        found.append(Requirement(str(each["key"]), operator, _listed(list(map(str, values)))))
    for one in found:
        if len(one.key) > MAX_KEY or any(len(value) > MAX_VALUE for value in one.values):
            raise InvalidPolicy(f"{one.key[:_SHOWN]!r}: no label has a key or a value as long as that")
    return Selector(tuple(found))


def _listed(values: Sequence[str]) -> bytes:
    """Raises InvalidPolicy for one that would pass for two."""
    if any("\0" in each for each in values):
        raise InvalidPolicy("a value of a selector has a NUL, which no label has")
    return _END.join([b"", *(each.encode("utf-8", "surrogatepass") for each in values), b""]) if values else b""
