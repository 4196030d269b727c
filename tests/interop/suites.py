"""What a suite's manifest says: which peer, of which version, how it is had."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.go_tools import Program

HERE = Path(__file__).parent
_KINDS = ("wheel", "maven", "jars", "go")
_KEYS = {"shows", "kind", "tool", "version", "build_minutes", "minutes"}


class SuiteError(Exception):
    """A manifest that cannot be used, a suite that is none, or a peer that cannot be had. The text says which."""


@dataclass(frozen=True)
class Suite:
    """One peer.

    `tool` is the package of PyPI, the archive of a Maven repository, the artifact of its `pom.xml` (`jars`: with all
    that it needs) or the Go module that `version` is of;
    `build_minutes` is what two cores took with nothing cached, and `minutes` what its tests take there. `places` are
    the programs in the wheel or archive, `programs` those that are built.
    """

    name: str
    kind: str
    shows: str
    tool: str
    version: str
    build_minutes: float
    minutes: float
    hashes: tuple[str, ...] = ()
    places: Mapping[str, str] | None = None
    programs: tuple[Program, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its tests are."""
        return HERE / self.name


def load(name: str, root: Path = HERE) -> Suite:
    """The suite in that folder. Raises SuiteError."""
    file = root / name / "suite.toml"
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return _suite(name, file.parent, found)
    except OSError:
        raise SuiteError(f"there is no suite {name}; there are: {', '.join(names(root))}") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise SuiteError(f"{file}: {type(error).__name__}: {error}") from None


def names(root: Path = HERE) -> list[str]:
    """Of all suites."""
    return sorted(file.parent.name for file in root.glob("*/suite.toml"))


def load_all(root: Path = HERE) -> Sequence[Suite]:
    """Every suite, by name. Raises SuiteError."""
    return [load(name, root) for name in names(root)]


def _suite(name: str, folder: Path, found: Mapping[str, Any]) -> Suite:
    kind = found["kind"]
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, not one of {', '.join(_KINDS)}")
    more = {"programs"} if kind == "go" else {"hashes", "places"}
    if set(found) != _KEYS | more:
        raise ValueError(f"it has {', '.join(sorted(set(found) ^ (_KEYS | more)))} too much or too little")
    shows, tool, version = (str(found[each]) for each in ("shows", "tool", "version"))
    common = Suite(name, kind, shows, tool, version, float(found["build_minutes"]), float(found["minutes"]))
    if kind != "go":
        hashes, places = tuple(map(str, found["hashes"])), {str(key): str(at) for key, at in found["places"].items()}
        return Suite(**{**vars(common), "hashes": hashes, "places": places})
    programs = tuple(
        Program(**{**each, "name": program, "manifest_dir": folder / each["manifest_dir"]})
        for program, each in found["programs"].items()
    )
    return Suite(**{**vars(common), "programs": programs})
