"""The `podsvid` command. What a command needs is imported when it is the one that runs, to start fast."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from podsvid import outcome
from podsvid.api import command as api
from podsvid.parsing import Parser

if TYPE_CHECKING:
    from runtime.host import Lack

_COMMANDS = {
    "agent": "the node agent",
    "signer": "the cluster CA as a service",
    "authority": "show and rotate the signer's authorities",
    "uninstall-check": "who still needs podsvid in the cluster",
    "bundle": "the trust bundle, as other trust domains fetch it",
    "oidc": "the documents by which OpenID Connect verifies JWT-SVIDs",
    "explain": "which identity a pod gets, and why; from anywhere",
    "doctor": "what is wrong with podsvid in this cluster, and what to do",
    "console": "identities, authorities and nodes in a browser, read-only",
    "quickstart": "see a volume rotate, without Kubernetes",
    "node": "the volumes of this node's agent",
    "api": "ask a Workload API socket",
    "migrate": "from SPIRE or csi-driver-spiffe: policies, federations, values",
    "completion": "a script by which bash, zsh or fish completes this command line",
    "help": "what a command is for",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and print why it failed, as one line; returns the exit code, one of outcome.MEANINGS."""
    try:
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
        except SystemExit as end:  # argparse has printed its help
            code = int(end.code or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        return outcome.SIGNALLED + int(getattr(error, "number", signal.SIGINT))
    except Exception as error:
        return _failed(outcome.of(error))


def _run(arguments: Sequence[str]) -> int:
    given, command = api.split_command(arguments)
    if given[:1] == ["--version"]:
        from runtime.version import VERSION

        print(f"podsvid {VERSION}")
        return outcome.DONE
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    parsed = _parser(given[0] if given else "", _called()).parse_args(given)
    if parsed.command == "api":
        return api.run(parsed, command)
    return _RUN[parsed.command](parsed)


def _failed(found: outcome.Outcome) -> int:
    if found.code != outcome.NOBODY_READS:
        # Where nobody hears it either, the exit code says it.
        with contextlib.suppress(OSError):
            print("\n".join([found.line(), *_more(found)]), file=sys.stderr, flush=True)
    return found.code


def _more(found: outcome.Outcome) -> list[str]:
    """Where to read about each reason, where the site of the documentation is known."""
    from podsvid import reading

    reasons = dict.fromkeys([found.reason, *(each.reason for each in found.more)])
    return [f"{reading.SEE}{reading.where(each)}" for each in reasons] if reading.site() else []


def _parser(command: str | None, called: str = "podsvid") -> argparse.ArgumentParser:
    """Knows every command by name, and all of `command`; None: of each. `called`: what usage begins with."""
    parser = Parser(
        prog=called,
        description="SPIFFE identities for Kubernetes pods.",
        epilog=outcome.epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version of podsvid and end")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in _COMMANDS.items()}
    for name in parsers if command is None else filter(parsers.__contains__, [command]):
        _add_arguments(name, parsers[name])
    return parser


def _called() -> str:
    """How a person has called it: kubectl runs its plug-ins by such a name."""
    return "kubectl podsvid" if os.path.basename(sys.argv[0]) == "kubectl-podsvid" else "podsvid"


def _add_arguments(command: str, parser: argparse.ArgumentParser) -> None:
    """Its options and subcommands, for which it is imported."""
    if command == "agent":
        from agent import config

        config.add_arguments(parser)
        _add_check(parser)
    elif command == "quickstart":
        from podsvid.quickstart import play as quickstart

        quickstart.add_arguments(parser)
    elif command == "signer":
        from signer import config as signer_config

        signer_config.add_arguments(parser)
        _add_check(parser)
    elif command == "authority":
        from podsvid import authority as authority_command

        authority_command.add_arguments(parser)
    elif command in ("bundle", "oidc"):
        from podsvid import documents

        (documents.add_bundle_arguments if command == "bundle" else documents.add_oidc_arguments)(parser)
    elif command == "uninstall-check":
        from podsvid import uninstall_check

        uninstall_check.add_arguments(parser)
    elif command == "explain":
        from podsvid import explain

        explain.add_arguments(parser)
    elif command == "doctor":
        from podsvid.doctor import command as doctor_command

        doctor_command.add_arguments(parser)
    elif command == "console":
        from podsvid.console import command as console_command

        console_command.add_arguments(parser)
    elif command == "node":
        from podsvid import node_options

        node_options.add_arguments(parser)
    elif command == "api":
        api.add_arguments(parser)
    elif command == "migrate":
        from podsvid.migrate import command as migrate_command

        migrate_command.add_arguments(parser)
    elif command == "completion":
        from podsvid import completion

        completion.add_arguments(parser)
    elif command == "help":
        parser.add_argument(
            "about", nargs="*", choices=list(_COMMANDS), metavar="COMMAND", help="and a subcommand of it"
        )


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="say all that is wrong with the settings and all that this host lacks for them, and end",
    )


def _quickstart(parsed: argparse.Namespace) -> int:
    from podsvid.quickstart import play as quickstart

    return quickstart.run(parsed)


def _agent(parsed: argparse.Namespace) -> int:
    from agent import config
    from runtime import log, tls

    if parsed.check:
        from agent import check

        looked_at = config.examine(parsed, os.environ)
        return _checked(looked_at.faults, check.lacks(looked_at), running=check.running(looked_at.config))
    settings = config.load(parsed, os.environ)
    tls.require_tls13()
    from agent import unserved

    unserved.load()
    from agent import daemon

    log.configure(settings.log_format, settings.log_level)
    return _served(daemon.run_agent(settings), settings)


def _signer(parsed: argparse.Namespace) -> int:
    from runtime import log, tls
    from signer import config

    if parsed.check:
        from signer import check

        looked_at = config.examine(parsed, os.environ)
        return _checked(looked_at.faults, check.lacks(looked_at), running=check.running(looked_at.config))
    settings = config.load(parsed, os.environ)
    tls.require_tls13()
    from signer import daemon

    log.configure(settings.log_format, settings.log_level)
    return _served(daemon.run_signer(settings), settings)


def _checked(faults: Sequence[str], lacks: "Sequence[Lack]", *, running: bool) -> int:
    found = [*(("INVALID_SETTING", each) for each in faults), *((each.reason, each.text) for each in lacks)]
    if found:
        return _failed(outcome.together(found))
    print("nothing is wrong with the settings, and this host has what they need")
    if running:
        print("one with these settings is running: whether its ports are free was not tried")
    return outcome.DONE


def _served(serving: Coroutine[Any, Any, None], settings: object) -> int:
    import asyncio

    try:
        asyncio.run(serving)
    except Exception as error:
        return _failed(outcome.of(error, settings))
    return outcome.DONE


def _authority(parsed: argparse.Namespace) -> int:
    from podsvid import authority as authority_command

    return authority_command.run(parsed)


def _explain(parsed: argparse.Namespace) -> int:
    from podsvid import explain

    return explain.run(parsed)


def _doctor(parsed: argparse.Namespace) -> int:
    from podsvid.doctor import command as doctor_command

    return doctor_command.run(parsed)


def _console(parsed: argparse.Namespace) -> int:
    from podsvid.console import command as console_command

    return console_command.run(parsed)


def _bundle(parsed: argparse.Namespace) -> int:
    from podsvid import documents

    return documents.run_bundle(parsed)


def _oidc(parsed: argparse.Namespace) -> int:
    from podsvid import documents

    return documents.run_oidc(parsed)


def _node(parsed: argparse.Namespace) -> int:
    from podsvid import readings

    # Before what asks an agent is loaded: that is what there is to be in turn for.
    with readings.turn(parsed):
        from podsvid import node as node_command

        return node_command.run(parsed)


def _migrate(parsed: argparse.Namespace) -> int:
    from podsvid.migrate import command as migrate_command

    return migrate_command.run(parsed)


def _completion(parsed: argparse.Namespace) -> int:
    from podsvid import completion

    return completion.run(parsed, lambda: _parser(None))


def _uninstall_check(parsed: argparse.Namespace) -> int:
    from podsvid import uninstall_check

    return uninstall_check.run(parsed)


_RUN = {
    "agent": _agent,
    "signer": _signer,
    "authority": _authority,
    "bundle": _bundle,
    "oidc": _oidc,
    "console": _console,
    "doctor": _doctor,
    "explain": _explain,
    "uninstall-check": _uninstall_check,
    "quickstart": _quickstart,
    "node": _node,
    "migrate": _migrate,
    "completion": _completion,
}
