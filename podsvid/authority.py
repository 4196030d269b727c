"""`podsvid authority`, and a signer's part of `podsvid explain`: the authorities' life, and who gets which identity."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import Message

from podsvid import sockets
from podsvid.interrupts import unwinding
from podsvid.options import TABLE_FORMS, add_output, add_timeout, as_yaml, which_pod
from podsvid.outcome import SIGNALLED
from podsvid.output import console as console_for
from podsvid.output import instant, rfc3339, to_json
from podsvid.reading import of_refusal
from podsvid.sockets import SocketAbsent
from podsvid.status import print_status, warning
from podsvid.waiting import GaveUp, Waiting
from runtime.terminal import printable
from signer.admin_api import KINDS, SERVICE
from signer.errors import SignerError
from signer.pb import admin_pb2

if TYPE_CHECKING:
    from rich.console import Console

ACTIONS = {
    "prepare": admin_pb2.ACTION_PREPARE,
    "activate": admin_pb2.ACTION_ACTIVATE,
    "revoke": admin_pb2.ACTION_REVOKE,
    "rotate": admin_pb2.ACTION_ROTATE,
    "revoke-upstream": admin_pb2.ACTION_REVOKE_UPSTREAM,
    "trust-upstream": admin_pb2.ACTION_TRUST_UPSTREAM,
}
_BY_NAME = {name: kind for kind, name in KINDS.items()}
_NAMES = {**KINDS, admin_pb2.KIND_BOTH: "x509, jwt"}
DEFAULT_SOCKET = "/run/podsvid-signer/admin.sock"
# Policies that do not match, shown unless all are asked for: those of the same namespace or none, the nearest first.
_NEAR = 5
# Whoever asks for a forced rotation once more abandons what the first one made.
_UNKNOWN, _SEE = "it is not known whether the signer took it", "see `podsvid authority show`"


class CommandFailed(SignerError):
    """The signer could not be asked, or refuses."""

    reason = "AUTHORITY_COMMAND_FAILED"


class WentAway(CommandFailed):
    """The signer that was asked tells no more, in the middle of what it took; `why`: as gRPC has it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the signer at {path} has gone away ({why}), as in an upgrade; the signers go on by themselves with what "
            f"was asked for, so do not ask for it again: `podsvid authority show` in any signer's pod tells how far "
            "it is"
        )


class NoSuchPod(CommandFailed):
    """The cluster has no pod of that name."""

    reason = "POD_NOT_FOUND"


def here(path: str = DEFAULT_SOCKET) -> str:
    """Where the signer of this container has its admin socket, by the environment that it has too.

    Whoever asks by exec knows the usual path only: in a container with another one it stands for that.
    """
    return os.environ.get("PODSVID_ADMIN_SOCKET", DEFAULT_SOCKET) if path == DEFAULT_SOCKET else path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their flags."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    texts = {
        "show": "the authorities, who has acknowledged them, and what happens next",
        "prepare": "make a new authority and publish it; it does not sign yet",
        "activate": "sign with the prepared authority",
        "revoke": "take an authority that does not sign out of the trust bundle",
        "rotate": "replace an authority: prepare, activate when all agents have it, re-issue; with progress. The one "
        "before stays trusted until its last SVID has ended, which `show` tells and --wait waits for",
        "revoke-upstream": "a root of the CA above is stolen: replace what leads to it alone as in a forced rotation, "
        "then trust it no more, and never take it again; with progress",
        "trust-upstream": "take a revoke-upstream back: the root is trusted again when the CA above names it",
    }
    for name, text in texts.items():
        each = commands.add_parser(name, help=text, description=text)
        each.add_argument(
            "--socket",
            default=here(),
            metavar="SOCKET",
            help=f"the replica's admin socket (default: {here()}) [PODSVID_ADMIN_SOCKET]",
        )
        add_timeout(each, what="until the first answer")
        if name == "show":
            add_output(each, TABLE_FORMS)
            each.add_argument("--watch", action="store_true", help="go on showing changes")
            continue
        add_output(each)
        if name in ("revoke-upstream", "trust-upstream"):
            each.set_defaults(kind="x509")
            of = "the root's SHA-256 fingerprint, or its subject key identifier, as `show` prints them"
            each.add_argument("authority_id", metavar="ROOT", help=of)
        else:
            usual = "x509; with --forced: both" if name == "rotate" else "x509"
            each.add_argument("--kind", choices=sorted(_BY_NAME), help=f"which authorities (default: {usual})")
        if name == "revoke":
            each.add_argument("authority_id", metavar="AUTHORITY_ID", help="its id, as `show` prints it")
        if name != "trust-upstream":
            text = {
                "revoke-upstream": "trust it no more from now on, whoever is cut off until it has another SVID",
                "rotate": "the keys are stolen: abandon all authorities that there are now, re-issue in minutes, and "
                "wait until none of them is trusted",
                "revoke": "do not wait until its SVIDs are re-issued",
                "activate": "do not wait for agents that have not acknowledged",
                "prepare": "also while the signer's clock and the API server's differ",
            }[name]
            flags = ("--forced", "--compromised") if name == "rotate" else ("--forced",)
            each.add_argument(*flags, dest="forced", action="store_true", help=text)
        if name in ("rotate", "revoke-upstream"):
            waiting = each.add_mutually_exclusive_group()
            waits = (
                "wait until the one before is trusted no more"
                if name == "rotate"
                else "wait until it is trusted no more and what was below it is re-issued: the default"
            )
            waiting.add_argument("--wait", action="store_true", help=waits)
            waiting.add_argument("--no-wait", action="store_true", help="do not wait for anything")


