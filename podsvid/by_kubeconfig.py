"""The cluster as a person reaches it: with a kubeconfig, pods and events, and commands in podsvid's pods by exec.

Not for the signer, which asks as its own service account (kube_client.py).
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from urllib3.exceptions import HTTPError
from websocket import WebSocketBadStatusException

from podsvid.authority import CommandFailed

# Seconds for one command in a pod, and for one answer of the API server.
EXEC_SECONDS, ANSWER_SECONDS = 60, 20
NOT_FOUND, FORBIDDEN, UNAUTHORIZED = 404, 403, 401
MAX_EVENTS = 10


class NotTold(CommandFailed):
    """The cluster does not say; the text says why, and what may be missing."""


@dataclass(frozen=True, slots=True)
class SeenPod:
    """What a pod's object says that matters here. `drivers`: of its csi volumes."""

    namespace: str
    name: str
    uid: str
    node: str
    phase: str
    drivers: tuple[str, ...]


class KubeconfigCluster:
    """The cluster of a kubeconfig's context (None: the current one), where podsvid is in `podsvid_namespace`.

    Raises NotTold where the kubeconfig cannot be used. So does every method; several threads may call them.
    """

    def __init__(self, kubeconfig: str | None, context: str | None, podsvid_namespace: str) -> None:
        self.podsvid_namespace = podsvid_namespace
        try:
            # Parts of the package are without types, or have everything optional.
            self._api: Any = client.CoreV1Api(config.new_client_from_config(kubeconfig, context))
        except (config.ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise NotTold(
                f"no usable kubeconfig: {why}; give --kubeconfig and --context, or run this in a signer's pod: "
                f"kubectl -n {podsvid_namespace} exec deploy/podsvid-signer -- podsvid explain NAMESPACE/POD"
            ) from None

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self._api.api_client.configuration.host)

    def pod(self, namespace: str, name: str) -> SeenPod:
        """That pod."""
        try:
            pod = self._api.read_namespaced_pod(name, namespace, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            if error.status == NOT_FOUND:
                raise NotTold(f"there is no pod {namespace}/{name} (is --context the right cluster?)") from None
            raise NotTold(f"pod {namespace}/{name} cannot be read: {_said(error)}") from None
        except (HTTPError, OSError) as error:
            raise NotTold(
                f"the API server {self.host} cannot be reached ({_why(error)}); look at the kubeconfig's context "
                "and at your connection"
            ) from None
        return SeenPod(
            pod.metadata.namespace,
            pod.metadata.name,
            pod.metadata.uid,
            pod.spec.node_name or "",
            pod.status.phase or "",
            tuple(each.csi.driver for each in pod.spec.volumes or () if each.csi),
        )

    def running(self, component: str, node: str = "") -> str | None:
        """The name of a running pod of that component, on `node` where one is given; of several a ready one."""
        found = self._asked(
            self._api.list_namespaced_pod,
            self.podsvid_namespace,
            label_selector=f"app.kubernetes.io/name=podsvid,app.kubernetes.io/component={component}",
            field_selector=f"spec.nodeName={node}" if node else "",
        )
        running = [
            pod for pod in found.items if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
        ]
        # One that is ready knows the cluster; one that is not may still answer.
        running.sort(key=lambda pod: not _is_ready(pod))
        return str(running[0].metadata.name) if running else None

    def run(self, pod: str, container: str, command: list[str]) -> Any:
        """What the command printed in a pod of podsvid, from JSON."""
        # It has a client to itself: for as long as a stream begins, it is what the client makes all requests with.
        with client.ApiClient(self._api.api_client.configuration) as own:
            return self._run(client.CoreV1Api(own), pod, container, command)

    def _run(self, api: Any, pod: str, container: str, command: list[str]) -> Any:
        try:
            call = stream(
                api.connect_get_namespaced_pod_exec,
                pod,
                self.podsvid_namespace,
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
        except ApiException as error:
            raise NotTold(_said(error)) from None
        except (HTTPError, OSError, ValueError) as error:
            raise NotTold(str(error) or type(error).__name__) from None
        if late:
            raise NotTold(f"pod {pod} did not answer within {EXEC_SECONDS} s; look at its log")
        if not out:
            why = said.strip().removeprefix("podsvid: ")
            raise NotTold(why or f"pod {pod} answered nothing; look at its log")
        try:
            return json.loads(out)
        except ValueError:
            raise NotTold(f"pod {pod} answered no JSON; is its podsvid of this version?") from None

    def events(self, pod: SeenPod) -> list[dict[str, str]]:
        """The newest events about the pod's volumes, the oldest of them first."""
        found = self._asked(
            self._api.list_namespaced_event, pod.namespace, field_selector=f"involvedObject.uid={pod.uid}"
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

    def _asked(self, call: Any, *arguments: str, **query: str) -> Any:
        try:
            return call(*arguments, **query, _request_timeout=ANSWER_SECONDS)
        except ApiException as error:
            raise NotTold(_said(error)) from None
        except (HTTPError, OSError, ValueError) as error:
            raise NotTold(str(error) or type(error).__name__) from None


def _why(error: BaseException) -> str:
    """What the system said, below what the packages made of it."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        reason = getattr(below, "reason", None)
        below = reason if isinstance(reason, BaseException) else below.__cause__ or below.__context__
    return type(error).__name__


def _is_ready(pod: Any) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or ())


def _last_seen(event: Any) -> datetime:
    observed = event.series.last_observed_time if event.series else None
    found = observed or event.last_timestamp or event.event_time or event.metadata.creation_timestamp
    return found if isinstance(found, datetime) else datetime.fromtimestamp(0, UTC)


def _count(event: Any) -> int:
    return int((event.series.count if event.series else None) or event.count or 1)


def _said(error: Any) -> str:
    """What the API server said, and what may be missing."""
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
