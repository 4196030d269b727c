"""The builder of clients in other languages, with tools that are shell scripts; and that what it builds is pinned."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from tests.conformance import foreign
from tests.conformance.foreign import FOREIGN, GRPC_JS, JAVA, RUST, Foreign, build, lacking, place_of
from tests.go_tools import BuildError

# Notes each call; `fails` in the folder breaks the build.
TOOL = """\
#!/bin/sh
echo "$*" >> "$CALLS"
[ -e fails ] && { echo "it does not compile"; exit 1; }
cat manifest > made
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)
    folder = tmp_path / "client"
    folder.mkdir()
    (folder / "manifest").write_text("one")
    (tmp_path / "calls").touch()
    monkeypatch.setattr(foreign, "SEARCH_PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TESTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return Foreign("c", folder, {"tool": "a package"}, [["tool", "a"], ["tool", "b"]], ["made"], lambda at: [str(at)])


def calls(client: Foreign) -> list[str]:
    return (client.folder.parent / "calls").read_text().splitlines()


def test_a_client_is_built_once_for_each_state_of_its_folder(client: Foreign) -> None:
    build([client], lambda _: None)
    place = place_of(client)
    assert {path.name: path.read_text() for path in place.iterdir()} == {"made": "one"}
    assert [path.name for path in client.folder.iterdir()] == ["manifest"]
    build([client], lambda _: None)
    assert calls(client) == ["a", "b"]
    (client.folder / "manifest").write_text("two")
    build([client], lambda _: None)
    assert (place_of(client) / "made").read_text() == "two"
    assert (place / "made").read_text() == "one", "another checkout may still want it"


def test_a_failed_build_says_why_and_leaves_nothing(client: Foreign) -> None:
    (client.folder / "fails").touch()
    with pytest.raises(BuildError, match=r"c failed at tool:\nit does not compile"):
        build([client], lambda _: None)
    assert not place_of(client).exists()
    assert not list(place_of(client).parent.glob(".new-*"))


def test_a_client_whose_tools_are_not_here_is_left_out_and_named(
    client: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "SEARCH_PATH", "")
    said: list[str] = []
    build([client], said.append)
    assert said == ["left out: c needs tool (a package)"]
    assert lacking(client) == "c needs tool (a package)"
    assert not place_of(client).exists()


def test_every_package_is_pinned() -> None:
    wanted = json.loads((GRPC_JS.folder / "package.json").read_text())["dependencies"]
    locked = json.loads((GRPC_JS.folder / "package-lock.json").read_text())["packages"]
    assert locked.pop("")["dependencies"] == wanted
    assert all(each["version"] and each["integrity"].startswith("sha512-") for each in locked.values())
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    packages = tomllib.loads((RUST.folder / "Cargo.lock").read_text())["package"]
    versions = {each["name"]: each["version"] for each in packages}
    for name, each in tomllib.loads((RUST.folder / "Cargo.toml").read_text())["dependencies"].items():
        version = each if isinstance(each, str) else each["version"]
        assert version == f"={versions[name]}"
    assert all("checksum" in each for each in packages if each["name"] != "client")
    # Maven has no lock file. Those that are named name theirs in the same way.
    found = re.findall(r"<version>(.*?)<", (JAVA.folder / "pom.xml").read_text())
    assert all(re.fullmatch(r"[\d.]+", each) for each in found)


def test_every_folder_of_clients_is_built() -> None:
    assert {client.folder for client in FOREIGN} == {*GRPC_JS.folder.parent.iterdir()}
