"""Typed settings: one frozen dataclass a command, from defaults, YAML, PODSVID_* variables and flags in that order.

Written by hand over dataclasses: a validation library would cost the agent a quarter of its start-up and memory budget.
"""

import argparse
import dataclasses
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import yaml

from runtime import durations
from runtime.listening import ANY
from svid.errors import InvalidSpiffeId
from svid.jwtsvid import JwtAlgorithm
from svid.spiffeid import TrustDomain

ENVIRONMENT_PREFIX = "PODSVID_"
MIN_PERIOD, MAX_PERIOD = timedelta(hours=1), timedelta(days=3650)
Config = TypeVar("Config")


class InvalidSetting(Exception):
    """A setting is unknown, unusable or contradicts another."""

    reason = "INVALID_SETTING"


def trust_domain(text: str) -> TrustDomain:
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise ValueError(f"a trust domain name such as example.org ({error})") from None


def duration(least: timedelta = timedelta(0), most: timedelta = durations.MAX) -> Callable[[str], timedelta]:
    return lambda text: durations.parse(text, least, most)


ttl = duration(durations.MIN_TTL, durations.MAX_TTL)
period = duration(MIN_PERIOD, MAX_PERIOD)


def jwt_algorithm(text: str) -> JwtAlgorithm:
    try:
        return JwtAlgorithm(text)
    except ValueError:
        raise ValueError("one of " + ", ".join(JwtAlgorithm)) from None


def matching(form: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not form.fullmatch(text):
            raise ValueError(what)
        return text

    return parse


def choice(*accepted: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in accepted:
            raise ValueError("one of " + ", ".join(accepted))
        return text

    return parse


def absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError("an absolute path without ..")
    return path


def listen(text: str) -> tuple[str, int] | None:
    """None is off; the host `::` is all addresses of the host, IPv4 and IPv6, which :PORT stands for as well."""
    if text == "off":
        return None
    wanted = "HOST:PORT such as 127.0.0.1:9099 or [::1]:9099, :PORT for all addresses (IPv4 and IPv6), or off"
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise ValueError(wanted)
    try:
        return _host(host) or ANY, int(port)
    except ValueError:
        raise ValueError(wanted) from None


def _host(text: str) -> str:
    """A name, an IPv4 address, or an IPv6 address out of its brackets. Raises ValueError."""
    if not any(each in text for each in ":[]"):
        return text
    inside = text[1:-1]
    if f"[{inside}]" != text or not _is_ipv6(inside):
        raise ValueError
    return str(ipaddress.IPv6Address(inside))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def host_and_port(text: str) -> tuple[str, int]:
    """Where something is: a name, an IPv4 address, or an IPv6 address in brackets. Raises ValueError without a text."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError
    return _host(host), int(port)


def boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def listed(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Comma-separated values; an empty text has none."""

    def parse_all(text: str) -> tuple[Any, ...]:
        return tuple(parse(part.strip()) for part in text.split(",")) if text.strip() else ()

    return parse_all


def url(text: str) -> str:
    if not text.startswith("https://") or len(text) > 1024 or not text.isascii() or " " in text:
        raise ValueError("an https:// URL")
    return text


def collector(text: str) -> str:
    scheme, slashes, rest = text.partition("://")
    try:
        if scheme not in ("http", "https") or not slashes:
            raise ValueError
        host_and_port(rest)
    except ValueError:
        raise ValueError(
            "a URL with a port, such as http://collector.monitoring:4317 or http://[fd00::1]:4317"
        ) from None
    return text


def number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text[:12]) <= high:
            raise ValueError(f"a number from {low} to {high}")
        return int(text)

    return parse


def setting(parse: Callable[[str], Any], help_text: str, default: str | None = None, *, required: bool = False) -> Any:
    """A field of a settings class: how its text is read, what it is for, and its default as text."""
    return field(metadata={"parse": parse, "help": help_text, "default": default, "required": required})


def add_arguments(parser: argparse.ArgumentParser, model: type[Any]) -> None:
    """Add --config and a flag for every setting, those together whose names begin with the same word."""
    parser.add_argument("--config", metavar="FILE", help=f"YAML file with these settings [{ENVIRONMENT_PREFIX}CONFIG]")
    words = Counter(each.name.partition("_")[0] for each in dataclasses.fields(model))
    groups = {word: parser.add_argument_group(f"{word} settings") for word, number in words.items() if number > 2}
    for each in dataclasses.fields(model):
        default = each.metadata["default"]
        help_text = each.metadata["help"] + (f" (default: {default})" if default else "")
        help_text += f" [{ENVIRONMENT_PREFIX}{each.name.upper()}]"
        group = groups.get(each.name.partition("_")[0], parser)
        flag = "--" + each.name.replace("_", "-")
        if each.metadata["parse"] is boolean:
            hidden = each.metadata["help"].startswith("UNSAFE")
            shown = argparse.SUPPRESS if hidden else help_text
            group.add_argument(flag, dest=each.name, nargs="?", const="true", metavar="true|false", help=shown)
        else:
            group.add_argument(flag, dest=each.name, help=help_text)


def load(
    model: type[Config], arguments: argparse.Namespace, environment: Mapping[str, str], **fallbacks: Any
) -> Config:
    """The settings from flags over environment over file over defaults; `fallbacks` for what none of them has.

    Raises InvalidSetting naming key and value.
    """
    fields = dataclasses.fields(model)  # type: ignore[arg-type]
    names = {each.name for each in fields}
    given: dict[str, tuple[str, str]] = {}
    path = arguments.config or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    if path:
        given.update({key: (value, f"in {path}") for key, value in _read_file(Path(path), names).items()})
    for name in names:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            given[name] = (environment[variable], f"in {variable}")
        flag = getattr(arguments, name, None)
        if flag is not None:
            given[name] = (flag, "from --" + name.replace("_", "-"))
    values: dict[str, Any] = {}
    for each in fields:
        text, where = given.get(each.name, (each.metadata["default"], "by default"))
        values[each.name] = None if text is None else _parse(each, text, where)
    for name, value in fallbacks.items():
        if values[name] is None:
            values[name] = value
    for each in fields:
        if each.metadata.get("required") and values[each.name] is None:
            flag = "--" + each.name.replace("_", "-")
            raise InvalidSetting(
                f"{each.name} is missing: give {flag}, {ENVIRONMENT_PREFIX}{each.name.upper()} or {each.name} in YAML"
            )
    return model(**values)


def _parse(setting: "dataclasses.Field[Any]", text: str, where: str) -> Any:
    try:
        return setting.metadata["parse"](text)
    except ValueError as error:
        raise InvalidSetting(f"{setting.name} {where} is {text[:200]!r}; accepted: {error}") from None


def _read_file(path: Path, names: set[str]) -> dict[str, str]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"config file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InvalidSetting(f"config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidSetting(f"config file {path} must be a mapping of settings")
    found = {}
    for key, value in document.items():
        if key not in names:
            raise InvalidSetting(f"{key!r} in {path} is no setting; accepted: {', '.join(sorted(names))}")
        if isinstance(value, bool):
            value = "true" if value else "false"
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = ",".join(value)
        if not isinstance(value, str):
            raise InvalidSetting(
                f"{key} in {path} is {value!r}; accepted: text, so put it in quotes, or a list of texts"
            )
        found[key] = value
    return found
