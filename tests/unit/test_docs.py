"""What the documentation says about the code is what the code says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize(
    "page",
    [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy" / "examples").rglob("*.yaml"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_people_verify_by_openssl_also_verifies_below_a_ca_of_theirs(page: Path) -> None:
    """openssl takes no intermediates from the file that it verifies: below another CA it refuses each SVID without
    them, and what a page expects to be refused is, whatever there is to show."""
    for line in re.findall(r"^.*openssl verify .*$", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(r"-untrusted (\S+) \1(?=\s|$)", line), line


def test_the_envoys_of_two_clusters_name_each_other_as_their_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorials" / "federate.md").read_text(encoding="utf-8")
    lines = re.search(r"^    envoys\(\) \{.*?^    envoys other one$", page, re.MULTILINE | re.DOTALL)
    assert lines is not None
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\ncase "$3" in apply) cat > "$2.yaml";; *) echo "$*" >> patched;; esac\n')
    kubectl.chmod(0o700)
    shell = shutil.which("sh")
    assert shell is not None
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([shell, "-ec", lines[0]], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    for here, there in (("one", "other"), ("other", "one")):
        documents = list(yaml.safe_load_all((tmp_path / f"{here}.yaml").read_text(encoding="utf-8")))
        config = {each["metadata"]["name"]: each["data"]["envoy.yaml"] for each in documents if "data" in each}
        peers = {name: re.findall(r'exact: "(.*)"', text) for name, text in config.items()}
        assert peers == {
            "envoy-server": [f"spiffe://{there}.example/ns/default/sa/envoy-client"],
            "envoy-client": [f"spiffe://{there}.example/ns/default/sa/envoy-server"],
        }
        assert (
            f"address: {{socket_address: {{address: envoy.{there}.example, port_value: 8443}}}}"
            in config["envoy-client"]
        )
    # What the page shows of them.
    for shown in (
        'matcher: {exact: "spiffe://one.example/ns/default/sa/envoy-client"}',
        "address: {socket_address: {address: envoy.other.example, port_value: 8443}}",
    ):
        assert shown in page
        assert shown in (tmp_path / ("other.yaml" if "one.example" in shown else "one.yaml")).read_text()
    patched = (tmp_path / "patched").read_text().splitlines()
    assert [each.split()[:5] for each in patched] == [
        ["--context", name, "patch", "service", "envoy-server"] for name in ("one", "other")
    ]


# `[text](where)`, outside of what is quoted as code.
_CODE = re.compile(r"^ *```.*?^ *```|^(?: {4}|\t).*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LEADS = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


def _leads(page: str) -> list[str]:
    found = [each.partition("#")[0] for each in _LEADS.findall(_CODE.sub("", page))]
    return [each for each in found if each and not re.match(r"[a-z]+:", each)]


def test_links_of_a_page_are_found() -> None:
    page = '[a](b.md) [c](https://example.org/d) `[e](f.md)` [g](#h)\n[i](../j.md#k "l")\n```\n[m](n.md)\n```\n'
    assert _leads(page + "    [o](p.md)\n") == ["b.md", "../j.md"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """The site is `docs` alone: a link to a page that is beside it (`bench/results/console.md`) ends its build."""
    places = [(page.parent / each).resolve() for each in _leads(page.read_text(encoding="utf-8"))]
    beside = [each for each in places if each.suffix == ".md" and not each.is_relative_to(ROOT / "docs")]
    assert beside + [each for each in places if not each.exists()] == []


_BESIDE = [
    *ROOT.glob("*.md"),
    *(each for folder in ("deploy", "bench", "tests") for each in (ROOT / folder).rglob("*.md")),
]


@pytest.mark.parametrize("page", _BESIDE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_what_is_read_in_the_repository_lead_somewhere(page: Path) -> None:
    found = _leads(page.read_text(encoding="utf-8"))
    assert [each for each in found if not (page.parent / each).exists()] == []
