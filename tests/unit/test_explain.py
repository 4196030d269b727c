"""`podsvid explain` over a cluster that answers what a test decides: who is asked, what is well, what contradicts."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from podsvid import authority, explain
from podsvid.authority import here
from podsvid.by_kubeconfig import KubeconfigCluster, NotTold, SeenPod
from podsvid.explain import Explained, explained
from podsvid.outcome import WrongUsage
from podsvid.output import console
from podsvid.sockets import SocketAbsent
from podsvid.waiting import Waiting

WEB, OLD = "spiffe://example.org/web", "spiffe://example.org/old"
POD = SeenPod("shop", "cart-0", "u", "n1", "Running", ("csi.podsvid.io",))
EVENT = {"at": "t", "reason": "FailedMount", "count": "2", "message": "m"}


class FakeCluster:
    """Implements what is used of KubeconfigCluster."""

    podsvid_namespace = "podsvid"
    host = "https://api"

    def __init__(self, pod: SeenPod = POD) -> None:
        self.the_pod = pod
        self.running_pods: dict[str, str | None] = {"signer": "signer-1", "agent": "agent-1"}
        self.answers: dict[str, Any] = {
            "signer": {"outcome": "allowed", "spiffe_id": WEB},
            "agent": {"volumes": [{"state": "ok", "spiffe_id": WEB}]},
        }
        self.the_events: Any = [EVENT]
        self.asked: list[tuple[str, str | None]] = []
        self.ran: list[tuple[str, str, list[str]]] = []

    def pod(self, namespace: str, name: str) -> SeenPod:
        assert (namespace, name) == ("shop", "cart-0")
        return self.the_pod

    def running(self, component: str, node: str | None = None) -> str | None:
        self.asked.append((component, node))
        return self.running_pods[component]

    def signer(self) -> str:
        # What it says of one that does not run is part of what is told.
        this: Any = self
        return KubeconfigCluster.signer(this)

    def run(self, pod: str, container: str, command: Sequence[str]) -> Any:
        self.ran.append((pod, container, list(command)))
        answer = self.answers[container]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def events(self, pod: SeenPod) -> Any:
        if isinstance(self.the_events, Exception):
            raise self.the_events
        return self.the_events


def ask(cluster: FakeCluster) -> Explained:
    given: Any = cluster
    return explained(given, "shop", "cart-0", Waiting(10.0))


def test_the_signer_and_the_agent_of_the_pods_node_are_asked_and_nobody_else() -> None:
    cluster = FakeCluster()
    found = ask(cluster)
    assert cluster.asked == [("signer", None), ("agent", "n1")]
    assert [(pod, container, command[:3]) for pod, container, command in cluster.ran] == [
        ("signer-1", "signer", ["podsvid", "explain", "shop/cart-0"]),
        ("agent-1", "agent", ["podsvid", "node", "explain"]),
    ]
    assert "--socket" in cluster.ran[0][2], "it would ask itself by exec for ever"
    assert found.well
    assert found.to_json() == {
        "pod": "shop/cart-0",
        "node": "n1",
        "policy": cluster.answers["signer"],
        "on_node": cluster.answers["agent"],
        "events": [EVENT],
        "notes": [],
        "missing": {},
    }


@pytest.mark.parametrize(
    ("signer", "agent"),
    [
        ({"outcome": "refused: POLICY_DENIED"}, None),
        ({"outcome": ""}, None),
        (NotTold("no"), None),
        (None, {"volumes": []}),
        (None, {}),
        (None, {"volumes": [{"state": "ok", "spiffe_id": WEB}, {"state": "expired", "spiffe_id": WEB}]}),
        (None, {"volumes": [{"state": "retrying", "spiffe_id": WEB}]}),
        (None, NotTold("no")),
    ],
)
def test_what_is_not_well_is_not_called_so(signer: Any, agent: Any) -> None:
    cluster = FakeCluster()
    cluster.answers |= {name: given for name, given in (("signer", signer), ("agent", agent)) if given is not None}
    assert not ask(cluster).well


OK, RETRYING = {"state": "ok", "spiffe_id": WEB}, {"state": "retrying", "state_reason": "X_AWAY", "spiffe_id": WEB}
REFUSED = [
    {"reason": "IDENTITY_UNAVAILABLE", "message": "AN_OLDER: one"},
    {"reason": "IDENTITY_UNAVAILABLE", "message": "AGENT_TOKEN_INVALID: agent token refused"},
]


@pytest.mark.parametrize(
    ("on_node", "lacking"),
    [
        ({"volumes": [OK], "publish_problems": []}, ""),
        ({"volumes": [], "publish_problems": REFUSED}, "a volume is refused on its node: AGENT_TOKEN_INVALID"),
        # Of two volumes one is there: that was "all is well".
        ({"volumes": [OK], "publish_problems": REFUSED}, "a volume is refused on its node: AGENT_TOKEN_INVALID"),
        (
            {"volumes": [OK], "publish_problems": [{"reason": "INVALID_REQUEST", "message": "no such key"}]},
            "a volume is refused on its node: INVALID_REQUEST",
        ),
        ({"volumes": [RETRYING, OK, RETRYING]}, "a volume is retrying X_AWAY"),
    ],
)
def test_the_first_line_says_whether_the_pod_has_what_it_may_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_node: dict[str, Any], lacking: str
) -> None:
    cluster = FakeCluster()
    cluster.answers["agent"] = on_node
    monkeypatch.setattr("podsvid.by_kubeconfig.KubeconfigCluster", lambda *_: cluster)
    assert explain.run(parsed("shop/cart-0", "text")) == (3 if lacking else 0)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"pod shop/cart-0: {WEB}{f' ({lacking})' if lacking else ''}"
    cluster.answers["signer"] = {"outcome": "refused: POLICY_DENIED: no"}
    assert explain.run(parsed("shop/cart-0", "text")) == 3
    assert capsys.readouterr().out.splitlines()[:2] == [
        "pod shop/cart-0: refused: POLICY_DENIED: no",
        "see docs/troubleshooting.md#policy_denied",
    ]


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (SeenPod("shop", "cart-0", "u", "n1", "Running", ()), "the pod has no csi volume"),
        (SeenPod("shop", "cart-0", "u", "", "Pending", ("d",)), "not scheduled to a node yet"),
        (SeenPod("shop", "cart-0", "u", "n1", "Succeeded", ("d",)), r"has finished \(Succeeded\)"),
        (SeenPod("shop", "cart-0", "u", "n1", "Failed", ("d",)), r"has finished \(Failed\)"),
    ],
)
def test_where_no_agent_can_know_none_is_asked(pod: SeenPod, said: str) -> None:
    cluster = FakeCluster(pod)
    found = ask(cluster)
    assert ("agent", "n1") not in cluster.asked
    assert re.search(said, found.missing["on_node"])
    assert found.policy == cluster.answers["signer"]
    assert not found.well


CERTIFIED = SeenPod("shop", "cart-0", "u", "n1", "Running", (), certified=True)


def test_of_a_pod_whose_certificate_kubelet_asks_for_no_agent_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = FakeCluster(CERTIFIED)
    found = ask(cluster)
    assert cluster.asked == [("signer", None)]
    assert found.missing == {}
    assert found.well
    explain._show(found, console(), every=False)
    assert "of signer podsvid.io/spiffe" in capsys.readouterr().out


@pytest.mark.parametrize("reason", ["PodCertificatePending", "Denied"])
def test_what_a_pods_certificate_waits_for_is_said(reason: str) -> None:
    cluster = FakeCluster(replace(CERTIFIED, phase="Pending"))
    cluster.the_events = [EVENT, {**EVENT, "reason": reason, "message": "POLICY_UNUSABLE: that"}]
    found = ask(cluster)
    assert not found.well
    assert found.lacking == "its certificate is not there: POLICY_UNUSABLE: that"
    cluster.the_pod = CERTIFIED
    assert ask(cluster).well


@pytest.mark.parametrize("component", ["signer", "agent"])
def test_a_component_that_does_not_run_is_named_and_the_rest_is_told(component: str) -> None:
    cluster = FakeCluster()
    cluster.running_pods[component] = None
    found = ask(cluster)
    assert set(found.missing) == {"policy" if component == "signer" else "on_node"}
    assert f"podsvid-{component}" in "".join(found.missing.values())
    assert (found.policy is None, found.volumes is None) == (component == "signer", component == "agent")


def test_events_that_cannot_be_had_cost_nothing_else() -> None:
    cluster = FakeCluster()
    cluster.the_events = NotTold("events may not be listed")
    found = ask(cluster)
    assert found.missing == {"events": "events may not be listed"}
    assert found.events == []
    assert found.well


@pytest.mark.parametrize(
    ("policy", "held", "note"),
    [
        ({"outcome": "allowed", "spiffe_id": WEB}, [WEB], None),
        ({"outcome": "allowed", "spiffe_id": WEB}, [WEB, ""], None),
        ({"outcome": "allowed", "spiffe_id": WEB}, [OLD], f"the next renewal brings {WEB}"),
        ({"outcome": "allowed", "spiffe_id": WEB}, [WEB, OLD], f"an SVID for {OLD}, minted before"),
        ({"outcome": "refused: X"}, [OLD], "its renewal will be refused"),
        ({"outcome": "refused: X"}, [], None),
    ],
)
def test_an_identity_that_policy_does_not_give_is_pointed_at(
    policy: dict[str, str], held: list[str], note: str | None
) -> None:
    volumes = {"volumes": [{"state": "ok", "spiffe_id": each} for each in held]}
    notes = Explained("shop/cart-0", "n1", policy, volumes, [], {}).notes
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def parsed(pod: str, output: str = "json") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return parser.parse_args([pod, "--output", output, "--kubeconfig", "given"])


@pytest.mark.parametrize("pod", ["cart-0", "/cart-0", "shop/", "/", ""])
def test_a_pod_without_both_names_is_no_pod(pod: str) -> None:
    with pytest.raises(WrongUsage, match="NAMESPACE/POD"):
        explain.run(parsed(pod))


@pytest.mark.parametrize("output", ["json", "text"])
@pytest.mark.parametrize("well", [True, False])
def test_the_exit_code_says_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, well: bool
) -> None:
    cluster = FakeCluster()
    cluster.the_events = [EVENT | {"message": "\x1b[2J\rall is well"}]
    if not well:
        cluster.answers["agent"] = NotTold("\x1b]0;title\x07")
    monkeypatch.setattr("podsvid.by_kubeconfig.KubeconfigCluster", lambda *_: cluster)
    assert explain.run(parsed("shop/cart-0", output)) == (0 if well else 3)
    told = capsys.readouterr().out
    assert WEB in told
    assert all(each.isprintable() for each in told if each != "\n"), "somebody else drew on the terminal"
    if output == "json":
        assert json.loads(told)["events"] == cluster.the_events
    else:
        assert "FailedMount (x2)" in told
        assert ("the node's view is missing: " in told) is not well


def test_who_asks_by_exec_finds_the_signers_socket_wherever_its_container_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual, own = "/run/podsvid-signer/admin.sock", "/dev/shm/podsvid-signer/admin.sock"
    monkeypatch.delenv("PODSVID_ADMIN_SOCKET", raising=False)
    assert here() == usual
    monkeypatch.setenv("PODSVID_ADMIN_SOCKET", own)
    assert here() == here(usual) == own
    assert here("/elsewhere") == "/elsewhere"
    parsed = argparse.Namespace(pod="shop/cart-0", socket=usual, output="json", timeout=60.0)
    with pytest.raises(SocketAbsent, match=own):
        authority.explain(parsed)
    # As the console, the doctor and `oidc probe` ask.
    with pytest.raises(SocketAbsent, match=own):
        authority.run(argparse.Namespace(action="show", socket=usual, output="json", timeout=60.0))


def test_a_pod_of_a_mesh_without_a_volume_is_well_where_the_signer_is_its_proxies_ca(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = FakeCluster(replace(POD, drivers=()))
    # A signer of before, or one that is not their CA.
    assert not ask(cluster).well
    assert "no csi volume" in ask(cluster).missing["on_node"]
    cluster.answers["signer"]["proxy_ttl"] = "1h"
    found = ask(cluster)
    assert found.well
    assert found.missing == {}
    explain._show(found, console(), every=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "Istio's proxies in it get certificates of that identity, which live 1h at most" in said
    assert "it has no csi volume: nothing is on its node but" in said
    assert "subject" not in said
    cluster.answers["signer"]["subject"] = "CN=cart@shop"
    explain._show(ask(cluster), console(), every=False)
    assert "subject of its certificates: CN=cart@shop; a ztunnel's has none\n" in capsys.readouterr().out
    cluster.answers["signer"]["outcome"] = "refused: POLICY_DENIED: no"
    assert not ask(cluster).well
    # One with a volume has to have it as well.
    both = FakeCluster()
    both.answers["signer"]["subject"] = "CN=cart@shop"
    explain._show(ask(both), console(), every=False)
    assert "subject of its certificates: CN=cart@shop\n" in capsys.readouterr().out
    both.answers["signer"]["proxy_ttl"] = "1h"
    both.answers["agent"] = {"volumes": []}
    assert not ask(both).well