def explain(parsed: argparse.Namespace) -> int:
    """Print which identity policy gives a pod and why, by `parsed.socket`; the exit code: 0 allowed, 3 refused.

    Raises CommandFailed.
    """
    namespace, pod = which_pod(parsed)
    parsed.socket = here(parsed.socket)
    check_socket(parsed.socket, "explain NAMESPACE/POD")
    request = admin_pb2.ExplainRequest(namespace=namespace, pod=pod)
    waiting = Waiting(parsed.timeout)

    def work() -> admin_pb2.ExplainResponse:
        with grpc.insecure_channel(f"unix:{parsed.socket}") as channel:
            call: Callable[..., admin_pb2.ExplainResponse] = channel.unary_unary(
                f"/{SERVICE}/Explain", admin_pb2.ExplainRequest.SerializeToString, admin_pb2.ExplainResponse.FromString
            )
            return call(request, timeout=waiting.left())

    try:
        found = waiting.ask(signer_at(parsed.socket), work)
    except grpc.RpcError as error:
        raise failed(error, parsed.socket, waiting) from None
    if parsed.output == "text":
        show_explained(f"{namespace}/{pod}", found, every=parsed.all)
    else:
        _print(found, parsed.output)
    return 0 if found.outcome == "allowed" else 3


def show_explained(pod: str, found: admin_pb2.ExplainResponse, *, every: bool, lacking: str = "") -> None:
    """Print a signer's answer for a person; `every`: with all policies that do not match, not only the nearest.

    `lacking`: what the node says against it that the pod has what it may have.
    """
    allowed = found.outcome == "allowed"
    lines = [
        f"pod {pod}: {found.spiffe_id if allowed else found.outcome}{f' ({lacking})' if lacking and allowed else ''}",
        *of_refusal(found.outcome),
        f"policy: {found.policy or 'none is asked'}",
    ]
    if found.entitled:
        lines.append(f"its identity: {found.entitled}, for volumes that ask for no more than the policy gives")
    if found.subject:
        beside = "; a ztunnel's has none" if found.proxy_ttl else ""
        lines.append(f"subject of its certificates: {found.subject}{beside}")
    if found.x509_ttl:
        lines.append(f"X.509-SVIDs live {found.x509_ttl}; a volume's ttl gets {found.x509_ttl_most} at most")
    if found.certificate_ttl:
        lines.append(f"X.509-SVIDs of podCertificate sources live {found.certificate_ttl}")
    if found.proxy_ttl:
        lines.append(f"Istio's proxies in it get certificates of that identity, which live {found.proxy_ttl} at most")
    if found.ttl_clipped:
        lines.append(f"not granted: {found.ttl_clipped}")
    # A signer of before does not say why they lost.
    because = {each.policy: f": {each.because}" for each in found.lost}
    lines += [f"matches as well, and lost: {name}{because.get(name, '')}" for name in found.matched[1:]]
    near = [each for each in found.not_matched if not each.elsewhere][:_NEAR]
    shown = found.not_matched if every else near
    lines += [f"does not match: {each.policy}: {each.because}" for each in shown]
    more = len(found.not_matched) - len(shown)
    lines += [f"{more} more policies do not match: --all shows them"] if more else []
    for line in lines:
        print(printable(line))


