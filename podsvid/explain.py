"""`podsvid explain NAMESPACE/POD`: which identity a pod gets, from whom and why, and what its node made of it.

Inside a signer's pod it asks that signer's admin socket. From anywhere else it asks by `exec` what a person could: a
signer for the policy, the agent on the pod's node for the volumes. Whoever may not exec into podsvid's namespace learns
nothing here.
"""

import argparse
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.json_format import Parse
from rich.console import Console

from agent import node_command
from agent.pb import node_admin_pb2
from signer import authority_command
from signer.authority_command import DEFAULT_SOCKET, CommandFailed
from signer.pb import admin_pb2

# Seconds for one command in a pod.
EXEC_SECONDS = 60
NOT_FOUND, FORBIDDEN = 404, 403
MAX_EVENTS = 10
_Pod = Any  # kubernetes.client.V1Pod: parts of that package have no types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("pod", metavar="NAMESPACE/POD")
    parser.add_argument("--kubeconfig", help="kubeconfig file (default: $KUBECONFIG, ~/.kube/config)")
    parser.add_argument("--context", help="context of the kubeconfig (default: the current one)")
    parser.add_argument("--podsvid-namespace", default="podsvid", help="where podsvid is installed (default: podsvid)")
    parser.add_argument(
        "--socket", help=f"ask only this signer's admin socket (default: {DEFAULT_SOCKET}, where it exists)"
    )
    parser.add_argument("--output", choices=("text", "json"), default="text")


def run(parsed: argparse.Namespace) -> int:
    """Print it; the exit code: 0 all is well, 3 refused or a volume is not well. Raises CommandFailed."""
    namespace, slash, name = parsed.pod.partition("/")
    if not slash or not namespace or not name:
        raise CommandFailed("say which pod as NAMESPACE/POD")
    if parsed.socket or (Path(DEFAULT_SOCKET).exists() and not parsed.kubeconfig):
        parsed.socket = parsed.socket or DEFAULT_SOCKET
        return authority_command.explain(parsed)
    found = _Cluster(parsed.kubeconfig, parsed.context, parsed.podsvid_namespace).explain(namespace, name)
    if parsed.output == "json":
        print(json.dumps(found.to_json(), indent=2))
    else:
        _show(found, Console(highlight=False, soft_wrap=True))
    return 0 if found.well else 3


@dataclass(frozen=True, slots=True)
class _Explained:
    """What was found out; a part that could not be had says why in `missing`."""

    pod: str
    node: str
    policy: dict[str, Any] | None
    volumes: dict[str, Any] | None
    events: list[dict[str, str]]
    missing: dict[str, str]

    @property
    def well(self) -> bool:
        states = [each["state"] for each in (self.volumes or {}).get("volumes", [])]
        allowed = self.policy is not None and self.policy["outcome"] == "allowed"
        return allowed and bool(states) and set(states) == {"ok"}

    def to_json(self) -> dict[str, Any]:
        return {
            "pod": self.pod,
            "node": self.node,
            "policy": self.policy,
            "on_node": self.volumes,
            "events": self.events,
            "missing": self.missing,
        }


