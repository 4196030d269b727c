"""`podsvid migrate csi-driver-spiffe`: its chart's values and its workloads' arguments as values of podsvid's chart."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from podsvid.cli import main
from podsvid.migrate.csi_driver_spiffe import DEFAULTS, migrate
from podsvid.migrate.fields import Verdict
from podsvid.migrate.report import Report
from podsvid.migrate.sources import UnusableDocument
from tests.shapes import described
from tests.support import ROOT
from tests.unit.podsvid.migrating import document

CHART = ROOT / "deploy" / "chart" / "podsvid"


def became(*values: Any) -> tuple[dict[str, Any], Report]:
    return migrate([document(each) for each in values])


def said(report: Report) -> dict[str, Verdict]:
    return {each.source: each.verdict for each in report.findings}


def in_chart(values: Any, there: Any, path: str = "") -> list[str]:
    """Values that the chart does not have."""
    if not isinstance(values, dict) or not isinstance(there, dict) or not there:
        return []
    lost = [f"{path}.{key}" for key in values if key not in there]
    return lost + [
        each for key in values if key in there for each in in_chart(values[key], there[key], f"{path}.{key}")
    ]


def test_values_that_have_a_place() -> None:
    values, report = became(
        {
            "app": {
                "trustDomain": "example.org",
                "certificateRequestDuration": "2h30m",
                "approver": {"metrics": {"service": {"servicemonitor": {"enabled": True, "interval": "20s"}}}},
            },
            "imagePullSecrets": [{"name": "pull"}],
            "nodeSelector": {"pool": "a"},
            "affinity": {"nodeAffinity": {}},
            "openshift": {"securityContextConstraint": {"enabled": True}},
        }
    )
    assert values == {
        "trustDomain": "example.org",
        "drivers": ["csi.podsvid.io", "spiffe.csi.cert-manager.io"],
        "ttl": {"x509": "2h30m"},
        "agent": {"nodeSelector": {"pool": "a"}, "affinity": {"nodeAffinity": {}}},
        "imagePullSecrets": [{"name": "pull"}],
        "openshift": {"enabled": True},
        "monitoring": {"serviceMonitor": {"enabled": True, "interval": "20s", "labels": {"prometheus": "default"}}},
    }
    assert in_chart(values, yaml.safe_load((CHART / "values.yaml").read_text())) == []
    assert said(report) == {"app.issuer": Verdict.LEFT_OUT}


@pytest.mark.parametrize(
    ("path", "value", "verdict"),
    [
        ("driverImage.tag", "v1", Verdict.DIFFERS),
        ("app.logLevel", 4, Verdict.DIFFERS),
        ("app.runtimeIssuanceConfigMap", "issuer", Verdict.LEFT_OUT),
        ("app.extraCertificateRequestAnnotations", "a=b", Verdict.LEFT_OUT),
        ("app.driver.sourceCABundle", "/ca.pem", Verdict.DIFFERS),
        ("app.driver.volumeFileName.key", "key.pem", Verdict.LEFT_OUT),
        ("app.driver.useOwnServiceAccount", True, Verdict.NEEDLESS),
        ("app.driver.csiDataDir", "/data", Verdict.NEEDLESS),
        ("app.approver.replicaCount", 2, Verdict.NEEDLESS),
        ("app.approver.autoApproveNonSPIFFE", True, Verdict.LEFT_OUT),
        ("app.driver.resources", {"limits": {"cpu": 1}}, Verdict.DIFFERS),
        ("tolerations", [{"operator": "Exists"}], Verdict.NEEDLESS),
        ("priorityClassName", "high", Verdict.DIFFERS),
        ("commonLabels", {"a": "b"}, Verdict.DIFFERS),
        ("app.newer", 1, Verdict.LEFT_OUT),
        ("typo", "x", Verdict.LEFT_OUT),
        ("app.certificateRequestDuration", "720h", Verdict.DIFFERS),
        ("app.certificateRequestDuration", "30s", Verdict.DIFFERS),
    ],
)
def test_values_that_have_none_are_told(path: str, value: Any, verdict: Verdict) -> None:
    nested: Any = value
    for part in reversed(path.split(".")):
        nested = {part: nested}
    _, report = became({"app": {"trustDomain": "example.org"}}, nested)
    assert said(report) == {"app.issuer": Verdict.LEFT_OUT, path: verdict}
    assert report.code == 3


def test_lifetimes_stay_where_the_signer_keeps_them() -> None:
    for asked, wanted in (("720h", "1d"), ("30s", "1m"), ("1h0m0s", "1h")):
        values, _ = became({"app": {"trustDomain": "a", "certificateRequestDuration": asked}})
        assert values["ttl"]["x509"] == wanted


def test_a_truth_in_a_label_is_a_text() -> None:
    values, _ = became({"nodeSelector": {"gpu": True, "n": 1}})
    assert values["agent"]["nodeSelector"] == {"gpu": "true", "n": "1"}


def test_an_own_name_of_the_driver_brings_the_profile() -> None:
    values, _ = became({"app": {"trustDomain": "a", "name": "mine.example"}})
    assert values["drivers"] == ["csi.podsvid.io", "mine.example=cert-manager"]


def test_what_helm_prints_and_later_files_go_before() -> None:
    values, report = became({"USER-SUPPLIED VALUES": None, "app": {"trustDomain": "a"}}, {"app": {"trustDomain": "b"}})
    assert values["trustDomain"] == "b"
    assert list(said(report)) == ["app.issuer"]
    values, report = became({"app": {"logLevel": 1}})
    assert values["trustDomain"] == "cluster.local"
    assert said(report)["app.trustDomain"] is Verdict.DIFFERS


def test_arguments_of_its_workloads() -> None:
    arguments = [
        *(
            "--log-level=1",
            "--trust-domain",
            "example.org",
            "--certificate-request-duration=30m",
            "--node-id=$(NODE_ID)",
        ),
        *("--csi-driver-name=spiffe.csi.cert-manager.io", "--issuer-name=x", "--use-own-service-account"),
    ]
    workload = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "driver"},
        "spec": {"template": {"spec": {"containers": [{"args": ["-v=1"]}, {"args": arguments}]}}},
    }
    approver = workload | {"kind": "Deployment"}
    values, report = became({"apiVersion": "v1", "kind": "List", "items": [workload, approver]})
    assert values["trustDomain"] == "example.org"
    assert values["ttl"] == {"x509": "30m"}
    assert said(report) == {"app.issuer": Verdict.LEFT_OUT, "app.driver.useOwnServiceAccount": Verdict.NEEDLESS}


@pytest.mark.parametrize(
    "wrong",
    [
        [1],
        {"app": {"trustDomain": "Not A Domain"}},
        {"app": {"trustDomain": 1}},
        {"app": {"trustDomain": "a", "name": "-x"}},
        {"app": {"trustDomain": "a", "certificateRequestDuration": "soon"}},
        {"apiVersion": "v1", "kind": "Pod"},
        {},
        {"USER-SUPPLIED VALUES": None},
        {"app": {}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {"template": {"spec": {"containers": []}}}},
    ],
)
def test_what_is_none(wrong: Any) -> None:
    with pytest.raises(UnusableDocument):
        became(wrong)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("app: {trustDomain: example.org}\n")
    assert main(["migrate", "csi-driver-spiffe", str(path)]) == 3
    out, told = capsys.readouterr()
    assert yaml.safe_load(out)["trustDomain"] == "example.org"
    assert "app.issuer" in told
    assert main(["migrate", "csi-driver-spiffe", str(path), "-o", "json"]) == 3
    assert described("migrate csi-driver-spiffe", capsys.readouterr().out)["values"] == yaml.safe_load(out)
    assert json.loads(json.dumps(yaml.safe_load(out)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=4)
    | st.sampled_from(["1h", "example.org", "a.b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "enabled", "a"]), inner),
    max_leaves=6,
)
PATHS = (*DEFAULTS, "affinity", "imagePullSecrets", "app", "app.driver", "kind", "apiVersion")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), JSON, max_size=4))
def test_nothing_else_is_raised(given_values: dict[str, Any]) -> None:
    whole: dict[str, Any] = {}
    for path, value in given_values.items():
        at: Any = whole
        *above, last = path.split(".")
        for part in above:
            at = at.setdefault(part, {}) if isinstance(at, dict) else {}
            at = at if isinstance(at, dict) else {}
        at[last] = value
    with suppress(UnusableDocument):
        values, report = became(whole)
        assert in_chart(values, yaml.safe_load((CHART / "values.yaml").read_text())) == []
        assert report.lines()
