"""The site as `make docs` builds it: links and anchors lead somewhere, and a browser searches it from a disk."""

import base64
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from docs import reasons
from runtime import advice
from tests.browser import browser, program

ROOT = Path(__file__).parents[2]
HAS_BROWSER = pytest.mark.skipif(program() is None, reason="no browser here: apt-get install chromium-headless-shell")
pytestmark = pytest.mark.xdist_group("docs site")
_LINK = re.compile(r"<(?:a|link|script|img)\b[^>]*?\b(?:href|src)=\"?([^\"\s>]+)")
_ID = re.compile(r"\bid=\"?([^\"\s>]+)")
# The search is in a part of the page of its own.
FOUND = (
    "[...document.querySelectorAll('*')].find((each) => each.shadowRoot?.querySelector('[role=listbox]')).shadowRoot"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, in a folder with a blank in its name; a page that leads nowhere is an error."""
    there = tmp_path_factory.mktemp("a site")
    shutil.copytree(ROOT / "docs", there / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", there)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    # A colour a letter is nothing to read in a report.
    plain = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=there, env=plain, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return there / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_each_page_of_the_navigation_is_built(site: Path) -> None:
    def named(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [name for each in (nav.values() if isinstance(nav, dict) else nav) for name in named(each)]  # type: ignore[attr-defined]

    found = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(found) > 40
    assert [each for each in found if not (site / each).with_suffix(".html").exists()] == []
    # What makes the pages is no part of them.
    assert list(site.rglob("*.py")) == []


def test_links_lead_to_pages_and_anchors_that_are_there(site: Path, pages: dict[Path, str]) -> None:
    ids = {path: {html.unescape(each) for each in _ID.findall(text)} for path, text in pages.items()}
    lost = []
    for path, text in pages.items():
        for link in map(html.unescape, _LINK.findall(text)):
            where, _, anchor = unquote(link).partition("#")
            target = (path.parent / where.partition("?")[0]).resolve() if where else path
            outside = not target.is_relative_to(site)
            # The checklist names tests by their files; a page that says that there is none has no place of its own.
            if link.startswith(("http:", "https:", "data:")) or path.name == "404.html" or outside:
                continue
            if not target.exists() or (anchor and target in ids and anchor not in ids[target]):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_what_events_alerts_and_commands_lead_to_is_there(site: Path, pages: dict[Path, str]) -> None:
    def ids(page: str) -> set[str]:
        return set(_ID.findall(pages[site / page]))

    base = "https://docs.example.org/podsvid"
    for row in (row for group in reasons.groups() for row in group.rows):
        page, _, anchor = advice.link(row.reason, base).removeprefix(f"{base}/").partition("#")
        assert anchor in ids(page), row.reason
    rules = yaml.safe_load((ROOT / "deploy/chart/podsvid/monitoring/alerts.yaml").read_text(encoding="utf-8"))
    urls = [rule["annotations"]["runbook_url"] for group in rules["groups"] for rule in group["rules"]]
    assert {url.partition("#")[0] for url in urls} == {"docs/operations.md"}
    assert {url.partition("#")[2] for url in urls} <= ids("operations.html")


def test_no_page_takes_anything_from_elsewhere(pages: dict[Path, str]) -> None:
    for path, text in pages.items():
        taken = re.findall(
            r"<(?:script|img|iframe|link rel=\"?stylesheet)[^>]*?(?:src|href)=\"?(https?:[^\"\s>]+)", text
        )
        assert taken == [], path.name


@HAS_BROWSER
@pytest.mark.timeout(180)
def test_a_copy_on_a_disk_is_searched_and_asks_nobody(site: Path) -> None:
    with browser() as page:
        page.size(1280, 800)
        page.open((site / "index.html").as_uri())
        page.until("document.querySelector('.md-search__button')")
        page.value("document.querySelector('.md-search__button').click()")
        page.until(f"{FOUND}.activeElement.matches('input')")
        page.call("Input.insertText", text="POLICY_UNUSABLE")
        page.until(f"{FOUND}.querySelector('ol a')")
        found = page.value(f"[...{FOUND}.querySelectorAll('ol a')].map((each) => each.href)")
        (troubles,) = (each for each in found[:3] if each.startswith((site / "troubleshooting.html").as_uri()))
        assert troubles.endswith("#policy_unusable")
        assert page.said == []
        page.open(troubles)
        page.until("document.querySelector('#policy_unusable') && scrollY > 0")
        assert [each for each in page.requests if not each.startswith(("file:", "data:", "blob:", "about:"))] == []


@HAS_BROWSER
@pytest.mark.timeout(180)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1920])
def test_pages_fit_the_window(site: Path, width: int, dark: bool) -> None:
    """Wide tables and code scroll by themselves. `DOCS_PICTURES=DIR` keeps what it looks like, for whoever looks."""
    with browser() as page:
        # The first page that is opened keeps which of the two it is.
        page.size(width, 900, dark=dark)
        for name in ("index", "start", "troubleshooting", "configuration", "tutorials/index"):
            page.open((site / f"{name}.html").as_uri())
            page.until(f"location.pathname.endsWith('/{name}.html') && document.querySelector('h1')")
            assert page.value("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
            assert page.value("document.documentElement.scrollWidth") <= width, name
            if folder := os.environ.get("DOCS_PICTURES"):
                shown = f"{name.replace('/', '-')}-{width}{'-dark' * dark}.png"
                (Path(folder) / shown).write_bytes(base64.b64decode(page.picture()))
