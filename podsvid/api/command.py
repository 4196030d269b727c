"""`podsvid api …`: ask a Workload API socket, as any workload would.

This module is imported to build the command line, so what a verb needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.errors import AgentError, WorkloadApiError
from podsvid.interrupts import unwinding
from podsvid.options import FORMS, add_output, add_timeout, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from signal import Signals

    from podsvid.api.rendering import Rendered
    from podsvid.api.workload_client import WorkloadApiClient
    from svid.spiffeid import SpiffeId

ENDPOINT_VARIABLE: Final = "SPIFFE_ENDPOINT_SOCKET"
# Where pods have the socket by custom: podsvid's, and the SPIFFE CSI driver's.
CUSTOMARY: Final = ("/spiffe/socket", "/spiffe-workload-api/spire-agent.sock")
_TIMEOUT: Final = 10.0
_EXEC_TIMEOUT: Final = 30.0
_LONGEST_TOKEN: Final = 64 * 1024
_EXEC_CREDENTIAL: Final = "exec-credential"
_EXEC_INFO: Final = "KUBERNETES_EXEC_INFO"


class _TokenInvalid(AgentError):
    """The server, or a look at it, finds that the token is not valid."""

    reason = "TOKEN_INVALID"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `podsvid api`."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch|watch|validate")
    fetch = _page(verbs, "fetch", "print what the socket has now, and end")
    kinds = fetch.add_subparsers(dest="kind", required=True, metavar="x509|jwt|bundle")

    x509 = _command(_page(kinds, "x509", "the X.509-SVIDs with their bundles"), ("pem",))
    _add_write(x509, "data", "svid.N.pem, svid.N.key, bundle.N.pem and federated_bundle.TRUST_DOMAIN.pem")

    jwt = _command(_page(kinds, "jwt", "JWT-SVIDs for an audience"), ("token", _EXEC_CREDENTIAL))
    jwt.add_argument("--audience", action="append", required=True, type=_audience, metavar="A", help="repeatable")
    jwt.add_argument("--spiffe-id", type=_spiffe_id, metavar="ID", help="of this identity only (default: one of each)")
    _add_write(jwt, "jwt", "jwt_svid.N.token")

    bundle = _command(_page(kinds, "bundle", "the bundles of all trust domains"), ("pem",))
    _add_write(bundle, "bundles", "trust_bundle.TRUST_DOMAIN.pem and trust_bundle.TRUST_DOMAIN.jwks")

    watch = _command(
        _page(verbs, "watch", "print the X.509-SVIDs, and again whenever they change"),
        ("pem",),
        timeout=None,
    )
    _add_write(watch, "data", "the files of `fetch x509`")
    watch.add_argument(
        "--signal",
        metavar="PID[:NAME]",
        type=_signal,
        help="send a signal (default HUP) to this process after each change, and after the command",
    )
    watch.add_argument(
        "--exec-timeout",
        type=seconds,
        default=_EXEC_TIMEOUT,
        metavar="DURATION",
        help="terminate the command then (default: %(default)gs)",
    )
    watch.add_argument(
        "--exec",
        action="store_true",
        help="all that follows is a command to run after each change, without a shell; PODSVID_DIR is the directory of "
        "--write, whose files do not change while the command runs",
    )

    validate = _page(verbs, "validate", "let the server validate a token")
    what = validate.add_subparsers(dest="kind", required=True, metavar="jwt")
    token = _command(_page(what, "jwt", "print the SPIFFE ID and claims of a JWT-SVID"), ())
    token.add_argument("--audience", required=True, type=_audience, metavar="A", help="who the token must be for")
    source = token.add_mutually_exclusive_group(required=True)
    source.add_argument("--svid-file", metavar="FILE", help="read the token from FILE; `-` is the standard input")
    source.add_argument("--svid", metavar="TOKEN", help="other users of this host can see it in the process list")


def split_command(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of `podsvid`, and the command behind `api watch --exec`, which argparse would read into."""
    given = list(given)
    if given[:2] != ["api", "watch"] or "--exec" not in given:
        return given, []
    behind = given.index("--exec") + 1
    command = given[behind:]
    return given[:behind], command[1:] if command[:1] == ["--"] else command


