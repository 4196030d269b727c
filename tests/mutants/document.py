"""The table for people: docs/mutants.md."""

from collections import Counter
from collections.abc import Mapping, Sequence

from .model import Mutant, Outcome
from .run import ROOT

PATH = ROOT / "docs" / "mutants.md"
_HEAD = """# Changes that the tests notice

`make mutants` makes one change at a time to a copy of the product (a check dropped or inverted, an order changed, a
bound ignored, an error swallowed) and runs the tests that should notice. The lists are in `tests/mutants/list`, one for
each area. Written by `python -m tests.mutants --write`, of a sample with `--sample N`; do not edit.

"""


def document(outcomes: Mapping[Mutant, Outcome], known: Sequence[Mutant]) -> str:
    """The page for these results; `known` are all mutants of the lists."""
    listed = Counter(each.area for each in known)
    lines = ["| area | in the list | tried | killed | survived | of these argued |", "|---|---|---|---|---|---|"]
    for area in sorted({each.area for each in outcomes}):
        of_it = {each: outcome for each, outcome in outcomes.items() if each.area == area}
        lines.append(_row(area, listed[area], of_it))
    lines.append(_row("**all**", listed.total(), outcomes))
    survivors = [each for each, outcome in outcomes.items() if outcome is not Outcome.KILLED]
    if survivors:
        lines += ["", "## Survivors", "", "| mutant | file | why it is left |", "|---|---|---|"]
        lines += [f"| {each.area}/{each.name} | `{each.file}` | {each.argued or '**a gap**'} |" for each in survivors]
    lines += ["", "## Tried", "", "| mutant | file | outcome |", "|---|---|---|"]
    lines += [f"| {each.area}/{each.name} | `{each.file}` | {outcome} |" for each, outcome in outcomes.items()]
    return _HEAD + "\n".join(lines) + "\n"


def _row(area: str, listed: int, outcomes: Mapping[Mutant, Outcome]) -> str:
    survived = [each for each, outcome in outcomes.items() if outcome is not Outcome.KILLED]
    argued = sum(bool(each.argued) for each in survived)
    return f"| {area} | {listed} | {len(outcomes)} | {len(outcomes) - len(survived)} | {len(survived)} | {argued} |"
