"""What the console of a cluster asks podsvid's pods, and what becomes of those that do not answer."""

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from podsvid.authority import CommandFailed
from podsvid.by_kubeconfig import AgentPod, KubeconfigCluster, NotAllowed, NotTold
from podsvid.console import in_cluster
from podsvid.console.beyond import MOST_FEDERATIONS
from podsvid.console.in_cluster import AT_ONCE, MOST_NODES, Round
from podsvid.console.on_node import OnNode
from podsvid.console.picture import Picture
from podsvid.exec_room import MOST_EXECS
from podsvid.waiting import GaveUp
from runtime.aside import begun
from tests.console_rig import PATIENCE

_Kind = TypeVar("_Kind")
LS = ["podsvid", "node", "ls", "--output", "json"]
SHOW = ["podsvid", "authority", "show", "--socket", "/run/podsvid-signer/admin.sock", "--output", "json"]


def agent(number: int, phase: str = "Running") -> AgentPod:
    return AgentPod(f"agent-{number}", f"node-{number}", phase, phase == "Running")


@dataclass
class Execs:
    """`answers` by pod: what it says, or raises."""

    pods: list[AgentPod] = field(default_factory=lambda: [agent(2), agent(1)])
    answers: dict[str, Any] = field(default_factory=dict)
    host: str = "https://there:6443"
    ran: list[tuple[str, str, list[str]]] = field(default_factory=list)
    # Of federations, as the API server has them; or what reading them raises.
    declared: dict[str, Any] | Exception = field(default_factory=lambda: {"items": []})
    reads: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def read(self, path: str, query: dict[str, str], kind: type[_Kind]) -> _Kind:
        self.reads.append((path, query))
        if isinstance(self.declared, Exception):
            raise self.declared
        return msgspec.json.decode(json.dumps(self.declared), type=kind)

    def agents(self) -> Sequence[AgentPod]:
        return self.pods

    def signer(self) -> str:
        if "signer-0" not in self.answers:
            raise CommandFailed("no signer runs")
        return "signer-0"

    def run(self, pod: str, container: str, command: list[str]) -> Any:
        self.ran.append((pod, container, command))
        found = self.answers.get(pod, {"volumes": [{"pod": pod}]})
        if isinstance(found, Exception):
            raise found
        if isinstance(found, threading.Event):
            assert found.wait(PATIENCE)
            return {"volumes": []}
        return found


def looked(looking: Round) -> Picture:
    kept: list[Picture] = []
    looking.look(kept.append)
    return kept[-1]


def test_every_agent_and_a_signer_are_asked_what_the_commands_ask() -> None:
    execs = Execs(answers={"signer-0": {"trust_domain": "example.org"}})
    found = looked(Round(execs))
    assert sorted(execs.ran) == [("agent-1", "agent", LS), ("agent-2", "agent", LS), ("signer-0", "signer", SHOW)]
    assert [(each.node, each.volumes) for each in found.nodes] == [
        ("node-1", ({"pod": "agent-1"},)),
        ("node-2", ({"pod": "agent-2"},)),
    ]
    assert (found.looked, found.authority, found.missing) == (True, {"trust_domain": "example.org"}, {})


def test_who_does_not_answer_keeps_what_it_said_before_and_the_reason_is_said() -> None:
    execs = Execs(answers={"signer-0": {"trust_domain": "example.org"}})
    looking = Round(execs)
    looked(looking)
    execs.answers = {"agent-1": NotTold("you may not exec"), "agent-2": ["no object"]}
    found = looked(looking)
    assert [(each.volumes, each.missing) for each in found.nodes] == [
        (({"pod": "agent-1"},), "you may not exec"),
        (({"pod": "agent-2"},), "the answer of pod agent-2 is none of node ls"),
    ]
    assert (found.authority, found.missing) == ({"trust_domain": "example.org"}, {"authority": "no signer runs"})
    execs.answers = {"signer-0": {"trust_domain": "example.net"}}
    again = looked(looking)
    assert [each.missing for each in again.nodes] == ["", ""]
    assert (again.authority, again.missing) == ({"trust_domain": "example.net"}, {})


def test_an_agent_that_does_not_run_is_not_asked() -> None:
    execs = Execs(pods=[agent(1, "Pending")])
    (node,) = looked(Round(execs)).nodes
    assert "pod agent-1 does not run (Pending)" in node.missing
    assert execs.ran == []


