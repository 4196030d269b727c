"""The cluster as a person reaches it: with a kubeconfig, pods and events, and commands in podsvid's pods by exec.

Not for the signer, which asks as its own service account (kube_client.py).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import yaml
from kubernetes import config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import websocket_call
from urllib3.exceptions import HTTPError, LocationValueError, ProtocolError
from urllib3.exceptions import TimeoutError as TooLate
from websocket import (
    WebSocketBadStatusException,
    WebSocketConnectionClosedException,
    WebSocketException,
    WebSocketTimeoutException,
)

from podsvid import kept
from podsvid.authority import CommandFailed, NoSuchPod
from podsvid.exec_room import ExecRoom
from podsvid.reading import SEE
from signer.errors import LOOK_AT_KUBECONFIG

# Seconds for one command in a pod, and for one answer of the API server.
EXEC_SECONDS, ANSWER_SECONDS = 60, 20
OK, NOT_FOUND, FORBIDDEN, UNAUTHORIZED = 200, 404, 403, 401
MAX_EVENTS = 10
# A pod's author may make as many events about it as the API server takes, of any size: so many are in memory at once,
# and so many pages of them are read.
EVENTS_AT_ONCE, MOST_PAGES = 50, 100
# Characters that a command in a pod may print: a node of 1,000 volumes tells 1 MiB. Who owns a node owns its agent.
MOST_PRINTED = 32 * 2**20
# What nests deeper could be read, and not be written again.
MOST_NESTED = 32
# What kubelet says of volumes and, the last three, of pods' certificates. `Failed` it says of containers, too.
KUBELETS = (
    *("FailedMount", "VolumeConditionAbnormal"),
    *("Denied", "CertificateOverdueForRefresh", "CertificateExpired"),
)
# Said to whoever may not: the rights that most commands need.
NEEDED = (
    "; needed are list on pods and create (or get) on pods/exec of podsvid's namespace, and for explain get on pods "
    "and list on events of the pod's namespace"
)
_Kind = TypeVar("_Kind")


class NotTold(CommandFailed):
    """The cluster does not say; the text says why, and what may be missing."""

    reason = "API_SERVER_UNAVAILABLE"
    # Of HTTP; 0: there was no answer.
    status = 0


class NotAllowed(NotTold):
    """Whoever asks may not: the same of one pod of podsvid as of the next."""


@dataclass(frozen=True, slots=True)
class SeenPod:
    """What a pod's object says that matters here. `drivers`: of its csi volumes. `certified`: kubelet asks podsvid for
    its certificate."""

    namespace: str
    name: str
    uid: str
    node: str
    phase: str
    drivers: tuple[str, ...]
    certified: bool = False


@dataclass(frozen=True, slots=True)
class AgentPod:
    """An agent's pod: of a node, in a phase; `running`: it can be asked."""

    name: str
    node: str
    phase: str
    running: bool


