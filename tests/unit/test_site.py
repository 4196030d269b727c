"""The documentation's site: every page has its place, links lead somewhere, and commands exist."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podsvid.cli import _COMMANDS, _parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(each)


def test_every_page_is_in_the_navigation() -> None:
    found = list(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(found) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_tutorial_is_typed_by_a_test() -> None:
    """By the one of the cluster, or by a test that the page names and that reads it."""
    in_the_cluster = (ROOT / "tests" / "cluster" / "test_tutorials.py").read_text()
    for page in (DOCS / "tutorials").glob("*.md"):
        named = re.findall(r"`(tests/[\w/]+\.py)`", page.read_text())
        by = [in_the_cluster, *((ROOT / each).read_text() for each in named)]
        assert page.name == "index.md" or any(f'"{page.name}"' in each for each in by), page.name


def _anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target.read_text()), link


def _help(parser: argparse.ArgumentParser) -> str:
    """Of the parser and of every one below it."""
    found = parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += "".join(_help(each) for each in action.choices.values())
    return found


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    return {command: _help(_parser(command)) for command in _COMMANDS}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_commands_exist_with_their_flags(page: Path, known: dict[str, str]) -> None:
    # Looked ahead for: `kubectl -n podsvid exec … -- podsvid …` has it twice.
    for line in re.findall(r"(?<![\w.-])podsvid (?=([a-z-]+(?: [^`\n]*)?))", page.read_text()):
        command = line.split()[0]
        if command not in known:
            continue  # prose
        for flag in re.findall(r"(?<![\w-])--[a-z0-9-]+", line):
            assert flag in known[command], f"{page.name}: podsvid {command} has no {flag}"
