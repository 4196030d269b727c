"""The page of sizes: formulas give what was measured where it was, and stand on the product's own bounds."""

import dataclasses
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import sizing
from runtime import durations
from signer.authority.timing import LifecyclePolicy
from signer.cluster import events
from signer.config import SignerConfig
from signer.front.budget import AGENT_CONNECTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
DEFAULTS = {each.name: each.metadata["default"] for each in dataclasses.fields(SignerConfig)}
PODS = 15_000 * sizing.PODS_OF_NODE


def test_formulas_give_what_was_measured_where_it_was() -> None:
    found, files = sizing.agent(), sizing.FILES / sizing.MB
    assert [round(found.memory(each) - each * files, 1) for each in (0, 110, 500)] == [65.3, 98.7, 129.5]
    rest = sizing.signer(sizing.ORDINARY)
    assert rest.memory(sizing.AGENTS, sizing.PODS) == pytest.approx(739.6, abs=0.1)
    assert rest.memory(sizing.AGENTS, sizing.PODS) * rest.peak == pytest.approx(1023.4, abs=0.1)


def test_agents_have_a_place_while_a_replica_is_away() -> None:
    assert [sizing.replicas(nodes) for nodes in (1, AGENT_CONNECTIONS, AGENT_CONNECTIONS + 1, 15_000)] == [2, 2, 3, 4]
    assert f"each replica takes {AGENT_CONNECTIONS:,} of them" in PAGE


@pytest.mark.parametrize("pods", [1, 27_000, 150_000, PODS, 600_000])
def test_a_re_issue_takes_as_long_as_the_signer_says(pods: int) -> None:
    day = timedelta(days=1)
    policy = LifecyclePolicy(
        authority_ttl=30 * day,
        jwt_period=day,
        x509_max_ttl=day,
        jwt_max_ttl=day,
        ack_bound=day,
        reissue_window=day,
        forced_window=durations.parse(DEFAULTS["forced_reissue_over"]),
        overlap=day,
        reissue_rate=int(DEFAULTS["reissue_rate"]),
    )
    spread = policy.spread(policy.forced_window, pods, timedelta(seconds=sizing.LIFE))
    assert sizing.reissue(pods) == pytest.approx(spread.total_seconds())


def test_svids_live_as_long_as_the_page_takes_for_granted() -> None:
    assert durations.parse(DEFAULTS["x509_ttl"]).total_seconds() == sizing.LIFE


def test_what_the_page_says_of_15000_nodes_is_what_the_formulas_give() -> None:
    slow = sizing.signer(sizing.SLOW)
    at_5000 = [
        sizing.deciding(150_000, 1, hours, workers=workers) for hours, workers in ((1, False), (1, True), (2, False))
    ]
    says = [
        ("above that without workers** (0.67)", f"above that without workers** ({at_5000[0]:.2f})"),
        ("with two workers they are not (0.55)", f"with two workers they are not ({at_5000[1]:.2f})"),
        ("nor with SVIDs of two hours (0.42)", f"nor with SVIDs of two hours ({at_5000[2]:.2f})"),
        ("0.33 of a core at 150,000 pods", f"{slow.idle * 1.5:.2f} of a core at 150,000 pods"),
        ("one alone (0.98)", f"one alone ({slow.idle * PODS / 1000 / 100:.2f})"),
        ("in its 4.2 ms", f"in its {sizing.renewal().decides:.1f} ms"),
        ("5.5 ms is both sides", f"{sizing.renewal().in_one:.1f} ms is both sides"),
        ("take 77 MB each with 30 volumes", f"take {sizing.agent().memory(30):.0f} MB each with 30 volumes"),
        ("560 a second, at", f"{round(2 * sizing.mints(PODS), -1):.0f} a second, at"),
        ("of life 140", f"of life {round(2 * sizing.mints(PODS) / 4, -1):.0f}"),
        ("450,000 pods 160 a second", f"{PODS:,} pods {round(PODS / (0.8 * 3600), -1):.0f} a second"),
    ]
    assert [said for said, _ in says] == [given for _, given in says]
    assert [said for said, _ in says if said not in " ".join(PAGE.split())] == []


def test_the_page_gives_one_advice_and_that_leaves_room() -> None:
    found = sizing.advice(15_000)
    assert (found.replicas, found.hours, found.rate, found.limit) == (4, 4, 200, 2560)
    assert found.cores <= sizing.ROOM < sizing.deciding(PODS, found.replicas - 1, found.hours / 2)
    forced = found.cores + found.rate / (found.replicas - 1) * sizing.renewal().decides / 1000
    assert forced <= sizing.FULL
    section = PAGE.partition("## 15,000 nodes on paper")[2].partition("\n## ")[0]
    numbers = re.findall(r"(?:signer\.replicas=|\*\*)(\d+|[A-Z][a-z]+)(?= signers|`)", section)
    assert set(numbers) == {"4", "Four"}
    assert re.findall(r"ttl\.x509=(\w+)", section) == ["4h"]


@pytest.mark.parametrize("nodes", [100, 1_000, 5_000, 15_000, 16_000])
def test_what_is_advised_is_the_shortest_life_that_leaves_room(nodes: int) -> None:
    found, serving = sizing.advice(nodes), sizing.replicas(nodes) - 1
    pods = nodes * sizing.PODS_OF_NODE
    enough = [each for each in sizing.LIVES if sizing.deciding(pods, serving, each) <= sizing.ROOM]
    assert found.hours == enough[0]
    assert 0 < found.rate <= sizing.RATE


