"""What a command was told: flags over PODSVID_* variables over a YAML file over defaults. All that is wrong with it is
found at once, each fault with the setting, its value and where it stands; no secret is repeated."""

import argparse
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from runtime import config_file
from runtime.config_file import Entry, Scalar
from runtime.settings import ENVIRONMENT_PREFIX, Conflict, InvalidSetting, Listed, Number, boolean

# What other commands, and those that they start, have such variables for.
OTHERS = frozenset({"ADMIN_SOCKET", "DOCS_URL", "RUN_DIR", "DIR"})
_LONGEST = 200
_BOOLEANS = {"yes": "true", "no": "false", "on": "true", "off": "false", "true": "true", "false": "false"}
# What kubelet adds for a Service whose name begins so (enableServiceLinks).
_SERVICE = re.compile(
    r"([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)", re.ASCII
)
_SERVICE_PORT = re.compile(r"(tcp|udp|sctp)://")
# PEM, a token, a name and password within a URL.
_SECRET = re.compile(r"-----BEGIN |\beyJ[\w-]*\.[\w-]*\.|://[^@]*@", re.ASCII)


class Model(Protocol):
    """A settings class."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        """What contradicts each other; `given` are the settings that somebody said."""
        ...


Config = TypeVar("Config", bound=Model)


@dataclass(frozen=True, slots=True)
class _Said:
    """One setting as somebody said it: its text, its items where it was a list, and what keeps it from being either."""

    where: str
    text: str
    items: tuple[str, ...] | None = None
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Examined(Generic[Config]):
    """The settings, and all that is wrong with them. Those of `bad` have their default for what somebody said."""

    config: Config
    faults: tuple[str, ...]
    bad: frozenset[str]
    said: Mapping[str, _Said]

    def shown(self, name: str) -> str:
        """A setting with its value and where it stands, for people."""
        said = self.said.get(name)
        found = next(each for each in dataclasses.fields(self.config) if each.name == name)
        if said is not None:
            return f"{name} {said.where} is {_shown(found, said.text)}"
        default = found.metadata["default"]
        if default is None:
            value = getattr(self.config, name)
            return f"{name} is not set" if value is None else f"{name} is {_shown(found, str(value))}"
        return f"{name} by default is {_shown(found, default)}"


def load(
    model: type[Config],
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    **fallbacks: Any,
) -> Config:
    """See `examine`. Raises InvalidSetting with all faults."""
    found = examine(model, arguments, environment, **fallbacks)
    if found.faults:
        raise InvalidSetting(*found.faults)
    return found.config


def examine(
    model: type[Config],
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    **fallbacks: Any,
) -> Examined[Config]:
    """The settings, and what is wrong with them.

    `fallbacks` are for what nobody said and has no default: a value, or a function of those before it.
    """
    fields = {each.name: each for each in dataclasses.fields(model)}
    faults, said, unread = _gathered(fields, arguments, environment)
    values, bad = dict[str, Any](), set[str]()
    for name, each in fields.items():
        try:
            values[name] = _value(each, said.get(name))
        except ValueError as error:
            found = said[name]
            faults.append(f"{name} {found.where} is {_shown(each, found.text)}; accepted: {error}")
            bad.add(name)
            values[name] = _value(each, None)
    for name, value in fallbacks.items():
        if values[name] is None:
            values[name] = value(values) if callable(value) else value
    for name, each in fields.items():
        if each.metadata["required"] and values[name] is None:
            if name not in bad and not unread:
                flag, variable = "--" + name.replace("_", "-"), ENVIRONMENT_PREFIX + name.upper()
                faults.append(f"{name} is missing: give {flag}, {variable} or {name} in YAML")
            bad.add(name)
    config = model(**values)
    examined = Examined(config, (), frozenset(bad), MappingProxyType(said))
    for conflict in config.conflicts(said):
        if not bad.intersection(conflict.names):
            faults.append(f"{' and '.join(map(examined.shown, conflict.names))}: {conflict.why}")
    return dataclasses.replace(examined, faults=tuple(faults))


def _gathered(
    fields: Mapping[str, "dataclasses.Field[Any]"], arguments: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[list[str], dict[str, _Said], bool]:
    """What is wrong before any value is looked at, what was said, and whether there is a file that was not read."""
    faults, given, unread = list[str](), dict[str, _Said](), False
    path = arguments.config or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    if path:
        file = config_file.read(Path(path))
        faults += file.faults
        unread = not file.whole
        for entry in file.entries:
            where = f"in {path}:{entry.line}"
            if entry.key not in fields:
                known = config_file.shown_key(entry.key)
                faults.append(f"{known} {where} is no setting{_meant(entry.key, fields)}")
                continue
            given[entry.key] = _said(fields[entry.key], entry, where)
    faults += _unknown_variables(fields, environment)
    for name in fields:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            given[name] = _Said(f"in {variable}", environment[variable])
        flag = getattr(arguments, name, None)
        if flag is not None:
            given[name] = _Said("from --" + name.replace("_", "-"), flag)
    return faults, given, unread


def _unknown_variables(names: Iterable[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Of each only its name is said: the value may be anything."""
    known = {name.upper() for name in names} | {"CONFIG"} | OTHERS
    for variable in sorted(environment):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name in known or _SERVICE.fullmatch(name):
            continue
        if (name == "PORT" or name.endswith("_PORT")) and _SERVICE_PORT.match(environment[variable]):
            continue
        yield f"{variable[:_LONGEST]} is set and is no setting of this command{_meant(name, known, ENVIRONMENT_PREFIX)}"


