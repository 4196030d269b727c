"""The policies' schema bounds everything that a tenant may write, and the reader holds what is older to the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from signer.errors import Reason
from signer.policy.policy import MAX_ITEMS, NEVER_EMPTY
from signer.policy.selector import MAX_EXPRESSIONS, MAX_MATCH_LABELS, MAX_VALUES
from tests.unit.signer.test_policy import POD, policy, refused

CRDS = Path(__file__).parents[3] / "deploy" / "chart" / "podsvid" / "files" / "crds"
KINDS = ("workloadidentities", "clusterworkloadidentities")
# The API server sees to these itself.
ITS_OWN = {"apiVersion", "kind", "metadata"}


def schema(kind: str) -> dict[str, Any]:
    document = yaml.safe_load((CRDS / f"{kind}.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def unbounded(node: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every string, list and map without a maximum."""
    kind = node.get("type")
    if kind == "string" and "maxLength" not in node and "enum" not in node:
        yield path
    if kind == "array":
        if "maxItems" not in node:
            yield path
        yield from unbounded(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        if "maxProperties" not in node:
            yield path
        yield from unbounded(node["additionalProperties"], f"{path}{{}}")
    for name, each in (node.get("properties") or {}).items():
        if path or name not in ITS_OWN:
            yield from unbounded(each, f"{path}.{name}")


@pytest.mark.parametrize("kind", [*KINDS, "federatedtrustdomains"])
def test_everything_has_a_maximum(kind: str) -> None:
    assert list(unbounded(schema(kind))) == []


def test_what_has_none_is_named() -> None:
    node = {"properties": {"a": {"type": "array", "items": {"type": "string"}}, "b": {"additionalProperties": {}}}}
    assert list(unbounded(node)) == [".a", ".a[]", ".b"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_has_the_same_bounds(kind: str) -> None:
    spec = schema(kind)["properties"]["spec"]["properties"]
    assert {name: spec[name]["maxItems"] for name in MAX_ITEMS} == dict(MAX_ITEMS)
    for name in ("podSelector", "namespaceSelector"):
        selector = spec.get(name, spec["podSelector"])["properties"]
        assert selector["matchLabels"]["maxProperties"] == MAX_MATCH_LABELS
        assert selector["matchExpressions"]["maxItems"] == MAX_EXPRESSIONS
        assert selector["matchExpressions"]["items"]["properties"]["values"]["maxItems"] == MAX_VALUES


@pytest.mark.parametrize(
    ("field", "entry", "most"),
    [
        ("serviceAccounts", lambda n: "web", 64),
        ("keyAlgorithms", lambda n: "ec-p256", 9),
        ("federatesWith", lambda n: f"t{n}.test", 64),
    ],
)
def test_a_list_that_is_longer_refuses(field: str, entry: Any, most: int) -> None:
    fits: Any = {field: [entry(n) for n in range(most)]}
    longer: Any = {field: [entry(n) for n in range(most + 1)]}
    assert policy("p", **fits).problem == ""
    assert policy("p", **longer).problem == f"{field} has more than {most} entries"


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_that_narrows_is_never_empty(kind: str) -> None:
    """Whoever writes one without entries, or has it written by a template, may mean nobody; all is to leave it out."""
    spec = schema(kind)["properties"]["spec"]["properties"]
    least = {name: each.get("minItems") for name, each in spec.items() if each["type"] == "array"}
    # To give no DNS names, and to federate with nobody, is what an empty list says there.
    assert least == {**dict.fromkeys(NEVER_EMPTY, 1), "dnsNameTemplates": None, "federatesWith": None}
    for field in NEVER_EMPTY:
        empty: Any = {field: []}
        found = policy("p", "shop", **empty)
        assert found.problem == f"{field} is empty: leave it out to mean all, or say which"
        assert refused(POD, found, policy("wide")) is Reason.POLICY_UNUSABLE
        absent: Any = {field: None}
        assert policy("p", **absent).problem == ""


@pytest.mark.parametrize(
    ("operator", "values"), [("In", []), ("NotIn", []), ("In", None), ("Exists", ["x"]), ("DoesNotExist", ["x"])]
)
def test_conditions_have_values_where_these_mean_something(operator: str, values: list[str] | None) -> None:
    """As the schema has it, and Kubernetes for its own selectors."""
    selector = {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}
    assert refused(POD, policy("p", "shop", podSelector=selector), policy("wide")) is Reason.POLICY_UNUSABLE


@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {f"l{n}": "x" for n in range(65)}},
        {"matchExpressions": [{"key": "a", "operator": "Exists"}] * 33},
        {"matchExpressions": [{"key": "a", "operator": "In", "values": [f"v{n}" for n in range(257)]}]},
    ],
)
def test_a_selector_that_is_longer_refuses_whom_it_could_be_for(selector: Any) -> None:
    """Were it read as if it matched nobody, a wider policy would step in."""
    assert refused(POD, policy("p", "shop", podSelector=selector), policy("wide")) is Reason.POLICY_UNUSABLE


def test_each_kind_has_a_short_name_of_its_own_that_the_documentation_gives() -> None:
    """kubectl takes them as they are; two kinds of one short name would be one of them at random."""
    names = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["names"] for path in CRDS.iterdir()}
    assert {kind: each["shortNames"] for kind, each in names.items()} == {
        "workloadidentities": ["wid"],
        "clusterworkloadidentities": ["cwid"],
        "federatedtrustdomains": ["ftd"],
    }
    pages = "".join(path.read_text(encoding="utf-8") for path in (CRDS.parents[4] / "docs").glob("*.md"))
    assert [each for each in ("wid,cwid", "ftd") if f"kubectl get {each}" in pages or f"describe {each}" in pages] == [
        "wid,cwid",
        "ftd",
    ]