def test_where_no_life_leaves_room_nothing_is_advised() -> None:
    with pytest.raises(ValueError, match=r"20,000 nodes: with SVIDs of 8 hours .* uses 0\.\d\d of its core"):
        sizing.advice(20_000)


def test_what_is_on_paper_can_be_reckoned_again() -> None:
    """By hand, from the rounded figures that the page shows."""
    rows = {what: (hour, advised) for what, _, hour, advised in sizing.on_paper()}
    assert rows["replicas"] == ("4", "4")
    assert rows["renewals a second"] == ("92.6", "23.1")
    idle = 0.109 * 450 / 100
    for number, hours in enumerate((1, 4)):
        each = 450_000 / (0.45 * 3600 * hours) / 3
        cores = {what: float(found[number]) for what, found in rows.items() if found[number].replace(".", "").isdigit()}
        assert cores["cores for these, deciding"] == pytest.approx(each * 0.0042, abs=0.006)
        assert cores["cores for these, both workers"] == pytest.approx(each * 0.00128, abs=0.006)
        assert cores["cores, deciding, in all"] == pytest.approx(each * 0.0042 + idle, abs=0.011)
        forced = (each + 100) * 0.0042 + idle
        assert cores["the same in a forced re-issue at 300 a second"] == pytest.approx(forced, abs=0.011)
        left = 3 * (0.9 - each * 0.0042 - idle) / 0.0042
        assert cores["mints a second beside renewals, of all, up to 0.9 of a core"] == pytest.approx(left, abs=3)


def test_each_file_of_results_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`([\w-]+\.(?:json|md))`", PAGE))
    assert {sizing.AGENT, sizing.ORDINARY, sizing.SLOW} <= named
    assert "latest.md" not in named, "each run of the bench writes it anew: name the run"
    assert {each for each in named if not (ROOT / sizing.RESULTS / each).exists()} == set()


def test_tokens_of_pods_are_for_as_long_as_the_page_says() -> None:
    driver = (ROOT / "deploy/manifests/podsvid.yaml").read_text(encoding="utf-8")
    found = [each for each in yaml.safe_load_all(driver) if each and each["kind"] == "CSIDriver"]
    assert [each["spec"]["tokenRequests"][0]["expirationSeconds"] for each in found] == [3600]


def test_mints_of_both_runs_are_measured_the_same_way() -> None:
    usual, slow = sizing.signer(sizing.ORDINARY), sizing.signer(sizing.SLOW)
    # With all that goes on beside it a mint takes more than without: what formulas add to is without.
    assert (usual.mint, usual.beside) == pytest.approx((1.82, 2.23))
    assert (slow.mint, slow.beside) == pytest.approx((6.2, 8.79))
    (alone,) = (row for row in _rows(sizing.SLOW) if row["key"] == "mint_cpu")
    assert f"took {alone['ratio']:.2f} times as much (slow run)" in " ".join(PAGE.split())
    (reissue,) = (row for row in _rows(sizing.ORDINARY) if row["key"] == "rss_reissue")
    assert f"the re-issue alone was {reissue['value'] / 739.610624:.2f} times" in " ".join(PAGE.split())


@pytest.mark.parametrize("name", [sizing.ORDINARY, sizing.SLOW])
def test_the_page_says_which_program_was_measured_and_when(name: str) -> None:
    of = json.loads((ROOT / sizing.RESULTS / name).read_text(encoding="utf-8"))["environment"]
    assert f"{of['commit'].removesuffix('-dirty')} ({of['date']}" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [
        (sizing.ORDINARY, "rotation_acknowledged", "4999 of 5000 within 180 s"),
        (sizing.SLOW, "rotation_acknowledged", "16 of 5000"),
        (sizing.SLOW, "restart_last", "653 of 5000"),
        (sizing.SLOW, "reissue_mean", "15930 of 30000"),
        (sizing.ORDINARY, "reissue_mean", "142100"),
    ],
)
def test_what_did_not_go_well_is_on_the_page(name: str, key: str, text: str) -> None:
    (row,) = (row for row in _rows(name) if row["key"] == key)
    assert row["note"].startswith(text)
    assert re.sub(r"\d{4,}", lambda found: f"{int(found[0]):,}", text) in PAGE


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / sizing.RESULTS / name).read_text(encoding="utf-8"))["rows"]
    return rows


def test_events_are_as_rare_as_the_page_says() -> None:
    assert (1 / events.SPACING, events.QUEUE, events.REPEAT, events.SURPRISE_REPEAT) == (5, 1000, 300, 7 * 86400)


def test_kubelets_watch_what_the_page_says() -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/manifests/podsvid.yaml").read_text(encoding="utf-8"))
    (agents,) = (each["spec"]["template"]["spec"] for each in documents if each and each["kind"] == "DaemonSet")
    mounted = {each["configMap"]["name"] for each in agents["volumes"] if "configMap" in each}
    assert mounted == {"podsvid-bundle", "podsvid-agent"}
    assert agents["automountServiceAccountToken"] is False
