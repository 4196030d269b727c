"""What an operator is told of one refusal, in each place where there is something: collected, and made comparable."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

from podsvid.cli import main

from .api import ApiError, Object
from .cluster import Cluster
from .installation import NAMESPACE, component

POLICIES = "/apis/podsvid.io/v1alpha1"
# What differs from run to run, and what stands for it.
_VARYING = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UID"),
    (re.compile(r"\b(podsvid-(?:signer|agent))-[a-z0-9]+(?:-[a-z0-9]{5})?\b(?=[ :,;]|$)"), r"\1-POD"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "ADDRESS"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\dZ?"), "TIME"),
    (re.compile(r"\b\S+ ago(?:, \d+ times since \S+ ago)?  "), ""),
    (re.compile(r" \(x\d+\)"), ""),
    (re.compile(r"/\S*/pods/UID/"), "…/pods/UID/"),
)


@dataclass(frozen=True)
class Told:
    """Lines as they stand in each place, in the words of this run's pods. `code`: explain's exit code."""

    pod: str
    explain: tuple[str, ...]
    code: int
    policy: tuple[str, ...]
    events: tuple[str, ...]
    node: tuple[str, ...]
    audit: tuple[str, ...]
    log: tuple[str, ...]

    def everywhere(self) -> dict[str, tuple[str, ...]]:
        """By the place, as a person calls it; those that say nothing are left out."""
        found = {
            "podsvid explain": self.explain,
            "policy's status": self.policy,
            "pod's events": self.events,
            "agent's condition": self.node,
            "signer's audit": self.audit,
            "agent's log": self.log,
        }
        return {place: lines for place, lines in found.items() if lines}


def told(
    cluster: Cluster, pod: str, reason: str, policies: Iterable[str] = (), said: tuple[int, str] | None = None
) -> Told:
    """Of the pod (namespace/name), refused for `reason`.

    `policies`: paths below POLICIES of those that decide. `said`: what explain has said already.
    """
    code, out = said or explained(cluster, pod)
    explain, node, events = _parts(out)
    return Told(
        pod,
        comparable(explain),
        code,
        comparable(line for path in policies for line in _conditions(cluster, path)),
        comparable(sorted({_event(each) for each in events if reason in each})),
        comparable(_problems(node, reason)),
        comparable(sorted({*_audit(cluster, pod, reason)})),
        comparable(sorted({*_log(cluster, pod, reason)})),
    )


def explained(cluster: Cluster, pod: str) -> tuple[int, str]:
    """`podsvid explain` from outside of the cluster: its exit code, and what it says. In this process, for speed."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as said:
        code = main(["explain", pod, "--kubeconfig", str(cluster.kubeconfig), "--timeout", "60s"])
    # A machine that is busy is waited for, and that is said.
    errors = [line for line in said.getvalue().splitlines() if not line.startswith("podsvid: waiting for ")]
    return code, "\n".join([*out.getvalue().splitlines(), *errors])


def comparable(lines: Iterable[str]) -> tuple[str, ...]:
    """Without what differs from run to run."""
    found = []
    for line in lines:
        for pattern, instead in _VARYING:
            line = pattern.sub(instead, line)
        found.append(line)
    return tuple(found)


def _parts(out: str) -> tuple[list[str], list[str], list[str]]:
    """What explain says of the pod and its policies, of the node, and the events."""
    first: list[str] = []
    node: list[str] = []
    events: list[str] = []
    into = first
    for line in out.splitlines():
        if line.startswith("on node "):
            into = node
        elif line == "events:":
            into = events
        elif line.startswith("the node's view is missing: no agent runs"):
            continue  # on a node that is there for the test
        elif line.startswith(("note: ", "the node's view is missing", "the signer's view is missing")):
            first.append(line)
        elif not line.startswith(("does not match:", "X.509-SVIDs live")) and "more policies do not match" not in line:
            into.append(line)
    return first, node, events


def _event(line: str) -> str:
    # Before the message: the time, and how often.
    return line.strip().partition(" ")[2]


def _problems(node: list[str], reason: str) -> list[str]:
    """The problem of that reason, with the advice below it, and what state the volume is in."""
    found: list[str] = [line for line in node if line.startswith("pod ")]
    for number, line in enumerate(node):
        if reason in line and " ago" in line:
            found.append(line.strip())
            found += [f"  {each.strip()}" for each in node[number + 1 : number + 2] if each.startswith("      ")]
    return list(dict.fromkeys(found))


def _conditions(cluster: Cluster, path: str) -> list[str]:
    kind, name = path.rsplit("/", 1)
    owner = kind.split("/")[1] + "/" if kind.startswith("namespaces/") else ""
    conditions = cluster.api.get(f"{POLICIES}/{path}").get("status", {}).get("conditions", [])
    return [
        f"{owner}{name}: {each['type']} {each['status']}, {each['reason']}: {each['message']}"
        for each in conditions
        if each["type"] == "Ready" or each["status"] == "True"
    ]


def lines_of(cluster: Cluster, name: str) -> list[Object]:
    """The log of all pods of a component."""
    found: list[Object] = []
    for pod in component(cluster, name):
        try:
            text = cluster.pods.log(pod["metadata"]["name"], NAMESPACE)
        except ApiError:
            continue  # not of a node that has a kubelet
        found += [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return found


def _audit(cluster: Cluster, pod: str, reason: str) -> list[str]:
    return [
        f"{line['event']}: {reason}: {line['why']}{_of(line)}"
        for line in lines_of(cluster, "signer")
        if line.get("event") == "mint refused" and line["reason"] == reason and line["claimed_pod"] in (pod, "")
    ]


def _of(line: Object) -> str:
    return f" (node={shlex.quote(line['node'])}, claimed_pod={shlex.quote(line['claimed_pod'])})"


def _log(cluster: Cluster, pod: str, reason: str) -> list[str]:
    return [
        f"{line['event']}: {line['reason']}: {line['error']} (pod={line.get('pod', '')!r})"
        for line in lines_of(cluster, "agent")
        if line.get("event") == "call refused"
        and reason in f"{line['reason']}: {line['error']}"
        and line.get("pod", pod) == pod
    ]
