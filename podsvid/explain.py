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

import yaml
from google.protobuf.json_format import Parse
from rich.console import Console

from agent.pb import node_admin_pb2
from podsvid import authority as authority_command
from podsvid import node as node_command
from podsvid.authority import DEFAULT_SOCKET, CommandFailed
from runtime.terminal import printable
from signer.pb import admin_pb2

# Seconds for one command in a pod, and for one answer of the API server.
EXEC_SECONDS, ANSWER_SECONDS = 60, 20
NOT_FOUND, FORBIDDEN, UNAUTHORIZED = 404, 403, 401
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

    @property
    def notes(self) -> list[str]:
        """Where the parts contradict each other, and what becomes of it."""
        policy = self.policy or {}
        wanted, outcome = str(policy.get("spiffe_id") or ""), str(policy.get("outcome") or "")
        held = sorted({each["spiffe_id"] for each in (self.volumes or {}).get("volumes", [])} - {"", wanted})
        if not held or not outcome:
            return []
        has = f"the node has an SVID for {', '.join(held)}, minted before policies or the pod changed"
        then = (
            f"the next renewal brings {wanted} (podsvid node rotate: now)" if wanted else "its renewal will be refused"
        )
        return [f"{has}; {then}"]

    def to_json(self) -> dict[str, Any]:
        return {
            "pod": self.pod,
            "node": self.node,
            "policy": self.policy,
            "on_node": self.volumes,
            "events": self.events,
            "notes": self.notes,
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
        except (config.ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            why = str(error).strip().rstrip(".")
            raise CommandFailed(
                f"no usable kubeconfig: {why}; give --kubeconfig and --context, or run this in a signer's pod: "
                f"kubectl -n {podsvid_namespace} exec deploy/podsvid-signer -- podsvid explain NAMESPACE/POD"
            ) from None

    def explain(self, namespace: str, name: str) -> _Explained:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            pod = self._api.read_namespaced_pod(name, namespace, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            if error.status == NOT_FOUND:
                raise CommandFailed(f"there is no pod {namespace}/{name} (is --context the right cluster?)") from None
            raise CommandFailed(f"pod {namespace}/{name} cannot be read: {_said(error)}") from None
        except (HTTPError, OSError) as error:
            host = self._api.api_client.configuration.host
            raise CommandFailed(
                f"the API server {host} cannot be reached ({type(error).__name__}); look at the kubeconfig's context "
                "and at your connection"
            ) from None
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
        volumes = part("on_node", lambda: self._ask_agent(what, pod))
        events = part("events", lambda: self._events(pod)) or []
        return _Explained(what, node, policy, volumes, events, missing)

    def _ask_signer(self, what: str) -> Any:
        signer = self._running("signer", "")
        if signer is None:
            raise CommandFailed(
                f"no signer runs in namespace {self._namespace}; look at its Deployment podsvid-signer, or say with "
                "--podsvid-namespace where podsvid is installed"
            )
        return self._exec(
            signer, "signer", ["podsvid", "explain", what, "--socket", DEFAULT_SOCKET, "--output", "json"]
        )

    def _ask_agent(self, what: str, pod: _Pod) -> Any:
        node = pod.spec.node_name
        if not any(each.csi for each in pod.spec.volumes or ()):
            raise CommandFailed(
                "the pod has no csi volume; add one with the driver csi.podsvid.io and mount it in its containers"
            )
        if not node:
            raise CommandFailed(
                f"the pod is not scheduled to a node yet; kubectl -n {pod.metadata.namespace} describe pod "
                f"{pod.metadata.name} says why"
            )
        if pod.status.phase in ("Succeeded", "Failed"):
            raise CommandFailed(f"the pod has finished ({pod.status.phase}): kubelet unpublishes its volumes")
        agent = self._running("agent", node)
        if agent is None:
            raise CommandFailed(
                f"no agent runs on node {node}; look at the DaemonSet podsvid-agent in namespace {self._namespace}: "
                "the node's taints and its nodeSelector say whether it may"
            )
        return self._exec(agent, "agent", ["podsvid", "node", "explain", what, "--output", "json"])

    def _running(self, component: str, node: str) -> str | None:
        found = self._api.list_namespaced_pod(
            self._namespace,
            label_selector=f"app.kubernetes.io/name=podsvid,app.kubernetes.io/component={component}",
            field_selector=f"spec.nodeName={node}" if node else "",
            _request_timeout=ANSWER_SECONDS,
        )
        running = [
            pod for pod in found.items if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
        ]
        # One that is ready knows the cluster; one that is not may still answer.
        running.sort(key=lambda pod: not _is_ready(pod))
        return str(running[0].metadata.name) if running else None

    def _exec(self, pod: str, container: str, command: list[str]) -> Any:
        """What the command printed, from JSON. Raises CommandFailed with what it said, ApiException."""
        from kubernetes.stream import stream

        call = stream(
            self._api.connect_get_namespaced_pod_exec,
            pod,
            self._namespace,
            container=container,  # others may have added theirs
            command=command,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        call.run_forever(timeout=EXEC_SECONDS)
        late = call.is_open()
        out, said = call.read_stdout(timeout=0), call.read_stderr(timeout=0)
        call.close()
        if late:
            raise CommandFailed(f"pod {pod} did not answer within {EXEC_SECONDS} s; look at its log")
        if not out:
            why = said.strip().removeprefix("podsvid: ")
            raise CommandFailed(why or f"pod {pod} answered nothing; look at its log")
        try:
            return json.loads(out)
        except ValueError:
            raise CommandFailed(f"pod {pod} answered no JSON; is its podsvid of this version?") from None

    def _events(self, pod: _Pod) -> list[dict[str, str]]:
        found = self._api.list_namespaced_event(
            pod.metadata.namespace,
            field_selector=f"involvedObject.uid={pod.metadata.uid}",
            _request_timeout=ANSWER_SECONDS,
        )
        mine = [
            each
            for each in found.items
            if "podsvid" in (each.reporting_component or "")
            or each.reason in ("FailedMount", "VolumeConditionAbnormal")
        ]
        mine.sort(key=_last_seen)
        return [
            {
                "at": f"{_last_seen(each):%Y-%m-%dT%H:%M:%SZ}",
                "reason": str(each.reason),
                "message": str(each.message),
                "count": str(_count(each)),
            }
            for each in mine[-MAX_EVENTS:]
        ]


def _is_ready(pod: _Pod) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or ())


def _last_seen(event: Any) -> datetime:
    observed = event.series.last_observed_time if event.series else None
    found = observed or event.last_timestamp or event.event_time or event.metadata.creation_timestamp
    return found if isinstance(found, datetime) else datetime.fromtimestamp(0, UTC)


def _count(event: Any) -> int:
    return int((event.series.count if event.series else None) or event.count or 1)


def _said(error: Any) -> str:
    """What the API server said, and what may be missing."""
    from websocket import WebSocketBadStatusException

    status, body = error.status, error.body
    if isinstance(error.__context__, WebSocketBadStatusException):
        # The client of exec raises an error without them, from this one.
        status, body = error.__context__.status_code, error.__context__.resp_body
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the API server answered {status}" if status else str(error.reason)
    advice = {
        FORBIDDEN: "; explain needs get on pods and list on events of the pod's namespace, list on pods and create (or "
        "get) on pods/exec of podsvid's",
        UNAUTHORIZED: "; the kubeconfig's credentials have expired or are wrong: log in again",
    }
    return message + advice.get(status, "")


def _show(found: _Explained, console: Console) -> None:
    if found.policy is not None:
        policy = Parse(json.dumps(found.policy), admin_pb2.ExplainResponse(), ignore_unknown_fields=True)
        authority_command.show_explained(found.pod, policy)
    if found.volumes is not None:
        console.print(f"on node {found.node}:", markup=False)
        # An agent of another version may say more.
        answer = Parse(json.dumps(found.volumes), node_admin_pb2.ExplainResponse(), ignore_unknown_fields=True)
        node_command.show(answer, console, datetime.now(UTC))
    for note in found.notes:
        console.print(printable(f"note: {note}"), markup=False)
    if found.events:
        console.print("events:")
    for each in found.events:
        console.print(printable(f"  {each['at']} {each['reason']} (x{each['count']}): {each['message']}"), markup=False)
    names = {"policy": "the signer's view is", "on_node": "the node's view is", "events": "events are"}
    for title, why in found.missing.items():
        console.print(printable(f"{names[title]} missing: {why}"), markup=False)
