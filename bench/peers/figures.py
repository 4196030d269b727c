"""What was found, row by row: one value for each side and round, or why there is none; kept as JSON, merged by row."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENOUGH_FOR_P99 = 100


@dataclass(frozen=True)
class Found:
    """Of one row: values by side, a round each; `missing` says why a side, or `*` for all of them, has none.

    `about`: date, commit and load of the run that found them.
    """

    values: Mapping[str, Sequence[float]]
    missing: Mapping[str, str]
    about: Mapping[str, str]


@dataclass
class Figures:
    """What a run finds. `about` is what all of it was found on."""

    about: Mapping[str, str]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, row: str, side: str, value: float) -> None:
        """One round's."""
        self.values.setdefault(row, {}).setdefault(side, []).append(value)

    def lack(self, row: str, side: str, why: str) -> None:
        """It could not be measured, this time at least."""
        self.missing.setdefault(row, {})[side] = why

    def found(self) -> dict[str, Found]:
        """By row."""
        rows = [*self.values, *(each for each in self.missing if each not in self.values)]
        return {each: Found(self.values.get(each, {}), self.missing.get(each, {}), self.about) for each in rows}


def p50(values: Sequence[float]) -> float:
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """By nearest rank. Raises ValueError where there are too few."""
    if len(values) < ENOUGH_FOR_P99:
        raise ValueError(f"{len(values)} values have no 99th percentile")
    return sorted(values)[-(-len(values) * 99 // 100) - 1]


def merged(old: Mapping[str, Found], new: Mapping[str, Found]) -> dict[str, Found]:
    """Both, each row as it was found last. One that now has no value does not take the place of one that has."""
    return {**old, **{row: each for row, each in new.items() if each.values or row not in old}}


def to_json(found: Mapping[str, Found]) -> str:
    """A row a line."""
    lines = [
        json.dumps(
            {
                "row": row,
                "values": {side: [float(f"{one:.5g}") for one in values] for side, values in each.values.items()},
                "missing": dict(each.missing),
                "about": dict(each.about),
            }
        )
        for row, each in found.items()
    ]
    return '{"rows": [\n' + ",\n".join(lines) + "\n]}\n"


def from_json(text: str) -> dict[str, Found]:
    """What `to_json` wrote. Raises ValueError, KeyError."""
    rows: list[dict[str, Any]] = json.loads(text)["rows"]
    return {each["row"]: Found(each["values"], each["missing"], each["about"]) for each in rows}


def read(folder: Path, cores: str) -> dict[str, Found]:
    """What earlier runs on so many cores left, of the newest day that has any; nothing where there is none."""
    newest = max(folder.glob(f"*-{cores}c-peers.json"), default=None, key=lambda file: file.name)
    return from_json(newest.read_text(encoding="utf-8")) if newest else {}
