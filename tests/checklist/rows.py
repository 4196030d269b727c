"""The rows of the checklist, as spec.toml has them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MUSTS = ("MUST", "MUST NOT")
SHOULDS = ("SHOULD", "SHOULD NOT")
OTHERS = ("stated", "derived")
LEVELS = (*MUSTS, *SHOULDS, *OTHERS, "MAY")
ROLES = {
    "I": "issuer",
    "W": "Workload API server",
    "V": "validator",
    "C": "Workload API client (`podsvid api`)",
    "P": "publisher of bundles",
    "F": "reader of other domains' bundles",
}
TABLES = ("rules", "edges", "clients")
_FIELDS: Mapping[str, tuple[set[str], set[str]]] = {
    "rules": ({"level", "who", "text", "source"}, {"why"}),
    "edges": ({"case", "expect"}, {"why"}),
    "clients": ({"text", "breaks"}, set()),  # each of these has a test
}


class ChecklistError(Exception):
    """The rows, or the marks, do not hold together."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row. `why` stands in for a test; it may be its group's. `level` is empty outside of rules."""

    id: str
    level: str
    fields: Mapping[str, str]
    why: str = ""

    @property
    def binding(self) -> bool:
        """Whether it needs a test or a reason."""
        return self.level != "MAY"


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under one heading of one table."""

    table: str
    title: str
    why: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """What podsvid is not at all, so that its rows are not listed one by one."""

    ids: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Checklist:
    """All rows. `documents` maps the specification's short names to titles and to file names at `revision`."""

    revision: str
    documents: Mapping[str, tuple[str, str]]
    groups: tuple[Group, ...]
    absent: tuple[Absent, ...]

    @property
    def rows(self) -> dict[str, Row]:
        return {row.id: row for group in self.groups for row in group.rows}

    def of(self, table: str) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.table == table)


def load(text: str) -> Checklist:
    """The checklist in TOML. Raises ChecklistError."""
    document = tomllib.loads(text)
    documents = {key: (each["name"], each["file"]) for key, each in document["documents"].items()}
    groups = tuple(_group(table, each) for table in TABLES for each in document[table])
    seen: set[str] = set()
    for row in (row for group in groups for row in group.rows):
        if row.id in seen:
            raise ChecklistError(f"{row.id} stands twice")
        seen.add(row.id)
    absent = tuple(Absent(each["ids"], each["what"], each["why"]) for each in document["absent"])
    return Checklist(document["revision"], documents, groups, absent)


def _group(table: str, document: Mapping[str, Any]) -> Group:
    why = document.get("why", "")
    required, optional = _FIELDS[table]
    rows = []
    for identifier, fields in document["rows"].items():
        if not required <= set(fields) <= required | optional:
            raise ChecklistError(f"{identifier} has {sorted(fields)}; it needs {sorted(required)}, may have {optional}")
        level = fields.get("level", "")
        if table == "rules" and (level not in LEVELS or not _is_roles(fields["who"])):
            raise ChecklistError(f"{identifier} is {level!r} for {fields['who']!r}")
        rows.append(Row(identifier, level, fields, fields.get("why", why)))
    return Group(table, document["title"], why, tuple(rows))


def _is_roles(who: str) -> bool:
    return who == "all" or set(who.split(", ")) <= set(ROLES)
