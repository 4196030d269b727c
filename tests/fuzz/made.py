"""Messages made of bytes: of every kind, each field within its bounds, at them or just beyond; it is known which."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import inspect


class Draw:
    """Decisions, one byte each; zeros when there are no more. `fits`: whether all that was made is within bounds."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)
        self.fits = True

    def byte(self) -> int:
        return next(self._data, 0)

    def of(self, values: Sequence[Any]) -> Any:
        return values[self.byte() % len(values)]

    def number(self) -> int:
        return int.from_bytes(bytes(self.byte() for _ in range(8)), "big")

    def length(self, least: int | None, most: int | None) -> int:
        """A length that fits, mostly."""
        low = least or 0
        within = [low, low + 1, low + 2] if most is None else [low, min(low + 1, most), most]
        beyond = ([low - 1] if low else []) + ([most + 1] if most is not None else [])
        found: int = self._one(within, beyond)
        return found

    def _one(self, within: list[Any], beyond: list[Any]) -> Any:
        # Few messages would be whole if each bound were broken as often as it is kept.
        if beyond and self.byte() >= 240:
            self.fits = False
            return self.of(beyond)
        return self.of(within)

    def value(self, kind: inspect.Type) -> Any:
        """What is encoded as one of this type."""
        match kind:
            case inspect.IntType():
                least = -(2**63) if kind.ge is None else kind.ge
                beyond_most = kind.lt if kind.le is None else kind.le + 1
                most = 2**63 if beyond_most is None else beyond_most
                some = least + self.number() % (most - least)
                beyond = [least - 1] * (kind.ge is not None) + [most, 2**64 - 1] * (beyond_most is not None)
                return self._one([least, most - 1, some], beyond)
            case inspect.FloatType():
                low = [] if kind.ge is None else [kind.ge - 1.0, math.nextafter(kind.ge, -math.inf), -math.inf]
                high = [] if kind.le is None else [math.nextafter(kind.le, math.inf), 1e300, math.inf]
                ends = [float(each) for each in (kind.ge, kind.le) if each is not None]
                return self._one([0.0, 1.0, 0.25 * self.byte(), *ends], [*low, *high, math.nan] if low or high else [])
            case inspect.StrType():
                length = self.length(kind.min_length, kind.max_length)
                return self.of(("x", "\0", "\n", "\u00e9", "\U0001f600")) * length
            case inspect.BytesType():
                sizes = kind.min_length, kind.max_length
                return bytes([self.byte()]) * (self.of((0, 1, 32)) if sizes == (None, None) else self.length(*sizes))
            case inspect.BoolType():
                return self.byte() % 2 == 1
            case inspect.NoneType():
                return None
            case inspect.UnionType():
                return self.value(self.of(kind.types))
            case inspect.VarTupleType() | inspect.ListType():
                return self._many(kind.item_type, self.length(kind.min_length, kind.max_length))
            case inspect.TupleType():
                return [self.value(each) for each in kind.item_types]
            case inspect.DictType():
                length = self.length(kind.min_length, kind.max_length)
                return dict(zip(self._keys(kind.key_type, length), self._many(kind.value_type, length), strict=True))
            case inspect.StructType():
                return self._struct(kind)
        raise TypeError(f"nothing is made of {kind}")

    def _many(self, kind: inspect.Type, length: int) -> list[Any]:
        """Few of them are each its own."""
        found = [self.value(kind) for _ in range(min(length, 3))]
        return found + found[-1:] * (length - len(found))

    def _keys(self, kind: inspect.Type, length: int) -> list[Any]:
        if isinstance(kind, inspect.IntType):
            start = self._one([0, 2**53 - 1 - length], [-1] * (length > 0))
            return [start + number for number in range(length)]
        word = self.of(("x", "/SpiffeWorkloadAPI/FetchX509SVID", "open calls"))
        return [f"{word}{number or ''}" for number in range(length)]

    def _struct(self, kind: inspect.StructType) -> Any:
        fields = {each.encode_name: self.value(each.type) for each in kind.fields}
        if kind.array_like:
            return [*([] if kind.tag is None else [kind.tag]), *fields.values()]
        return {kind.tag_field: kind.tag, **fields}


def kinds(union: Any) -> Sequence[inspect.StructType]:
    """The kinds of a union of messages."""
    found = inspect.type_info(union)
    assert isinstance(found, inspect.UnionType)
    return [each for each in found.types if isinstance(each, inspect.StructType)]


def made(union: Any, data: bytes) -> tuple[bytes, str, bool]:
    """A message's bytes, its kind, and whether it is within its bounds."""
    draw = Draw(data)
    kind = draw.of(kinds(union))
    value = draw.value(kind)
    return msgspec.msgpack.encode(value), str(kind.tag), draw.fits
