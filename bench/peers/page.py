"""bench/results/peers.md: the table of what was found, what of it can be compared, and what was not measured."""

import statistics
from collections.abc import Mapping, Sequence

from bench import markdown
from bench.peers.figures import Found
from bench.peers.rows import QUOTED, ROWS, Row
from bench.peers.side import SIDES

ALL_SIDES = "*"
NOT_MEASURED = "not measured"


def cell(values: Sequence[float]) -> str:
    """The median of the rounds, and their spread."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.3g}" if max(values) < 1000 else f"{statistics.median(values):,.0f}"
    if len(values) == 1:
        return middle
    ends = [f"{each:.3g}" if max(values) < 1000 else f"{each:,.0f}" for each in (min(values), max(values))]
    return f"{middle} ({ends[0]} to {ends[1]})"


def verdict(row: Row, found: Found) -> str:
    """Which goals the medians reach."""
    met = row.met({side: statistics.median(values) for side, values in found.values.items() if values})
    if not row.goals:
        return "-"
    if not met:
        return NOT_MEASURED
    missed = [side for side, good in met.items() if not good]
    if not missed:
        return "met"
    return "missed" if len(missed) == len(met) else f"missed: {', '.join(missed)}"


def line(row: Row, found: Found | None) -> str:
    """Of the table."""
    goals = {side: goal.text() for side, goal in row.goals.items()}
    goal = " / ".join(dict.fromkeys(goals.values())) or "-"
    if found is None:
        cells, said = [NOT_MEASURED] * len(SIDES), NOT_MEASURED
    else:
        cells, said = [cell(found.values.get(side, ())) for side in SIDES], verdict(row, found)
    return markdown.row([f"`{row.key}`", row.what, row.unit, *cells, goal, said])


def page(found: Mapping[str, Found], about: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """All of it, as Markdown. `about` is of the last run; a row of another one says so."""
    lines = [
        "# Beside SPIRE",
        "",
        "`python -m bench.peers`: " + ", ".join(f"{key} {each}" for key, each in about.items()) + ".",
    ]
    lines += ["", "Versions: " + ", ".join(f"{key} {each}" for key, each in versions.items()) + ".", ""]
    lines += [
        "Each value is the median of the rounds, with the least and the most in brackets; sides take turns in each",
        "round. One Go client asks both. Servers are on one core and the client on the other, but for the row that",
        "says otherwise. A goal `SPIRE's` is SPIRE's median of the same run; of two goals the first is the embedded",
        "authority's, the second the signer's. Of the load after the run two are its own: figures of a loaded machine",
        "are no record.",
        "",
        *markdown.table(
            ["row", "what", "unit", *SIDES, "goal", ""], (line(each, found.get(each.key)) for each in ROWS)
        ),
        "",
        *_other_runs(found, about),
        "## What can be compared, and what not",
        "",
        *COMPARED,
        *_notes(),
        "",
        "## Not measured",
        "",
        *_missing(found),
        "",
        "## Quoted, not measured here",
        "",
        "csi-driver-spiffe 0.15 with cert-manager 1.21: no registry that a bench can use serves the driver.",
        "",
        "| what | csi-driver-spiffe | podsvid | goal | from |",
        "|---|---|---|---|---|",
        *(f"| {each.what} | {each.peer} | {each.ours} | {each.goal} | {each.source} |" for each in QUOTED),
        "",
    ]
    return "\n".join(lines)


# What holds for more than one row.
COMPARED = """
- SPIRE by its defaults (SQLite on disk, keys on disk, ECDSA P-256); limits of rates are off and batching is on on both
  sides.
- SPIRE's agent serves one socket and looks at the process that connects (`unix` attestor, its cheapest: no kubelet is
  asked); podsvid has a socket for each pod, and looks at nobody. The client's process has another group for each of
  SPIRE's streams.
- podsvid's agent keeps files for each volume, in each row; SPIRE's has none.
- By a signer: signer and agent share the servers' core, as SPIRE's server and agent do.
""".strip().split("\n")


def _notes() -> list[str]:
    notes: dict[str, list[str]] = {}
    for row in ROWS:
        if row.note:
            notes.setdefault(row.note, []).append(f"`{row.key}`")
    return [f"- {', '.join(keys)}: {note}" for note, keys in notes.items()]


def _other_runs(found: Mapping[str, Found], about: Mapping[str, str]) -> list[str]:
    """Rows that were kept of an earlier run, on their own line each."""
    lines = [
        f"- `{row.key}`: {', '.join(f'{key} {each}' for key, each in found[row.key].about.items())}"
        for row in ROWS
        if row.key in found and found[row.key].values and dict(found[row.key].about) != dict(about)
    ]
    return ["Of other runs:", "", *lines, ""] if lines else []


def _missing(found: Mapping[str, Found]) -> list[str]:
    lines = []
    for row in ROWS:
        if row.key not in found:
            lines.append(f"- `{row.key}`: no run has measured it yet.")
            continue
        for side, why in found[row.key].missing.items():
            of = "" if side == ALL_SIDES else f", {side}"
            lines.append(f"- `{row.key}`{of}: {why}")
    return lines or ["Nothing: each row has its values."]
