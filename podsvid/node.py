"""`podsvid node`: the volumes of this node's agent, why one is as it is, and renewing one now."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message

from agent.admin_api import SERVICE
from agent.errors import AgentError
from agent.pb import node_admin_pb2 as pb
from podsvid import sockets
from podsvid.options import as_yaml, which_pod
from podsvid.output import console as console_for
from podsvid.output import instant, print_table, to_json
from podsvid.sockets import SocketAbsent
from podsvid.waiting import Waiting
from runtime.durations import about
from runtime.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = ("POD", "SPIFFE ID", "DRIVER/LAYOUT", "ENDS IN", "RENEWS IN", "STREAMS", "STATE")
_MORE_COLUMNS = ("ACCOUNT", "KEY", "SERIAL", "AUTHORITY", "ENDS AT", "RENEWS AT", "POD UID", "VOLUME")
_Answer = TypeVar("_Answer", bound=Message)


class NodeCommandFailed(AgentError):
    """The agent could not be asked, or says no."""

    reason = "NODE_COMMAND_FAILED"


def run(parsed: argparse.Namespace) -> int:
    """Run it; the exit code: 0, or 3 when a volume is not well. Raises CommandError, NodeCommandFailed."""
    if not Path(parsed.socket).exists():
        command = parsed.action if parsed.action == "ls" else f"{parsed.action} NAMESPACE/POD"
        raise SocketAbsent(
            f"no agent listens at {parsed.socket}; run this as root on the node or in the agent's pod, for example "
            f"kubectl -n podsvid exec POD -- podsvid node {command}"
        )
    now = datetime.now(UTC)
    namespace, name = which_pod(parsed) if parsed.action != "ls" else ("", "")
    agent = Agent(parsed.socket, Waiting(parsed.timeout))
    if parsed.action == "ls":
        found = agent.ask("List", pb.ListRequest(), pb.ListResponse)
        _print(found, parsed.output, lambda console: _list(found.volumes, console, now, parsed.output))
        return _code(found.volumes)
    if parsed.action == "rotate":
        rotated = agent.ask("Rotate", pb.RotateRequest(namespace=namespace, pod=name), pb.RotateResponse)
        _print(rotated, parsed.output, lambda console: _list(rotated.volumes, console, now, parsed.output))
        return _code(rotated.volumes)
    explained = agent.ask("Explain", pb.ExplainRequest(namespace=namespace, pod=name), pb.ExplainResponse)
    _print(explained, parsed.output, lambda console: show(explained, console, now))
    return _code(explained.volumes) if explained.volumes else 3


def show(found: pb.ExplainResponse, console: "Console", now: datetime) -> None:
    """Print what an agent says of a pod, for a person."""
    for volume in found.volumes:
        _explain(volume, console, now)
    if found.publish_problems:
        console.print("could not be published; kubelet goes on trying:")
        _problems(found.publish_problems, console, now)
    console.print(f"authority: {printable(found.authority)}", markup=False)


class Agent:
    """The agent whose admin socket is at `path`."""

    def __init__(self, path: str, waiting: Waiting) -> None:
        self._path = path
        self._waiting = waiting

    def ask(self, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        """What it answers. Raises CommandError, NodeCommandFailed."""

        def work() -> _Answer:
            with grpc.insecure_channel(f"unix:{self._path}") as channel:
                call: Callable[..., _Answer] = channel.unary_unary(
                    f"/{SERVICE}/{method}", type(request).SerializeToString, answer.FromString
                )
                return call(request, timeout=self._waiting.left())

        try:
            return self._waiting.ask(f"the agent at {self._path}", work)
        except grpc.RpcError as error:
            seen = sockets.explained(error, self._path, "an agent", SERVICE)
            if seen is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                seen = self._waiting.gave_up(f"the agent at {self._path}")
            raise seen or NodeCommandFailed(str(error.details())) from None


def _print(message: Message, output: str, people: "Callable[[Console], None]") -> None:
    if output in ("json", "yaml"):
        document = to_json(message) + "\n"
        sys.stdout.write(document if output == "json" else as_yaml(document))
    else:
        people(console_for(output))


def _code(volumes: Iterable[pb.Volume]) -> int:
    return 0 if all(each.state == "ok" for each in volumes) else 3


def _list(volumes: Iterable[pb.Volume], console: "Console", now: datetime, output: str) -> None:
    wide = output == "wide"
    rows = [(*_row(each, now), *(_more(each) if wide else ())) for each in volumes]
    if rows:
        print_table(console, (*_COLUMNS, *(_MORE_COLUMNS if wide else ())), rows)
    else:
        console.print("kubelet has no volume of podsvid published on this node")


def _row(each: pb.Volume, now: datetime) -> tuple[str, ...]:
    return (
        f"{each.namespace}/{each.pod}",
        each.spiffe_id,
        f"{each.driver}/{each.layout}",
        _until(each, "not_after", now),
        _until(each, "renew_at", now),
        str(each.open_streams),
        _state(each),
    )


def _more(each: pb.Volume) -> tuple[str, ...]:
    ends, renews = (
        instant(getattr(each, field)) if each.HasField(field) else "" for field in ("not_after", "renew_at")
    )
    known = each.service_account, each.key_algorithm, each.serial, each.authority_id
    return (*known, ends, renews, each.pod_uid, each.volume_id)


def _explain(volume: pb.Volume, console: "Console", now: datetime) -> None:
    def line(name: str, text: str) -> None:
        console.print(f"  {name:<13}{printable(text)}", markup=False)

    console.print(printable(f"pod {volume.namespace}/{volume.pod} ({volume.pod_uid}): {_state(volume)}"), markup=False)
    line("SPIFFE ID", volume.spiffe_id or "none yet")
    line("account", volume.service_account)
    line("key", volume.key_algorithm)
    if volume.policy:
        line("policy", volume.policy)
    if volume.serial:
        line("serial", f"{volume.serial}, signed by authority {volume.authority_id}")
    if volume.HasField("not_after"):
        ends = _until(volume, "not_after", now)
        line("valid", f"{instant(volume.not_before)} to {instant(volume.not_after)}, for {ends} more")
    if volume.failures or not volume.HasField("renew_at"):
        line("renewal", volume.renew_because)
    else:
        line("renewal", f"{instant(volume.renew_at)}, in {_until(volume, 'renew_at', now)}: {volume.renew_because}")
    for file in volume.jwt_files:
        ends, renews = (about((each.ToDatetime(UTC) - now).total_seconds()) for each in (file.not_after, file.renew_at))
        line("JWT-SVID", f"{file.name} for {', '.join(file.audiences)}, ends in {ends}, renewed in {renews}")
    if volume.notice:
        line("notice", volume.notice)
    line("driver", f"{volume.driver}, layout {volume.layout}")
    written = f"written {instant(volume.files_written_at)}" if volume.HasField("files_written_at") else "not written"
    line("files", f"{', '.join(volume.files)}; {written}")
    if volume.files_serial != volume.serial and volume.HasField("files_not_after"):
        line("", f"they hold an older SVID: serial {volume.files_serial}, valid to {instant(volume.files_not_after)}")
    line("directory", volume.directory)
    line("streams", _streams(volume.streams))
    line("connections", _peers(volume.peers))
    line("next publish", volume.next_publish)
    if volume.problems:
        line("problems", "")
        _problems(volume.problems, console, now)


def _state(volume: pb.Volume) -> str:
    # What the pod's author should look at though nothing failed: a person's eye finds it in a long list.
    notice = "(see explain)" if volume.notice and volume.state == "ok" else ""
    return " ".join(filter(None, [volume.state, volume.state_reason, notice]))


def _streams(streams: Iterable[pb.Stream]) -> str:
    """The agent names the oldest first: of many of a kind that one's age is told."""
    many = Counter(each.method for each in streams)
    oldest: dict[str, int] = {}
    for each in streams:
        oldest.setdefault(each.method, each.open_seconds)
    return ", ".join(_times(f"{name} for {about(oldest[name])}", number) for name, number in many.items()) or "none"