def run(parsed: argparse.Namespace) -> int:
    """Run it; the exit code. Raises CommandFailed."""
    parsed.socket = here(parsed.socket)
    check_socket(parsed.socket, "authority show")
    waiting, asked = Waiting(parsed.timeout), parsed.action == "show"
    with grpc.insecure_channel(f"unix:{parsed.socket}") as channel:
        try:
            if parsed.action == "show":
                return _show(channel, parsed, waiting)
            # Once it is asked it goes on, whether or not anybody waits.
            with unwinding():
                answer = waiting.ask(signer_at(parsed.socket), lambda: _step(channel, parsed, waiting.left()))
                asked = True
                if parsed.output == "text":
                    for line in (answer.message, *map(warning, answer.warnings)):
                        print(printable(line), flush=True)
                else:
                    _print(answer, parsed.output)
                if parsed.action in ("rotate", "revoke-upstream") and not parsed.no_wait:
                    told = set(answer.warnings)
                    try:
                        _follow(channel, _kind(parsed), _goes_on(parsed), parsed.output, told)
                    except grpc.RpcError as error:
                        # Nobody looks at the socket first: of a pod that ends this may be the last moment.
                        raise WentAway(parsed.socket, str(error.details())) from None
            return 0
        except (grpc.RpcError, GaveUp) as error:
            found = error if isinstance(error, GaveUp) else failed(error, parsed.socket, waiting)
            raise found if asked else _unsure(found) from None
        except KeyboardInterrupt as error:
            print(f"podsvid: {'the signer goes on by itself' if asked else _UNKNOWN}; {_SEE}", file=sys.stderr)
            return SIGNALLED + int(getattr(error, "number", signal.SIGINT))


def _unsure(error: Exception) -> Exception:
    return GaveUp(f"{error}; {_UNKNOWN}; {_SEE}") if isinstance(error, GaveUp) else error


def signer_at(path: str) -> str:
    """Who is waited for, in words."""
    return f"the signer at {path}"


def failed(error: grpc.RpcError, path: str, waiting: Waiting) -> Exception:
    """What to raise of what a call to the admin socket at `path` ended with."""
    seen = sockets.explained(error, path, "a signer", SERVICE)
    if seen is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        seen = waiting.gave_up(signer_at(path))
    kind = NoSuchPod if error.code() is grpc.StatusCode.NOT_FOUND else CommandFailed
    return seen or kind(str(error.details()))


def check_socket(path: str, example: str) -> None:
    """Raises SocketAbsent, which says how to run `example` where there is one."""
    if not Path(path).exists():
        raise SocketAbsent(
            f"no signer listens at {path}; run this in a signer's pod, for example "
            f"kubectl -n podsvid exec deploy/podsvid-signer -- podsvid {example}"
        )


def _print(message: Message, output: str) -> None:
    document = to_json(message)
    # `show --watch` and `rotate` print one after the other.
    print(document if output == "json" else f"---\n{as_yaml(document).rstrip()}", flush=True)


def watch(channel: grpc.Channel, seconds: float | None) -> Iterator[admin_pb2.AuthorityStatus]:
    """The authorities' state now and after each change, for so many seconds."""
    call: Callable[..., Iterator[admin_pb2.AuthorityStatus]] = channel.unary_stream(
        f"/{SERVICE}/Watch", admin_pb2.WatchRequest.SerializeToString, admin_pb2.AuthorityStatus.FromString
    )
    return call(admin_pb2.WatchRequest(), timeout=seconds)


def _step(channel: grpc.Channel, parsed: argparse.Namespace, seconds: float) -> admin_pb2.StepResponse:
    call: Callable[..., admin_pb2.StepResponse] = channel.unary_unary(
        f"/{SERVICE}/Step", admin_pb2.StepRequest.SerializeToString, admin_pb2.StepResponse.FromString
    )
    request = admin_pb2.StepRequest(
        action=ACTIONS[parsed.action],
        kind=_kind(parsed),
        authority_id=getattr(parsed, "authority_id", ""),
        forced=getattr(parsed, "forced", False),
    )
    return call(request, timeout=seconds)


