"""Structured logs on stderr: one line a state change, as JSON or as text. Fields come through `extra`."""

import json
import logging
import math
import sys
from datetime import UTC, datetime

import msgspec

from runtime import unlogged

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Made once: `json.dumps` with an option makes one for each line.
_any_encoded = json.JSONEncoder(default=str).encode
_plainly_encoded = msgspec.json.Encoder().encode
# Of which both encoders write the same; of others msgspec has another notion (what is no JSON is no text to it, and
# what is no number is null).
_PLAIN = frozenset({str, int, bool, type(None)})
_DELETE = b"\x7f"


def _encoded(line: dict[str, object]) -> str:
    # A third of the time, and nearly all lines are such.
    if _PLAIN.issuperset(map(type, line.values())):
        try:
            found = _plainly_encoded(line)
        except (ValueError, OverflowError):
            # A half of a surrogate pair, or a number that is too large for it.
            return _any_encoded(line)
        # Beyond what ASCII prints the other one writes escapes: a log is looked at in terminals.
        if found.isascii() and _DELETE not in found:
            return msgspec.json.format(found, indent=0).decode()
    return _any_encoded(line)


class _Formatter(logging.Formatter):
    _second = (-1, "")

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields

    def _time(self, record: logging.LogRecord) -> str:
        # As datetime.fromtimestamp rounds.
        part, whole = math.modf(record.created)
        more, fraction = divmod(round(part * 1_000_000), 1_000_000)
        second = int(whole) + more
        # Many lines of one second have the same but for the last digits.
        known, text = self._second
        if second != known:
            text = datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")[:-6]
            self._second = (second, text)
        return f"{text}.{fraction // 1000:03d}+00:00"


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        return _encoded(
            {
                "time": self._time(record),
                "level": record.levelname.lower(),
                "logger": record.name,
                "event": record.getMessage(),
                **self._fields(record),
            }
        )


class TextFormatter(_Formatter):
    """For people: time, level, event, then key=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        traceback = fields.pop("traceback", None)
        line = " ".join([record.getMessage(), *(f"{key}={_quoted(str(value))}" for key, value in fields.items())])
        return f"{self._time(record)} {record.levelname:<7} {line}" + (f"\n{traceback}" if traceback else "")


def _quoted(text: str) -> str:
    """`text` as one field: what others wrote must not look like the next field, or like a line of its own."""
    plain = text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


def configure(log_format: str, level: str) -> None:
    """Send all logs of this process to stderr."""
    unlogged.leave_out_headers()
    # What no line says is not found out for each: from where it was called, in which thread and process.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
