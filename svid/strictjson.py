"""JSON that others wrote, read as all readers read it or not at all."""

import json
from collections.abc import Callable
from typing import Any, NoReturn


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member name stands twice in one object")
    return found


def _no_constants(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.loads` with an option makes one each time.
_decode: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants).decode


def strictly(text: str) -> Any:
    """The value of a text. Raises ValueError, RecursionError."""
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark, as some editors write it: store it as UTF-8 without one")
    return _decode(text)
