"""The `podsvid` command. What a verb needs is imported when it runs, to start fast."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from agent import api, config
from agent.errors import AgentError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage or settings."""
    from agent import quickstart

    parser = argparse.ArgumentParser(prog="podsvid", description="SPIFFE identities for Kubernetes pods.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    config.add_arguments(commands.add_parser("agent", help="the node agent"))
    quickstart.add_arguments(commands.add_parser("quickstart", help="see a volume rotate, without Kubernetes"))
    api.add_arguments(commands.add_parser("api", help="ask a Workload API socket"))
    parsed = parser.parse_args(arguments)
    try:
        if parsed.command == "agent":
            return _agent(parsed)
        return quickstart.run(parsed) if parsed.command == "quickstart" else api.run(parsed)
    except AgentError as error:
        print(f"podsvid: {error.reason}: {error}", file=sys.stderr)
        return 2 if error.reason == "INVALID_SETTING" else 1
    except OSError as error:
        print(f"podsvid: {error}", file=sys.stderr)
        return 1


def _agent(parsed: argparse.Namespace) -> int:
    from agent import daemon, log

    settings = config.load(parsed, os.environ)
    log.configure(settings.log_format, settings.log_level)
    asyncio.run(daemon.run_agent(settings))
    return 0
