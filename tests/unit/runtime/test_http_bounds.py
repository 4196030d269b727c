"""Health over HTTP: what is wrong is a 503 with its reason, a loop that hangs is wrong, and nothing else is served."""

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge

from runtime import http, pages


class Scene:
    """A page whose checks a test decides, on a loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.unhealthy: str | None = None
        self.unready: str | None = None
        self.note = ""
        self.registry = CollectorRegistry()
        self.base = ""

    async def healthy(self) -> str | None:
        return self.unhealthy

    async def ready(self) -> str | None:
        return self.unready

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.base + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def scene() -> Iterator[Scene]:
    at = Scene()
    running = threading.Thread(target=at.loop.run_forever)
    running.start()
    try:
        checks = pages.Checks(at.loop, at.healthy, at.ready, lambda: at.note)
        served = {**checks.pages(), **pages.metrics(at.registry)}
        with http.serving(("127.0.0.1", 0), served, pages.METRICS_LIMITS) as (host, port):
            at.base = f"http://{host}:{port}"
            yield at
    finally:
        at.loop.call_soon_threadsafe(at.loop.stop)
        running.join()
        at.loop.close()


def test_each_check_answers_for_itself() -> None:
    with scene() as at:
        status, text = at.get("/healthz")
        assert (status, text.strip()) == (200, "ok")
        at.unready = "kubelet has not registered x yet"
        assert at.get("/healthz")[0] == 200
        status, text = at.get("/readyz")
        assert (status, text.splitlines()[0]) == (503, "kubelet has not registered x yet")
        at.unready, at.unhealthy = None, "the socket is missing"
        status, text = at.get("/healthz")
        assert (status, text.splitlines()[0]) == (503, "the socket is missing")
        assert at.get("/readyz")[0] == 200


def test_a_note_is_told_where_people_look_and_makes_nothing_unready() -> None:
    with scene() as at:
        at.note = "the signer has not answered for 7 s"
        status, text = at.get("/readyz")
        assert status == 200
        assert "the signer has not answered for 7 s" in text.splitlines()
        assert at.note not in at.get("/healthz")[1]


def test_a_loop_that_hangs_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CHECK_DEADLINE", 0.05)
    with scene() as at:
        go_on = threading.Event()
        at.loop.call_soon_threadsafe(go_on.wait)
        try:
            status, text = at.get("/healthz")
        finally:
            go_on.set()
        assert (status, text.splitlines()[0]) == (503, "the event loop does not answer")


def test_metrics_are_served_and_nothing_beside() -> None:
    with scene() as at:
        Gauge("podsvid_example", "An example.", registry=at.registry).set(7)
        status, text = at.get("/metrics")
        assert status == 200
        assert "podsvid_example 7.0" in text
        for path in ("/", "/healthz/", "/metrics?x", "/../etc/passwd", "/debug"):
            assert at.get(path)[0] == 404
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(at.base + "/healthz", data=b"x", timeout=30)
