"""What a mutant is, and where the lists are: one TOML file for each area, one table for each mutant."""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

LISTS = Path(__file__).parent / "list"


class MutantsError(Exception):
    """A list cannot be used; the text says which mutant and what to change."""


class Outcome(StrEnum):
    """What the tests said of a mutant. BROKEN is a mutant that proves nothing: its tests did not get to run."""

    KILLED = "killed"
    SURVIVED = "survived"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: in `file` the text `find`, which occurs once, becomes `replace`.

    `tests` are the arguments for pytest of those that should notice. `argued` says why a survivor is no gap; empty for
    one that has to be killed.
    """

    area: str
    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    argued: str = ""

    def applied(self, source: str) -> str:
        """`source` with the change made. Raises MutantsError when the place is not there exactly once."""
        found = source.count(self.find)
        if found != 1 or self.find == self.replace:
            raise MutantsError(f"{self.area}/{self.name}: `find` occurs {found} times in {self.file}, not once")
        return source.replace(self.find, self.replace)


def sample(mutants: Sequence[Mutant], number: int, rng: random.Random) -> list[Mutant]:
    """About `number` of them, of each area its share and one at least, in their order."""
    chosen: set[Mutant] = set()
    for area in sorted({each.area for each in mutants}):
        own = [each for each in mutants if each.area == area]
        chosen.update(rng.sample(own, max(1, min(len(own), round(number * len(own) / len(mutants))))))
    return [each for each in mutants if each in chosen]


def load(folder: Path = LISTS) -> tuple[Mutant, ...]:
    """All mutants, by area and in the order of their lists. Raises MutantsError."""
    found: list[Mutant] = []
    for path in sorted(folder.glob("*.toml")):
        for table in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            try:
                found.append(Mutant(area=path.stem, **{**table, "tests": tuple(table["tests"])}))
            except (TypeError, KeyError) as error:
                raise MutantsError(f"{path.name}: {table.get('name', 'a mutant without a name')}: {error}") from None
    names = [(each.area, each.name) for each in found]
    for name in names:
        if names.count(name) > 1:
            raise MutantsError(f"{name[0]}/{name[1]} is there twice")
    return tuple(found)
