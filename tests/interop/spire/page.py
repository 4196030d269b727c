"""The commands of docs/spire-federation.md, as they stand there, for a test to type them."""

import re
from collections.abc import Mapping

from tests.support import ROOT

_PAGE = ROOT / "docs" / "spire-federation.md"


def block(heading: str, begin: str) -> str:
    """The indented block below that heading whose text begins so. Raises ValueError unless there is just one."""
    section = re.split(r"^## ", _PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [each for each in section if each.startswith(f"{heading}\n")]
    blocks = [re.sub(r"^ {4}", "", each, flags=re.MULTILINE) for each in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.M)]
    (found,) = [each.strip("\n") for each in blocks if each.strip("\n").startswith(begin)]
    return found + "\n"


def typed(text: str, instead: Mapping[str, str]) -> str:
    """With this run's names in place of the page's. Raises AssertionError for one that is not there."""
    for old, new in instead.items():
        assert old in text, f"{old}: not in\n{text}"
        text = text.replace(old, new)
    return text
