"""Gauges are asked on the event loop; whoever scrapes, on whatever thread, reads numbers."""

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from agent.metrics import Metrics as AgentMetrics
from runtime.shown import REFRESH_SECONDS, Shown
from signer import gauges
from signer.metrics import Metrics as SignerMetrics

ROOT = Path(__file__).resolve().parents[3]


class Asked:
    """Counts how often it was asked, and by which threads."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> float:
        self.threads.append(threading.get_ident())
        return float(len(self.threads))


def scraped(registry: CollectorRegistry) -> str:
    """The page, as another thread makes it."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(generate_latest(registry).decode()))
    thread.start()
    thread.join()
    return found[0]


def test_a_scrape_asks_nobody_and_shows_what_was_asked_for_last() -> None:
    registry, shown, asked = CollectorRegistry(), Shown(), Asked()
    shown.add(Gauge("one", "One.", registry=registry), asked)
    for _ in range(3):
        assert "\none 1.0\n" in scraped(registry)
    shown.refresh()
    assert "\none 2.0\n" in scraped(registry)
    assert asked.threads == [threading.get_ident()] * 2


def test_of_several_gauges_of_one_answer_that_is_asked_for_once() -> None:
    registry, shown, asked = CollectorRegistry(), Shown(), Asked()
    family = Gauge("state", "States.", ["of"], registry=registry)
    answers: list[dict[str, float]] = [{"a": 1.0}, {"b": 2.0}]

    def ask() -> dict[str, float]:
        return answers[int(asked()) - 1]

    shown.add_all({name: family.labels(name) for name in "ab"}, ask)
    page = scraped(registry)
    assert 'state{of="a"} 1.0' in page
    assert 'state{of="b"} 0.0' in page
    shown.refresh()
    page = scraped(registry)
    assert 'state{of="a"} 0.0' in page
    assert 'state{of="b"} 2.0' in page
    assert len(asked.threads) == 2


def test_it_is_asked_again_and_again() -> None:
    shown, asked, slept = Shown(), Asked(), list[float]()
    shown.add(Gauge("one", "One.", registry=CollectorRegistry()), asked)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(shown.run(sleep))
    assert slept == [REFRESH_SECONDS] * 4
    assert len(asked.threads) == 4


def _agent(ask: Callable[[], float]) -> AgentMetrics:
    metrics = AgentMetrics()
    metrics.watch(ask, ask, lambda: {"ok": ask()})
    metrics.watch_signer(ask)
    metrics.watch_tasks(ask)
    metrics.watch_registration("csi.podsvid.io", lambda: bool(ask()))
    return metrics


def _signer(ask: Callable[[], float]) -> SignerMetrics:
    metrics = SignerMetrics()
    metrics.watch(
        agents=ask,
        unacknowledged=ask,
        leading=ask,
        authority_ends=ask,
        authority_life=ask,
        upstream_ends=ask,
        authority_wanted=ask,
        roots_refused=ask,
        contact=ask,
        services_left_out=ask,
        pods_left_out=ask,
        clock_ahead=ask,
        key_store_down=ask,
    )
    metrics.watch_connections(ask, ask, ask)
    return metrics


@pytest.mark.parametrize("make", [_agent, _signer])
def test_no_gauge_of_agent_or_signer_walks_what_the_loop_changes_from_the_thread_of_a_scraper(
    make: Callable[[Callable[[], float]], AgentMetrics | SignerMetrics],
) -> None:
    asked = Asked()
    metrics = make(asked)
    before = len(asked.threads)
    scraped(metrics.registry)
    assert len(asked.threads) == before
    metrics.refresh()
    assert len(asked.threads) == 2 * before
    assert set(asked.threads) == {threading.get_ident()}


def test_the_product_has_no_gauge_that_asks_when_it_is_scraped() -> None:
    packages = ("svid", "runtime", "csi", "agent", "signer", "podsvid")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    asking = re.compile(r"set_function|def collect\b")
    assert [str(path) for path in files if asking.search(path.read_text(encoding="utf-8"))] == []


def test_the_signer_keeps_them_fresh_beside_the_measure_of_its_loop() -> None:
    metrics = SignerMetrics()
    kept = asyncio.Event()

    async def keep_fresh() -> None:
        kept.set()
        await asyncio.Event().wait()

    metrics.keep_fresh = keep_fresh  # type: ignore[assignment]

    async def test() -> None:
        keeping = asyncio.ensure_future(gauges.keep(metrics))
        async with asyncio.timeout(30):
            await kept.wait()
            while not metrics.registry.get_sample_value("podsvid_signer_loop_lag_seconds_count"):
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(test())


def test_whoever_reads_them_has_them_asked_and_no_more_often_than_they_were_by_themselves() -> None:
    at = [0.0]
    shown, asked = Shown(lambda: at[0]), Asked()
    shown.add(Gauge("one", "One.", registry=CollectorRegistry()), asked)
    counts = []
    for at[0] in (0.0, REFRESH_SECONDS - 0.001, REFRESH_SECONDS, REFRESH_SECONDS + 1):
        asyncio.run(shown.fresh())
        counts.append(len(asked.threads) - 1)
    assert counts == [1, 1, 2, 2]


def test_one_that_cannot_be_asked_fails_each_that_reads_them() -> None:
    shown, known = Shown(lambda: 0.0), {"one": 1.0}
    shown.add(Gauge("one", "One.", registry=CollectorRegistry()), lambda: known["one"])
    known.clear()
    for _ in range(2):
        with pytest.raises(KeyError):
            asyncio.run(shown.fresh())