def _meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    from difflib import get_close_matches

    plain = word[:64].replace("-", "_")
    near = get_close_matches(plain if prefix else plain.lower(), list(known), 1)
    return f"; did you mean {prefix}{near[0]}?" if near else "; --help has all of them"


def _said(setting: "dataclasses.Field[Any]", entry: Entry, where: str) -> _Said:
    parse, value = setting.metadata["parse"], entry.value
    if value is None:
        return _Said(where, "a nested value", wrong="a plain value, or a list of plain values")
    if isinstance(value, Scalar):
        return _scalar(parse, value, where)
    items, pairs = list[str](), False
    for each in value:
        if isinstance(each, Scalar):
            items.append(each.text)
            wrong = each.kind == "null"
        else:
            pairs = True
            key, of = each
            items.append(key.text if of.kind == "null" else f"{key.text}={of.text}")
            wrong = key.kind == "null"
        if wrong:
            return _Said(where, ",".join(items), wrong="a list in which each has a value")
    text = ",".join(items)
    if not isinstance(parse, Listed):
        return _Said(where, text, wrong="one value, no list and no mapping")
    if pairs and not parse.pairs:
        return _Said(where, text, wrong="a list, no mapping")
    return _Said(where, text, tuple(items))


def _scalar(parse: Callable[[str], Any], value: Scalar, where: str) -> _Said:
    if value.kind == "null":
        return _Said(where, value.text, wrong="a value; without one take the line out")
    if parse is boolean and value.kind == "bool":
        return _Said(where, _BOOLEANS.get(value.text.lower(), value.text))
    if isinstance(parse, Number) and value.kind == "int" and value.text != str(_decimal(value.text)):
        # Octal, hexadecimal, of minutes and seconds, or with underscores: YAML has another number there than is seen.
        return _Said(where, value.text, wrong=f"a number from {parse.low} to {parse.high} in decimal digits")
    return _Said(where, value.text)


def _decimal(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _value(setting: "dataclasses.Field[Any]", said: _Said | None) -> Any:
    """Raises ValueError with what is accepted."""
    parse, default = setting.metadata["parse"], setting.metadata["default"]
    if said is None:
        return None if default is None else parse(default)
    if said.wrong:
        raise ValueError(said.wrong)
    return parse(said.text) if said.items is None else parse.each(said.items)


def _shown(setting: "dataclasses.Field[Any]", text: str) -> str:
    if _SECRET.search(text) or (setting.metadata["secret"] and not text.startswith("/")):
        return "not shown (it may be a secret)"
    return repr(text[:_LONGEST])
