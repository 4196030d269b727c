"""What both daemons stand on: feeds that lose no wake-up, threads that are waited for, TLS, terminals, tracing."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import collector
from runtime.blocking import Blocking
from runtime.feed import Feed
from runtime.settings import InvalidSetting
from runtime.terminal import MAX_SHOWN, printable
from runtime.tracing import NO_TRACING

ROOT = Path(__file__).parents[3]


def test_every_subscriber_is_woken_by_each_change_and_sees_the_newest() -> None:
    async def main() -> None:
        feed: Feed[str] = Feed()
        assert (feed.current, feed.version) == (None, 0)
        waiting = [asyncio.ensure_future(feed.wait_beyond(0)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        feed.publish("a")
        feed.publish("b")
        assert await asyncio.gather(*waiting) == [2, 2, 2]
        assert feed.current == "b"
        # Who is behind is not made to wait.
        assert await feed.wait_beyond(1) == 2
        again = asyncio.ensure_future(feed.wait_beyond(2))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not again.done()
        feed.publish("b")
        assert await again == 3

    asyncio.run(main())


def test_a_cancelled_caller_returns_only_when_its_thread_has_ended() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

            def work() -> None:
                begun.set()
                go_on.wait(30)
                ended.set()

            task = asyncio.ensure_future(Blocking(executor)(work))
            await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not task.done(), "whatever the thread works on may be taken away under it"
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended.is_set()

    asyncio.run(main())


def test_what_a_thread_raises_and_answers_comes_back() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            blocking = Blocking(executor)
            assert await blocking(lambda: 7) == 7
            assert await blocking(threading.current_thread) is not threading.current_thread()
            with pytest.raises(ValueError, match="invalid literal"):
                await blocking(lambda: int("a"))

    asyncio.run(main())


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_tls_is_settled_before_grpc_reads_it_or_the_process_does_not_start() -> None:
    good = run(
        "import os\nfrom runtime.tls import require_tls13\nrequire_tls13()\nprint(os.environ['GRPC_SSL_CIPHER_SUITES'])"
    )
    assert good.stdout == "ECDHE-PSK-CHACHA20-POLY1305\n", good.stderr
    late = run("import grpc\nfrom runtime.tls import require_tls13\nrequire_tls13()")
    assert late.returncode != 0
    assert "before TLS 1.2 was switched off" in late.stderr


@pytest.mark.parametrize("bad", ["\x1b[2J", "\x07", "\r", "\n", "\x9b", "\u202e", "\x00", "\u2028", "\x7f"])
def test_nothing_that_a_terminal_would_obey_is_shown(bad: str) -> None:
    shown = printable(f"a{bad}b")
    assert shown.isprintable()
    assert shown.startswith("a")
    assert shown.endswith("b")


def test_what_is_too_long_is_cut_and_that_is_seen() -> None:
    assert printable("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert printable("x" * (MAX_SHOWN + 1)) == "x" * MAX_SHOWN + "…"


def test_without_a_collector_there_is_no_tracing_and_without_its_packages_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collector.tracing(None, "agent", {}) as none:
        assert none is NO_TRACING
        assert none.headers() == ()
        with none.span("a") as span:
            span.note({"b": "c"})
    missing: Any = None
    monkeypatch.setitem(sys.modules, "runtime.opentelemetry", missing)
    with (
        pytest.raises(InvalidSetting, match="OpenTelemetry is not installed"),
        collector.tracing("http://c:1", "a", {}),
    ):
        pass