class KubeconfigCluster:
    """The cluster of a kubeconfig's context (None: the current one), where podsvid is in `podsvid_namespace`.

    `example`: the command that does the same in a signer's pod; empty where none does. Raises NotTold where the
    kubeconfig cannot be used. So does every method; several threads may call them.
    """

    def __init__(
        self,
        kubeconfig: str | None,
        context: str | None,
        podsvid_namespace: str,
        example: str = "explain NAMESPACE/POD",
        needed: str = NEEDED,
    ) -> None:
        self.podsvid_namespace = podsvid_namespace
        self._room = ExecRoom()
        self._needed = needed
        # The API server's clock, as its last answer said it.
        self.dated = ""
        try:
            # Not the package's typed calls: its models take a second to load. What is left of it is without types.
            self._client: Any = config.new_client_from_config(kubeconfig, context)
        except (config.ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            why = " ".join(_told(error).split()).rstrip(".")
            there = f"kubectl -n {podsvid_namespace} exec deploy/podsvid-signer -- podsvid {example}"
            or_there = f", or run this in a signer's pod: {there}" if example else ""
            raise NotTold(f"no usable kubeconfig: {why}; give --kubeconfig and --context{or_there}") from None

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self._client.configuration.host)

    def pod(self, namespace: str, name: str) -> SeenPod:
        """That pod."""
        try:
            pod = self._get(f"{_pods(namespace)}/{quote(name)}", {}, kept.Pod)
        except ApiException as error:
            if error.status == NOT_FOUND:
                raise NoSuchPod(
                    f"pod {namespace}/{name} does not exist (any more); is --context the right cluster?"
                ) from None
            raise NotTold(f"pod {namespace}/{name} cannot be read: {_said(error, self._needed)}") from None
        except msgspec.DecodeError as error:
            raise NotTold(
                f"{self.host} answers with no pod ({error}); is it an API server? look at the context"
            ) from None
        except (HTTPError, OSError) as error:
            raise self._unheard(error) from None
        return SeenPod(
            pod.metadata.namespace,
            pod.metadata.name,
            pod.metadata.uid,
            pod.spec.node_name or "",
            pod.status.phase or "",
            tuple(each.csi.driver for each in pod.spec.volumes or () if each.csi),
            any(each.certified for each in pod.spec.volumes or ()),
        )

    def running(self, component: str, node: str = "") -> str | None:
        """The name of a running pod of that component, on `node` where one is given; of several a ready one."""
        query = {"labelSelector": f"app.kubernetes.io/name=podsvid,app.kubernetes.io/component={component}"}
        if node:
            query["fieldSelector"] = f"spec.nodeName={node}"
        found = self.read(_pods(self.podsvid_namespace), query, kept.Pods)
        running = [
            pod for pod in found.items if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
        ]
        # One that is ready knows the cluster; one that is not may still answer.
        running.sort(key=lambda pod: not pod.ready)
        return running[0].metadata.name if running else None

    def agents(self) -> tuple[AgentPod, ...]:
        """One for each node that has any, those that run before others."""
        query = {"labelSelector": "app.kubernetes.io/name=podsvid,app.kubernetes.io/component=agent"}
        found: dict[str, AgentPod] = {}
        for pod in self.read(_pods(self.podsvid_namespace), query, kept.Pods).items:
            node, phase = pod.spec.node_name or "", pod.status.phase or ""
            runs = phase == "Running" and pod.metadata.deletion_timestamp is None
            if node and (node not in found or runs):
                found[node] = AgentPod(pod.metadata.name, node, phase, runs)
        return tuple(found.values())

    def signer(self) -> str:
        """The name of a signer's pod that runs. Raises CommandFailed."""
        found = self.running("signer")
        if found is None:
            raise CommandFailed(
                f"no signer runs in namespace {self.podsvid_namespace}; look at its Deployment podsvid-signer, or say "
                "with --podsvid-namespace where podsvid is installed"
            )
        return found

    def run(self, pod: str, container: str, command: list[str]) -> Any:
        """What the command printed in a pod of podsvid, from JSON. Raises NotAllowed, too."""
        # Others may have added containers of theirs.
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        query += [("command", each) for each in command]
        url = f"{self.host}{_pods(self.podsvid_namespace)}/{quote(pod)}/exec?{urlencode(query)}"
        try:
            with self._room.taken():
                call = websocket_call(
                    self._client.configuration, "GET", url, headers=self._credentials(), _preload_content=False
                )
                large = _hear_out(call)
                late = call.is_open() and not large
                out, said = call.read_stdout(timeout=0), call.read_stderr(timeout=0)
                call.close()
        except ApiException as error:
            if (
                not error.status
                and isinstance(error.__context__, OSError | WebSocketException)
                and not _answered(error)
            ):
                raise self._unheard(error.__context__) from None
            raise _refused(error, self._needed) from None
        except (HTTPError, OSError, WebSocketException) as error:
            raise self._unheard(error) from None
        except ValueError as error:
            raise NotTold(_told(error)) from None
        if large:
            raise NotTold(f"pod {pod} answered more than {MOST_PRINTED >> 20} MiB; is it podsvid's? look at its image")
        if late:
            raise NotTold(f"pod {pod} did not answer within {EXEC_SECONDS} s; look at its log")
        if not out:
            # It becomes a part of a sentence; a pod whose chart has docsURL says in a line more where to read on, and
            # what it says while it waits is news of its own terminal.
            apart = (SEE, "podsvid: waiting for ")
            lines = [each for each in said.strip().splitlines() if not each.startswith(apart)]
            why = "\n".join(lines).removeprefix("podsvid: ")
            raise NotTold(why or f"pod {pod} answered nothing; look at its log")
        try:
            found = json.loads(out, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise NotTold(f"pod {pod} answered no JSON; is its podsvid of this version?") from None
        if _deeper(found, MOST_NESTED):
            raise NotTold(f"pod {pod} answered what nests deeper than podsvid's answers do; is it podsvid's?")
        return found

    def events(self, pod: SeenPod) -> list[dict[str, str]]:
        """The newest events about the pod's volumes, the oldest of them first."""
        path = f"/api/v1/namespaces/{quote(pod.namespace)}/events"
        query = {"fieldSelector": f"involvedObject.uid={pod.uid}", "limit": str(EVENTS_AT_ONCE)}
        mine: list[kept.Event] = []
        for _ in range(MOST_PAGES):
            found = self.read(path, query, kept.Events)
            mine += [
                each for each in found.items if "podsvid" in (each.reporting_component or "") or each.reason in KUBELETS
            ]
            mine.sort(key=lambda each: each.last_seen)
            del mine[:-MAX_EVENTS]
            if not found.metadata.more:
                break
            query["continue"] = found.metadata.more
        return [
            {
                "at": f"{each.last_seen:%Y-%m-%dT%H:%M:%SZ}",
                "reason": each.reason,
                "message": each.message,
                "count": str(each.times),
            }
            for each in mine
        ]

    def read(self, path: str, query: Mapping[str, str], kind: type[_Kind]) -> _Kind:
        """What is at that path, as far as `kind` keeps it."""
        try:
            return self._get(path, query, kind)
        except ApiException as error:
            raise _refused(error, self._needed) from None
        except msgspec.DecodeError as error:
            raise NotTold(
                f"{self.host} answers with what no API server does ({error}); is it one? look at the context"
            ) from None
        except (HTTPError, OSError) as error:
            raise self._unheard(error) from None

    def _unheard(self, error: BaseException) -> NotTold:
        """What to say where nobody answered."""
        return NotTold(f"the API server {self.host} cannot be reached ({_why(error)}); {LOOK_AT_KUBECONFIG}")

    def _get(self, path: str, query: Mapping[str, str], kind: type[_Kind]) -> _Kind:
        """Raises ApiException, HTTPError, OSError, and DecodeError where the answer is none of an API server."""
        url = f"{self.host}{path}?{urlencode(query)}" if query else f"{self.host}{path}"
        headers = {**self._client.default_headers, "Accept": "application/json", **self._credentials()}
        try:
            answer = self._client.rest_client.request("GET", url, headers=headers, _request_timeout=ANSWER_SECONDS)
            data = answer.read()
        except (HTTPError, OSError):
            raise
        except ValueError as error:
            raise NotTold(f"the API server {self.host} cannot be asked: {_told(error)}") from None
        self.dated = answer.headers.get("Date") or self.dated
        if answer.status != OK:
            refused = ApiException(status=answer.status, reason=answer.reason)
            refused.body = data
            raise refused
        try:
            return msgspec.json.decode(data, type=kind)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(f"it is no UTF-8: {error.reason}") from None

    def _credentials(self) -> dict[str, str]:
        """Headers; what a kubeconfig's command or provider gives is renewed by this where it is old. Raises NotTold."""
        try:
            settings = self._client.configuration.auth_settings()
        except (config.ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            raise NotTold(f"the kubeconfig's credentials cannot be renewed: {_told(error)}; log in again") from None
        # A token's file ends with its line.
        headers = {
            each["key"]: each["value"].strip() for each in settings.values() if each["in"] == "header" and each["value"]
        }
        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            # Whoever sends it else answers with the token in a sentence.
            raise NotTold(
                "the kubeconfig's token is no single line of ASCII; look at its token, tokenFile or login program"
            )
        return headers


def _hear_out(call: Any) -> bool:
    """Until the command ends, or its time does; whether it prints too much. Raises HTTPError, OSError, ValueError."""
    until = time.monotonic() + EXEC_SECONDS
    while call.is_open() and (left := until - time.monotonic()) > 0:
        call.update(timeout=left)
        if len(call.peek_stdout()) + len(call.peek_stderr()) > MOST_PRINTED:
            return True
    return False


def _no_number(text: str) -> None:
    """NaN and the infinite, which Python reads and no other JSON has: a browser would refuse all that it stands in."""
    raise ValueError(text)


def _deeper(value: Any, than: int) -> bool:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return than == 0 or any(_deeper(each, than - 1) for each in within if isinstance(each, dict | list))


def _pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/pods"


def _told(error: BaseException) -> str:
    """Its text, but where a package says what is wrong with a value: that quotes the value, and it may be a token."""
    quotes = isinstance(error, ValueError | TypeError | AttributeError)
    own = isinstance(error, OSError | HTTPError | msgspec.DecodeError)
    return type(error).__name__ if quotes and not own else str(error) or type(error).__name__


def _why(error: BaseException) -> str:
    """What the system said, below what the packages made of it."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        error, reason = below, getattr(below, "reason", None)
        below = reason if isinstance(reason, BaseException) else below.__cause__ or below.__context__
    if isinstance(error, TimeoutError | TooLate | WebSocketTimeoutException):
        return "no answer in time"
    if isinstance(error, ConnectionError | ProtocolError | WebSocketConnectionClosedException):
        return "it ended the connection"
    return str(error) if isinstance(error, LocationValueError | WebSocketException) else type(error).__name__


def _answered(error: Any) -> bool:
    return isinstance(error.__context__, WebSocketBadStatusException)


def _refused(error: Any, needed: str) -> NotTold:
    status = error.__context__.status_code if _answered(error) else error.status
    found = (NotAllowed if status == FORBIDDEN else NotTold)(_said(error, needed))
    found.status = status or 0
    return found


def _said(error: Any, needed: str) -> str:
    """What the API server said, and what may be missing."""
    status, body = error.status, error.body
    if _answered(error):
        # The client of exec raises an error without them, from this one.
        status, body = error.__context__.status_code, error.__context__.resp_body
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        # The client of exec has put the text of whatever went wrong into it.
        reason = _told(error.__context__) if isinstance(error.__context__, ValueError) else str(error.reason)
        message = f"the API server answered {status}" if status else reason
    advice = {
        FORBIDDEN: needed,
        UNAUTHORIZED: "; the kubeconfig's credentials have expired or are wrong: log in again",
    }
    return message + advice.get(status, "")
