"""The lists of mutants fit the product as it is: a change of code that loses a mutant's place is seen at once."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.document import document
from tests.mutants.model import Mutant, MutantsError, Outcome, load, sample
from tests.mutants.run import ROOT

_ONE = Mutant("area", "name", "file.py", "a < b", "a <= b", ("tests",))


@pytest.mark.parametrize("mutant", load(), ids=lambda each: f"{each.area}/{each.name}")
def test_each_mutant_has_its_place(mutant: Mutant) -> None:
    changed = mutant.applied((ROOT / mutant.file).read_text(encoding="utf-8"))
    compile(changed, mutant.file, "exec")  # one that does not compile proves nothing
    for argument in mutant.tests:
        path, _, name = argument.partition("::")
        assert (ROOT / path).exists(), argument
        if name:
            assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), argument


@pytest.mark.parametrize("source", ["", "a < b; a < b"])
def test_a_place_that_is_not_there_once_is_refused(source: str) -> None:
    with pytest.raises(MutantsError, match=r"area/name: `find` occurs [02] times"):
        _ONE.applied(source)


def test_a_list_with_a_word_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[[mutant]]\nname = "n"\ntests = []\nfiel = "x"\n')
    with pytest.raises(MutantsError, match=r"x\.toml: n: "):
        load(tmp_path)


def test_the_table_counts_by_area_and_names_every_survivor() -> None:
    other = Mutant("area", "left", "file.py", "x", "y", (), argued="the same by another way")
    page = document({_ONE: Outcome.SURVIVED, other: Outcome.SURVIVED}, [_ONE, other, replace(_ONE, name="untried")])
    assert "| area | 3 | 2 | 0 | 2 | 1 |" in page
    assert "| area/name | `file.py` | **a gap** |" in page
    assert "| area/left | `file.py` | the same by another way |" in page


def test_a_sample_has_its_share_of_each_area() -> None:
    many = [replace(_ONE, area="a", name=str(n)) for n in range(90)]
    few = [replace(_ONE, area="b", name=str(n)) for n in range(10)]
    found = sample([*many, *few], 20, random.Random(1))
    assert [sum(each.area == area for each in found) for area in "ab"] == [18, 2]
    assert found == sample([*many, *few], 20, random.Random(1))
    assert sample(few, 1000, random.Random(1)) == few