def _peers(peers: Iterable[pb.Peer]) -> str:
    return ", ".join(_times(text, number) for text, number in Counter(map(_peer, peers)).items()) or "none"


def _peer(peer: pb.Peer) -> str:
    # Quoted: a process chooses its name.
    process = f"pid {peer.pid} {peer.command!a}" if peer.pid else "pid unknown, not in the agent's PID namespace"
    return f"uid {peer.uid}, {process}"


def _times(text: str, number: int) -> str:
    return text if number == 1 else f"{text} ({number} times)"


def _problems(problems: Iterable[pb.Problem], console: "Console", now: datetime) -> None:
    for each in problems:
        ago = about((now - each.at.ToDatetime(UTC)).total_seconds())
        since = about((now - each.first_at.ToDatetime(UTC)).total_seconds())
        often = f", {each.times} times since {since} ago" if each.times > 1 else ""
        console.print(printable(f"    {ago} ago{often}  {each.reason}: {each.message}"), markup=False)
        if each.advice:
            console.print(printable(f"      {each.advice}"), markup=False)


def _until(volume: pb.Volume, field: str, now: datetime) -> str:
    if not volume.HasField(field):
        return ""
    left: float = (getattr(volume, field).ToDatetime(UTC) - now).total_seconds()
    return about(left) if left >= 0 else f"-{about(-left)}"
