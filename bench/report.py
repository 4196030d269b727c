"""Rows of results, and how they are shown and recorded."""

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench import markdown

RESULTS = Path(__file__).parent / "results"
# Of which there are budgets, too: how many times the floor's p50 the p50 may be.
RATIO: Final = "p50 / floor"
HEADINGS = ("what", "unit", "n", "min", "p50", "p99", "max", RATIO, "budget", "")
FLOORS = (
    "Floors are of the same run: for latencies and rates measured in turn with what stands beside them, "
    "for idle CPU at the same time, the others before. Where a budget was set on a host whose floor is the one in "
    "brackets, it is said too what it comes to by this host's: a slower host misses what is not missed by its floor."
)
# Fewer values have no such percentile to speak of.
_PARTS: Final = MappingProxyType({"p95": (0.95, 20), "p99": (0.99, 100)})


@dataclass(frozen=True)
class Row:
    """One line: `values` in `unit`, the floor's p50 from the same run in that unit, and limits by statistic.

    `usual`: the floor's p50 on the host on which the limits were set; 0 where a floor says nothing of them. `known`:
    why RATIO is missed, where that was found out.
    """

    what: str
    unit: str
    values: tuple[float, ...]
    floor: float | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    usual: float = 0.0
    known: str = ""

    @property
    def by_floor(self) -> Mapping[str, float]:
        """What the budget comes to on a host that is so much slower; a faster one has no less. A ratio stays."""
        slower = max(1.0, self.floor / self.usual) if self.floor and self.usual else 1.0
        return {name: limit if name == RATIO else limit * slower for name, limit in self.budget.items()}

    def statistic(self, name: str) -> float | None:
        """`min`, `p50`, `p95`, `p99`, `max` or RATIO; None where there are too few values for it, or no floor."""
        ordered = sorted(self.values)
        if name in _PARTS:
            part, enough = _PARTS[name]
            # Nearest rank.
            return ordered[math.ceil(len(ordered) * part) - 1] if len(ordered) >= enough else None
        if name == RATIO:
            return statistics.median(ordered) / self.floor if self.floor else None
        return {"min": ordered[0], "p50": statistics.median(ordered), "max": ordered[-1]}[name]

    def verdict(self) -> str:
        """What a reader would find by comparing; empty without a budget. Missed is missed, however slow the host is."""
        if not self.budget:
            return ""
        found = {name: self.statistic(name) for name in self.budget}
        missed = [name for name, value in found.items() if value is not None and value > self.budget[name]]
        if missed:
            by_floor = self.by_floor
            slow = self.usual > 0 and all((found[name] or 0.0) <= by_floor[name] for name in missed)
            why = f": {self.known}" if RATIO in missed and self.known else ""
            return f"{' and '.join(missed)} missed{', not by the floor' if slow else ''}{why}"
        return "too few" if None in found.values() else "met"

    def cells(self) -> list[str]:
        times = self.statistic(RATIO)
        ratio = "-" if times is None else f"{times:.2f}"
        numbers = [self.statistic(name) for name in ("min", "p50", "p99", "max")]
        shown = ["-" if number is None else f"{number:.4g}" for number in numbers]
        budget = ", ".join(f"{name} {limit:g}" for name, limit in self.budget.items()) or "-"
        if self.usual and self.budget:
            budget += f" ({self.usual:g}), here " + ", ".join(
                f"{limit:.3g}" for name, limit in self.by_floor.items() if name != RATIO
            )
        return [self.what, self.unit, str(len(self.values)), *shown, ratio, budget, self.verdict()]


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    packages = {name: version(name) for name in ("grpcio", "cryptography", "protobuf")}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **packages,
    }


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """The results as Markdown."""
    lines = ["# Results", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [FLOORS, ""]
    lines += markdown.table(HEADINGS, (markdown.row(each.cells()) for each in rows))
    return "\n".join(lines) + "\n"


def record(rows: Sequence[Row], about: Mapping[str, str], name: str = "latest") -> None:
    """Write NAME.md and one JSON file a day and kind of host, a row a line."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(table(rows, about), encoding="utf-8")
    record_values(rows, about, "" if name == "latest" else f"-{name}")


def record_values(rows: Sequence[Row], about: Mapping[str, str], kind: str) -> None:
    """Write the JSON file of `kind`, empty or beginning with a dash."""
    short = [{**asdict(row), "values": [float(f"{value:.5g}") for value in row.values]} for row in rows]
    text = f'{{"environment": {json.dumps(dict(about))},\n"rows": [\n'
    text += ",\n".join(json.dumps(row) for row in short) + "\n]}\n"
    (RESULTS / f"{about['date']}-{about['cores']}c{kind}.json").write_text(text, encoding="utf-8")


class Report:
    """Collects rows and shows each on stderr as it comes."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        what: str,
        unit: str,
        values: Sequence[float],
        *,
        floor: Sequence[float] = (),
        budget: Mapping[str, float] | None = None,
        usual: float = 0.0,
        known: str = "",
    ) -> None:
        """A row, with the p50 of `floor` beside it."""
        row = Row(what, unit, tuple(values), statistics.median(floor) if floor else None, budget or {}, usual, known)
        self.rows.append(row)
        print("  ".join(row.cells()), file=sys.stderr, flush=True)
