"""What `podsvid node` is told on its command line. Nothing of gRPC or protobuf is loaded for it: who waits
for its turn has read this already (podsvid/readings.py)."""

import argparse
import os

from agent.admin_socket import ROTATE_SECONDS, SOCKET
from podsvid.options import FORMS, TABLE_FORMS, add_output, add_pod, add_timeout
from podsvid.waiting import GIVEN_UP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their flags."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    # In the agent's pod its run directory is in the environment.
    default = f"{os.environ.get('PODSVID_RUN_DIR', '/run/podsvid')}/{SOCKET}"
    for name, text in (
        ("ls", "every volume, a line each"),
        ("explain", "all about a pod's volumes, or why they could not be published"),
        ("rotate", "renew a pod's X.509-SVIDs now"),
    ):
        each = commands.add_parser(name, help=text, description=text)
        if name != "ls":
            add_pod(each)
        each.add_argument(
            "--socket",
            default=default,
            metavar="SOCKET",
            help=f"the agent's admin socket (default: {default}, below PODSVID_RUN_DIR)",
        )
        add_output(each, TABLE_FORMS if name != "explain" else FORMS)
        add_timeout(each, GIVEN_UP if name != "rotate" else ROTATE_SECONDS + GIVEN_UP)
