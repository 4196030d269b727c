"""Files of other people's objects as plain values: bounded, without aliases, tags and doubled keys."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from podsvid.outcome import CommandError
from runtime.terminal import shown

# Bytes of all files together. YAML takes some hundred times its size while it is read.
MAX_JSON, MAX_YAML = 64 << 20, 4 << 20
MAX_DEPTH = 64
STDIN = "-"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})", re.ASCII)
_TAG = "tag:yaml.org,2002:"


class UnusableDocument(CommandError):
    """A file is not what it should be."""

    reason = "UNUSABLE_DOCUMENT"


@dataclass(frozen=True, slots=True)
class Document:
    """One of a file's documents. `where`: file and number, for people."""

    where: str
    value: Any


def read(paths: Iterable[str]) -> tuple[Document, ...]:
    """All documents of all files, empty ones left out. Raises UnusableDocument, OSError."""
    found: list[Document] = []
    left = MAX_JSON
    for path in paths:
        data = _bytes(path, left)
        left -= len(data)
        name = "the standard input" if path == STDIN else path
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UnusableDocument(f"{name} is not UTF-8 (byte {error.start})") from None
        found += parsed(name, text)
    return tuple(found)


def parsed(name: str, text: str) -> tuple[Document, ...]:
    """The documents of a text, empty ones left out. Raises UnusableDocument."""
    found = enumerate(_values(name, text), 1)
    return tuple(Document(f"{name}, document {number}", value) for number, value in found if value is not None)


def _bytes(path: str, most: int) -> bytes:
    if path == STDIN:
        data = sys.stdin.buffer.read(most + 1)
    else:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise UnusableDocument(f"the files have more than {MAX_JSON >> 20} MiB; divide them into several runs")
    return data


def _values(name: str, text: str) -> Iterator[Any]:
    try:
        if text.lstrip()[:1] in ("{", "["):
            found = json.loads(text, object_pairs_hook=_no_doubles)
            _check_depth(found)
            yield found
            return
    except UnusableDocument as error:
        raise UnusableDocument(f"{name}: {error}") from None
    except RecursionError:
        raise UnusableDocument(f"{name} is nested too deeply") from None
    except ValueError:
        # Flow style looks the same, and kubectl prints a document for each of several calls.
        pass
    if len(text) > MAX_YAML:
        raise UnusableDocument(f"{name} has more than {MAX_YAML >> 20} MiB of YAML; get it as JSON (kubectl -o json)")
    try:
        for node in yaml.compose_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            yield None if node is None else _Reader().value(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark is not None else ""
        raise UnusableDocument(f"{name} is neither YAML nor JSON{at}") from None
    except UnusableDocument as error:
        raise UnusableDocument(f"{name}: {error}") from None
    except RecursionError:
        raise UnusableDocument(f"{name} is nested too deeply") from None


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise UnusableDocument(f"key {shown(twice)} is there twice: which one counts differs from reader to reader")
    return found


def _check_depth(value: Any) -> None:
    waiting = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, dict | list):
            if depth > MAX_DEPTH:
                raise UnusableDocument("it is nested too deeply")
            waiting += [(one, depth + 1) for one in (each.values() if isinstance(each, dict) else each)]


class _Reader:
    """Of one YAML document. Only what JSON has as well: texts, numbers, true, false, null, lists and mappings."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, depth: int = 1) -> Any:
        if id(node) in self._seen:
            # A few of them within each other would become more than a machine holds.
            raise UnusableDocument(f"line {node.start_mark.line + 1} has an alias (*), which kubectl never writes")
        self._seen.add(id(node))
        if depth > MAX_DEPTH:
            raise UnusableDocument("it is nested too deeply")
        if isinstance(node, yaml.CollectionNode) and node.tag not in (f"{_TAG}seq", f"{_TAG}map"):
            raise _tagged(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(each, depth + 1) for each in node.value]
        if isinstance(node, yaml.MappingNode):
            return _no_doubles([(_key(key), self.value(each, depth + 1)) for key, each in node.value])
        return _scalar(node)


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag == f"{_TAG}merge":
        raise UnusableDocument(f"line {node.start_mark.line + 1} has a key that is no text")
    return str(node.value)


def _scalar(node: yaml.Node) -> Any:
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and _INT.fullmatch(text):
        return int(text)
    if kind not in ("str", "int", "float", "timestamp"):
        raise _tagged(node)
    return text


def _tagged(node: yaml.Node) -> UnusableDocument:
    return UnusableDocument(f"line {node.start_mark.line + 1} has the tag {shown(node.tag)}, which is not taken")