def run(arguments: argparse.Namespace, command: Sequence[str] = ()) -> int:
    """Carry out `podsvid api …`, with the command of --exec; returns the exit code.

    Raises AgentError, InvalidSetting, OSError.
    """
    import asyncio

    # First: what a signal leaves half imported is nothing that could be unwound.
    from podsvid.api import file_set, rendering, workload_client  # noqa: F401

    with unwinding():
        return asyncio.run(_verb(arguments, command))


async def _verb(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from podsvid.api.address import target
    from podsvid.api.errors import NotServed, Unreachable
    from podsvid.api.workload_client import WorkloadApiClient
    from podsvid.awaiting import awaited
    from runtime.clock import SystemClock

    address = target(_address(arguments))
    token = _token(arguments) if arguments.verb == "validate" else ""
    try:
        if arguments.verb == "watch":
            await _watch(address, arguments, command)
            return 0
        async with awaited(address, arguments.timeout), WorkloadApiClient(address, SystemClock()) as client:
            rendered = await _answer(client, arguments, token)
    except TimeoutError:
        late = Unreachable(f"no answer from {address} within {arguments.timeout:g} s; --timeout gives it longer")
        raise await _seen(address, late) from None
    except (Unreachable, NotServed) as error:
        raise await _seen(address, error) from None
    _write(rendered, arguments)
    _show(rendered, arguments)
    return 0


async def _seen(address: str, error: WorkloadApiError) -> WorkloadApiError:
    """`error`, with what is wrong with the socket where something is."""
    import asyncio
    from urllib.parse import unquote

    from agent.socket.guard import WORKLOAD_API
    from podsvid import sockets

    if not address.startswith("unix:"):
        return error
    path = unquote(address.removeprefix("unix:"), errors="surrogateescape")
    found = await asyncio.to_thread(sockets.trouble, path, "a Workload API", WORKLOAD_API)
    return error if found is None else type(error)(str(found))


async def _answer(client: WorkloadApiClient, arguments: argparse.Namespace, token: str) -> Rendered:
    from podsvid.api import rendering
    from podsvid.api.errors import RequestRefused
    from runtime.settings import InvalidSetting

    if arguments.verb == "validate":
        try:
            return rendering.valid_token(await client.validate_jwt(token, arguments.audience))
        except RequestRefused as error:
            raise _TokenInvalid(str(error)) from None
    if arguments.kind == "jwt":
        found = await client.fetch_jwt(arguments.audience, arguments.spiffe_id)
        if arguments.output == _EXEC_CREDENTIAL:
            if len(found) != 1:
                raise InvalidSetting(
                    f"the socket has {len(found)} identities, and an {_EXEC_CREDENTIAL} is one: name it by --spiffe-id"
                )
            return rendering.exec_credential(found[0], os.environ.get(_EXEC_INFO, ""))
        return rendering.jwt(found, show_tokens=arguments.write is None)
    if arguments.kind == "bundle":
        return rendering.bundles(await client.fetch_bundles())
    return rendering.x509(await client.fetch_x509())


async def _watch(address: str, arguments: argparse.Namespace, command: Sequence[str]) -> None:
    import random

    from podsvid.api import rendering
    from podsvid.api.following import Backoff, follow_x509
    from podsvid.api.watch import Command, Notification, watch
    from runtime.clock import SystemClock
    from runtime.stopping import asked_to_stop

    if arguments.exec and not command:
        from runtime.settings import InvalidSetting

        raise InvalidSetting("--exec needs a command")
    stop = asked_to_stop()
    directory = None if arguments.write is None else os.path.abspath(arguments.write)
    runner = Command(command, directory, arguments.exec_timeout, _report) if command else None
    notification = Notification(arguments.signal[0], arguments.signal[1], _report) if arguments.signal else None
    jitter = random.Random()  # noqa: S311 - jitter is no secret

    async def states() -> AsyncGenerator[Rendered, None]:
        async with aclosing(follow_x509(address, SystemClock(), Backoff(jitter), _report)) as found:
            async for state in found:
                yield rendering.x509(state)

    async def then(rendered: Rendered) -> None:
        _show(rendered, arguments)
        if runner is not None:
            await runner.run()
        if notification is not None:
            notification.send()

    await watch(
        states(),
        lambda rendered: _write(rendered, arguments),
        then,
        lambda: _sweep(arguments),
        stop=stop,
        first_within=arguments.timeout,
        backoff=Backoff(jitter),
        report=_report,
    )


def _address(arguments: argparse.Namespace) -> str:
    from podsvid.api.errors import InvalidAddress

    found: str = arguments.socket or os.environ.get(ENDPOINT_VARIABLE, "")
    found = found or next(filter(os.path.exists, CUSTOMARY), "")
    if not found:
        raise InvalidAddress(
            f"no Workload API socket: set {ENDPOINT_VARIABLE} or give --socket; nothing is at {' or '.join(CUSTOMARY)}"
        )
    return found


def _token(arguments: argparse.Namespace) -> str:
    if arguments.svid is not None and arguments.svid != "-":
        data = os.fsencode(arguments.svid)
    else:
        name = arguments.svid_file or "-"
        with contextlib.ExitStack() as stack:
            file = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))
            data = file.read(_LONGEST_TOKEN + 1)
    if len(data) > _LONGEST_TOKEN or not data.isascii():
        raise _TokenInvalid("that is not a JWT-SVID: it is too long, or not ASCII")
    return data.decode().strip()


