"""The table for people: docs/mutants.md."""

from collections.abc import Mapping

from .model import Mutant, Outcome
from .run import ROOT

PATH = ROOT / "docs" / "mutants.md"
_HEAD = """# Changes that the tests notice

`make mutants` makes one change at a time to a copy of the product (a check dropped or inverted, an order changed, a
bound ignored, an error swallowed) and runs the tests that should notice. The lists are in `tests/mutants/list`, one for
each area. Written by `python -m tests.mutants --write`; do not edit.

"""


def document(outcomes: Mapping[Mutant, Outcome]) -> str:
    """The page for these results."""
    areas = sorted({each.area for each in outcomes})
    lines = ["| area | mutants | killed | survived | of these argued |", "|---|---|---|---|---|"]
    for area in areas:
        lines.append(_row(area, {each: outcome for each, outcome in outcomes.items() if each.area == area}))
    lines.append(_row("**all**", outcomes))
    survivors = [each for each, outcome in outcomes.items() if outcome is not Outcome.KILLED]
    if survivors:
        lines += ["", "## Survivors", "", "| mutant | file | why it is left |", "|---|---|---|"]
        lines += [f"| {each.area}/{each.name} | `{each.file}` | {each.argued or '**a gap**'} |" for each in survivors]
    lines += ["", "## All", "", "| mutant | file | outcome |", "|---|---|---|"]
    lines += [f"| {each.area}/{each.name} | `{each.file}` | {outcome} |" for each, outcome in outcomes.items()]
    return _HEAD + "\n".join(lines) + "\n"


def _row(area: str, outcomes: Mapping[Mutant, Outcome]) -> str:
    survived = [each for each, outcome in outcomes.items() if outcome is not Outcome.KILLED]
    argued = sum(bool(each.argued) for each in survived)
    return f"| {area} | {len(outcomes)} | {len(outcomes) - len(survived)} | {len(survived)} | {argued} |"
