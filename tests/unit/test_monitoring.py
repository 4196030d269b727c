"""Every metric that the alert rules and the dashboard name is exported, with the labels that they use."""

import json
import re
from pathlib import Path

import pytest
import yaml

from agent.metrics import STATES
from agent.metrics import Metrics as AgentMetrics
from signer.metrics import Metrics as SignerMetrics

FOLDER = Path(__file__).parents[2] / "deploy" / "chart" / "podsvid" / "monitoring"
# What Prometheus adds to each target, as the chart's PodMonitors say.
TARGET = {"job", "instance", "node"}


def exported() -> dict[str, set[str]]:
    """Label names by the name of a series."""
    found: dict[str, set[str]] = {}
    for registry in (AgentMetrics().registry, SignerMetrics().registry):
        for collector in list(registry._collector_to_names):
            names = registry._collector_to_names[collector]
            labels = set(getattr(collector, "_labelnames", ()))
            for name in names:
                found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return found


def expressions() -> list[str]:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    found = [rule["expr"] for group in rules for rule in group["rules"]]
    found += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_is_exported(expression: str) -> None:
    known = exported()
    used = re.findall(r"\b(podsvid_\w+)(?:\{([^}]*)\})?", expression)
    assert used or "up{" in expression
    for name, selector in used:
        assert name in known
        labels = set(re.findall(r"(\w+)\s*[!=]~?", selector))
        assert labels <= known[name] | TARGET
    for group in re.findall(r"by \(([^)]*)\)", expression):
        everywhere = set().union(*(known[name] for name, _ in used)) | TARGET
        assert set(re.split(r",\s*", group)) <= everywhere


def test_what_a_signer_counts_is_seen_by_somebody() -> None:
    """On the dashboard or by an alert; what is for looking up only is named here."""
    seen = " ".join(expressions())
    looked_up = {"podsvid_signer_build_info", "podsvid_signer_authority_steps", "podsvid_signer_http_refused"}
    families = {each.name for each in SignerMetrics().registry.collect()}
    assert {each for each in families if each not in seen} == looked_up


def test_each_way_back_of_an_older_secret_is_counted_from_the_start() -> None:
    """An increase from nothing is none to Prometheus, and its alert would not be raised."""
    rotation = (FOLDER.parents[3] / "signer" / "authority" / "rotation.py").read_text(encoding="utf-8")
    families = {each.name: each.samples for each in SignerMetrics().registry.collect()}
    samples = families["podsvid_signer_rollbacks_detected"]
    shown = {each.labels["how"] for each in samples if each.name.endswith("_total")}
    assert shown == set(re.findall(r'rolled_back\("(\w+)"\)', rotation)) != set()


def test_every_alert_has_a_runbook() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    text = (FOLDER.parents[3] / "docs" / "operations.md").read_text()
    assert [rule["alert"] for group in rules for rule in group["rules"]] == re.findall(r"^### (\w+)$", text, re.M)


def test_states_that_are_asked_for_exist() -> None:
    for expression in expressions():
        for text in re.findall(r'state[!=]~?"([^"]*)"', expression):
            assert set(text.split("|")) <= set(STATES)


def test_no_label_names_a_pod_or_a_volume() -> None:
    assert not {"pod", "volume", "namespace", "spiffe_id", "volume_id"} & set().union(*exported().values())


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] in ("row", "stat", "timeseries")
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "node"]
