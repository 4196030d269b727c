"""`podsvid explain NAMESPACE/POD`: which identity a pod gets, from whom and why, and what its node made of it.

Inside a signer's pod it asks that signer's admin socket. From anywhere else it asks by `exec` what a person could: a
signer for the policy, the agent on the pod's node for the volumes. Whoever may not exec into podsvid's namespace learns
nothing here.
"""

import argparse
import json
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import Parse

from agent.admin_api import code_of
from agent.pb import node_admin_pb2
from podsvid import authority as authority_command
from podsvid import node as node_command
from podsvid.authority import DEFAULT_SOCKET, CommandFailed, here
from podsvid.interrupts import unwinding
from podsvid.options import add_cluster, add_output, add_pod, add_timeout, as_yaml, which_pod
from podsvid.output import console
from podsvid.waiting import GaveUp, Waiting
from runtime.aside import begun
from runtime.terminal import printable
from signer.errors import SignerError
from signer.pb import admin_pb2

if TYPE_CHECKING:
    from rich.console import Console

    from podsvid.by_kubeconfig import KubeconfigCluster, SeenPod


# Events of a pod that starts only when its certificate is there: the signer's and kubelet's.
_NOT_CERTIFIED = ("PodCertificatePending", "Denied")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_pod(parser)
    add_cluster(parser, here())
    parser.add_argument("--all", action="store_true", help="show all policies that do not match, not only the nearest")
    add_output(parser)
    add_timeout(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print it; the exit code: 0 all is well, 3 refused or a volume is not well. Raises SignerError."""
    namespace, name = which_pod(parsed)
    if parsed.socket or (Path(here()).exists() and not parsed.kubeconfig):
        parsed.socket = parsed.socket or here()
        return authority_command.explain(parsed)
    # The kubernetes package takes as long to load as everything else.
    from podsvid.by_kubeconfig import KubeconfigCluster

    # The kubernetes package keeps what the kubeconfig holds, keys as well, in temporary files until it ends.
    with unwinding():
        cluster = KubeconfigCluster(parsed.kubeconfig, parsed.context, parsed.podsvid_namespace)
        found = explained(cluster, namespace, name, Waiting(parsed.timeout))
    if parsed.output != "text":
        document = json.dumps(found.to_json(), indent=2) + "\n"
        print(document if parsed.output == "json" else as_yaml(document), end="")
    else:
        _show(found, console(), every=parsed.all)
    return 0 if found.well else 3


@dataclass(frozen=True, slots=True)
class Explained:
    """What was found out; a part that could not be had says why in `missing`."""

    pod: str
    node: str
    policy: dict[str, Any] | None
    volumes: dict[str, Any] | None
    events: list[dict[str, str]]
    missing: dict[str, str]
    # No agent has anything of it: kubelet asks for its certificate; and what that waits for.
    by_kubelet: bool = False
    certificate_waits: str = ""
    # Nor of what only Istio's proxies ask for.
    by_proxies: bool = False

    @property
    def well(self) -> bool:
        allowed = self.policy is not None and self.policy["outcome"] == "allowed"
        if self.by_kubelet or self.by_proxies:
            return allowed and not self.lacking
        return allowed and bool((self.volumes or {}).get("volumes")) and not self.lacking

    @property
    def lacking(self) -> str:
        """What the node says against it that the pod has the identity that it may have; empty where it says nothing."""
        on_node = self.volumes or {}
        if self.certificate_waits:
            return f"its certificate is not there: {self.certificate_waits}"
        found = [f"a volume is {each['state']} {each.get('state_reason', '')}".rstrip() for each in _unwell(on_node)]
        for each in on_node.get("publish_problems", [])[-1:]:
            found.append(f"a volume is refused on its node: {code_of(each['message'], each['reason'])}")
        return ", ".join(dict.fromkeys(found))

    @property
    def notes(self) -> list[str]:
        """Where the parts contradict each other, and what becomes of it."""
        policy = self.policy or {}
        # Where only what a volume asks for is refused, the others go on.
        wanted = str(policy.get("spiffe_id") or policy.get("entitled") or "")
        outcome = str(policy.get("outcome") or "")
        held = sorted({each["spiffe_id"] for each in (self.volumes or {}).get("volumes", [])} - {"", wanted})
        if not held or not outcome:
            return []
        has = f"the node has an SVID for {', '.join(held)}, minted before policies or the pod changed"
        then = (
            f"the next renewal brings {wanted} (podsvid node rotate: now)" if wanted else "its renewal will be refused"
        )
        return [f"{has}; {then}"]

    def to_json(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {
            "pod": self.pod,
            "node": self.node,
            "policy": self.policy,
            "on_node": self.volumes,
            "events": self.events,
            "notes": self.notes,
            "missing": self.missing,
        }


def _unwell(on_node: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in on_node.get("volumes", []) if each["state"] != "ok"]


def explained(cluster: "KubeconfigCluster", namespace: str, name: str, waiting: Waiting) -> Explained:
    """What signer, node and events say of that pod. Raises NotTold and GaveUp where nothing can be found out at all."""
    pod = waiting.ask(f"the API server {cluster.host}", lambda: cluster.pod(namespace, name))
    missing: dict[str, str] = {}
    what = f"{namespace}/{name}"

    def part(title: str, what: str, asked: "Future[Any]") -> Any:
        try:
            return waiting.result(asked, what)
        except (SignerError, GaveUp) as error:
            missing[title] = str(error)
            return None

    # At once: two of them start a process in a pod, which takes a second.
    by_kubelet = pod.certified and not pod.drivers
    asked = [
        ("policy", "a signer", begun(lambda: _ask_signer(cluster, what))),
        (
            "on_node",
            f"the agent on node {pod.node}",
            begun(lambda: None if by_kubelet else _ask_agent(cluster, pod)),
        ),
        ("events", "the pod's events", begun(lambda: cluster.events(pod))),
    ]
    policy, volumes, events = (part(*each) for each in asked)
    newest = events[-1] if events and by_kubelet and pod.phase == "Pending" else {}
    waits = newest["message"] if newest.get("reason") in _NOT_CERTIFIED else ""
    # A signer of before says nothing of them.
    by_proxies = not pod.drivers and not by_kubelet and bool((policy or {}).get("proxy_ttl"))
    if by_proxies:
        missing.pop("on_node", None)
    return Explained(what, pod.node, policy, volumes, events or [], missing, by_kubelet, waits, by_proxies)


def _ask_signer(cluster: "KubeconfigCluster", what: str) -> Any:
    return cluster.run(
        cluster.signer(), "signer", ["podsvid", "explain", what, "--socket", DEFAULT_SOCKET, "--output", "json"]
    )


def _ask_agent(cluster: "KubeconfigCluster", pod: "SeenPod") -> Any:
    if not pod.drivers:
        raise CommandFailed(
            "the pod has no csi volume; add one with the driver csi.podsvid.io and mount it in its containers"
        )
    if not pod.node:
        raise CommandFailed(
            f"the pod is not scheduled to a node yet; kubectl -n {pod.namespace} describe pod {pod.name} says why"
        )
    if pod.phase in ("Succeeded", "Failed"):
        raise CommandFailed(f"the pod has finished ({pod.phase}): kubelet unpublishes its volumes")
    agent = cluster.running("agent", pod.node)
    if agent is None:
        raise CommandFailed(
            f"no agent runs on node {pod.node}; look at the DaemonSet podsvid-agent in namespace "
            f"{cluster.podsvid_namespace}: the node's taints and its nodeSelector say whether it may"
        )
    what = f"{pod.namespace}/{pod.name}"
    return cluster.run(agent, "agent", ["podsvid", "node", "explain", what, "--output", "json"])


def _show(found: Explained, screen: "Console", *, every: bool) -> None:
    if found.policy is not None:
        policy = Parse(json.dumps(found.policy), admin_pb2.ExplainResponse(), ignore_unknown_fields=True)
        authority_command.show_explained(found.pod, policy, every=every, lacking=found.lacking)
    if found.volumes is not None:
        screen.print(f"on node {found.node}:")
        # An agent of another version may say more.
        answer = Parse(json.dumps(found.volumes), node_admin_pb2.ExplainResponse(), ignore_unknown_fields=True)
        node_command.show(answer, screen, datetime.now(UTC))
    if found.by_kubelet:
        screen.print(
            "its certificate is kubelet's to ask for, of signer podsvid.io/spiffe: where it waits, or is denied, an "
            "event says why"
        )
    if found.by_proxies:
        screen.print(
            "it has no csi volume: nothing is on its node but what Istio's proxies ask for and keep to themselves"
        )
    for note in found.notes:
        screen.print(printable(f"note: {note}"))
    if found.events:
        screen.print("events:")
    for each in found.events:
        screen.print(printable(f"  {each['at']} {each['reason']} (x{each['count']}): {each['message']}"))
    names = {"policy": "the signer's view is", "on_node": "the node's view is", "events": "events are"}
    for title, why in found.missing.items():
        screen.print(printable(f"{names[title]} missing: {why}"))
