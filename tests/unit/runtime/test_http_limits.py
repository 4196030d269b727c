"""What peers can cost: each bound of the listener from both sides, and who makes place for whom."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from agent.metrics import Metrics as AgentMetrics
from runtime import http, pages
from runtime.crowd import MAX_ADDRESSES, Crowd
from runtime.http import Answer, Limits
from runtime.pages import HEALTH_LIMITS, METRICS_LIMITS, PAGE_BYTES
from signer.errors import Reason
from signer.metrics import Metrics as SignerMetrics
from tests.unit.runtime.test_stopping import Loses, on_fake_time

# Seconds that a test waits for what must come.
PATIENCE = 30.0
LOOSE = Limits(connections=4, by_address=4, head=256, deadline=PATIENCE, leave=PATIENCE, received=4096, sent=4096)
ASK = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024


class Scene:
    """A listener with one page that a test can hold back, and peers from addresses of the loopback."""

    def __init__(self, stack: ExitStack, limits: Limits, body: bytes) -> None:
        self._stack = stack
        self.held = threading.Event()
        self.held.set()
        self.asked = threading.Semaphore(0)
        self.told = threading.Condition()
        self.refused: list[str] = []
        self.body = body

        async def page(accept: str) -> Answer:
            self.asked.release()
            await asyncio.to_thread(self.held.wait, PATIENCE)
            return Answer(200, self.body)

        self.address = stack.enter_context(http.serving(("127.0.0.1", 0), {"/page": page}, limits, self._refuse))

    def _refuse(self, why: str) -> None:
        with self.told:
            self.refused.append(why)
            self.told.notify_all()

    def until_refused(self, *whys: str) -> None:
        """Wait for just these."""
        with self.told:
            assert self.told.wait_for(lambda: len(self.refused) >= len(whys), PATIENCE)
            assert sorted(self.refused) == sorted(whys)

    def peer(self, source: str = "127.0.0.1", said: bytes = b"") -> socket.socket:
        """A connection that has said that."""
        found = socket.create_connection(self.address, timeout=PATIENCE, source_address=(source, 0))
        self._stack.callback(found.close)
        found.sendall(said)
        return found

    def get(self, source: str = "127.0.0.1", said: bytes = ASK) -> bytes:
        return everything(self.peer(source, said))


def everything(peer: socket.socket) -> bytes:
    """What it still says until its end."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := peer.recv(65536):
            found += more
    return found


