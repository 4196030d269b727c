"""The page of sizes: formulas give what was measured where it was, and stand on the product's own bounds."""

import dataclasses
import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from docs import sizing
from runtime import durations
from signer.authority.timing import LifecyclePolicy
from signer.config import SignerConfig
from signer.front.budget import AGENT_CONNECTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
DEFAULTS = {each.name: each.metadata["default"] for each in dataclasses.fields(SignerConfig)}
PODS = 15_000 * sizing.PODS_OF_NODE


def test_formulas_give_what_was_measured_where_it_was() -> None:
    found, files = sizing.agent(), sizing.FILES / sizing.MB
    assert [round(found.memory(each) - each * files, 1) for each in (0, 110, 500)] == [68.4, 104.8, 140.7]
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
    usual, slow = sizing.signer(sizing.ORDINARY), sizing.signer(sizing.SLOW)
    row = dict(zip(("nodes", "pods", "replicas", "rest", "most", "limit"), sizing.of_clusters()[-1], strict=False))
    of_one = sizing.mints(PODS) / 3
    idle = [each.idle * PODS / 1000 / 100 for each in (usual, slow)]
    says = [
        ("signer.replicas=4", f"signer.replicas={row['replicas']}"),
        ("a limit of 2560Mi", f"a limit of {row['limit']}"),
        ("would use 0.7 of one", f"would use {of_one * usual.mint / 1000 + idle[0]:.1f} of one"),
        ("of four hours 0.54", f"of four hours {of_one / 4 * usual.mint / 1000 + idle[0]:.2f}"),
        ("one alone (0.98)", f"one alone ({idle[1]:.2f})"),
        ("takes 25 minutes", f"takes {sizing.reissue(PODS) / 60:.0f} minutes"),
        ("take 81 MB each with 30 volumes", f"take {sizing.agent().memory(30):.0f} MB each with 30 volumes"),
        ("560 a second, at", f"{round(2 * sizing.mints(PODS), -1):.0f} a second, at"),
        ("of life 140", f"of life {round(2 * sizing.mints(PODS) / 4, -1):.0f}"),
        ("450,000 pods 160 a second", f"{PODS:,} pods {round(PODS / (0.8 * 3600), -1):.0f} a second"),
    ]
    assert [said for said, _ in says] == [given for _, given in says]
    assert [said for said, _ in says if said not in " ".join(PAGE.split())] == []


def test_each_file_of_results_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`([\w-]+\.(?:json|md))`", PAGE))
    assert {sizing.AGENT, sizing.ORDINARY, sizing.SLOW} <= named
    assert {each for each in named if not (ROOT / sizing.RESULTS / each).exists()} == set()


def test_tokens_of_pods_are_for_as_long_as_the_page_says() -> None:
    driver = (ROOT / "deploy/manifests/podsvid.yaml").read_text(encoding="utf-8")
    found = [each for each in yaml.safe_load_all(driver) if each and each["kind"] == "CSIDriver"]
    assert [each["spec"]["tokenRequests"][0]["expirationSeconds"] for each in found] == [3600]
