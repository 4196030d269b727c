"""Whoever reaches the ports of metrics and probes: neither memory, nor threads, nor a probe that is missed."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.signer_process import process as signer_process
from tests.support import IS_ROOT, host

# Connections that say little and never end.
CROWD = 400
# Seconds that kubelet gives a probe.
PROBE = 5.0
START = 60.0


@dataclass(frozen=True)
class Target:
    """A daemon with its two listeners."""

    pid: int
    health: int
    metrics: int

    def status(self, name: str) -> int:
        """A number of /proc/PID/status: Threads, VmRSS (kB)."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def scrape(self) -> str:
        """The page of metrics; who comes from the crowd's own address is told to come again, and does."""
        until = time.monotonic() + START
        while True:
            try:
                return self.get(self.metrics, "/metrics")
            except urllib.error.HTTPError as error:
                assert error.code == HTTPStatus.TOO_MANY_REQUESTS
                assert time.monotonic() < until
                time.sleep(float(error.headers["Retry-After"]))

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PROBE) as answer:
            text: str = answer.read().decode()
            return text


@contextmanager
def agent(folder: Path) -> Iterator[Target]:
    if not IS_ROOT:
        pytest.skip("the agent mounts: run as root")
    health, metrics = free_port(), free_port()
    with host() as here:
        here.start("--health-listen", f"127.0.0.1:{health}", "--metrics-listen", f"127.0.0.1:{metrics}")
        assert here.process is not None
        # What it takes until then is no crowd's.
        until = time.monotonic() + START
        while not any(each["event"] == "agent serving" for each in here.events() if "event" in each):
            assert time.monotonic() < until
            time.sleep(0.05)
        yield _up(Target(here.process.pid, health, metrics))


@contextmanager
def signer(folder: Path) -> Iterator[Target]:
    health, metrics = free_port(), free_port()
    listen = ("--health-listen", f"127.0.0.1:{health}", "--metrics-listen", f"127.0.0.1:{metrics}")
    with signer_process(folder, 1, 1, free_port(), *listen) as (process, _):
        yield _up(Target(process.pid, health, metrics))


def _up(target: Target) -> Target:
    until = time.monotonic() + START
    while True:
        try:
            target.get(target.health, "/healthz")
            return target
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture(params=[agent, signer], ids=["agent", "signer"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    with request.param(tmp_path) as found:
        yield found


def crowd(stack: ExitStack, port: int, said: bytes) -> list[socket.socket]:
    """So many connections that stay open and have said that."""
    found = []
    for _ in range(CROWD):
        each = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PROBE))
        each.sendall(said)
        found.append(each)
    return found


@pytest.mark.parametrize(
    "said",
    [b"G", b"GET /metrics HTTP/1.1\r\nX: ", b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"],
    ids=["one byte", "half of a head", "a page that nobody reads"],
)
def test_a_crowd_of_slow_peers_makes_no_threads_and_misses_no_probe(target: Target, said: bytes) -> None:
    threads, memory, descriptors = target.status("Threads"), target.status("VmRSS"), target.descriptors()
    with ExitStack() as stack:
        crowd(stack, target.metrics, said)
        assert target.get(target.health, "/healthz") == "ok\n"
        crowd(stack, target.health, said)
        for _ in range(3):
            assert target.get(target.health, "/healthz") == "ok\n"
        assert "podsvid" in target.scrape()
        # Far fewer than one for each.
        assert target.status("Threads") - threads < CROWD / 20
        assert target.descriptors() - descriptors < CROWD / 4
        assert target.status("VmRSS") - memory < CROWD * 20


def test_what_trickles_ends_with_the_deadline_of_the_whole_request(target: Target) -> None:
    with socket.create_connection(("127.0.0.1", target.metrics), timeout=PROBE) as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\n")
        for number in range(1000):
            try:
                peer.sendall(b"A: %d\r\n" % number)
                peer.settimeout(0.05)
                if peer.recv(4096) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("fifty seconds of a byte now and then")
    assert 'why="deadline"' in target.get(target.metrics, "/metrics")


def refused(target: Target, why: str) -> float:
    """The metric of connections that were ended early, of both listeners."""
    lines = target.get(target.metrics, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if "http_refused_total" in line and f'why="{why}"' in line)


def test_those_that_make_place_are_counted(target: Target) -> None:
    before = refused(target, "address")
    with ExitStack() as stack:
        crowd(stack, target.metrics, b"G")
        assert refused(target, "address") - before > CROWD / 2
