"""The table of docs/interop.md: one line for each run."""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from .suites import HERE

PAGE = HERE.parents[1] / "docs" / "interop.md"
COLUMNS = ("suite", "version", "date", "commit", "passed", "failed", "minutes")
_HEAD = f"| {' | '.join(COLUMNS)} |"


class TableError(Exception):
    """The page has no table, or a line that cannot be read."""


@dataclass(frozen=True)
class Row:
    """What a run found. `commit` ends in `+` when the tree had changes that are in no commit."""

    suite: str
    version: str
    day: date
    commit: str
    passed: int
    failed: int
    minutes: float

    def __str__(self) -> str:
        cells = (self.suite, self.version, self.day, self.commit, self.passed, self.failed, f"{self.minutes:.1f}")
        return f"| {' | '.join(map(str, cells))} |"


def rows(page: str) -> Sequence[Row]:
    """All lines, in the order of the runs. Raises TableError."""
    _, found, table = page.partition(f"\n{_HEAD}\n")
    if not found:
        raise TableError(f"there is no line {_HEAD}")
    # The first one draws the rule. The table is the page's end: a run appends to it.
    return [_row(line) for line in table.splitlines()[1:]]


def _row(line: str) -> Row:
    cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
    if len(cells) != len(COLUMNS) or not all(cells):
        raise TableError(f"not {len(COLUMNS)} columns: {line}")
    suite, version, day, commit, passed, failed, minutes = cells
    try:
        return Row(suite, version, date.fromisoformat(day), commit, int(passed), int(failed), float(minutes))
    except ValueError as error:
        raise TableError(f"{error}: {line}") from None


def append(row: Row, page: Path = PAGE) -> None:
    """Add a line; a reader sees the page before or after it, and two runs at once lose none. Raises TableError."""
    folder = os.open(page.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = page.read_text(encoding="utf-8")
        rows(before)
        new = page.with_name(f".{page.name}.new")
        new.write_text(f"{before.rstrip()}\n{row}\n", encoding="utf-8")
        new.rename(page)
    finally:
        os.close(folder)
