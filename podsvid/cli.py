"""The `podsvid` command. What a command needs is imported when it is the one that runs, to start fast."""

import argparse
import os
import sys
from collections.abc import Sequence

from agent.errors import AgentError
from podsvid.api import command as api
from runtime.settings import InvalidSetting

_COMMANDS = {
    "agent": "the node agent",
    "signer": "the cluster CA as a service",
    "authority": "show and rotate the signer's authorities",
    "uninstall-check": "who still needs podsvid in the cluster",
    "explain": "which identity a pod gets, and why; from anywhere",
    "quickstart": "see a volume rotate, without Kubernetes",
    "node": "the volumes of this node's agent",
    "api": "ask a Workload API socket",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage or settings; `api` has more."""
    given, command = api.split_command(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser(given[0] if given else "").parse_args(given)
    try:
        if parsed.command == "api":
            return api.run(parsed, command)
        return _RUN[parsed.command](parsed)
    except InvalidSetting as error:
        print(f"podsvid: {error.reason}: {error}", file=sys.stderr)
        return 2
    except AgentError as error:
        return _failed(error.reason, error)
    except OSError as error:
        print(f"podsvid: {error}", file=sys.stderr)
        return 1


def _parser(command: str) -> argparse.ArgumentParser:
    """Knows every command by name, and all of `command`."""
    parser = argparse.ArgumentParser(prog="podsvid", description="SPIFFE identities for Kubernetes pods.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text) for name, text in _COMMANDS.items()}
    if command == "agent":
        from agent import config

        config.add_arguments(parsers[command])
    elif command == "quickstart":
        from podsvid.quickstart import play as quickstart

        quickstart.add_arguments(parsers[command])
    elif command == "signer":
        from signer import config as signer_config

        signer_config.add_arguments(parsers[command])
    elif command == "authority":
        from podsvid import authority as authority_command

        authority_command.add_arguments(parsers[command])
    elif command == "uninstall-check":
        from podsvid import uninstall_check

        uninstall_check.add_arguments(parsers[command])
    elif command == "explain":
        from podsvid import explain

        explain.add_arguments(parsers[command])
    elif command == "node":
        from podsvid import node as node_command

        node_command.add_arguments(parsers[command])
    elif command == "api":
        api.add_arguments(parsers[command])
    return parser


def _quickstart(parsed: argparse.Namespace) -> int:
    from podsvid.quickstart import play as quickstart

    return quickstart.run(parsed)


def _agent(parsed: argparse.Namespace) -> int:
    import asyncio

    from runtime import log, tls

    tls.require_tls13()
    from agent import config, daemon

    settings = config.load(parsed, os.environ)
    log.configure(settings.log_format, settings.log_level)
    asyncio.run(daemon.run_agent(settings))
    return 0


def _signer(parsed: argparse.Namespace) -> int:
    import asyncio

    from runtime import log, tls

    tls.require_tls13()
    from signer import config, daemon
    from signer.errors import SignerError

    settings = config.load(parsed, os.environ)
    log.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(daemon.run_signer(settings))
    except SignerError as error:
        return _failed(error.reason, error)
    return 0


def _authority(parsed: argparse.Namespace) -> int:
    from podsvid import authority as authority_command
    from signer.errors import SignerError

    try:
        return authority_command.run(parsed)
    except SignerError as error:
        return _failed(error.reason, error)


def _explain(parsed: argparse.Namespace) -> int:
    from podsvid import explain
    from signer.errors import SignerError

    try:
        return explain.run(parsed)
    except SignerError as error:
        return _failed(error.reason, error)


def _node(parsed: argparse.Namespace) -> int:
    from podsvid import node as node_command

    return node_command.run(parsed)


def _uninstall_check(parsed: argparse.Namespace) -> int:
    from podsvid import uninstall_check
    from signer.errors import SignerError

    try:
        return uninstall_check.run(parsed)
    except SignerError as error:
        return _failed(error.reason, error)


def _failed(reason: str, error: Exception) -> int:
    print(f"podsvid: {reason}: {error}", file=sys.stderr)
    return 1


_RUN = {
    "agent": _agent,
    "signer": _signer,
    "authority": _authority,
    "explain": _explain,
    "uninstall-check": _uninstall_check,
    "quickstart": _quickstart,
    "node": _node,
}
