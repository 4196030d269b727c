"""The worked examples of docs/migration.md are what the commands print."""

import os
import re
from pathlib import Path

import pytest

from podsvid.cli import main
from tests.support import ROOT

PATH = ROOT / "docs" / "migration.md"
PAGE = PATH.read_text(encoding="utf-8")
EXAMPLE = re.compile(
    r"[Oo]f this `([\w.]+)`\n\n((?:    .*\n|\n)+)`podsvid (.*)` writes\n\n"
    r"((?:    .*\n|\n)+)and says\n\n((?:    .*\n|\n)+)"
)


def _block(text: str) -> str:
    return re.sub("(?m)^    ", "", text.rstrip("\n")) + "\n"


def _indented(text: str) -> str:
    return re.sub("(?m)^(?=.)", "    ", text) + "\n"


@pytest.mark.parametrize("number", [0, 1])
def test_an_example(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, given, line, wanted, told = EXAMPLE.findall(PAGE)[number]
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(_block(given), encoding="utf-8")
    assert main(line.split()) == 3
    out, said = capsys.readouterr()
    if os.environ.get("TESTS_UPDATE_GOLDEN"):
        text = PATH.read_text(encoding="utf-8").replace(wanted, _indented(out)).replace(told, _indented(said))
        PATH.write_text(text, encoding="utf-8")
    assert (out, said) == (_block(wanted), _block(told)), "TESTS_UPDATE_GOLDEN=1 writes the page anew"
