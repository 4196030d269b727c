"""The probes' answers: what is wrong is 503, also when nobody is there to say so, and notes are no harm."""

import asyncio
import gc
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge

from runtime import pages


class Process:
    """A loop on a thread of its own, with what its checks answer."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.wrong: dict[str, str | None] = {"healthy": None, "ready": None}
        self.asked: list[str] = []
        self.notes = ""
        self.refused: list[tuple[str, str]] = []
        self.registry = CollectorRegistry()
        self.address = ("", 0)
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def check(self, name: str) -> pages.Check:
        async def answer() -> str | None:
            self.asked.append(name)
            assert asyncio.get_running_loop() is self.loop
            return self.wrong[name]

        return answer

    def refuse(self, listener: str, why: str) -> None:
        self.refused.append((listener, why))

    def get(self, path: str) -> tuple[int, str]:
        host, port = self.address
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        if not self.loop.is_closed():
            self.loop.close()


@contextmanager
def process(fresh: Callable[[], Awaitable[None]] | None = None) -> Iterator[Process]:
    found = Process()
    checks = found.check("healthy"), found.check("ready")
    try:
        asked = pages.Checks(found.loop, *checks, lambda: found.notes, fresh)
        with pages.serving(None, ("127.0.0.1", 0), asked, found.registry, found.refuse) as at:
            found.address = at["metrics"]
            yield found
    finally:
        found.stop()


def test_each_probe_has_its_own_check_and_what_is_wrong_is_503() -> None:
    with process() as at:
        assert at.get("/healthz") == at.get("/readyz") == (200, "ok\n")
        assert at.asked == ["healthy", "ready"]
        at.wrong["ready"] = "kubelet has not registered it yet"
        assert at.get("/readyz") == (503, "kubelet has not registered it yet\n")
        assert at.get("/healthz") == (200, "ok\n")
        at.wrong = {"healthy": "the socket is missing", "ready": None}
        assert at.get("/healthz") == (503, "the socket is missing\n")
        assert at.get("/readyz") == (200, "ok\n")


def test_notes_are_for_whoever_asks_whether_it_is_ready_and_change_no_status() -> None:
    with process() as at:
        at.notes = "the signer has not answered for 7 s"
        assert at.get("/readyz") == (200, "ok\nthe signer has not answered for 7 s\n")
        assert at.get("/healthz") == (200, "ok\n")
        at.wrong["ready"] = "not yet"
        assert at.get("/readyz") == (503, "not yet\nthe signer has not answered for 7 s\n")


def test_a_loop_that_is_stuck_is_unhealthy_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CHECK_DEADLINE", 0.05)
    stuck, go_on = threading.Event(), threading.Event()

    def block() -> None:
        stuck.set()
        go_on.wait(30)

    with process() as at:
        at.loop.call_soon_threadsafe(block)
        assert stuck.wait(30)
        assert at.get("/healthz") == at.get("/readyz") == (503, "the event loop does not answer\n")
        # Counting needs no loop: Prometheus sees a stuck agent as well.
        assert at.get("/metrics")[0] == 200
        go_on.set()
        monkeypatch.setattr(pages, "CHECK_DEADLINE", 30.0)
        assert at.get("/healthz") == (200, "ok\n")


def test_numbers_are_brought_up_to_date_on_the_loop_before_they_are_read_where_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gauge, loops = Gauge("known", "Known.", registry=None), list[asyncio.AbstractEventLoop]()
    stuck, go_on = threading.Event(), threading.Event()

    async def fresh() -> None:
        loops.append(asyncio.get_running_loop())
        gauge.set(len(loops))

    def block() -> None:
        stuck.set()
        go_on.wait(30)

    with process(fresh) as at:
        at.registry.register(gauge)
        for number in (1.0, 2.0):
            assert f"known {number}\n" in at.get("/metrics")[1]
        assert loops == [at.loop] * 2
        monkeypatch.setattr(pages, "CHECK_DEADLINE", 0.05)
        at.loop.call_soon_threadsafe(block)
        assert stuck.wait(30)
        status, page = at.get("/metrics")
        assert (status, "known 2.0\n" in page) == (200, True)
        go_on.set()
    assert len(loops) == 2


def test_a_loop_that_has_ended_is_not_healthy() -> None:
    with process() as at:
        at.stop()
        assert at.get("/healthz") == (503, "stopping\n")


def test_a_check_that_a_loop_never_comes_to_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the loop has its turn again when nobody waits any more: at the end of a process it does."""
    monkeypatch.setattr(pages, "CHECK_DEADLINE", 0.05)
    # What other tests of this process left is not looked at.
    gc.collect()
    with warnings.catch_warnings(record=True) as caught, process() as at:
        warnings.simplefilter("always")
        at.loop.call_soon_threadsafe(at.loop.stop)
        at._thread.join()
        assert at.get("/healthz") == (503, "the event loop does not answer\n")
        at.loop.run_until_complete(asyncio.sleep(0))
        assert asyncio.all_tasks(at.loop) == set()
        assert at.asked == []
        assert at.get("/healthz") == (503, "the event loop does not answer\n")
        at.stop()
        gc.collect()
    assert [str(each.message) for each in caught] == []


