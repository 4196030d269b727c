"""Typed settings: one frozen dataclass a command, what its fields accept, and its flags. `loading.py` fills it.

Written by hand over dataclasses: bench/results/settings.md has what validation libraries cost, and what they leave out.
"""

import argparse
import dataclasses
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime import durations
from runtime.listening import ANY, overlap
from svid.dnsnames import is_pattern
from svid.errors import InvalidSpiffeId
from svid.jws import JwtAlgorithm
from svid.spiffeid import TrustDomain

ENVIRONMENT_PREFIX = "PODSVID_"
# What a socket's address holds.
MAX_SOCKET_PATH = 107
_HOST = re.compile(r"[a-z0-9_]([-a-z0-9_]{0,62})(\.[a-z0-9_][-a-z0-9_]{0,62})*\.?", re.ASCII | re.IGNORECASE)
# Characters of what --help calls a value.
_WIDTH = 60
MIN_PERIOD, MAX_PERIOD = timedelta(hours=1), timedelta(days=3650)


class InvalidSetting(Exception):
    """Settings are unknown, unusable or contradict each other: each of the `faults` is one line for a person."""

    reason = "INVALID_SETTING"

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Conflict:
    """Settings that cannot be together: their names, of which value and source are shown, why, and what to do."""

    names: tuple[str, ...]
    why: str


def trust_domain(text: str) -> TrustDomain:
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise ValueError(f"a trust domain name such as example.org ({error})") from None


def dns_pattern(text: str) -> str:
    """A DNS name in which a pod's own names are left open."""
    if not is_pattern(text):
        raise ValueError(
            "DNS names in lower case, where {namespace}, {service_account} and {pod} stand for the pod's own "
            "and a leading *. for one label"
        )
    return text


def federated(text: str) -> tuple[TrustDomain, Path]:
    """A trust domain and the file that has its bundle."""
    name, equals, path = text.partition("=")
    if not equals:
        raise ValueError("TRUST-DOMAIN=FILE with an absolute path")
    return trust_domain(name), absolute(path)


@dataclass(frozen=True, slots=True)
class Duration:
    """A time between two others, these included."""

    least: timedelta
    most: timedelta

    def __call__(self, text: str) -> timedelta:
        return durations.parse(text, self.least, self.most)


def duration(least: timedelta = timedelta(0), most: timedelta = durations.MAX) -> Duration:
    return Duration(least, most)


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


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    accepted: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.accepted:
            raise ValueError("one of " + ", ".join(self.accepted))
        return text


def choice(*accepted: str) -> Choice:
    return Choice(accepted)


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
        if text and not _HOST.fullmatch(text):
            raise ValueError
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


@dataclass(frozen=True, slots=True)
class Listed:
    """Comma-separated values; an empty text has none. `pairs`: NAME=VALUE, which YAML has as a mapping."""

    item: Callable[[str], Any]
    pairs: bool = False

    def __call__(self, text: str) -> tuple[Any, ...]:
        return tuple(self.item(each.strip()) for each in text.split(",")) if text.strip() else ()

    def each(self, texts: Iterable[str]) -> tuple[Any, ...]:
        """Of a list's items; one may hold several, as in every version before."""
        return self(",".join(texts))


def listed(item: Callable[[str], Any], *, pairs: bool = False) -> Listed:
    return Listed(item, pairs)


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


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number between two others, these included."""

    low: int
    high: int

    def __call__(self, text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not self.low <= int(text[:12]) <= self.high:
            raise ValueError(f"a number from {self.low} to {self.high}")
        return int(text)


def number(low: int, high: int) -> Number:
    return Number(low, high)


def setting(
    parse: Callable[[str], Any],
    help_text: str,
    default: str | None = None,
    *,
    required: bool = False,
    secret: bool = False,
) -> Any:
    """A field of a settings class: how its text is read, what it is for, and its default as text.

    `secret`: it is where a secret is; what is no such place may be the secret itself, and is not repeated.
    """
    return field(
        metadata={"parse": parse, "help": help_text, "default": default, "required": required, "secret": secret}
    )


def add_arguments(parser: argparse.ArgumentParser, model: type[Any]) -> None:
    """Add --config and a flag for every setting, those together whose names begin with the same word."""
    # Every setting by name would be a screenful of brackets.
    parser.usage = "%(prog)s [-h] [--config FILE] [--SETTING VALUE ...] [--check]"
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
            group.add_argument(flag, dest=each.name, metavar=_called(each), help=help_text)


def _called(setting: "dataclasses.Field[Any]") -> str:
    """What --help calls the value, by which shells complete it."""
    parse = setting.metadata["parse"]
    if isinstance(parse, Choice):
        listed = "|".join(parse.accepted)
        # A screen's width: longer ones are in the documentation, and in what refuses others.
        return listed if len(listed) <= _WIDTH else "VALUE"
    if setting.name.endswith("_socket"):
        return "SOCKET"
    if parse is absolute:
        return "DIR" if setting.name.endswith(("_dir", "_root")) else "FILE"
    if isinstance(parse, Listed):
        return "LIST"
    if isinstance(parse, Duration):
        return "DURATION"
    if isinstance(parse, Number):
        return "N"
    if parse not in _CALLED and setting.name.endswith("_address"):
        return "HOST:PORT"
    return _CALLED.get(parse, "VALUE")


_CALLED: Mapping[Callable[[str], Any], str] = MappingProxyType(
    {listen: "HOST:PORT", url: "URL", collector: "URL", jwt_algorithm: "|".join(JwtAlgorithm), trust_domain: "NAME"}
)


def address_conflicts(**addresses: tuple[str, int] | None) -> Iterator[Conflict]:
    """Of settings that say where something listens, those that would take each other's port."""
    for one, other in combinations(addresses, 2):
        first, second = addresses[one], addresses[other]
        if first is None or second is None or first[1] != second[1] or not first[1]:
            continue
        # By whatever name: an address is also taken by who has all of them.
        if overlap(first[0], second[0]):
            yield Conflict((one, other), "both are one port; give each its own")


def too_long(name: str, longest: int) -> Iterator[Conflict]:
    """Where a setting's sockets would take more bytes, an end of string among them, than a socket's path can have."""
    if longest > MAX_SOCKET_PATH:
        yield Conflict(
            (name,), f"the path is too long: its sockets would take {longest} bytes, and {MAX_SOCKET_PATH} fit"
        )