def _kind(parsed: argparse.Namespace) -> "admin_pb2.Kind":
    if parsed.kind is None and parsed.action == "rotate" and parsed.forced:
        return admin_pb2.KIND_BOTH
    return _BY_NAME[parsed.kind or "x509"]


def _show(channel: grpc.Channel, parsed: argparse.Namespace, waiting: Waiting) -> int:
    coming = watch(channel, None if parsed.watch else waiting.left())
    first = waiting.ask(signer_at(parsed.socket), lambda: next(coming))
    for status in chain([first], coming):
        if parsed.output in ("json", "yaml"):
            _print(status, parsed.output)
        else:
            print_status(status, console_for(parsed.output), wide=parsed.output == "wide")
        if not parsed.watch:
            break
    return 0


def _goes_on(parsed: argparse.Namespace) -> Callable[[admin_pb2.AuthorityStatus], bool]:
    """Whether what was asked for is still to be waited for: that SVIDs are re-issued, or nothing of before trusted."""
    if parsed.action == "revoke-upstream":
        root = parsed.authority_id.replace(":", "").strip().lower()
        return lambda status: _is_leaving(status, root)
    kind, to_the_end = _kind(parsed), parsed.wait or parsed.forced

    def rotating(status: admin_pb2.AuthorityStatus) -> bool:
        x509, jwt = (
            (status.rotating_x509, status.rotating_jwt) if to_the_end else (status.reissuing_x509, status.reissuing_jwt)
        )
        return (x509 and kind != admin_pb2.KIND_JWT) or (jwt and kind != admin_pb2.KIND_X509)

    return rotating


def _is_leaving(status: admin_pb2.AuthorityStatus, root: str) -> bool:
    # Another certificate of its key may be what a person names.
    names = {root, *(each.key_id for each in status.upstream_roots if each.id == root)}
    found = [each for each in status.revoked_roots if names & {each.id, each.key_id}]
    if not found:
        raise CommandFailed(f"the revocation of root {root} was taken back meanwhile; {_SEE}")
    return status.reissuing_x509 or any(each.trusted for each in found)


def _follow(
    channel: grpc.Channel,
    kind: "admin_pb2.Kind",
    goes_on: Callable[[admin_pb2.AuthorityStatus], bool],
    output: str,
    told: set[str],
) -> None:
    """Print each change as long as it goes on; then what is left.

    `told`: warnings that were printed, to which those are added that come with a change.
    """
    last, console = "", console_for(output)
    for status in watch(channel, None):
        line = _progress(status, kind)
        new = [each for each in status.warnings if each not in told]
        told.update(new)
        if line != last or new:
            last = line
            if output == "text":
                console.print(f"{rfc3339(datetime.now(UTC))} {line}")
                for each in new:
                    console.print(warning(each), soft_wrap=True)
            else:
                _print(status, output)
        if not goes_on(status):
            if output == "text":
                _print_left(status, kind, console)
            return


def _print_left(status: admin_pb2.AuthorityStatus, kind: "admin_pb2.Kind", console: "Console") -> None:
    for head, lines in (("next", status.next), ("to do", status.to_do)):
        for line in lines:
            if line.partition(":")[0] in _NAMES[kind]:
                console.print(f"{head}: {line}", soft_wrap=True)


def _progress(status: admin_pb2.AuthorityStatus, kind: "admin_pb2.Kind") -> str:
    mine = [each for each in status.authorities if kind in (each.kind, admin_pb2.KIND_BOTH)]
    stages = ", ".join(f"{each.id[:8]} {each.stage}" for each in mine)
    have = status.agents - status.agents_waiting
    line = f"{stages}; agents acknowledged {have} of {status.agents}"
    if status.unknown:
        line += f"; unknown: {status.unknown}"
    for awaited in status.awaited:
        if kind in (awaited.kind, admin_pb2.KIND_BOTH):
            line += f"; waits for {awaited.audience} until {instant(awaited.until)}"
    known = [each for each in mine if each.svids_known]
    # Until the new one signs, what there is of the active one's is what is to be re-issued.
    ahead = any(each.stage == "prepared" for each in known) or (status.rotating_x509 and len(known) == 1)
    if known and not ahead:
        total = sum(each.svids for each in known)
        fresh = sum(each.svids for each in known if each.stage == "active")
        line += f"; SVIDs re-issued {fresh} of {total}"
    return line
