"""Each word of the glossary is one that the pages use, is said once, and is explained where it says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from signer.authority.slots import Stage
from tests.unit.test_site import DOCS

PAGE = DOCS / "glossary.md"
_ROW = re.compile(r"^\| ([A-Za-z][\w -]+) \| (.+) \| \[[\w ]+\]\(([\w-]+\.md)(?:#[\w-]+)?\) \|$", re.MULTILINE)


def _rows() -> Iterator[tuple[str, str, Path]]:
    for word, meaning, page in _ROW.findall(PAGE.read_text(encoding="utf-8")):
        yield word, meaning, DOCS / page


def _uses(text: str, word: str) -> bool:
    """In whatever form: to acknowledge is also an acknowledgement, and to re-issue re-issued."""
    stem = re.sub(r"(ation|e|ed|y)$", "", word).replace(" ", r"\s")
    return re.search(rf"(?<!\w){stem}", text, re.IGNORECASE) is not None


def test_every_line_of_the_table_is_understood() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(list(_rows())) == len(lines) - 1 > 40


def test_words_are_in_order_and_said_once() -> None:
    words = [word.lower() for word, _, _ in _rows()]
    assert words == sorted(set(words), key=lambda word: (word.replace("-", ""), word))


@pytest.mark.parametrize(("word", "meaning", "page"), [pytest.param(*row, id=row[0]) for row in _rows() if row])
def test_the_page_that_explains_a_word_uses_it(word: str, meaning: str, page: Path) -> None:
    assert _uses(page.read_text(encoding="utf-8"), word)
    assert not meaning.endswith(".")


def test_every_stage_of_an_authority_has_its_word() -> None:
    assert {str(each) for each in Stage} <= {word for word, _, _ in _rows()}
