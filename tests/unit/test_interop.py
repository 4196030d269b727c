"""The table of docs/interop.md is of the suites that there are, at the versions that they pin."""

import asyncio
import hashlib
import os
import threading
import zipfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests import go_tools
from tests.cluster.programs import PROGRAMS as CLUSTER_PROGRAMS
from tests.interop.__main__ import main
from tests.interop.rig import as_group, ran
from tests.interop.run import Found, count
from tests.interop.suites import HERE, Suite, SuiteError, load, load_all, names
from tests.interop.table import PAGE, Row, TableError, append, rows
from tests.interop.tools import get, lacking
from tests.support import IS_ROOT

SUITES = load_all()
_ROW = Row("spire", "v1", date(2026, 11, 27), "0123456789", 12, 0, 1.5)
_PAGE = """# Page

| suite | version | date | commit | passed | failed | minutes |
|---|---|---|---|---|---|---|
"""
_MANIFEST = """shows = "x"
kind = "wheel"
tool = "t"
version = "1"
build_minutes = 1
minutes = 2
hashes = ["0"]
places = { t = "bin/t" }
"""


@pytest.mark.parametrize("suite", SUITES, ids=lambda each: each.name)
def test_the_last_run_of_each_suite_was_of_the_version_now_pinned(suite: Suite) -> None:
    runs = [row for row in rows(PAGE.read_text(encoding="utf-8")) if row.suite == suite.name]
    assert runs, f"run: make interop SUITE={suite.name}"
    assert runs[-1].version == suite.version, f"run: make interop SUITE={suite.name}"
    assert runs[-1].passed > 0


def test_every_line_is_of_a_suite() -> None:
    assert {row.suite for row in rows(PAGE.read_text(encoding="utf-8"))} <= set(names())


@pytest.mark.parametrize("suite", SUITES, ids=lambda each: each.name)
def test_the_page_says_what_each_suite_shows(suite: Suite) -> None:
    assert f"| {suite.name} | {suite.shows} |" in PAGE.read_text(encoding="utf-8")


def test_a_module_is_pinned_at_the_version_of_its_manifest() -> None:
    for suite in SUITES:
        pinned = [each for each in suite.programs if each.package.startswith(f"{suite.tool}/")]
        assert bool(pinned) == bool(suite.programs)
        for program in pinned:
            assert f"\t{suite.tool} {suite.version}" in (program.manifest_dir / "go.mod").read_text(encoding="utf-8")
            assert (program.manifest_dir / "go.sum").exists()


def test_what_a_suite_takes_of_the_cluster_is_built_once() -> None:
    """A manifest that says how in other words than the cluster's would have it built again, for minutes."""
    ours = {each.name: go_tools.path_of(each) for each in CLUSTER_PROGRAMS}
    shared = [each for each in load("cert-manager").programs if each.name in ours]
    assert {each.name for each in shared} == {"kube-apiserver", "etcd", "helm"}
    assert [go_tools.path_of(each) for each in shared] == [ours[each.name] for each in shared]


def test_every_folder_with_tests_is_a_suite() -> None:
    assert {path.parent.name for path in HERE.glob("*/test_*.py")} == set(names())