def test_a_check_is_given_up_with_whoever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each probe of one that hangs would leave one more; and a check that is ended with its loop says so."""
    begun, ended = threading.Event(), threading.Event()

    async def hang() -> str | None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    with process() as at, ThreadPoolExecutor(1) as peers:
        checks = pages.Checks(at.loop, hang, at.check("ready"))
        with pages.serving(("127.0.0.1", 0), None, checks, at.registry, at.refuse) as served:
            at.address = served["health"]
            # Within it the loop's thread has to come to the check.
            monkeypatch.setattr(pages, "CHECK_DEADLINE", 0.5)
            assert at.get("/healthz") == (503, "the event loop does not answer\n")
            assert begun.wait(30)
            assert ended.wait(30)
            begun.clear()
            monkeypatch.setattr(pages, "CHECK_DEADLINE", 30.0)
            answer = peers.submit(at.get, "/healthz")
            assert begun.wait(30)
            at.loop.call_soon_threadsafe(lambda: [each.cancel() for each in asyncio.all_tasks(at.loop)])
            assert answer.result() == (503, "stopping\n")


def test_metrics_are_the_registrys_and_nothing_else_is_served() -> None:
    with process() as at:
        Gauge("example_things", "Things.", registry=at.registry).set(3)
        status, text = at.get("/metrics")
        assert status == 200
        assert "example_things 3.0" in text.splitlines()
        for path in ("/", "/healthz/", "/healthz?x", "/metrics/../etc/passwd", "/debug"):
            assert at.get(path)[0] == 404
        assert at.asked == []


def test_an_address_that_is_taken_is_an_error_at_once() -> None:
    def again(at: Process) -> Callable[[], None]:
        def serve() -> None:
            checks = pages.Checks(at.loop, at.check("healthy"), at.check("ready"))
            with pages.serving(at.address, None, checks, at.registry, at.refuse):
                raise AssertionError("served twice")

        return serve

    with process() as at, pytest.raises(OSError, match="in use"):
        again(at)()


def test_probes_have_a_listener_of_their_own_that_serves_nothing_else() -> None:
    with process() as at:
        checks = pages.Checks(at.loop, at.check("healthy"), at.check("ready"))
        anywhere = ("127.0.0.1", 0)
        with pages.serving(anywhere, anywhere, checks, at.registry, at.refuse) as addresses:
            at.address = addresses["health"]
            assert at.get("/healthz") == at.get("/readyz") == (200, "ok\n")
            assert at.get("/metrics") == (404, "try /healthz or /readyz\n")
            at.address = addresses["metrics"]
            assert at.get("/healthz") == (200, "ok\n")
            assert at.get("/metrics")[0] == 200


def test_off_is_nowhere() -> None:
    with process() as at:
        checks = pages.Checks(at.loop, at.check("healthy"), at.check("ready"))
        with pages.serving(None, None, checks, at.registry, at.refuse) as addresses:
            assert addresses == {}
