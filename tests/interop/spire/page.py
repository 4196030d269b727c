"""The commands of a page of docs, as they stand there, for a test to type them."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tests.support import ROOT

_PAGE = ROOT / "docs" / "spire-federation.md"


MIGRATION = ROOT / "docs" / "migration.md"


def block(heading: str, begin: str, page: Path = _PAGE) -> str:
    """The indented block below that heading whose text begins so, one of a list's item too. Raises ValueError unless
    there is just one."""
    section = re.split(r"^#{2,3} ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [each for each in section if each.startswith(f"{heading}\n")]
    blocks = [textwrap.dedent(each).strip("\n") for each in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.M)]
    (found,) = [each for each in blocks if each.startswith(begin)]
    return found + "\n"


def typed(text: str, instead: Mapping[str, str]) -> str:
    """With this run's names in place of the page's. Raises AssertionError for one that is not there."""
    for old, new in instead.items():
        assert old in text, f"{old}: not in\n{text}"
        text = text.replace(old, new)
    return text
