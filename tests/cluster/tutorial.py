"""The pages of docs/tutorials as a person goes through them: what is typed, and what is printed."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from .api import Object
from .chart import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
_TYPED = re.compile(r"^    \$ ")
# A whole command that sets one variable and does no more: its value is one word.
_ASSIGNED = re.compile(
    r"""([A-Za-z_]\w*)=(?:[^\s"'`;&|()<>$\\]|\$\w+|\$\{[^}]*\}|'[^']*'|"[^"]*"|\$\((?:[^()]|\([^()]*\))*\))*"""
)
_HERE = re.compile(r"<<'?([A-Z]+)'?")


@dataclass(frozen=True, slots=True)
class Step:
    """What is typed, of one line or several, and what is printed, where the page says so."""

    typed: str
    printed: str


def steps(page: Path) -> list[Step]:
    """Of a page, in order: each begins with `$`, and goes on to the end of a here-document, or while a line ends with a
    backslash or a quote is open."""
    found: list[Step] = []
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if not line.startswith("    ") or not line.strip():
            found.append(Step("", ""))
        elif _TYPED.match(line):
            typed = _TYPED.sub("", line)
            while _goes_on(typed):
                typed += "\n" + next(lines)[4:]
            found.append(Step(typed, ""))
        elif found and found[-1].typed:
            found[-1] = Step(found[-1].typed, f"{found[-1].printed}{line[4:]}\n")
    return [each for each in found if each.typed]


def assigned(typed: str) -> str:
    """The variable that it sets, if any: a person's shell keeps that, and a new one for each command does not.

    What is set for one command alone (`X=y command`) is not.
    """
    found = _ASSIGNED.fullmatch(typed.strip())
    return found[1] if found else ""


def _goes_on(typed: str) -> bool:
    """Whether what was read of a command is not all of it."""
    here = _HERE.search(typed)
    if here:
        return not typed.endswith(f"\n{here[1]}")
    return typed.endswith("\\") or typed.count("'") % 2 == 1


def example(name: str, folder: Path, image: str) -> list[Object]:
    """An example of deploy/examples, to be found below `folder` as a page says, with an image that the node has."""
    there = folder / "deploy" / "examples" / name
    shutil.copytree(ROOT / "deploy" / "examples" / name, there)
    applied: list[Object] = []
    for file in there.glob("*.yaml"):
        documents = list(yaml.safe_load_all(file.read_text()))
        for document in documents:
            spec = document.get("spec", {})
            spec = spec.get("template", {}).get("spec", spec)
            for container in spec.get("containers", []):
                container |= {"image": image, "imagePullPolicy": "Never"}
        file.write_text(yaml.safe_dump_all(documents))
        applied += documents
    return applied