def descriptors() -> int:
    """This process's open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@contextmanager
def scene(limits: Limits = LOOSE, body: bytes = b"here\n") -> Iterator[Scene]:
    with ExitStack() as stack:
        found = Scene(stack, limits, body)
        try:
            yield found
        finally:
            found.held.set()


def test_an_answer_is_whole_and_ends_the_connection() -> None:
    with scene() as at:
        assert at.get() == (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n"
            b"Connection: close\r\n\r\nhere\n"
        )
        assert at.refused == []


def test_a_head_may_come_byte_by_byte_and_what_follows_it_is_thrown_away() -> None:
    with scene() as at:
        peer = at.peer()
        for number in range(len(ASK)):
            peer.sendall(ASK[number : number + 1])
        assert status(everything(peer)) == 200
        assert status(at.get(said=ASK + ASK)) == 200
        # One that closes its half has still asked.
        peer = at.peer(said=ASK)
        peer.shutdown(socket.SHUT_WR)
        assert status(everything(peer)) == 200


def test_one_that_leaves_in_the_middle_leaves_nothing() -> None:
    with scene(dataclasses.replace(LOOSE, connections=1)) as at:
        peer = at.peer(said=ASK[:10])
        peer.shutdown(socket.SHUT_WR)
        assert everything(peer) == b""
        assert status(at.get()) == 200
        assert at.refused == []


@pytest.mark.parametrize("more", [0, 1])
def test_the_bytes_of_a_head_are_bounded(more: int) -> None:
    with scene() as at:
        start = b"GET /page HTTP/1.1\r\nA: "
        said = start + b"a" * (LOOSE.head - len(start) - len(b"\r\n\r\n") + more) + b"\r\n\r\n"
        assert len(said) == LOOSE.head + more
        assert status(at.get(said=said)) == (431 if more else 200)
        assert at.refused == (["head"] if more else [])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"GET /page HTTP/1.0\r\n\r\n", 200),
        (b"GET /page HTTP/2.0\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET  /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\n: no name\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nSpace : a\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\n folded\r\n\r\n", 400),
        (b"G\x00T /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"POST /page HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 501),
        (b"HEAD /page HTTP/1.1\r\n\r\n", 501),
        (b"get /page HTTP/1.1\r\n\r\n", 501),
        (b"GET /page?x HTTP/1.1\r\n\r\n", 404),
        (b"GET //page HTTP/1.1\r\n\r\n", 404),
        (b"GET http://a/page HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_requests_and_what_is_none(said: bytes, expected: int) -> None:
    with scene() as at:
        assert status(at.get(said=said)) == expected
        assert at.refused == (["request"] if expected in (400, 501) else [])


def test_who_trickles_ends_with_the_deadline_of_the_whole() -> None:
    with scene(dataclasses.replace(LOOSE, deadline=0.1)) as at:
        peer = at.peer(said=ASK[:-1])
        assert everything(peer) == b""
        at.until_refused("deadline")


def test_who_does_not_read_ends_with_the_deadline() -> None:
    # The peer's own buffer is the kernel's least, and nothing of it is read.
    with scene(dataclasses.replace(LOOSE, deadline=0.1), b"x" * 4 * MIB) as at:
        at.peer(said=ASK)
        at.until_refused("deadline")


def test_who_has_all_and_stays_is_asked_to_leave_and_is_no_refusal() -> None:
    with scene(dataclasses.replace(LOOSE, connections=1, leave=0.05)) as at:
        before = descriptors()
        peer = at.peer(said=ASK)
        assert status(everything(peer)) == 200
        # Its place is free though it never closes, and is taken by somebody who needs no other to make place.
        until = time.monotonic() + PATIENCE
        while descriptors() > before + 1:
            assert time.monotonic() < until
            threading.Event().wait(0.01)
        assert status(at.get()) == 200
        assert at.refused == []


def test_who_says_more_than_a_request_is_cut_off() -> None:
    with scene() as at:
        peer = at.peer(said=ASK)
        with contextlib.suppress(ConnectionError):
            for _ in range(100_000):
                peer.sendall(b"x" * 1024)
            raise AssertionError("a hundred megabytes were taken")


def test_of_one_address_the_oldest_that_is_slow_makes_place_and_no_other_address() -> None:
    with scene(dataclasses.replace(LOOSE, by_address=2)) as at:
        other = at.peer("127.0.0.2", b"G")
        first, second = at.peer(said=b"G"), at.peer(said=b"G")
        third = at.peer(said=b"G")
        at.until_refused("address")
        assert everything(first) == b""
        for each in (second, third, other):
            each.sendall(ASK[1:])
            assert status(everything(each)) == 200


def test_when_it_is_full_the_oldest_that_is_slow_makes_place() -> None:
    with scene() as at:
        crowd = [at.peer(f"127.0.0.{number}", b"G") for number in range(1, 5)]
        assert status(at.get("127.0.0.9")) == 200
        at.until_refused("crowded")
        assert everything(crowd[0]) == b""
        for each in crowd[1:]:
            each.sendall(ASK[1:])
            assert status(everything(each)) == 200


def test_who_has_asked_keeps_the_place_while_others_have_not() -> None:
    with scene() as at:
        at.held.clear()
        asked = at.peer("127.0.0.1", ASK)
        assert at.asked.acquire(timeout=PATIENCE)
        slow = [at.peer(f"127.0.0.{number}", b"G") for number in range(2, 5)]
        at.peer("127.0.0.9", b"G")
        at.until_refused("crowded")
        assert everything(slow[0]) == b""
        at.held.set()
        assert status(everything(asked)) == 200


def test_many_more_than_there_are_places_keep_nobody_out() -> None:
    with scene() as at:
        for number in range(100):
            at.peer(f"127.0.{number}.1", b"GET /page HTTP/1.1\r\nX: ")
        assert status(at.get("127.0.0.9")) == 200
        assert set(at.refused) == {"crowded"}


def test_pages_above_the_rate_come_later_and_one_address_leaves_some_for_others() -> None:
    with scene(dataclasses.replace(LOOSE, rate=0.001, burst=8.0)) as at:
        assert [status(at.get()) for _ in range(3)] == [200, 200, 429]
        answer = at.get()
        assert b"\r\nRetry-After: 1\r\n" in answer
        others = [status(at.get(f"127.0.0.{number}")) for number in (2, 2, 2, 3, 3, 4, 4)]
        assert others == [200, 200, 429, 200, 200, 200, 200]
        # Eight in all, whoever asks.
        assert status(at.get("127.0.0.5")) == 429
        assert at.refused.count("rate") == 4


def test_shares_are_remembered_of_so_many_addresses() -> None:
    crowd = Crowd[Any](1, 1, rate=1.0, burst=10_000.0)
    for number in range(3 * MAX_ADDRESSES):
        assert crowd.may(f"address-{number}", 0.0)
    assert len(crowd.shares) == MAX_ADDRESSES


def test_a_page_that_fails_is_the_logs_business() -> None:
    async def page(accept: str) -> Answer:
        raise RuntimeError("what nobody else should read")

    with http.serving(("127.0.0.1", 0), {"/page": page}, LOOSE) as address:
        with socket.create_connection(address, timeout=PATIENCE) as peer:
            peer.sendall(ASK)
            answer = everything(peer)
        assert status(answer) == 500
        assert b"nobody else" not in answer


def test_a_check_is_asked_once_however_many_want_to_know() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asked: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    async def check() -> str | None:
        asked.append(1)
        begun.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        return None

    checks = pages.Checks(loop, check, check)
    try:
        with (
            pages.serving(("127.0.0.1", 0), None, checks, CollectorRegistry(), lambda *_: None) as found,
            ExitStack() as stack,
        ):
            peers = []
            for number in range(8):
                peer = stack.enter_context(socket.create_connection(found["health"], timeout=PATIENCE))
                peer.sendall(b"GET /healthz HTTP/1.1\r\nAccept: a/%d\r\n\r\n" % number)
                peers.append(peer)
            assert begun.wait(PATIENCE)
            # Cut off while it waits: the others still get theirs.
            peers[0].close()
            go_on.set()
            assert [status(everything(each)) for each in peers[1:]] == [200] * 7
            assert len(asked) < 8
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_the_budget_of_docs_is_what_the_limits_cost() -> None:
    """docs/metrics.md says these numbers."""
    assert HEALTH_LIMITS.budget(1024) < 2 * MIB
    assert METRICS_LIMITS.budget(PAGE_BYTES) < 7 * MIB
    assert HEALTH_LIMITS.rate == float("inf"), "a crowd that uses up a rate is a probe that fails"
    assert METRICS_LIMITS.rate <= 20


def test_a_page_with_every_reason_in_it_fits_the_budget() -> None:
    agent, signer = AgentMetrics(), SignerMetrics()
    for reason in [*Reason, "ok", "degraded"]:
        agent.published(str(reason), 1.0)
        for kind in ("x509", "jwt"):
            agent.rotated(kind, str(reason))
            signer.minted(kind, str(reason), 1.0)
    for metrics in (agent, signer):
        assert len(generate_latest(metrics.registry)) < PAGE_BYTES * 0.9


@pytest.mark.parametrize("make", [AgentMetrics, SignerMetrics])
def test_refusals_are_counted_by_listener_and_why(make: type[AgentMetrics] | type[SignerMetrics]) -> None:
    metrics = make()
    metrics.http_refused("health", "crowded")
    name = "podsvid_http_refused_total" if make is AgentMetrics else "podsvid_signer_http_refused_total"
    assert metrics.registry.get_sample_value(name, {"listener": "health", "why": "crowded"}) == 1.0


def test_a_page_that_loses_its_cancellation_keeps_nobody_from_stopping() -> None:
    async def main() -> None:
        server, page = http._Server({}, LOOSE, lambda why: None), Loses()
        server._tasks.add(asyncio.ensure_future(page.run()))
        await asyncio.sleep(0)
        await server.close()
        assert page.ended

    on_fake_time(main)
