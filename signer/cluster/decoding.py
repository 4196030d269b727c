"""From the API server's bytes to what is kept: a list's page, an event of a watch, one object."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import msgspec

from signer.cluster.objects import Item, Metadata
from signer.errors import ApiUnavailable, Gone

Kept = TypeVar("Kept", bound=Item)
Buffer: TypeAlias = "bytes | bytearray | memoryview"
# What a watch says of an object.
CHANGES = ("ADDED", "MODIFIED", "DELETED")


@dataclass(frozen=True, slots=True)
class Page(Generic[Kept]):
    """A part of a list. `more` is the token for the next part, `size` what it was in bytes.

    `items` makes each object as it is asked for the next one; it raises ApiUnavailable for what is none.
    """

    items: Iterable[Kept]
    version: str
    more: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Event(Generic[Kept]):
    """One word of a watch. `item` is there for CHANGES; `version` is where a later watch goes on, if it says so."""

    kind: str
    item: Kept | None
    version: str


class _ListMetadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str | None = None
    more: str | None = msgspec.field(name="continue", default=None)


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMetadata = _ListMetadata()
    items: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct, frozen=True):
    type: str | None = None
    object: msgspec.Raw = msgspec.Raw(b"{}")


class _Status(msgspec.Struct, frozen=True):
    """The API server's word on an error."""

    code: int | None = None
    message: str | None = None
    metadata: Metadata | None = None


def one(data: Buffer, kind: type[Kept]) -> Kept:
    """One object. Raises ApiUnavailable."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from None


def page(data: Buffer, kind: type[Kept]) -> Page[Kept]:
    """A List object. Raises ApiUnavailable."""
    try:
        found = msgspec.json.decode(data, type=_List)
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from None
    version, more = found.metadata.resource_version or "", found.metadata.more or ""
    return Page(_items(found.items or (), kind), version, more, len(data))


def event(line: Buffer, kind: type[Kept]) -> Event[Kept]:
    """A line of a watch. Raises Gone where the watch is too old, and ApiUnavailable."""
    try:
        found = msgspec.json.decode(line, type=_Line)
        if found.type in CHANGES:
            item = msgspec.json.decode(found.object, type=kind)
            return Event(found.type, item, item.metadata.resource_version or "")
        status = msgspec.json.decode(found.object, type=_Status)
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from None
    if found.type != "ERROR":
        return Event(found.type or "", None, (status.metadata or Metadata()).resource_version or "")
    if status.code == 410:
        raise Gone("the watch is too old")
    raise ApiUnavailable(f"the watch failed: {(status.message or '')[:200]}")


def _items(raw: Sequence[msgspec.Raw], kind: type[Kept]) -> Iterator[Kept]:
    decoder = msgspec.json.Decoder(kind)
    for each in raw:
        try:
            yield decoder.decode(each)
        except (ValueError, RecursionError) as error:
            raise _unreadable(error) from None


def _unreadable(error: Exception) -> ApiUnavailable:
    # The words of the error name a place and types, never what stands there.
    return ApiUnavailable(f"the API server's answer cannot be read: {str(error)[:200]}")
