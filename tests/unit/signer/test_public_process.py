"""What the process that serves strangers says is believed no further than counting goes: they may have got into it."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest

from signer.public.confinement import NO_CALLS, NO_FILES
from signer.public.process import (
    AGAIN_MOST,
    MAX_COUNT,
    MAX_REPORT,
    SETTLED,
    STARTS,
    TAKES,
    PublicProcess,
)
from signer.public.shown import Listener, framed
from tests.unit.runtime.test_stopping import on_fake_time

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
                assert "secret" not in str(error)
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
        # Beyond what a float holds, by which the metrics count.
        lambda: counts(bundle_answered_200=10**400),
        lambda: counts(bundle_answered_200=MAX_COUNT + 1),
        lambda: counts(bundle=1),
        lambda: framed(b'{"counts": []}'),
        lambda: framed(b'{"lacking": ["everything"]}'),
        lambda: framed(b'{"lacking": "no files"}'),
        lambda: framed(b'{"lacking": [["no files"]]}'),
        lambda: framed(b"[]"),
        lambda: framed(b"\xff"),
        lambda: framed(b"secret"),
        lambda: framed(b"[" * (MAX_REPORT - 1)),
        lambda: framed(b"1" * 5000),
        lambda: (MAX_REPORT + 1).to_bytes(4, "big"),
    ],
)
def test_what_is_no_report_ends_it(said: Callable[[], bytes]) -> None:
    found, how, serving = heard(said())
    assert found == []
    assert how == "ValueError"
    assert not serving


def test_what_the_host_does_not_let_it_give_up_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    said = framed(json.dumps({"lacking": [NO_FILES, NO_CALLS]}).encode())
    none = framed(b'{"lacking": []}')
    found, how, _ = heard(none, said, none, said, counts(bundle_refused_tls=2))
    assert (found, how) == ([("bundle", "refused", "tls", 2)], "IncompleteReadError")
    assert [each.__dict__["lacking"] for each in caplog.records] == [[NO_FILES, NO_CALLS]]


class Writer:
    """What `_tell` writes to."""

    def __init__(self) -> None:
        self.frames = 0

    def write(self, data: bytes) -> None:
        self.frames += 1

    async def drain(self) -> None: ...


def shown(text: bytes) -> dict[str, Listener]:
    return {"bundle": Listener(None, {text.decode(): None})}


def test_one_that_does_not_say_that_it_shows_the_newest_is_given_up() -> None:
    async def main() -> None:
        process, writer, reader = PublicProcess({}, lambda *count: None), Writer(), asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        hearing = asyncio.create_task(process._hear(reader))
        process.show(shown(b"/1"))
        telling = asyncio.create_task(process._tell(writer))  # type: ignore[arg-type]
        # Python takes its time to start.
        await asyncio.sleep(STARTS - 1)
        assert not telling.done()
        reader.feed_data(framed(b'{"shown": true}'))
        await asyncio.sleep(TAKES * 2)
        assert (telling.done(), writer.frames) == (False, 1), "there is nothing to take"
        process.show(shown(b"/2"))
        began = loop.time()
        with pytest.raises(TimeoutError):
            await telling
        assert (writer.frames, round(loop.time() - began)) == (2, TAKES)
        hearing.cancel()

    on_fake_time(main)


def test_one_that_ends_again_and_again_is_started_ever_more_rarely_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # How each ends, and for how long it served before.
    lives: list[tuple[str, float | None]] = [("exit code 1", None) for _ in range(9)]
    lives += [("signal 9", None), ("signal 9", SETTLED), ("signal 9", SETTLED - 1)]
    begun: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        process = PublicProcess({}, lambda *count: None)
        ended = asyncio.Event()

        async def once() -> str:
            begun.append(loop.time())
            if len(begun) > len(lives):
                ended.set()
                await asyncio.Event().wait()
            why, served = lives[len(begun) - 1]
            if served is not None:
                process._since = loop.time()
                await asyncio.sleep(served)
            return why

        monkeypatch.setattr(process, "_once", once)
        process.show(shown(b"/1"))
        running = asyncio.create_task(process.run())
        await ended.wait()
        assert not process.serving
        running.cancel()

    with caplog.at_level(logging.ERROR):
        on_fake_time(main)
    waited = [
        round(after - before - (served or 0.0))
        for before, after, (_, served) in zip(begun[:-1], begun[1:], lives, strict=True)
    ]
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 1, 2]
    assert AGAIN_MOST == 60
    said: list[Any] = [each.__dict__["error"] for each in caplog.records]
    assert said == ["exit code 1", "signal 9", "signal 9"], "the last one after it had served"
