"""What `podsvid explain` makes of answers that disagree, come late, or come from pods that are about to go."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.pb import node_admin_pb2
from podsvid import by_kubeconfig
from podsvid.output import to_json
from signer.pb import admin_pb2
from tests.node.test_explain import IDENTITY, UID, Cluster, event, explain, on_node, podsvid_pod, policy, serving

DENIED = to_json(admin_pb2.ExplainResponse(outcome="refused: POD_DENIED: by policy", policy="no"))
NOWHERE = to_json(node_admin_pb2.ExplainResponse(authority="the signer at x:1, which answers"))


def volumes(*states: str) -> str:
    found = [
        node_admin_pb2.Volume(namespace="shop", pod="cart-0", pod_uid=UID, state=each, spiffe_id=IDENTITY)
        for each in states
    ]
    return to_json(node_admin_pb2.ExplainResponse(volumes=found, authority="x"))


@pytest.mark.parametrize(
    ("signer", "agent", "code"),
    [
        (policy(), volumes("ok"), 0),
        (policy(), volumes("ok", "ok"), 0),
        # One volume that is not well is enough, wherever it stands.
        (policy(), volumes("ok", "expired"), 3),
        (policy(), volumes("unwritten", "ok"), 3),
        (policy(), NOWHERE, 3),
        (policy(), "", 3),
        (DENIED, volumes("ok"), 3),
        ("", volumes("ok"), 3),
        (policy().replace("allowed", "allowed, mostly"), volumes("ok"), 3),
    ],
)
def test_all_is_well_when_policy_allows_it_and_every_volume_is_well(
    tmp_path: Path, signer: str, agent: str, code: int
) -> None:
    cluster = Cluster(execs={"signer": (signer, ""), "agent": (agent, "")})
    with serving(cluster, tmp_path) as config:
        assert explain(config).returncode == explain(config, "--output", "json").returncode == code


@pytest.mark.parametrize("output", ["text", "json"])
def test_an_identity_that_differs_is_noted_in_every_form(tmp_path: Path, output: str) -> None:
    cluster = Cluster()
    other = node_admin_pb2.Volume(namespace="shop", pod="cart-0", state="ok", spiffe_id="spiffe://example.org/b")
    third = node_admin_pb2.Volume(namespace="shop", pod="cart-0", state="ok", spiffe_id="spiffe://example.org/a")
    waiting = node_admin_pb2.Volume(namespace="shop", pod="cart-0", state="waiting")
    cluster.execs["agent"] = (to_json(node_admin_pb2.ExplainResponse(volumes=[other, third, waiting])), "")
    with serving(cluster, tmp_path) as config:
        told = explain(config, "--output", output).stdout
    assert "the node has an SVID for spiffe://example.org/a, spiffe://example.org/b, minted before" in told
    assert f"the next renewal brings {IDENTITY} (podsvid node rotate: now)" in told


@pytest.mark.parametrize("agent", [on_node(), NOWHERE, ""])
def test_what_agrees_or_is_not_known_is_no_contradiction(tmp_path: Path, agent: str) -> None:
    cluster = Cluster()
    cluster.execs["agent"] = (agent, "")
    with serving(cluster, tmp_path) as config:
        assert json.loads(explain(config, "--output", "json").stdout)["notes"] == []
    cluster.execs.update(agent=(on_node(), ""), signer=("", ""))
    with serving(cluster, tmp_path) as config:
        assert json.loads(explain(config, "--output", "json").stdout)["notes"] == []


def test_nothing_that_others_wrote_can_draw_on_the_terminal(tmp_path: Path) -> None:
    cluster = Cluster(events=[event("Failed\x1b[1mMount", "podsvid\x1b[2J", "podsvid", "2026-11-24T12:00:02Z")])
    cluster.execs["agent"] = (on_node().replace(IDENTITY, "spiffe://example.org/\\u001b[2Ja"), "")
    cluster.execs["signer"] = (policy(), "")
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert "note: the node has an SVID" in told.stdout
    assert all(each.isprintable() for each in told.stdout if each != "\n"), told.stdout
    cluster.execs = {"signer": ("", "X\x1b]0;title\x07"), "agent": ("", "Y\x9b2J")}
    with serving(cluster, tmp_path) as config:
        told = explain(config)
    assert "the signer's view is missing: X" in told.stdout
    assert "the node's view is missing: Y" in told.stdout
    assert all(each.isprintable() for each in told.stdout if each != "\n"), told.stdout


def test_the_pod_that_is_asked_is_one_that_stays_and_a_ready_one_where_there_is_one(tmp_path: Path) -> None:
    leaving = podsvid_pod("signer-leaving", "signer", "n1")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    finished = podsvid_pod("signer-finished", "signer", "n1", phase="Succeeded")
    starting = podsvid_pod("signer-starting", "signer", "n1", ready="False")
    ready = podsvid_pod("signer-ready", "signer", "n2")
    agent = podsvid_pod("agent-n1", "agent", "n1")

    def asked(*pods: dict[str, Any]) -> list[str]:
        cluster = Cluster(podsvid=[*pods, agent])
        with serving(cluster, tmp_path) as config:
            explain(config)
        return [name for name, container, _ in cluster.seen if container == "signer"]

    assert asked(leaving, finished, starting, ready) == ["signer-ready"]
    assert asked(leaving, finished, starting) == ["signer-starting"]
    assert asked(leaving, finished) == []


def test_an_agent_of_another_node_is_never_asked(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.podsvid = [each for each in cluster.podsvid if each["metadata"]["name"] != "agent-n1"]
    with serving(cluster, tmp_path) as config:
        found = json.loads(explain(config, "--output", "json").stdout)
    assert found["on_node"] is None
    assert "no agent runs on node n1" in found["missing"]["on_node"]
    assert {container for _, container, _ in cluster.seen} == {"signer"}


def test_events_are_the_newest_ten_of_podsvid_and_of_its_mounts_in_order(tmp_path: Path) -> None:
    events = [event("FailedMount", f"m{n:02}", "kubelet", f"2026-11-24T12:00:{n:02}Z") for n in range(12)]
    events += [
        event("VolumeConditionAbnormal", "abnormal", "kubelet", "2026-11-24T12:00:30Z"),
        event("IdentityRefused", "refused", "podsvid.io/signer", "2026-11-24T12:00:31Z"),
        event("Pulled", "of no concern", "kubelet", "2026-11-24T12:00:32Z"),
        event("BackOff", "nor this", "", "2026-11-24T12:00:33Z"),
    ]
    with serving(Cluster(events=events[::-1]), tmp_path) as config:
        found = json.loads(explain(config, "--output", "json").stdout)["events"]
    assert [each["message"] for each in found] == [*(f"m{n:02}" for n in range(4, 12)), "abnormal", "refused"]
    assert found[-1] == {"at": "2026-11-24T12:00:31Z", "reason": "IdentityRefused", "message": "refused", "count": "2"}


def test_an_event_that_happens_again_and_again_counts_with_its_last_time(tmp_path: Path) -> None:
    series = event("FailedMount", "again", "kubelet", "2026-11-24T12:00:00Z")
    series["series"] = {"count": 7, "lastObservedTime": "2026-11-24T12:30:00.000000Z"}
    timeless = event("FailedMount", "first", "kubelet", "2026-11-24T12:00:00Z")
    timeless.update(lastTimestamp=None, count=None, eventTime="2026-11-24T12:10:00.000000Z")
    with serving(Cluster(events=[series, timeless]), tmp_path) as config:
        found = json.loads(explain(config, "--output", "json").stdout)["events"]
    assert [(each["message"], each["at"], each["count"]) for each in found] == [
        ("first", "2026-11-24T12:10:00Z", "1"),
        ("again", "2026-11-24T12:30:00Z", "7"),
    ]


@pytest.mark.parametrize("pod", [[], {"metadata": 5}, {"spec": {"volumes": "none"}}])
def test_what_is_no_pod_is_said_to_be_none(tmp_path: Path, pod: Any) -> None:
    with serving(Cluster(pod=pod), tmp_path) as config:
        told = explain(config)
    assert told.returncode == 1
    assert "answers with no pod (" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_pod_that_does_not_answer_in_time_is_no_empty_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        """An exec whose command goes on for ever."""

        def __init__(self) -> None:
            self.closed = False

        def update(self, timeout: float) -> None:
            assert 0 < timeout <= by_kubeconfig.EXEC_SECONDS

        def peek_stdout(self) -> str:
            return ""

        def peek_stderr(self) -> str:
            return ""

        def is_open(self) -> bool:
            return not self.closed

        def read_stdout(self, timeout: float) -> str:
            return policy()

        def read_stderr(self, timeout: float) -> str:
            return ""

        def close(self) -> None:
            self.closed = True

    calls: list[Late] = []

    def begun(*_: Any, **__: Any) -> Late:
        calls.append(Late())
        return calls[-1]

    monkeypatch.setattr(by_kubeconfig, "websocket_call", begun)
    monkeypatch.setattr(by_kubeconfig, "EXEC_SECONDS", 0.05)
    with serving(Cluster(), tmp_path) as config:
        told = explain(config, "--output", "json")
    assert told.returncode == 3
    found = json.loads(told.stdout)
    assert found["policy"] is None
    assert found["missing"]["policy"] == "pod signer-1 did not answer within 0.05 s; look at its log"
    assert all(each.closed for each in calls)
