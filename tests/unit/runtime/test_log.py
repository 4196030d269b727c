"""A line of the log is one line, and a field of it one field, whatever others wrote into it."""

import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from runtime.log import JsonFormatter, TextFormatter
from svid.spiffeid import TrustDomain


def line(formatter: logging.Formatter, text: str) -> str:
    record = logging.makeLogRecord({"msg": "mint refused", "claimed_pod": text, "reason": "BUSY"})
    return formatter.format(record)


@given(st.text(max_size=40))
@example("x\n2030-01-01T00:00:00.000+00:00 INFO    mint allowed pod=a/b")
@example("x reason=ok")
@example('" reason=ok "')
@example("\x1b[2J")
@example("\u202e\u2028\x85")
@example("\x7f")
@example("\ud800")
def test_nobody_forges_a_line_or_a_field(text: str) -> None:
    written = line(TextFormatter(), text)
    assert written.isprintable()
    fields = re.search(r"mint refused claimed_pod=(\"(?:[^\"\\]|\\.)*\"|[^ \"=]*) reason=BUSY$", written)
    assert fields, written
    assert (json.loads(fields[1]) if fields[1].startswith('"') else fields[1]) == text
    written = line(JsonFormatter(), text)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written)["claimed_pod"] == text


TEXTS = st.text(max_size=9)
VALUES = st.one_of(TEXTS, st.integers(), st.floats(), st.booleans(), st.none(), st.lists(TEXTS, max_size=3))


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), VALUES))
@example({"a": 2**64, "b": -(2**63) - 1})
@example({"a": (1, 2), "b": {"c": None}})
@example({"a": float("nan"), "b": float("inf"), "c": 1e16, "d": 5e-05})
def test_a_line_is_what_the_standard_library_writes_whichever_encoder_does(fields: dict[str, object]) -> None:
    record = logging.makeLogRecord({"msg": "told", "levelname": "INFO", "name": "podsvid.audit", "created": 0.0})
    vars(record).update(fields)
    line = {"time": "1970-01-01T00:00:00.000+00:00", "level": "info", "logger": "podsvid.audit", "event": "told"}
    assert JsonFormatter().format(record) == json.dumps({**line, **fields})


def test_what_is_no_json_is_written_as_its_text() -> None:
    """Not as another encoder would: a time, bytes, a set or a value class have ways of their own there."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    for value in (moment, b"x", frozenset({"x"}), Path("/x"), TrustDomain("example.org")):
        record = logging.makeLogRecord({"msg": "told", "value": value})
        assert json.loads(JsonFormatter().format(record))["value"] == str(value)


@given(st.lists(st.floats(min_value=0, max_value=4e9), max_size=4))
@example([1893456000.9999996, 1893456000.9999994, 1893456001.0])
@example([1796809435.4149995, 2945288393.9939995])
@example([1893456000.25, 1893456000.75, 1893455999.125, 1893456000.0005])
def test_a_line_has_its_own_time_to_the_millisecond_whichever_came_before(times: list[float]) -> None:
    for formatter in (JsonFormatter(), TextFormatter()):
        for each in times:
            written = formatter.format(logging.makeLogRecord({"msg": "told", "created": each}))
            assert datetime.fromtimestamp(each, UTC).isoformat(timespec="milliseconds") in written


def test_a_traceback_comes_after_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "bug", "levelname": "ERROR", "exc_info": (type(error), error, None)})
    first, second, *_ = TextFormatter().format(record).splitlines()
    assert first.endswith("ERROR   bug")
    assert second == "ValueError: broken"
