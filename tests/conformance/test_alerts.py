"""The shipped alert rules under Prometheus' own evaluation, over what the exporters say: each fires, or is silent."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import Metrics as AgentMetrics
from signer.metrics import Metrics as SignerMetrics

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "deploy" / "chart" / "podsvid" / "monitoring" / "alerts.yaml"
STEP = 30
MINUTES = 60
# Many, and no rule asks for them.
UNUSED = (
    "podsvid_publish_duration_seconds_bucket",
    "podsvid_signer_mint_duration_seconds_bucket",
)


@pytest.fixture(scope="session")
def promtool(go_tools: Mapping[str, Path]) -> Path:
    """Prometheus' rule checker, at the version that go.mod pins."""
    return go_tools["promtool"]


@dataclass
class Fleet:
    """One agent and two signers as Prometheus sees them, and what happens to them. Time starts at 0."""

    now: float = 0.0
    agent: AgentMetrics = field(default_factory=AgentMetrics)
    signers: tuple[SignerMetrics, SignerMetrics] = field(default_factory=lambda: (SignerMetrics(), SignerMetrics()))
    states: dict[str, int] = field(default_factory=lambda: {"ok": 20})
    registered: bool = True
    away: float = 0.0
    clock_behind: float = 0.0
    clock_ahead: float = 0.0
    apart: int = 0
    leading: list[bool] = field(default_factory=lambda: [True, False])
    unacknowledged: int = 0
    lag: float = 0.002
    contact_lost_at: float | None = None
    # The authority lives 30 days and is replaced at half of it.
    authority_left: float = 20 * 86400.0
    # Without a CA above, and with a new authority that is not wanted.
    upstream_left: float | None = None
    wanted_at: float = 0.0
    roots_refused: bool = False
    key_store_down: bool = False
    federation_age: float = 60.0
    certificate_waits: float = 0.0
    public_trouble: bool = False
    public_left: float = 0.0
    up: dict[str, bool] = field(default_factory=lambda: {"agent": True, "signer-0": True, "signer-1": True})

    def __post_init__(self) -> None:
        self.agent.built("test")
        self.agent.watch(lambda: 20.0, lambda: self.now + 1800, lambda: self.states)
        self.agent.watch_registration("csi.podsvid.io", lambda: self.registered)
        self.agent.watch_signer(lambda: self.away)
        self.agent.watch_clock(lambda: self.clock_behind)
        self.agent.watch_sockets(lambda: {"quarantine": float(self.apart), "closed": 0.0})
        for number, signer in enumerate(self.signers):
            signer.built("test")
            signer.watch(
                agents=lambda: 1.0,
                unacknowledged=lambda: float(self.unacknowledged),
                leading=lambda number=number: float(self.leading[number]),  # type: ignore[misc]
                authority_ends=lambda: self.now + self.authority_left,
                authority_life=lambda: 30 * 86400.0,
                upstream_ends=lambda: self.now + self.upstream_left if self.upstream_left is not None else 0.0,
                authority_wanted=lambda: self.wanted_at,
                roots_refused=lambda: float(self.roots_refused),
                contact=lambda: self.now if self.contact_lost_at is None else self.contact_lost_at,
                services_left_out=lambda: 0.0,
                pods_left_out=lambda: 0.0,
                clock_ahead=lambda: self.clock_ahead,
                key_store_down=lambda: float(self.key_store_down),
            )
            signer.watch_federation(lambda: {"partner.test": self.federation_age})
            signer.watch_certificates(lambda: 1.0, lambda: self.certificate_waits)
            signer.watch_public(
                "bundle",
                lambda: float(self.public_trouble),
                lambda: self.now + self.public_left if self.public_left else 0.0,
            )

    def step(self) -> None:
        """What goes on all the time, a publish and a mint now and then."""
        self.agent.published("ok", 0.01)
        self.agent.rotated("x509", "ok")
        self.signers[0].minted("x509", "ok", 0.002)
        for signer in self.signers:
            signer.lagged(self.lag)

    def series(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for metrics in (self.agent, *self.signers):
            metrics.refresh()
        for name, job, registry in (
            ("agent", "podsvid-agent", self.agent.registry),
            ("signer-0", "podsvid-signer", self.signers[0].registry),
            ("signer-1", "podsvid-signer", self.signers[1].registry),
        ):
            target = {"job": job, "instance": name, "node": "node-1"}
            found[_series("up", target)] = float(self.up[name])
            if self.up[name]:
                found |= _scrape(registry, target)
        return found


def _scrape(registry: CollectorRegistry, target: dict[str, str]) -> dict[str, float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        _series(sample.name, {**sample.labels, **target}): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created") and sample.name not in UNUSED
    }


def _series(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def firing(promtool: Path, folder: Path, happen: Callable[[Fleet, float], None]) -> set[str]:
    """Play an hour, `happen` at every scrape; the alerts that Prometheus has firing at its end."""
    fleet, samples = Fleet(), []
    for number in range(MINUTES * 60 // STEP + 1):
        fleet.now = float(number * STEP)
        fleet.step()
        happen(fleet, fleet.now)
        samples.append(fleet.series())
    names = sorted({name for each in samples for name in each})
    series = [
        {"series": name, "values": " ".join(f"{each[name]:.10g}" if name in each else "_" for each in samples)}
        for name in names
    ]
    known = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    document: dict[str, Any] = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{STEP}s",
        "tests": [
            {
                "interval": f"{STEP}s",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{MINUTES}m",
                        "exp_samples": [],
                    }
                ],
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run([str(promtool), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    # It says what it got in the place of nothing.
    found = set(re.findall(r'alertname="(\w+)"', done.stdout + done.stderr))
    assert (done.returncode == 0) == (not found), done.stdout + done.stderr
    assert found <= set(known)
    return found


def test_rules_are_well_formed(promtool: Path) -> None:
    done = subprocess.run([str(promtool), "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_healthy_fleet_is_silent(promtool: Path, tmp_path: Path) -> None:
    assert firing(promtool, tmp_path, lambda fleet, now: None) == set()


def _set(**values: Any) -> Callable[[Fleet, float], None]:
    def happen(fleet: Fleet, now: float) -> None:
        if now >= 600:
            for name, value in values.items():
                setattr(fleet, name, value)

    return happen


def _refusals(fleet: Fleet, now: float) -> None:
    for _ in range(5):
        fleet.signers[1].minted("x509", "POLICY_DENIED", 0.002)


def _publish_failures(fleet: Fleet, now: float) -> None:
    fleet.agent.published("identity_unavailable", 30.0)


def _away(fleet: Fleet, now: float) -> None:
    fleet.away = max(now - 600, 0.0)


def _strangers(fleet: Fleet, now: float) -> None:
    for kind in ("silent", "unauthenticated"):
        for _ in range(STEP):
            fleet.signers[0].turned_away(kind)


def _put_back(fleet: Fleet, now: float) -> None:
    if now == MINUTES * 60 - 600:
        fleet.signers[0].rolled_back("replaced")


def _workers_end(fleet: Fleet, now: float) -> None:
    if now % 120 == 0:
        fleet.signers[0].worker_ended()


CONDITIONS: dict[str, Callable[[Fleet, float], None]] = {
    "PodsvidSvidExpired": _set(states={"ok": 19, "expired": 1}),
    "PodsvidRotationFailing": _set(states={"ok": 18, "retrying": 1, "unwritten": 1}),
    "PodsvidPublishFailing": _publish_failures,
    "PodsvidAgentNotRegistered": _set(registered=False),
    "PodsvidAgentDown": _set(up={"agent": False, "signer-0": True, "signer-1": True}),
    "PodsvidSignerAway": _away,
    "PodsvidNodeClock": _set(clock_behind=-90.0),
    "PodsvidSignerClock": _set(clock_ahead=-90.0),
    "PodsvidSignerDown": _set(up={"agent": True, "signer-0": False, "signer-1": False}),
    "PodsvidSignerWithoutLeader": _set(leading=[False, False]),
    "PodsvidSignerTwoLeaders": _set(leading=[True, True]),
    "PodsvidAuthorityNotRotated": _set(authority_left=10 * 86400.0),
    "PodsvidUpstreamEnds": _set(upstream_left=6 * 86400.0),
    "PodsvidAuthorityWanted": _set(wanted_at=60.0),
    "PodsvidUpstreamRootsRefused": _set(roots_refused=True),
    "PodsvidFederationStale": _set(federation_age=4 * 3600.0),
    "PodsvidPodCertificatesWait": _set(certificate_waits=240.0),
    "PodsvidKeyStoreUnavailable": _set(key_store_down=True),
    "PodsvidSignerWorkersEnd": _workers_end,
    "PodsvidPublicListener": _set(public_trouble=True),
    "PodsvidPublicCertificateEnds": _set(public_left=2 * 86400.0),
    "PodsvidAgentsWithoutTrustBundle": _set(unacknowledged=1),
    "PodsvidApiServerLost": _set(contact_lost_at=600.0),
    "PodsvidSecretPutBack": _put_back,
    "PodsvidSignerSlow": _set(lag=0.5),
    "PodsvidStrangersAtSigner": _strangers,
    "PodsvidMintsRefused": _refusals,
    "PodsvidPodsApart": _set(apart=1),
}


def test_every_alert_has_a_condition() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == set(CONDITIONS)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("alert", CONDITIONS)
def test_each_fires_in_its_condition_and_no_other_does(promtool: Path, tmp_path: Path, alert: str) -> None:
    assert firing(promtool, tmp_path, CONDITIONS[alert]) == {alert}


def test_refusals_of_agents_and_of_proxies_are_not_one_sum(promtool: Path, tmp_path: Path) -> None:
    """Few of each are no trouble of either; and who is told of many has to know whose they are."""

    def few(fleet: Fleet, now: float) -> None:
        for kind in ("x509", "istio"):
            fleet.signers[1].minted(kind, "POLICY_DENIED", 0.002)

    def many(fleet: Fleet, now: float) -> None:
        for _ in range(5):
            fleet.signers[1].minted("istio", "POLICY_DENIED", 0.002)

    assert firing(promtool, tmp_path, few) == set()
    assert firing(promtool, tmp_path, many) == {"PodsvidMintsRefused"}


def test_a_secret_that_was_put_back_while_no_signer_ran_fires(promtool: Path, tmp_path: Path) -> None:
    """Then it is counted before the first scrape, and never increases."""

    def happen(fleet: Fleet, now: float) -> None:
        fleet.up["signer-1"] = now >= 3000
        if now == 2990 - 2990 % STEP:
            fleet.signers[1].rolled_back("restored")

    assert firing(promtool, tmp_path, happen) == {"PodsvidSecretPutBack"}


# That a Secret was put back is no state that ends.
@pytest.mark.parametrize(
    "alert",
    [
        each
        for each in CONDITIONS
        if each not in ("PodsvidMintsRefused", "PodsvidSecretPutBack", "PodsvidSignerWorkersEnd")
    ],
)
def test_a_moment_of_it_fires_nothing(promtool: Path, tmp_path: Path, alert: str) -> None:
    """Two scrapes, and it is over."""
    ever = CONDITIONS[alert]

    def happen(fleet: Fleet, now: float) -> None:
        fresh = Fleet()
        if 3000 <= now < 3060:
            ever(fleet, now)
        else:
            for name in (
                "states",
                "registered",
                "away",
                "clock_behind",
                "clock_ahead",
                "apart",
                "leading",
                "unacknowledged",
                "lag",
                "contact_lost_at",
                "wanted_at",
                "upstream_left",
                "certificate_waits",
                "key_store_down",
                "public_trouble",
                "public_left",
                "up",
            ):
                setattr(fleet, name, getattr(fresh, name))
            fleet.authority_left = fresh.authority_left

    assert firing(promtool, tmp_path, happen) == set()
