"""bench.scale from its beginning to its end, in a cluster of a few nodes: all rows, and nothing left behind."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench.scale import children
from bench.scale.figures import NOT_REPORTED, OF_RENEWALS, ROWS
from bench.scale.population import Cluster
from bench.scale.renewals import Renewing
from bench.scale.run import RENEWALS, Limits, Plan, Run

TINY = Plan(
    Cluster(nodes=6, pods=60, policies=4, services=10, namespaces=2),
    fleets=1,
    changes=1.0,
    quiet_seconds=0.5,
    rounds=1,
    burst=40,
    at_once=4,
    paced=40,
    rate=100.0,
    flags=("--forced-reissue-over", "2s"),
    limits=Limits(start=60.0, connect=60.0, rotation=60.0, restart=60.0, reissue=60.0),
)


@pytest.mark.timeout(300)
def test_a_tiny_run_fills_every_row(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = children.Child.start

    def noted(*given: str, **options: bool) -> children.Child:
        child = start(*given, **options)  # type: ignore[arg-type]
        started.append(child.running.pid)
        return child

    monkeypatch.setattr(children.Child, "start", noted)
    said: list[str] = []
    figures = asyncio.run(Run(TINY, base, said.append).run())
    assert not figures.failure, said
    empty = {key for key in ROWS if figures.figure(key).value is None}
    assert empty >= OF_RENEWALS
    empty -= OF_RENEWALS
    assert all(figures.figure(key).note == NOT_REPORTED for key in empty)
    assert empty <= {"lag_p99", "lag_most", "lag_rotation", "lag_restart", "lag_reissue", "lag_reissue_p99"}
    assert figures.figure("mint_failed").value == 0
    assert figures.figure("mint_cpu").ratio is not None
    assert len(said) > len(ROWS) - len(OF_RENEWALS)
    # API server and signer of both clusters, the signer once more, the agents of the empty one and two more processes.
    assert len(started) == 8
    for each in started:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


@pytest.mark.timeout(300)
def test_renewals_go_on_by_the_other_replica_when_one_is_lost_and_fill_every_row(base: Path) -> None:
    few = Renewing(20, 2.0, taken_out=1.0, after=5.0)
    plan = replace(TINY, steps=(RENEWALS,), renewing=few, workers=2)
    figures = asyncio.run(Run(plan, base, lambda text: None).run())
    assert not figures.failure
    empty = {key for key in OF_RENEWALS if figures.figure(key).value is None}
    assert empty <= {"lag_renewals", "lag_renewals_p99"}
    assert figures.figure("renew_late").value == 0
    assert figures.figure("lost_back").value is not None


def test_a_step_that_takes_too_long_says_how_far_it_came_and_the_others_go_on(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = children.Fleets.count
    counted = []

    async def slow(fleets: children.Fleets, name: str) -> int:
        found = await count(fleets, name)
        if name != "served":
            return found
        counted.append(found - 1)
        return found - 1

    monkeypatch.setattr(children.Fleets, "count", slow)
    plan = replace(TINY, limits=replace(TINY.limits, restart=6.0))
    figures = asyncio.run(Run(plan, base, lambda text: None).run())
    assert figures.failure.startswith("the restart: 6 served: not within 6 s")
    assert figures.figure("restart_last").value is None
    # As many as came: a busy machine may not bring all the others within the time.
    assert figures.figure("restart_last").note == f"{counted[-1]} of 6 in the time that it may take"
    assert figures.figure("restart_mints").value
    assert figures.figure("reissue_last").value
    assert figures.figure("rss_reissue").value


def test_a_run_that_gets_nowhere_says_where_it_stopped(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "SPARE_DESCRIPTORS", 10**9)
    figures = asyncio.run(Run(TINY, base, lambda text: None).run())
    assert "ulimit" in figures.failure
    assert all(figures.figure(key).note == "not measured" for key in ROWS)