class _Cluster:
    """The cluster of a kubeconfig. Raises CommandFailed where nothing can be found out at all."""

    def __init__(self, kubeconfig: str | None, context: str | None, podsvid_namespace: str) -> None:
        from kubernetes import client, config

        self._namespace = podsvid_namespace
        try:
            # Parts of the package are without types, or have everything optional.
            self._api: Any = client.CoreV1Api(config.new_client_from_config(kubeconfig, context))
        except (config.ConfigException, OSError) as error:
            raise CommandFailed(
                f"no usable kubeconfig: {error}; give --kubeconfig and --context, or run this in a signer's pod: "
                f"kubectl -n {podsvid_namespace} exec deploy/podsvid-signer -- podsvid explain NAMESPACE/POD"
            ) from None

    def explain(self, namespace: str, name: str) -> _Explained:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            pod = self._api.read_namespaced_pod(name, namespace)
        except ApiException as error:
            if error.status == NOT_FOUND:
                raise CommandFailed(f"there is no pod {namespace}/{name}") from None
            raise CommandFailed(f"pod {namespace}/{name} cannot be read: {_said(error)}") from None
        except (HTTPError, OSError) as error:
            raise CommandFailed(f"the API server cannot be reached: {type(error).__name__}") from None
        missing: dict[str, str] = {}
        what = f"{namespace}/{name}"

        def part(title: str, ask: Any) -> Any:
            try:
                return ask()
            except ApiException as error:
                missing[title] = _said(error)
            except (CommandFailed, HTTPError, OSError, ValueError) as error:
                missing[title] = str(error) or type(error).__name__
            return None

        node = pod.spec.node_name or ""
        policy = part("policy", lambda: self._ask_signer(what))
        volumes = part("on_node", lambda: self._ask_agent(what, node))
        events = part("events", lambda: self._events(pod)) or []
        return _Explained(what, node, policy, volumes, events, missing)

    def _ask_signer(self, what: str) -> Any:
        signer = self._running("signer", "")
        if signer is None:
            raise CommandFailed(f"no signer runs in namespace {self._namespace}; look at its Deployment podsvid-signer")
        return self._exec(signer, ["podsvid", "explain", what, "--socket", DEFAULT_SOCKET, "--output", "json"])

    def _ask_agent(self, what: str, node: str) -> Any:
        if not node:
            raise CommandFailed("the pod is not scheduled to a node yet; its events say why")
        agent = self._running("agent", node)
        if agent is None:
            raise CommandFailed(
                f"no agent runs on node {node}; look at the DaemonSet podsvid-agent in namespace {self._namespace}"
            )
        return self._exec(agent, ["podsvid", "node", "explain", what, "--output", "json"])

    def _running(self, component: str, node: str) -> str | None:
        found = self._api.list_namespaced_pod(
            self._namespace,
            label_selector=f"app.kubernetes.io/name=podsvid,app.kubernetes.io/component={component}",
            field_selector=f"spec.nodeName={node}" if node else "",
        )
        for pod in found.items:
            if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None:
                return str(pod.metadata.name)
        return None

    def _exec(self, pod: str, command: list[str]) -> Any:
        """What the command printed, from JSON. Raises CommandFailed with what it said, ApiException."""
        from kubernetes.stream import stream

        call = stream(
            self._api.connect_get_namespaced_pod_exec,
            pod,
            self._namespace,
            command=command,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        call.run_forever(timeout=EXEC_SECONDS)
        out, said = call.read_stdout(timeout=0), call.read_stderr(timeout=0)
        call.close()
        if not out:
            raise CommandFailed(said.strip().removeprefix("podsvid: ") or f"{pod} did not answer")
        return json.loads(out)

    def _events(self, pod: _Pod) -> list[dict[str, str]]:
        found = self._api.list_namespaced_event(
            pod.metadata.namespace, field_selector=f"involvedObject.uid={pod.metadata.uid}"
        )
        mine = [
            each
            for each in found.items
            if "podsvid" in (each.reporting_component or "")
            or each.reason in ("FailedMount", "VolumeConditionAbnormal")
        ]
        return [
            {"reason": str(each.reason), "message": str(each.message), "count": str(_count(each))}
            for each in mine[-MAX_EVENTS:]
        ]


def _count(event: Any) -> int:
    return int((event.series.count if event.series else None) or event.count or 1)


def _said(error: Any) -> str:
    """What the API server said, and what may be missing."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason or error.status)
    advice = (
        "; this takes the right to get and exec into pods of podsvid's namespace" if error.status == FORBIDDEN else ""
    )
    return message + advice


def _show(found: _Explained, console: Console) -> None:
    if found.policy is not None:
        authority_command.show_explained(found.pod, Parse(json.dumps(found.policy), admin_pb2.ExplainResponse()))
    if found.volumes is not None:
        console.print(f"on node {found.node}:", markup=False)
        answer = Parse(json.dumps(found.volumes), node_admin_pb2.ExplainResponse())
        node_command.show(answer, console, datetime.now(UTC))
    if found.events:
        console.print("events:")
    for each in found.events:
        console.print(f"  {each['reason']} (x{each['count']}): {each['message']}", markup=False)
    for title, why in found.missing.items():
        names = {"policy": "the signer's view", "on_node": "the node's view", "events": "events"}
        console.print(f"{names[title]} is missing: {why}", markup=False)
