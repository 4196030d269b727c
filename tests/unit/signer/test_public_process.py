"""What the process that serves strangers says is believed no further than counting goes: they may have got into it."""

import asyncio
import json
import socket
from collections.abc import Callable

import pytest

from signer.public.process import MAX_REPORT, PublicProcess
from signer.public.shown import framed

Counted = list[tuple[str, str, str, int]]


def heard(*frames: bytes) -> tuple[Counted, str, bool]:
    """What is counted of what it says, how it ends, and whether it is taken to serve."""
    found: Counted = []

    async def run() -> tuple[str, bool]:
        with socket.socket() as bound:
            process = PublicProcess({"bundle": [bound]}, lambda *count: found.append(count))
            reader = asyncio.StreamReader()
            for each in frames:
                reader.feed_data(each)
            reader.feed_eof()
            try:
                await process._hear(reader)
            except (asyncio.IncompleteReadError, ValueError) as error:
                return type(error).__name__, process.serving
            raise AssertionError("it goes on without an end")

    how, serving = asyncio.run(run())
    return found, how, serving


def counts(**numbers: object) -> bytes:
    return framed(json.dumps({"counts": {name.replace("_", " "): each for name, each in numbers.items()}}).encode())


def test_answers_and_refusals_are_counted() -> None:
    found, how, serving = heard(framed(b'{"shown": true}'), counts(bundle_answered_200=3, bundle_refused_tls=2))
    assert found == [("bundle", "answered", "200", 3), ("bundle", "refused", "tls", 2)]
    assert (how, serving) == ("IncompleteReadError", True)


@pytest.mark.parametrize(
    "said",
    [
        lambda: counts(other_answered_200=1),
        lambda: counts(bundle_answered_299=1),
        lambda: counts(bundle_refused_everything=1),
        lambda: counts(bundle_said_200=1),
        lambda: counts(bundle_answered_200=-1),
        lambda: counts(bundle_answered_200=True),
        lambda: counts(bundle_answered_200=1.5),
        lambda: counts(bundle=1),
        lambda: framed(b'{"counts": []}'),
        lambda: framed(b"[]"),
        lambda: framed(b"\xff"),
        lambda: (MAX_REPORT + 1).to_bytes(4, "big"),
    ],
)
def test_what_is_no_report_ends_it(said: Callable[[], bytes]) -> None:
    found, how, serving = heard(said())
    assert found == []
    assert how in ("ValueError", "JSONDecodeError", "UnicodeDecodeError")
    assert not serving