def _write(rendered: Rendered, arguments: argparse.Namespace) -> None:
    from podsvid.api.file_set import FileSet

    if arguments.write is not None:
        FileSet(arguments.write, arguments.file_set).write(rendered.files)


def _sweep(arguments: argparse.Namespace) -> None:
    from podsvid.api.file_set import FileSet

    if arguments.write is not None:
        FileSet(arguments.write, arguments.file_set).sweep()


def _show(rendered: Rendered, arguments: argparse.Namespace) -> None:
    sys.stdout.write(rendered.output(arguments.output))
    if arguments.verb == "watch" and arguments.output in ("text", "yaml"):
        sys.stdout.write("\n" if arguments.output == "text" else "---\n")
    sys.stdout.flush()


def _report(text: str) -> None:
    print(f"podsvid: {text}", file=sys.stderr, flush=True)


def _page(verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text)


def _command(
    parser: argparse.ArgumentParser, others: tuple[str, ...], timeout: float | None = _TIMEOUT
) -> argparse.ArgumentParser:
    parser.add_argument(
        "--socket",
        metavar="SOCKET",
        help=f"unix:///PATH, tcp://IP:PORT or an absolute path (default: ${ENDPOINT_VARIABLE}, else what is there of "
        f"{' and '.join(CUSTOMARY)})",
    )
    add_output(parser, (*FORMS, *others))
    add_timeout(parser, timeout, "until the first answer")
    parser.set_defaults(write=None)
    return parser


def _add_write(parser: argparse.ArgumentParser, file_set: str, names: str) -> None:
    parser.add_argument("--write", metavar="DIR", type=Path, help=f"write {names} into DIR, all at once")
    parser.set_defaults(file_set=file_set)


def _audience(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("must be UTF-8") from None
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _spiffe_id(text: str) -> SpiffeId:
    from svid.errors import InvalidSpiffeId
    from svid.spiffeid import SpiffeId

    try:
        return SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _signal(text: str) -> tuple[int, Signals]:
    from signal import Signals

    pid, _, name = text.partition(":")
    name = name.upper() if name else "HUP"
    try:
        number = Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{name!r} is not a signal name such as HUP") from None
    # 0 and below are groups of processes.
    if not (pid.isascii() and pid.isdigit() and 0 < int(pid) < 2**31):
        raise argparse.ArgumentTypeError(f"{pid!r} is not a process ID")
    return int(pid), number
