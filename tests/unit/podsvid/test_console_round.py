"""What the console of a cluster asks podsvid's pods, and what becomes of those that do not answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from podsvid.authority import CommandFailed
from podsvid.by_kubeconfig import AgentPod, NotTold
from podsvid.console.in_cluster import MOST_NODES, Round
from podsvid.console.picture import Picture

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
    assert found.missing["nodes"] == f"3 of {MOST_NODES + 3} nodes are not asked: the console asks {MOST_NODES}"


def test_without_the_agents_nothing_is_known() -> None:
    class Forbidden(Execs):
        def agents(self) -> Sequence[AgentPod]:
            raise NotTold("you may not list pods")

    with pytest.raises(NotTold, match="list pods"):
        looked(Round(Forbidden()))
