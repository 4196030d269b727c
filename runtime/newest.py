"""Of what others bring about so much is remembered, and no more."""

from collections import OrderedDict
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def keep(those: "OrderedDict[_Key, _Value]", key: _Key, value: _Value, most: int) -> None:
    """Keep it as the newest of `most` at most: what was kept first, or again, longest ago gives way."""
    those[key] = value
    those.move_to_end(key)
    while len(those) > most:
        those.popitem(last=False)