def test_nodes_that_are_gone_are_gone() -> None:
    execs = Execs()
    looking = Round(execs)
    looked(looking)
    execs.pods = [agent(2)]
    assert [each.node for each in looked(looking).nodes] == ["node-2"]


def test_of_very_many_nodes_some_are_left_out_and_that_is_said() -> None:
    found = looked(Round(Execs(pods=[agent(number) for number in range(MOST_NODES + 3)])))
    assert len(found.nodes) == MOST_NODES
    assert found.missing["unasked"] == f"3 of {MOST_NODES + 3} nodes are not asked: the console asks {MOST_NODES}"


def test_without_the_agents_nothing_is_known() -> None:
    class Forbidden(Execs):
        def agents(self) -> Sequence[AgentPod]:
            raise NotTold("you may not list pods")

    with pytest.raises(NotTold, match="list pods"):
        looked(Round(Forbidden()))


def test_when_each_said_what_is_shown_goes_with_it() -> None:
    moment = [datetime(2026, 1, 1, tzinfo=UTC)]
    execs = Execs(pods=[agent(1), agent(2), agent(3, "Pending")], answers={"signer-0": {"trust_domain": "example.org"}})
    looking = Round(execs, now=lambda: moment[0])
    kept: list[Picture] = []
    looking.look(kept.append)
    # Nobody is asked yet, and that is no answer.
    assert [(each.volumes, each.missing, each.seen_at) for each in kept[0].nodes] == [((), "", "")] * 3
    began = "2026-01-01T00:00:00Z"
    assert [each.seen_at for each in kept[-1].nodes] == [began, began, ""]
    assert kept[-1].authority_at == began
    moment[0] += timedelta(seconds=90)
    execs.answers = {"agent-1": NotTold("it went away")}
    found = looked(looking)
    assert [each.seen_at for each in found.nodes] == [began, "2026-01-01T00:01:30Z", ""]
    assert found.authority_at == began
    assert found.to_json()["nodes"][0]["seen_at"] == began


def test_who_never_answers_holds_up_nobody_and_is_not_asked_anew_before_that_ends() -> None:
    hangs = threading.Event()
    execs = Execs(answers={"agent-1": hangs, "signer-0": hangs})
    # Within it the other one's answer has to come, by a thread of its own.
    looking = Round(execs, seconds=0.5)
    try:
        found = looked(looking)
        assert [each.missing for each in found.nodes] == ["no answer from pod agent-1 within 0.5 s", ""]
        assert found.missing == {"authority": "no answer from pod signer-0 within 0.5 s"}
        again = looked(looking)
        assert "pod agent-1 has not answered for longer" in again.nodes[0].missing
        assert "pod signer-0 has not answered for longer" in again.missing["authority"]
        assert [pod for pod, _, _ in execs.ran].count("agent-1") == 1
        assert again.looked
    finally:
        hangs.set()
    # Its thread notes that it has ended a moment after.
    deadline = time.monotonic() + PATIENCE
    while looked(looking).nodes[0].missing:
        assert time.monotonic() < deadline


def test_who_may_not_is_told_so_once_and_nobody_else_is_asked() -> None:
    pods = [agent(number) for number in range(50)]
    execs = Execs(pods=pods, answers={each.name: NotAllowed("you may not exec") for each in pods})
    found = looked(Round(execs))
    assert {each.missing for each in found.nodes} == {"you may not exec"}
    # Those that were begun with the first.
    assert len(execs.ran) <= AT_ONCE
    assert len(looked(Round(Execs(pods=pods))).nodes) == 50


def test_commands_that_nobody_waits_for_any_more_are_counted_until_they_end(tmp_path: Path) -> None:
    # An API server that takes connections and never says a word, as a balancer may in its place.
    with socket.create_server(("127.0.0.1", 0), backlog=MOST_EXECS) as silent:
        cluster = of_a_cluster_at(silent.getsockname()[1], tmp_path)
        silent.settimeout(PATIENCE)
        asked, taken = [], []
        for number in range(MOST_EXECS):
            asked.append(begun(partial(cluster.run, f"agent-{number}", "agent", LS)))
            taken.append(silent.accept()[0])
        with pytest.raises(CommandFailed, match="have not ended; try again"):
            cluster.run("agent-x", "agent", LS)
        for each in taken:
            each.close()
        for one in asked:
            with pytest.raises(NotTold):
                one.result(PATIENCE)
        # They gave their places back.
        another = begun(lambda: cluster.run("agent-x", "agent", LS))
        silent.accept()[0].close()
        with pytest.raises(NotTold):
            another.result(PATIENCE)


