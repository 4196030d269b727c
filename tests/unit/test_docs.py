"""What the documentation says about the code is what the code says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_parts_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


# A test that a page names: by its file, by the letter that the page has for one, or in the file that was named last.
_NAMED = re.compile(r"`(?:(tests/[\w/.-]+\.py)|([A-Z])|…|)::(?:\w+::)?(test_\w+)")
_LETTER = re.compile(r"`([A-Z])`\s+is\s+`(tests/[\w/.-]+\.py)`")
_PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "::test_" in page.read_text(encoding="utf-8")]


def _named(page: str) -> Iterator[tuple[str, str]]:
    letters, last = dict(_LETTER.findall(page)), ""
    for path, letter, test in _NAMED.findall(page):
        last = path or letters.get(letter, "" if letter else last)
        yield last, test


def test_tests_that_pages_name_are_found() -> None:
    page = "`A` is `tests/a.py`. `A::test_b`, `…::test_c`, `tests/d.py::test_e[x]`, `::TestF::test_g`, `B::test_h`"
    found = [("tests/a.py", "test_b"), ("tests/a.py", "test_c"), ("tests/d.py", "test_e"), ("tests/d.py", "test_g")]
    assert list(_named(page)) == [*found, ("", "test_h")]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_each_test_that_a_page_names_is_there(page: Path) -> None:
    for path, test in _named(page.read_text(encoding="utf-8")):
        assert path, f"{page.name} does not say where {test} is"
        assert re.search(rf"def {test}\(", (ROOT / path).read_text(encoding="utf-8")), f"{path} has no {test}"


def test_each_failure_of_the_ca_above_has_a_test_of_its_own() -> None:
    table = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8").partition("\n## ")[0]
    named = {test for _, test in _named(table)}
    source = (ROOT / "tests" / "unit" / "signer" / "test_upstream_failures.py").read_text(encoding="utf-8")
    assert named == set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))


def test_the_page_of_releases_has_this_version_first() -> None:
    page = (ROOT / "docs" / "releases.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE)[0] == VERSION
