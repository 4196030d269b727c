"""Every row of the specification's checklist has a test or a reason, and docs/conformance.md says which."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checklist import document
from tests.checklist.marks import NamedTest, read_marks
from tests.checklist.rows import ChecklistError, load

REGENERATE = "run `python -m tests.checklist`"


def test_every_row_has_a_test_or_a_reason() -> None:
    assert [row.id for row in document.missing(*document.current())] == []


def test_no_row_has_a_reason_for_lacking_the_test_that_it_has() -> None:
    assert [row.id for row in document.contradicted(*document.current())] == []


def test_the_document_is_what_rows_and_marks_make_of_it() -> None:
    assert document.DOCUMENT.read_text(encoding="utf-8") == document.render(*document.current()), REGENERATE


# --- what the above rests on

ROWS = """
revision = "0123456789abcdef"
documents.ID = { name = "SPIFFE-ID", file = "SPIFFE-ID.md" }
absent = [{ ids = "FED-1", what = "Federation", why = "Not yet." }]

[[rules]]
title = "IDs"
[rules.rows]
ID-1 = { level = "MUST", who = "all", text = "A | B.", source = "ID 2, 2.1, RFC 3986" }
ID-2 = { level = "MUST NOT", who = "I, W", text = "B.", source = "ID appendix A", why = "Because." }
ID-3 = { level = "MAY", who = "V", text = "C.", source = "ID 2" }
ID-4 = { level = "SHOULD", who = "V", text = "D.", source = "ID 2" }
[[rules]]
title = "WIT"
why = "Not built."
[rules.rows]
WIT-1 = { level = "MUST", who = "I", text = "E.", source = "ID 3" }

[[edges]]
title = "Edges"
[edges.rows]
C-1 = { case = "F", expect = "G" }

[[clients]]
title = "Clients"
[clients.rows]
CL-1 = { text = "H.", breaks = "I" }
"""
TEST = NamedTest("tests/test_a.py", "test_a")


def test_a_row_without_a_test_is_missing_unless_it_has_a_reason_or_is_optional() -> None:
    rows = load(ROWS)
    assert [row.id for row in document.missing(rows, {})] == ["ID-1", "ID-4", "C-1", "CL-1"]
    assert [row.id for row in document.missing(rows, {"ID-1": [TEST], "C-1": [TEST]})] == ["ID-4", "CL-1"]
    assert [row.id for row in document.contradicted(rows, {"ID-2": [TEST], "WIT-1": [TEST]})] == ["ID-2"]


def test_the_document_counts_and_links() -> None:
    lines = document.render(load(ROWS), {"ID-1": [TEST], "CL-1": [TEST]}).splitlines()
    assert "| MUST, MUST NOT | 3 | 1 | 2 | 0 |" in lines
    assert "| SHOULD, SHOULD NOT | 1 | 0 | 0 | 1 |" in lines
    assert "| answers that break clients | 1 | 1 | 0 | 0 |" in lines
    shown = "[test_a.py::test_a](../tests/test_a.py)"
    assert f"| ID-1 | MUST | all | A \\| B. | [SPIFFE-ID][ID] 2, 2.1, RFC 3986 | {shown} |" in lines
    assert "| ID-2 | MUST NOT | I, W | B. | [SPIFFE-ID][ID] appendix A | Because. |" in lines
    assert "| ID-4 | SHOULD | V | D. | [SPIFFE-ID][ID] 2 | **none yet** |" in lines
    assert "| WIT-1 | MUST | I | E. | [SPIFFE-ID][ID] 3 | see above |" in lines
    assert "| CL-1 | H. | I | " + shown + " |" in lines
    assert "| FED-1 | Federation | Not yet. |" in lines
    assert lines[-1].startswith("[ID]: https://")
    assert lines[-1].endswith("/0123456789abcdef/standards/SPIFFE-ID.md")


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ('level = "MAY"', 'level = "may"', "ID-3 is 'may'"),
        ('who = "I, W"', 'who = "I, X"', "ID-2 is"),
        ('text = "D."', 'txt = "D."', "ID-4 has"),
        ("C-1 =", "ID-1 =", "ID-1 stands twice"),
        ('breaks = "I"', 'breaks = "I", why = "Too hard."', "CL-1 has"),
    ],
)
def test_rows_that_do_not_hold_together_are_refused(right: str, wrong: str, sentence: str) -> None:
    with pytest.raises(ChecklistError, match=sentence):
        load(ROWS.replace(right, wrong))


def test_a_mark_that_names_no_row_is_refused() -> None:
    with pytest.raises(ChecklistError, match=r"no row ID-9 \(tests/test_a.py::test_a\)"):
        document.check_known(load(ROWS), {"ID-1": [TEST], "ID-9": [TEST]})


FORMS = """
import pytest
from pytest import mark
pytestmark = [pytest.mark.skipif(False, reason=""), pytest.mark.spec("M-1")]
CASES = [1, pytest.param(2, marks=pytest.mark.spec("P-1"))]
ALIKE = CASES

