"""`podsvid console`: its options, and its life."""

import argparse
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from podsvid.console.serving import Console
from podsvid.interrupts import unwinding
from podsvid.options import add_kubeconfig, seconds
from podsvid.outcome import WrongUsage

if TYPE_CHECKING:
    from podsvid.console.picture import Source

# Seconds of rest between two rounds of a cluster, and how many at least: each is a process on each node.
EVERY, LEAST = 60.0, 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_kubeconfig(parser)
    parser.add_argument("--socket", metavar="SOCKET", help="show only the node of this agent's admin socket")
    parser.add_argument(
        "--every",
        type=seconds,
        default=EVERY,
        metavar="DURATION",
        help="how long a cluster is left alone between two looks (default: 1m)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Serve it until a signal ends it; the exit code. Raises SignerError, CommandError, OSError."""
    with contextlib.suppress(KeyboardInterrupt), unwinding(), Console(_source(parsed)) as console:
        print(f"open {console.url}\nit is served on this machine only, and only shows; Ctrl-C ends it", flush=True)
        threading.Event().wait()
    return 0


def _source(parsed: argparse.Namespace) -> "Source":
    if parsed.socket:
        from agent.admin_api import SERVICE
        from podsvid import sockets
        from podsvid.console.on_node import OnNode

        wrong = sockets.trouble(os.path.abspath(parsed.socket), "an agent", SERVICE)
        if wrong is not None:
            raise wrong
        return OnNode(os.path.abspath(parsed.socket))
    if parsed.every < LEAST:
        raise WrongUsage(f"--every is {LEAST:g}s at least: each look starts a process in every pod of podsvid")
    # The kubernetes package takes as long to load as everything else.
    from podsvid.by_kubeconfig import KubeconfigCluster
    from podsvid.console.in_cluster import RIGHTS, InCluster

    cluster = KubeconfigCluster(parsed.kubeconfig, parsed.context, parsed.podsvid_namespace, "", RIGHTS)
    return InCluster(cluster, parsed.every)
