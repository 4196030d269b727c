"""The image's pinned packages are those that the project asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PINNED = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "deploy" / "image" / "requirements.txt").read_text(), re.M))


@pytest.mark.parametrize(
    "wanted", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"], ids=str
)
def test_each_dependency_is_pinned_to_a_version_that_will_do(wanted: str) -> None:
    requirement = Requirement(wanted)
    assert requirement.specifier.contains(Version(PINNED[requirement.name])), "make requirements.txt anew"


def test_every_package_has_hashes() -> None:
    for name in ("requirements.txt", "build-requirements.txt"):
        text = (ROOT / "deploy" / "image" / name).read_text()
        blocks = re.split(r"^(?=[a-z0-9.-]+==)", text, flags=re.M)[1:]
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks)


def test_every_package_of_the_project_is_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    top = {name.removesuffix("*") for name in packages}
    text = (ROOT / "deploy" / "image" / "Containerfile").read_text()
    assert {name for name in top if f"COPY {name} /build/source/{name}\n" in text} == top
    ignored = (ROOT / "deploy" / "image" / "Containerfile.dockerignore").read_text().split()
    assert {f"!{name}" for name in top} <= set(ignored)
