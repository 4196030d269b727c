"""docs/conformance.md from rows and marks, and what the two lack."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from tests.checklist.marks import NamedTest, files_of_tests, read_marks
from tests.checklist.rows import MUSTS, OTHERS, ROLES, SHOULDS, Checklist, ChecklistError, Group, Row, load

ROOT = Path(__file__).resolve().parents[2]
SPEC = Path(__file__).with_name("spec.toml")
DOCUMENT = ROOT / "docs" / "conformance.md"
_REPOSITORY = "https://github.com/spiffe/spiffe"
Marks: TypeAlias = Mapping[str, Sequence[NamedTest]]

_HEAD = """\
# What the SPIFFE specification asks for, and the tests that show it

<!-- Written by `python -m tests.checklist` from tests/checklist/spec.toml and the tests' marks. -->

The specification is [spiffe/spiffe]({base}/tree/{revision}/standards)
at commit `{short}`. Requirements are in words of our own; the sections are what binds. A test says which rows it
shows with `@pytest.mark.spec("ID-1", ...)`.

*Level* is the text's own word; *stated* binds without one, *derived* is not in the text but follows from it or from
what validators and clients do. *For* names the roles: {roles}.
"""
_TITLES = {
    "rules": ("The specification", ("id", "level", "for", "requirement", "source", "tests, or why there is none")),
    "edges": ("Inputs and situations at the edge", ("id", "case", "expected", "tests, or why there is none")),
    "clients": ("Answers that break clients, never given", ("id", "rule", "otherwise", "tests")),
}


def current(root: Path = ROOT) -> tuple[Checklist, dict[str, list[NamedTest]]]:
    """The rows and the marks of this repository. Raises ChecklistError, also for a mark whose id is no row."""
    checklist = load(SPEC.read_text(encoding="utf-8"))
    marks = read_marks(files_of_tests(root / "tests"), root)
    check_known(checklist, marks)
    return checklist, marks


def check_known(checklist: Checklist, marks: Marks) -> None:
    """Raises ChecklistError when a mark's id is no row."""
    rows = checklist.rows
    wrong = [f"{each} ({tests[0].file}::{tests[0].name})" for each, tests in marks.items() if each not in rows]
    if wrong:
        raise ChecklistError("spec.toml has no row " + ", ".join(wrong))


def missing(checklist: Checklist, marks: Marks) -> list[Row]:
    """Binding rows with neither a test nor a reason."""
    return [row for row in checklist.rows.values() if row.binding and not row.why and row.id not in marks]


def contradicted(checklist: Checklist, marks: Marks) -> list[Row]:
    """Rows with a test, and with a reason of their own for having none."""
    return [row for row in checklist.rows.values() if row.fields.get("why") and row.id in marks]


def render(checklist: Checklist, marks: Marks) -> str:
    """The document."""
    roles = "; ".join(f"{letter} {what}" for letter, what in ROLES.items())
    revision = checklist.revision
    lines = [_HEAD.format(base=_REPOSITORY, revision=revision, short=revision[:12], roles=roles)]
    lines += _summary(checklist, marks)
    for table, (title, heads) in _TITLES.items():
        lines += ["", f"## {title}"]
        for group in checklist.of(table):
            lines += ["", f"### {group.title}", ""]
            if group.why:
                lines += [group.why, ""]
            lines += _table(heads, (_cells(checklist, group, row, marks.get(row.id, ())) for row in group.rows))
    lines += ["", "## Not built", ""]
    lines += _table(("ids", "what", "why"), ((each.ids, each.what, each.why) for each in checklist.absent))
    lines.append("")
    lines += [
        f"[{key}]: {_REPOSITORY}/blob/{revision}/standards/{file}" for key, (_, file) in checklist.documents.items()
    ]
    return "\n".join(lines) + "\n"


def _summary(checklist: Checklist, marks: Marks) -> list[str]:
    rules = _rows(checklist, "rules")
    parts = {
        "MUST, MUST NOT": [row for row in rules if row.level in MUSTS],
        "SHOULD, SHOULD NOT": [row for row in rules if row.level in SHOULDS],
        "stated, derived": [row for row in rules if row.level in OTHERS],
        "MAY": [row for row in rules if row.level == "MAY"],
        "edge cases": _rows(checklist, "edges"),
        "answers that break clients": _rows(checklist, "clients"),
    }
    cells = []
    for title, rows in parts.items():
        rest = [row for row in rows if row.id not in marks]
        reasoned = [row for row in rest if row.why]
        counts = (len(rows), len(rows) - len(rest), len(reasoned), len(rest) - len(reasoned))
        cells.append((title, *map(str, counts)))
    return _table(("", "rows", "with a test", "with the reason why there is none", "with neither"), cells)


def _rows(checklist: Checklist, table: str) -> list[Row]:
    return [row for group in checklist.of(table) for row in group.rows]


def _cells(checklist: Checklist, group: Group, row: Row, tests: Sequence[NamedTest]) -> tuple[str, ...]:
    fields, shown = row.fields, _shown(group, row, tests)
    if group.table == "rules":
        return row.id, row.level, fields["who"], fields["text"], _source(checklist, fields["source"]), shown
    if group.table == "edges":
        return row.id, fields["case"], fields["expect"], shown
    return row.id, fields["text"], fields["breaks"], shown


def _shown(group: Group, row: Row, tests: Sequence[NamedTest]) -> str:
    if tests:
        return "<br>".join(f"[{Path(test.file).name}::{test.name}](../{test.file})" for test in tests)
    if row.why:
        return "see above" if row.why == group.why else row.why
    return "**none yet**" if row.binding else ""


def _source(checklist: Checklist, text: str) -> str:
    def link(found: re.Match[str]) -> str:
        document = checklist.documents.get(found[1])
        return f"[{document[0]}][{found[1]}]" if document else found[0]

    return re.sub(r"(?:^|(?<=, ))([A-Z]+)\b", link, text)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
