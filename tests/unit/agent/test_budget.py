"""The bounds of a node add up to the memory that the chart gives its agent."""

import argparse
from pathlib import Path

import pytest
import yaml

from agent import budget, config
from agent.daemon import bounds_of
from agent.socket import connections
from csi.room import MIB, Bounds

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def defaults() -> config.AgentConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(["--trust-domain", "example.org"]), {})


def test_the_settings_are_the_bounds() -> None:
    assert bounds_of(defaults()) == Bounds()
    assert defaults().socket_memory * MIB == budget.SOCKETS
    assert connections.ALL * 3 * connections.UNREAD == budget.LEFT_UNREAD
    assert connections.ALL == budget.CONNECTIONS


def test_the_sum_fits_the_charts_limit() -> None:
    assert sum(budget.needed(Bounds()).values()) <= budget.LIMIT
    values = yaml.safe_load((ROOT / "deploy/chart/podsvid/values.yaml").read_text(encoding="utf-8"))
    assert values["agent"]["resources"]["limits"]["memory"] == f"{budget.LIMIT // MIB}Mi"


@pytest.mark.parametrize("what", budget.needed(Bounds()))
def test_the_page_says_so(what: str) -> None:
    assert f"| {what} | {budget.needed(Bounds())[what] / MIB:.0f} |" in PAGE


def test_the_pages_say_how_many_files_the_sockets_process_may_open() -> None:
    most = budget.descriptors(Bounds().volumes)
    assert f"| open files of the process that serves all pods' sockets | {most}: three for each" in PAGE
    for name in ("configuration.md", "threat-model.md"):
        assert f"({most:,} with {Bounds().volumes:,} volumes" in (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert (budget.EACH, budget.OF_A_VOLUME, budget.REFUSED, budget.REST) == (3, 2, 1024, 200)


def test_the_page_adds_up() -> None:
    total = sum(budget.needed(Bounds()).values())
    assert f"| **in all** | **{total / MIB:.0f}** of {budget.LIMIT // MIB} |" in PAGE


def test_the_rule_for_more_volumes_is_the_tables() -> None:
    more = Bounds(volumes=Bounds().volumes + 100, memory=Bounds().memory + 16 * MIB)
    further = sum(budget.needed(more).values()) - sum(budget.needed(Bounds()).values())
    assert further <= 24 * MIB
    assert (
        "For each further 100 volumes: `volumes` +100, `volumes_memory` +16, `agent.resources.limits.memory` +24Mi"
        in PAGE
    )