@pytest.mark.spec("D-1", "D-2")
@pytest.mark.spec("D-3")
def test_decorated(): pass

@mark.spec("D-4")
async def test_imported(): pass

@pytest.mark.parametrize("a", [pytest.param(1, marks=[mark.spec("P-2"), mark.spec("P-3")])])
def test_parameters(a): pass

@pytest.mark.parametrize("a", ALIKE)
def test_parameters_elsewhere(a): pass

@pytest.mark.spec("K-1")
class TestClass:
    pytestmark = pytest.mark.spec("K-2")
    @pytest.mark.spec("K-3")
    def test_method(self): pass

def test_bare(): pass
def helper(): pass
"""
PLUGIN = """
import json
def pytest_collection_modifyitems(items):
    found = {}
    for item in items:
        name = item.nodeid.partition("::")[2].partition("[")[0]
        ids = [each for mark in item.iter_markers("spec") for each in mark.args]
        found[name] = sorted({*found.get(name, ()), *ids})
    print("FOUND " + json.dumps(found))
"""


def test_marks_are_read_as_pytest_understands_them(tmp_path: Path) -> None:
    file = tmp_path / "test_forms.py"
    file.write_text(FORMS, encoding="utf-8")
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = spec(*ids): rows\npythonpath = .\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "plugin", "--collect-only", "-qs", "."]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    collected = json.loads(next(line for line in told.splitlines() if line.startswith("FOUND ")).removeprefix("FOUND "))
    ours: dict[str, list[str]] = {name: [] for name in collected}
    for identifier, tests in read_marks([file], tmp_path).items():
        for test in tests:
            assert test.file == "test_forms.py"
            ours[test.name].append(identifier)
    assert {name: sorted(ids) for name, ids in ours.items()} == collected
    assert collected["TestClass::test_method"] == ["K-1", "K-2", "K-3", "M-1"]
    assert collected["test_parameters_elsewhere"] == ["M-1", "P-1"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("@pytest.mark.spec(ID)\ndef test_a(): pass", "literal text"),
        ("@pytest.mark.spec(*IDS)\ndef test_a(): pass", "literal text"),
        ("@pytest.mark.spec(1)\ndef test_a(): pass", "literal text"),
        ('@pytest.mark.spec("ID-1")\ndef helper(): pass', "on no test"),
        ('CASES = [pytest.param(1, marks=pytest.mark.spec("ID-1"))]', "on no test"),
        ('def test_a():\n    pytest.mark.spec("ID-1")', "on no test"),
    ],
)
def test_marks_that_would_show_nothing_are_refused(tmp_path: Path, source: str, sentence: str) -> None:
    file = tmp_path / "test_wrong.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(ChecklistError, match=f"test_wrong.py:.*{sentence}"):
        read_marks([file], tmp_path)
