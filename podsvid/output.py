"""How commands print: tables and times for people, messages for programs; each in one style."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from runtime.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

# A line that nothing wraps: ids stay in one piece, also where they are cut out of it.
_ENDLESS = 1000


def to_json(message: Message) -> str:
    """As scripts get it: the names of the .proto file, nothing left out that is known."""
    return MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def instant(value: Timestamp) -> str:
    """RFC 3339 in UTC."""
    return rfc3339(value.ToDatetime(UTC))


def rfc3339(at: datetime) -> str:
    """The same, of a moment with a time zone."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def console(output: str = "text") -> "Console":
    """Where people read: a terminal folds a table into its width, but not a `wide` one."""
    # Not above: what asks by exec wants JSON, and waits for every import.
    from rich.console import Console

    folds = sys.stdout.isatty() and output != "wide"
    # What is printed is text, whatever it has in brackets or between colons.
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=None if folds else _ENDLESS)


def print_table(console: "Console", heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for people, of texts that anybody may have written."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    # Not wrapped softly: it is the table that folds.
    console.print(table, soft_wrap=False)