def test_a_run_adds_its_line_and_changes_no_other(tmp_path: Path) -> None:
    page = tmp_path / "interop.md"
    page.write_text(_PAGE)
    failed = replace(_ROW, commit="0123456789+", passed=3, failed=2)
    append(_ROW, page)
    append(failed, page)
    assert rows(page.read_text()) == [_ROW, failed]
    assert page.read_text() == (
        f"{_PAGE}| spire | v1 | 2026-11-27 | 0123456789 | 12 | 0 | 1.5 |\n"
        "| spire | v1 | 2026-11-27 | 0123456789+ | 3 | 2 | 1.5 |\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["interop.md"]


def test_runs_at_once_lose_no_line(tmp_path: Path) -> None:
    page = tmp_path / "interop.md"
    page.write_text(_PAGE)
    runs = [threading.Thread(target=append, args=(replace(_ROW, passed=number), page)) for number in range(20)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert {row.passed for row in rows(page.read_text())} == set(range(20))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("| spire | v1 | 2026-11-27 | 0123456789 | 12 | 0 |", "not 7 columns"),
        ("| spire |  | 2026-11-27 | 0123456789 | 12 | 0 | 1.5 |", "not 7 columns"),
        ("| spire | v1 | yesterday | 0123456789 | 12 | 0 | 1.5 |", "isoformat"),
        ("| spire | v1 | 2026-11-27 | 0123456789 | all | 0 | 1.5 |", "invalid literal"),
        ("Something else.", "not 7 columns"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(tmp_path: Path, line: str, why: str) -> None:
    page = tmp_path / "interop.md"
    page.write_text(f"{_PAGE}{line}\n")
    with pytest.raises(TableError, match=why):
        append(_ROW, page)
    assert page.read_text() == f"{_PAGE}{line}\n"


def test_a_page_without_the_table_is_refused() -> None:
    with pytest.raises(TableError, match="there is no line"):
        rows("# Page\n")


def test_what_was_skipped_has_not_passed() -> None:
    report = """<testsuites><testsuite>
      <testcase name="a"/>
      <testcase name="b"><system-out>said</system-out></testcase>
      <testcase name="c"><skipped type="pytest.xfail" message="known"/></testcase>
      <testcase name="d"><skipped type="pytest.skip" message="not root"/></testcase>
      <testcase name="e"><failure message="no"/></testcase>
      <testcase name="f"><error message="in a fixture"/></testcase>
    </testsuite></testsuites>"""
    assert count(report) == Found(passed=2, failed=3, gaps=1)


def test_a_manifest_that_lacks_something_or_has_a_word_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    file = tmp_path / "x" / "suite.toml"
    file.write_text(_MANIFEST)
    assert load("x", tmp_path).version == "1"
    for wrong in (
        _MANIFEST.replace('version = "1"\n', ""),
        f"verson = 1\n{_MANIFEST}",
        _MANIFEST.replace("wheel", "deb"),
        f"{_MANIFEST}=",
    ):
        file.write_text(wrong)
        with pytest.raises(SuiteError, match=r"suite\.toml"):
            load("x", tmp_path)


def test_a_suite_that_is_none_is_named_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "spyre"]) == 2
    there = "cert-manager, istio, istiod, kafka, keycloak, openbao, spire"
    assert f"there is no suite spyre; there are: {there}" in capsys.readouterr().err


def test_what_is_not_ready_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TESTS_CACHE", str(tmp_path))
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "spire-agent, spire-server, go-client, kube-apiserver, etcd, helm, kubectl: not in the cache" in said
    assert "python -m tests.interop build spire" in said
    assert said.count("\n  ready\n") == 1, "a wheel takes no time to get"
    assert "kc: not in the cache" in said
    assert "jars: not in the cache" in said


@pytest.mark.skipif(not IS_ROOT, reason="others' groups are root's to take")
def test_a_program_runs_as_a_group_alone_by_its_own_means() -> None:
    assert asyncio.run(ran(*as_group(65534, "id", "-G"))).split() == ["65534"]
    assert as_group(os.getgid(), "id") == ["id"]


def test_an_archive_of_maven_is_taken_by_its_hash_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "peer-1.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("peer/bin/run.sh", "#!/bin/sh\n")
    (tmp_path / "bin").mkdir()
    # What the plugin does: the archive comes into the folder that it is told.
    mvn = "#!/bin/sh\nfor each; do case $each in -DoutputDirectory=*) to=${each#*=};; esac; done\n"
    for name, text in (("mvn", f'{mvn}mkdir "$to" && cp {archive} "$to"\n'), ("java", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TESTS_CACHE", str(tmp_path / "cache"))
    there = {"run": "peer/bin/run.sh"}
    other = Suite("peer", "maven", "x", "org.peer:peer", "1", 1, 2, hashes=("0" * 64,), places=there)
    with pytest.raises(SuiteError, match="which its suite does not name"):
        get(other, lambda _: None)
    assert "run: not in the cache" in lacking(other)
    assert [each.name for each in (tmp_path / "cache" / "archives").iterdir()] == ["peer-1.lock"]
    suite = replace(other, hashes=(hashlib.sha256(archive.read_bytes()).hexdigest(),))
    found = get(suite, lambda _: None)
    assert os.access(found["run"], os.X_OK)
    assert lacking(suite) == ""


def test_jars_are_taken_by_the_hash_of_their_list_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = {"a-1.jar": b"a", "b-2.jar": b"b"}
    (tmp_path / "bin").mkdir()
    mvn = "#!/bin/sh\nfor each; do case $each in -DoutputDirectory=*) to=${each#*=};; esac; done\n"
    copied = 'mkdir -p "$to" && printf a >"$to/a-1.jar" && printf b >"$to/b-2.jar"\n'
    for name, text in (("mvn", mvn + copied), ("java", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TESTS_CACHE", str(tmp_path / "cache"))
    listed = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in jars.items())
    suite = replace(load("kafka"), hashes=(hashlib.sha256(listed.encode()).hexdigest(),))
    with pytest.raises(SuiteError, match="which its suite does not name"):
        get(replace(suite, hashes=("0" * 64,)), lambda _: None)
    assert "jars: not in the cache" in lacking(suite)
    assert sorted(each.name for each in get(suite, lambda _: None)["jars"].iterdir()) == list(jars)
    assert lacking(suite) == ""


def test_what_maven_is_asked_for_is_pinned_at_the_version_of_its_manifest() -> None:
    for suite in SUITES:
        if suite.kind == "jars":
            group, _, artifact = suite.tool.partition(":")
            pinned = "".join((suite.folder / "pom.xml").read_text(encoding="utf-8").split())
            named = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{suite.version}</version>"
            assert named in pinned