def of_a_cluster_at(port: int, folder: Path) -> KubeconfigCluster:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    (folder / "config").write_text(json.dumps(config))
    return KubeconfigCluster(str(folder / "config"), None, "podsvid")


def test_an_api_server_that_is_away_is_said_in_the_same_words_by_whatever_asks_it(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        cluster = of_a_cluster_at(port, tmp_path)
        said = set()
        for ask in (
            cluster.agents,
            cluster.signer,
            partial(cluster.run, "a", "agent", LS),
            partial(cluster.pod, "a", "b"),
        ):
            with pytest.raises(NotTold) as raised:
                ask()
            said.add(str(raised.value))
    words = "cannot be reached (Connection refused); look at the kubeconfig's context and at your connection"
    assert said == {f"the API server http://127.0.0.1:{port} {words}"}


def test_an_api_server_that_ends_the_connection_is_said_without_a_package_s_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster = of_a_cluster_at(server.getsockname()[1], tmp_path)
        asked = begun(partial(cluster.run, "agent", "agent", LS))
        server.settimeout(PATIENCE)
        server.accept()[0].close()
        with pytest.raises(NotTold, match=r"cannot be reached \([A-Za-z ]+\); look at") as raised:
            asked.result(PATIENCE)
    assert "Error" not in str(raised.value)


def test_an_agent_that_is_silent_is_given_up_without_advice_that_the_console_does_not_take(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        with pytest.raises(GaveUp) as raised:
            OnNode(path, seconds=0.1).look(lambda _: None)
    assert str(raised.value).endswith("within 0.1 s")


def federation(name: str, *conditions: tuple[str, str, str, str], **status: Any) -> dict[str, Any]:
    """As the API server has it; conditions are type, status, reason, message."""
    said = [dict(zip(("type", "status", "reason", "message"), each, strict=True)) for each in conditions]
    spec = {"trustDomain": f"{name}.test", "bundleEndpointURL": f"https://{name}.test/bundle", "caBundle": "x" * 99}
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": said, **status} if said else None}


READY = ("Ready", "True", "InForce", "workloads have it")


def test_federations_are_told_with_their_last_errors_and_what_to_do() -> None:
    failed = ("Fetched", "False", "Failed", "connection refused")
    times = {"fetchedAt": "2026-01-01T00:00:00Z", "nextPoll": "2026-01-01T00:05:00Z", "sequence": 7}
    items = [federation("partner", READY, failed, **times), federation("new"), federation("well", READY)]
    execs = Execs(declared={"items": items}, answers={"signer-0": {}})
    looking = Round(execs, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    found = looked(looking)
    assert [(each["trust_domain"], each["ready"], each["unseen"], each["errors"]) for each in found.federations] == [
        ("partner.test", True, False, ["Failed: connection refused"]),
        ("new.test", False, True, []),
        ("well.test", True, False, []),
    ]
    assert (found.federations[0]["fetched_at"], found.federations[0]["sequence"]) == ("2026-01-01T00:00:00Z", 7)
    assert found.federations_at == "2026-01-01T00:00:00Z"
    # Bundles, which the page does not show, are not kept.
    assert "x" * 99 not in json.dumps(found.to_json())
    ((reason, seen),) = [(each["reason"], each["seen"]) for each in found.findings]
    assert (reason, seen) == ("FEDERATION_FETCH_FAILED", "FederatedTrustDomain partner: connection refused")
    assert "kubectl describe federatedtrustdomain" in found.findings[0]["to_do"]
    assert found.findings[0]["link"] == "docs/troubleshooting.md#federation_fetch_failed"
    # The API server is asked for so many at most.
    assert execs.reads == [("/apis/podsvid.io/v1alpha1/federatedtrustdomains", {"limit": str(MOST_FEDERATIONS)})]
    execs.declared = NotAllowed("you may not list them")
    again = looked(looking)
    assert (again.federations, again.missing) == (found.federations, {"federations": "you may not list them"})
    execs.declared = {"items": items[:1], "metadata": {"continue": "x"}}
    assert looked(looking).missing == {"federations": f"only {MOST_FEDERATIONS} of them are shown"}


def test_a_cluster_without_the_kind_has_no_federation_and_what_is_none_is_said() -> None:
    absent = NotTold("not found")
    absent.status = 404
    execs = Execs(declared=absent, answers={"signer-0": {}})
    looking = Round(execs)
    found = looked(looking)
    assert (found.federations, found.missing) == ((), {})
    execs.declared = {"items": [7]}
    assert "is no FederatedTrustDomain" in looked(looking).missing["federations"]


def test_what_the_ca_above_said_is_asked_of_the_signer_that_leads() -> None:
    asked = {"id": "k", "at": "openbao", "said": ["connection refused, asked again in 30s"]}
    leads = {"leader": "signer-1", "requested_x509": asked}
    execs = Execs(answers={"signer-0": {"leader": "signer-1"}, "signer-1": leads})
    looking = Round(execs)
    found = looked(looking)
    assert found.authority == leads
    assert [pod for pod, container, _ in execs.ran if container == "signer"] == ["signer-0", "signer-1"]
    (finding,) = found.findings
    assert (finding["reason"], finding["bad"]) == ("UPSTREAM_AWAY", True)
    assert finding["seen"] == "a request at openbao: connection refused, asked again in 30s"
    execs.answers["signer-1"] = NotTold("it does not answer")
    found = looked(looking)
    assert found.authority == {"leader": "signer-1"}
    said = "what the CA above said last is known to signer-1, which leads: it does not answer"
    assert found.missing == {"leader": said}
    # What is no pod's name is asked nothing, and reaches no path of the API.
    execs.answers["signer-0"], execs.ran[:] = {"leader": "../../x"}, []
    assert looked(looking).missing == {}
    assert [pod for pod, container, _ in execs.ran if container == "signer"] == ["signer-0"]


def test_an_answer_of_another_version_is_shown_and_said_to_be_one() -> None:
    execs = Execs(answers={"signer-0": {"agents": "many", "to_do": ["rotate"]}})
    found = looked(Round(execs))
    assert found.authority == {"agents": "many", "to_do": ["rotate"]}
    # Nor passes for one that has nothing to say.
    told, other = (each["seen"] for each in found.findings)
    assert told == "rotate"
    assert "of another version" in other


def test_who_waited_when_the_signer_was_heard_last_is_not_said_to_wait_still() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    waiting = {"agents": 2, "agents_waiting": 1, "waiting_nodes": ["node-1"], "sequence": "3"}
    authority = {"kind": "x509", "id": "k", "stage": "prepared", "prepared_at": "2026-01-01T00:00:00Z"}
    execs = Execs(answers={"signer-0": {**waiting, "authorities": [authority]}})
    moments = [at]
    looking = Round(execs, now=lambda: moments[-1])
    assert looked(looking).findings == ()
    moments.append(at + timedelta(minutes=9))
    execs.answers["signer-0"] = NotTold("it does not answer")
    assert looked(looking).findings == ()


def test_of_very_many_identities_those_that_are_not_well_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_cluster, "MOST_ROWS", 10)
    many = [{"pod": f"p-{each}", "state": "ok"} for each in range(8)]
    answer = {"volumes": [*many, {"pod": "ill", "state": "expired"}]}
    execs = Execs(answers=dict.fromkeys(("agent-1", "agent-2"), answer))
    looking = Round(execs)
    for _ in range(2):
        found = looked(looking)
        assert sum(len(each.volumes) for each in found.nodes) == 10
        assert sum(each.left_out for each in found.nodes) == 8
        assert all({"pod": "ill", "state": "expired"} in each.volumes for each in found.nodes)
    # When there is room again it is used.
    execs.answers["agent-1"] = {"volumes": []}
    looked(looking)
    again = looked(looking)
    assert [each.left_out for each in again.nodes] == [0, 0]


def test_a_node_that_has_very_many_takes_nobody_elses_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_cluster, "MOST_ROWS", 10)
    many: list[dict[str, str]] = []
    for state in ("ok", "expired"):
        many = [{"pod": f"p-{each}", "state": state} for each in range(50)]
        few = [{"pod": "ill", "state": "expired"}, {"pod": "a", "state": state}, {"pod": "b", "state": state}]
        found = looked(
            Round(Execs(answers={"signer-0": {}, "agent-1": {"volumes": many}, "agent-2": {"volumes": few}}))
        )
        assert {each.node: len(each.volumes) for each in found.nodes} == {"node-1": 7, "node-2": 3}
        assert {each.node: each.left_out for each in found.nodes} == {"node-1": 43, "node-2": 0}
    # Nor does the first of two that have.
    both = Execs(answers={each: {"volumes": many} for each in ("agent-1", "agent-2")})
    assert [len(each.volumes) for each in looked(Round(both)).nodes] == [5, 5]
