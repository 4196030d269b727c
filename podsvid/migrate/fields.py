"""Fields of a foreign object, each of the type that it has there; what cannot be carried over, and the report of it."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from runtime import durations
from runtime.terminal import shown
from signer.config import SignerConfig

_GO_PART = re.compile(r"([0-9]{1,12})(\.[0-9]{0,12})?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Verdict(StrEnum):
    """What became of an object."""

    LEFT_OUT = "left out"
    DIFFERS = "differs"
    OVERLAPS = "overlaps"
    NEEDLESS = "needless"


@dataclass(frozen=True, slots=True)
class Finding:
    """What of an object is not carried over: which one, `why`, and what to do about it."""

    verdict: Verdict
    source: str
    why: str
    to_do: str = ""


class Unfit(Exception):
    """It cannot be carried over. `to_do`: what a person can do about it."""

    def __init__(self, why: str, to_do: str = "", verdict: Verdict = Verdict.LEFT_OUT) -> None:
        super().__init__(why)
        self.to_do = to_do
        self.verdict = verdict

    def finding(self, source: str) -> Finding:
        """What to say of `source`."""
        return Finding(self.verdict, source, str(self), self.to_do)


def mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object, empty where there is none. Raises Unfit, as those below do."""
    found = parent.get(key)
    if found is not None and not isinstance(found, dict):
        raise Unfit(f"{key} is no object")
    return found or {}


def text(parent: Mapping[str, Any], key: str) -> str:
    """A text, empty where there is none."""
    found = parent.get(key)
    if found is not None and not isinstance(found, str):
        raise Unfit(f"{key} is no text")
    return found or ""


def flag(parent: Mapping[str, Any], key: str) -> bool:
    """True or false."""
    found = parent.get(key)
    if found is not None and not isinstance(found, bool):
        raise Unfit(f"{key} is neither true nor false")
    return bool(found)


def items(parent: Mapping[str, Any], key: str) -> list[Any]:
    """A list."""
    found = parent.get(key)
    if found is not None and not isinstance(found, list):
        raise Unfit(f"{key} is no list")
    return found or []


def texts(parent: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts."""
    found = items(parent, key)
    if not all(isinstance(each, str) for each in found):
        raise Unfit(f"{key} has something that is no text")
    return found


def known(parent: Mapping[str, Any], names: Collection[str], what: str = "field") -> None:
    """Raises Unfit where there is another: a newer version's may narrow whom the object is for."""
    for name in parent:
        if name not in names:
            raise Unfit(
                f"{what} {shown(name)} is not known here, and may say whom it is for",
                "leave it out where it says nothing of that; else write the policy by hand",
            )


def go_duration(value: str) -> float:
    """Seconds of a duration as Go writes it, such as 1h0m0s. Raises Unfit."""
    seconds, at = 0.0, 0
    for part in _GO_PART.finditer(value):
        if part.start() != at:
            break
        seconds += float(part[1] + (part[2] or "")) * _GO_UNITS[part[3]]
        at = part.end()
    if value == "0":
        return 0.0
    if not value or at != len(value):
        raise Unfit(f"{shown(value)} is no duration")
    return seconds


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Of one kind of SVID, within what a signer keeps them unless its settings say otherwise."""

    least: timedelta
    most: timedelta
    # What to do for less, and for more.
    lower: str
    higher: str

    def held(self, wanted: timedelta) -> timedelta:
        """How long an SVID lives of which that is said."""
        return min(max(wanted, self.least), self.most)

    def to_do(self, wanted: timedelta) -> str:
        """So that it lives as long as `wanted`, which is not within these."""
        return self.higher if wanted > self.most else self.lower


def _default(name: str) -> timedelta:
    found = next(each for each in dataclasses.fields(SignerConfig) if each.name == name)
    return durations.parse(str(found.metadata["default"]))


def x509_lifetimes() -> Lifetimes:
    """Of X.509-SVIDs."""
    return Lifetimes(
        _default("x509_min_ttl"),
        _default("x509_max_ttl"),
        "set signer.settings.x509_min_ttl to lower it",
        "set signer.settings.x509_max_ttl and authority_ttl (four times as long) to raise it",
    )


def jwt_lifetimes() -> Lifetimes:
    """Of JWT-SVIDs."""
    return Lifetimes(durations.MIN_TTL, _default("jwt_max_ttl"), "", "set signer.settings.jwt_max_ttl to raise it")


def lifetime(seconds: float, what: str, kept: Lifetimes) -> tuple[str, list[tuple[str, str]]]:
    """A lifetime as policies have it, whole seconds, empty for 0, the default; and what differs, with what to do."""
    if seconds <= 0:
        return "", []
    least, most = durations.MIN_TTL.total_seconds(), durations.MAX_TTL.total_seconds()
    whole = min(max(float(int(seconds)), least), most)
    wanted = timedelta(seconds=whole)
    written, held = durations.text(wanted), kept.held(wanted)
    differs = [] if whole == seconds else [(f"{what} of {seconds:g} s is {written} here", "")]
    if held != wanted:
        why = f"its SVIDs live {durations.text(held)}, not {written}, where the signer's settings are the defaults"
        differs.append((why, kept.to_do(wanted)))
    return written, differs
