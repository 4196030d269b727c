"""A line of the log is one line, and a field of it one field, whatever others wrote into it."""

import json
import logging
import re

from hypothesis import example, given
from hypothesis import strategies as st

from runtime.log import JsonFormatter, TextFormatter


def line(formatter: logging.Formatter, text: str) -> str:
    record = logging.makeLogRecord({"msg": "mint refused", "claimed_pod": text, "reason": "BUSY"})
    return formatter.format(record)


@given(st.text(max_size=40))
@example("x\n2030-01-01T00:00:00.000+00:00 INFO    mint allowed pod=a/b")
@example("x reason=ok")
@example('" reason=ok "')
@example("\x1b[2J")
@example("\u202e\u2028\x85")
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


def test_a_traceback_comes_after_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "bug", "levelname": "ERROR", "exc_info": (type(error), error, None)})
    first, second, *_ = TextFormatter().format(record).splitlines()
    assert first.endswith("ERROR   bug")
    assert second == "ValueError: broken"
