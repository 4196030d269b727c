"""A YAML file of settings as it was written: each value's own text, its kind and its line, and what cannot be read.

It is read as nodes and never made into objects, so a word such as `off` or `no` still is what somebody wrote. Nothing
that is said of a file quotes a line of it: whoever names the wrong file may have named one with a key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

# No file of settings is as large; a device would have no end.
MAX_BYTES = 1024 * 1024
_TAG = "tag:yaml.org,2002:"
_NAMED = frozenset({"str", "int", "float", "bool", "null"})
_LONGEST_KEY = 40


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `kind` is YAML's: str, int, float, bool or null."""

    text: str
    kind: str


Sequence: TypeAlias = tuple[Scalar, ...]
Pairs: TypeAlias = tuple[tuple[Scalar, Scalar], ...]
Value: TypeAlias = Scalar | Sequence | Pairs


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting of the file. `value` is None where it is nothing that a setting could be."""

    key: str
    line: int
    value: Scalar | Sequence | Pairs | None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What the file says. `whole`: it could be read at all; `faults` are for people."""

    path: Path
    entries: tuple[Entry, ...] = ()
    faults: tuple[str, ...] = ()
    whole: bool = True


def read(path: Path) -> ConfigFile:
    """What is in the file, and what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return _unread(path, f"cannot be read: {error.strerror}")
    if len(data) > MAX_BYTES:
        return _unread(path, f"is larger than {MAX_BYTES} bytes: is it the right one?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _unread(path, f"cannot be read: it is not UTF-8 (byte {error.start})")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        return _unread(path, f"is not YAML{_where(error)}")
    except RecursionError:
        return _unread(path, "is not YAML that a person wrote: it is nested too deeply")
    if node is None or node.tag == f"{_TAG}null":
        return ConfigFile(path)
    if not isinstance(node, yaml.MappingNode):
        return _unread(path, "must be a mapping of settings, `name: value` in each line")
    lines: dict[str, int] = {}
    entries, faults = list[Entry](), list[str]()
    for entry in _entries(node):
        if entry.key in lines:
            faults.append(
                f"{shown_key(entry.key)} is in {path} twice, lines {lines[entry.key]} and {entry.line}: leave one out"
            )
            continue
        lines[entry.key] = entry.line
        entries.append(entry)
    return ConfigFile(path, tuple(entries), tuple(faults))


def shown_key(key: str) -> str:
    """A key for people; no setting's name is as long as what somebody could have pasted."""
    return repr(key) if len(key) <= _LONGEST_KEY and key.isprintable() else f"a key of {len(key)} characters"


def _unread(path: Path, why: str) -> ConfigFile:
    return ConfigFile(path, faults=(f"config file {path} {why}",), whole=False)


def _where(error: yaml.YAMLError) -> str:
    """What is wrong, and where. The text of the error itself shows the line, and its `problem` a word of it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return ": it has a character that no text has"
    tab = mark.buffer and mark.buffer[mark.pointer : mark.pointer + 1] == "\t"
    what = "a tab: indent with spaces" if tab else "something that `name: value` lines cannot have there"
    return f": in line {mark.line + 1}, column {mark.column + 1}, stands {what}"


def _entries(node: yaml.MappingNode) -> Iterator[Entry]:
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        yield Entry(name, key.start_mark.line + 1, _value(value))


def _value(node: yaml.Node) -> Value | None:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        items = [_scalar(each) for each in node.value]
        return None if None in items else tuple(each for each in items if each is not None)
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        pairs = [(_scalar(key), _scalar(value)) for key, value in node.value]
        found = tuple((key, value) for key, value in pairs if key is not None and value is not None)
        return found if len(found) == len(pairs) else None
    return None


def _scalar(node: yaml.Node) -> Scalar | None:
    kind = str(node.tag).removeprefix(_TAG)
    if not isinstance(node, yaml.ScalarNode):
        return None
    if kind not in _NAMED:
        # A date is text here, whatever YAML makes of it; what has a tag of its own is nothing.
        kind = "str" if kind == "timestamp" else ""
    return Scalar(str(node.value), kind) if kind else None
